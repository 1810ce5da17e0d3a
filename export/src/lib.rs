//! Writes models as ONNX, proves the file numerically, and samples from it.

mod atomic;
mod convert;
mod error;
mod font;
mod generator;
mod grid;
mod load;
mod meta;
pub mod onnx;
pub mod runtime;
pub mod sample;

pub use atomic::{Staged, stage, write_atomically, write_png};
pub use convert::{INPUTS, OUTPUT, to_onnx};
pub use error::{Error, Result};
pub use generator::{Breed, Generator, Options, Picture, Request};
pub use grid::{grid, to_rgb};
pub use load::Model;
pub use meta::{
    FORMAT_VERSION, META_KEY, ModelMeta, PREDECESSOR_CLASSES, Sampler, SamplerDefaults, is_class_name,
};
#[cfg(feature = "candle")]
mod verify;
pub use tiny_cats_models::Network;
#[cfg(feature = "candle")]
pub use verify::{
    ExportOptions, MIN_PSNR, Report, RuntimeReport, TOLERANCE, Tolerance, export, psnr, report_path, verify,
};
