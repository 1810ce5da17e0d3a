//! The operations in which networks are written.
//!
//! A network is written once, over [`Tensor`], and evaluated by several backends: native, candle, tape, ONNX and cost. Each
//! operation corresponds to a fused kernel, or to one or a few standard ONNX operators. A backend that does not support an operation
//! with its settings returns [`Error::Unsupported`](crate::Error::Unsupported).
//!
//! **The first axis is always the batch.** It is symbolic in some backends, so no operation names it or folds it into another axis.
//! Shapes, permutations and axes in arguments exclude the batch: axis 0 is the first axis after the batch.

use crate::{Conv1dOptions, Conv2dOptions, Result};

/// Parameters and running statistics of a batch normalization over channels.
#[derive(Clone, Debug)]
pub struct BatchNorm<P> {
    /// Path of the module; the tape backend returns its statistics under this name.
    pub path: String,
    /// Scale γ, `[channels]`.
    pub weight: P,
    /// Shift β, `[channels]`.
    pub bias: P,
    /// Running mean, `[channels]`; the operation never changes it.
    pub running_mean: P,
    /// Running variance, `[channels]`; the operation never changes it.
    pub running_var: P,
    /// Number added to the variance under the root.
    pub eps: f64,
}

/// A value in a network: `[batch, ..]` numbers, or a symbol or a shape in their place.
///
/// # Errors
/// All methods return [`Error::Shape`](crate::Error::Shape) if the shapes do not fit together.
pub trait Tensor: Clone + 'static {
    /// A parameter in this backend.
    type Param: Clone;

    /// Returns the sizes of all axes after the batch.
    fn dims(&self) -> &[usize];

    /// Names the module of the operations that follow (`blocks.0.attn`), for backends that keep names or statistics.
    fn scoped(&self, _module: &str) -> Self {
        self.clone()
    }

    /// Applies `block` to `inputs`. Training may keep only the inputs and recompute the block during backward (gradient
    /// checkpointing; Chen et al., arXiv 1604.06174). So `block` must return the same result each time, and may capture only
    /// parameters.
    fn checkpoint<const N: usize>(
        inputs: [&Self; N],
        block: impl Fn([&Self; N]) -> Result<Self> + 'static,
    ) -> Result<Self> {
        block(inputs)
    }

    /// Computes `x·Wᵀ + b` over the last axis. `weight` is `[out, in]`, `bias` `[out]`.
    fn linear(&self, weight: &Self::Param, bias: Option<&Self::Param>) -> Result<Self>;

    /// Computes [`conv2d_with_options`](Self::conv2d_with_options) with one stride and padding for both axes, without dilation, in one
    /// group.
    fn conv2d(
        &self,
        weight: &Self::Param,
        bias: Option<&Self::Param>,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        self.conv2d_with_options(weight, bias, Conv2dOptions::square(stride, padding))
    }

    /// Computes the 2-D cross-correlation of `[channels, height, width]` with `weight`
    /// `[out, channels / groups, kernel height, kernel width]`, and adds `bias` `[out]`.
    fn conv2d_with_options(
        &self,
        weight: &Self::Param,
        bias: Option<&Self::Param>,
        options: Conv2dOptions,
    ) -> Result<Self>;

    /// Computes the cross-correlation of `[channels, length]` with `weight` `[out, channels / groups, kernel]`, and adds `bias` `[out]`.
    fn conv1d(
        &self,
        weight: &Self::Param,
        bias: Option<&Self::Param>,
        options: Conv1dOptions,
    ) -> Result<Self>;

    /// Applies batch normalization (Ioffe and Szegedy, arXiv 1502.03167) to `[channels, height, width]`. Training uses the
    /// statistics of the batch, inference the running ones.
    fn batch_norm(&self, norm: &BatchNorm<Self::Param>) -> Result<Self>;

    /// Applies group normalization (Wu and He, arXiv 1803.08494) to `[channels, ..]`: each of `groups` groups of consecutive channels
    /// has its own mean and variance. `affine` is `(weight, bias)`, both `[channels]`: the result is then multiplied by the weight,
    /// and the bias is added.
    fn group_norm(
        &self,
        groups: usize,
        affine: Option<(&Self::Param, &Self::Param)>,
        eps: f64,
    ) -> Result<Self>;

    /// Applies layer normalization (arXiv 1607.06450) over the last axis. `affine` is `(weight, bias)`, both `[last]`: the result
    /// is then multiplied by the weight, and the bias is added.
    fn layer_norm(&self, affine: Option<(&Self::Param, &Self::Param)>, eps: f64) -> Result<Self>;

    /// Computes `x / √(mean(x²) + eps)` over the last axis (RMSNorm, arXiv 1910.07467), then multiplies by `weight` `[last]`, if
    /// there is one.
    fn rms_norm(&self, weight: Option<&Self::Param>, eps: f64) -> Result<Self>;

    /// Computes `x·(1 + scale) + shift`, the modulation of adaptive normalization (DiT, arXiv 2212.09748). `x` is
    /// `[tokens, width]`; `scale` and `shift` are `[width]`, one for each item of the batch.
    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self>;

    /// Computes `x + gate·branch`. `x` and `branch` are `[tokens, width]`; `gate` is `[width]`, one for each item of the batch.
    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self>;

    /// Computes scaled dot-product attention, `softmax(q·kᵀ/√d)·v`. All three inputs and the result are `[tokens, heads, d]`.
    fn attention(&self, key: &Self, value: &Self) -> Result<Self>;

    /// Selects rows of `table` `[rows, width]` by integer indices: `[]` → `[width]`.
    fn embedding(&self, table: &Self::Param) -> Result<Self>;

    /// Computes the sinusoidal embedding of a number `t`: `[]` → `[width]`. These are `cos(scale·t·fᵢ)` for `width/2` frequencies
    /// `fᵢ = period^(−2i/width)`, then the sines (DDPM, arXiv 2006.11239, in DiT's order).
    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self>;

    /// Adds a parameter of the value's own shape to every item of the batch.
    fn add_param(&self, param: &Self::Param) -> Result<Self>;

    /// Adds two values of one shape.
    fn add(&self, other: &Self) -> Result<Self>;

    /// Multiplies two values of one shape, element by element.
    fn mul(&self, other: &Self) -> Result<Self>;

    /// Computes `x − other`; both have one shape.
    fn sub(&self, other: &Self) -> Result<Self>;

    /// Computes `x / other`, element by element; both have one shape.
    fn div(&self, other: &Self) -> Result<Self>;

    /// Computes `factor·x + offset`.
    fn affine(&self, factor: f64, offset: f64) -> Result<Self>;

    /// Computes `x·Φ(x)` with the exact normal distribution function Φ, not the tanh approximation.
    fn gelu(&self) -> Result<Self>;

    /// Computes `x·σ(x)`.
    fn silu(&self) -> Result<Self>;

    /// Computes `max(x, 0)`.
    fn relu(&self) -> Result<Self>;

    /// Computes `eˣ`.
    fn exp(&self) -> Result<Self>;

    /// Computes the natural logarithm: −∞ for 0, NaN for negative numbers.
    fn log(&self) -> Result<Self>;

    /// Computes `√x`; its gradient is infinite at 0.
    fn sqrt(&self) -> Result<Self>;

    /// Computes the logistic function `σ(x) = 1 / (1 + e⁻ˣ)`.
    fn sigmoid(&self) -> Result<Self>;

    /// Computes the hyperbolic tangent.
    fn tanh(&self) -> Result<Self>;

    /// Computes `ln(1 + eˣ)`, without overflow for large `x`.
    fn softplus(&self) -> Result<Self>;

    /// Limits each value to `min..=max`. The gradient is zero outside, and 1 inside and at the limits, as in PyTorch.
    fn clamp(&self, min: f64, max: f64) -> Result<Self>;

    /// Computes `silu(a)·b`, where `a` is the first half of the last axis and `b` the second (SwiGLU, arXiv 2002.05202).
    fn swiglu(&self) -> Result<Self>;

    /// Computes the softmax over the last axis.
    fn softmax(&self) -> Result<Self>;

    /// Drops values with probability `p`, and multiplies the others by `1/(1 − p)` (Srivastava et al., JMLR 15, 2014). Only the
    /// [tape](crate::tape) does so, and only with a [key](crate::tape::Tape::with_dropout). Everywhere else this is the identity.
    fn dropout(&self, p: f64) -> Result<Self> {
        crate::shape::check_dropout(p)?;
        Ok(self.clone())
    }

    /// Returns the same values in another shape; `dims` are all axes after the batch.
    fn reshape(&self, dims: &[usize]) -> Result<Self>;

    /// Reorders the axes after the batch: axis `i` of the result is axis `order[i]`.
    fn permute(&self, order: &[usize]) -> Result<Self>;

    /// Concatenates values along `axis`.
    fn concat(parts: &[Self], axis: usize) -> Result<Self>;

    /// Splits `axis` into `n` equal parts.
    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>>;

    /// Keeps `len` positions of `axis`, beginning at `start`.
    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self>;

    /// Adds `before` zeros in front of `axis`, and `after` zeros behind it.
    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self>;

    /// Computes the mean over `axis`, and removes that axis.
    fn mean(&self, axis: usize) -> Result<Self>;

    /// Computes the sum over `axis`, and removes that axis.
    fn sum(&self, axis: usize) -> Result<Self>;

    /// Computes the maximum over `axis`, and removes that axis. The gradient goes to the first of several equal maxima.
    fn max(&self, axis: usize) -> Result<Self>;

    /// Computes the maximum of each `kernel`² window of `[channels, height, width]`; padding is never the maximum.
    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self>;

    /// Computes the mean of each `kernel`² window of `[channels, height, width]`, without padding.
    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self>;

    /// Repeats each pixel `factor` times along both axes: `[channels, height, width]` → `[channels, height·factor, width·factor]`.
    fn upsample_nearest2d(&self, factor: usize) -> Result<Self>;
}
