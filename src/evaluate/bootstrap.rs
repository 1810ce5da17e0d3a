//! Confidence intervals.

use serde::Serialize;
use tiny_cats_models::random::{Purpose, Stream};

use super::{Error, Result};

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// The largest number of resamples; more do not improve an interval.
const MAX_RESAMPLES: usize = 100_000;

/// The 95 % interval of a proportion of `count` in `total` (Wilson 1927), which also holds for few images.
pub fn wilson_interval(count: u32, total: u32) -> [f64; 2] {
    let n = f64::from(total);
    if total == 0 {
        return [0.0, 1.0];
    }
    let p = f64::from(count) / n;
    let center = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half_width = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    [center - half_width, center + half_width]
}

/// The sampling variation of a metric, by the bootstrap (Efron 1979): both sets of images are resampled with replacement, and the metric is
/// computed again.
///
/// A resample has fewer different images than the sample. A metric that depends on their number, such as the Fréchet distance, is then
/// larger. So the percentiles are those of the resamples' deviations from their own mean. The interval is that of the metric for this
/// number of images, not of its limit for infinitely many.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The metric plus the 2.5 % quantile of the resamples' deviations from their mean.
    pub low: f64,
    /// The metric plus their 97.5 % quantile.
    pub high: f64,
    /// The resamples' mean minus the metric. The metric exceeds its limit for infinitely many images by about as much.
    pub bias: f64,
    /// The number of resamples.
    pub resamples: usize,
}

impl Interval {
    /// The interval from the resamples of a metric; `None` if there are fewer than two.
    pub(super) fn new(metric: f64, mut resampled: Vec<f64>) -> Option<Self> {
        if resampled.len() < 2 {
            return None;
        }
        resampled.sort_by(f64::total_cmp);
        let mean = resampled.iter().sum::<f64>() / resampled.len() as f64;
        let bound = |share| metric + quantile(&resampled, share) - mean;
        Some(Self { low: bound(0.025), high: bound(0.975), bias: mean - metric, resamples: resampled.len() })
    }
}

/// The quantile `share` of sorted numbers, at least one; linear between neighbors, as by default in NumPy.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let low = position as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * position.fract()
}

/// The multiplicity of each of `n` images in resample number `number`; `side` distinguishes the two sets.
pub(super) fn resample(seed: u64, number: usize, side: u64, n: usize) -> Vec<f64> {
    let mut stream = Stream::new(seed, Purpose::Evaluation, 2 * number as u64 + side);
    let mut counts = vec![0.0; n];
    for _ in 0..n {
        counts[stream.uniform_int(n as u32) as usize] += 1.0;
    }
    counts
}

/// Checks the number of resamples.
///
/// # Errors
/// [`Error::Setting`] if there are too many.
pub(super) fn check_resamples(resamples: usize) -> Result<()> {
    if resamples <= MAX_RESAMPLES {
        return Ok(());
    }
    let message = format!("expected at most {MAX_RESAMPLES} resamples, found {resamples}");
    Err(Error::Setting { setting: "bootstrap", message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_as_wide_as_the_resamples_and_centered_on_the_metric() {
        let resampled: Vec<f64> = (0..=1000).rev().map(f64::from).collect();
        let interval = Interval::new(100.0, resampled).unwrap();
        assert_eq!((interval.low, interval.high), (100.0 + 25.0 - 500.0, 100.0 + 975.0 - 500.0));
        assert_eq!((interval.bias, interval.resamples), (400.0, 1001));
        assert_eq!(Interval::new(1.0, vec![1.0]), None);
    }

    #[test]
    fn resamples_keep_the_number_of_images_and_differ() {
        let counts = resample(1, 0, 0, 50);
        assert_eq!(counts.iter().sum::<f64>(), 50.0);
        assert_eq!(counts, resample(1, 0, 0, 50));
        for other in [resample(2, 0, 0, 50), resample(1, 1, 0, 50), resample(1, 0, 1, 50)] {
            assert_ne!(counts, other);
        }
    }
}
