//! The Fréchet distance (Heusel et al. 2017, arXiv 1706.08500; on Inception's features it is the FID).

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use super::{
    Error, Features, Interval, Result,
    bootstrap::{check_resamples, resample},
    features::check_comparable,
};

/// The number of parts in which means and covariances are summed, sequentially within each. It does not depend on the number of threads.
const PARTS: usize = 8;
/// The number of images that are multiplied at once.
const CHUNK: usize = 256;
/// The largest number of features; a covariance has the square of it as entries.
const MAX_COVARIANCE_FEATURES: usize = 4096;

/// The mean and covariance of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Moments {
    /// The moments of a sample: the sum of squared deviations is divided by the number of images minus one.
    ///
    /// # Errors
    /// [`Error::TooFew`] if there is only one image, [`Error::Shape`] if there are more than 4096 features.
    pub fn new(features: &Features) -> Result<Self> {
        Self::weighted(features, &vec![1.0; features.len()])
    }

    /// The moments of a sample with each image repeated `weights` times.
    fn weighted(features: &Features, weights: &[f64]) -> Result<Self> {
        let (n, dims) = (features.len(), features.dims());
        if n < 2 {
            return Err(Error::TooFew { measure: "Fréchet distance", expected: 2, found: n });
        }
        if dims > MAX_COVARIANCE_FEATURES {
            return Err(Error::shape(format!("at most {MAX_COVARIANCE_FEATURES} features"), dims));
        }
        let part = n.div_ceil(PARTS);
        let ranges: Vec<(usize, usize)> =
            (0..n).step_by(part).map(|from| (from, (from + part).min(n))).collect();
        let total: f64 = weights.iter().sum();
        let sums: Vec<DVector<f64>> = (ranges.par_iter())
            .map(|&(from, to)| {
                let mut sum = DVector::zeros(dims);
                for (i, &weight) in weights.iter().enumerate().take(to).skip(from) {
                    sum.iter_mut().zip(features.row(i)).for_each(|(sum, &v)| *sum += weight * f64::from(v));
                }
                sum
            })
            .collect();
        let mean = sums.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| DVector::zeros(dims)) / total;
        let products: Vec<DMatrix<f64>> = (ranges.par_iter())
            .map(|&(from, to)| {
                let mut product = DMatrix::zeros(dims, dims);
                for from in (from..to).step_by(CHUNK) {
                    let to = to.min(from + CHUNK);
                    let mut centered = features.columns(from, to);
                    for (mut column, weight) in centered.column_iter_mut().zip(&weights[from..to]) {
                        column -= &mean;
                        column *= weight.sqrt();
                    }
                    product.gemm(1.0, &centered, &centered.transpose(), 1.0);
                }
                product
            })
            .collect();
        let product = products.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| DMatrix::zeros(dims, dims));
        Ok(Self { mean, covariance: product / (total - 1.0) })
    }

    /// The squared Fréchet (2-Wasserstein) distance of two normal distributions with these moments: ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr
    /// (Σ₁Σ₂)^½.
    ///
    /// With Σ₁ = LLᵀ, the eigenvalues of Σ₁Σ₂ are those of the symmetric LᵀΣ₂L, except for zeros. These are real and, except for rounding,
    /// not negative.
    ///
    /// # Errors
    /// [`Error::Shape`] if the features are of different kinds.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        let (dims, found) = (self.mean.len(), other.mean.len());
        if dims != found {
            return Err(Error::shape(format!("{dims} numbers for each image"), found));
        }
        let mean_distance = (&self.mean - &other.mean).norm_squared();
        let factor = factor(&self.covariance);
        let product = factor.transpose() * (&other.covariance * &factor);
        let cross_term = roots((&product + product.transpose()) * 0.5);
        let distance = mean_distance + self.covariance.trace() + other.covariance.trace() - 2.0 * cross_term;
        Ok(distance.max(0.0))
    }
}

/// A matrix L with as many columns as the covariance has rank, and LLᵀ the covariance. This is a pivoted Cholesky decomposition, which
/// stops when only rounding errors remain. It always exists, and needs no iteration to convergence.
fn factor(covariance: &DMatrix<f64>) -> DMatrix<f64> {
    let dims = covariance.nrows();
    let mut remaining: Vec<f64> = covariance.diagonal().iter().copied().collect();
    let negligible = remaining.iter().copied().fold(0.0, f64::max) * f64::EPSILON * dims as f64;
    let mut factor = DMatrix::zeros(dims, dims);
    let mut rank = 0;
    while rank < dims {
        let next = (0..dims).fold(0, |best, i| if remaining[i] > remaining[best] { i } else { best });
        if remaining[next] <= negligible {
            break;
        }
        let explained = factor.columns(0, rank) * factor.row(next).columns(0, rank).transpose();
        let mut column: DVector<f64> = (covariance.column(next) - explained) / remaining[next].sqrt();
        column[next] = remaining[next].sqrt();
        for (i, (left, value)) in remaining.iter_mut().zip(column.iter_mut()).enumerate() {
            // An earlier pivot has no remaining variance, except for rounding.
            if *left == f64::NEG_INFINITY {
                *value = 0.0;
            } else if i == next {
                *left = f64::NEG_INFINITY;
            } else {
                *left -= *value * *value;
            }
        }
        factor.set_column(rank, &column);
        rank += 1;
    }
    factor.resize_horizontally(rank, 0.0)
}

/// The sum of the square roots of a symmetric matrix's positive eigenvalues. The eigenvalues are computed from the similar tridiagonal
/// matrix by bisection (Givens 1954), in a fixed number of steps.
fn roots(symmetric: DMatrix<f64>) -> f64 {
    /// Bisections of an interval from 0 to a bound of all eigenvalues; smaller values are rounding errors.
    const HALVINGS: usize = 64;
    let largest = symmetric.amax();
    if largest <= 0.0 {
        return 0.0;
    }
    let scaled = symmetric / largest;
    let (diagonal, off_diagonal) = match scaled.nrows() {
        1 => (vec![scaled[0]], Vec::new()),
        _ => {
            let (diagonal, off_diagonal) = scaled.symmetric_tridiagonalize().unpack_tridiagonal();
            (diagonal.as_slice().to_vec(), off_diagonal.as_slice().to_vec())
        }
    };
    let n = diagonal.len();
    let radius = |i: usize| {
        let left = if i > 0 { off_diagonal[i - 1].abs() } else { 0.0 };
        diagonal[i].abs() + left + off_diagonal.get(i).map_or(0.0, |b| b.abs())
    };
    let bound = (0..n).map(radius).fold(0.0, f64::max);
    let squares: Vec<f64> = std::iter::once(0.0).chain(off_diagonal.iter().map(|b| b * b)).collect();
    // By Sylvester's law of inertia, T − xI has as many negative pivots as there are eigenvalues below x.
    let eigenvalues_below = |x: f64| {
        let (mut pivot, mut count) = (1.0, 0);
        for (d, square) in diagonal.iter().zip(&squares) {
            pivot = d - x - square / pivot;
            if pivot.abs() < f64::MIN_POSITIVE {
                pivot = -f64::MIN_POSITIVE;
            }
            count += usize::from(pivot < 0.0);
        }
        count
    };
    let root = |k: usize| {
        let (mut low, mut high) = (0.0, bound);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if eigenvalues_below(middle) > k { high = middle } else { low = middle }
        }
        low.sqrt()
    };
    (0..n).map(root).sum::<f64>() * largest.sqrt()
}

/// The Fréchet distance of two sets of images.
///
/// It depends on the number of images, so it is only comparable for equal numbers. With fewer images than features it depends mainly on
/// their number.
///
/// # Errors
/// [`Error::TooFew`] if there are fewer than two images on a side, [`Error::Shape`] if the features are of different kinds or more than
/// 4096.
pub fn frechet_distance(real: &Features, generated: &Features) -> Result<f64> {
    check_comparable(real, generated, "Fréchet distance", 2)?;
    Moments::new(real)?.distance(&Moments::new(generated)?)
}

/// The interval of the [distance](frechet_distance) from `resamples` resamples; `None` if there are fewer than two. The time grows with the
/// cube of the number of features.
///
/// # Errors
/// As [`frechet_distance`], and [`Error::Setting`] if there are too many resamples.
pub fn frechet_interval(
    real: &Features,
    generated: &Features,
    resamples: usize,
    seed: u64,
) -> Result<Option<Interval>> {
    check_resamples(resamples)?;
    let metric = frechet_distance(real, generated)?;
    let resampled = |number| {
        let moments = |features: &Features, side| {
            Moments::weighted(features, &resample(seed, number, side, features.len()))
        };
        moments(real, 0)?.distance(&moments(generated, 1)?)
    };
    let resampled: Vec<f64> = (0..resamples).into_par_iter().map(resampled).collect::<Result<_>>()?;
    Ok(Interval::new(metric, resampled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    fn scale(a: &Features) -> f64 {
        Moments::new(a).unwrap().covariance.trace()
    }

    #[test]
    fn the_frechet_distance_is_symmetric_and_zero_for_equal_sets() {
        // Also with fewer images than features, where covariances are singular.
        for (n, m, dims) in [(60, 40, 6), (5, 9, 12), (2, 2, 3), (700, 300, 1)] {
            let (a, b) = (normal(1, n, dims, 0.0), normal(2, m, dims, 0.5));
            let (ab, ba) = (frechet_distance(&a, &b).unwrap(), frechet_distance(&b, &a).unwrap());
            assert!(ab > 0.0 && (ab - ba).abs() < 1e-6 * scale(&a), "{ab} {ba}");
            assert!(frechet_distance(&a, &a).unwrap() < 1e-6 * scale(&a));
            let far = normal(2, m, dims, 3.0);
            assert!(frechet_distance(&a, &far).unwrap() > ab);
        }
    }

    #[test]
    fn the_frechet_distance_matches_known_values() {
        // In one dimension (μ₁ − μ₂)² + (σ₁ − σ₂)².
        let of = |values: &[f32]| Features::new(1, values.to_vec()).unwrap();
        let distance = frechet_distance(&of(&[-1.0, 1.0]), &of(&[1.0, 5.0])).unwrap();
        assert!((distance - (9.0 + 2.0)).abs() < 1e-12, "{distance}");
        // A shift of every feature, for any covariance.
        let (a, b) = (normal(3, 50, 7, 0.0), normal(3, 50, 7, 2.0));
        let distance = frechet_distance(&a, &b).unwrap();
        assert!((distance - 28.0).abs() < 1e-5, "{distance}");
    }

    /// Compares with nalgebra's iteration on well and badly conditioned matrices, and with known results.
    #[test]
    fn matrix_factors_and_roots_are_correct() {
        for (n, dims) in [(40, 12), (5, 12), (2, 9), (30, 1), (3, 2)] {
            let Moments { covariance, .. } = Moments::new(&normal(7, n, dims, 0.0)).unwrap();
            let factor = factor(&covariance);
            assert_eq!(factor.ncols(), dims.min(n - 1));
            assert!((&factor * factor.transpose() - &covariance).amax() < 1e-12 * covariance.amax());
            let eigenvalues = covariance.clone().symmetric_eigen().eigenvalues;
            let expected: f64 = eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
            let found = roots(covariance);
            assert!((found - expected).abs() < 1e-6 * expected, "{found}, expected {expected}");
        }
        assert_eq!((roots(DMatrix::zeros(4, 4)), roots(DMatrix::zeros(0, 0))), (0.0, 0.0));
        for n in [1, 2, 300] {
            assert!((roots(DMatrix::identity(n, n) * 9.0) - 3.0 * n as f64).abs() < 1e-9);
        }
        assert_eq!(factor(&DMatrix::zeros(4, 4)).ncols(), 0);
        // All images equal, and all equal except for one number.
        let equal = Features::new(30, vec![0.5; 30 * 40]).unwrap();
        assert_eq!(frechet_distance(&equal, &equal).unwrap(), 0.0);
        let mut numbers = vec![0.5; 30 * 40];
        numbers[7] = 0.75;
        let one = Features::new(30, numbers).unwrap();
        assert!(
            frechet_distance(&one, &equal).unwrap() > 0.0 && frechet_distance(&one, &one).unwrap() < 1e-9
        );
    }

    #[test]
    fn weights_equal_repeated_images() {
        let a = normal(4, 9, 4, 0.0);
        let mut weights = vec![1.0; 9];
        (weights[2], weights[5]) = (3.0, 0.0);
        let same = a.select(&[0, 1, 2, 2, 2, 3, 4, 6, 7, 8]).unwrap();
        let (a, b) = (Moments::weighted(&a, &weights).unwrap(), Moments::new(&same).unwrap());
        assert!((a.mean - b.mean).amax() < 1e-12 && (a.covariance - b.covariance).amax() < 1e-12);
    }

    #[test]
    fn intervals_are_deterministic_and_narrow_with_more_images() {
        let interval =
            |n| frechet_interval(&normal(5, n, 2, 0.0), &normal(6, n, 2, 1.0), 60, 3).unwrap().unwrap();
        let (few, many) = (interval(30), interval(480));
        assert_eq!(few, interval(30));
        assert!(few.high - few.low > 2.0 * (many.high - many.low), "{few:?} {many:?}");
        assert!(many.low < 2.0 && many.high > 2.0, "{many:?}");
    }

    #[test]
    fn incomparable_features_are_rejected() {
        let error = |a: &Features, b: &Features| frechet_distance(a, b).unwrap_err().to_string();
        let (one, two) = (normal(1, 1, 3, 0.0), normal(1, 2, 3, 0.0));
        assert!(error(&one, &two).contains("expected at least 2 images on each side, found 1"));
        assert!(error(&two, &normal(1, 2, 4, 0.0)).contains("expected 3 numbers for each image, found 4"));
        assert!(error(&normal(1, 2, 5000, 0.0), &normal(2, 2, 5000, 0.0)).contains("at most 4096"));
        assert!(frechet_interval(&two, &two, usize::MAX, 0).is_err());
        // The largest and smallest possible numbers.
        let huge = Features::new(2, vec![3e38, -3e38, -3e38, 3e38, 1e38, 0.0]).unwrap();
        let tiny = Features::new(2, vec![1e-44, 0.0, 0.0, 1e-44]).unwrap();
        assert!(frechet_distance(&huge, &tiny).unwrap().is_finite());
    }
}
