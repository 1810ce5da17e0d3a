//! What a training takes, said before it is begun: memory, time and money.
//!
//! The [cost reading](tiny_cats_models::cost) of the network says how much is to be computed and kept ([`Workload::demand`]). A
//! [card](Card) says how fast that goes and whether it fits, a [price list](Prices) what an hour costs; [`rules`] has the margins and
//! what is assumed. Together they are an [`Estimate`].

pub mod assumptions;
mod calibrate;
mod estimate;
mod gpu;
mod prices;
mod requirements;

pub use calibrate::{Calibration, calibrate};
pub use estimate::{Bottleneck, Estimate, Feasibility, attempts, choose, estimate};
pub use gpu::{Gpu, GpuModel, SpeedSource, gpu_models};
pub use prices::Prices;
pub use requirements::{Memory, Requirements, Workload};

/// Why something cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No GPU is called so.
    #[error("--gpu {name}: {message}")]
    Gpu {
        /// What was asked for.
        name: String,
        /// What was expected.
        message: String,
    },
    /// A price list that makes no sense.
    #[error("{path}: {message}")]
    Prices {
        /// The file.
        path: std::path::PathBuf,
        /// The field, and what was expected.
        message: String,
    },
    /// A file that cannot be read, or a run that cannot be measured.
    #[error(transparent)]
    Train(#[from] crate::train::Error),
    /// A network that is none.
    #[error(transparent)]
    NetworkConfig(#[from] tiny_cats_models::Error),
}

/// Results of planning.
pub type Result<T, E = Error> = std::result::Result<T, E>;
