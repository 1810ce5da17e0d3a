//! The one error of this crate.

use std::path::PathBuf;

/// Why a model could not be written, read, proved or sampled from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file, or bytes in memory, that is not what it should be.
    #[error("{file}: {field}: {message}")]
    File {
        /// The file's path, or a word for bytes that have none.
        file: String,
        /// The field or key that is wrong.
        field: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A file that is no picture, or none that can be used.
    #[error("{}: {reason}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A request that cannot be served.
    #[error("{field}: {message}")]
    Request {
        /// The request's field.
        field: &'static str,
        /// What was expected and what was given.
        message: String,
    },
    /// A runtime is not there, or failed.
    #[error("{runtime}: {message}")]
    Runtime {
        /// The runtime's name.
        runtime: &'static str,
        /// What it said, or how to get it.
        message: String,
    },
    /// An exported file does not compute what its definition computes.
    #[error("verification failed: {0}")]
    Verification(String),
    /// The network returned an infinity or a NaN: its weights are no good.
    #[error("step {step}: the network returned something that is no finite number; its weights are damaged")]
    NotFinite {
        /// The step of the sampling.
        step: usize,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The network could not be built or run.
    #[error(transparent)]
    Model(#[from] tiny_cats_models::Error),
}

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(
        file: impl std::fmt::Display,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Error::File { file: file.to_string(), field: field.into(), message: message.into() }
    }

    pub(crate) fn request(field: &'static str, message: impl Into<String>) -> Self {
        Error::Request { field, message: message.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Error::Io { path, source }
    }
}
