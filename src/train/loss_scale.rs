//! Scaling the loss, for gradients in f16.

use serde::{Deserialize, Serialize};

/// Steps without overflow after which the loss scale is doubled.
const GROWTH: u32 = 2000;
/// Overflows above this scale are how the scale is found; below it, something is wrong.
const MIN_SEARCH_SCALE: f64 = 1.0;

/// What the loss is multiplied by so that small gradients are not lost in f16 (arXiv 1710.03740): doubled after 2000 steps without
/// overflow, halved on every one.
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
    /// Whether an overflow is how the scale is found, not a sign that something is wrong.
    pub(super) fn is_calibrating(self) -> bool {
        self.value > MIN_SEARCH_SCALE
    }

    /// After a step whose gradients were finite or not.
    pub(super) fn updated(self, finite: bool) -> Self {
        match (finite, self.steps + 1) {
            (false, _) => Self { value: self.value / 2.0, steps: 0 },
            (true, GROWTH) => Self { value: self.value * 2.0, steps: 0 },
            (true, steps) => Self { steps, ..self },
        }
    }
}
