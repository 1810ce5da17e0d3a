//! Elementwise functions, reductions, upsampling and group normalization on candle tensors: by kernels on the CPU, elsewhere as
//! compositions of candle's own operations; sigmoid and the norm also by [kernels of candle-nn](super::fused).

use candle_core::Tensor;

use super::{
    element::{Element, by_type, cpu_tensor, view},
    ops::{self, NormKind, contiguous, uses_kernels},
    spatial,
};
pub(crate) use crate::kernels::elementwise::UnaryFunction;
use crate::{
    Result,
    kernels::{
        elementwise,
        reduce::{self, Axis},
        upsample,
    },
};

pub(crate) fn unary(function: UnaryFunction, x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(function: UnaryFunction, x: &Tensor) -> Result<Tensor> {
        cpu_tensor(elementwise::unary::<F>(function, &view(x)?), x.shape())
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(function, &x));
    }
    Ok(match function {
        UnaryFunction::Exp => x.exp()?,
        UnaryFunction::Log => x.log()?,
        UnaryFunction::Sqrt => x.sqrt()?,
        UnaryFunction::Sigmoid => ops::sigmoid(&x)?,
        UnaryFunction::Tanh => x.tanh()?,
        UnaryFunction::Softplus => (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?,
        UnaryFunction::Clamp { min, max } => x.clamp(min, max)?,
    })
}

/// Computes the gradient of the input of [`unary`]. `saved` is the result if [`UnaryFunction::is_slope_from_result`], else the input.
pub(crate) fn unary_backward(function: UnaryFunction, saved: &Tensor, grad: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(function: UnaryFunction, saved: &Tensor, grad: &Tensor) -> Result<Tensor> {
        cpu_tensor(elementwise::unary_backward::<F>(function, &view(saved)?, &view(grad)?), saved.shape())
    }
    let [saved, grad] = contiguous([saved, grad])?;
    if uses_kernels(&saved) {
        return by_type!(saved, kernel(function, &saved, &grad));
    }
    let slope = match function {
        UnaryFunction::Exp => saved,
        UnaryFunction::Log => saved.recip()?,
        UnaryFunction::Sqrt => (saved * 2.0)?.recip()?,
        UnaryFunction::Sigmoid => (&saved * saved.affine(-1.0, 1.0)?)?,
        UnaryFunction::Tanh => saved.sqr()?.affine(-1.0, 1.0)?,
        UnaryFunction::Softplus => ops::sigmoid(&saved)?,
        UnaryFunction::Clamp { min, max } => (saved.ge(min)? * saved.le(max)?)?.to_dtype(saved.dtype())?,
    };
    Ok((grad * slope)?)
}

/// Computes `x·scale` where the mask (`u8`) is not 0; other values are 0.
pub(crate) fn mask_scale(x: &Tensor, mask: &Tensor, scale: f64) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, mask: &Tensor, scale: f64) -> Result<Tensor> {
        cpu_tensor(elementwise::mask_scale::<F>(&view(x)?, &view(mask)?, scale), x.shape())
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, mask, scale));
    }
    Ok(mask.where_cond(&(&x * scale)?, &x.zeros_like()?)?)
}

/// Returns the sizes of a reduction over `axis`; axis 0 is the batch.
fn reduced_axis(x: &Tensor, axis: usize) -> Axis {
    Axis { len: x.dims()[axis], inner: x.dims()[axis + 1..].iter().product() }
}

/// Returns the shape of `x` without `axis`.
fn without_axis(x: &Tensor, axis: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    dims.remove(axis);
    dims
}

/// Returns the sums over `axis`; axis 0 is the batch.
pub(crate) fn sum(x: &Tensor, axis: usize) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, axis: usize) -> Result<Tensor> {
        cpu_tensor(reduce::sum::<F>(reduced_axis(x, axis), &view(x)?), without_axis(x, axis))
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, axis));
    }
    Ok(x.sum(axis)?)
}

/// Returns the maxima over `axis` and their positions (`u32`); axis 0 is the batch. Of equal maxima, the position
/// is that of the first.
pub(crate) fn max(x: &Tensor, axis: usize) -> Result<(Tensor, Tensor)> {
    fn kernel<F: Element>(x: &Tensor, axis: usize) -> Result<(Tensor, Tensor)> {
        let (y, indices) = reduce::max::<F>(reduced_axis(x, axis), &view(x)?);
        Ok((cpu_tensor(y, without_axis(x, axis))?, cpu_tensor(indices, without_axis(x, axis))?))
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, axis));
    }
    Ok((x.max(axis)?, x.argmax(axis)?))
}

/// Computes the gradient of the input of [`max`], which has `len` positions on `axis`.
pub(crate) fn max_backward(indices: &Tensor, grad: &Tensor, axis: usize, len: usize) -> Result<Tensor> {
    fn kernel<F: Element>(indices: &Tensor, grad: &Tensor, axis: usize, dims: &[usize]) -> Result<Tensor> {
        let sizes = Axis { len: dims[axis], inner: dims[axis + 1..].iter().product() };
        cpu_tensor(reduce::max_backward::<F>(sizes, &view(indices)?, &view(grad)?), dims)
    }
    let grad = grad.contiguous()?;
    let mut dims = grad.dims().to_vec();
    dims.insert(axis, len);
    if uses_kernels(&grad) {
        return by_type!(grad, kernel(indices, &grad, axis, &dims));
    }
    let zeros = Tensor::zeros(dims, grad.dtype(), grad.device())?;
    let (indices, grad) = (indices.unsqueeze(axis)?.contiguous()?, grad.unsqueeze(axis)?.contiguous()?);
    Ok(zeros.scatter_add(&indices, &grad, axis)?)
}

/// Repeats each value of `[batch, channels, height, width]` `factor` times along height and width.
pub(crate) fn upsample_nearest2d(x: &Tensor, factor: usize) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, factor: usize) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let dims = (batch, channels, height * factor, width * factor);
        cpu_tensor(upsample::nearest::<F>(&view(x)?, width, factor), dims)
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) && !super::precision::is_half(x.dtype()) {
        return by_type!(x, kernel(&x, factor));
    }
    // candle's own operation is not used: for some factors, such as 49, it rounds coordinates down to the neighbor.
    let (batch, channels, height, width) = x.dims4()?;
    let repeated = x.reshape((batch, channels, height, 1, width, 1))?;
    let repeated = repeated.broadcast_as((batch, channels, height, factor, width, factor))?.contiguous()?;
    Ok(repeated.reshape((batch, channels, height * factor, width * factor))?)
}

/// Computes the gradient of the input of [`upsample_nearest2d`].
pub(crate) fn upsample_nearest2d_backward(grad: &Tensor, factor: usize) -> Result<Tensor> {
    fn kernel<F: Element>(grad: &Tensor, factor: usize) -> Result<Tensor> {
        let (batch, channels, height, width) = grad.dims4()?;
        let dims = (batch, channels, height / factor, width / factor);
        cpu_tensor(upsample::nearest_backward::<F>(&view(grad)?, width / factor, factor), dims)
    }
    let grad = grad.contiguous()?;
    if uses_kernels(&grad) {
        return by_type!(grad, kernel(&grad, factor));
    }
    let (batch, channels, height, width) = grad.dims4()?;
    let dims = (batch, channels, height / factor, factor, width / factor, factor);
    Ok(grad.reshape(dims)?.sum((3, 5))?)
}

/// Views `[batch, channels, ..]` as `[batch, groups, values]`.
fn as_groups(x: &Tensor, groups: usize) -> Result<Tensor> {
    let values = x.dims()[1..].iter().product::<usize>() / groups;
    Ok(x.contiguous()?.reshape((x.dims()[0], groups, values))?)
}

/// Views `[batch, channels, ..]` as `[batch, channels, values, 1]`, an image.
fn as_image(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.reshape((x.dims()[0], x.dims()[1], x.dims()[2..].iter().product::<usize>(), 1))?)
}

/// Normalizes each group of channels of `[batch, channels, ..]`. `affine` holds the weight and the bias, `[channels]`.
pub(crate) fn group_norm(
    x: &Tensor,
    groups: usize,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor> {
    let y = ops::norm(NormKind::Layer, &as_groups(x, groups)?, None, None, eps)?.reshape(x.shape())?;
    let Some((weight, bias)) = affine else { return Ok(y) };
    Ok(spatial::scale_shift_channels(&as_image(&y)?, weight, bias)?.reshape(x.shape())?)
}

/// Computes the gradients of `x` and, if there is a weight, of weight and bias.
pub(crate) fn group_norm_backward(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    grad: &Tensor,
    eps: f64,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    let rows = as_groups(x, groups)?;
    let (params, grad) = match weight {
        None => (None, grad.clone()),
        Some(weight) => {
            let normal = ops::norm(NormKind::Layer, &rows, None, None, eps)?.reshape(x.shape())?;
            let image = as_image(grad)?;
            let grad_weight = spatial::sum_channels(&as_image(&(normal * grad)?)?)?;
            let params = (grad_weight, spatial::sum_channels(&image)?);
            (Some(params), spatial::scale_shift_channels(&image, weight, &weight.zeros_like()?)?)
        }
    };
    let grad_x = ops::norm_backward(NormKind::Layer, &rows, None, &grad.reshape(rows.shape())?, eps)?.0;
    Ok((grad_x.reshape(x.shape())?, params))
}
