//! Synthetic cats: procedurally generated images, so that tests and first experiments need no download.
//!
//! Each of the twelve breeds has its characteristic features (coat, eyes, ears, build), while pose, light and background vary. The
//! thirteenth class has dogs, landscapes and objects. An image depends only on its seed, class and number.

mod breeds;
mod cat;
mod noise;
mod other;
mod paint;
mod scene;
mod write;

use image::RgbImage;
use tiny_cats_models::random::{Purpose, Stream};

use crate::data::BREEDS;

pub use write::{SynthManifest, write};

pub use crate::data::file_names::MANIFEST;

/// The random choices for one image.
struct SceneRng(Stream);

impl SceneRng {
    /// A uniform random number between `low` and `high`.
    fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.uniform() as f32
    }

    /// A normal random number with mean 0.
    fn normal(&mut self, deviation: f32) -> f32 {
        self.0.normal() as f32 * deviation
    }

    /// A random element of `choices`, which must not be empty.
    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.0.uniform_int(choices.len() as u32) as usize]
    }
}

/// Paints image number `index` of a class, `size` × `size` pixels: a cat of breed `class` (an index of [`BREEDS`]), or, from 12, something
/// that is not a cat.
pub fn draw(class: usize, seed: u64, index: u64, size: u32) -> RgbImage {
    let classes = BREEDS.len() as u64 + 1;
    let class = class.min(BREEDS.len());
    let number = index.wrapping_mul(classes).wrapping_add(class as u64);
    let mut rng = SceneRng(Stream::new(seed, Purpose::Synthetic, number));
    let mut canvas = scene::background(size, &mut rng);
    if class < BREEDS.len() {
        cat::paint(&mut canvas, class, &mut rng);
    } else {
        other::paint(&mut canvas, &mut rng);
    }
    scene::finish_image(canvas, &mut rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean color of each cell of a 3 × 3 grid, and the frequency of each of 64 colors in the image.
    fn features(image: &RgbImage) -> Vec<f32> {
        let mut features = vec![0.0; 27 + 64];
        let side = image.width() as f32;
        for (x, y, pixel) in image.enumerate_pixels() {
            let cell = (x as f32 * 3.0 / side) as usize + 3 * (y as f32 * 3.0 / side) as usize;
            let mut bin = 0;
            for (channel, value) in pixel.0.into_iter().enumerate() {
                features[cell * 3 + channel] += f32::from(value) / 255.0 * 9.0 / (side * side);
                bin = bin * 4 + usize::from(value / 64);
            }
            features[27 + bin] += 1.0 / (side * side);
        }
        features
    }

    #[test]
    fn an_image_depends_only_on_class_seed_and_number() {
        let image = draw(4, 1, 7, 32);
        draw(4, 1, 6, 32);
        assert_eq!(image, draw(4, 1, 7, 32));
        for different in [draw(5, 1, 7, 32), draw(4, 2, 7, 32), draw(4, 1, 8, 32)] {
            assert_ne!(image, different);
        }
        assert_eq!(draw(12, 0, 0, 16), draw(usize::MAX, 0, 0, 16));
        assert_eq!(draw(0, u64::MAX, u64::MAX, 1).dimensions(), (1, 1));
    }

    #[test]
    fn images_are_similar_at_any_size() {
        for class in 0..13 {
            let (small, large) = (draw(class, 0, 3, 24), draw(class, 0, 3, 96));
            let shrunk = image::imageops::resize(&large, 24, 24, image::imageops::FilterType::Triangle);
            let total_difference: f64 =
                small.iter().zip(shrunk.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
            assert!(
                total_difference / (24.0 * 24.0 * 3.0) < 8.0,
                "class {class}: {}",
                total_difference / 1728.0
            );
        }
    }

    #[test]
    fn colors_alone_distinguish_most_breeds() {
        let classes = BREEDS.len();
        let means: Vec<Vec<f32>> = (0..classes)
            .map(|class| {
                let mut mean = vec![0.0; 91];
                for index in 0..16 {
                    mean.iter_mut()
                        .zip(features(&draw(class, 0, index, 24)))
                        .for_each(|(m, f)| *m += f / 16.0);
                }
                mean
            })
            .collect();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let mut correct = 0;
        for class in 0..classes {
            for index in 16..24 {
                let found = features(&draw(class, 0, index, 24));
                let nearest = (0..classes)
                    .min_by(|&a, &b| distance(&means[a], &found).total_cmp(&distance(&means[b], &found)));
                correct += usize::from(nearest == Some(class));
            }
        }
        // Chance is 8 of 96.
        assert!(correct > 40, "{correct} of 96");
    }
}
