//! Flow matching on the straight path from noise to image.

use serde::{Deserialize, Serialize};
use tiny_cats_export::sample::MIN_ONE_MINUS_T;
use tiny_cats_models::{
    PredictionType,
    random::{Purpose, Stream},
};

use crate::data::Draw;

/// The distribution of training examples on the path `x_t = t·x + (1 − t)·ε` (arXiv 2210.02747).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Mean of the normal that gives `t = σ(mean + deviation·n)` with standard normal `n`.
    ///
    /// This is the logit-normal distribution (SD3, arXiv 2403.03206); t = 0 is noise.
    pub mean: f64,
    /// Standard deviation of that normal.
    pub deviation: f64,
    /// Probability that a label is replaced by the null class, if there is one.
    pub label_dropout: f64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { mean: -0.3, deviation: 0.9, label_dropout: 0.1 }
    }
}

/// The properties of an item of a batch besides its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// Position on the path, in (0, 1).
    pub t: f32,
    /// The label, or the null label in its place.
    pub label: u32,
    /// Weight of its squared error.
    pub weight: f32,
}

impl Flow {
    /// Draws an example from the data `clean`.
    ///
    /// Writes `x_t` to `noisy` and the target of `prediction` to `target`.
    pub fn draw(
        &self,
        draw: Draw,
        prediction: PredictionType,
        (label, null): (u32, Option<u32>),
        clean: &[f32],
        noisy: &mut [f32],
        target: &mut [f32],
    ) -> Example {
        let mut stream = Stream::new(draw.seed, Purpose::Training, draw.position);
        let dropped = stream.uniform() <= self.label_dropout;
        let t = 1.0 / (1.0 + (-(self.mean + self.deviation * stream.normal())).exp());
        let (t32, rest) = (t as f32, (1.0 - t) as f32);
        for ((&x, noisy), target) in clean.iter().zip(noisy).zip(target) {
            let noise = stream.normal() as f32;
            *noisy = t32 * x + rest * noise;
            *target = match prediction {
                PredictionType::X => x,
                PredictionType::Velocity => x - noise,
            };
        }
        // The loss is on the velocity: that of x̂ is (x̂ − x_t)/max(1 − t, clamp).
        let weight = match prediction {
            PredictionType::X => (1.0 - t).max(f64::from(MIN_ONE_MINUS_T)).powi(-2) as f32,
            PredictionType::Velocity => 1.0,
        };
        Example { t: t32, label: null.filter(|_| dropped).unwrap_or(label), weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(position: u64, prediction: PredictionType) -> (Example, Vec<f32>, Vec<f32>) {
        let clean: Vec<f32> = (0..48).map(|i| (i as f32 / 24.0) - 1.0).collect();
        let (mut noisy, mut target) = (vec![0.0; 48], vec![0.0; 48]);
        let example = Flow::default().draw(
            Draw { seed: 1, position },
            prediction,
            (3, Some(12)),
            &clean,
            &mut noisy,
            &mut target,
        );
        (example, noisy, target)
    }

    #[test]
    fn the_velocity_points_from_the_example_to_the_image() {
        let clean: Vec<f32> = (0..48).map(|i| (i as f32 / 24.0) - 1.0).collect();
        for position in 0..20 {
            let (example, noisy, velocity) = draw(position, PredictionType::Velocity);
            for ((x, v), c) in noisy.iter().zip(&velocity).zip(&clean) {
                assert!((x + (1.0 - example.t) * v - c).abs() < 1e-5);
            }
            let (same, also, target) = draw(position, PredictionType::X);
            assert_eq!((same.t, &also, &target), (example.t, &noisy, &clean));
            let expected = 1.0 / f64::from(1.0 - example.t).max(f64::from(MIN_ONE_MINUS_T)).powi(2);
            assert!((f64::from(same.weight) / expected - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn labels_and_times_follow_their_distributions() {
        let examples: Vec<Example> = (0..4000).map(|p| draw(p, PredictionType::X).0).collect();
        let dropped = examples.iter().filter(|e| e.label == 12).count();
        assert!((300..500).contains(&dropped), "{dropped} of 4000 dropped");
        assert!(examples.iter().all(|e| e.label == 12 || e.label == 3));
        let early = examples.iter().filter(|e| f64::from(e.t) < 1.0 / (1.0 + 0.3f64.exp())).count();
        assert!((1880..2120).contains(&early), "{early} of 4000 below the median");
    }
}
