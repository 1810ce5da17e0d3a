//! The kernel distance (Bińkowski et al. 2018, arXiv 1801.01401; on Inception's features it is the KID).

use nalgebra::DMatrix;
use rayon::prelude::*;
use serde::Serialize;
use tiny_cats_models::random::{Purpose, Stream};

use super::{
    Error, Features, Interval, Result,
    bootstrap::{check_resamples, resample},
    features::check_comparable,
};

/// The number of images whose kernel with all others is in memory at once, for each thread.
const CHUNK: usize = 64;
/// The largest number of subsets, which bounds the time.
const MAX_SUBSETS: usize = 10_000;
/// The first number of the random streams for subsets, far from those for resamples.
const SUBSETS: u64 = 1 << 32;

/// The squared maximum mean discrepancy with the kernel k(x, y) = (x·y / dims + 1)³. It is unbiased: if both sets are from one
/// distribution, it is about 0, and below it as often as above.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kernel {
    /// The estimate from all images.
    pub distance: f64,
    /// Its interval; `None` without resamples. Copies of an image in a resample are not paired with each other, which would be a bias.
    pub interval: Option<Interval>,
    /// The mean over subsets, which is usually reported.
    pub subset_mean: f64,
    /// The standard deviation over subsets, which is usually reported. It is that of a subset, not of the mean.
    pub subset_deviation: f64,
    /// The number of subsets, sampled without replacement from each side.
    pub subsets: usize,
    /// Images in a subset, of each side.
    pub subset_size: usize,
}

/// The kernel distance of two sets of images. By `seed`, `subsets` of `subset_size` images of each set are sampled, and `resamples` for the
/// interval.
///
/// # Errors
/// [`Error::TooFew`] if there are fewer than two images on a side, [`Error::Shape`] if the features are of different kinds.
/// [`Error::Setting`] if there are no subsets, if they have fewer than two images or more than there are, or if there are too many subsets
/// or resamples.
pub fn kernel_distance(
    real: &Features,
    generated: &Features,
    (subsets, subset_size): (usize, usize),
    resamples: usize,
    seed: u64,
) -> Result<Kernel> {
    check_comparable(real, generated, "kernel distance", 2)?;
    check_resamples(resamples)?;
    let max = real.len().min(generated.len());
    if !(2..=max).contains(&subset_size) {
        let message = format!("expected subsets of 2 to {max} images, found {subset_size}");
        return Err(Error::Setting { setting: "subset size", message });
    }
    if !(1..=MAX_SUBSETS).contains(&subsets) {
        let message = format!("expected 1 to {MAX_SUBSETS}, found {subsets}");
        return Err(Error::Setting { setting: "subsets", message });
    }
    // All estimates are quadratic forms of the same kernel with different counts of the images: a column for each.
    let counts = |side, n: usize| {
        let mut columns = vec![vec![1.0; n]];
        columns.extend((0..subsets).map(|number| subset(seed, number, side, n, subset_size)));
        columns.extend((0..resamples).map(|number| resample(seed, number, side, n)));
        DMatrix::from_iterator(n, columns.len(), columns.into_iter().flatten())
    };
    let (real_counts, generated_counts) = (counts(0, real.len()), counts(1, generated.len()));
    let real_means = mean_within_set(real, &real_counts);
    let generated_means = mean_within_set(generated, &generated_counts);
    let cross_sums = quadratic_forms(real, &real_counts, generated, &generated_counts);
    let estimate = |i: usize| {
        let pairs = real_counts.column(i).sum() * generated_counts.column(i).sum();
        real_means[i] + generated_means[i] - 2.0 * cross_sums[i] / pairs
    };
    let estimates: Vec<f64> = (0..cross_sums.len()).map(estimate).collect();
    let (distance, subset_estimates, resampled) =
        (estimates[0], &estimates[1..=subsets], estimates[1 + subsets..].to_vec());
    let mean = subset_estimates.iter().sum::<f64>() / subsets as f64;
    let variance = subset_estimates.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / subsets as f64;
    Ok(Kernel {
        distance,
        interval: Interval::new(distance, resampled),
        subset_mean: mean,
        subset_deviation: variance.sqrt(),
        subsets,
        subset_size,
    })
}

/// Selects the images in subset `number`: 1 for those of the `n` images that are in it, 0 for the others.
fn subset(seed: u64, number: usize, side: u64, n: usize, size: usize) -> Vec<f64> {
    let mut stream = Stream::new(seed, Purpose::Evaluation, SUBSETS + 2 * number as u64 + side);
    let mut chosen = vec![0.0; n];
    for index in stream.permutation(n).into_iter().take(size) {
        chosen[index as usize] = 1.0;
    }
    chosen
}

/// (x·y / dims + 1)³.
fn kernel(product: f64, dims: usize) -> f64 {
    let base = product / dims as f64 + 1.0;
    base * base * base
}

/// For each column of counts, the mean of the kernel over pairs of different images of one set.
fn mean_within_set(features: &Features, counts: &DMatrix<f64>) -> Vec<f64> {
    let self_kernels: Vec<f64> = (0..features.len())
        .map(|i| {
            let square = features.row(i).iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            kernel(square, features.dims())
        })
        .collect();
    let all = quadratic_forms(features, counts, features, counts);
    let of_column = |(all, counts): (f64, &[f64])| {
        let (mut same, mut pairs) = (0.0, 0.0);
        for (&count, &self_kernel) in counts.iter().zip(&self_kernels) {
            same += count * count * self_kernel;
            pairs += count * count;
        }
        let total: f64 = counts.iter().sum();
        // A resample that is one image many times has no pairs, and no estimate.
        let pairs = total * total - pairs;
        if pairs > 0.0 { (all - same) / pairs } else { 0.0 }
    };
    all.into_iter().zip(counts.as_slice().chunks(features.len())).map(of_column).collect()
}

/// For each column i of counts Σ a_ji b_ki k(x_j, y_k), over the images j of one set and k of the other. At any time, the kernel of only a
/// few images with all others is in memory.
fn quadratic_forms(x: &Features, a: &DMatrix<f64>, y: &Features, b: &DMatrix<f64>) -> Vec<f64> {
    let chunks: Vec<usize> = (0..x.len()).step_by(CHUNK).collect();
    let parts: Vec<Vec<f64>> = (chunks.into_par_iter())
        .map(|from| {
            let to = x.len().min(from + CHUNK);
            let few = x.columns(from, to).transpose();
            let mut sums = vec![0.0; a.ncols()];
            for start in (0..y.len()).step_by(16 * CHUNK) {
                let end = y.len().min(start + 16 * CHUNK);
                let mut k = &few * y.columns(start, end);
                k.apply(|value| *value = kernel(*value, x.dims()));
                let weighted = k * b.rows(start, end - start);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += weighted.column(i).dot(&a.column(i).rows(from, to - from));
                }
            }
            sums
        })
        .collect();
    let zeros = vec![0.0; a.ncols()];
    parts.into_iter().fold(zeros, |sums, part| sums.into_iter().zip(part).map(|(s, p)| s + p).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    fn rows(features: &Features) -> Vec<&[f32]> {
        (0..features.len()).map(|i| features.row(i)).collect()
    }

    /// The definition, pair by pair.
    fn by_definition(x: &[&[f32]], y: &[&[f32]]) -> f64 {
        let k = |a: &[f32], b: &[f32]| {
            let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            (dot / a.len() as f64 + 1.0).powi(3)
        };
        let mean = |a: &[&[f32]], b: &[&[f32]], same: bool| {
            let (mut sum, mut pairs) = (0.0, 0.0);
            for (i, p) in a.iter().enumerate() {
                for (_, q) in b.iter().enumerate().filter(|&(j, _)| !same || i != j) {
                    sum += k(p, q);
                    pairs += 1.0;
                }
            }
            sum / pairs
        };
        mean(x, x, true) + mean(y, y, true) - 2.0 * mean(x, y, false)
    }

    #[test]
    fn the_kernel_distance_matches_its_definition() {
        let (x, y) = (normal(1, 90, 5, 0.0), normal(2, 70, 5, 0.3));
        let result = kernel_distance(&x, &y, (4, 20), 0, 8).unwrap();
        assert!((result.distance - by_definition(&rows(&x), &rows(&y))).abs() < 1e-12);
        let chosen = |f, side, number| -> Vec<&[f32]> {
            let counts = subset(8, number, side, Features::len(f), 20);
            rows(f).into_iter().zip(counts).filter(|(_, c)| *c == 1.0).map(|(row, _)| row).collect()
        };
        let subset_estimates: Vec<f64> =
            (0..4).map(|i| by_definition(&chosen(&x, 0, i), &chosen(&y, 1, i))).collect();
        let mean = subset_estimates.iter().sum::<f64>() / 4.0;
        assert!((result.subset_mean - mean).abs() < 1e-12);
        assert!(result.subset_deviation > 0.0 && result.interval.is_none());
    }

    #[test]
    fn the_kernel_distance_is_unbiased() {
        // Unbiased: the mean over many halves of one distribution is 0 within its standard error.
        let halves: Vec<f64> = (0..60)
            .map(|i| {
                let (a, b) = (normal(100 + 2 * i, 24, 3, 0.0), normal(101 + 2 * i, 24, 3, 0.0));
                kernel_distance(&a, &b, (1, 2), 0, 0).unwrap().distance
            })
            .collect();
        let n = halves.len() as f64;
        let mean = halves.iter().sum::<f64>() / n;
        let error = (halves.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt();
        assert!(mean.abs() < 3.0 * error && halves.iter().any(|&v| v < 0.0), "{mean} ± {error}");
        let (a, b) = (normal(1, 100, 3, 0.0), normal(2, 100, 3, 1.0));
        let distant = kernel_distance(&a, &b, (10, 50), 100, 0).unwrap();
        let interval = distant.interval.unwrap();
        assert!(0.0 < interval.low && interval.low < distant.distance && distant.distance < interval.high);
        assert!(interval.bias.abs() < (interval.high - interval.low) / 4.0, "{interval:?}");
        assert_eq!(distant, kernel_distance(&a, &b, (10, 50), 100, 0).unwrap());
        assert_ne!(distant.subset_mean, kernel_distance(&a, &b, (10, 50), 100, 1).unwrap().subset_mean);
    }

    #[test]
    fn invalid_settings_are_rejected() {
        let (a, one) = (normal(1, 9, 3, 0.0), normal(1, 1, 3, 0.0));
        let error = |a: &Features, b: &Features, subsets| {
            kernel_distance(a, b, subsets, 0, 0).unwrap_err().to_string()
        };
        assert!(error(&a, &one, (1, 2)).contains("at least 2 images"));
        assert!(error(&a, &a, (1, 10)).contains("subsets of 2 to 9"));
        assert!(error(&a, &a, (1, 1)).contains("subsets of 2 to 9"));
        assert!(error(&a, &a, (0, 5)).contains("expected 1 to 10000"));
        assert!(kernel_distance(&a, &a, (1, 5), usize::MAX, 0).is_err());
    }
}
