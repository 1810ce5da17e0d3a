//! Pooling, plane by plane.

use std::array::from_fn;

use rayon::prelude::*;

use super::{Real, window::Window};

/// Number of outputs that are computed together. The compiler vectorizes this, which avoids branches that are hard to predict.
const LANES: usize = 16;

/// Returns the maximum of each window, and its index in the plane; of several, the first. NaN counts as the maximum.
pub(crate) fn max<F: Real>(window: Window, x: &[F]) -> (Vec<F>, Vec<u32>) {
    let w = window;
    let n = x.len() / w.input_len() * w.output_len();
    let (mut y, mut indices) = (vec![F::from_f64(0.0); n], vec![0; n]);
    // A plane with its padding, and with room for the lanes beyond the last output.
    let width = (w.cols.next_multiple_of(LANES) - 1) * w.stride[1] + w.kernel[1];
    let height = (w.rows - 1) * w.stride[0] + w.kernel[0];
    let work = |((y, indices), x): ((&mut [F], &mut [u32]), &[F])| {
        F::with_scratch(height * width, |padded| {
            padded.fill(F::from_f64(f64::NEG_INFINITY));
            let [top, left] = w.padding;
            let len = w.width.min(width - left);
            for (to, from) in padded.chunks_exact_mut(width).skip(top).zip(x.chunks_exact(w.width)) {
                to[left..left + len].copy_from_slice(&from[..len]);
            }
            for (i, (y, indices)) in
                y.chunks_exact_mut(w.cols).zip(indices.chunks_exact_mut(w.cols)).enumerate()
            {
                for (j, (y, indices)) in
                    (0..).step_by(LANES).zip(y.chunks_mut(LANES).zip(indices.chunks_mut(LANES)))
                {
                    let lanes =
                        max_of_lanes(w, &padded[i * w.stride[0] * width + j * w.stride[1]..], width, i, j);
                    y.copy_from_slice(&lanes.0[..y.len()]);
                    indices.copy_from_slice(&lanes.1[..indices.len()]);
                }
            }
        });
    };
    let planes = y.par_chunks_mut(w.output_len()).zip(indices.par_chunks_mut(w.output_len()));
    planes.zip(x.par_chunks(w.input_len())).for_each(work);
    (y, indices)
}

/// Computes [`max`] for the outputs from column `j` of row `i` on. `padded` has rows of `width` values, and begins at the first window.
#[inline(always)]
fn max_of_lanes<F: Real>(
    w: Window,
    padded: &[F],
    width: usize,
    i: usize,
    j: usize,
) -> ([F; LANES], [u32; LANES]) {
    let ([top, left], [down, across]) = (w.padding, w.stride);
    let index = |y: usize, x: usize| (y.saturating_sub(top) * w.width + x.saturating_sub(left)) as u32;
    let mut maxima = [F::from_f64(f64::NEG_INFINITY); LANES];
    // If no value is larger, the index is that of the first position.
    let mut indices = from_fn(|l| index(i * down, (j + l) * across));
    for (ky, kx) in (0..w.kernel[0] * w.kernel[1]).map(|k| (k / w.kernel[1], k % w.kernel[1])) {
        let row = &padded[ky * width + kx..];
        let x: [F; LANES] = from_fn(|l| row[l * across]);
        // The index may be wrong for padding, which is never the maximum.
        let first = index(i * down + ky, j * across + kx + left).wrapping_sub(left as u32);
        for l in 0..LANES {
            #[expect(clippy::eq_op, reason = "true of NaN")]
            let larger = (x[l] > maxima[l]) | (x[l] != x[l]);
            maxima[l] = if larger { x[l] } else { maxima[l] };
            indices[l] = if larger { first.wrapping_add((l * across) as u32) } else { indices[l] };
        }
    }
    (maxima, indices)
}

/// Calls `f` for each position in the windows at output row `y`. `f` receives the output columns for which the position is inside the image,
/// and the index in the plane for the first of them.
#[inline(always)]
fn for_each_position(window: Window, y: usize, mut f: impl FnMut(std::ops::Range<usize>, usize)) {
    let [height, width] = window.kernel;
    for (ky, kx) in (0..height * width).map(|i| (i / width, i % width)) {
        let (columns, first) = window.valid_columns(kx);
        if let Some(row) = window.input_row(y, ky).filter(|_| !columns.is_empty()) {
            f(columns, row * window.width + first);
        }
    }
}

/// Returns the gradient of the input of [`max`]: adds each gradient to the value at its index. `plane` is the number of values of an input
/// plane, `outputs` that of an output plane.
pub(crate) fn max_backward<F: Real>(indices: &[u32], grad: &[F], outputs: usize, plane: usize) -> Vec<F> {
    let mut grad_x = vec![F::from_f64(0.0); grad.len() / outputs * plane];
    grad_x.par_chunks_mut(plane).zip(grad.par_chunks(outputs).zip(indices.par_chunks(outputs))).for_each(
        |(grad_x, (grad, indices))| {
            indices.iter().zip(grad).for_each(|(&index, &grad)| grad_x[index as usize] += grad);
        },
    );
    grad_x
}

/// Returns the mean of each window.
pub(crate) fn mean<F: Real>(window: Window, x: &[F]) -> Vec<F> {
    let scale = F::from_f64(1.0 / (window.kernel[0] * window.kernel[1]) as f64);
    let mut y = vec![F::from_f64(0.0); x.len() / window.input_len() * window.output_len()];
    y.par_chunks_mut(window.output_len()).zip(x.par_chunks(window.input_len())).for_each(|(y, x)| {
        for (i, y) in y.chunks_exact_mut(window.cols).enumerate() {
            for_each_position(window, i, |columns, first| {
                let source = x[first..].iter().step_by(window.stride[1]);
                y[columns].iter_mut().zip(source).for_each(|(y, &x)| *y += x);
            });
            y.iter_mut().for_each(|y| *y *= scale);
        }
    });
    y
}

/// Returns the gradient of the input of [`mean`].
pub(crate) fn mean_backward<F: Real>(window: Window, grad: &[F]) -> Vec<F> {
    let scale = F::from_f64(1.0 / (window.kernel[0] * window.kernel[1]) as f64);
    let mut grad_x = vec![F::from_f64(0.0); grad.len() / window.output_len() * window.input_len()];
    grad_x.par_chunks_mut(window.input_len()).zip(grad.par_chunks(window.output_len())).for_each(
        |(grad_x, grad)| {
            for (i, grad) in grad.chunks_exact(window.cols).enumerate() {
                for_each_position(window, i, |columns, first| {
                    let target = grad_x[first..].iter_mut().step_by(window.stride[1]);
                    target.zip(&grad[columns]).for_each(|(x, &grad)| *x += grad * scale);
                });
            }
        },
    );
    grad_x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Conv2dOptions;

    #[test]
    fn max_returns_the_first_of_equal_values_and_propagates_nan() {
        let window = Window::new([4, 5], [3; 2], Conv2dOptions::square(2, 1)).unwrap();
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        #[rustfmt::skip]
        let x = [
            7.0, 7.0, 2.0, 1.0, low,
            7.0, 3.0, 2.0, low, low,
            1.0, 2.0, nan, 9.0, low,
            4.0, 4.0, 5.0, low, low,
        ];
        let (y, indices) = max(window, &x);
        assert_eq!(indices, [0, 1, 3, 5, 12, 13]);
        assert_eq!((&y[..4], y[4].is_nan(), y[5]), (&[7.0, 7.0, 1.0, 7.0][..], true, 9.0));
        let (y, indices) = max(window, &[low; 20]);
        assert_eq!((y, indices), (vec![low; 6], vec![0, 1, 3, 5, 6, 8]));
    }
}
