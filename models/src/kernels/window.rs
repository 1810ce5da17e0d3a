//! Where square windows lie on the planes of a picture.

use std::ops::Range;

/// Windows of `kernel`² over `[height, width]` planes, of which `rows`·`cols` fit.
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
    /// Values of an input plane.
    pub(crate) fn plane(self) -> usize {
        self.height * self.width
    }

    /// Values of an output plane.
    pub(crate) fn places(self) -> usize {
        self.rows * self.cols
    }

    /// Whether a window is a pixel: outputs are inputs.
    pub(crate) fn is_pixel(self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// The input row that row `ky` of the windows at output row `y` looks at, unless it is padding.
    #[inline(always)]
    pub(crate) fn input_row(self, y: usize, ky: usize) -> Option<usize> {
        (y * self.stride + ky).checked_sub(self.padding).filter(|&row| row < self.height)
    }

    /// The output columns whose window has its column `kx` inside the picture, and where the first of them looks; the next ones look
    /// `stride` further on.
    #[inline(always)]
    pub(crate) fn inside(self, kx: usize) -> (Range<usize>, usize) {
        let end = (self.width + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.cols);
        let start = self.padding.saturating_sub(kx).div_ceil(self.stride).min(end);
        (start..end, (start * self.stride + kx).saturating_sub(self.padding))
    }
}
