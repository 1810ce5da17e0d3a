//! Trains small image models, exports them to ONNX, verifies the exported files numerically, and runs them anywhere.

mod axis;
pub mod chart;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cloud;
pub mod data;
pub mod device;
pub mod doctor;
pub mod evaluate;
pub mod memory;
pub mod plan;
pub mod plot;
mod plural;
pub mod recipes;
pub mod report;
pub mod runs;
#[cfg(feature = "serve")]
pub mod serve;
pub mod signals;
pub mod sweep;
pub mod track;
pub mod train;
mod writable;

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
