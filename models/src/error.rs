//! The one error of this crate.

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation was given tensors whose shapes do not fit together.
    #[error("{op}: expected {expected}, found {found}")]
    Shape {
        /// The operation, by its name in the [`Tensor`](crate::Tensor) trait.
        op: &'static str,
        /// What it takes.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// A reading has no way to express the operation; it never approximates one in silence.
    #[error("{backend} cannot express {what}")]
    Unsupported {
        /// The reading, for instance `ONNX opset 17`.
        backend: String,
        /// The operation and the setting that it lacks.
        what: String,
    },
    /// A parameter that the model needs is not among the weights.
    #[error("parameter {name} is missing")]
    MissingParameter {
        /// The parameter's path in the model, which is its key in every file.
        name: String,
    },
    /// A parameter is there with other sizes than the model's.
    #[error("parameter {name}: expected shape {expected:?}, found {found:?}")]
    ParameterShape {
        /// The parameter's path in the model.
        name: String,
        /// The sizes that the configuration asks for.
        expected: Vec<usize>,
        /// The sizes found.
        found: Vec<usize>,
    },
    /// A configuration that describes no network.
    #[error("{field}: {message}")]
    Config {
        /// The configuration's field.
        field: &'static str,
        /// What is wrong with it, and what was expected.
        message: String,
    },
    /// candle's own error.
    #[cfg(feature = "candle")]
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn shape(op: &'static str, expected: impl Into<String>, found: impl std::fmt::Debug) -> Self {
        Error::Shape { op, expected: expected.into(), found: format!("{found:?}") }
    }
}
