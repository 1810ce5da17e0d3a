//! CPU kernels on plain slices, each with its own backward.
//!
//! The order of every sum depends only on sizes, never on how threads are scheduled, so that a run repeats bit for bit.

// Only training, which needs candle, uses the backward passes.
#![cfg_attr(not(feature = "candle"), allow(dead_code))]

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod conv;
pub(crate) mod elementwise;
mod grouped;
mod im2col;
pub(crate) mod linear;
mod memory;
pub(crate) mod norm;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod product;
mod real;
pub(crate) mod reduce;
pub(crate) mod rounding;
mod simd;
pub(crate) mod upsample;
pub(crate) mod window;
mod winograd;

pub(crate) use real::{Real, sigmoid};

/// Number of rows per task. It is fixed, so that sums over rows do not depend on the machine.
pub(crate) const ROWS_PER_TASK: usize = if cfg!(miri) { 4 } else { 64 };
/// Number of values per task of a pointwise kernel.
pub(crate) const VALUES_PER_TASK: usize = if cfg!(miri) { 64 } else { 16 * 1024 };

/// Adds partial sums, first to last.
pub(crate) fn sum_partials<F: Real>(partials: &[Vec<F>]) -> Vec<F> {
    let mut total = partials.first().cloned().unwrap_or_default();
    for partial in partials.iter().skip(1) {
        total.iter_mut().zip(partial).for_each(|(t, &p)| *t += p);
    }
    total
}
