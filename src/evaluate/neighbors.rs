//! Metrics of two sets of images by nearest neighbors: precision and recall, density and coverage.

use rayon::prelude::*;
use serde::Serialize;

use super::{Features, Result, features::check_comparable};

/// Number of neighbors for precision and recall, as their authors recommend.
pub const PRECISION_NEIGHBORS: usize = 3;
/// Number of neighbors for density and coverage, as their authors recommend.
pub const DENSITY_NEIGHBORS: usize = 5;

/// Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).
///
/// Each image of a set has a ball that reaches to its k-th nearest neighbor in the set. An image is in the manifold of the set if it is in
/// one of these balls. Both metrics depend on the numbers of images, and are most meaningful if these are equal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrecisionRecall {
    /// The fraction of generated images in the manifold of the real ones: how many could be real.
    pub precision: f64,
    /// The fraction of real images in the manifold of the generated ones: how many could have been generated.
    pub recall: f64,
    /// The number of neighbors, k.
    #[serde(rename = "neighbours")]
    pub neighbors: usize,
}

/// Density and coverage (Naeem et al. 2020, arXiv 2002.09797): like precision and recall, but only by the manifold of the real images, and
/// less sensitive to outliers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DensityCoverage {
    /// The mean number of real images' balls that a generated image is in, divided by k. Each ball reaches to the image's k-th nearest
    /// neighbor. It is about 1 if both sets are from one distribution, and may exceed that.
    pub density: f64,
    /// The fraction of real images with a generated image in their ball.
    pub coverage: f64,
    /// The number of neighbors, k.
    #[serde(rename = "neighbours")]
    pub neighbors: usize,
}

/// Improved precision and recall with balls that reach to the `k`-th nearest neighbor, and include it.
///
/// # Errors
/// [`TooFew`](super::Error::TooFew) if there are `k` images or fewer on a side, [`Shape`](super::Error::Shape) if the features are of
/// different kinds.
pub fn precision_recall(real: &Features, generated: &Features, k: usize) -> Result<PrecisionRecall> {
    check_comparable(real, generated, "precision and recall", k.max(1).saturating_add(1))?;
    let (real_radii, generated_radii) = (radii(real, k), radii(generated, k));
    Ok(PrecisionRecall {
        precision: fraction_in_manifold(generated, real, &real_radii),
        recall: fraction_in_manifold(real, generated, &generated_radii),
        neighbors: k,
    })
}

/// The fraction of `images` in the ball of some image of `manifold`.
fn fraction_in_manifold(images: &Features, manifold: &Features, radii: &[f64]) -> f64 {
    let is_in_manifold = |&i: &usize| {
        (0..manifold.len()).any(|j| squared_distance(images.row(i), manifold.row(j)) <= radii[j])
    };
    let count = (0..images.len()).into_par_iter().filter(is_in_manifold).count();
    count as f64 / images.len() as f64
}

/// Density and coverage with balls that reach to the `k`-th nearest neighbor, without it, as in the authors' program.
///
/// # Errors
/// As [`precision_recall`].
pub fn density_coverage(real: &Features, generated: &Features, k: usize) -> Result<DensityCoverage> {
    check_comparable(real, generated, "density and coverage", k.max(1).saturating_add(1))?;
    let radii = radii(real, k);
    let counts: Vec<usize> = (0..real.len())
        .into_par_iter()
        .map(|i| {
            (0..generated.len())
                .filter(|&j| squared_distance(real.row(i), generated.row(j)) < radii[i])
                .count()
        })
        .collect();
    let covered = counts.iter().filter(|&&count| count > 0).count();
    Ok(DensityCoverage {
        density: counts.iter().sum::<usize>() as f64 / (k.max(1) * generated.len()) as f64,
        coverage: covered as f64 / real.len() as f64,
        neighbors: k,
    })
}

/// The squared distance of each image to its `k`-th nearest among the others; there are more than `k`.
fn radii(features: &Features, k: usize) -> Vec<f64> {
    let radius = |i: usize| {
        let others = (0..features.len()).filter(|&j| j != i);
        let mut distances: Vec<f64> =
            others.map(|j| squared_distance(features.row(i), features.row(j))).collect();
        *distances.select_nth_unstable_by(k.max(1) - 1, f64::total_cmp).1
    };
    (0..features.len()).into_par_iter().map(radius).collect()
}

/// The squared distance of two rows, always summed in the same order: that of a row to its copy is 0.
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            let difference = f64::from(a) - f64::from(b);
            *sum += difference * difference;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    #[test]
    fn only_the_same_distribution_has_full_precision_and_recall() {
        let (a, far) = (normal(1, 60, 4, 0.0), normal(2, 50, 4, 100.0));
        for k in [1, 3, 7] {
            let same = precision_recall(&a, &a, k).unwrap();
            assert_eq!((same.precision, same.recall), (1.0, 1.0));
            assert_eq!(density_coverage(&a, &a, k).unwrap().coverage, 1.0);
            // Each ball holds its own image and k − 1 others.
            assert!((density_coverage(&a, &a, k).unwrap().density - 1.0).abs() < 1e-12);
            let distant = precision_recall(&a, &far, k).unwrap();
            assert_eq!((distant.precision, distant.recall), (0.0, 0.0));
            let distant = density_coverage(&a, &far, k).unwrap();
            assert_eq!((distant.density, distant.coverage), (0.0, 0.0));
        }
    }

    #[test]
    fn a_subset_of_the_modes_has_full_precision_and_partial_recall() {
        let real: Vec<f32> = (0..40).map(|i| if i < 20 { i as f32 } else { 1000.0 + i as f32 }).collect();
        let generated: Vec<f32> = (0..40).map(|i| i as f32 * 0.5).collect();
        let (real, generated) = (Features::new(1, real).unwrap(), Features::new(1, generated).unwrap());
        let result = precision_recall(&real, &generated, 3).unwrap();
        assert_eq!((result.precision, result.recall), (1.0, 0.5));
        assert_eq!(density_coverage(&real, &generated, 3).unwrap().coverage, 0.5);
    }

    #[test]
    fn identical_images_are_within_a_radius_of_zero() {
        let real = Features::new(2, [[1.0f32, 2.0]; 6].concat()).unwrap();
        assert_eq!(precision_recall(&real, &real, 3).unwrap().precision, 1.0);
    }

    #[test]
    fn more_neighbors_than_images_are_rejected() {
        let a = normal(1, 4, 2, 0.0);
        assert!(precision_recall(&a, &a, 3).is_ok());
        for k in [4, usize::MAX] {
            let error = precision_recall(&a, &a, k).unwrap_err().to_string();
            assert!(error.contains("precision and recall: expected at least"), "{error}");
            assert!(density_coverage(&a, &a, k).is_err());
        }
    }
}
