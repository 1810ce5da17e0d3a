//! Why training stopped.

use std::path::PathBuf;

/// Why training could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that makes no sense.
    #[error("{setting}: {message}")]
    Setting {
        /// The setting, by its flag.
        setting: &'static str,
        /// What was expected, and what was found.
        message: String,
    },
    /// The loss or a gradient is no longer a number.
    #[error(
        "step {step}: {what} is {value}: lower --lr or --gradient-clip; the last good state is the newest training state"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The loss, or the gradient's norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A training state that belongs to another run.
    #[error("{path}: {message}")]
    Resume {
        /// The state's file.
        path: PathBuf,
        /// What differs.
        message: String,
    },
    /// A file of the run could not be written or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The training data.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// A micro-batch could not be made, because of a fault in this program.
    #[error("the batch of {size} items from item {position} on: {message}")]
    Loading {
        /// Items drawn before it.
        position: u64,
        /// Items in it.
        size: usize,
        /// What went wrong.
        message: String,
    },
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The network.
    #[error(transparent)]
    Model(#[from] tiny_cats_models::Error),
    /// Sampling.
    #[error(transparent)]
    Export(#[from] tiny_cats_export::Error),
    /// candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Training's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn setting(setting: &'static str, message: impl Into<String>) -> Self {
        Self::Setting { setting, message: message.into() }
    }
}
