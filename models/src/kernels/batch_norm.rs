//! Batch normalisation of `[items, channels, plane]`, channel by channel where it lies: a channel's values are read from memory once and
//! then found in cache.

use rayon::prelude::*;

use super::{Real, norm::sum};

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
            let center = mean(x.clone(), |x| sum(x, |x| x));
            let var = mean(x.clone(), |x| sum(x, |x| (x - center) * (x - center)));
            let scale = weight[channel] / (var + F::of(eps)).sqrt();
            for (y, x) in y.into_iter().zip(x) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - center) * scale + bias[channel]);
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
                shift += sum(grad, |g| g).into();
                along += sum_of_products(x, grad, |x| x - center).into();
            }
            let (shift, along) = (F::of(shift), F::of(along) * inverse);
            let scale = weight[channel] * inverse;
            let (mean_shift, slope) = (shift / n, along / n * inverse);
            for (out, (x, grad)) in grad_x.into_iter().zip(x.zip(grad)) {
                for ((out, &x), &g) in out.iter_mut().zip(x).zip(grad) {
                    *out = (g - mean_shift - (x - center) * slope) * scale;
                }
            }
            (along, shift)
        })
        .unzip();
    [grad_x, grad_weight, grad_bias]
}

/// `Σ f(x)·y` in eight lanes.
#[inline(always)]
fn sum_of_products<F: Real>(x: &[F], y: &[F], f: impl Fn(F) -> F) -> F {
    let mut lanes = [F::of(0.0); 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: F = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| f(x) * y).sum();
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x) * y;
        }
    }
    lanes.into_iter().sum::<F>() + rest
}

/// `x·scale + shift`, each with a number for each channel.
pub(crate) fn scale_shift<F: Real>(x: &[F], plane: usize, scale: &[F], shift: &[F]) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len()];
    y.par_chunks_mut(plane).zip(x.par_chunks(plane)).enumerate().for_each(|(i, (y, x))| {
        let (scale, shift) = (scale[i % scale.len()], shift[i % shift.len()]);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * scale + shift);
    });
    y
}

/// Sum of each channel.
pub(crate) fn sum_channels<F: Real>(x: &[F], channels: usize, plane: usize) -> Vec<F> {
    let total =
        |channel| F::of(planes(x, channel, channels, plane).map(|x| -> f64 { sum(x, |x| x).into() }).sum());
    (0..channels).into_par_iter().map(total).collect()
}
