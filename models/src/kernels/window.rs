//! The positions of windows on the planes of an image.

use std::ops::Range;

use crate::{Conv2dOptions, shape};

/// Windows of `kernel` values over `[height, width]` planes. Each window gives one of `rows`·`cols` outputs. Pairs are for height and
/// width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Window {
    /// Creates windows over planes of `[height, width]`; `None` if none fits. The groups are ignored.
    pub(crate) fn new(
        [height, width]: [usize; 2],
        kernel: [usize; 2],
        options: Conv2dOptions,
    ) -> Option<Self> {
        let Conv2dOptions { stride, padding, dilation, .. } = options;
        let [rows, cols] = shape::windows2d([height, width], kernel, options)?;
        Some(Self { height, width, kernel, stride, padding, dilation, rows, cols })
    }

    /// Returns the number of values of an input plane.
    pub(crate) fn input_len(self) -> usize {
        self.height * self.width
    }

    /// Returns the number of values of an output plane.
    pub(crate) fn output_len(self) -> usize {
        self.rows * self.cols
    }

    /// True if each window is one pixel, so that outputs have the positions of inputs.
    pub(crate) fn is_pixel(self) -> bool {
        (self.kernel, self.stride, self.padding) == ([1; 2], [1; 2], [0; 2])
    }

    /// Returns the input row under row `ky` of the windows at output row `y`; `None` if it is padding.
    #[inline(always)]
    pub(crate) fn input_row(self, y: usize, ky: usize) -> Option<usize> {
        (y * self.stride[0] + ky * self.dilation[0])
            .checked_sub(self.padding[0])
            .filter(|&row| row < self.height)
    }

    /// Returns the output columns whose window has its column `kx` inside the image, and the input column of the first. Each next
    /// input column is one stride further on.
    #[inline(always)]
    pub(crate) fn valid_columns(self, kx: usize) -> (Range<usize>, usize) {
        let (stride, padding, kx) = (self.stride[1], self.padding[1], kx * self.dilation[1]);
        let end = (self.width + padding).saturating_sub(kx).div_ceil(stride).min(self.cols);
        let start = padding.saturating_sub(kx).div_ceil(stride).min(end);
        (start..end, (start * stride + kx).saturating_sub(padding))
    }
}
