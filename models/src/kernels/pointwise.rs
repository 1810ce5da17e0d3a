//! Elementwise kernels, softmax, and the modulation of items by vectors.

use rayon::prelude::*;

use super::{
    ROWS_PER_TASK, Real, VALUES_PER_TASK,
    memory::{build_in_chunks, build_in_chunks_with},
    norm::sum,
    sigmoid,
    simd::vectorized,
    sum_partials,
};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Gelu,
    Silu,
    Relu,
}

#[inline(always)]
fn phi<F: Real>(x: F) -> F {
    F::from_f64(0.5) * (F::from_f64(1.0) + (x * F::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

impl Activation {
    #[inline(always)]
    fn value<F: Real>(self, x: F) -> F {
        match self {
            Activation::Gelu => x * phi(x),
            Activation::Silu => x * sigmoid(x),
            // NaN stays NaN.
            Activation::Relu if x <= F::from_f64(0.0) => F::from_f64(0.0),
            Activation::Relu => x,
        }
    }

    #[inline(always)]
    fn slope<F: Real>(self, x: F) -> F {
        match self {
            Activation::Gelu => {
                let density = (-(x * x) * F::from_f64(0.5)).exp() * F::from_f64(0.398_942_280_401_432_7);
                phi(x) + x * density
            }
            Activation::Silu => {
                let s = sigmoid(x);
                s * (F::from_f64(1.0) + x * (F::from_f64(1.0) - s))
            }
            Activation::Relu if x <= F::from_f64(0.0) => F::from_f64(0.0),
            Activation::Relu => F::from_f64(1.0),
        }
    }
}

vectorized! {
    fn add_values<F: Real>(a: &[F], b: &[F], sum: &mut [F]) {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum = a + b);
    }
}

vectorized! {
    fn multiply_values<F: Real>(a: &[F], b: &[F], product: &mut [F]) {
        product.iter_mut().zip(a.iter().zip(b)).for_each(|(product, (&a, &b))| *product = a * b);
    }
}

/// Computes `a + b`.
pub(crate) fn add<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "both have the same number of values");
    build_in_chunks(a.len(), VALUES_PER_TASK, |at, sum| add_values(&a[at..], &b[at..], sum))
}

/// Computes `a·b`, element by element.
pub(crate) fn mul<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "both have the same number of values");
    build_in_chunks(a.len(), VALUES_PER_TASK, |at, product| multiply_values(&a[at..], &b[at..], product))
}

/// Adds `b` to `a`, in place.
pub(crate) fn add_assign<F: Real>(a: &mut [F], b: &[F]) {
    a.par_chunks_mut(VALUES_PER_TASK).zip(b.par_chunks(VALUES_PER_TASK)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    });
}

vectorized! {
    fn activate<F: Real>(kind: Activation, x: &[F], y: &mut [F]) {
        let values = y.iter_mut().zip(x);
        // One loop per kind, so that the compiler vectorizes each.
        match kind {
            Activation::Gelu => values.for_each(|(y, &x)| *y = Activation::Gelu.value(x)),
            Activation::Silu => values.for_each(|(y, &x)| *y = Activation::Silu.value(x)),
            Activation::Relu => values.for_each(|(y, &x)| *y = Activation::Relu.value(x)),
        }
    }
}

pub(crate) fn activation<F: Real>(kind: Activation, x: &[F]) -> Vec<F> {
    build_in_chunks(x.len(), VALUES_PER_TASK, |at, y| activate(kind, &x[at..], y))
}

vectorized! {
    fn activate_backward<F: Real>(kind: Activation, x: &[F], grad: &[F], out: &mut [F]) {
        let values = out.iter_mut().zip(x.iter().zip(grad));
        match kind {
            Activation::Gelu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Gelu.slope(x)),
            Activation::Silu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Silu.slope(x)),
            Activation::Relu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Relu.slope(x)),
        }
    }
}

pub(crate) fn activation_backward<F: Real>(kind: Activation, x: &[F], grad: &[F]) -> Vec<F> {
    build_in_chunks(x.len(), VALUES_PER_TASK, |at, out| activate_backward(kind, &x[at..], &grad[at..], out))
}

vectorized! {
    fn swiglu_rows<F: Real>(x: &[F], half: usize, y: &mut [F]) {
        for (y, x) in y.chunks_exact_mut(half).zip(x.chunks_exact(2 * half)) {
            let (a, b) = x.split_at(half);
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = a * sigmoid(a) * b);
        }
    }
}

/// Computes `silu(a)·b` for rows `[a | b]` of twice `half` values.
pub(crate) fn swiglu<F: Real>(x: &[F], half: usize) -> Vec<F> {
    build_in_chunks(x.len() / 2, ROWS_PER_TASK * half, |at, y| swiglu_rows(&x[2 * at..], half, y))
}

vectorized! {
    fn swiglu_rows_backward<F: Real>(x: &[F], grad: &[F], half: usize, out: &mut [F]) {
        let rows = out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half).zip(grad.chunks_exact(half)));
        for (out, (x, grad)) in rows {
            let (a, b) = x.split_at(half);
            let (grad_a, grad_b) = out.split_at_mut(half);
            for i in 0..half {
                let s = sigmoid(a[i]);
                grad_a[i] = grad[i] * b[i] * s * (F::from_f64(1.0) + a[i] * (F::from_f64(1.0) - s));
                grad_b[i] = grad[i] * a[i] * s;
            }
        }
    }
}

pub(crate) fn swiglu_backward<F: Real>(x: &[F], grad: &[F], half: usize) -> Vec<F> {
    build_in_chunks(x.len(), 2 * ROWS_PER_TASK * half, |at, out| {
        swiglu_rows_backward(&x[at..], &grad[at / 2..], half, out);
    })
}

/// Replaces `row` by the softmax of `scale·row`.
#[inline(always)]
fn softmax_row<F: Real>(row: &mut [F], scale: F) {
    let max = row.iter().fold(row[0], |m, &x| if x > m { x } else { m });
    row.iter_mut().for_each(|x| *x = ((*x - max) * scale).exp());
    let inverse = F::from_f64(1.0) / sum(row, |x| x);
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// Replaces the gradient `g` of a row `y` of softmax's result by that of the input, `scale · y·(g − Σ y·g)`.
#[inline(always)]
fn softmax_row_backward<F: Real>(y: &[F], grad: &mut [F], scale: F) {
    let mut lanes = [F::from_f64(0.0); 8];
    for (i, (&y, &g)) in y.iter().zip(grad.iter()).enumerate() {
        lanes[i % 8] += y * g;
    }
    let dot: F = lanes.into_iter().sum();
    grad.iter_mut().zip(y).for_each(|(g, &y)| *g = y * (*g - dot) * scale);
}

vectorized! {
    /// Replaces each row of `width` values by the softmax of `scale` times the row.
    pub(crate) fn softmax_rows<F: Real>(rows: &mut [F], width: usize, scale: F) {
        rows.chunks_exact_mut(width).for_each(|row| softmax_row(row, scale));
    }
}

vectorized! {
    /// Replaces the gradient of the result `y` of [`softmax_rows`] by the gradient of its input.
    pub(crate) fn softmax_rows_backward<F: Real>(y: &[F], grad: &mut [F], width: usize, scale: F) {
        let rows = grad.chunks_exact_mut(width).zip(y.chunks_exact(width));
        rows.for_each(|(grad, y)| softmax_row_backward(y, grad, scale));
    }
}

pub(crate) fn softmax<F: Real>(x: &[F], width: usize) -> Vec<F> {
    build_in_chunks(x.len(), ROWS_PER_TASK * width, |at, y| {
        y.copy_from_slice(&x[at..][..y.len()]);
        softmax_rows(y, width, F::from_f64(1.0));
    })
}

pub(crate) fn softmax_backward<F: Real>(y: &[F], grad: &[F], width: usize) -> Vec<F> {
    build_in_chunks(y.len(), ROWS_PER_TASK * width, |at, out| {
        out.copy_from_slice(&grad[at..][..out.len()]);
        softmax_rows_backward(&y[at..], out, width, F::from_f64(1.0));
    })
}

vectorized! {
    fn scale_shift_item<F: Real>(x: &[F], scale: &[F], shift: &[F], y: &mut [F]) {
        let width = scale.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = x * (F::from_f64(1.0) + scale) + shift;
            }
        }
    }
}

/// Computes `x·(1 + scale) + shift`: `x` is `[items, tokens, width]`, `scale` and `shift` are `[items, width]`.
pub(crate) fn scale_shift<F: Real>(x: &[F], scale: &[F], shift: &[F], tokens: usize, width: usize) -> Vec<F> {
    build_in_chunks(x.len(), tokens * width, |at, y| {
        let item = at / tokens..at / tokens + width;
        scale_shift_item(&x[at..], &scale[item.clone()], &shift[item], y);
    })
}

vectorized! {
    /// Computes the gradients for one item; adds those of scale to the first half of `sums`, and those of shift to the second.
    fn scale_shift_item_backward<F: Real>(
        x: &[F],
        scale: &[F],
        grad: &[F],
        grad_x: &mut [F],
        sums: &mut [F],
    ) {
        let width = scale.len();
        let (grad_scale, grad_shift) = sums.split_at_mut(width);
        let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
        for (grad_x, (x, grad)) in rows {
            let sums = grad_scale.iter_mut().zip(grad_shift.iter_mut());
            let values = grad_x.iter_mut().zip(x.iter().zip(grad)).zip(scale);
            for (((grad_x, (&x, &grad)), &scale), (grad_scale, grad_shift)) in values.zip(sums) {
                *grad_x = grad * (F::from_f64(1.0) + scale);
                *grad_scale += grad * x;
                *grad_shift += grad;
            }
        }
    }
}

/// Returns the gradients of `x`, `scale` and `shift`.
pub(crate) fn scale_shift_backward<F: Real>(
    x: &[F],
    scale: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 3] {
    let mut sums = vec![F::from_f64(0.0); 2 * scale.len()];
    let grad_x = build_in_chunks_with(x.len(), tokens * width, &mut sums, 2 * width, |at, grad_x, sums| {
        scale_shift_item_backward(&x[at..], &scale[at / tokens..][..width], &grad[at..], grad_x, sums);
    });
    let every_second = |first| sums.chunks_exact(width).skip(first).step_by(2).flatten().copied().collect();
    [grad_x, every_second(0), every_second(1)]
}

vectorized! {
    fn gated_residual_item<F: Real>(x: &[F], branch: &[F], gate: &[F], y: &mut [F]) {
        let width = gate.len();
        let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(branch.chunks_exact(width)));
        for (y, (x, branch)) in rows {
            for ((y, (&x, &branch)), &gate) in y.iter_mut().zip(x.iter().zip(branch)).zip(gate) {
                *y = x + gate * branch;
            }
        }
    }
}

/// Computes `x + gate·branch`: `x` and `branch` are `[items, tokens, width]`, `gate` is `[items, width]`.
pub(crate) fn gated_residual<F: Real>(
    x: &[F],
    branch: &[F],
    gate: &[F],
    tokens: usize,
    width: usize,
) -> Vec<F> {
    build_in_chunks(x.len(), tokens * width, |at, y| {
        gated_residual_item(&x[at..], &branch[at..], &gate[at / tokens..][..width], y);
    })
}

vectorized! {
    fn gated_residual_item_backward<F: Real>(
        branch: &[F],
        gate: &[F],
        grad: &[F],
        grad_branch: &mut [F],
        grad_gate: &mut [F],
    ) {
        let width = gate.len();
        let rows =
            grad_branch.chunks_exact_mut(width).zip(branch.chunks_exact(width).zip(grad.chunks_exact(width)));
        for (grad_branch, (branch, grad)) in rows {
            let values = grad_branch.iter_mut().zip(branch.iter().zip(grad)).zip(gate);
            for (((grad_branch, (&branch, &grad)), &gate), sum) in values.zip(grad_gate.iter_mut()) {
                *grad_branch = grad * gate;
                *sum += grad * branch;
            }
        }
    }
}

/// Returns the gradients of `branch` and `gate`; that of `x` is `grad` itself.
pub(crate) fn gated_residual_backward<F: Real>(
    branch: &[F],
    gate: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 2] {
    let mut grad_gate = vec![F::from_f64(0.0); gate.len()];
    let grad_branch = build_in_chunks_with(
        branch.len(),
        tokens * width,
        &mut grad_gate,
        width,
        |at, grad_branch, grad_gate| {
            let gate = &gate[at / tokens..][..width];
            gated_residual_item_backward(&branch[at..], gate, &grad[at..], grad_branch, grad_gate);
        },
    );
    [grad_branch, grad_gate]
}

vectorized! {
    fn add_rows<F: Real>(x: &[F], total: &mut [F]) {
        for row in x.chunks_exact(total.len()) {
            total.iter_mut().zip(row).for_each(|(t, &x)| *t += x);
        }
    }
}

/// Returns the sum over all rows of `width` values.
pub(crate) fn sum_rows<F: Real>(x: &[F], width: usize) -> Vec<F> {
    let partials: Vec<Vec<F>> = x
        .par_chunks(ROWS_PER_TASK * width)
        .map(|x| {
            let mut total = vec![F::from_f64(0.0); width];
            add_rows(x, &mut total);
            total
        })
        .collect();
    sum_partials(&partials)
}
