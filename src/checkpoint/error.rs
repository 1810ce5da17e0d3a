//! What can be wrong with a file.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A checkpoint that could not be read or written: the file and what is wrong with it, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The system could not read or write it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A part of the file is not what its format asks for.
    #[error("{field}: {message}")]
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
    #[error("no tensors found")]
    NoTensors,
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
    #[error("{0}")]
    Misfit(String),
    /// The content was altered after it was written.
    #[error("{}", tiny_cats_export::ALTERED)]
    Checksum,
}

/// Results of reading and writing checkpoints.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Problem {
    pub(crate) fn malformed(field: impl Into<String>, message: impl Into<String>) -> Self {
        Problem::Malformed { field: field.into(), message: message.into() }
    }

    pub(crate) fn at(self, path: &Path) -> Error {
        Error { path: path.to_owned(), problem: self }
    }
}
