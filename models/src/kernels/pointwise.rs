//! Kernels that look at one value at a time, or at one value and its item's modulation.

use rayon::prelude::*;

use super::{ROWS, Real, VALUES, norm::sum, sigmoid, sum_partials};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Gelu,
    Silu,
    Relu,
}

#[inline(always)]
fn phi<F: Real>(x: F) -> F {
    F::of(0.5) * (F::of(1.0) + (x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

impl Activation {
    #[inline(always)]
    fn value<F: Real>(self, x: F) -> F {
        match self {
            Activation::Gelu => x * phi(x),
            Activation::Silu => x * sigmoid(x),
            Activation::Relu if x > F::of(0.0) => x,
            Activation::Relu => F::of(0.0),
        }
    }

    #[inline(always)]
    fn slope<F: Real>(self, x: F) -> F {
        match self {
            Activation::Gelu => {
                let density = (-(x * x) * F::of(0.5)).exp() * F::of(0.398_942_280_401_432_7);
                phi(x) + x * density
            }
            Activation::Silu => {
                let s = sigmoid(x);
                s * (F::of(1.0) + x * (F::of(1.0) - s))
            }
            Activation::Relu if x > F::of(0.0) => F::of(1.0),
            Activation::Relu => F::of(0.0),
        }
    }
}

/// Runs `f` on each value, in parallel over fixed pieces.
fn map<F: Real>(x: &[F], f: impl Fn(F) -> F + Sync) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len()];
    y.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
    });
    y
}

/// Runs `f` on each pair of values.
pub(crate) fn zip<F: Real>(a: &[F], b: &[F], f: impl Fn(F, F) -> F + Sync) -> Vec<F> {
    let mut y = vec![F::of(0.0); a.len()];
    y.par_chunks_mut(VALUES).zip(a.par_chunks(VALUES).zip(b.par_chunks(VALUES))).for_each(|(y, (a, b))| {
        y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = f(a, b));
    });
    y
}

/// Adds `b` to `a` in place.
pub(crate) fn add_assign<F: Real>(a: &mut [F], b: &[F]) {
    a.par_chunks_mut(VALUES).zip(b.par_chunks(VALUES)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    });
}

pub(crate) fn activation<F: Real>(kind: Activation, x: &[F]) -> Vec<F> {
    // One loop a kind, so that each becomes vector code.
    match kind {
        Activation::Gelu => map(x, |x| Activation::Gelu.value(x)),
        Activation::Silu => map(x, |x| Activation::Silu.value(x)),
        Activation::Relu => map(x, |x| Activation::Relu.value(x)),
    }
}

pub(crate) fn activation_backward<F: Real>(kind: Activation, x: &[F], grad: &[F]) -> Vec<F> {
    match kind {
        Activation::Gelu => zip(x, grad, |x, g| g * Activation::Gelu.slope(x)),
        Activation::Silu => zip(x, grad, |x, g| g * Activation::Silu.slope(x)),
        Activation::Relu => zip(x, grad, |x, g| g * Activation::Relu.slope(x)),
    }
}

/// `silu(a)·b` for rows `[a | b]` of twice `half` values.
pub(crate) fn swiglu<F: Real>(x: &[F], half: usize) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len() / 2];
    y.par_chunks_mut(ROWS * half).zip(x.par_chunks(2 * ROWS * half)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(half).zip(x.chunks_exact(2 * half)) {
            let (a, b) = x.split_at(half);
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = a * sigmoid(a) * b);
        }
    });
    y
}

pub(crate) fn swiglu_backward<F: Real>(x: &[F], grad: &[F], half: usize) -> Vec<F> {
    let mut out = vec![F::of(0.0); x.len()];
    out.par_chunks_mut(2 * ROWS * half)
        .zip(x.par_chunks(2 * ROWS * half).zip(grad.par_chunks(ROWS * half)))
        .for_each(|(out, (x, grad))| {
            let rows =
                out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half).zip(grad.chunks_exact(half)));
            for (out, (x, grad)) in rows {
                let (a, b) = x.split_at(half);
                let (grad_a, grad_b) = out.split_at_mut(half);
                for i in 0..half {
                    let s = sigmoid(a[i]);
                    grad_a[i] = grad[i] * b[i] * s * (F::of(1.0) + a[i] * (F::of(1.0) - s));
                    grad_b[i] = grad[i] * a[i] * s;
                }
            }
        });
    out
}

/// Softmax of `row` in place, of `scale·row`.
#[inline(always)]
pub(crate) fn softmax_row<F: Real>(row: &mut [F], scale: F) {
    let most = row.iter().fold(row[0], |m, &x| if x > m { x } else { m });
    row.iter_mut().for_each(|x| *x = ((*x - most) * scale).exp());
    let inverse = F::of(1.0) / sum(row, |x| x);
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// `scale · y·(g − Σ y·g)` into `grad`, where `y` is a row of softmax's result.
#[inline(always)]
pub(crate) fn softmax_row_backward<F: Real>(y: &[F], grad: &mut [F], scale: F) {
    let mut lanes = [F::of(0.0); 8];
    for (i, (&y, &g)) in y.iter().zip(grad.iter()).enumerate() {
        lanes[i % 8] += y * g;
    }
    let along: F = lanes.into_iter().sum();
    grad.iter_mut().zip(y).for_each(|(g, &y)| *g = y * (*g - along) * scale);
}

pub(crate) fn softmax<F: Real>(x: &[F], width: usize) -> Vec<F> {
    let mut y = x.to_vec();
    y.par_chunks_mut(ROWS * width)
        .for_each(|y| y.chunks_exact_mut(width).for_each(|row| softmax_row(row, F::of(1.0))));
    y
}

pub(crate) fn softmax_backward<F: Real>(y: &[F], grad: &[F], width: usize) -> Vec<F> {
    let mut out = grad.to_vec();
    out.par_chunks_mut(ROWS * width).zip(y.par_chunks(ROWS * width)).for_each(|(out, y)| {
        let rows = out.chunks_exact_mut(width).zip(y.chunks_exact(width));
        rows.for_each(|(grad, y)| softmax_row_backward(y, grad, F::of(1.0)));
    });
    out
}

/// `x·(1 + scale) + shift`: `x` `[items, tokens, width]`, `scale` and `shift` `[items, width]`.
pub(crate) fn scale_shift<F: Real>(x: &[F], scale: &[F], shift: &[F], tokens: usize, width: usize) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len()];
    y.par_chunks_mut(tokens * width)
        .zip(x.par_chunks(tokens * width).zip(scale.par_chunks(width).zip(shift.par_chunks(width))))
        .for_each(|(y, (x, (scale, shift)))| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                for i in 0..width {
                    y[i] = x[i] * (F::of(1.0) + scale[i]) + shift[i];
                }
            }
        });
    y
}

/// Gradients of `x`, `scale` and `shift`.
pub(crate) fn scale_shift_backward<F: Real>(
    x: &[F],
    scale: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 3] {
    let mut grad_x = vec![F::of(0.0); x.len()];
    let (mut grad_scale, mut grad_shift) = (vec![F::of(0.0); scale.len()], vec![F::of(0.0); scale.len()]);
    grad_x
        .par_chunks_mut(tokens * width)
        .zip(grad_scale.par_chunks_mut(width).zip(grad_shift.par_chunks_mut(width)))
        .zip(x.par_chunks(tokens * width).zip(grad.par_chunks(tokens * width)).zip(scale.par_chunks(width)))
        .for_each(|((grad_x, (grad_scale, grad_shift)), ((x, grad), scale))| {
            let rows =
                grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
            for (grad_x, (x, grad)) in rows {
                for i in 0..width {
                    grad_x[i] = grad[i] * (F::of(1.0) + scale[i]);
                    grad_scale[i] += grad[i] * x[i];
                    grad_shift[i] += grad[i];
                }
            }
        });
    [grad_x, grad_scale, grad_shift]
}

/// `x + gate·branch`: `x` and `branch` `[items, tokens, width]`, `gate` `[items, width]`.
pub(crate) fn gated_residual<F: Real>(
    x: &[F],
    branch: &[F],
    gate: &[F],
    tokens: usize,
    width: usize,
) -> Vec<F> {
    let mut y = vec![F::of(0.0); x.len()];
    y.par_chunks_mut(tokens * width)
        .zip(x.par_chunks(tokens * width).zip(branch.par_chunks(tokens * width)).zip(gate.par_chunks(width)))
        .for_each(|(y, ((x, branch), gate))| {
            let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(branch.chunks_exact(width)));
            for (y, (x, branch)) in rows {
                for i in 0..width {
                    y[i] = x[i] + gate[i] * branch[i];
                }
            }
        });
    y
}

/// Gradients of `branch` and `gate`; that of `x` is `grad` itself.
pub(crate) fn gated_residual_backward<F: Real>(
    branch: &[F],
    gate: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 2] {
    let (mut grad_branch, mut grad_gate) = (vec![F::of(0.0); branch.len()], vec![F::of(0.0); gate.len()]);
    grad_branch
        .par_chunks_mut(tokens * width)
        .zip(grad_gate.par_chunks_mut(width))
        .zip(
            branch
                .par_chunks(tokens * width)
                .zip(grad.par_chunks(tokens * width))
                .zip(gate.par_chunks(width)),
        )
        .for_each(|((grad_branch, grad_gate), ((branch, grad), gate))| {
            let rows = grad_branch
                .chunks_exact_mut(width)
                .zip(branch.chunks_exact(width).zip(grad.chunks_exact(width)));
            for (grad_branch, (branch, grad)) in rows {
                for i in 0..width {
                    grad_branch[i] = grad[i] * gate[i];
                    grad_gate[i] += grad[i] * branch[i];
                }
            }
        });
    [grad_branch, grad_gate]
}

/// Sum over rows of `width` values.
pub(crate) fn sum_rows<F: Real>(x: &[F], width: usize) -> Vec<F> {
    let partials: Vec<Vec<F>> = x
        .par_chunks(ROWS * width)
        .map(|x| {
            let mut total = vec![F::of(0.0); width];
            for row in x.chunks_exact(width) {
                total.iter_mut().zip(row).for_each(|(t, &x)| *t += x);
            }
            total
        })
        .collect();
    sum_partials(&partials)
}
