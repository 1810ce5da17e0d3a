//! Matrix products on slices, by the gemm crate that candle uses.

use gemm::Parallelism;

use super::Real;

/// A matrix inside a slice: element (i, j) lies at `i·rows + j·cols`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Rows of `width` values, one after the other.
    pub(crate) fn rows(width: usize) -> Self {
        Self { row: width, col: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { row: self.col, col: self.row }
    }

    fn end(self, m: usize, n: usize) -> usize {
        if m == 0 || n == 0 { 0 } else { (m - 1) * self.row + (n - 1) * self.col + 1 }
    }
}

/// `c = a·b`, or `c += a·b` with `accumulate`: `a` is m×k, `b` k×n, `c` m×n. `parallel` uses all threads of the pool.
///
/// # Panics
/// When a slice is too short for its sizes and strides.
pub(crate) fn product<F: Real>(
    [m, n, k]: [usize; 3],
    (c, cs): (&mut [F], Strides),
    accumulate: bool,
    (a, as_): (&[F], Strides),
    (b, bs): (&[F], Strides),
    parallel: bool,
) {
    assert!(
        c.len() >= cs.end(m, n) && a.len() >= as_.end(m, k) && b.len() >= bs.end(k, n),
        "slices hold the matrices"
    );
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the assertion above keeps every (i, j) that gemm reads or writes inside its slice; `c` is borrowed mutably, so it does
    // not overlap `a` or `b`; F is f32 or f64, which gemm knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            cs.col as isize,
            cs.row as isize,
            accumulate,
            a.as_ptr(),
            as_.col as isize,
            as_.row as isize,
            b.as_ptr(),
            bs.col as isize,
            bs.row as isize,
            F::of(1.0),
            F::of(1.0),
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `x·Wᵀ + b`: `x` `[rows, input]`, `weight` `[out, input]`.
pub(crate) fn linear<F: Real>(x: &[F], weight: &[F], bias: Option<&[F]>, input: usize, out: usize) -> Vec<F> {
    let rows = x.len() / input;
    let mut y = match bias {
        Some(bias) => bias.repeat(rows),
        None => vec![F::of(0.0); rows * out],
    };
    product(
        [rows, out, input],
        (&mut y, Strides::rows(out)),
        bias.is_some(),
        (x, Strides::rows(input)),
        (weight, Strides::rows(input).t()),
        true,
    );
    y
}

/// Gradients of `x` and `weight`.
pub(crate) fn linear_backward<F: Real>(
    x: &[F],
    weight: &[F],
    grad: &[F],
    input: usize,
    out: usize,
    need_x: bool,
) -> (Option<Vec<F>>, Vec<F>) {
    let rows = x.len() / input;
    let grad_x = need_x.then(|| {
        let mut grad_x = vec![F::of(0.0); x.len()];
        product(
            [rows, input, out],
            (&mut grad_x, Strides::rows(input)),
            false,
            (grad, Strides::rows(out)),
            (weight, Strides::rows(input)),
            true,
        );
        grad_x
    });
    let mut grad_weight = vec![F::of(0.0); weight.len()];
    product(
        [out, input, rows],
        (&mut grad_weight, Strides::rows(input)),
        false,
        (grad, Strides::rows(out).t()),
        (x, Strides::rows(input)),
        true,
    );
    (grad_x, grad_weight)
}
