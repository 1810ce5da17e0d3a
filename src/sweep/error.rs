//! Errors of sweeps.

use std::path::PathBuf;

/// An error of a sweep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the file is invalid.
    #[error("{path}: {field}: {message}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, such as `sweep.lr`.
        field: String,
        /// The expected and the found value.
        message: String,
    },
    /// A file could not be read or written, or has unexpected content.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// An error of a run's file.
    #[error(transparent)]
    Run(#[from] crate::train::Error),
}

/// The result of a sweep function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn file(path: &std::path::Path, cause: impl std::fmt::Display) -> Self {
        // The message of a parser has several lines; the first has the position, and the last the cause.
        let cause = cause.to_string();
        let mut lines = cause.lines().filter(|line| !line.trim().is_empty());
        let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
        let message = match last {
            Some(last) if first.starts_with("TOML parse error") => format!("{first}: {last}"),
            _ => first.to_owned(),
        };
        Self::File { path: path.to_owned(), message }
    }
}
