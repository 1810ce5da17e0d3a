//! Calibration of a classifier: the agreement of its confidence with its accuracy.

use serde::Serialize;

/// The number of confidence intervals, which have equal width.
pub const BINS: usize = 15;

/// The images with similar confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: u32,
    /// Number of correctly classified images.
    pub correct: u32,
    /// Sum of the highest probabilities.
    sum: f64,
}

impl Bin {
    /// The mean of the highest probabilities; `None` if there are no images.
    pub fn confidence(&self) -> Option<f64> {
        (self.images > 0).then(|| self.sum / f64::from(self.images))
    }

    /// The fraction of correctly classified images; `None` if there are no images.
    pub fn accuracy(&self) -> Option<f64> {
        (self.images > 0).then(|| f64::from(self.correct) / f64::from(self.images))
    }
}

/// Images by the classifier's confidence (Guo et al. 2017, arXiv 1706.04599).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    /// Bin `i` of [`BINS`] has the images whose highest probability is more than `i / BINS` and at most `(i + 1) / BINS`.
    pub bins: [Bin; BINS],
    log_likelihood: f64,
}

impl Calibration {
    /// Adds an image whose highest probability is `confidence`, for the correct class or not. `true_probability` is the probability of the true
    /// class.
    pub fn add(&mut self, confidence: f64, correct: bool, true_probability: f64) {
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let bin = &mut self.bins[bin];
        bin.images += 1;
        bin.correct += u32::from(correct);
        bin.sum += confidence;
        // A probability that underflows to 0 must not give an infinite loss.
        self.log_likelihood += true_probability.max(f64::MIN_POSITIVE).ln();
    }

    /// The number of images.
    pub fn total(&self) -> u32 {
        self.bins.iter().map(|bin| bin.images).sum()
    }

    /// The expected calibration error: the absolute difference between accuracy and mean confidence in each bin, averaged over images. 0 if
    /// there are none.
    pub fn expected_calibration_error(&self) -> f64 {
        let gap = |bin: &Bin| (f64::from(bin.correct) - bin.sum).abs();
        self.bins.iter().map(gap).sum::<f64>() / f64::from(self.total().max(1))
    }

    /// The mean of −ln p of the images' true classes; 0 if there are none.
    pub fn negative_log_likelihood(&self) -> f64 {
        -self.log_likelihood / f64::from(self.total().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_include_their_upper_bounds_and_the_error_is_the_mean_gap() {
        let mut calibration = Calibration::default();
        assert_eq!(
            (calibration.expected_calibration_error(), calibration.negative_log_likelihood()),
            (0.0, 0.0)
        );
        for (confidence, correct) in [(0.2, true), (0.2, false), (1.0, true), (0.95, false), (0.0, false)] {
            calibration.add(confidence, correct, 0.5);
        }
        let counts: Vec<u32> = calibration.bins.iter().map(|bin| bin.images).collect();
        assert_eq!(counts, [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let expected = (0.0 + 2.0 * (0.5f64 - 0.2).abs() + 2.0 * (0.5f64 - 0.975).abs()) / 5.0;
        assert!(
            (calibration.expected_calibration_error() - expected).abs() < 1e-12,
            "{}",
            calibration.expected_calibration_error()
        );
        assert!((calibration.negative_log_likelihood() - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_calibrated_classifier_has_no_calibration_error() {
        let mut calibration = Calibration::default();
        for confidence in [0.3, 0.5, 0.8] {
            (0..10).for_each(|i| calibration.add(confidence, f64::from(i) < 10.0 * confidence, confidence));
        }
        assert!(calibration.expected_calibration_error() < 1e-12);
        calibration.add(1.0, false, 0.0);
        assert!(calibration.negative_log_likelihood().is_finite());
    }
}
