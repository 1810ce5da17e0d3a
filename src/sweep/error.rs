//! What can be wrong with a sweep.

use std::path::PathBuf;

/// Why a sweep could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the file that makes no sense.
    #[error("{path}: {field}: {message}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, such as `sweep.lr`.
        field: String,
        /// What was expected, and what was found.
        message: String,
    },
    /// A file could not be read or written, or is none of what it should be.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// A run's file.
    #[error(transparent)]
    Run(#[from] crate::train::Error),
}

/// Results of sweeps.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn file(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        // A parser's message has lines; the first says what, and the place.
        let why = why.to_string();
        let mut lines = why.lines().filter(|line| !line.trim().is_empty());
        let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
        let message = match last {
            Some(last) if first.starts_with("TOML parse error") => format!("{first}: {last}"),
            _ => first.to_owned(),
        };
        Self::File { path: path.to_owned(), message }
    }
}
