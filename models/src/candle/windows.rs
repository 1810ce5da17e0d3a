//! Pooling that gathers the windows of an image into a matrix. It works on every device, and the gradient is the matching scatter.

use candle_core::{D, Tensor};

use crate::{Conv2dOptions, Error, Result, kernels::window::Window};

/// Returns the windows of `kernel` pixels on the planes of `x`.
pub(super) fn windows_of(x: &Tensor, kernel: [usize; 2], options: Conv2dOptions) -> Result<Window> {
    let (_, _, height, width) = x.dims4()?;
    Window::new([height, width], kernel, options)
        .ok_or_else(|| Error::shape("windows", format!("at least {kernel:?} pixels"), x.dims()))
}

/// The positions of the windows of a `[height, width]` image.
#[derive(Clone)]
pub(crate) struct Windows {
    /// Index in the flattened image for each (position in the window, window); `height·width` means padding.
    index: Tensor,
    /// Number of values of a window.
    len: usize,
    output_dims: (usize, usize),
    pixels: usize,
    padded: bool,
}

impl Windows {
    /// Creates the positions of `window` on the planes of `x`.
    pub(crate) fn new(x: &Tensor, window: Window) -> Result<Self> {
        let Window { height, width, kernel, stride, padding, dilation, rows, cols } = window;
        let (len, output_dims) = (kernel[0] * kernel[1], (rows, cols));
        let mut index = Vec::with_capacity(len * rows * cols);
        for (ky, kx) in (0..len).map(|i| (i / kernel[1], i % kernel[1])) {
            for (py, px) in (0..rows * cols).map(|i| (i / cols, i % cols)) {
                let y = (py * stride[0] + ky * dilation[0]).checked_sub(padding[0]).filter(|&y| y < height);
                let x = (px * stride[1] + kx * dilation[1]).checked_sub(padding[1]).filter(|&x| x < width);
                index.push(y.zip(x).map_or(height * width, |(y, x)| y * width + x) as u32);
            }
        }
        let n = index.len();
        Ok(Self {
            index: Tensor::from_vec(index, n, x.device())?,
            len,
            output_dims,
            pixels: height * width,
            padded: padding != [0; 2],
        })
    }

    /// Gathers windows: `[batch, channels, height, width]` → `[batch·channels, values of a window, windows]`, with `fill` for
    /// padding.
    pub(super) fn gather(&self, x: &Tensor, fill: f64) -> Result<Tensor> {
        let (batch, channels, _, _) = x.dims4()?;
        let mut flat = x.contiguous()?.reshape((batch * channels, self.pixels))?;
        if self.padded {
            let edge = Tensor::full(fill as f32, (batch * channels, 1), x.device())?.to_dtype(x.dtype())?;
            flat = Tensor::cat(&[&flat, &edge], 1)?;
        }
        let output_dims = self.output_dims.0 * self.output_dims.1;
        Ok(flat.index_select(&self.index, 1)?.reshape((batch * channels, self.len, output_dims))?)
    }

    /// Sums windows into an image with the shape of `like`: the transpose of [`gather`](Self::gather).
    pub(super) fn scatter(&self, windows: &Tensor, like: &Tensor) -> Result<Tensor> {
        let (batch, channels, _, _) = like.dims4()?;
        let n = self.index.elem_count();
        let flat = windows.contiguous()?.reshape((batch * channels, n))?;
        let width = self.pixels + usize::from(self.padded);
        let sum = Tensor::zeros((batch * channels, width), like.dtype(), like.device())?;
        let sum = sum.index_add(&self.index, &flat, 1)?;
        Ok(sum.narrow(1, 0, self.pixels)?.contiguous()?.reshape(like.shape())?)
    }

    fn pooled(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, _, _) = x.dims4()?;
        Ok(y.reshape((batch, channels, self.output_dims.0, self.output_dims.1))?)
    }

    /// Returns the maximum of each window, and its index in the flattened image; of several, the first.
    pub(crate) fn max(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let windows = self.gather(x, f64::from(f32::MIN))?;
        let (rows, square, output_dims) = windows.dims3()?;
        let index = self
            .index
            .reshape((1, square, output_dims))?
            .broadcast_as((rows, square, output_dims))?
            .contiguous()?;
        let indices = index.gather(&windows.argmax_keepdim(1)?, 1)?;
        Ok((self.pooled(&windows.max(1)?, x)?, self.pooled(&indices, x)?))
    }

    pub(crate) fn mean(&self, x: &Tensor) -> Result<Tensor> {
        self.pooled(&self.gather(x, 0.0)?.mean(1)?, x)
    }

    pub(crate) fn mean_backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (rows, square) = (x.dim(0)? * x.dim(1)?, self.len);
        let grad = grad.contiguous()?.reshape((rows, 1, self.output_dims.0 * self.output_dims.1))?;
        let output_dims = grad.dim(2)?;
        self.scatter(&(grad.broadcast_as((rows, square, output_dims))? / square as f64)?, x)
    }
}

/// Adds each gradient to the value of the image at the index in `indices`: the backward of [`Windows::max`].
pub(crate) fn scatter_max(indices: &Tensor, grad: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, rows, cols) = grad.dims4()?;
    let flat = (batch * channels, rows * cols);
    // The extra position is for windows whose maximum is the padding.
    let sum = Tensor::zeros((batch * channels, height * width + 1), grad.dtype(), grad.device())?;
    let sum = sum.scatter_add(&indices.reshape(flat)?, &grad.reshape(flat)?, 1)?;
    Ok(sum.narrow(1, 0, height * width)?.contiguous()?.reshape((batch, channels, height, width))?)
}

/// Groups by channel: `[batch, channels, height, width]` → `[channels, batch·height·width]`.
pub(crate) fn by_channel(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    Ok(x.transpose(0, 1)?.contiguous()?.reshape((channels, batch * height * width))?)
}

/// Reverses [`by_channel`], to the shape of `like`.
pub(crate) fn by_item(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = like.dims4()?;
    Ok(x.reshape((channels, batch, height, width))?.transpose(0, 1)?.contiguous()?)
}

/// Returns mean and biased variance of each row.
pub(crate) fn statistics(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = rows.mean_keepdim(D::Minus1)?;
    let var = rows.broadcast_sub(&mean)?.sqr()?.mean(D::Minus1)?;
    Ok((mean.squeeze(1)?, var))
}
