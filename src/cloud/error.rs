//! Errors of training at Modal.

use std::{io, path::PathBuf};

use super::modal;

/// An error of training at Modal, in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Modal's command line failed.
    #[error(transparent)]
    Modal(#[from] modal::Error),
    /// A limit or a choice is invalid.
    #[error("{setting}: {message}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The expected and the found value.
        message: String,
    },
    /// A requested GPU cannot train this.
    #[error("gpu {gpu}: {message}")]
    Gpu {
        /// The GPU.
        gpu: String,
        /// The reason.
        message: String,
    },
    /// No GPU can train this.
    #[error("no GPU can train this")]
    NoGpu,
    /// There is a maximum cost, but a GPU has no price.
    #[error("max_cost: these GPUs have no price")]
    NoPrice,
    /// A workload cannot be estimated.
    #[error(transparent)]
    Plan(#[from] crate::plan::Error),
    /// A run, data or a folder is not in the expected state.
    #[error("{subject}: {message}")]
    State {
        /// The run, or the folder.
        subject: String,
        /// The expected and the found state.
        message: String,
    },
    /// No app works on a run.
    #[error("{run}: no container works on this run")]
    NotRunning {
        /// The run.
        run: String,
    },
    /// A folder on this machine contains another run than the one to fetch.
    #[error("{}: this folder contains another run", folder.display())]
    OtherRun {
        /// The folder.
        folder: PathBuf,
    },
    /// The record of a run in the cloud cannot be parsed.
    #[error("{path}: {error}")]
    Record {
        /// The path of the record, from the folder of all runs.
        path: String,
        /// The error.
        error: serde_json::Error,
    },
    /// The record of the cloud, or the lock of a folder, cannot be used.
    #[error(transparent)]
    Run(#[from] crate::train::Error),
    /// A file or folder on this machine cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
}

/// The result of a function of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn setting(setting: &'static str, message: String) -> Self {
        Self::Setting { setting, message }
    }

    pub(super) fn state(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::State { subject: subject.into(), message: message.into() }
    }

    /// Converts an [`io::Error`] at `path`.
    pub(super) fn io(path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { path: path.to_owned(), error }
    }
}
