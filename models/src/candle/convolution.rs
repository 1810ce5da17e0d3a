//! Convolution from candle's own operations, which run on GPUs, and with which tests compare the CPU's kernels.
//!
//! Both gradients of a convolution are convolutions, so candle's forward operation computes all three. It has one stride and padding for
//! both axes, and its gradients have neither dilation nor groups. All other convolutions are products with the matrix of all windows.

use candle_core::Tensor;

use super::windows::{Windows, windows_of};
use crate::{Conv2dOptions, Result};

/// Returns stride and padding of a convolution that candle's operations can compute and differentiate.
fn square_options(weight: &Tensor, options: Conv2dOptions) -> Option<(usize, usize)> {
    options.as_square().filter(|_| weight.dims()[2] == weight.dims()[3])
}

/// Convolves `x` `[batch, channels, height, width]` with `weight` `[out, channels / groups, kernel height, kernel width]`, and adds `bias`
/// `[out]`.
pub(crate) fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: Conv2dOptions,
) -> Result<Tensor> {
    let y = match square_options(weight, options) {
        Some((stride, padding)) => x.contiguous()?.conv2d(&weight.contiguous()?, padding, stride, 1, 1)?,
        None => Columns::new(x, weight, options)?.forward(x, weight)?,
    };
    match bias {
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?)?),
        None => Ok(y),
    }
}

/// Computes the gradients of `x` (if needed) and `weight`; that of the bias is a sum over each channel.
pub(crate) fn backward(
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    options: Conv2dOptions,
    need_x: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let Some((stride, padding)) = square_options(weight, options) else {
        return Columns::new(x, weight, options)?.backward(x, weight, grad, need_x);
    };
    let grad_x = if need_x { Some(grad_x(x, weight, grad, stride, padding)?) } else { None };
    Ok((grad_x, grad_weight(x, weight, grad, stride, padding)?))
}

/// The windows of all channels as the columns of one matrix for each group.
struct Columns {
    windows: Windows,
    batch: usize,
    groups: usize,
    /// Number of values of a column: input channels of a group times values of a window.
    len: usize,
    /// Number of output channels.
    out: usize,
    /// Rows and columns of the result.
    output_dims: (usize, usize),
}

impl Columns {
    fn new(x: &Tensor, weight: &Tensor, options: Conv2dOptions) -> Result<Self> {
        let (out, channels, height, width) = weight.dims4()?;
        let window = windows_of(x, [height, width], options)?;
        Ok(Self {
            windows: Windows::new(x, window)?,
            batch: x.dim(0)?,
            groups: options.groups,
            len: channels * height * width,
            out,
            output_dims: (window.rows, window.cols),
        })
    }

    /// Moves the batch to the last axis: `[batch, groups·rows, positions]` → `[groups, rows, batch·positions]`.
    fn batch_last(&self, values: &Tensor, rows: usize) -> Result<Tensor> {
        let positions = self.output_dims.0 * self.output_dims.1;
        let values = values.contiguous()?.reshape((self.batch, self.groups, rows, positions))?;
        Ok(values.permute((1, 2, 0, 3))?.contiguous()?.reshape((
            self.groups,
            rows,
            self.batch * positions,
        ))?)
    }

    /// Reverses [`batch_last`](Self::batch_last).
    fn batch_first(&self, values: &Tensor, rows: usize) -> Result<Tensor> {
        let positions = self.output_dims.0 * self.output_dims.1;
        let values = values.reshape((self.groups, rows, self.batch, positions))?;
        Ok(values.permute((2, 0, 1, 3))?.contiguous()?)
    }

    /// Returns the matrices `[groups, len, batch·positions]`.
    fn gather(&self, x: &Tensor) -> Result<Tensor> {
        self.batch_last(&self.windows.gather(x, 0.0)?, self.len)
    }

    /// Returns the weights as matrices `[groups, out / groups, len]`.
    fn weights(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(weight.contiguous()?.reshape((self.groups, self.out / self.groups, self.len))?)
    }

    fn forward(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let y = self.weights(weight)?.matmul(&self.gather(x)?)?;
        let (rows, cols) = self.output_dims;
        Ok(self.batch_first(&y, self.out / self.groups)?.reshape((self.batch, self.out, rows, cols))?)
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
        need_x: bool,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let grad = self.batch_last(grad, self.out / self.groups)?;
        let grad_weight = grad.matmul(&self.gather(x)?.transpose(1, 2)?.contiguous()?)?;
        let grad_weight = grad_weight.reshape(weight.shape())?;
        if !need_x {
            return Ok((None, grad_weight));
        }
        let columns = self.weights(weight)?.transpose(1, 2)?.contiguous()?.matmul(&grad)?;
        Ok((Some(self.windows.scatter(&self.batch_first(&columns, self.len)?, x)?), grad_weight))
    }
}

/// Computes the gradient of `x`. Each pixel's gradient is a sum over the windows that contain it: the result's gradient, dilated to
/// the positions of stride 1, is convolved with the rotated kernels, from outputs to channels.
fn grad_x(x: &Tensor, weight: &Tensor, grad: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let kernel = weight.dim(2)?;
    let grad = dilate(grad, 2, stride, height + 2 * padding + 1 - kernel)?;
    let grad = dilate(&grad, 3, stride, width + 2 * padding + 1 - kernel)?;
    let rotated = weight.transpose(0, 1)?.contiguous()?.flip(&[2, 3])?;
    // If the padding is wider than a kernel, the convolution also covers pixels outside the image; they are cut off.
    let (margin, cut) = ((kernel - 1).saturating_sub(padding), padding.saturating_sub(kernel - 1));
    let grad = grad.contiguous()?.conv2d(&rotated, margin, 1, 1, 1)?;
    Ok(grad.narrow(2, cut, height)?.narrow(3, cut, width)?.contiguous()?)
}

/// Computes the gradient of the weights, a sum over images and positions. Images take the place of channels, the result's gradient
/// that of the kernel, and its dilation is the stride.
fn grad_weight(x: &Tensor, weight: &Tensor, grad: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let kernel = weight.dim(2)?;
    let (x, grad) = (x.transpose(0, 1)?.contiguous()?, grad.transpose(0, 1)?.contiguous()?);
    // If the last window does not reach the edge, there are positions that no weight covers.
    let all = x.conv2d(&grad, padding, 1, stride, 1)?;
    Ok(all.narrow(2, 0, kernel)?.narrow(3, 0, kernel)?.transpose(0, 1)?.contiguous()?)
}

/// Spaces the entries of `axis` `stride` apart, with zeros between them and up to `len`.
fn dilate(x: &Tensor, axis: usize, stride: usize, len: usize) -> Result<Tensor> {
    let n = x.dim(axis)?;
    let dilated = if stride == 1 {
        x.clone()
    } else {
        let dilated = x.unsqueeze(axis + 1)?.pad_with_zeros(axis + 1, 0, stride - 1)?;
        dilated.flatten(axis, axis + 1)?.narrow(axis, 0, (n - 1) * stride + 1)?
    };
    let rest = len - dilated.dim(axis)?;
    Ok(if rest == 0 { dilated } else { dilated.pad_with_zeros(axis, 0, rest)? })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{
        candle::{precision::FactorPrecision, spatial},
        random::noise,
    };

    fn random(stream: u64, dims: [usize; 4]) -> Tensor {
        let values = noise(5, stream, dims.iter().product());
        Tensor::from_vec(values, dims.as_slice(), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }

    fn inner(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap()
    }

    /// Convolution is linear in image and weight, so each gradient is the transpose of the map, whatever the input.
    #[test]
    fn gradients_are_transposes() {
        for (kernel, stride, padding) in [
            (1, 1, 0),
            (1, 2, 0),
            (1, 1, 1),
            (2, 2, 0),
            (3, 1, 1),
            (3, 2, 1),
            (3, 3, 0),
            (4, 4, 0),
            (7, 2, 3),
        ] {
            for (height, width) in [(8, 8), (9, 8), (10, 13)] {
                let name = format!("{height} x {width}, kernel {kernel}, stride {stride}, padding {padding}");
                let (x, weight) = (random(0, [2, 3, height, width]), random(1, [4, 3, kernel, kernel]));
                let options = Conv2dOptions::square(stride, padding);
                let y = forward(&x, &weight, None, options).unwrap();
                let (b, c, h, w) = y.dims4().unwrap();
                let grad = random(2, [b, c, h, w]);
                let (grad_x, grad_weight) = backward(&x, &weight, &grad, options, true).unwrap();
                let expected = inner(&y, &grad);
                for found in [inner(&x, &grad_x.unwrap()), inner(&weight, &grad_weight)] {
                    assert!(
                        (found - expected).abs() < 1e-9 * expected.abs().max(1.0),
                        "{name}: {found}, {expected}"
                    );
                }
            }
        }
    }

    /// Options of each axis, dilation and groups: the gradients are transposes, and the kernels compute the same.
    #[test]
    fn other_options_give_transposes_and_match_the_kernels() {
        let options = |stride, padding, dilation, groups| Conv2dOptions { stride, padding, dilation, groups };
        for (kernel, options) in [
            ([3, 3], options([1, 1], [1, 1], [1, 1], 4)),
            ([1, 4], options([1, 2], [0, 3], [1, 1], 1)),
            ([3, 2], options([2, 1], [2, 0], [1, 3], 2)),
            ([2, 3], options([1, 3], [1, 4], [3, 2], 4)),
            ([5, 1], options([3, 2], [0, 1], [2, 1], 2)),
        ] {
            for ([height, width], out) in [([10, 9], 4), ([11, 12], 8)] {
                let name = format!("{height} x {width}, {out} outputs, kernel {kernel:?}, {options:?}");
                let x = random(0, [3, 4, height, width]);
                let weight = random(1, [out, 4 / options.groups, kernel[0], kernel[1]]);
                let y = forward(&x, &weight, None, options).unwrap();
                let grad = random(2, y.dims().try_into().unwrap());
                let (grad_x, grad_weight) = backward(&x, &weight, &grad, options, true).unwrap();
                let grad_x = grad_x.unwrap();
                let expected = inner(&y, &grad);
                for found in [inner(&x, &grad_x), inner(&weight, &grad_weight)] {
                    let error = (found - expected).abs();
                    assert!(error < 1e-9 * expected.abs().max(1.0), "{name}: {found}, {expected}");
                }
                let rounding = FactorPrecision::Never;
                let fused = spatial::conv2d(rounding, &x, &weight, None, options, true).unwrap();
                let (fused_x, fused_weight) =
                    spatial::conv2d_backward(rounding, &x, &weight, &grad, options, true).unwrap();
                for (found, expected) in
                    [(fused, &y), (fused_x.unwrap(), &grad_x), (fused_weight, &grad_weight)]
                {
                    let error = (found - expected).unwrap();
                    assert!(inner(&error, &error) < 1e-18, "{name}: the kernels differ");
                }
            }
        }
    }
}
