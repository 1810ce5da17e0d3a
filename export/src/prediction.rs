//! Networks that classify images, and their predictions.

use tiny_cats_models::Array;

use crate::Result;

/// A network that classifies images.
pub trait Classify {
    /// Computes the logits `[n, classes]` of normalized images `x` `[n, 3, size, size]`.
    ///
    /// # Errors
    /// Errors of the runtime.
    fn logits(&mut self, x: &Array) -> Result<Array>;
}

/// A class and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Label of the class.
    pub label: usize,
    /// Name of the class.
    pub class: String,
    /// Probability, from 0 to 1.
    pub probability: f64,
}

/// The prediction for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// All classes, the most probable first; their probabilities sum to 1.
    pub candidates: Vec<Candidate>,
}

impl Prediction {
    /// Returns the `k` most probable classes, or all if there are fewer.
    pub fn top(&self, k: usize) -> &[Candidate] {
        &self.candidates[..k.min(self.candidates.len())]
    }

    /// Computes a prediction from an image's logits, by softmax.
    pub fn new(logits: &[f32], classes: &[String]) -> Self {
        let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let exponentials: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        let candidate = |(label, (class, exponential)): (usize, (&String, &f64))| Candidate {
            label,
            class: class.clone(),
            probability: exponential / sum,
        };
        let mut candidates: Vec<Candidate> =
            classes.iter().zip(&exponentials).enumerate().map(candidate).collect();
        candidates.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        Self { candidates }
    }
}
