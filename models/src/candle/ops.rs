//! The forward and backward of each operation on candle tensors.
//!
//! On the CPU this crate's kernels compute them. Elsewhere compositions of candle's own operations do, and forward the kernels of candle-nn
//! where there are any. Within [`with_candle_ops`] all are compositions: tests use them as the reference for both kinds of kernels.

use std::cell::Cell;

use candle_core::{D, DType, Device, Tensor};

use super::{
    element::{Element, by_type, cpu_tensor, view},
    fused,
    precision::{FactorPrecision, by_factor, convert, is_half, wide},
};
pub(crate) use crate::kernels::{norm::NormKind, pointwise::Activation};
use crate::{
    Result,
    kernels::{
        attention::{self, Sizes},
        linear as layer, norm, pointwise,
        product::Factor,
    },
};

/// What computes the operations.
#[derive(Clone, Copy, PartialEq)]
enum Implementation {
    /// The fastest on the device: this crate's kernels on the CPU; on a GPU candle-nn's, and compositions for what it lacks.
    Fastest,
    /// As on a GPU, on every device.
    Fused,
    /// Compositions of candle's operations only.
    Composed,
}

thread_local! {
    static IMPLEMENTATION: Cell<Implementation> = const { Cell::new(Implementation::Fastest) };
}

fn with_implementation<R>(implementation: Implementation, f: impl FnOnce() -> R) -> R {
    struct Restore(Implementation);
    impl Drop for Restore {
        fn drop(&mut self) {
            IMPLEMENTATION.set(self.0);
        }
    }
    let _restore = Restore(IMPLEMENTATION.replace(implementation));
    f()
}

/// Calls `f` with compositions of candle's operations in place of all fused kernels, on this thread.
pub fn with_candle_ops<R>(f: impl FnOnce() -> R) -> R {
    with_implementation(Implementation::Composed, f)
}

/// Calls `f` with the operations of a GPU on every device, on this thread: candle-nn's fused kernels, and compositions of candle's
/// operations. On a CPU it is slower than the default, and serves to test what a GPU computes.
pub fn with_fused_ops<R>(f: impl FnOnce() -> R) -> R {
    with_implementation(Implementation::Fused, f)
}

pub(super) fn uses_kernels(x: &Tensor) -> bool {
    has_kernels(x.device())
}

/// True if this crate's kernels compute on `device` in this thread; otherwise candle and candle-nn do.
pub fn has_kernels(device: &Device) -> bool {
    device.is_cpu() && IMPLEMENTATION.get() == Implementation::Fastest
}

/// True if a kernel of candle-nn computes an operation on `inputs`, the value and its parameters; otherwise a composition does.
pub(super) fn uses_fused(inputs: &[&Tensor]) -> bool {
    let selected = match IMPLEMENTATION.get() {
        Implementation::Fastest => fused::has_fused_kernels(inputs[0].device()),
        Implementation::Fused => true,
        Implementation::Composed => false,
    };
    selected && fused::accepts(inputs)
}

/// True if the kernels compute `x`, which is in half precision, in f32. The factors are exact in f32, sums are computed in it, and
/// the result is rounded once, as in the half-precision products of a GPU.
pub(super) fn computes_in_f32(x: &Tensor) -> bool {
    uses_kernels(x) && is_half(x.dtype())
}

/// Folds the leading axes of `x`: `[rows, last]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    Ok(x.reshape((x.elem_count() / width, width))?)
}

pub(super) fn contiguous<const N: usize>(xs: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut out = Vec::with_capacity(N);
    for x in xs {
        out.push(x.contiguous()?);
    }
    Ok(out.try_into().expect("one result for each tensor"))
}

pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::add::<F>(&view(a)?, &view(b)?), a.shape())
    }
    if uses_kernels(a) && matches!(a.dtype(), DType::F32 | DType::F64) {
        let [a, b] = contiguous([a, b])?;
        return by_type!(a, kernel(&a, &b));
    }
    Ok((a + b)?)
}

/// Sums over all axes but the last. Without a kernel this is a product with ones, because reductions over leading axes are slow.
pub(crate) fn sum_rows(x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        cpu_tensor(pointwise::sum_rows::<F>(&view(x)?, width), width)
    }
    let x = rows(&x.contiguous()?)?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x));
    }
    Ok(Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?.matmul(&x)?.squeeze(0)?)
}

pub(crate) fn linear(
    rounding: FactorPrecision,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    fn kernel<P: Factor>(
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dims: Vec<usize>,
    ) -> Result<Tensor>
    where
        P::Number: Element,
    {
        let (out, input) = weight.dims2()?;
        let bias = bias.map(view::<P::Number>).transpose()?;
        cpu_tensor(layer::linear::<P>(&view(x)?, &view(weight)?, bias.as_deref(), input, out), dims)
    }
    if computes_in_f32(x) {
        let bias = bias.map(wide).transpose()?;
        return convert(&linear(rounding, &wide(x)?, &wide(weight)?, bias.as_ref())?, x.dtype());
    }
    let [x, weight] = contiguous([x, weight])?;
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("checked by the backend") = weight.dim(0)?;
    if uses_kernels(&x) {
        return by_factor!(x, rounding, kernel(&x, &weight, bias, dims));
    }
    let y = rows(&x)?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    Ok(y.reshape(dims)?)
}

/// Computes the gradients of `x` (if needed) and `weight`; that of the bias is [`sum_rows`].
pub(crate) fn linear_backward(
    rounding: FactorPrecision,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    need_x: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    fn kernel<P: Factor>(
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
        need_x: bool,
    ) -> Result<(Option<Tensor>, Tensor)>
    where
        P::Number: Element,
    {
        let (out, input) = weight.dims2()?;
        let (grad_x, grad_weight) =
            layer::linear_backward::<P>(&view(x)?, &view(weight)?, &view(grad)?, input, out, need_x);
        let grad_x = grad_x.map(|g| cpu_tensor(g, x.shape())).transpose()?;
        Ok((grad_x, cpu_tensor(grad_weight, weight.shape())?))
    }
    if computes_in_f32(x) {
        let (grad_x, grad_weight) =
            linear_backward(rounding, &wide(x)?, &wide(weight)?, &wide(grad)?, need_x)?;
        let grad_x = grad_x.map(|g| convert(&g, x.dtype())).transpose()?;
        return Ok((grad_x, convert(&grad_weight, x.dtype())?));
    }
    let [x, weight, grad] = contiguous([x, weight, grad])?;
    if uses_kernels(&x) {
        return by_factor!(x, rounding, kernel(&x, &weight, &grad, need_x));
    }
    let grad = rows(&grad)?;
    let grad_x = if need_x { Some(grad.matmul(&weight)?.reshape(x.shape())?) } else { None };
    Ok((grad_x, grad.t()?.matmul(&rows(&x)?)?))
}

/// Computes layer or RMS normalization over the last axis.
pub(crate) fn norm(
    kind: NormKind,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    fn kernel<F: Element>(
        kind: NormKind,
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let (weight, bias) = (weight.map(view::<F>).transpose()?, bias.map(view::<F>).transpose()?);
        let width = x.dim(D::Minus1)?;
        cpu_tensor(
            norm::forward(kind, &view::<F>(x)?, width, weight.as_deref(), bias.as_deref(), eps),
            x.shape(),
        )
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(kind, &x, weight, bias, eps));
    }
    let inputs: Vec<&Tensor> = [Some(&x), weight, bias].into_iter().flatten().collect();
    if uses_fused(&inputs) {
        return fused::norm(kind, &x, weight, bias, eps);
    }
    let mut y = normalized(kind, &x, eps)?.0;
    if let Some(weight) = weight {
        y = y.broadcast_mul(weight)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    Ok(y)
}

/// Returns the normalized value and the factor by which it was multiplied, the inverse root mean square.
fn normalized(kind: NormKind, x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let centered = match kind {
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        NormKind::Rms => x.clone(),
    };
    let inverse = (centered.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((centered.broadcast_mul(&inverse)?, inverse))
}

/// Computes the gradients of `x` and, if there is a weight, of weight and bias.
pub(crate) fn norm_backward(
    kind: NormKind,
    x: &Tensor,
    weight: Option<&Tensor>,
    grad: &Tensor,
    eps: f64,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    fn kernel<F: Element>(
        kind: NormKind,
        x: &Tensor,
        weight: Option<&Tensor>,
        grad: &Tensor,
        eps: f64,
    ) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
        let weight = weight.map(view::<F>).transpose()?;
        let width = x.dim(D::Minus1)?;
        let (grad_x, params) =
            norm::backward(kind, &view::<F>(x)?, &view::<F>(grad)?, width, weight.as_deref(), eps);
        let params = params
            .map(|(w, b)| Ok::<_, crate::Error>((cpu_tensor(w, width)?, cpu_tensor(b, width)?)))
            .transpose()?;
        Ok((cpu_tensor(grad_x, x.shape())?, params))
    }
    let [x, grad] = contiguous([x, grad])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(kind, &x, weight, &grad, eps));
    }
    let (normal, inverse) = normalized(kind, &x, eps)?;
    let params = match weight {
        Some(_) => Some((sum_rows(&(&grad * &normal)?)?, sum_rows(&grad)?)),
        None => None,
    };
    let scaled = match weight {
        Some(weight) => grad.broadcast_mul(weight)?,
        None => grad,
    };
    let projection = (&scaled * &normal)?.mean_keepdim(D::Minus1)?;
    let mut grad_x = (&scaled - normal.broadcast_mul(&projection)?)?;
    if kind == NormKind::Layer {
        grad_x = grad_x.broadcast_sub(&scaled.mean_keepdim(D::Minus1)?)?;
    }
    Ok((grad_x.broadcast_mul(&inverse)?, params))
}

pub(crate) fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(kind: Activation, x: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::activation::<F>(kind, &view(x)?), x.shape())
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(kind, &x));
    }
    Ok(match kind {
        Activation::Gelu => (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * (&x * 0.5)?)?,
        Activation::Silu => x.silu()?,
        Activation::Relu => x.relu()?,
    })
}

/// Computes `1/(1 + exp(−x))` where this crate's kernels do not.
pub(super) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    if uses_fused(&[x]) {
        return fused::sigmoid(x);
    }
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

pub(crate) fn activation_backward(kind: Activation, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(kind: Activation, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::activation_backward::<F>(kind, &view(x)?, &view(grad)?), x.shape())
    }
    let [x, grad] = contiguous([x, grad])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(kind, &x, &grad));
    }
    let slope = match kind {
        Activation::Gelu => {
            let phi = ((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?.affine(0.5, 0.0)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * 0.398_942_280_401_432_7)?;
            (phi + (&x * density)?)?
        }
        Activation::Silu => {
            let s = sigmoid(&x)?;
            (&s * ((&x * s.affine(-1.0, 1.0)?)? + 1.0)?)?
        }
        Activation::Relu => x.gt(0.0)?.to_dtype(x.dtype())?,
    };
    Ok((grad * slope)?)
}

fn split_last_axis(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let half = x.dim(D::Minus1)? / 2;
    Ok((x.narrow(D::Minus1, 0, half)?.contiguous()?, x.narrow(D::Minus1, half, half)?.contiguous()?))
}

pub(crate) fn swiglu(x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        let half = x.dim(D::Minus1)? / 2;
        *dims.last_mut().expect("checked by the backend") = half;
        cpu_tensor(pointwise::swiglu::<F>(&view(x)?, half), dims)
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x));
    }
    let (a, b) = split_last_axis(&x)?;
    Ok((activation(Activation::Silu, &a)? * b)?)
}

pub(crate) fn swiglu_backward(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::swiglu_backward::<F>(&view(x)?, &view(grad)?, x.dim(D::Minus1)? / 2), x.shape())
    }
    let [x, grad] = contiguous([x, grad])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &grad));
    }
    let (a, b) = split_last_axis(&x)?;
    let grad_a = activation_backward(Activation::Silu, &a, &(&grad * b)?)?;
    let grad_b = (grad * activation(Activation::Silu, &a)?)?;
    Ok(Tensor::cat(&[grad_a, grad_b], D::Minus1)?)
}

pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::softmax::<F>(&view(x)?, x.dim(D::Minus1)?), x.shape())
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x));
    }
    if uses_fused(&[&x]) {
        return fused::softmax(&x);
    }
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// Computes the gradient of softmax's input from its result `y`.
pub(crate) fn softmax_backward(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
        cpu_tensor(pointwise::softmax_backward::<F>(&view(y)?, &view(grad)?, y.dim(D::Minus1)?), y.shape())
    }
    let [y, grad] = contiguous([y, grad])?;
    if uses_kernels(&y) {
        return by_type!(y, kernel(&y, &grad));
    }
    let dot = (&y * &grad)?.sum_keepdim(D::Minus1)?;
    Ok((&y * grad.broadcast_sub(&dot)?)?)
}

/// Returns tokens and width of `[batch, tokens, width]`.
fn tokens(x: &Tensor) -> Result<(usize, usize)> {
    let (_, tokens, width) = x.dims3()?;
    Ok((tokens, width))
}

pub(crate) fn scale_shift(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let (tokens, width) = tokens(x)?;
        cpu_tensor(
            pointwise::scale_shift::<F>(&view(x)?, &view(scale)?, &view(shift)?, tokens, width),
            x.shape(),
        )
    }
    let [x, scale, shift] = contiguous([x, scale, shift])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &scale, &shift));
    }
    Ok(x.broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?.broadcast_add(&shift.unsqueeze(1)?)?)
}

/// Computes the gradients of `x`, `scale` and `shift`.
pub(crate) fn scale_shift_backward(x: &Tensor, scale: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
    fn kernel<F: Element>(x: &Tensor, scale: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        let (tokens, width) = tokens(x)?;
        let [gx, gs, gh] =
            pointwise::scale_shift_backward::<F>(&view(x)?, &view(scale)?, &view(grad)?, tokens, width);
        Ok([cpu_tensor(gx, x.shape())?, cpu_tensor(gs, scale.shape())?, cpu_tensor(gh, scale.shape())?])
    }
    let [x, scale, grad] = contiguous([x, scale, grad])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &scale, &grad));
    }
    Ok([grad.broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?, (&grad * &x)?.sum(1)?, grad.sum(1)?])
}

pub(crate) fn gated_residual(x: &Tensor, branch: &Tensor, gate: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, branch: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let (tokens, width) = tokens(x)?;
        cpu_tensor(
            pointwise::gated_residual::<F>(&view(x)?, &view(branch)?, &view(gate)?, tokens, width),
            x.shape(),
        )
    }
    let [x, branch, gate] = contiguous([x, branch, gate])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &branch, &gate));
    }
    Ok((x + branch.broadcast_mul(&gate.unsqueeze(1)?)?)?)
}

/// Computes the gradients of `branch` and `gate`; that of `x` is `grad` itself.
pub(crate) fn gated_residual_backward(branch: &Tensor, gate: &Tensor, grad: &Tensor) -> Result<[Tensor; 2]> {
    fn kernel<F: Element>(branch: &Tensor, gate: &Tensor, grad: &Tensor) -> Result<[Tensor; 2]> {
        let (tokens, width) = tokens(branch)?;
        let [gb, gg] = pointwise::gated_residual_backward::<F>(
            &view(branch)?,
            &view(gate)?,
            &view(grad)?,
            tokens,
            width,
        );
        Ok([cpu_tensor(gb, branch.shape())?, cpu_tensor(gg, gate.shape())?])
    }
    let [branch, gate, grad] = contiguous([branch, gate, grad])?;
    if uses_kernels(&branch) {
        return by_type!(branch, kernel(&branch, &gate, &grad));
    }
    Ok([grad.broadcast_mul(&gate.unsqueeze(1)?)?, (&grad * &branch)?.sum(1)?])
}

fn sizes(q: &Tensor) -> Result<Sizes> {
    let (_, tokens, heads, d) = q.dims4()?;
    Ok(Sizes { tokens, heads, d })
}

/// Transposes `[batch, tokens, heads, d]` to `[batch, heads, tokens, d]` or back.
fn transpose_heads(x: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?)
}

/// Returns the result `[batch, tokens, heads, d]` and the probabilities `[batch, heads, tokens, tokens]`, which backward needs.
pub(crate) fn attention(
    rounding: FactorPrecision,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    fn kernel<P: Factor>(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)>
    where
        P::Number: Element,
    {
        let s = sizes(q)?;
        let (y, p) = attention::forward::<P>(&view(q)?, &view(k)?, &view(v)?, s);
        Ok((cpu_tensor(y, q.shape())?, cpu_tensor(p, (q.dim(0)?, s.heads, s.tokens, s.tokens))?))
    }
    if computes_in_f32(q) {
        let (y, p) = attention(rounding, &wide(q)?, &wide(k)?, &wide(v)?)?;
        return Ok((convert(&y, q.dtype())?, convert(&p, q.dtype())?));
    }
    let [q, k, v] = contiguous([q, k, v])?;
    if uses_kernels(&q) {
        return by_factor!(q, rounding, kernel(&q, &k, &v));
    }
    let scale = 1.0 / (q.dim(3)? as f64).sqrt();
    let scores = (transpose_heads(&q)?.matmul(&transpose_heads(&k)?.transpose(2, 3)?)? * scale)?;
    let p = softmax(&wide(&scores)?)?.to_dtype(q.dtype())?;
    Ok((transpose_heads(&p.matmul(&transpose_heads(&v)?)?)?, p))
}

/// Computes the gradients of query, key and value.
pub(crate) fn attention_backward(
    rounding: FactorPrecision,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    p: &Tensor,
    grad: &Tensor,
) -> Result<[Tensor; 3]> {
    fn kernel<P: Factor>(q: &Tensor, k: &Tensor, v: &Tensor, p: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]>
    where
        P::Number: Element,
    {
        let [gq, gk, gv] =
            attention::backward::<P>(&view(q)?, &view(k)?, &view(v)?, &view(p)?, &view(grad)?, sizes(q)?);
        Ok([cpu_tensor(gq, q.shape())?, cpu_tensor(gk, q.shape())?, cpu_tensor(gv, q.shape())?])
    }
    if computes_in_f32(q) {
        let grads = attention_backward(rounding, &wide(q)?, &wide(k)?, &wide(v)?, &wide(p)?, &wide(grad)?)?;
        let [gq, gk, gv] = grads.each_ref().map(|g| convert(g, q.dtype()));
        return Ok([gq?, gk?, gv?]);
    }
    let [q, k, v, p, grad] = contiguous([q, k, v, p, grad])?;
    if uses_kernels(&q) {
        return by_factor!(q, rounding, kernel(&q, &k, &v, &p, &grad));
    }
    let scale = 1.0 / (q.dim(3)? as f64).sqrt();
    let (q, k, v, grad) =
        (transpose_heads(&q)?, transpose_heads(&k)?, transpose_heads(&v)?, transpose_heads(&grad)?);
    let grad_p = grad.matmul(&v.transpose(2, 3)?)?;
    let grad_scores = (softmax_backward(&wide(&p)?, &wide(&grad_p)?)? * scale)?.to_dtype(q.dtype())?;
    Ok([
        transpose_heads(&grad_scores.matmul(&k)?)?,
        transpose_heads(&grad_scores.transpose(2, 3)?.matmul(&q)?)?,
        transpose_heads(&p.transpose(2, 3)?.matmul(&grad)?)?,
    ])
}

pub(crate) fn sinusoids(t: &Tensor, width: usize, period: f64, scale: f64) -> Result<Tensor> {
    let half = width / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| scale * period.powf(-(i as f64) / half as f64)).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), t.device())?.to_dtype(t.dtype())?;
    let angles = t.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)
}
