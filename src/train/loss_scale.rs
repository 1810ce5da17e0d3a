//! Loss scaling for gradients in f16.

use serde::{Deserialize, Serialize};

/// Steps without overflow after which the loss scale is doubled.
const GROWTH: u32 = 2000;
/// Above this scale an overflow is part of the search for the scale; at or below it, it is a sign of a problem.
const MIN_SEARCH_SCALE: f64 = 1.0;

/// The factor on the loss that keeps small gradients from underflow in f16 (arXiv 1710.03740).
///
/// It is doubled after 2000 steps without overflow and halved on every overflow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor, a power of two.
    pub value: f64,
    /// Steps since it last changed.
    pub steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { value: 65536.0, steps: 0 }
    }
}

impl LossScale {
    /// True if an overflow is part of the search for the scale, not a sign of a problem.
    pub(super) fn is_calibrating(self) -> bool {
        self.value > MIN_SEARCH_SCALE
    }

    /// The scale after a step; `finite` is true if its gradients were finite.
    pub(super) fn after_step(self, finite: bool) -> Self {
        match (finite, self.steps + 1) {
            (false, _) => Self { value: self.value / 2.0, steps: 0 },
            (true, GROWTH) => Self { value: self.value * 2.0, steps: 0 },
            (true, steps) => Self { steps, ..self },
        }
    }
}
