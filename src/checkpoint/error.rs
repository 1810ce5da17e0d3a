//! Errors of reading and writing checkpoints.

use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::escape;

/// A checkpoint that could not be read or written: the file and the reason, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub kind: ErrorKind,
}

/// The reason why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system could not read or write the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A part of the file violates its format.
    #[error("{}: {}", printable(field, 120), printable(message, 400))]
    Malformed {
        /// The part: an archive's entry, a key, or an offset in the pickle.
        field: String,
        /// The expected and the found value.
        message: String,
    },
    /// The content is of no supported format.
    #[error("not a checkpoint: {found}; expected a safetensors file or a PyTorch zip file")]
    Unrecognized {
        /// The apparent format, by the first bytes.
        found: &'static str,
    },
    /// A PyTorch file from before the zip format.
    #[error(
        "written in PyTorch's format from before 1.6; load it with PyTorch and save it again with `torch.save`"
    )]
    LegacyTorch,
    /// The file holds no tensors.
    #[error("no tensors found{}", printable(found, 400))]
    NoTensors {
        /// The content that was found instead, after a semicolon; may be empty.
        found: String,
    },
    /// A file of weights instead of a training state.
    #[error("expected a training state, found {found}; pass --init to start a run with its weights")]
    NotAState {
        /// The kind of file that was found.
        found: &'static str,
    },
    /// The requested weights are not in the file.
    #[error("expected {wanted} weights, found only {found} weights")]
    NoSuchWeights {
        /// The requested weights: `EMA` or `raw`.
        wanted: &'static str,
        /// The weights in the file.
        found: &'static str,
    },
    /// The file holds another network than the expected one.
    #[error("expected a {expected}, found a {found}")]
    OtherNetwork {
        /// The network in the file.
        found: String,
        /// The expected network.
        expected: String,
    },
    /// A tensor is missing, unexpected or damaged: its name and the problem.
    #[error("{}", printable(.0, 400))]
    TensorMismatch(String),
    /// A tensor that the network needs has an unsupported type.
    #[error(
        "{}: expected numbers of type F64, F32, F16 or BF16, found {}",
        printable(name, 120),
        printable(found, 120)
    )]
    Unsupported {
        /// The tensor's name.
        name: String,
        /// The type of its numbers, or the class of the object.
        found: String,
    },
    /// The content does not match its checksum.
    #[error("{}", tiny_cats_export::CHECKSUM_MISMATCH)]
    Checksum,
}

/// The result of reading or writing a checkpoint.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Escapes control characters in a file's text and cuts it to about `max` characters, for a message.
pub(super) fn printable(text: &str, max: usize) -> String {
    escape(text, max).into_owned()
}

impl ErrorKind {
    pub(crate) fn malformed(field: impl Into<String>, message: impl Into<String>) -> Self {
        ErrorKind::Malformed { field: field.into(), message: message.into() }
    }

    pub(crate) fn with_path(self, path: &Path) -> Error {
        Error { path: path.to_owned(), kind: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_short_line() {
        let problem = ErrorKind::malformed("x".repeat(1 << 20), "y\n".repeat(1 << 20));
        assert!(problem.to_string().len() < 3000 && !problem.to_string().contains('\n'));
    }
}
