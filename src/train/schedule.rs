//! The learning rate over a run.

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// The shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LrShape {
    /// Half a cosine down to the floor (SGDR without restarts, arXiv 1608.03983).
    #[default]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// Constant.
    Constant,
}

/// The scaling of the learning rate with the number of items in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// No scaling.
    #[default]
    None,
    /// Linear scaling (arXiv 1706.02677); the given rate is for 256 items.
    Linear,
    /// Scaling by the square root, which suits Adam (arXiv 2205.10287); the given rate is for 256 items.
    Sqrt,
}

impl LrScaling {
    /// The factor on the learning rate of 256 items for steps of `items`.
    pub fn factor(self, items: u64) -> f64 {
        let ratio = items as f64 / 256.0;
        match self {
            Self::None => 1.0,
            Self::Linear => ratio,
            Self::Sqrt => ratio.sqrt(),
        }
    }
}

/// A learning rate is at its floor if at most this share of the decay remains.
const FLOOR_TOLERANCE: f64 = 0.05;
/// A learning rate rises if it is more than this many times that of the step before.
const RISE_FACTOR: f64 = 1.5;

/// The learning rate of each step: a linear warm-up, then a [`LrShape`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The shape after the warm-up.
    #[serde(default)]
    pub shape: LrShape,
    /// The rate after the warm-up.
    pub peak: f64,
    /// The rate at the end.
    pub floor: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
}

impl Schedule {
    /// Makes a schedule with `warmup` steps of warm-up, or with the smaller of `default_warmup` and 5 % of the run.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for a run without steps, a warm-up that fills it, or rates that are not valid.
    pub fn new(
        shape: LrShape,
        peak: f64,
        floor: f64,
        warmup: Option<u64>,
        default_warmup: u64,
        steps: u64,
    ) -> Result<Self> {
        if steps == 0 {
            return Err(Error::setting("steps", "expected at least 1, found 0"));
        }
        if !(peak > 0.0 && peak.is_finite()) {
            return Err(Error::setting("lr", format!("expected a positive number, found {peak}")));
        }
        if !(0.0..=peak).contains(&floor) {
            return Err(Error::setting("min-lr", format!("expected 0 to lr ({peak}), found {floor}")));
        }
        let warmup = warmup.unwrap_or(default_warmup.min(steps / 20));
        if warmup >= steps {
            return Err(Error::setting(
                "warmup-steps",
                format!("expected fewer than steps ({steps}), found {warmup}"),
            ));
        }
        Ok(Self { shape, peak, floor, warmup, steps })
    }

    /// The learning rate of `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let done = ((step - self.warmup) as f64 / (self.steps - self.warmup) as f64).min(1.0);
        let left = match self.shape {
            LrShape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            LrShape::Linear => 1.0 - done,
            LrShape::Constant => return self.peak,
        };
        self.floor + (self.peak - self.floor) * left
    }

    /// Warns of a change from schedule `before` to this one for a run that resumes after `step` steps.
    ///
    /// It warns if the learning rate is at its floor for all remaining steps, or if it rises.
    pub(super) fn change_note(&self, before: &Self, step: u64) -> Option<String> {
        // During a warm-up the rate rises anyway.
        if step <= self.warmup || step >= self.steps {
            return None;
        }
        let (old_rate, new_rate) = (before.rate(step - 1), self.rate(step));
        let falls = self.shape != LrShape::Constant && self.floor < self.peak;
        if falls && new_rate - self.floor <= FLOOR_TOLERANCE * (self.peak - self.floor) {
            let left = self.steps - step;
            return Some(format!(
                "warning: the learning rate is {new_rate:.2e}, at or near its floor, for all {left} remaining steps, which will change \
                 little; pass more --steps or a higher --min-lr"
            ));
        }
        (new_rate > RISE_FACTOR * old_rate).then(|| {
            format!("warning: the learning rate rises from {old_rate:.2e} to {new_rate:.2e} at this step")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_to_its_peak_and_falls_to_its_floor() {
        for shape in [LrShape::Cosine, LrShape::Linear, LrShape::Constant] {
            let s = Schedule::new(shape, 1e-3, 1e-5, Some(10), 0, 100).unwrap();
            let rates: Vec<f64> = (0..=100).map(|i| s.rate(i)).collect();
            assert!(rates[..10].is_sorted() && rates[0] > 0.0);
            assert!((rates[9] - 1e-3).abs() < 1e-12 && (rates[10] - 1e-3).abs() < 1e-12);
            assert!(rates[10..].iter().rev().is_sorted());
            let end = if shape == LrShape::Constant { 1e-3 } else { 1e-5 };
            assert!((rates[100] - end).abs() < 1e-12 && (s.rate(10_000) - end).abs() < 1e-12);
            let half = if shape == LrShape::Constant { 1e-3 } else { 0.5 * (1e-3 + 1e-5) };
            assert!((rates[55] - half).abs() < 1e-12);
        }
    }

    #[test]
    fn extended_schedules_warn_of_learning_rates_at_the_floor_or_rising() {
        let schedule = |shape, steps| Schedule::new(shape, 1e-3, 1e-6, Some(0), 0, steps).unwrap();
        let before = schedule(LrShape::Cosine, 100);
        let warning = |after: Schedule, step| after.change_note(&before, step).unwrap_or_default();
        let message = warning(schedule(LrShape::Cosine, 105), 100);
        assert!(message.contains("at or near its floor, for all 5 remaining steps"), "{message}");
        let message = warning(schedule(LrShape::Cosine, 200), 100);
        assert!(message.contains("rises from 1.25e-6 to 5.01e-4"), "{message}");
        assert!(warning(schedule(LrShape::Constant, 200), 100).contains("to 1.00e-3"));
        // No warning: shorter or the same, at its end, at its start.
        for (after, step) in [(150, 20), (100, 50), (90, 40), (100, 100), (200, 0)] {
            assert_eq!(warning(schedule(LrShape::Cosine, after), step), "", "{after} steps, at {step}");
        }
        let floor = Schedule::new(LrShape::Linear, 1e-3, 1e-3, Some(0), 0, 200).unwrap();
        assert_eq!(floor.change_note(&floor, 199), None);
    }

    #[test]
    fn the_learning_rate_scales_with_the_items_per_step() {
        assert_eq!(
            [LrScaling::None, LrScaling::Linear, LrScaling::Sqrt].map(|s| s.factor(1024)),
            [1.0, 4.0, 2.0]
        );
        assert_eq!([LrScaling::None, LrScaling::Linear, LrScaling::Sqrt].map(|s| s.factor(256)), [1.0; 3]);
    }

    #[test]
    fn default_warmups_fit_any_run_and_invalid_ones_are_rejected() {
        assert_eq!(Schedule::new(LrShape::Cosine, 1.0, 0.0, None, 10_000, 100).unwrap().warmup, 5);
        assert_eq!(Schedule::new(LrShape::Cosine, 1.0, 0.0, None, 10_000, 1).unwrap().warmup, 0);
        assert_eq!(Schedule::new(LrShape::Cosine, 1.0, 0.0, None, 10_000, 400_000).unwrap().warmup, 10_000);
        assert!(Schedule::new(LrShape::Cosine, 1.0, 0.0, Some(100), 0, 100).is_err());
        assert!(Schedule::new(LrShape::Cosine, 1.0, 0.0, None, 0, 0).is_err());
        assert!(Schedule::new(LrShape::Cosine, f64::NAN, 0.0, None, 0, 9).is_err());
        assert!(Schedule::new(LrShape::Cosine, 1e-4, 1e-3, None, 0, 9).is_err());
    }
}
