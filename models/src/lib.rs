//! Small image networks, each defined once over a small [tensor vocabulary](Tensor) and read in several ways.

mod error;
mod params;
pub mod random;
mod tensor;
mod weights;

pub use error::{Error, Result};
pub use params::{Init, ParamSpec, Scope, Source, init};
pub use tensor::{BatchNorm, Tensor};
pub use weights::{Array, Weights, count};
