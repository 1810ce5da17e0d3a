//! Trains small image models, writes them as ONNX, proves that the file is the model, and runs it anywhere.

pub mod chart;
pub mod checkpoint;
pub mod cli;
pub mod cloud;
pub mod data;
pub mod doctor;
pub mod evaluate;
pub mod memory;
pub mod plan;
pub mod plot;
mod plural;
#[cfg(feature = "serve")]
pub mod serve;
pub mod signals;
pub mod sweep;
pub mod track;
pub mod train;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
