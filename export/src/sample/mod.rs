//! Sampling: from noise to pictures along the flow that a network has learned.
//!
//! Time runs from t = 0, noise, to t = 1, the picture, on a uniform grid. The path is straight, x_t = t·x + (1−t)·ε, so a network that
//! predicts the clean picture x̂ gives the velocity v = (x̂ − x_t)/max(1−t, 0.05) (JiT, arXiv 2511.13720). Its last step returns x̂
//! itself: t = 1 is never evaluated, and the clamp leaves nothing behind. A network that predicts velocities is integrated as it is.

use std::ops::ControlFlow;

use tiny_cats_models::{Array, Prediction, random::noise};

use crate::{Error, GeneratorMeta, Result, Sampler, SamplerDefaults};

/// The least 1 − t that a difference is divided by, in training and sampling alike.
pub const CLAMP: f32 = 0.05;
const MAX_STEPS: usize = 10_000;
const MAX_GUIDANCE: f32 = 1000.0;

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
pub struct Settings {
    /// The method.
    pub sampler: Sampler,
    /// Steps of the uniform grid.
    pub steps: usize,
    /// Weight of classifier-free guidance; 1 is none, and half the work.
    pub guidance: f32,
    /// Guidance holds for times in this interval, its ends included.
    pub guidance_interval: [f32; 2],
    /// What the network predicts.
    pub prediction: Prediction,
    /// The label of the unconditional pass.
    pub null_label: i64,
    /// Which noise.
    pub seed: u64,
    /// Pictures that are drawn at once; guidance doubles the network's batch.
    pub batch: usize,
}

impl Settings {
    /// What `meta` advises, with seed 0, sixteen pictures at once. Networks that predict velocities are guided all the way, as the
    /// predecessor was.
    pub fn from_meta(meta: &GeneratorMeta) -> Self {
        let SamplerDefaults { sampler, steps, guidance, guidance_interval } = meta.sampler;
        let guidance_interval = match meta.prediction {
            Prediction::X => guidance_interval,
            Prediction::Velocity => [0.0, 1.0],
        };
        let null_label = meta.null_label as i64;
        let prediction = meta.prediction;
        Self { sampler, steps, guidance, guidance_interval, prediction, null_label, seed: 0, batch: 16 }
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
pub struct Draw {
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
/// depends on its [`Draw`] and the settings alone, not on those it is drawn with.
///
/// `progress` is called after every step; with [`ControlFlow::Break`] it ends the sampling.
///
/// # Errors
/// [`Error::Request`] for settings that make no sense, [`Error::Cancelled`], those of the network, and [`Error::Runtime`] when it
/// returns something that is no number.
pub fn sample(
    denoiser: &mut dyn Denoiser,
    settings: &Settings,
    dims: [usize; 3],
    draws: &[Draw],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Array>> {
    settings.validate()?;
    let len = dims.iter().product();
    let mut pictures = Vec::with_capacity(draws.len());
    let total = draws.len().div_ceil(settings.batch) * settings.steps;
    let mut done = 0;
    for part in draws.chunks(settings.batch) {
        let values = part.iter().flat_map(|draw| noise(settings.seed, draw.index, len)).collect();
        let mut x = Array::new([part.len(), dims[0], dims[1], dims[2]], values)?;
        let mut flow =
            Flow { denoiser: &mut *denoiser, settings, labels: part.iter().map(|d| d.label).collect() };
        for step in 0..settings.steps {
            x = flow.step(x, step)?;
            if x.data().iter().any(|v| !v.is_finite()) {
                return Err(Error::NotFinite { step });
            }
            done += 1;
            if progress(Progress { done, total }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        for picture in x.data().chunks_exact(len) {
            pictures.push(Array::new(dims, picture.to_vec())?);
        }
    }
    Ok(pictures)
}

/// One batch on its way.
struct Flow<'a> {
    denoiser: &'a mut dyn Denoiser,
    settings: &'a Settings,
    labels: Vec<i64>,
}

impl Flow<'_> {
    /// From `x` at `step / steps` to the next point of the grid.
    fn step(&mut self, x: Array, step: usize) -> Result<Array> {
        let steps = self.settings.steps;
        let time = |step: usize| (step as f64 / steps as f64) as f32;
        let (from, to) = (time(step), time(step + 1));
        let first = self.predict(&x, from)?;
        if step + 1 == steps && self.settings.prediction == Prediction::X {
            return Ok(first);
        }
        let slope = self.velocity(&x, first, from);
        let width = to - from;
        match self.settings.sampler {
            Sampler::Euler => Ok(advance(x, &slope, width)),
            Sampler::Heun => {
                let end = advance(x.clone(), &slope, width);
                let prediction = self.predict(&end, to)?;
                let last = self.velocity(&end, prediction, to);
                Ok(advance(advance(x, &slope, width / 2.0), &last, width / 2.0))
            }
            Sampler::Midpoint => {
                let middle = from + width / 2.0;
                let half = advance(x.clone(), &slope, width / 2.0);
                let prediction = self.predict(&half, middle)?;
                let slope = self.velocity(&half, prediction, middle);
                Ok(advance(x, &slope, width))
            }
        }
    }

    /// The prediction, guided where it has to be: null + guidance·(conditional − null), both in one batch.
    fn predict(&mut self, x: &Array, t: f32) -> Result<Array> {
        let n = self.labels.len();
        let [from, to] = self.settings.guidance_interval;
        let guided = self.settings.guidance != 1.0 && (from..=to).contains(&t);
        if !guided {
            let prediction = self.denoiser.predict(x, &vec![t; n], &self.labels)?;
            return expect(prediction, x.dims());
        }
        let mut dims = x.dims().to_vec();
        if let Some(batch) = dims.first_mut() {
            *batch = 2 * n;
        }
        let both = Array::new(dims.clone(), [x.data(), x.data()].concat())?;
        let labels = [self.labels.clone(), vec![self.settings.null_label; n]].concat();
        let prediction = expect(self.denoiser.predict(&both, &vec![t; 2 * n], &labels)?, &dims)?;
        let (conditional, null) = prediction.data().split_at(x.data().len());
        let guide = |(c, u): (&f32, &f32)| u + self.settings.guidance * (c - u);
        Ok(Array::new(x.dims(), conditional.iter().zip(null).map(guide).collect())?)
    }

    /// The velocity at `x` and `t` that follows from a prediction.
    fn velocity(&self, x: &Array, mut prediction: Array, t: f32) -> Array {
        if self.settings.prediction == Prediction::X {
            let remaining = (1.0 - t).max(CLAMP);
            for (p, x) in prediction.data_mut().iter_mut().zip(x.data()) {
                *p = (*p - x) / remaining;
            }
        }
        prediction
    }
}

fn expect(prediction: Array, dims: &[usize]) -> Result<Array> {
    if prediction.dims() == dims {
        return Ok(prediction);
    }
    let found = format!("{:?}", prediction.dims());
    Err(tiny_cats_models::Error::Shape { op: "prediction", expected: format!("{dims:?}"), found }.into())
}

/// `x + width·slope`.
fn advance(mut x: Array, slope: &Array, width: f32) -> Array {
    for (x, v) in x.data_mut().iter_mut().zip(slope.data()) {
        *x += width * v;
    }
    x
}

#[cfg(test)]
mod tests;
