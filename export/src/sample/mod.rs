//! Sampling: from noise to pictures along the flow that a network has learned.
//!
//! Time runs from t = 0, noise, to t = 1, the picture, on a uniform grid. The path is straight, x_t = t·x + (1−t)·ε, so a network that
//! predicts the clean picture x̂ gives the velocity v = (x̂ − x_t)/max(1−t, 0.05) (JiT, arXiv 2511.13720). Its last step returns x̂
//! itself: t = 1 is never evaluated, and the clamp leaves nothing behind. A network that predicts velocities is integrated as it is.

mod trajectory;

use std::ops::ControlFlow;

use tiny_cats_models::{Array, PredictionType};

pub use trajectory::{Trajectory, advance};

use crate::{Error, GeneratorMeta, Request, Result, Sampler};

/// The least 1 − t that a difference is divided by, in training and sampling alike.
pub const MIN_ONE_MINUS_T: f32 = 0.05;
const MAX_STEPS: usize = 10_000;
/// The largest weight of guidance, on either side of 0.
pub const MAX_GUIDANCE: f32 = 1000.0;

/// A network that can be sampled from.
pub trait Denoiser {
    /// What the network predicts for noisy pictures `x` `[n, 3, size, size]` at times `t`, with `label` for each; `[n, 3, size, size]`.
    ///
    /// # Errors
    /// Those of the runtime.
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array>;
}

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSettings {
    /// The method.
    pub sampler: Sampler,
    /// Steps of the uniform grid.
    pub steps: usize,
    /// Weight of classifier-free guidance; 1 is none, and half the work.
    pub guidance: f32,
    /// Guidance holds for times in this interval, its ends included.
    pub guidance_interval: [f32; 2],
    /// What the network predicts.
    pub prediction: PredictionType,
    /// The label of the unconditional pass.
    pub null_label: i64,
    /// Which noise.
    pub seed: u64,
    /// Pictures that are drawn at once; guidance doubles the network's batch.
    pub batch: usize,
}

impl SamplingSettings {
    /// What `request` says, and where it says nothing what `meta` advises; sixteen pictures at once. Networks that predict velocities are
    /// guided all the way, as the predecessor was, and those that guide themselves by the weight 1, whatever the request says.
    pub fn new(meta: &GeneratorMeta, request: &Request) -> Self {
        let advised = &meta.sampler;
        let interval = match meta.prediction {
            PredictionType::X => advised.guidance_interval,
            PredictionType::Velocity => [0.0, 1.0],
        };
        Self {
            sampler: request.sampler.unwrap_or(advised.sampler),
            steps: request.steps.unwrap_or(advised.steps),
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
                format!("expected a number up to {MAX_GUIDANCE}, found {found}"),
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

/// A picture to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSpec {
    /// Its number, which chooses its noise.
    pub index: u64,
    /// Its class.
    pub label: i64,
}

/// How far sampling has come, in steps of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
}

/// Draws pictures of `dims` (`[channels, height, width]`): one array each, in the values that the network was trained on. A picture
/// depends on its [`SampleSpec`] and the settings alone, not on those it is drawn with.
///
/// `progress` is called after every step; with [`ControlFlow::Break`] it ends the sampling.
///
/// # Errors
/// [`Error::Request`] for settings that make no sense, [`Error::Cancelled`], those of the network, and [`Error::Runtime`] when it
/// returns something that is no number.
pub fn sample(
    denoiser: &mut dyn Denoiser,
    settings: &SamplingSettings,
    dims: [usize; 3],
    draws: &[SampleSpec],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Array>> {
    settings.validate()?;
    let mut pictures = Vec::with_capacity(draws.len());
    let total = draws.len().div_ceil(settings.batch) * settings.steps;
    let mut done = 0;
    for part in draws.chunks(settings.batch) {
        let begin = |draw: &SampleSpec| Trajectory::new(settings, dims, *draw);
        let mut batch = part.iter().map(begin).collect::<Result<Vec<_>>>()?;
        for step in 1..=settings.steps {
            // All have the same settings, so they take their steps together.
            while batch.iter().any(|trajectory| trajectory.done() < step) {
                advance(denoiser, &mut batch)?;
            }
            done += 1;
            if progress(Progress { done, total }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        for trajectory in batch {
            pictures.push(trajectory.into_array()?);
        }
    }
    Ok(pictures)
}

#[cfg(test)]
mod tests;
