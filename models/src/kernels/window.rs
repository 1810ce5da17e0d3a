//! The positions of square windows on the planes of an image.

use std::ops::Range;

/// Windows of `kernel`² values over `[height, width]` planes. Each window gives one of `rows`·`cols` outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Window {
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
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// Returns the input row under row `ky` of the windows at output row `y`; `None` if it is padding.
    #[inline(always)]
    pub(crate) fn input_row(self, y: usize, ky: usize) -> Option<usize> {
        (y * self.stride + ky).checked_sub(self.padding).filter(|&row| row < self.height)
    }

    /// Returns the output columns whose window has its column `kx` inside the image, and the input column of the first. Each next
    /// input column is `stride` further on.
    #[inline(always)]
    pub(crate) fn valid_columns(self, kx: usize) -> (Range<usize>, usize) {
        let end = (self.width + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.cols);
        let start = self.padding.saturating_sub(kx).div_ceil(self.stride).min(end);
        (start..end, (start * self.stride + kx).saturating_sub(self.padding))
    }
}
