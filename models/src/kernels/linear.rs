//! Linear layers.

use super::{
    Real,
    product::{Factor, Packed, Strides, product, product_packed},
};

/// Rows of `bias`, or of zeros.
fn begin<F: Real>(bias: Option<&[F]>, rows: usize, out: usize) -> Vec<F> {
    bias.map_or_else(|| vec![F::of(0.0); rows * out], |bias| bias.repeat(rows))
}

/// `x·Wᵀ + b`: `x` `[rows, input]`, `weight` `[out, input]`.
pub(crate) fn linear<F: Factor>(
    x: &[F],
    weight: &[F],
    bias: Option<&[F::Sum]>,
    input: usize,
    out: usize,
) -> Vec<F::Sum> {
    let rows = x.len() / input;
    let mut y = begin(bias, rows, out);
    let weight = (weight, Strides::rows(input).t());
    product([rows, out, input], (&mut y, out), bias.is_some(), (x, Strides::rows(input)), weight, true);
    y
}

/// `weight` `[out, input]`, for [`linear_packed`].
pub(crate) fn packed<F: Real>(weight: &[F], input: usize, out: usize) -> Packed<F> {
    Packed::new([out, input], (weight, Strides::rows(input).t()))
}

/// [`linear`] with a weight that is laid out already.
pub(crate) fn linear_packed<F: Real>(x: &[F], weight: &Packed<F>, bias: Option<&[F]>) -> Vec<F> {
    let (out, input) = (weight.n(), weight.k());
    let rows = x.len() / input;
    let mut y = begin(bias, rows, out);
    product_packed(rows, (&mut y, out), bias.is_some(), (x, input), weight, true);
    y
}

/// Gradients of `x` and `weight`.
pub(crate) fn linear_backward<F: Factor>(
    x: &[F],
    weight: &[F],
    grad: &[F],
    input: usize,
    out: usize,
    need_x: bool,
) -> (Option<Vec<F::Sum>>, Vec<F::Sum>) {
    let rows = x.len() / input;
    let grad_x = need_x.then(|| {
        let mut grad_x = vec![F::Sum::default(); x.len()];
        let (grad, weight) = ((grad, Strides::rows(out)), (weight, Strides::rows(input)));
        product([rows, input, out], (&mut grad_x, input), false, grad, weight, true);
        grad_x
    });
    let mut grad_weight = vec![F::Sum::default(); weight.len()];
    let (grad, x) = ((grad, Strides::rows(out).t()), (x, Strides::rows(input)));
    product([out, input, rows], (&mut grad_weight, input), false, grad, x, true);
    (grad_x, grad_weight)
}
