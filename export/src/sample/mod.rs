//! Sampling: integration from noise to images along the flow of a trained network.
//!
//! Time runs from t = 0, noise, to t = 1, the image, on a uniform grid. The path is straight: x_t = t·x + (1−t)·ε. A network that
//! predicts the clean image x̂ gives the velocity v = (x̂ − x_t)/max(1−t, 0.05) (JiT, arXiv 2511.13720). Its last step returns x̂
//! itself, so t = 1 is never evaluated and the clamp has no effect on the image. The prediction of a network that predicts velocities is
//! integrated unchanged.

mod trajectory;

use std::ops::ControlFlow;

use tiny_cats_models::{Array, PredictionType};

pub use trajectory::{Trajectory, advance};

use crate::{Error, GeneratorMeta, Request, Result, Sampler};

/// Minimum of 1 − t as a divisor, in both training and sampling.
pub const MIN_ONE_MINUS_T: f32 = 0.05;
const MAX_STEPS: usize = 10_000;
/// Maximum absolute value of the guidance weight.
pub const MAX_GUIDANCE: f32 = 1000.0;

/// A network that can be sampled from.
pub trait Denoiser {
    /// Computes the network's prediction, `[n, 3, size, size]`, for noisy images `x` `[n, 3, size, size]` at times `t`, with a
    /// `label` for each.
    ///
    /// # Errors
    /// Errors of the runtime.
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array>;
}

/// The settings of the sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSettings {
    /// The method.
    pub sampler: Sampler,
    /// Number of steps of the uniform grid.
    pub steps: usize,
    /// Weight of classifier-free guidance; 1 means none, which halves the computation.
    pub guidance: f32,
    /// Interval of times with guidance, inclusive.
    pub guidance_interval: [f32; 2],
    /// The quantity that the network predicts.
    pub prediction: PredictionType,
    /// Label of the unconditional pass.
    pub null_label: i64,
    /// Seed of the noise.
    pub seed: u64,
    /// Number of images that are sampled at once; guidance doubles the network's batch.
    pub batch: usize,
}

impl SamplingSettings {
    /// Returns the settings of `request`, with those of `meta` as defaults and a batch of 16 images. Networks that predict
    /// velocities have guidance at all times by default, as in tiny-cats-model. Networks that apply guidance themselves always have
    /// the weight 1.
    pub fn new(meta: &GeneratorMeta, request: &Request) -> Self {
        let defaults = &meta.sampler;
        let interval = match meta.prediction {
            PredictionType::X => defaults.guidance_interval,
            PredictionType::Velocity => [0.0, 1.0],
        };
        Self {
            sampler: request.sampler.unwrap_or(defaults.sampler),
            steps: request.steps.unwrap_or(defaults.steps),
            guidance: meta.guidance(request.guidance),
            guidance_interval: request.guidance_interval.unwrap_or(interval),
            prediction: meta.prediction,
            null_label: meta.null_label as i64,
            seed: request.seed,
            batch: 16,
        }
    }

    fn validate(&self) -> Result<()> {
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(Error::request("steps", format!("expected 1 to {MAX_STEPS}, found {}", self.steps)));
        }
        if !(self.guidance.is_finite() && self.guidance.abs() <= MAX_GUIDANCE) {
            let found = self.guidance;
            return Err(Error::request(
                "guidance",
                format!("expected a number from -{MAX_GUIDANCE} to {MAX_GUIDANCE}, found {found}"),
            ));
        }
        let [from, to] = self.guidance_interval;
        if !(from.is_finite() && to.is_finite()) {
            let found = self.guidance_interval;
            return Err(Error::request("guidance_interval", format!("expected two times, found {found:?}")));
        }
        if self.batch == 0 {
            return Err(Error::request("batch", "expected at least 1, found 0"));
        }
        Ok(())
    }
}

/// An image to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSpec {
    /// Number of the image, which determines its noise.
    pub index: u64,
    /// Label of its class.
    pub label: i64,
}

/// The progress of sampling, in steps of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
}

/// Samples images of `dims` (`[channels, height, width]`), one array each, in the value range of the training. An image depends on
/// its [`SampleSpec`] and the settings alone, not on the other images.
///
/// `progress` is called after every step; [`ControlFlow::Break`] cancels the sampling.
///
/// # Errors
/// [`Error::Request`] for invalid settings, [`Error::Canceled`], errors of the network, and [`Error::NotFinite`] if it
/// returns a value that is not finite.
pub fn sample(
    denoiser: &mut dyn Denoiser,
    settings: &SamplingSettings,
    dims: [usize; 3],
    specs: &[SampleSpec],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Array>> {
    settings.validate()?;
    let mut images = Vec::with_capacity(specs.len());
    let total = specs.len().div_ceil(settings.batch) * settings.steps;
    let mut done = 0;
    for part in specs.chunks(settings.batch) {
        let start = |spec: &SampleSpec| Trajectory::new(settings, dims, *spec);
        let mut batch = part.iter().map(start).collect::<Result<Vec<_>>>()?;
        for step in 1..=settings.steps {
            // All trajectories have the same settings, so they advance together.
            while batch.iter().any(|trajectory| trajectory.done() < step) {
                advance(denoiser, &mut batch)?;
            }
            done += 1;
            if progress(Progress { done, total }).is_break() {
                return Err(Error::Canceled);
            }
        }
        for trajectory in batch {
            images.push(trajectory.into_array()?);
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests;
