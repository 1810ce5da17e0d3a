//! The inputs for the comparison of runtimes.

use tiny_cats_models::{Array, random::noise};

use super::SEED;
use crate::{
    ClassifierMeta, Classify, GeneratorMeta, Model, ModelMeta, Result, TaskMeta, runtime::RuntimeKind,
    sample::Denoiser,
};

const MAX_LABELS: usize = 64;
const TIMES: [f32; 4] = [0.0, 0.13, 0.5, 0.95];
/// Number of images for a classifier, in batches of three; some are repeated in batches of one.
const IMAGES: usize = 9;

/// A generator or classifier in a runtime.
pub enum LoadedModel {
    Generator(Box<dyn Denoiser + Send>),
    Classifier(Box<dyn Classify + Send>),
}

impl LoadedModel {
    pub fn new(model: &Model, kind: RuntimeKind) -> Result<Self> {
        Ok(match model.meta().task {
            TaskMeta::Generator(_) => Self::Generator(model.load_generator(kind)?),
            TaskMeta::Classifier(_) => Self::Classifier(model.load_classifier(kind)?),
        })
    }

    pub fn run(&mut self, case: &Case) -> Result<Array> {
        match self {
            Self::Generator(network) => network.predict(&case.x, &case.t, &case.label),
            Self::Classifier(network) => network.logits(&case.x),
        }
    }
}

/// One batch of inputs.
pub struct Case {
    x: Array,
    /// Times for a generator; empty for a classifier.
    t: Vec<f32>,
    /// Labels for a generator.
    label: Vec<i64>,
}

impl Case {
    /// Returns batches of three and single inputs for the network that `meta` describes.
    pub fn all(meta: &ModelMeta) -> Result<Vec<Self>> {
        match &meta.task {
            TaskMeta::Generator(task) => Self::generator_cases(meta, task),
            TaskMeta::Classifier(task) => Self::classifier_cases(meta.image_size, task),
        }
    }

    /// Returns the number of inputs.
    pub fn len(&self) -> usize {
        self.x.dims()[0]
    }

    /// Returns every label (a selection if there are many) in batches of three, and each time in a batch of one.
    fn generator_cases(meta: &ModelMeta, task: &GeneratorMeta) -> Result<Vec<Self>> {
        let size = meta.image_size;
        let labels = meta.classes.len().max(task.null_label + 1);
        let stride = labels.div_ceil(MAX_LABELS);
        let mut selected: Vec<usize> = (0..labels).step_by(stride).collect();
        // The null label is the last, and guidance needs it.
        selected.push(labels - 1);
        selected.dedup();
        let batches = selected.chunks(3).map(<[usize]>::to_vec);
        let singles = (0..TIMES.len()).map(|i| vec![i % labels]);
        let mut number = 0;
        let case = |labels: Vec<usize>| {
            let (mut x, mut t) = (Vec::new(), Vec::new());
            for _ in &labels {
                x.extend(noise(SEED, number as u64, 3 * size * size));
                t.push(TIMES[number % TIMES.len()]);
                number += 1;
            }
            let x = Array::new([labels.len(), 3, size, size], x)?;
            Ok(Self { x, t, label: labels.iter().map(|&label| label as i64).collect() })
        };
        batches.chain(singles).map(case).collect()
    }

    /// Returns noise and synthetic images in turn, in batches of three; then three of them in batches of one.
    fn classifier_cases(size: usize, task: &ClassifierMeta) -> Result<Vec<Self>> {
        let all: Vec<usize> = (0..IMAGES).collect();
        let singles = (0..3).map(|i| vec![i]);
        let case = |numbers: Vec<usize>| {
            let x = numbers.iter().flat_map(|&number| test_image(number, size, task)).collect();
            let x = Array::new([numbers.len(), 3, size, size], x)?;
            Ok(Self { x, t: Vec::new(), label: Vec::new() })
        };
        all.chunks(3).map(<[usize]>::to_vec).chain(singles).map(case).collect()
    }
}

/// Returns a normalized image: seeded noise for even numbers, otherwise a ramp, squares, white or black.
fn test_image(number: usize, size: usize, task: &ClassifierMeta) -> Vec<f32> {
    let mut values = noise(SEED, number as u64, 3 * size * size);
    for (i, v) in values.iter_mut().enumerate() {
        let (channel, y, x) = (i / (size * size), i / size % size, i % size);
        let value = match (number % 2, number / 2 % 4) {
            (0, _) => (0.5 + 0.25 * *v).clamp(0.0, 1.0),
            (_, 0) => [x, y, size - 1 - x][channel] as f32 / size as f32,
            (_, 1) => ((x / 8 + y / 8 + channel) % 2) as f32,
            (_, 2) => 1.0,
            _ => 0.0,
        };
        *v = (value - task.preprocessing.mean[channel]) / task.preprocessing.std[channel];
    }
    values
}
