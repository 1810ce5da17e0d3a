//! Why nothing can be said about a network.

/// What can be wrong with what is to be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Features with something that is no finite number in them.
    #[error("features: those of picture {row} hold something that is no finite number")]
    NotFinite {
        /// The first picture with such a number.
        row: usize,
    },
    /// Features of another shape than they should have.
    #[error("features: expected {expected}, found {found}")]
    Shape {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Too few pictures for a measure.
    #[error("{measure}: expected at least {expected} pictures on each side, found {found}")]
    TooFew {
        /// The measure.
        measure: &'static str,
        /// The fewest that it is defined for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A setting that makes no sense.
    #[error("{setting}: {message}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What was expected, and what was found.
        message: String,
    },
}

/// The result of what can fail with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn shape(expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Shape { expected: expected.into(), found: found.to_string() }
    }
}
