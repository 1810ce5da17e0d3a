//! Errors of training.

use std::path::PathBuf;

use crate::data;

/// An error of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that is not valid.
    #[error("{setting}: {message}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The expected and the found value.
        message: String,
    },
    /// The loss or a gradient is not finite.
    #[error("step {step}: the loss is {loss}, the gradient's norm {norm}, on {}", list_files(files))]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The loss of the step.
        loss: f64,
        /// The norm of the gradients; 0 if the loss was not finite.
        norm: f64,
        /// The files of the step's items.
        files: Vec<PathBuf>,
    },
    /// Too little disk space or memory, found before the first step.
    #[error("{0}")]
    Preflight(String),
    /// A training state of another run.
    #[error("{path}: {message}")]
    Resume {
        /// The file of the state.
        path: PathBuf,
        /// The difference.
        message: String,
    },
    /// Another process trains in the run's folder.
    #[error("{path}: another process trains in this folder")]
    Busy {
        /// The run's folder.
        path: PathBuf,
    },
    /// A file of the run could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// An error of the training data.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// A micro-batch could not be made because of a defect in this program.
    #[error("batch of {size} items at position {position}: {message}")]
    Loading {
        /// Number of items drawn before it.
        position: u64,
        /// Number of its items.
        size: usize,
        /// The cause.
        message: String,
    },
    /// A process of the run failed or ended.
    #[error("process {rank} of this run: {message}")]
    Process {
        /// The rank of the process, from 0.
        rank: usize,
        /// The error or exit status.
        message: String,
        /// True if the error is transient.
        transient: bool,
    },
    /// An error of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// An error of the network.
    #[error(transparent)]
    Model(#[from] tiny_cats_models::Error),
    /// An error of sampling.
    #[error(transparent)]
    Export(#[from] tiny_cats_export::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The result of a training function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Lists the first of `files` and the number of the others.
fn list_files(files: &[PathBuf]) -> String {
    const MAX_NAMED: usize = 8;
    let names: Vec<String> = files.iter().take(MAX_NAMED).map(|path| path.display().to_string()).collect();
    let more = files.len().saturating_sub(MAX_NAMED);
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// CUDA errors that may not recur in another process or after a restart.
const LOST_DEVICE_MESSAGES: [&str; 7] = [
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_UNKNOWN",
];

impl Error {
    /// True if memory was too small, so that a smaller micro-batch may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Candle(_) | Self::Model(_)) && {
            let message = self.to_string();
            message.contains("CUDA_ERROR_OUT_OF_MEMORY") || message.contains("out of memory")
        }
    }

    /// True for a transient error: a disk or network that did not respond, or a lost GPU.
    ///
    /// A missing file, missing permissions and a full disk are not transient.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Data(error) => return error.is_transient(),
            Self::Process { transient, .. } => return *transient,
            // The other process may be about to end: after its parent is killed, it saves its state first.
            Self::Busy { .. } => return true,
            _ => {}
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                return data::is_transient_io(error);
            }
            cause = error.source();
        }
        let message = self.to_string();
        matches!(self, Self::Candle(_) | Self::Model(_))
            && LOST_DEVICE_MESSAGES.iter().any(|name| message.contains(name))
    }

    /// A transient error: process `rank` ended or cannot continue.
    pub(super) fn process(rank: usize, message: impl Into<String>) -> Self {
        Self::Process { rank, message: message.into(), transient: true }
    }

    /// Marks an error as one that only process `rank` has.
    pub(super) fn in_process(self, rank: usize) -> Self {
        match self {
            Self::Process { .. } => self,
            other => {
                let transient = other.is_transient() || other.is_out_of_memory();
                Self::Process { rank, message: other.to_string(), transient }
            }
        }
    }

    pub(super) fn setting(setting: &'static str, message: impl Into<String>) -> Self {
        Self::Setting { setting, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn transient_errors_are_recognized() {
        let file = |source: io::Error| Error::File { path: "state".into(), source };
        for kind in
            [io::ErrorKind::TimedOut, io::ErrorKind::ConnectionReset, io::ErrorKind::StaleNetworkFileHandle]
        {
            assert!(file(kind.into()).is_transient(), "{kind}");
        }
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::StorageFull] {
            assert!(!file(kind.into()).is_transient(), "{kind}");
        }
        #[cfg(unix)]
        assert!(file(io::Error::from_raw_os_error(5)).is_transient());
        let candle = |text: &str| Error::Candle(candle_core::Error::Msg(text.into()));
        assert!(candle("DriverError(CUDA_ERROR_LAUNCH_FAILED)").is_transient());
        let memory = candle("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        assert!(memory.is_out_of_memory() && !memory.is_transient());
        assert!(!candle("shape mismatch").is_transient() && !candle("shape mismatch").is_out_of_memory());
        assert!(!Error::setting("lr", "out of memory").is_out_of_memory());
    }

    #[test]
    fn non_finite_steps_list_their_files_in_one_line() {
        let files = (0..10).map(|i| PathBuf::from(format!("{i}.png"))).collect();
        let message = Error::NotFinite { step: 3, loss: f64::NAN, norm: 0.0, files }.to_string();
        assert!(
            message.starts_with("step 3: the loss is NaN") && message.ends_with("7.png and 2 more"),
            "{message}"
        );
    }
}
