//! Estimates of the memory, time and cost of training before it starts.
//!
//! The [cost backend](tiny_cats_models::cost) determines how much the network computes and stores ([`Workload::requirements`]). A
//! [`GpuModel`] gives the speed and the memory, and a [price list](Prices) the cost of an hour. [`assumptions`] contains the margins and
//! assumptions. An [`Estimate`] combines all of these.

pub mod assumptions;
mod calibrate;
mod cloud_settings;
mod estimate;
mod gpu;
mod prices;
mod requirements;

pub use calibrate::{Calibration, calibrate};
pub use cloud_settings::{CloudSettings, Container};
pub use estimate::{Bottleneck, Estimate, Feasibility, attempts, choose, estimate};
pub use gpu::{Gpu, GpuModel, SpeedSource, gpu_models};
pub use prices::Prices;
pub use requirements::{Memory, Requirements, Workload};

/// An error of planning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No GPU has this name.
    #[error("--gpu {name}: {message}")]
    Gpu {
        /// The requested name.
        name: String,
        /// A message with the expected names.
        message: String,
    },
    /// A price list is invalid.
    #[error("{path}: {message}")]
    Prices {
        /// The file.
        path: std::path::PathBuf,
        /// The field, with the expected and the found value.
        message: String,
    },
    /// A file cannot be read, or a run cannot be measured.
    #[error(transparent)]
    Train(#[from] crate::train::Error),
    /// The settings of a network are invalid.
    #[error(transparent)]
    Network(#[from] tiny_cats_export::Error),
}

/// The result of a planning function.
pub type Result<T, E = Error> = std::result::Result<T, E>;
