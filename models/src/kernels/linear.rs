//! Linear layers.

use super::product::{Factor, PackedMatrix, PlainFactor, Strides, product_packed, product_with_bias};

/// Computes `x·Wᵀ + b`: `x` is `[rows, input]`, `weight` `[out, input]`.
pub(crate) fn linear<F: Factor>(
    x: &[F::Number],
    weight: &[F::Number],
    bias: Option<&[F::Number]>,
    input: usize,
    out: usize,
) -> Vec<F::Number> {
    let weight = (weight, Strides::rows(input).t());
    product_with_bias::<F>([x.len() / input, out, input], bias, (x, Strides::rows(input)), weight)
}

/// Packs `weight` `[out, input]` for [`linear_packed`].
pub(crate) fn pack_weight<F: PlainFactor>(weight: &[F], input: usize, out: usize) -> PackedMatrix<F> {
    PackedMatrix::new([out, input], (weight, Strides::rows(input).t()))
}

/// [`linear`] with a packed weight.
pub(crate) fn linear_packed<F: PlainFactor>(x: &[F], weight: &PackedMatrix<F>, bias: Option<&[F]>) -> Vec<F> {
    product_packed(x.len() / weight.k(), bias, x, weight)
}

/// Returns the gradients of `x` (if needed) and `weight`.
pub(crate) fn linear_backward<F: Factor>(
    x: &[F::Number],
    weight: &[F::Number],
    grad: &[F::Number],
    input: usize,
    out: usize,
    need_x: bool,
) -> (Option<Vec<F::Number>>, Vec<F::Number>) {
    let rows = x.len() / input;
    let (x, weight) = ((x, Strides::rows(input)), (weight, Strides::rows(input)));
    let grad_x =
        need_x.then(|| product_with_bias::<F>([rows, input, out], None, (grad, Strides::rows(out)), weight));
    let grad = (grad, Strides::rows(out).t());
    (grad_x, product_with_bias::<F>([out, input, rows], None, grad, x))
}
