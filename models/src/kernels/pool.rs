//! Pooling, plane by plane.

use std::array::from_fn;

use rayon::prelude::*;

use super::{Real, window::Window};

/// Outputs that are computed together, which becomes vector code: branches on which value is larger would be hard to foresee.
const LANES: usize = 16;

/// The largest value of each window, and where in its plane it lies; of several, the first. NaN counts as the largest of all.
pub(crate) fn max<F: Real>(window: Window, x: &[F]) -> (Vec<F>, Vec<u32>) {
    let w = window;
    let n = x.len() / w.plane() * w.places();
    let (mut y, mut winners) = (vec![F::of(0.0); n], vec![0; n]);
    // A plane with what windows see around it, and what the lanes beyond the last output do.
    let width = (w.cols.next_multiple_of(LANES) - 1) * w.stride + w.kernel;
    let height = (w.rows - 1) * w.stride + w.kernel;
    let work = |((y, winners), x): ((&mut [F], &mut [u32]), &[F])| {
        F::with_scratch(height * width, |padded| {
            padded.fill(F::of(f64::NEG_INFINITY));
            let inside = w.width.min(width - w.padding);
            for (to, from) in padded.chunks_exact_mut(width).skip(w.padding).zip(x.chunks_exact(w.width)) {
                to[w.padding..w.padding + inside].copy_from_slice(&from[..inside]);
            }
            for (i, (y, winners)) in
                y.chunks_exact_mut(w.cols).zip(winners.chunks_exact_mut(w.cols)).enumerate()
            {
                for (j, (y, winners)) in
                    (0..).step_by(LANES).zip(y.chunks_mut(LANES).zip(winners.chunks_mut(LANES)))
                {
                    let lanes = max_of_lanes(w, &padded[i * w.stride * width + j * w.stride..], width, i, j);
                    y.copy_from_slice(&lanes.0[..y.len()]);
                    winners.copy_from_slice(&lanes.1[..winners.len()]);
                }
            }
        });
    };
    let planes = y.par_chunks_mut(w.places()).zip(winners.par_chunks_mut(w.places()));
    planes.zip(x.par_chunks(w.plane())).for_each(work);
    (y, winners)
}

/// [`max`] of the outputs from column `j` of row `i` on; the window of the first begins where `padded`, of rows of `width`, does.
#[inline(always)]
fn max_of_lanes<F: Real>(
    w: Window,
    padded: &[F],
    width: usize,
    i: usize,
    j: usize,
) -> ([F; LANES], [u32; LANES]) {
    let place =
        |y: usize, x: usize| (y.saturating_sub(w.padding) * w.width + x.saturating_sub(w.padding)) as u32;
    let mut most = [F::of(f64::NEG_INFINITY); LANES];
    // Should nothing be larger than that, the first place.
    let mut winners = from_fn(|l| place(i * w.stride, (j + l) * w.stride));
    for (ky, kx) in (0..w.kernel * w.kernel).map(|k| (k / w.kernel, k % w.kernel)) {
        let row = &padded[ky * width + kx..];
        let x: [F; LANES] = from_fn(|l| row[l * w.stride]);
        // Only a place inside the picture can win, so one outside may come out wrong.
        let first = place(i * w.stride + ky, j * w.stride + kx + w.padding).wrapping_sub(w.padding as u32);
        for l in 0..LANES {
            #[expect(clippy::eq_op, reason = "true of NaN")]
            let larger = (x[l] > most[l]) | (x[l] != x[l]);
            most[l] = if larger { x[l] } else { most[l] };
            winners[l] = if larger { first.wrapping_add((l * w.stride) as u32) } else { winners[l] };
        }
    }
    (most, winners)
}

/// Calls `f` for each place in the windows at output row `y`, with the output columns that have it inside the picture, and where in the
/// plane the first of them looks.
#[inline(always)]
fn each_run(window: Window, y: usize, mut f: impl FnMut(std::ops::Range<usize>, usize)) {
    for (ky, kx) in (0..window.kernel * window.kernel).map(|i| (i / window.kernel, i % window.kernel)) {
        let (inside, first) = window.inside(kx);
        if let Some(row) = window.input_row(y, ky).filter(|_| !inside.is_empty()) {
            f(inside, row * window.width + first);
        }
    }
}

/// Adds each gradient to where its value came from: planes of `plane` values from planes of `places`.
pub(crate) fn max_backward<F: Real>(winners: &[u32], grad: &[F], places: usize, plane: usize) -> Vec<F> {
    let mut grad_x = vec![F::of(0.0); grad.len() / places * plane];
    grad_x.par_chunks_mut(plane).zip(grad.par_chunks(places).zip(winners.par_chunks(places))).for_each(
        |(grad_x, (grad, winners))| {
            winners.iter().zip(grad).for_each(|(&winner, &grad)| grad_x[winner as usize] += grad);
        },
    );
    grad_x
}

/// The mean of each window.
pub(crate) fn mean<F: Real>(window: Window, x: &[F]) -> Vec<F> {
    let scale = F::of(1.0 / (window.kernel * window.kernel) as f64);
    let mut y = vec![F::of(0.0); x.len() / window.plane() * window.places()];
    y.par_chunks_mut(window.places()).zip(x.par_chunks(window.plane())).for_each(|(y, x)| {
        for (i, y) in y.chunks_exact_mut(window.cols).enumerate() {
            each_run(window, i, |inside, first| {
                let source = x[first..].iter().step_by(window.stride);
                y[inside].iter_mut().zip(source).for_each(|(y, &x)| *y += x);
            });
            y.iter_mut().for_each(|y| *y *= scale);
        }
    });
    y
}

/// Gradient of [`mean`]'s input.
pub(crate) fn mean_backward<F: Real>(window: Window, grad: &[F]) -> Vec<F> {
    let scale = F::of(1.0 / (window.kernel * window.kernel) as f64);
    let mut grad_x = vec![F::of(0.0); grad.len() / window.places() * window.plane()];
    grad_x.par_chunks_mut(window.plane()).zip(grad.par_chunks(window.places())).for_each(|(grad_x, grad)| {
        for (i, grad) in grad.chunks_exact(window.cols).enumerate() {
            each_run(window, i, |inside, first| {
                let target = grad_x[first..].iter_mut().step_by(window.stride);
                target.zip(&grad[inside]).for_each(|(x, &grad)| *x += grad * scale);
            });
        }
    });
    grad_x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins_and_nan_is_larger_than_all() {
        let window = Window { height: 4, width: 5, kernel: 3, stride: 2, padding: 1, rows: 2, cols: 3 };
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        #[rustfmt::skip]
        let x = [
            7.0, 7.0, 2.0, 1.0, low,
            7.0, 3.0, 2.0, low, low,
            1.0, 2.0, nan, 9.0, low,
            4.0, 4.0, 5.0, low, low,
        ];
        let (y, winners) = max(window, &x);
        assert_eq!(winners, [0, 1, 3, 5, 12, 13]);
        assert_eq!((&y[..4], y[4].is_nan(), y[5]), (&[7.0, 7.0, 1.0, 7.0][..], true, 9.0));
        let (y, winners) = max(window, &[low; 20]);
        assert_eq!((y, winners), (vec![low; 6], vec![0, 1, 3, 5, 6, 8]));
    }
}
