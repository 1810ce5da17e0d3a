//! Reductions over one axis, of values `[outer, axis, inner]`.

use super::{
    Real, VALUES_PER_TASK,
    memory::{build_in_chunks, build_in_chunks_with},
    simd::vectorized,
};

/// The sizes of a reduction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Number of values at each index of the outer axes that are reduced to one.
    pub(crate) len: usize,
    /// Number of values at each position of the axis.
    pub(crate) inner: usize,
}

impl Axis {
    /// Returns the number of values that one task reduces. It is a multiple of the values at an index of the outer axes.
    fn results_per_task(self) -> usize {
        let rows = (VALUES_PER_TASK / (self.len * self.inner).max(1)).max(1);
        rows * self.inner.max(1)
    }
}

vectorized! {
    fn add_positions<F: Real>(x: &[F], inner: usize, len: usize, y: &mut [F]) {
        for (y, x) in y.chunks_exact_mut(inner).zip(x.chunks_exact(len * inner)) {
            for x in x.chunks_exact(inner) {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
            }
        }
    }
}

vectorized! {
    fn max_positions<F: Real>(x: &[F], inner: usize, len: usize, y: &mut [F], indices: &mut [u32]) {
        let rows = y.chunks_exact_mut(inner).zip(indices.chunks_exact_mut(inner));
        for ((y, indices), x) in rows.zip(x.chunks_exact(len * inner)) {
            y.copy_from_slice(&x[..inner]);
            for (position, x) in (1..).zip(x.chunks_exact(inner).skip(1)) {
                for ((y, index), &x) in y.iter_mut().zip(indices.iter_mut()).zip(x) {
                    #[expect(clippy::eq_op, reason = "true of NaN")]
                    let larger = x > *y || (x != x && *y == *y);
                    *y = if larger { x } else { *y };
                    *index = if larger { position } else { *index };
                }
            }
        }
    }
}

/// Returns the sums over the axis, first position to last.
pub(crate) fn sum<F: Real>(axis: Axis, x: &[F]) -> Vec<F> {
    let Axis { len, inner } = axis;
    build_in_chunks(x.len() / len, axis.results_per_task(), |at, y| {
        add_positions(&x[at * len..], inner, len, y);
    })
}

/// Returns the maxima over the axis, and their positions; of several, the first. NaN counts as the maximum.
pub(crate) fn max<F: Real>(axis: Axis, x: &[F]) -> (Vec<F>, Vec<u32>) {
    let Axis { len, inner } = axis;
    let mut indices = vec![0; x.len() / len];
    let task = axis.results_per_task();
    let y = build_in_chunks_with(x.len() / len, task, &mut indices, task, |at, y, indices| {
        max_positions(&x[at * len..], inner, len, y, indices);
    });
    (y, indices)
}

/// Returns the gradient of the input of [`max`]: each gradient at its position, and zeros elsewhere.
pub(crate) fn max_backward<F: Real>(axis: Axis, indices: &[u32], grad: &[F]) -> Vec<F> {
    let Axis { len, inner } = axis;
    build_in_chunks(grad.len() * len, axis.results_per_task() * len, |at, grad_x| {
        let at = at / len;
        let rows = indices[at..].chunks_exact(inner).zip(grad[at..].chunks_exact(inner));
        for (grad_x, (indices, grad)) in grad_x.chunks_exact_mut(len * inner).zip(rows) {
            for (i, (&index, &grad)) in indices.iter().zip(grad).enumerate() {
                grad_x[index as usize * inner + i] = grad;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_returns_the_first_of_equal_values_and_propagates_nan() {
        let axis = Axis { len: 3, inner: 4 };
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        let x = [1.0, 5.0, nan, low, 2.0, 5.0, 9.0, low, 2.0, 4.0, nan, low];
        let (y, indices) = max(axis, &x);
        assert_eq!(indices, [1, 0, 0, 0]);
        assert_eq!((&y[..2], y[2].is_nan(), y[3]), (&[2.0, 5.0][..], true, low));
        let grad = max_backward(axis, &indices, &[1.0f32, 2.0, 3.0, 4.0]);
        assert_eq!(grad, [0.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn large_axes_are_reduced_in_tasks() {
        // Several tasks: see `VALUES_PER_TASK`.
        let scale = if cfg!(miri) { 100 } else { 1 };
        for (len, inner) in [(7, 1), (5000 / scale, 3), (2, 20_000 / scale)] {
            let axis = Axis { len, inner };
            let outer = 40_000 / scale / len / inner + 2;
            let x: Vec<f64> = (0..outer * axis.len * axis.inner).map(|i| (i * 7919 % 1013) as f64).collect();
            let (sums, (maxima, indices)) = (sum(axis, &x), max(axis, &x));
            for (i, ((sum, max), index)) in sums.into_iter().zip(maxima).zip(indices).enumerate() {
                let at = |p: usize| x[(i / axis.inner * axis.len + p) * axis.inner + i % axis.inner];
                assert_eq!(sum, (0..axis.len).map(at).sum::<f64>(), "{axis:?}");
                assert!(max == at(index as usize) && (0..axis.len).all(|p| at(p) <= max), "{axis:?}");
            }
        }
    }
}
