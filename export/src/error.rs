//! The error type of this crate.

use std::{
    borrow::Cow,
    fmt::Write,
    path::{Path, PathBuf},
};

/// An error of exporting, loading, verifying or computing a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system failed to read or write a file.
    #[error("{}: {source}", display_path(path))]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A file, or bytes in memory, with invalid contents.
    #[error("{file}: {field}: {message}")]
    File {
        /// Path of the file, or a name for bytes in memory.
        file: String,
        /// Invalid field or key.
        field: String,
        /// The expected and the found value.
        message: String,
    },
    /// A file that is not a usable image.
    #[error("{}: {reason}", display_path(path))]
    Image {
        /// Path of the file.
        path: PathBuf,
        /// Reason why it cannot be used.
        reason: String,
    },
    /// An invalid request.
    #[error("{field}: {message}")]
    Request {
        /// Invalid field of the request.
        field: &'static str,
        /// The expected and the found value.
        message: String,
    },
    /// The definition of a network is not known to this program, so only graphs of the network can run, unverified.
    #[error("the network's kind {} is not registered in this program", excerpt(kind))]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// A runtime is not available, or failed.
    #[error("{runtime}: {message}")]
    Runtime {
        /// Name of the runtime.
        runtime: &'static str,
        /// Message of the runtime, or how to install it.
        message: String,
    },
    /// The outputs of an exported file differ from those of its definition.
    #[error("verification failed: {}", escape(.0, 2000))]
    Verification(String),
    /// The network returned an infinity or a NaN: its weights are damaged.
    #[error("step {step}: the network returned a value that is not finite; its weights are damaged")]
    NotFinite {
        /// Step of the sampling.
        step: usize,
    },
    /// The caller canceled.
    #[error("canceled")]
    Canceled,
    /// The network could not be built or run.
    #[error(transparent)]
    Model(#[from] tiny_cats_models::Error),
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The name that errors use for weights in memory, in place of a file name.
pub(crate) const WEIGHTS: &str = "weights";

/// Maximum number of bytes of a file's text that an error repeats.
const MAX_EXCERPT: usize = 400;

/// Prepares `text` for a message: one line, with control characters escaped, cut to a few hundred bytes.
///
/// ```
/// assert_eq!(tiny_cats_export::excerpt("a\n\u{1b}[2J"), r"a\n\u{1b}[2J");
/// assert!(tiny_cats_export::excerpt(&"x".repeat(1 << 20)).len() < 500);
/// ```
pub fn excerpt(text: &str) -> Cow<'_, str> {
    escape(text, MAX_EXCERPT)
}

/// Escapes control characters in `text`, and cuts it to at most `limit` bytes and an ellipsis.
pub fn escape(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut line = String::new();
    for c in text.chars() {
        let before = line.len();
        if is_unsafe(c) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{}", c.escape_debug());
        } else {
            line.push(c);
        }
        if line.len() > limit {
            line.truncate(before);
            line.push('…');
            break;
        }
    }
    Cow::Owned(line)
}

/// Formats a path in one line.
fn display_path(path: &Path) -> String {
    escape(&path.display().to_string(), usize::MAX).into_owned()
}

/// True if `c` could change how the line around it is displayed: control characters, line separators, zero-width characters, and
/// directional formatting characters.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl Error {
    /// True if the message names its file, or concerns no file. Errors of a runtime or a network do not name the model file.
    pub fn has_file_name(&self) -> bool {
        match self {
            Error::Runtime { .. } | Error::Verification(_) | Error::NotFinite { .. } | Error::Model(_) => {
                false
            }
            Error::File { file, .. } => file != WEIGHTS,
            _ => true,
        }
    }

    pub(crate) fn file(
        file: impl std::fmt::Display,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let (field, message) = (field.into(), message.into());
        Error::File {
            file: escape(&file.to_string(), usize::MAX).into_owned(),
            field: excerpt(&field).into_owned(),
            message: excerpt(&message).into_owned(),
        }
    }

    pub(crate) fn request(field: &'static str, message: impl Into<String>) -> Self {
        Error::Request { field, message: message.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Error::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert!(matches!(excerpt("plain, with 'quotes' and umlauts: ä"), Cow::Borrowed(_)));
        assert_eq!(excerpt("a\r\n\0\u{85}\u{202e}b\u{2028}"), r"a\r\n\0\u{85}\u{202e}b\u{2028}");
        for text in ["ä".repeat(10_000), "\u{1b}".repeat(10_000), "x".repeat(401)] {
            let short = excerpt(&text);
            assert!(short.ends_with('…') && short.len() <= MAX_EXCERPT + '…'.len_utf8(), "{short}");
            assert!(short.len() > MAX_EXCERPT - 10);
        }
        assert_eq!(excerpt(&"x".repeat(400)).len(), 400);
    }

    #[test]
    fn file_errors_are_short_and_without_control_characters() {
        let hostile = "\n\u{1b}[31m".repeat(1000);
        let error = Error::file("cat\n.onnx", hostile.clone(), hostile).to_string();
        assert!(error.starts_with("cat\\n.onnx: \\n\\u{1b}[31m") && error.len() < 1000, "{error}");
        assert!(!error.contains(char::is_control));
        let error = Error::io("cat\n.onnx")(std::io::ErrorKind::NotFound.into()).to_string();
        assert!(error.starts_with("cat\\n.onnx: "), "{error}");
    }
}
