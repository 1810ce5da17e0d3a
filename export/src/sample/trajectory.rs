//! Trajectories from noise to image, one state machine for each image. Any number of them can share the network's evaluations:
//! images of one request, and those of different requests.

use tiny_cats_models::{Array, PredictionType, random::noise};

use super::{Denoiser, MIN_ONE_MINUS_T, SampleSpec, SamplingSettings};
use crate::{Error, Result, Sampler};

/// The trajectory of one image.
#[derive(Clone, Debug)]
pub struct Trajectory {
    settings: SamplingSettings,
    dims: [usize; 3],
    spec: SampleSpec,
    /// Value at the current point of the grid.
    x: Vec<f32>,
    /// Number of steps done.
    done: usize,
    /// State between the two evaluations of a step.
    half_step: Option<HalfStep>,
    /// Clean image as predicted by the last evaluation.
    preview: Vec<f32>,
}

/// The second evaluation of a step, for methods of two evaluations.
#[derive(Clone, Debug)]
struct HalfStep {
    /// Velocity at the start of the step.
    slope: Vec<f32>,
    /// Point at which to evaluate the network.
    point: Vec<f32>,
    /// Time at which to evaluate the network.
    t: f32,
}

impl Trajectory {
    /// Starts the trajectory of an image of `dims` (`[channels, height, width]`), from its noise.
    ///
    /// # Errors
    /// [`Error::Request`] for invalid settings.
    pub fn new(settings: &SamplingSettings, dims: [usize; 3], spec: SampleSpec) -> Result<Self> {
        settings.validate()?;
        let x = noise(settings.seed, spec.index, dims.iter().product());
        let settings = settings.clone();
        Ok(Self { settings, dims, spec, preview: x.clone(), x, done: 0, half_step: None })
    }

    /// Returns the number of the image, which determines its noise.
    pub fn index(&self) -> u64 {
        self.spec.index
    }

    /// Returns the label of the image.
    pub fn label(&self) -> i64 {
        self.spec.label
    }

    /// Returns the settings of the sampler.
    pub fn settings(&self) -> &SamplingSettings {
        &self.settings
    }

    /// Returns the number of steps done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// True if all steps are done.
    pub fn is_finished(&self) -> bool {
        self.done == self.settings.steps
    }

    /// Returns the current image, in the value range of the training; noise at first.
    pub fn values(&self) -> &[f32] {
        &self.x
    }

    /// Returns the clean image as predicted by the last evaluation: x̂, or x_t + (1−t)·v.
    pub fn preview(&self) -> &[f32] {
        &self.preview
    }

    /// Returns the current image, `[channels, height, width]`.
    ///
    /// # Errors
    /// None for a trajectory.
    pub fn into_array(self) -> Result<Array> {
        Ok(Array::new(self.dims, self.x)?)
    }

    /// Returns the point and the time of the next evaluation.
    fn point(&self) -> (&[f32], f32) {
        match &self.half_step {
            Some(half_step) => (&half_step.point, half_step.t),
            None => (&self.x, self.time(self.done)),
        }
    }

    /// Returns the time of a point of the grid.
    fn time(&self, step: usize) -> f32 {
        (step as f64 / self.settings.steps as f64) as f32
    }

    /// True if the next evaluation needs an unconditional pass.
    fn is_guided(&self) -> bool {
        let [from, to] = self.settings.guidance_interval;
        self.settings.guidance != 1.0 && (from..=to).contains(&self.point().1)
    }

    /// Advances the trajectory by the network's prediction, which includes guidance.
    fn apply_prediction(&mut self, prediction: Vec<f32>) -> Result<()> {
        let (_, t) = self.point();
        let (from, to) = (self.time(self.done), self.time(self.done + 1));
        let width = to - from;
        self.update_preview(&prediction, t);
        let last = self.done + 1 == self.settings.steps;
        if last && self.half_step.is_none() && self.settings.prediction == PredictionType::X {
            self.x = prediction;
            return self.finish_step();
        }
        let slope = self.velocity(prediction, t);
        match (self.half_step.take(), self.settings.sampler) {
            (None, Sampler::Euler) => step(&mut self.x, &slope, width),
            (None, Sampler::Heun) => return self.request_second_evaluation(slope, width, to),
            (None, Sampler::Midpoint) => {
                return self.request_second_evaluation(slope, width / 2.0, from + width / 2.0);
            }
            (Some(first), Sampler::Heun) => {
                step(&mut self.x, &first.slope, width / 2.0);
                step(&mut self.x, &slope, width / 2.0);
            }
            (Some(_), Sampler::Euler | Sampler::Midpoint) => step(&mut self.x, &slope, width),
        }
        self.finish_step()
    }

    /// Requests the second evaluation of this step, at time `t` and at the point `x + width·slope`.
    fn request_second_evaluation(&mut self, slope: Vec<f32>, width: f32, t: f32) -> Result<()> {
        let mut point = self.x.clone();
        step(&mut point, &slope, width);
        self.half_step = Some(HalfStep { slope, point, t });
        Ok(())
    }

    fn finish_step(&mut self) -> Result<()> {
        if self.x.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite { step: self.done });
        }
        self.done += 1;
        Ok(())
    }

    /// Computes the clean image of a prediction, and stores it as the preview.
    fn update_preview(&mut self, prediction: &[f32], t: f32) {
        let mut preview = std::mem::take(&mut self.preview);
        match self.settings.prediction {
            PredictionType::X => preview.copy_from_slice(prediction),
            PredictionType::Velocity => {
                preview.copy_from_slice(self.point().0);
                step(&mut preview, prediction, 1.0 - t);
            }
        }
        self.preview = preview;
    }

    /// Returns the velocity of a prediction.
    fn velocity(&self, mut prediction: Vec<f32>, t: f32) -> Vec<f32> {
        if self.settings.prediction == PredictionType::X {
            let remaining = (1.0 - t).max(MIN_ONE_MINUS_T);
            for (p, x) in prediction.iter_mut().zip(self.point().0) {
                *p = (*p - x) / remaining;
            }
        }
        prediction
    }
}

/// Evaluates the network once for all of `trajectories`, and advances each: by a step of Euler's method, or half a step of the
/// others. Finished trajectories do not change. Settings may differ; sizes may not.
///
/// The batch has one row for each image, and another for each with guidance: null + guidance·(conditional − null).
///
/// # Errors
/// Errors of the network, and [`Error::NotFinite`].
pub fn advance<'a>(
    denoiser: &mut dyn Denoiser,
    trajectories: impl IntoIterator<Item = &'a mut Trajectory>,
) -> Result<()> {
    let mut pending: Vec<&mut Trajectory> = trajectories.into_iter().filter(|t| !t.is_finished()).collect();
    let Some(dims) = pending.first().map(|trajectory| trajectory.dims) else { return Ok(()) };
    let (mut x, mut times, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let guided = || pending.iter().filter(|trajectory| trajectory.is_guided());
    let rows = pending.iter().map(|t| (t, t.spec.label)).chain(guided().map(|t| (t, t.settings.null_label)));
    for (trajectory, label) in rows {
        let (point, t) = trajectory.point();
        x.extend_from_slice(point);
        times.push(t);
        labels.push(label);
    }
    let x = Array::new([times.len(), dims[0], dims[1], dims[2]], x)?;
    let prediction = denoiser.predict(&x, &times, &labels)?;
    if prediction.dims() != x.dims() {
        let (expected, found) = (format!("{:?}", x.dims()), format!("{:?}", prediction.dims()));
        return Err(tiny_cats_models::Error::Shape { op: "prediction", expected, found }.into());
    }
    let len: usize = dims.iter().product();
    let (conditional, null) = prediction.data().split_at(pending.len() * len);
    let mut null = null.chunks_exact(len);
    for (trajectory, conditional) in pending.iter_mut().zip(conditional.chunks_exact(len)) {
        let guidance = trajectory.settings.guidance;
        let null = if trajectory.is_guided() { null.next() } else { None };
        let guided = match null {
            Some(null) => conditional.iter().zip(null).map(|(c, u)| u + guidance * (c - u)).collect(),
            None => conditional.to_vec(),
        };
        trajectory.apply_prediction(guided)?;
    }
    Ok(())
}

/// Computes `x + width·slope` in place.
fn step(x: &mut [f32], slope: &[f32], width: f32) {
    for (x, v) in x.iter_mut().zip(slope) {
        *x += width * v;
    }
}
