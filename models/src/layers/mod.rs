//! Layers: parameters with the operations that use them.
//!
//! A layer is built from a [`Scope`](crate::Scope), whose path becomes the prefix of its parameters' names, and is then applied to values
//! of any backend. Names of parameters and their initial values are PyTorch's, unless a layer says otherwise. Options are structs with
//! defaults:
//!
//! ```
//! use tiny_cats_models::{Result, Scope, Tensor, layers::{Conv2d, ConvOptions, Linear}};
//!
//! struct Net<T: Tensor> {
//!     conv: Conv2d<T>,
//!     head: Linear<T>,
//! }
//!
//! impl<T: Tensor> Net<T> {
//!     fn new(scope: &mut Scope<T>) -> Result<Self> {
//!         let options = ConvOptions { stride: 2, padding: 1, ..ConvOptions::default() };
//!         Ok(Self {
//!             conv: Conv2d::with_options(scope.sub("conv"), 1, 8, 3, options)?,
//!             head: Linear::new(scope.sub("head"), 8, 10)?,
//!         })
//!     }
//!
//!     /// `[1, height, width]` → `[10]`.
//!     fn forward(&self, x: &T) -> Result<T> {
//!         let x = self.conv.forward(x)?.relu()?;
//!         let positions = x.dims()[1..].iter().product();
//!         self.head.forward(&x.reshape(&[8, positions])?.mean(1)?)
//!     }
//! }
//! ```

mod attention;
mod conv;
mod dropout;
mod embedding;
mod linear;
mod mlp;
mod norm;

pub use attention::{Attention, AttentionOptions};
pub use conv::{BATCH_NORM_EPS, Conv1d, Conv2d, ConvBn, ConvOptions, fold_batch_norms};
pub use dropout::Dropout;
pub use embedding::{Embedding, sincos_positions_2d};
pub use linear::{Linear, LinearOptions};
pub use mlp::{Mlp, SwiGlu};
pub use norm::{GroupNorm, LayerNorm, Norm, RmsNorm};
