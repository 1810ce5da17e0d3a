//! The error type of this crate.

/// An error of building or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shapes of an operation's inputs do not fit together.
    #[error("{op}: expected {expected}, found {found}")]
    Shape {
        /// Name of the operation in the [`Tensor`](crate::Tensor) trait.
        op: &'static str,
        /// Expected shape.
        expected: String,
        /// Found shape.
        found: String,
    },
    /// A backend does not support the operation. It never silently approximates one.
    #[error("{backend} does not support {operation}")]
    Unsupported {
        /// Name of the backend, for instance `ONNX opset 17`.
        backend: String,
        /// The operation and the unsupported setting.
        operation: String,
    },
    /// A parameter of the model is not among the weights.
    #[error("parameter {name} is missing")]
    MissingParameter {
        /// Path of the parameter in the model, which is its key in every file.
        name: String,
    },
    /// A parameter has another shape than the model expects.
    #[error("parameter {name}: expected shape {expected:?}, found {found:?}")]
    ParameterShape {
        /// Path of the parameter in the model.
        name: String,
        /// Expected sizes, by the configuration.
        expected: Vec<usize>,
        /// Found sizes.
        found: Vec<usize>,
    },
    /// A configuration is invalid.
    #[error("{field}: {message}")]
    Config {
        /// Field of the configuration.
        field: &'static str,
        /// The expected and the found value.
        message: String,
    },
    /// An input has a free axis whose size was not given.
    #[error("input {input}: the size of axis {axis} is not given")]
    FreeAxis {
        /// Name of the input.
        input: String,
        /// Name of the axis.
        axis: String,
    },
    /// An error of candle.
    #[cfg(feature = "candle")]
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns an [`Error::Shape`] of the operation or network `op`.
    pub fn shape(op: &'static str, expected: impl Into<String>, found: impl std::fmt::Debug) -> Self {
        Error::Shape { op, expected: expected.into(), found: format!("{found:?}") }
    }
}
