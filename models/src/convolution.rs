//! Options of convolutions.

/// Options of [`Tensor::conv2d_with_options`](crate::Tensor::conv2d_with_options). Pairs are for height and width.
///
/// ```
/// use tiny_cats_models::Conv2dOptions;
///
/// let depthwise = Conv2dOptions { groups: 32, ..Conv2dOptions::square(2, 1) };
/// assert_eq!((depthwise.stride, depthwise.padding, depthwise.dilation), ([2, 2], [1, 1], [1, 1]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Distance between neighboring windows, in pixels.
    pub stride: [usize; 2],
    /// Number of zeros on each side.
    pub padding: [usize; 2],
    /// Distance between neighboring pixels of a window.
    pub dilation: [usize; 2],
    /// Number of groups of channels. Each output depends on the input channels of its group only.
    pub groups: usize,
}

impl Default for Conv2dOptions {
    /// Stride 1, no padding, no dilation, one group.
    fn default() -> Self {
        Self::square(1, 0)
    }
}

impl Conv2dOptions {
    /// Returns options with the same stride and padding on both axes, no dilation, and one group.
    pub const fn square(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 2], dilation: [1; 2], groups: 1 }
    }

    /// Returns stride and padding if they are the same on both axes, and there are neither dilation nor groups.
    #[cfg(feature = "candle")]
    pub(crate) fn as_square(self) -> Option<(usize, usize)> {
        let (stride, padding) = (self.stride[0], self.padding[0]);
        (self == Self::square(stride, padding)).then_some((stride, padding))
    }
}

/// Options of [`Tensor::conv1d`](crate::Tensor::conv1d).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1dOptions {
    /// Distance between neighboring windows.
    pub stride: usize,
    /// Number of zeros on each side.
    pub padding: usize,
    /// Distance between neighboring values of a window.
    pub dilation: usize,
    /// Number of groups of channels. Each output depends on the input channels of its group only.
    pub groups: usize,
}

impl Default for Conv1dOptions {
    /// Stride 1, no padding, no dilation, one group.
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

impl From<Conv1dOptions> for Conv2dOptions {
    /// Returns the options of the same convolution of an image of one row.
    fn from(Conv1dOptions { stride, padding, dilation, groups }: Conv1dOptions) -> Self {
        Self { stride: [1, stride], padding: [0, padding], dilation: [1, dilation], groups }
    }
}
