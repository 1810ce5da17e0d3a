//! ONNX export of models with numerical verification, runtimes for exported files, and a generator and a classifier on top of them.

mod atomic;
mod classifier;
mod closest;
mod compat;
mod config;
mod convert;
pub mod decode;
mod error;
mod features;
mod font;
mod generator;
mod grid;
pub(crate) mod guard;
mod hex;
mod integrity;
mod load;
mod loadable;
mod meta;
mod network;
pub mod onnx;
mod options;
mod prediction;
mod preprocess;
mod read;
mod registry;
mod request;
mod resize;
pub mod runtime;
pub mod sample;

pub use atomic::{StagedFile, png, remove_abandoned, stage, strip_temp_name, write_atomically, write_png};
pub use classifier::Classifier;
pub use closest::closest;
pub use compat::{PREDECESSOR_CLASSES, graph_input_names, predecessor_classes};
pub use config::NetworkConfig;
pub use convert::to_onnx;
pub use error::{Error, Result, escape, excerpt};
pub use features::FeatureExtractor;
pub use font::{draw_text, text_size};
pub use generator::{GeneratedImage, Generator, contact_sheet};
pub use grid::{display_size, grid, to_rgb};
pub use hex::{hex, unhex};
pub use integrity::{CHECKSUM_MISMATCH, Checksum, DIGEST_KEY, Integrity, META_KEY};
pub use load::Model;
pub use loadable::LoadableNetwork;
pub use meta::{
    ClassifierMeta, FORMAT_VERSION, GeneratorMeta, IMAGE_SIZE, ModelMeta, Preprocessing, Sampler,
    SamplerDefaults, TaskMeta, image_sizes, is_class_name,
};
pub use network::DynNetwork;
pub use options::LoadOptions;
pub use prediction::{Candidate, Classify, Prediction};
pub use preprocess::{resize_short_side, short_side_size};
pub use registry::{register, registered_kinds};
pub use request::{Breed, Request};
#[cfg(feature = "candle")]
mod verify;
#[cfg(feature = "candle")]
pub use verify::{
    Diagnosis, ExportOptions, FirstDifference, InputArray, MIN_PSNR, MIN_ROUNDING_PSNR, RoundingReport,
    RuntimeReport, TOLERANCE, Tolerance, VerificationCase, VerificationReport, export, export_form,
    measure_rounding, psnr, report_path, scale, verify, verify_cases, verify_on,
};
