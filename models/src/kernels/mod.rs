//! CPU kernels on plain slices, each with its own backward.
//!
//! Every sum is taken in an order that depends on sizes alone, never on how threads were scheduled, so that a run repeats bit for bit.

// Backwards are for training.
#![cfg_attr(not(feature = "candle"), allow(dead_code))]

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod conv;
pub(crate) mod linear;
mod memory;
pub(crate) mod norm;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod product;
mod real;
pub(crate) mod rounding;
mod simd;
pub(crate) mod window;
mod winograd;

pub(crate) use real::{Real, sigmoid};

/// Rows that one task works through: enough to be worth a task, fixed so that sums over rows do not depend on the machine.
pub(crate) const ROWS: usize = if cfg!(miri) { 4 } else { 64 };
/// Values that one task of a pointwise kernel works through.
pub(crate) const VALUES: usize = if cfg!(miri) { 64 } else { 16 * 1024 };

/// Adds up partial sums, first to last.
pub(crate) fn sum_partials<F: Real>(partials: &[Vec<F>]) -> Vec<F> {
    let mut total = partials.first().cloned().unwrap_or_default();
    for partial in partials.iter().skip(1) {
        total.iter_mut().zip(partial).for_each(|(t, &p)| *t += p);
    }
    total
}
