//! Errors of evaluation.

/// An error of evaluation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A feature is not a finite number.
    #[error("features: expected finite numbers, found others in image {row}")]
    NotFinite {
        /// The first image with such a feature.
        row: usize,
    },
    /// Features have another shape than expected.
    #[error("features: expected {expected}, found {found}")]
    Shape {
        /// The expected shape.
        expected: String,
        /// The shape that was found.
        found: String,
    },
    /// There are too few images for a metric.
    #[error("{measure}: expected at least {expected} images on each side, found {found}")]
    TooFew {
        /// The metric.
        measure: &'static str,
        /// The smallest number of images that it is defined for.
        expected: usize,
        /// The number of images.
        found: usize,
    },
    /// A setting is invalid.
    #[error("{setting}: {message}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The expected and the found value.
        message: String,
    },
}

/// The result of an evaluation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn shape(expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Shape { expected: expected.into(), found: found.to_string() }
    }
}
