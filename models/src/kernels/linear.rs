//! Linear layers.

use super::{
    Real,
    product::{Factor, Packed, Strides, product_packed, product_with_bias},
};

/// `x·Wᵀ + b`: `x` `[rows, input]`, `weight` `[out, input]`.
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

/// `weight` `[out, input]`, for [`linear_packed`].
pub(crate) fn packed<F: Real>(weight: &[F], input: usize, out: usize) -> Packed<F> {
    Packed::new([out, input], (weight, Strides::rows(input).t()))
}

/// [`linear`] with a weight that is laid out already.
pub(crate) fn linear_packed<F: Real>(x: &[F], weight: &Packed<F>, bias: Option<&[F]>) -> Vec<F> {
    product_packed(x.len() / weight.k(), bias, x, weight)
}

/// Gradients of `x` and `weight`.
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
