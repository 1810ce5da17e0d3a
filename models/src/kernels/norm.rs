//! Layer and RMS normalisation over rows.

use super::{
    ROWS, Real,
    memory::{in_pieces, in_pieces_with},
    simd::vectorised,
    sum_partials,
};

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

/// `Σ f(x)·y` in eight lanes.
#[inline(always)]
pub(crate) fn sum_of_products<F: Real>(x: &[F], y: &[F], f: impl Fn(F) -> F) -> F {
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

vectorised! {
    fn rows<F: Real>(kind: Kind, x: &[F], affine: [Option<&[F]>; 2], eps: F, y: &mut [F], width: usize) {
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

/// Normalises each row of `width` values, then scales and shifts by `weight` and `bias` where given.
pub(crate) fn forward<F: Real>(
    kind: Kind,
    x: &[F],
    width: usize,
    weight: Option<&[F]>,
    bias: Option<&[F]>,
    eps: f64,
) -> Vec<F> {
    in_pieces(x.len(), ROWS * width, |at, y| rows(kind, &x[at..], [weight, bias], F::of(eps), y, width))
}

/// Gradients of weight and bias, where there is a weight.
type ParamGradients<F> = Option<(Vec<F>, Vec<F>)>;

vectorised! {
    /// `params` becomes the gradients of weight, then of bias, of these rows, where there is a weight.
    fn rows_backward<F: Real>(
        kind: Kind,
        x: &[F],
        grad: &[F],
        weight: Option<&[F]>,
        eps: F,
        grad_x: &mut [F],
        params: &mut [F],
        width: usize,
    ) {
        let n = F::of(width as f64);
        let (mut normal, mut scaled) = (vec![F::of(0.0); width], vec![F::of(0.0); width]);
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
            let mean_grad = if kind == Kind::Layer { sum(&scaled, |g| g) / n } else { F::of(0.0) };
            let along = sum_of_products(&scaled, &normal, |g| g) / n;
            for ((out, &g), &h) in grad_x.iter_mut().zip(&scaled).zip(&normal) {
                *out = (g - mean_grad - h * along) * inverse;
            }
        }
    }
}

/// Gradients of `x` and of the parameters.
pub(crate) fn backward<F: Real>(
    kind: Kind,
    x: &[F],
    grad: &[F],
    width: usize,
    weight: Option<&[F]>,
    eps: f64,
) -> (Vec<F>, ParamGradients<F>) {
    let each = if weight.is_some() { 2 * width } else { 0 };
    let mut partials = vec![vec![F::of(0.0); each]; x.len().div_ceil(ROWS * width)];
    let grad_x = in_pieces_with(x.len(), ROWS * width, &mut partials, 1, |at, grad_x, partial| {
        rows_backward(kind, &x[at..], &grad[at..], weight, F::of(eps), grad_x, &mut partial[0], width);
    });
    let params = weight.map(|_| {
        let mut both = sum_partials(&partials);
        let bias = both.split_off(width);
        (both, bias)
    });
    (grad_x, params)
}
