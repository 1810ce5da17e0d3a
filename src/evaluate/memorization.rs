//! Detection of memorization: generated images that repeat training images.

use rayon::prelude::*;
use serde::Serialize;

use super::{
    Error, Features, Result, bootstrap::quantile, features::check_comparable, neighbors::squared_distance,
};

/// The fraction of training images that count as near to another one.
const NEAR_QUANTILE: f64 = 0.05;
/// The ratio below which an image is a copy: its distance to the nearest training image, divided by the mean distance to the
/// [`COPY_NEIGHBORS`] nearest (Carlini et al. 2023, arXiv 2301.13188, section 4.2).
const COPY_RATIO: f64 = 0.5;
/// The number of training images, including the nearest, that a copy is compared with.
pub const COPY_NEIGHBORS: usize = 50;

/// The training image that is nearest to an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Nearest {
    /// The index of the training image.
    pub index: usize,
    /// The Euclidean distance.
    pub distance: f64,
}

/// The distances of generated images to training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memorization {
    /// The fraction of generated images that are at most `threshold` from a training image. It is about 5 % if generated and training
    /// images are from one distribution, and much more if training images are repeated. It is also more for smooth or gray images, which
    /// are near to all others.
    pub share: f64,
    /// The fraction of generated images that are at most half as far from one training image as from the [`COPY_NEIGHBORS`] nearest on
    /// average. Smooth images are not.
    pub copied: f64,
    /// The distance within which the nearest 5 % of training images have another one.
    pub threshold: f64,
    /// The median distance of generated images to the nearest training image.
    pub median: f64,
    /// The median distance of training images to the nearest other one.
    pub training_median: f64,
    /// The nearest training image of each generated image.
    #[serde(skip)]
    pub nearest: Vec<Nearest>,
}

impl Memorization {
    /// The indices of generated images, those nearest to a training image first.
    pub fn closest(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nearest.len()).collect();
        order.sort_by(|&a, &b| self.nearest[a].distance.total_cmp(&self.nearest[b].distance));
        order
    }
}

/// Compares generated images with the training images.
///
/// `training` has variants of the training images, such as themselves and their mirror images, in the same order. The nearest of all
/// variants counts, and a training image is compared with all variants of the others.
///
/// # Errors
/// [`Error::TooFew`] if there is only one training image, [`Error::Shape`] if there is no variant, or features differ in kind or number.
pub fn memorization(training: &[&Features], generated: &Features) -> Result<Memorization> {
    let Some((first, others)) = training.split_first() else {
        return Err(Error::shape("training images", "none"));
    };
    if first.len() < 2 {
        return Err(Error::TooFew { measure: "memorization", expected: 2, found: first.len() });
    }
    check_comparable(first, generated, "memorization", 1)?;
    for other in others {
        check_comparable(first, other, "memorization", 1)?;
        if other.len() != first.len() {
            return Err(Error::shape(format!("variants of {} images", first.len()), other.len()));
        }
    }
    // The nearest, and the mean distance of the next ones.
    let nearest = |image: &[f32], excluded: Option<usize>| {
        let distance = |index: usize| {
            let variants = training.iter().map(|variant| squared_distance(image, variant.row(index)));
            Nearest { index, distance: variants.fold(f64::INFINITY, f64::min).sqrt() }
        };
        let others = (0..first.len()).filter(|&index| Some(index) != excluded);
        let mut all: Vec<Nearest> = others.map(distance).collect();
        all.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        let next = &all[..all.len().min(COPY_NEIGHBORS)];
        (all[0], next.iter().map(|n| n.distance).sum::<f64>() / next.len() as f64)
    };
    let sorted = |all: &[Nearest]| {
        let mut distances: Vec<f64> = all.iter().map(|n| n.distance).collect();
        distances.sort_by(f64::total_cmp);
        distances
    };
    let training_distances: Vec<Nearest> =
        (0..first.len()).into_par_iter().map(|i| nearest(first.row(i), Some(i)).0).collect();
    let training_distances = sorted(&training_distances);
    let threshold = quantile(&training_distances, NEAR_QUANTILE);
    let (nearest, next): (Vec<Nearest>, Vec<f64>) =
        (0..generated.len()).into_par_iter().map(|i| nearest(generated.row(i), None)).unzip();
    let distances = sorted(&nearest);
    let near_count = distances.iter().filter(|&&distance| distance <= threshold).count();
    let copied = nearest.iter().zip(&next).filter(|(n, next)| n.distance <= COPY_RATIO * **next).count();
    Ok(Memorization {
        share: near_count as f64 / generated.len() as f64,
        copied: copied as f64 / generated.len() as f64,
        threshold,
        median: quantile(&distances, 0.5),
        training_median: quantile(&training_distances, 0.5),
        nearest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    #[test]
    fn copies_are_found_with_their_sources() {
        let training = normal(1, 120, 16, 0.0);
        let new = normal(2, 120, 16, 0.0);
        let fresh = memorization(&[&training], &new).unwrap();
        assert!(fresh.share < 0.12 && fresh.copied == 0.0, "{fresh:?}");
        assert!((fresh.median / fresh.training_median - 1.0).abs() < 0.1);
        // Every second one is a slightly changed copy.
        let mixed: Vec<f32> = (0..120)
            .flat_map(|i| {
                let (row, change) =
                    if i % 2 == 0 { (training.row(119 - i), 1e-3) } else { (new.row(i), 0.0) };
                row.iter().map(move |v| v + change).collect::<Vec<_>>()
            })
            .collect();
        let copied = memorization(&[&training], &Features::new(16, mixed).unwrap()).unwrap();
        assert!((0.5..0.6).contains(&copied.share), "{}", copied.share);
        assert_eq!(copied.copied, 0.5);
        for &i in &copied.closest()[..60] {
            assert_eq!((i % 2, copied.nearest[i].index), (0, 119 - i));
        }
    }

    #[test]
    fn images_near_to_all_others_are_not_copies() {
        let training = normal(1, 120, 16, 0.0);
        let gray = memorization(&[&training], &Features::new(16, vec![0.0; 16 * 30]).unwrap()).unwrap();
        assert_eq!((gray.share, gray.copied), (1.0, 0.0));
    }

    #[test]
    fn mirror_images_count_as_copies() {
        let mirror = |f: &Features| {
            let rows = (0..f.len()).flat_map(|i| f.row(i).iter().rev().copied().collect::<Vec<_>>());
            Features::new(f.dims(), rows.collect()).unwrap()
        };
        let training = normal(3, 50, 12, 0.0);
        let mirrored = mirror(&training);
        let copied = memorization(&[&training, &mirrored], &mirrored).unwrap();
        assert_eq!(copied.share, 1.0);
        assert!(copied.threshold > 0.0 && copied.median == 0.0);
        assert!(memorization(&[&training], &mirrored).unwrap().share < 0.2);
    }

    #[test]
    fn incomparable_features_are_rejected() {
        let a = normal(1, 5, 3, 0.0);
        assert!(memorization(&[], &a).is_err());
        assert!(memorization(&[&normal(1, 1, 3, 0.0)], &a).is_err());
        assert!(memorization(&[&a, &normal(1, 4, 3, 0.0)], &a).is_err());
        assert!(memorization(&[&a], &normal(1, 5, 4, 0.0)).is_err());
    }
}
