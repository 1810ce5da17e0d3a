//! Whether a file is known to be as it was written.

use std::fmt;

use serde::Serialize;

/// Whether a file's contents were compared with a digest that the file carries. A file whose digest does not match is never loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// The file carries a digest, and its contents match it.
    Verified,
    /// The file carries no digest, so damage to its weights may go unnoticed.
    Unchecked,
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Verified => "verified",
            Self::Unchecked => "unchecked",
        })
    }
}
