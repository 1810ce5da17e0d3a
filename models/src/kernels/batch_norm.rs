//! Batch normalization of `[items, channels, plane]`, in place and channel by channel, so that a channel's values are read from memory once
//! and then stay in cache.

use rayon::prelude::*;

use super::{
    Real,
    memory::build_in_chunks,
    norm::{sum, sum_of_products},
    simd::vectorized,
};

/// Splits `x` into planes and groups them by channel.
pub(super) fn by_channel<F>(x: &mut [F], channels: usize, plane: usize) -> Vec<Vec<&mut [F]>> {
    let mut groups: Vec<Vec<&mut [F]>> = (0..channels).map(|_| Vec::new()).collect();
    for (i, plane) in x.chunks_exact_mut(plane).enumerate() {
        groups[i % channels].push(plane);
    }
    groups
}

/// Returns the planes of one channel.
pub(super) fn planes<F>(
    x: &[F],
    channel: usize,
    channels: usize,
    plane: usize,
) -> impl Iterator<Item = &[F]> + Clone {
    x.chunks_exact(plane).skip(channel).step_by(channels)
}

/// Returns the mean over `planes`, where `f` returns the sum over a plane.
fn mean<'a, F: Real>(planes: impl Iterator<Item = &'a [F]>, f: impl Fn(&'a [F]) -> F) -> F {
    let (mut total, mut n) = (0f64, 0);
    for plane in planes {
        total += f(plane).into();
        n += plane.len();
    }
    F::from_f64(total / n as f64)
}

vectorized! {
    fn sum_plane<F: Real>(x: &[F]) -> F {
        sum(x, |x| x)
    }
}

vectorized! {
    fn centered_sum_of_squares<F: Real>(x: &[F], center: F) -> F {
        sum(x, |x| (x - center) * (x - center))
    }
}

vectorized! {
    fn centered_dot<F: Real>(x: &[F], center: F, y: &[F]) -> F {
        sum_of_products(x, y, |x| x - center)
    }
}

vectorized! {
    fn scale_centered<F: Real>(x: &[F], center: F, scale: F, shift: F, y: &mut [F]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - center) * scale + shift);
    }
}

vectorized! {
    fn plane_backward<F: Real>(x: &[F], center: F, grad: &[F], mean: F, slope: F, scale: F, out: &mut [F]) {
        for ((out, &x), &g) in out.iter_mut().zip(x).zip(grad) {
            *out = (g - mean - (x - center) * slope) * scale;
        }
    }
}

/// Returns the normalized values, and the mean and biased variance of each channel.
pub(crate) fn forward<F: Real>(
    x: &[F],
    plane: usize,
    weight: &[F],
    bias: &[F],
    eps: f64,
) -> (Vec<F>, Vec<F>, Vec<F>) {
    let mut y = vec![F::from_f64(0.0); x.len()];
    let (means, vars) = by_channel(&mut y, weight.len(), plane)
        .into_par_iter()
        .enumerate()
        .map(|(channel, y)| {
            let x = planes(x, channel, weight.len(), plane);
            let center = mean(x.clone(), |x| sum_plane(x));
            let var = mean(x.clone(), |x| centered_sum_of_squares(x, center));
            let scale = weight[channel] / (var + F::from_f64(eps)).sqrt();
            for (y, x) in y.into_iter().zip(x) {
                scale_centered(x, center, scale, bias[channel], y);
            }
            (center, var)
        })
        .unzip();
    (y, means, vars)
}

/// Returns the gradients of `x`, weight and bias. `means` and `vars` are those that [`forward`] returned.
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
    let mut grad_x = vec![F::from_f64(0.0); x.len()];
    let (grad_weight, grad_bias) = by_channel(&mut grad_x, channels, plane)
        .into_par_iter()
        .enumerate()
        .map(|(channel, grad_x)| {
            let n = F::from_f64((grad_x.len() * plane) as f64);
            let (center, inverse) =
                (means[channel], F::from_f64(1.0) / (vars[channel] + F::from_f64(eps)).sqrt());
            let x = planes(x, channel, channels, plane);
            let grad = planes(grad, channel, channels, plane);
            let (mut shift, mut dot) = (0f64, 0f64);
            for (x, grad) in x.clone().zip(grad.clone()) {
                shift += sum_plane(grad).into();
                dot += centered_dot(x, center, grad).into();
            }
            let (shift, dot) = (F::from_f64(shift), F::from_f64(dot) * inverse);
            let scale = weight[channel] * inverse;
            let (mean_shift, slope) = (shift / n, dot / n * inverse);
            for (out, (x, grad)) in grad_x.into_iter().zip(x.zip(grad)) {
                plane_backward(x, center, grad, mean_shift, slope, scale, out);
            }
            (dot, shift)
        })
        .unzip();
    [grad_x, grad_weight, grad_bias]
}

/// Computes `x·scale + shift`, with one scale and one shift for each channel.
pub(crate) fn scale_shift<F: Real>(x: &[F], plane: usize, scale: &[F], shift: &[F]) -> Vec<F> {
    build_in_chunks(x.len(), plane, |at, y| {
        let channel = at / plane % scale.len();
        scale_centered(&x[at..], F::from_f64(0.0), scale[channel], shift[channel], y);
    })
}

/// Returns the sum of each channel.
pub(crate) fn sum_channels<F: Real>(x: &[F], channels: usize, plane: usize) -> Vec<F> {
    let total = |channel| {
        F::from_f64(planes(x, channel, channels, plane).map(|x| -> f64 { sum_plane(x).into() }).sum())
    };
    (0..channels).into_par_iter().map(total).collect()
}
