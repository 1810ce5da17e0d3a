//! Batch normalisation of `[items, channels, plane]`, channel by channel where it lies: a channel's values are read from memory once and
//! then found in cache.

use rayon::prelude::*;

use super::{
    Real,
    memory::in_pieces,
    norm::{sum, sum_of_products},
    simd::vectorised,
};

/// Cuts `x` into planes and sorts them by channel.
pub(super) fn by_channel<F>(x: &mut [F], channels: usize, plane: usize) -> Vec<Vec<&mut [F]>> {
    let mut sorted: Vec<Vec<&mut [F]>> = (0..channels).map(|_| Vec::new()).collect();
    for (i, plane) in x.chunks_exact_mut(plane).enumerate() {
        sorted[i % channels].push(plane);
    }
    sorted
}

/// The planes of one channel.
pub(super) fn planes<F>(
    x: &[F],
    channel: usize,
    channels: usize,
    plane: usize,
) -> impl Iterator<Item = &[F]> + Clone {
    x.chunks_exact(plane).skip(channel).step_by(channels)
}

/// Mean of what `f` sums of each plane.
fn mean<'a, F: Real>(planes: impl Iterator<Item = &'a [F]>, f: impl Fn(&'a [F]) -> F) -> F {
    let (mut total, mut n) = (0f64, 0);
    for plane in planes {
        total += f(plane).into();
        n += plane.len();
    }
    F::of(total / n as f64)
}

vectorised! {
    fn sum_of<F: Real>(x: &[F]) -> F {
        sum(x, |x| x)
    }
}

vectorised! {
    fn sum_of_squares<F: Real>(x: &[F], center: F) -> F {
        sum(x, |x| (x - center) * (x - center))
    }
}

vectorised! {
    fn sum_around<F: Real>(x: &[F], center: F, y: &[F]) -> F {
        sum_of_products(x, y, |x| x - center)
    }
}

vectorised! {
    fn scale_around<F: Real>(x: &[F], center: F, scale: F, shift: F, y: &mut [F]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - center) * scale + shift);
    }
}

vectorised! {
    fn plane_backward<F: Real>(x: &[F], center: F, grad: &[F], mean: F, slope: F, scale: F, out: &mut [F]) {
        for ((out, &x), &g) in out.iter_mut().zip(x).zip(grad) {
            *out = (g - mean - (x - center) * slope) * scale;
        }
    }
}

/// The normalised values and each channel's mean and (biased) variance.
pub(crate) fn forward<F: Real>(
    x: &[F],
    plane: usize,
    weight: &[F],
    bias: &[F],
    eps: f64,
) -> (Vec<F>, Vec<F>, Vec<F>) {
    let mut y = vec![F::of(0.0); x.len()];
    let (means, vars) = by_channel(&mut y, weight.len(), plane)
        .into_par_iter()
        .enumerate()
        .map(|(channel, y)| {
            let x = planes(x, channel, weight.len(), plane);
            let center = mean(x.clone(), |x| sum_of(x));
            let var = mean(x.clone(), |x| sum_of_squares(x, center));
            let scale = weight[channel] / (var + F::of(eps)).sqrt();
            for (y, x) in y.into_iter().zip(x) {
                scale_around(x, center, scale, bias[channel], y);
            }
            (center, var)
        })
        .unzip();
    (y, means, vars)
}

/// Gradients of `x`, weight and bias, from what [`forward`] was given and returned.
pub(crate) fn backward<F: Real>(
    x: &[F],
    plane: usize,
    weight: &[F],
    means: &[F],
    vars: &[F],
    eps: f64,
    grad: &[F],
) -> [Vec<F>; 3] {
    let channels = weight.len();
    let mut grad_x = vec![F::of(0.0); x.len()];
    let (grad_weight, grad_bias) = by_channel(&mut grad_x, channels, plane)
        .into_par_iter()
        .enumerate()
        .map(|(channel, grad_x)| {
            let n = F::of((grad_x.len() * plane) as f64);
            let (center, inverse) = (means[channel], F::of(1.0) / (vars[channel] + F::of(eps)).sqrt());
            let x = planes(x, channel, channels, plane);
            let grad = planes(grad, channel, channels, plane);
            let (mut shift, mut along) = (0f64, 0f64);
            for (x, grad) in x.clone().zip(grad.clone()) {
                shift += sum_of(grad).into();
                along += sum_around(x, center, grad).into();
            }
            let (shift, along) = (F::of(shift), F::of(along) * inverse);
            let scale = weight[channel] * inverse;
            let (mean_shift, slope) = (shift / n, along / n * inverse);
            for (out, (x, grad)) in grad_x.into_iter().zip(x.zip(grad)) {
                plane_backward(x, center, grad, mean_shift, slope, scale, out);
            }
            (along, shift)
        })
        .unzip();
    [grad_x, grad_weight, grad_bias]
}

/// `x·scale + shift`, each with a number for each channel.
pub(crate) fn scale_shift<F: Real>(x: &[F], plane: usize, scale: &[F], shift: &[F]) -> Vec<F> {
    in_pieces(x.len(), plane, |at, y| {
        let channel = at / plane % scale.len();
        scale_around(&x[at..], F::of(0.0), scale[channel], shift[channel], y);
    })
}

/// Sum of each channel.
pub(crate) fn sum_channels<F: Real>(x: &[F], channels: usize, plane: usize) -> Vec<F> {
    let total =
        |channel| F::of(planes(x, channel, channels, plane).map(|x| -> f64 { sum_of(x).into() }).sum());
    (0..channels).into_par_iter().map(total).collect()
}
