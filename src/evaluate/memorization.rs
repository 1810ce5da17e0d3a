//! Whether drawn pictures are pictures that the generator learned from.

use rayon::prelude::*;
use serde::Serialize;

use super::{
    Error, Features, Result, bootstrap::quantile, features::check_comparable, neighbors::squared_distance,
};

/// The share of pictures of the training data that count as near to another one of it.
const NEAR_QUANTILE: f64 = 0.05;
/// A picture is a copy if it is this much nearer to one training picture than to the [`COPY_NEIGHBORS`] nearest on average (Carlini et al. 2023,
/// arXiv 2301.13188, section 4.2).
const COPY_RATIO: f64 = 0.5;
/// How many training pictures, the nearest included, a copy is compared with.
pub const COPY_NEIGHBORS: usize = 50;

/// The training picture that a picture is nearest to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Nearest {
    /// Its number.
    pub index: usize,
    /// How far away it is (Euclidean).
    pub distance: f64,
}

/// How near drawn pictures come to training pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memorization {
    /// The share of drawn pictures that are no farther from a training picture than `threshold`. It is about 5 % where pictures are drawn
    /// as the training pictures were, and much more where they are repeated; but also where they are smooth or grey, for such pictures
    /// are near to all others.
    pub share: f64,
    /// The share of drawn pictures that are at most half as far from one training picture as from the [`COPY_NEIGHBORS`] nearest on average, which
    /// smooth pictures are not.
    pub copied: f64,
    /// The distance within which the nearest 5 % of training pictures have another one.
    pub threshold: f64,
    /// The median of the drawn pictures' distances to the nearest training picture.
    pub median: f64,
    /// The same of training pictures and the nearest others.
    pub training_median: f64,
    /// For each drawn picture the nearest training picture.
    #[serde(skip)]
    pub nearest: Vec<Nearest>,
}

impl Memorization {
    /// Numbers of drawn pictures, those nearest to a training picture first.
    pub fn closest(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nearest.len()).collect();
        order.sort_by(|&a, &b| self.nearest[a].distance.total_cmp(&self.nearest[b].distance));
        order
    }
}

/// Compares drawn pictures with those that the generator learned from. `training` are variants of the training pictures, such as
/// themselves and their mirror images, in the same order: the nearest of all variants counts, and a training picture is compared with
/// all variants of the others.
///
/// # Errors
/// [`Error::TooFew`] for a single training picture, [`Error::Shape`] for no variant or features of different kinds or numbers.
pub fn memorization(training: &[&Features], generated: &Features) -> Result<Memorization> {
    let Some((first, others)) = training.split_first() else {
        return Err(Error::shape("training pictures", "none"));
    };
    if first.len() < 2 {
        return Err(Error::TooFew { measure: "memorisation", expected: 2, found: first.len() });
    }
    check_comparable(first, generated, "memorisation", 1)?;
    for other in others {
        check_comparable(first, other, "memorisation", 1)?;
        if other.len() != first.len() {
            return Err(Error::shape(format!("variants of {} pictures", first.len()), other.len()));
        }
    }
    // The nearest, and the mean distance of the next ones.
    let nearest = |picture: &[f32], itself: Option<usize>| {
        let distance = |index: usize| {
            let variants = training.iter().map(|variant| squared_distance(picture, variant.row(index)));
            Nearest { index, distance: variants.fold(f64::INFINITY, f64::min).sqrt() }
        };
        let others = (0..first.len()).filter(|&index| Some(index) != itself);
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
    let own: Vec<Nearest> =
        (0..first.len()).into_par_iter().map(|i| nearest(first.row(i), Some(i)).0).collect();
    let own = sorted(&own);
    let threshold = quantile(&own, NEAR_QUANTILE);
    let (nearest, next): (Vec<Nearest>, Vec<f64>) =
        (0..generated.len()).into_par_iter().map(|i| nearest(generated.row(i), None)).unzip();
    let distances = sorted(&nearest);
    let near = distances.iter().filter(|&&distance| distance <= threshold).count();
    let copied = nearest.iter().zip(&next).filter(|(n, next)| n.distance <= COPY_RATIO * **next).count();
    Ok(Memorization {
        share: near as f64 / generated.len() as f64,
        copied: copied as f64 / generated.len() as f64,
        threshold,
        median: quantile(&distances, 0.5),
        training_median: quantile(&own, 0.5),
        nearest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    #[test]
    fn copies_are_found_with_what_they_are_copies_of_and_new_pictures_are_not() {
        let training = normal(1, 120, 16, 0.0);
        let new = normal(2, 120, 16, 0.0);
        let fresh = memorization(&[&training], &new).unwrap();
        assert!(fresh.share < 0.12 && fresh.copied == 0.0, "{fresh:?}");
        assert!((fresh.median / fresh.training_median - 1.0).abs() < 0.1);
        // Every second one is a copy, a little changed.
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
    fn a_picture_that_is_near_to_all_is_no_copy() {
        let training = normal(1, 120, 16, 0.0);
        let gray = memorization(&[&training], &Features::new(16, vec![0.0; 16 * 30]).unwrap()).unwrap();
        assert_eq!((gray.share, gray.copied), (1.0, 0.0));
    }

    #[test]
    fn a_mirror_image_is_a_copy_but_not_of_itself() {
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
    fn what_cannot_be_compared_is_refused() {
        let a = normal(1, 5, 3, 0.0);
        assert!(memorization(&[], &a).is_err());
        assert!(memorization(&[&normal(1, 1, 3, 0.0)], &a).is_err());
        assert!(memorization(&[&a, &normal(1, 4, 3, 0.0)], &a).is_err());
        assert!(memorization(&[&a], &normal(1, 5, 4, 0.0)).is_err());
    }
}
