//! The learning rate over a run.

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// Linear warm-up, then half a cosine (SGDR without restarts, arXiv 1608.03983) down to a floor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
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
    /// A schedule whose warm-up is `warmup`, or, where that is not set, the smaller of `usual` and 5 % of the run.
    ///
    /// # Errors
    /// [`Error::Setting`] for a run without steps, a warm-up that fills it, or rates that are none.
    pub fn new(peak: f64, floor: f64, warmup: Option<u64>, usual: u64, steps: u64) -> Result<Self> {
        if steps == 0 {
            return Err(Error::setting("--steps", "expected at least 1, found 0"));
        }
        if !(peak > 0.0 && peak.is_finite()) {
            return Err(Error::setting("--lr", format!("expected a positive number, found {peak}")));
        }
        if !(0.0..=peak).contains(&floor) {
            return Err(Error::setting("--min-lr", format!("expected 0 to --lr ({peak}), found {floor}")));
        }
        let warmup = warmup.unwrap_or(usual.min(steps / 20));
        if warmup >= steps {
            return Err(Error::setting(
                "--warmup-steps",
                format!("expected fewer than --steps ({steps}), found {warmup}"),
            ));
        }
        Ok(Self { peak, floor, warmup, steps })
    }

    /// The rate of `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.floor + 0.5 * (self.peak - self.floor) * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_its_floor() {
        let s = Schedule::new(1e-3, 1e-5, Some(10), 0, 100).unwrap();
        let rates: Vec<f64> = (0..=100).map(|i| s.rate(i)).collect();
        assert!(rates[..10].is_sorted() && rates[0] > 0.0);
        assert!((rates[9] - 1e-3).abs() < 1e-12 && (rates[10] - 1e-3).abs() < 1e-12);
        assert!(rates[10..].iter().rev().is_sorted());
        assert!((rates[100] - 1e-5).abs() < 1e-12 && (s.rate(10_000) - 1e-5).abs() < 1e-12);
    }

    #[test]
    fn an_unset_warm_up_fits_any_run_and_a_wrong_one_is_refused() {
        assert_eq!(Schedule::new(1.0, 0.0, None, 10_000, 100).unwrap().warmup, 5);
        assert_eq!(Schedule::new(1.0, 0.0, None, 10_000, 1).unwrap().warmup, 0);
        assert_eq!(Schedule::new(1.0, 0.0, None, 10_000, 400_000).unwrap().warmup, 10_000);
        assert!(Schedule::new(1.0, 0.0, Some(100), 0, 100).is_err());
        assert!(Schedule::new(1.0, 0.0, None, 0, 0).is_err());
        assert!(Schedule::new(f64::NAN, 0.0, None, 0, 9).is_err());
        assert!(Schedule::new(1e-4, 1e-3, None, 0, 9).is_err());
    }
}
