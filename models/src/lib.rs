//! Small image networks, each defined once over the [`Tensor`] trait and evaluated by several backends.

#[cfg(feature = "candle")]
pub mod candle;
mod convolution;
pub mod cost;
mod error;
#[cfg(feature = "native")]
mod kernels;
pub mod layers;
#[cfg(feature = "native")]
pub mod native;
mod network;
mod options;
mod params;
#[cfg(feature = "pretrained")]
pub mod pretrained;
pub mod random;
pub mod resnet;
pub mod shape;
#[cfg(feature = "candle")]
pub mod tape;
mod tensor;
mod tiling;
pub mod tiny_dit;
pub mod trace;
mod weights;

pub use convolution::{Conv1dOptions, Conv2dOptions};
pub use error::{Error, Result};
pub use network::{Axis, Input, InputValues, Network, PredictionType, Role, Sizes, main_output};
pub use options::{Precision, TapeOptions};
pub use params::{Init, ParamSpec, Scope, Source, init};
pub use resnet::{Head, ResNet, ResNetConfig, fold_batch_norm};
pub use tensor::{BatchNorm, Tensor};
pub use tiny_dit::{Layout, TinyDit, TinyDitConfig};
pub use weights::{Array, Weights, num_parameters};
