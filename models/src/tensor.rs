//! The vocabulary in which networks are written.
//!
//! A network is written once, over [`Tensor`], and *read* in several ways: computed by candle, trained on a tape, written down as
//! ONNX, counted. The words stand at the level where a fused kernel or a standard ONNX operator exists. A reading that cannot express a
//! word with the settings it is given returns [`Error::Unsupported`](crate::Error::Unsupported).
//!
//! **The first axis is always the batch.** It is symbolic in some readings, so no operation names it or folds it into another axis:
//! shapes, permutations and axes given to an operation are those *after* the batch (axis 0 is the first axis after the batch).

use crate::Result;

/// Parameters and running statistics of a batch normalisation over channels.
#[derive(Clone, Debug)]
pub struct BatchNorm<P> {
    /// The module's path; the training reading returns its statistics under this name.
    pub path: String,
    /// Scale γ, `[channels]`.
    pub weight: P,
    /// Shift β, `[channels]`.
    pub bias: P,
    /// Running mean, `[channels]`; read, never changed by the operation.
    pub running_mean: P,
    /// Running variance, `[channels]`; read, never changed by the operation.
    pub running_var: P,
    /// Added to the variance under the root.
    pub eps: f64,
}

/// A value that flows through a network: `[batch, ..]` numbers, or something that stands for them.
///
/// All methods return [`Error::Shape`](crate::Error::Shape) when shapes do not fit together.
pub trait Tensor: Clone + 'static {
    /// What holds a parameter in this reading.
    type Param: Clone;

    /// The sizes of all axes after the batch.
    fn dims(&self) -> &[usize];

    /// Names the module that the following operations belong to (`blocks.0.attn`). Readings that keep names or statistics use it.
    fn scoped(&self, _module: &str) -> Self {
        self.clone()
    }

    /// What `block` makes of `inputs`. Training may keep the inputs alone and compute the block again on the way back (gradient
    /// checkpointing; Chen et al., arXiv 1604.06174): it must make the same each time, and parameters are all that it may hold on to.
    fn checkpoint<const N: usize>(
        inputs: [&Self; N],
        block: impl Fn([&Self; N]) -> Result<Self> + 'static,
    ) -> Result<Self> {
        block(inputs)
    }

    /// `x·Wᵀ + b` over the last axis. `weight` is `[out, in]`, `bias` `[out]`.
    fn linear(&self, weight: &Self::Param, bias: Option<&Self::Param>) -> Result<Self>;

    /// 2-D cross-correlation of `[channels, height, width]` with `weight` `[out, channels, k, k]`, zero padding on all sides.
    fn conv2d(
        &self,
        weight: &Self::Param,
        bias: Option<&Self::Param>,
        stride: usize,
        padding: usize,
    ) -> Result<Self>;

    /// Batch normalisation of `[channels, height, width]` (Ioffe and Szegedy, arXiv 1502.03167): by the batch's own statistics when
    /// training, by the running ones otherwise.
    fn batch_norm(&self, norm: &BatchNorm<Self::Param>) -> Result<Self>;

    /// Layer normalisation over the last axis (arXiv 1607.06450), then `·weight + bias` where given, both `[last]`.
    fn layer_norm(&self, affine: Option<(&Self::Param, &Self::Param)>, eps: f64) -> Result<Self>;

    /// `x / √(mean(x²) + eps)` over the last axis (arXiv 1910.07467), then `·weight` where given, `[last]`.
    fn rms_norm(&self, weight: Option<&Self::Param>, eps: f64) -> Result<Self>;

    /// Adaptive normalisation's second half (DiT, arXiv 2212.09748): `x·(1 + scale) + shift`, with `x` `[tokens, width]` and `scale`,
    /// `shift` `[width]`, one for each item of the batch.
    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self>;

    /// `x + gate·branch`, with `x` and `branch` `[tokens, width]` and `gate` `[width]`, one for each item of the batch.
    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self>;

    /// Scaled dot-product attention, `softmax(q·kᵀ/√d)·v`; all three are `[tokens, heads, d]`, and so is the result.
    fn attention(&self, key: &Self, value: &Self) -> Result<Self>;

    /// Rows of `table` `[rows, width]` chosen by whole numbers: `[]` → `[width]`.
    fn embedding(&self, table: &Self::Param) -> Result<Self>;

    /// Sinusoidal embedding of a number: `[]` → `[width]`, `cos(scale·t·fᵢ)` for `width/2` frequencies `fᵢ = period^(−2i/width)`, then
    /// the sines (DDPM, arXiv 2006.11239, in DiT's order).
    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self>;

    /// Adds a parameter of the value's own shape to every item of the batch.
    fn add_param(&self, param: &Self::Param) -> Result<Self>;

    /// Sum of two values of one shape.
    fn add(&self, other: &Self) -> Result<Self>;

    /// Product, element by element, of two values of one shape.
    fn mul(&self, other: &Self) -> Result<Self>;

    /// `factor·x + offset`.
    fn affine(&self, factor: f64, offset: f64) -> Result<Self>;

    /// `x·Φ(x)` with the exact normal distribution function, not the tanh approximation.
    fn gelu(&self) -> Result<Self>;

    /// `x·σ(x)`.
    fn silu(&self) -> Result<Self>;

    /// `max(x, 0)`.
    fn relu(&self) -> Result<Self>;

    /// `silu(a)·b`, where the last axis holds `a` in its first half and `b` in its second (arXiv 2002.05202).
    fn swiglu(&self) -> Result<Self>;

    /// Softmax over the last axis.
    fn softmax(&self) -> Result<Self>;

    /// The same values in another shape, `dims` being all axes after the batch.
    fn reshape(&self, dims: &[usize]) -> Result<Self>;

    /// Reorders the axes after the batch: axis `i` of the result is axis `order[i]`.
    fn permute(&self, order: &[usize]) -> Result<Self>;

    /// Joins values along `axis`.
    fn concat(parts: &[Self], axis: usize) -> Result<Self>;

    /// Cuts `axis` into `n` equal parts.
    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>>;

    /// Keeps `len` places of `axis`, from `start` on.
    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self>;

    /// Mean over `axis`, which vanishes.
    fn mean(&self, axis: usize) -> Result<Self>;

    /// Largest value of each `kernel`² window of `[channels, height, width]`; padding never wins.
    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self>;

    /// Mean of each `kernel`² window of `[channels, height, width]`, without padding.
    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self>;
}
