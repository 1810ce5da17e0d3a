//! Kernels that look at one value at a time, or at one value and its item's modulation.

use rayon::prelude::*;

use super::{
    ROWS, Real, VALUES,
    memory::{in_pieces, in_pieces_with},
    norm::sum,
    sigmoid,
    simd::vectorised,
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
    F::of(0.5) * (F::of(1.0) + (x * F::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

impl Activation {
    #[inline(always)]
    fn value<F: Real>(self, x: F) -> F {
        match self {
            Activation::Gelu => x * phi(x),
            Activation::Silu => x * sigmoid(x),
            // What is no number stays none.
            Activation::Relu if x <= F::of(0.0) => F::of(0.0),
            Activation::Relu => x,
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
            Activation::Relu if x <= F::of(0.0) => F::of(0.0),
            Activation::Relu => F::of(1.0),
        }
    }
}

vectorised! {
    fn each_sum<F: Real>(a: &[F], b: &[F], sum: &mut [F]) {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum = a + b);
    }
}

vectorised! {
    fn each_product<F: Real>(a: &[F], b: &[F], product: &mut [F]) {
        product.iter_mut().zip(a.iter().zip(b)).for_each(|(product, (&a, &b))| *product = a * b);
    }
}

/// `a + b`.
pub(crate) fn add<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "as many values");
    in_pieces(a.len(), VALUES, |at, sum| each_sum(&a[at..], &b[at..], sum))
}

/// `a·b`, each with its own.
pub(crate) fn mul<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "as many values");
    in_pieces(a.len(), VALUES, |at, product| each_product(&a[at..], &b[at..], product))
}

/// Adds `b` to `a` in place.
pub(crate) fn add_assign<F: Real>(a: &mut [F], b: &[F]) {
    a.par_chunks_mut(VALUES).zip(b.par_chunks(VALUES)).for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    });
}

vectorised! {
    fn each_activation<F: Real>(kind: Activation, x: &[F], y: &mut [F]) {
        let values = y.iter_mut().zip(x);
        // One loop a kind, so that each becomes vector code.
        match kind {
            Activation::Gelu => values.for_each(|(y, &x)| *y = Activation::Gelu.value(x)),
            Activation::Silu => values.for_each(|(y, &x)| *y = Activation::Silu.value(x)),
            Activation::Relu => values.for_each(|(y, &x)| *y = Activation::Relu.value(x)),
        }
    }
}

pub(crate) fn activation<F: Real>(kind: Activation, x: &[F]) -> Vec<F> {
    in_pieces(x.len(), VALUES, |at, y| each_activation(kind, &x[at..], y))
}

vectorised! {
    fn each_activation_backward<F: Real>(kind: Activation, x: &[F], grad: &[F], out: &mut [F]) {
        let values = out.iter_mut().zip(x.iter().zip(grad));
        match kind {
            Activation::Gelu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Gelu.slope(x)),
            Activation::Silu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Silu.slope(x)),
            Activation::Relu => values.for_each(|(out, (&x, &g))| *out = g * Activation::Relu.slope(x)),
        }
    }
}

pub(crate) fn activation_backward<F: Real>(kind: Activation, x: &[F], grad: &[F]) -> Vec<F> {
    in_pieces(x.len(), VALUES, |at, out| each_activation_backward(kind, &x[at..], &grad[at..], out))
}

vectorised! {
    fn swiglu_rows<F: Real>(x: &[F], half: usize, y: &mut [F]) {
        for (y, x) in y.chunks_exact_mut(half).zip(x.chunks_exact(2 * half)) {
            let (a, b) = x.split_at(half);
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (&a, &b))| *y = a * sigmoid(a) * b);
        }
    }
}

/// `silu(a)·b` for rows `[a | b]` of twice `half` values.
pub(crate) fn swiglu<F: Real>(x: &[F], half: usize) -> Vec<F> {
    in_pieces(x.len() / 2, ROWS * half, |at, y| swiglu_rows(&x[2 * at..], half, y))
}

vectorised! {
    fn swiglu_rows_backward<F: Real>(x: &[F], grad: &[F], half: usize, out: &mut [F]) {
        let rows = out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half).zip(grad.chunks_exact(half)));
        for (out, (x, grad)) in rows {
            let (a, b) = x.split_at(half);
            let (grad_a, grad_b) = out.split_at_mut(half);
            for i in 0..half {
                let s = sigmoid(a[i]);
                grad_a[i] = grad[i] * b[i] * s * (F::of(1.0) + a[i] * (F::of(1.0) - s));
                grad_b[i] = grad[i] * a[i] * s;
            }
        }
    }
}

pub(crate) fn swiglu_backward<F: Real>(x: &[F], grad: &[F], half: usize) -> Vec<F> {
    in_pieces(x.len(), 2 * ROWS * half, |at, out| {
        swiglu_rows_backward(&x[at..], &grad[at / 2..], half, out);
    })
}

/// Softmax of `row` in place, of `scale·row`.
#[inline(always)]
fn softmax_row<F: Real>(row: &mut [F], scale: F) {
    let most = row.iter().fold(row[0], |m, &x| if x > m { x } else { m });
    row.iter_mut().for_each(|x| *x = ((*x - most) * scale).exp());
    let inverse = F::of(1.0) / sum(row, |x| x);
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// `scale · y·(g − Σ y·g)` into `grad`, where `y` is a row of softmax's result.
#[inline(always)]
fn softmax_row_backward<F: Real>(y: &[F], grad: &mut [F], scale: F) {
    let mut lanes = [F::of(0.0); 8];
    for (i, (&y, &g)) in y.iter().zip(grad.iter()).enumerate() {
        lanes[i % 8] += y * g;
    }
    let along: F = lanes.into_iter().sum();
    grad.iter_mut().zip(y).for_each(|(g, &y)| *g = y * (*g - along) * scale);
}

vectorised! {
    /// Softmax of `scale` times each row of `width` values, in place.
    pub(crate) fn softmax_rows<F: Real>(rows: &mut [F], width: usize, scale: F) {
        rows.chunks_exact_mut(width).for_each(|row| softmax_row(row, scale));
    }
}

vectorised! {
    /// What makes of the gradient of [`softmax_rows`]' results `y` that of its inputs, in place.
    pub(crate) fn softmax_rows_backward<F: Real>(y: &[F], grad: &mut [F], width: usize, scale: F) {
        let rows = grad.chunks_exact_mut(width).zip(y.chunks_exact(width));
        rows.for_each(|(grad, y)| softmax_row_backward(y, grad, scale));
    }
}

pub(crate) fn softmax<F: Real>(x: &[F], width: usize) -> Vec<F> {
    in_pieces(x.len(), ROWS * width, |at, y| {
        y.copy_from_slice(&x[at..][..y.len()]);
        softmax_rows(y, width, F::of(1.0));
    })
}

pub(crate) fn softmax_backward<F: Real>(y: &[F], grad: &[F], width: usize) -> Vec<F> {
    in_pieces(y.len(), ROWS * width, |at, out| {
        out.copy_from_slice(&grad[at..][..out.len()]);
        softmax_rows_backward(&y[at..], out, width, F::of(1.0));
    })
}

vectorised! {
    fn scale_shift_item<F: Real>(x: &[F], scale: &[F], shift: &[F], y: &mut [F]) {
        let width = scale.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = x * (F::of(1.0) + scale) + shift;
            }
        }
    }
}

/// `x·(1 + scale) + shift`: `x` `[items, tokens, width]`, `scale` and `shift` `[items, width]`.
pub(crate) fn scale_shift<F: Real>(x: &[F], scale: &[F], shift: &[F], tokens: usize, width: usize) -> Vec<F> {
    in_pieces(x.len(), tokens * width, |at, y| {
        let item = at / tokens..at / tokens + width;
        scale_shift_item(&x[at..], &scale[item.clone()], &shift[item], y);
    })
}

vectorised! {
    /// `sums` are those of scale, then of shift.
    fn scale_shift_item_backward<F: Real>(x: &[F], scale: &[F], grad: &[F], grad_x: &mut [F], sums: &mut [F]) {
        let width = scale.len();
        let (grad_scale, grad_shift) = sums.split_at_mut(width);
        let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(grad.chunks_exact(width)));
        for (grad_x, (x, grad)) in rows {
            let sums = grad_scale.iter_mut().zip(grad_shift.iter_mut());
            let values = grad_x.iter_mut().zip(x.iter().zip(grad)).zip(scale);
            for (((grad_x, (&x, &grad)), &scale), (grad_scale, grad_shift)) in values.zip(sums) {
                *grad_x = grad * (F::of(1.0) + scale);
                *grad_scale += grad * x;
                *grad_shift += grad;
            }
        }
    }
}

/// Gradients of `x`, `scale` and `shift`.
pub(crate) fn scale_shift_backward<F: Real>(
    x: &[F],
    scale: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 3] {
    let mut sums = vec![F::of(0.0); 2 * scale.len()];
    let grad_x = in_pieces_with(x.len(), tokens * width, &mut sums, 2 * width, |at, grad_x, sums| {
        scale_shift_item_backward(&x[at..], &scale[at / tokens..][..width], &grad[at..], grad_x, sums);
    });
    let every_other = |first| sums.chunks_exact(width).skip(first).step_by(2).flatten().copied().collect();
    [grad_x, every_other(0), every_other(1)]
}

vectorised! {
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

/// `x + gate·branch`: `x` and `branch` `[items, tokens, width]`, `gate` `[items, width]`.
pub(crate) fn gated_residual<F: Real>(
    x: &[F],
    branch: &[F],
    gate: &[F],
    tokens: usize,
    width: usize,
) -> Vec<F> {
    in_pieces(x.len(), tokens * width, |at, y| {
        gated_residual_item(&x[at..], &branch[at..], &gate[at / tokens..][..width], y);
    })
}

vectorised! {
    fn gated_residual_item_backward<F: Real>(branch: &[F], gate: &[F], grad: &[F], grad_branch: &mut [F], grad_gate: &mut [F]) {
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

/// Gradients of `branch` and `gate`; that of `x` is `grad` itself.
pub(crate) fn gated_residual_backward<F: Real>(
    branch: &[F],
    gate: &[F],
    grad: &[F],
    tokens: usize,
    width: usize,
) -> [Vec<F>; 2] {
    let mut grad_gate = vec![F::of(0.0); gate.len()];
    let grad_branch =
        in_pieces_with(branch.len(), tokens * width, &mut grad_gate, width, |at, grad_branch, grad_gate| {
            let gate = &gate[at / tokens..][..width];
            gated_residual_item_backward(&branch[at..], gate, &grad[at..], grad_branch, grad_gate);
        });
    [grad_branch, grad_gate]
}

vectorised! {
    fn add_rows<F: Real>(x: &[F], total: &mut [F]) {
        for row in x.chunks_exact(total.len()) {
            total.iter_mut().zip(row).for_each(|(t, &x)| *t += x);
        }
    }
}

/// Sum over rows of `width` values.
pub(crate) fn sum_rows<F: Real>(x: &[F], width: usize) -> Vec<F> {
    let partials: Vec<Vec<F>> = x
        .par_chunks(ROWS * width)
        .map(|x| {
            let mut total = vec![F::of(0.0); width];
            add_rows(x, &mut total);
            total
        })
        .collect();
    sum_partials(&partials)
}
