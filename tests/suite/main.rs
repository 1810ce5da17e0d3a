//! All integration tests of the library and the programs, except those that count memory. They are one program because it links faster
//! than one per file.

mod common;

mod classifier;
mod classify;
mod cli;
mod cloud;
mod configuration;
mod data;
mod docs;
mod doctor;
mod download;
mod engine;
mod eval;
mod eval_reference;
mod gate;
mod loading;
mod million;
mod modal_app;
mod modules;
mod network;
mod openness;
mod operations;
mod own_network;
mod parallel;
mod plan;
mod resnet;
mod runs;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_limits;
#[cfg(feature = "serve")]
mod serve_program;
#[cfg(feature = "serve")]
mod serve_slow;
mod sweep;
mod torch_files;
mod torch_foreign;
mod track;
mod training;
mod vectors;
mod verify_checkpoint;
