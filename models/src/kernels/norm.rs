//! Layer and RMS normalisation over rows.

use rayon::prelude::*;

use super::{ROWS, Real, sum_partials};

/// What to take off a row before it is divided by its length.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// The mean: layer normalisation.
    Layer,
    /// Nothing: RMS normalisation.
    Rms,
}

/// Mean and inverse length of a row.
#[inline(always)]
fn statistics<F: Real>(kind: Kind, row: &[F], eps: F) -> (F, F) {
    let n = F::of(row.len() as f64);
    let mean = if kind == Kind::Layer { sum(row, |x| x) / n } else { F::of(0.0) };
    let var = sum(row, |x| (x - mean) * (x - mean)) / n;
    (mean, F::of(1.0) / (var + eps).sqrt())
}

/// A sum in eight lanes, which becomes vector code; its order is fixed.
#[inline(always)]
pub(crate) fn sum<F: Real>(row: &[F], f: impl Fn(F) -> F) -> F {
    let mut lanes = [F::of(0.0); 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&x| f(x))).sum()
}

/// Normalises each row of `width` values, then scales and shifts by `weight` and `bias` where given.
pub(crate) fn forward<F: Real>(
    kind: Kind,
    x: &[F],
    width: usize,
    weight: Option<&[F]>,
    bias: Option<&[F]>,
    eps: f64,
) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len()];
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = statistics(kind, x, F::of(eps));
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - mean) * inverse;
            }
            if let Some(weight) = weight {
                y.iter_mut().zip(weight).for_each(|(y, &w)| *y *= w);
            }
            if let Some(bias) = bias {
                y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
            }
        }
    });
    y
}

/// Gradients of weight and bias, where there is a weight.
type ParamGradients<F> = Option<(Vec<F>, Vec<F>)>;

/// Gradients of `x` and of the parameters.
pub(crate) fn backward<F: Real>(
    kind: Kind,
    x: &[F],
    grad: &[F],
    width: usize,
    weight: Option<&[F]>,
    eps: f64,
) -> (Vec<F>, ParamGradients<F>) {
    let n = F::of(width as f64);
    let mut grad_x = vec![F::of(0.0); x.len()];
    let partials: Vec<Vec<F>> = grad_x
        .par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width).zip(grad.par_chunks(ROWS * width)))
        .map(|(grad_x, (x, grad))| {
            // Gradients of weight, then of bias, of these rows.
            let mut partial = vec![F::of(0.0); if weight.is_some() { 2 * width } else { 0 }];
            let (mut normal, mut scaled) = (vec![F::of(0.0); width], vec![F::of(0.0); width]);
            let rows =
                grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
            for (grad_x, (x, grad)) in rows {
                let (mean, inverse) = statistics(kind, x, F::of(eps));
                for (normal, &x) in normal.iter_mut().zip(x) {
                    *normal = (x - mean) * inverse;
                }
                scaled.copy_from_slice(grad);
                if let Some(weight) = weight {
                    let (grad_weight, grad_bias) = partial.split_at_mut(width);
                    for i in 0..width {
                        grad_weight[i] += grad[i] * normal[i];
                        grad_bias[i] += grad[i];
                        scaled[i] = grad[i] * weight[i];
                    }
                }
                let mean_grad = if kind == Kind::Layer { sum(&scaled, |g| g) / n } else { F::of(0.0) };
                let mut lanes = [F::of(0.0); 8];
                for (i, (&g, &h)) in scaled.iter().zip(normal.iter()).enumerate() {
                    lanes[i % 8] += g * h;
                }
                let along = lanes.into_iter().sum::<F>() / n;
                for ((out, &g), &h) in grad_x.iter_mut().zip(&scaled).zip(&normal) {
                    *out = (g - mean_grad - h * along) * inverse;
                }
            }
            partial
        })
        .collect();
    let params = weight.map(|_| {
        let mut both = sum_partials(&partials);
        let bias = both.split_off(width);
        (both, bias)
    });
    (grad_x, params)
}
