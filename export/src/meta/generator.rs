//! The metadata of a generator.

use serde::{Deserialize, Serialize};
use tiny_cats_models::PredictionType;

use super::FieldError;
use crate::{Error, Result};

/// The method of integration from noise to image, on a uniform grid of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Euler's method, one evaluation per step.
    Euler,
    /// Heun's trapezoidal method, two evaluations per step.
    #[default]
    Heun,
    /// The midpoint method, two evaluations per step.
    Midpoint,
}

impl std::str::FromStr for Sampler {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "euler" => Ok(Self::Euler),
            "heun" => Ok(Self::Heun),
            "midpoint" => Ok(Self::Midpoint),
            _ => Err(Error::request("sampler", format!("expected euler, heun or midpoint, found {s:?}"))),
        }
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Midpoint => "midpoint",
        })
    }
}

/// The recommended sampling settings of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerDefaults {
    /// The method.
    pub sampler: Sampler,
    /// Number of steps of the uniform grid.
    pub steps: usize,
    /// Weight of classifier-free guidance (arXiv 2207.12598); 1 means none.
    pub guidance: f32,
    /// Interval of times `t` with guidance (arXiv 2404.07724); t = 0 is noise, t = 1 the image.
    pub guidance_interval: [f32; 2],
}

impl Default for SamplerDefaults {
    fn default() -> Self {
        Self { sampler: Sampler::Heun, steps: 20, guidance: 2.0, guidance_interval: [0.1, 0.9] }
    }
}

/// The metadata that a program needs to generate with a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneratorMeta {
    /// Label of the unconditional pass in guidance: the number of classes if there is a separate null class.
    pub null_label: usize,
    /// The values of black and white.
    pub value_range: [f32; 2],
    /// The quantity that the network predicts.
    pub prediction: PredictionType,
    /// Recommended sampling settings.
    #[serde(default)]
    pub sampler: SamplerDefaults,
    /// True if the network applies classifier-free guidance itself. It is then sampled with weight 1; otherwise guidance would
    /// be applied twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guided: bool,
}

impl GeneratorMeta {
    /// Returns the metadata of a generator with images in [−1, 1]. Without a null class, the last class takes its place, as in training.
    pub(super) fn new(null_label: Option<usize>, prediction: PredictionType, classes: usize) -> Self {
        Self {
            null_label: null_label.unwrap_or(classes.saturating_sub(1)),
            value_range: [-1.0, 1.0],
            prediction,
            sampler: SamplerDefaults::default(),
            guided: false,
        }
    }

    /// Returns the guidance weight for sampling: `requested`, or by default the recommended one. It is always 1 for a network
    /// that applies guidance [itself](Self::guided).
    pub fn guidance(&self, requested: Option<f32>) -> f32 {
        if self.guided { 1.0 } else { requested.unwrap_or(self.sampler.guidance) }
    }

    pub(super) fn check(&self, prediction: PredictionType, classes: usize) -> Result<(), FieldError> {
        if self.null_label > classes {
            return Err(("null_label", format!("expected at most {classes}, found {}", self.null_label)));
        }
        if prediction != self.prediction {
            return Err(("prediction", format!("expected the network's {prediction:?}")));
        }
        if !(self.value_range.iter().all(|v| v.is_finite()) && self.value_range[0] < self.value_range[1]) {
            return Err(("value_range", format!("expected black below white, found {:?}", self.value_range)));
        }
        if self.sampler.steps == 0 || !self.sampler.guidance.is_finite() {
            return Err(("sampler", "expected at least one step and a finite guidance".into()));
        }
        Ok(())
    }
}
