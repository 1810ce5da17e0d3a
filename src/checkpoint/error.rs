//! Errors of reading and writing checkpoints.

use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::escaped;

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
    #[error("{}: {}", shown(field, 120), shown(message, 400))]
    Malformed {
        /// The part: an archive's entry, a key, or an offset in the pickle.
        field: String,
        /// The expected and the found value.
        message: String,
    },
    /// The content is of no supported format.
    #[error("not a checkpoint: {found}; expected a safetensors file or a PyTorch zip file")]
    Unrecognised {
        /// The apparent format, by the first bytes.
        found: &'static str,
    },
    /// A PyTorch file from before the zip format.
    #[error(
        "written in PyTorch's format from before 1.6; open it with PyTorch and `torch.save` it again, then it is read"
    )]
    LegacyTorch,
    /// The file holds no tensors.
    #[error("no tensors found{}", shown(found, 400))]
    NoTensors {
        /// The content that was found instead, after a semicolon; may be empty.
        found: String,
    },
    /// A file of weights where a training state is expected.
    #[error("{found}, not the state of a training run; --init begins a run with its weights")]
    NotAState {
        /// The kind of file that was found.
        found: &'static str,
    },
    /// The requested weights are not in the file.
    #[error("there are no {wanted} weights, only {found} ones")]
    NoSuchWeights {
        /// The requested weights: `EMA` or `raw`.
        wanted: &'static str,
        /// The weights in the file.
        found: &'static str,
    },
    /// The file holds another network than the expected one.
    #[error("holds a {found}; expected a {expected}")]
    OtherNetwork {
        /// The network in the file.
        found: String,
        /// The expected network.
        expected: String,
    },
    /// A tensor is missing, superfluous or damaged: its name and the problem.
    #[error("{}", shown(.0, 400))]
    Misfit(String),
    /// A tensor that the network needs has an unsupported type.
    #[error(
        "{}: {}, which is not supported; expected numbers of type F64, F32, F16 or BF16",
        shown(name, 120),
        shown(found, 120)
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
pub(super) fn shown(text: &str, max: usize) -> String {
    escaped(text, max).into_owned()
}

impl ErrorKind {
    pub(crate) fn malformed(field: impl Into<String>, message: impl Into<String>) -> Self {
        ErrorKind::Malformed { field: field.into(), message: message.into() }
    }

    pub(crate) fn at(self, path: &Path) -> Error {
        Error { path: path.to_owned(), kind: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_file_is_one_short_line_in_a_message() {
        let problem = ErrorKind::malformed("x".repeat(1 << 20), "y\n".repeat(1 << 20));
        assert!(problem.to_string().len() < 3000 && !problem.to_string().contains('\n'));
    }
}
