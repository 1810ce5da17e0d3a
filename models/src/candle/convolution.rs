//! Convolution from candle's own operations, which run on GPUs, and with which tests compare the CPU's kernels.
//!
//! Both gradients of a convolution are convolutions, so candle's forward operation computes all three.

use candle_core::Tensor;

use crate::Result;

/// Convolves `x` `[batch, channels, height, width]` with `weight` `[out, channels, k, k]`, and adds `bias` `[out]`.
pub(crate) fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let y = x.contiguous()?.conv2d(&weight.contiguous()?, padding, stride, 1, 1)?;
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
    stride: usize,
    padding: usize,
    need_x: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let grad_x = if need_x { Some(grad_x(x, weight, grad, stride, padding)?) } else { None };
    Ok((grad_x, grad_weight(x, weight, grad, stride, padding)?))
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
    use crate::random::noise;

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
                let y = forward(&x, &weight, None, stride, padding).unwrap();
                let (b, c, h, w) = y.dims4().unwrap();
                let grad = random(2, [b, c, h, w]);
                let (grad_x, grad_weight) = backward(&x, &weight, &grad, stride, padding, true).unwrap();
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
}
