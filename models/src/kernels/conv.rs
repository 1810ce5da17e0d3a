//! 2-D convolution, by the algorithm that suits its sizes.

pub(crate) use super::im2col::Conv;
use super::{
    grouped, im2col,
    product::{Factor, PlainFactor},
    winograd,
};

/// Computes `weight ⋆ x + bias`: `x` is `[items, channels, height, width]`, `weight` is
/// `[out, channels / groups, kernel height, kernel width]`.
///
/// With `training`, it uses Winograd's minimal filtering where that is faster. Its rounding errors are about ten times larger, and it
/// multiplies the numbers unrounded, whatever `P` is.
pub(crate) fn forward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    bias: Option<&[P::Number]>,
    training: bool,
) -> Vec<P::Number>
where
    P::Number: PlainFactor,
{
    if conv.groups > 1 {
        return grouped::forward::<P>(conv, x, weight, bias);
    }
    if training && winograd::is_worthwhile(conv, x.len() / conv.input_len()) {
        return winograd::forward(conv, x, weight, bias);
    }
    im2col::forward::<P>(conv, x, weight, bias)
}

/// Returns the gradients of `x` (if needed) and `weight`; that of the bias is [`sum_channels`](super::batch_norm::sum_channels).
pub(crate) fn backward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    grad: &[P::Number],
    need_x: bool,
) -> (Option<Vec<P::Number>>, Vec<P::Number>)
where
    P::Number: PlainFactor,
{
    if conv.groups > 1 {
        return grouped::backward::<P>(conv, x, weight, grad, need_x);
    }
    if winograd::is_worthwhile(conv, x.len() / conv.input_len()) {
        return winograd::backward(conv, x, weight, grad, need_x);
    }
    im2col::backward::<P>(conv, x, weight, grad, need_x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conv2dOptions, kernels::window::Window, random::noise};

    /// The sizes have more inner indices than one partial sum, a bias, and planes so small that a tile holds several items.
    #[test]
    fn the_result_of_an_item_does_not_depend_on_the_batch() {
        let sizes = [(32, 4), (40, 7), (30, 16), (32, 20)];
        // Fewer items and sizes under Miri, which is slow.
        let (sizes, items) = if cfg!(miri) { (&[(5, 4)][..], 2) } else { (&sizes[..], 7) };
        for &(channels, side) in sizes {
            let window = Window::new([side; 2], [3; 2], Conv2dOptions::square(1, 1)).unwrap();
            let conv = Conv { channels, out: 5, groups: 1, window };
            let (weight, bias) = (noise(1, 0, conv.out * channels * 9), noise(1, 1, conv.out));
            let x = noise(1, 2, items * conv.input_len());
            let together = forward::<f32>(conv, &x, &weight, Some(&bias), false);
            for (x, y) in x.chunks_exact(conv.input_len()).zip(together.chunks_exact(conv.output_len())) {
                assert!(forward::<f32>(conv, x, &weight, Some(&bias), false) == y, "{conv:?}");
            }
        }
    }
}
