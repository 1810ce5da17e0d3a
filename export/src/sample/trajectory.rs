//! Pictures on their way from noise, one state machine each, so that any number of them can share the network's evaluations: pictures of
//! one request, and those of requests that have nothing in common but the network.

use tiny_cats_models::{Array, PredictionType, random::noise};

use super::{Denoiser, MIN_ONE_MINUS_T, SampleSpec, SamplingSettings};
use crate::{Error, Result, Sampler};

/// A picture on its way from noise.
#[derive(Clone, Debug)]
pub struct Trajectory {
    settings: SamplingSettings,
    dims: [usize; 3],
    draw: SampleSpec,
    /// The last point of the grid that it has come to.
    x: Vec<f32>,
    /// Steps taken.
    done: usize,
    /// Between the two evaluations of a step: what the first has found.
    half_step: Option<HalfStep>,
    /// The clean picture, as the last evaluation saw it.
    preview: Vec<f32>,
}

/// Where a method of two evaluations asks a second time.
#[derive(Clone, Debug)]
struct HalfStep {
    /// The velocity at the step's beginning.
    slope: Vec<f32>,
    /// Where the network is to be asked.
    point: Vec<f32>,
    /// And when.
    t: f32,
}

impl Trajectory {
    /// The noise that a picture of `dims` (`[channels, height, width]`) begins with.
    ///
    /// # Errors
    /// [`Error::Request`] for settings that make no sense.
    pub fn new(settings: &SamplingSettings, dims: [usize; 3], draw: SampleSpec) -> Result<Self> {
        settings.validate()?;
        let x = noise(settings.seed, draw.index, dims.iter().product());
        let settings = settings.clone();
        Ok(Self { settings, dims, draw, preview: x.clone(), x, done: 0, half_step: None })
    }

    /// The picture's number, which chose its noise.
    pub fn index(&self) -> u64 {
        self.draw.index
    }

    /// The picture's class.
    pub fn label(&self) -> i64 {
        self.draw.label
    }

    /// How it is drawn.
    pub fn settings(&self) -> &SamplingSettings {
        &self.settings
    }

    /// Steps taken.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether all steps are taken.
    pub fn is_finished(&self) -> bool {
        self.done == self.settings.steps
    }

    /// The picture so far, in the values that the network was trained on; noise at first.
    pub fn values(&self) -> &[f32] {
        &self.x
    }

    /// The clean picture as the network saw it when it was last asked: x̂, or x_t + (1−t)·v.
    pub fn preview(&self) -> &[f32] {
        &self.preview
    }

    /// The picture so far, `[channels, height, width]`.
    ///
    /// # Errors
    /// None that a trajectory has.
    pub fn into_array(self) -> Result<Array> {
        Ok(Array::new(self.dims, self.x)?)
    }

    /// Where the network is to be asked next, and when.
    fn point(&self) -> (&[f32], f32) {
        match &self.half_step {
            Some(half_step) => (&half_step.point, half_step.t),
            None => (&self.x, self.time(self.done)),
        }
    }

    /// The time of a point of the grid.
    fn time(&self, step: usize) -> f32 {
        (step as f64 / self.settings.steps as f64) as f32
    }

    /// Whether the next evaluation has an unconditional half.
    fn is_guided(&self) -> bool {
        let [from, to] = self.settings.guidance_interval;
        self.settings.guidance != 1.0 && (from..=to).contains(&self.point().1)
    }

    /// Goes on with what the network has predicted, guided already.
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

    /// A second evaluation of this step, `width` further along `slope`, at `t`.
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

    /// Keeps the clean picture that follows from a prediction.
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

    /// The velocity that follows from a prediction.
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

/// Asks the network once about all of `trajectories`, and takes each as far as its answer goes: a step of Euler's method, half of one of
/// the others. Those that are finished stay as they are. Settings may differ; sizes may not.
///
/// The batch is one row for each picture, and another for each that is guided: null + guidance·(conditional − null).
///
/// # Errors
/// Those of the network, and [`Error::NotFinite`].
pub fn advance<'a>(
    denoiser: &mut dyn Denoiser,
    trajectories: impl IntoIterator<Item = &'a mut Trajectory>,
) -> Result<()> {
    let mut pending: Vec<&mut Trajectory> = trajectories.into_iter().filter(|t| !t.is_finished()).collect();
    let Some(dims) = pending.first().map(|trajectory| trajectory.dims) else { return Ok(()) };
    let (mut x, mut times, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let guided = || pending.iter().filter(|trajectory| trajectory.is_guided());
    let rows = pending.iter().map(|t| (t, t.draw.label)).chain(guided().map(|t| (t, t.settings.null_label)));
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

/// `x + width·slope`.
fn step(x: &mut [f32], slope: &[f32], width: f32) {
    for (x, v) in x.iter_mut().zip(slope) {
        *x += width * v;
    }
}
