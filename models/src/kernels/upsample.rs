//! Nearest-neighbor upsampling, row by row.

use super::{Real, VALUES_PER_TASK, memory::build_in_chunks};

/// Returns the number of input rows of `width` values per task.
fn rows_per_task(width: usize, factor: usize) -> usize {
    (VALUES_PER_TASK / (width * factor * factor)).max(1)
}

/// Repeats each value of the planes, which have rows of `width` values, `factor` times along both axes.
pub(crate) fn nearest<F: Real>(x: &[F], width: usize, factor: usize) -> Vec<F> {
    let square = factor * factor;
    build_in_chunks(x.len() * square, rows_per_task(width, factor) * width * square, |at, y| {
        for (rows, x) in y.chunks_exact_mut(width * square).zip(x[at / square..].chunks_exact(width)) {
            let (first, rest) = rows.split_at_mut(factor * width);
            first.chunks_exact_mut(factor).zip(x).for_each(|(y, &x)| y.fill(x));
            rest.chunks_exact_mut(factor * width).for_each(|row| row.copy_from_slice(first));
        }
    })
}

/// Returns the gradient of the input of [`nearest`]: the sum over each square of `factor`² values.
pub(crate) fn nearest_backward<F: Real>(grad: &[F], width: usize, factor: usize) -> Vec<F> {
    let square = factor * factor;
    build_in_chunks(grad.len() / square, rows_per_task(width, factor) * width, |at, grad_x| {
        for (sums, rows) in
            grad_x.chunks_exact_mut(width).zip(grad[at * square..].chunks_exact(width * square))
        {
            for row in rows.chunks_exact(factor * width) {
                for offset in 0..factor {
                    let values = row[offset..].iter().step_by(factor);
                    sums.iter_mut().zip(values).for_each(|(sum, &grad)| *sum += grad);
                }
            }
        }
    })
}
