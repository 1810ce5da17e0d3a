//! What can be wrong with a file.

use std::{
    io,
    path::{Path, PathBuf},
};

use tiny_cats_export::escaped;

/// A checkpoint that could not be read or written: the file and what is wrong with it, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: ErrorKind,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system could not read or write it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A part of the file is not what its format asks for.
    #[error("{}: {}", shown(field, 120), shown(message, 400))]
    Malformed {
        /// The part: an archive's entry, a key, an offset in the pickle.
        field: String,
        /// What was expected there, and what was found.
        message: String,
    },
    /// The content is of no format that is read.
    #[error("not a checkpoint: {found}; expected a safetensors file or a PyTorch zip file")]
    Unrecognised {
        /// What the first bytes look like.
        found: &'static str,
    },
    /// A PyTorch file from before the zip format.
    #[error(
        "written in PyTorch's format from before 1.6; open it with PyTorch and `torch.save` it again, then it is read"
    )]
    LegacyTorch,
    /// There is nothing to load.
    #[error("no tensors found{}", shown(found, 400))]
    NoTensors {
        /// What was found instead, after a semicolon; may be empty.
        found: String,
    },
    /// A file of weights where the state of a training run is expected.
    #[error("{found}, not the state of a training run; --init begins a run with its weights")]
    NotAState {
        /// What it is.
        found: &'static str,
    },
    /// The weights that were asked for are not there.
    #[error("there are no {wanted} weights, only {found} ones")]
    NoSuchWeights {
        /// `EMA` or `raw`.
        wanted: &'static str,
        /// The ones in the file.
        found: &'static str,
    },
    /// Another network than the one that is wanted.
    #[error("holds a {found}; expected a {expected}")]
    OtherNetwork {
        /// The file's.
        found: String,
        /// The one that is wanted.
        expected: String,
    },
    /// A tensor that the network lacks, that is not the network's, or that is damaged: its name, and what is wrong with it.
    #[error("{}", shown(.0, 400))]
    Misfit(String),
    /// A tensor that the network needs, and whose numbers are not read.
    #[error(
        "{}: {}, which is not supported; expected numbers of type F64, F32, F16 or BF16",
        shown(name, 120),
        shown(found, 120)
    )]
    Unsupported {
        /// The tensor's name.
        name: String,
        /// What it is: a type of number, or an object's class.
        found: String,
    },
    /// The content was altered after it was written.
    #[error("{}", tiny_cats_export::CHECKSUM_MISMATCH)]
    Checksum,
}

/// Results of reading and writing checkpoints.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Text of a file for a message: without control characters, and cut to some `max` characters.
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
