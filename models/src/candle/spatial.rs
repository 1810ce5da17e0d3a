//! Forward and backward of the operations on images, `[batch, channels, height, width]`. Kernels compute them on the CPU.
//! Elsewhere, and within [`with_candle_ops`](super::with_candle_ops), the compositions of [`convolution`](super::convolution) and
//! [`windows`](super::windows) do.

use candle_core::Tensor;

use super::{
    convolution,
    element::{Element, by_type, cpu_tensor, view},
    ops::{computes_in_f32, contiguous, uses_kernels},
    precision::{FactorPrecision, by_factor, convert, wide},
    windows::{self, Windows, windows_of},
};
use crate::{
    Conv2dOptions, Result,
    kernels::{
        batch_norm,
        conv::{self, Conv},
        pool,
        product::Factor,
        window::Window,
    },
};

/// Returns square windows.
fn window(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Window> {
    windows_of(x, [kernel; 2], Conv2dOptions::square(stride, padding))
}

fn conv(x: &Tensor, weight: &Tensor, options: Conv2dOptions) -> Result<Conv> {
    let (out, _, height, width) = weight.dims4()?;
    let window = windows_of(x, [height, width], options)?;
    Ok(Conv { channels: x.dim(1)?, out, groups: options.groups, window })
}

/// Returns the shape of a result: the items of `x`, with `channels` planes of one value for each window.
fn output_dims(x: &Tensor, channels: usize, window: Window) -> Result<(usize, usize, usize, usize)> {
    Ok((x.dim(0)?, channels, window.rows, window.cols))
}

/// Convolves `x` with `weight`; `training` allows the larger rounding errors of the fastest algorithm.
pub(crate) fn conv2d(
    rounding: FactorPrecision,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: Conv2dOptions,
    training: bool,
) -> Result<Tensor> {
    fn kernel<P: Factor>(
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        conv: Conv,
        training: bool,
    ) -> Result<Tensor>
    where
        P::Number: Element,
    {
        let bias = bias.map(view::<P::Number>).transpose()?;
        let y = conv::forward::<P>(conv, &view(x)?, &view(weight)?, bias.as_deref(), training);
        cpu_tensor(y, output_dims(x, conv.out, conv.window)?)
    }
    if computes_in_f32(x) {
        let bias = bias.map(wide).transpose()?;
        let y = conv2d(rounding, &wide(x)?, &wide(weight)?, bias.as_ref(), options, training)?;
        return convert(&y, x.dtype());
    }
    let [x, weight] = contiguous([x, weight])?;
    if uses_kernels(&x) {
        let conv = conv(&x, &weight, options)?;
        return by_factor!(x, rounding, kernel(&x, &weight, bias, conv, training));
    }
    convolution::forward(&x, &weight, bias, options)
}

/// Computes the gradients of `x` (if needed) and `weight`; that of the bias is [`sum_channels`].
pub(crate) fn conv2d_backward(
    rounding: FactorPrecision,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    options: Conv2dOptions,
    need_x: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    fn kernel<P: Factor>(
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
        conv: Conv,
        need_x: bool,
    ) -> Result<(Option<Tensor>, Tensor)>
    where
        P::Number: Element,
    {
        let (grad_x, grad_weight) =
            conv::backward::<P>(conv, &view(x)?, &view(weight)?, &view(grad)?, need_x);
        let grad_x = grad_x.map(|g| cpu_tensor(g, x.shape())).transpose()?;
        Ok((grad_x, cpu_tensor(grad_weight, weight.shape())?))
    }
    if computes_in_f32(x) {
        let (wide_x, weight, grad) = (wide(x)?, wide(weight)?, wide(grad)?);
        let (grad_x, grad_weight) = conv2d_backward(rounding, &wide_x, &weight, &grad, options, need_x)?;
        let grad_x = grad_x.map(|g| convert(&g, x.dtype())).transpose()?;
        return Ok((grad_x, convert(&grad_weight, x.dtype())?));
    }
    let [x, weight, grad] = contiguous([x, weight, grad])?;
    if uses_kernels(&x) {
        let conv = conv(&x, &weight, options)?;
        return by_factor!(x, rounding, kernel(&x, &weight, &grad, conv, need_x));
    }
    convolution::backward(&x, &weight, &grad, options, need_x)
}

/// Sums each channel.
pub(crate) fn sum_channels(x: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        cpu_tensor(batch_norm::sum_channels::<F>(&view(x)?, channels, height * width), channels)
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x));
    }
    Ok(windows::by_channel(&x)?.sum(1)?)
}

/// Computes `x·scale + shift`, with one number for each channel.
pub(crate) fn scale_shift_channels(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    fn kernel<F: Element>(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        cpu_tensor(
            batch_norm::scale_shift::<F>(&view(x)?, height * width, &view(scale)?, &view(shift)?),
            x.shape(),
        )
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, scale, shift));
    }
    let column = (1, scale.elem_count(), 1, 1);
    Ok(x.broadcast_mul(&scale.reshape(column)?)?.broadcast_add(&shift.reshape(column)?)?)
}

/// Normalizes `x` by the batch's own statistics, then computes `·weight + bias`. Also returns those statistics: mean and biased
/// variance of each channel.
pub(crate) fn batch_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<[Tensor; 3]> {
    fn kernel<F: Element>(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<[Tensor; 3]> {
        let (_, channels, height, width) = x.dims4()?;
        let (y, mean, var) =
            batch_norm::forward::<F>(&view(x)?, height * width, &view(weight)?, &view(bias)?, eps);
        Ok([cpu_tensor(y, x.shape())?, cpu_tensor(mean, channels)?, cpu_tensor(var, channels)?])
    }
    let [x, weight, bias] = contiguous([x, weight, bias])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &weight, &bias, eps));
    }
    let (mean, var) = windows::statistics(&windows::by_channel(&x)?)?;
    let scale = (weight / (&var + eps)?.sqrt()?)?;
    let centered = x.broadcast_sub(&mean.reshape((1, mean.elem_count(), 1, 1))?)?;
    Ok([scale_shift_channels(&centered, &scale, &bias)?, mean, var])
}

/// Computes the gradients of `x`, weight and bias; `mean` and `var` are those that [`batch_norm`] returned.
pub(crate) fn batch_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
    grad: &Tensor,
) -> Result<[Tensor; 3]> {
    fn kernel<F: Element>(
        x: &Tensor,
        weight: &Tensor,
        mean: &Tensor,
        var: &Tensor,
        eps: f64,
        grad: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (_, channels, height, width) = x.dims4()?;
        let plane = height * width;
        let [gx, gw, gb] = batch_norm::backward::<F>(
            &view(x)?,
            plane,
            &view(weight)?,
            &view(mean)?,
            &view(var)?,
            eps,
            &view(grad)?,
        );
        Ok([cpu_tensor(gx, x.shape())?, cpu_tensor(gw, channels)?, cpu_tensor(gb, channels)?])
    }
    let [x, weight, grad] = contiguous([x, weight, grad])?;
    if uses_kernels(&x) {
        return by_type!(x, kernel(&x, &weight, mean, var, eps, &grad));
    }
    let (rows, grad) = (windows::by_channel(&x)?, windows::by_channel(&grad)?);
    let (channels, n) = rows.dims2()?;
    let column = (channels, 1);
    let inverse = (var + eps)?.sqrt()?.recip()?;
    let normal = rows.broadcast_sub(&mean.reshape(column)?)?.broadcast_mul(&inverse.reshape(column)?)?;
    let (grad_weight, grad_bias) = ((&grad * &normal)?.sum(1)?, grad.sum(1)?);
    let projection = normal.broadcast_mul(&(&grad_weight / n as f64)?.reshape(column)?)?;
    let grad = (grad.broadcast_sub(&(&grad_bias / n as f64)?.reshape(column)?)? - projection)?;
    let grad_x = grad.broadcast_mul(&(weight * inverse)?.reshape(column)?)?;
    Ok([windows::by_item(&grad_x, &x)?, grad_weight, grad_bias])
}

/// Returns the maximum of each window, and its position in the plane (`u32`). Of several, it is the first, as in PyTorch.
pub(crate) fn max_pool2d(
    x: &Tensor,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Result<(Tensor, Tensor)> {
    fn kernel_<F: Element>(x: &Tensor, window: Window) -> Result<(Tensor, Tensor)> {
        let shape = output_dims(x, x.dim(1)?, window)?;
        let (y, indices) = pool::max::<F>(window, &view(x)?);
        Ok((cpu_tensor(y, shape)?, Tensor::from_vec(indices, shape, x.device())?))
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        let window = window(&x, kernel, stride, padding)?;
        return by_type!(x, kernel_(&x, window));
    }
    Windows::new(&x, window(&x, kernel, stride, padding)?)?.max(&x)
}

/// Computes the gradient of the input `[batch, channels, height, width]` of [`max_pool2d`].
pub(crate) fn max_pool2d_backward(
    indices: &Tensor,
    grad: &Tensor,
    height: usize,
    width: usize,
) -> Result<Tensor> {
    fn kernel<F: Element>(indices: &Tensor, grad: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let (batch, channels, rows, cols) = grad.dims4()?;
        let grad_x = pool::max_backward::<F>(&view(indices)?, &view(grad)?, rows * cols, height * width);
        cpu_tensor(grad_x, (batch, channels, height, width))
    }
    let grad = grad.contiguous()?;
    if uses_kernels(&grad) {
        return by_type!(grad, kernel(indices, &grad, height, width));
    }
    windows::scatter_max(indices, &grad, height, width)
}

/// Returns the mean of each window.
pub(crate) fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    fn kernel_<F: Element>(x: &Tensor, window: Window) -> Result<Tensor> {
        cpu_tensor(pool::mean::<F>(window, &view(x)?), output_dims(x, x.dim(1)?, window)?)
    }
    let x = x.contiguous()?;
    if uses_kernels(&x) {
        let window = window(&x, kernel, stride, 0)?;
        return by_type!(x, kernel_(&x, window));
    }
    Windows::new(&x, window(&x, kernel, stride, 0)?)?.mean(&x)
}

/// Computes the gradient of `x`, which is needed only for its shape.
pub(crate) fn avg_pool2d_backward(x: &Tensor, grad: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    fn kernel_<F: Element>(x: &Tensor, grad: &Tensor, window: Window) -> Result<Tensor> {
        cpu_tensor(pool::mean_backward::<F>(window, &view(grad)?), x.shape())
    }
    let grad = grad.contiguous()?;
    if uses_kernels(&grad) {
        let window = window(x, kernel, stride, 0)?;
        return by_type!(grad, kernel_(x, &grad, window));
    }
    Windows::new(x, window(x, kernel, stride, 0)?)?.mean_backward(x, &grad)
}
