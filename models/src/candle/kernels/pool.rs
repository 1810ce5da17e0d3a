//! Pooling, plane by plane.

use rayon::prelude::*;

use super::{Real, window::Window};

/// The largest value of each window, and where in its plane it lies; of several, the first. NaN counts as the largest of all.
pub(crate) fn max<F: Real>(window: Window, x: &[F]) -> (Vec<F>, Vec<u32>) {
    let n = x.len() / window.plane() * window.places();
    let (mut y, mut winners) = (vec![F::of(f64::NEG_INFINITY); n], vec![0; n]);
    y.par_chunks_mut(window.places())
        .zip(winners.par_chunks_mut(window.places()))
        .zip(x.par_chunks(window.plane()))
        .for_each(|((y, winners), x)| {
            let rows = y.chunks_exact_mut(window.cols).zip(winners.chunks_exact_mut(window.cols));
            for (i, (y, winners)) in rows.enumerate() {
                each_run(window, i, |inside, first| {
                    let out = y[inside.clone()].iter_mut().zip(&mut winners[inside]);
                    let source = x[first..].iter().step_by(window.stride).enumerate();
                    for ((most, winner), (j, &x)) in out.zip(source) {
                        #[expect(clippy::eq_op, reason = "true of NaN")]
                        let larger = x > *most || x != x;
                        if larger {
                            *most = x;
                            *winner = (first + j * window.stride) as u32;
                        }
                    }
                });
            }
        });
    (y, winners)
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
