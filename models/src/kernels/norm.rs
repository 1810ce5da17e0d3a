//! Layer and RMS normalization over rows.

use super::{
    ROWS_PER_TASK, Real,
    memory::{build_in_chunks, build_in_chunks_with},
    simd::vectorized,
    sum_partials,
};

/// The kind of normalization: the value that is subtracted from a row before the division by its root mean square.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum NormKind {
    /// The mean: layer normalization.
    Layer,
    /// Nothing: RMS normalization.
    Rms,
}

/// Returns the value that is subtracted from a row, and the inverse root mean square of the difference.
#[inline(always)]
fn statistics<F: Real>(kind: NormKind, row: &[F], eps: F) -> (F, F) {
    let n = F::from_f64(row.len() as f64);
    let mean = if kind == NormKind::Layer { sum(row, |x| x) / n } else { F::from_f64(0.0) };
    let var = sum(row, |x| (x - mean) * (x - mean)) / n;
    (mean, F::from_f64(1.0) / (var + eps).sqrt())
}

/// Computes `Σ f(x)` in eight lanes, which the compiler vectorizes; the order of additions is fixed.
#[inline(always)]
pub(crate) fn sum<F: Real>(row: &[F], f: impl Fn(F) -> F) -> F {
    let mut lanes = [F::from_f64(0.0); 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&x| f(x))).sum()
}

/// Computes `Σ f(x)·y` in eight lanes.
#[inline(always)]
pub(crate) fn sum_of_products<F: Real>(x: &[F], y: &[F], f: impl Fn(F) -> F) -> F {
    let mut lanes = [F::from_f64(0.0); 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: F = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| f(x) * y).sum();
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x) * y;
        }
    }
    lanes.into_iter().sum::<F>() + rest
}

vectorized! {
    fn rows<F: Real>(kind: NormKind, x: &[F], affine: [Option<&[F]>; 2], eps: F, y: &mut [F], width: usize) {
        let [weight, bias] = affine;
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = statistics(kind, x, eps);
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
    }
}

/// Normalizes each row of `width` values, then multiplies by `weight` and adds `bias`, if there are any.
pub(crate) fn forward<F: Real>(
    kind: NormKind,
    x: &[F],
    width: usize,
    weight: Option<&[F]>,
    bias: Option<&[F]>,
    eps: f64,
) -> Vec<F> {
    build_in_chunks(x.len(), ROWS_PER_TASK * width, |at, y| {
        rows(kind, &x[at..], [weight, bias], F::from_f64(eps), y, width)
    })
}

/// The gradients of weight and bias, if there is a weight.
type ParamGradients<F> = Option<(Vec<F>, Vec<F>)>;

vectorized! {
    /// Computes the gradients of some rows. If there is a weight, adds its gradients to the first half of `params`, and those of the bias
    /// to the second.
    fn rows_backward<F: Real>(
        kind: NormKind,
        x_and_grad: [&[F]; 2],
        weight: Option<&[F]>,
        eps: F,
        grad_x: &mut [F],
        params: &mut [F],
        width: usize,
    ) {
        let [x, grad] = x_and_grad;
        let n = F::from_f64(width as f64);
        let (mut normal, mut scaled) = (vec![F::from_f64(0.0); width], vec![F::from_f64(0.0); width]);
        let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
        for (grad_x, (x, grad)) in rows {
            let (mean, inverse) = statistics(kind, x, eps);
            for (normal, &x) in normal.iter_mut().zip(x) {
                *normal = (x - mean) * inverse;
            }
            scaled.copy_from_slice(grad);
            if let Some(weight) = weight {
                let (grad_weight, grad_bias) = params.split_at_mut(width);
                let sums = grad_weight.iter_mut().zip(grad_bias);
                let values = scaled.iter_mut().zip(grad).zip(normal.iter().zip(weight));
                for (((scaled, &grad), (&normal, &weight)), (grad_weight, grad_bias)) in values.zip(sums) {
                    *grad_weight += grad * normal;
                    *grad_bias += grad;
                    *scaled = grad * weight;
                }
            }
            let mean_grad = if kind == NormKind::Layer { sum(&scaled, |g| g) / n } else { F::from_f64(0.0) };
            let projection = sum_of_products(&scaled, &normal, |g| g) / n;
            for ((out, &g), &h) in grad_x.iter_mut().zip(&scaled).zip(&normal) {
                *out = (g - mean_grad - h * projection) * inverse;
            }
        }
    }
}

/// Returns the gradients of `x` and of the parameters.
pub(crate) fn backward<F: Real>(
    kind: NormKind,
    x: &[F],
    grad: &[F],
    width: usize,
    weight: Option<&[F]>,
    eps: f64,
) -> (Vec<F>, ParamGradients<F>) {
    let partial_len = if weight.is_some() { 2 * width } else { 0 };
    let mut partials = vec![vec![F::from_f64(0.0); partial_len]; x.len().div_ceil(ROWS_PER_TASK * width)];
    let grad_x =
        build_in_chunks_with(x.len(), ROWS_PER_TASK * width, &mut partials, 1, |at, grad_x, partial| {
            rows_backward(
                kind,
                [&x[at..], &grad[at..]],
                weight,
                F::from_f64(eps),
                grad_x,
                &mut partial[0],
                width,
            );
        });
    let params = weight.map(|_| {
        let mut both = sum_partials(&partials);
        let bias = both.split_off(width);
        (both, bias)
    });
    (grad_x, params)
}
