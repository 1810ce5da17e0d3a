//! The inputs for the comparison of runtimes.

use tiny_cats_models::{Array, Input, InputValues, random::noise};

use super::SEED;
use crate::{
    ClassifierMeta, GeneratorMeta, Model, ModelMeta, Result, TaskMeta,
    runtime::{InputTensor, RuntimeKind, Session},
    sample::Denoiser,
};

const MAX_LABELS: usize = 64;
const TIMES: [f32; 4] = [0.0, 0.13, 0.5, 0.95];
/// Number of inputs for other networks, in batches of three, if labels do not need more.
const ITEMS: usize = 9;
/// Number of images for a classifier, in batches of three; some are repeated in batches of one.
const IMAGES: usize = 9;

/// A network in a runtime.
pub struct LoadedModel {
    session: Box<dyn Session>,
    /// Names of the inputs, in the order of the definition.
    names: Vec<String>,
}

impl LoadedModel {
    pub fn new(model: &Model, kind: RuntimeKind) -> Result<Self> {
        let (session, names) = model.load_with_inputs(kind)?;
        Ok(Self { session, names })
    }

    pub fn run(&mut self, case: &VerificationCase) -> Result<Array> {
        let tensors = case.inputs.iter().map(InputArray::tensor);
        let inputs: Vec<_> = self.names.iter().map(String::as_str).zip(tensors).collect();
        self.session.run(&inputs)
    }
}

impl Denoiser for LoadedModel {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let t = Array::new([t.len()], t.to_vec())?;
        let tensors = [InputTensor::Floats(x), InputTensor::Floats(&t), InputTensor::Labels(label)];
        let inputs: Vec<_> = self.names.iter().map(String::as_str).zip(tensors).collect();
        self.session.run(&inputs)
    }
}

/// The values of one input.
#[derive(Clone, Debug, PartialEq)]
pub enum InputArray {
    /// Floating-point numbers, `[batch, ..]`.
    Floats(Array),
    /// One integer for each item.
    Labels(Vec<i64>),
}

impl InputArray {
    /// Returns the values as the input of a runtime.
    pub fn tensor(&self) -> InputTensor<'_> {
        match self {
            Self::Floats(array) => InputTensor::Floats(array),
            Self::Labels(labels) => InputTensor::Labels(labels),
        }
    }

    fn batch(&self) -> usize {
        match self {
            Self::Floats(array) => array.dims().first().copied().unwrap_or(0),
            Self::Labels(labels) => labels.len(),
        }
    }
}

/// One batch of inputs, on which runtimes are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct VerificationCase {
    /// The inputs, in the order of the definition.
    pub inputs: Vec<InputArray>,
}

impl VerificationCase {
    /// Returns batches of three and single inputs for the network that `meta` describes.
    ///
    /// # Errors
    /// If the kind of the network is not registered.
    pub fn all(meta: &ModelMeta) -> Result<Vec<Self>> {
        match &meta.task {
            TaskMeta::Generator(task) => Self::generator_cases(meta, task),
            TaskMeta::Classifier(task) => Self::classifier_cases(meta.image_size, task),
            TaskMeta::Other {} | TaskMeta::Unknown(_) => Self::noise_cases(meta),
        }
    }

    /// Returns normal noise for floats, and all labels in turn (a selection if there are many).
    fn noise_cases(meta: &ModelMeta) -> Result<Vec<Self>> {
        let inputs = meta.config.network()?.inputs();
        let sizes = meta.sizes();
        let labels = inputs.iter().filter_map(|input| match input.values {
            InputValues::Labels(count) => Some(count),
            InputValues::Floats => None,
        });
        let count = labels.max().unwrap_or(0).clamp(ITEMS, MAX_LABELS);
        let batches = (0..count).collect::<Vec<_>>().chunks(3).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let singles = (0..3).map(|item| vec![item]);
        let values = |(number, input): (usize, &Input), items: &[usize]| -> Result<InputArray> {
            Ok(match input.values {
                InputValues::Labels(labels) => {
                    let stride = labels.div_ceil(count).max(1);
                    let label = |&item: &usize| (item * stride % labels.max(1)) as i64;
                    InputArray::Labels(items.iter().map(label).collect())
                }
                InputValues::Floats => {
                    let dims = input.dims(&sizes)?;
                    let len = dims.iter().product();
                    let stream = |&item: &usize| noise(SEED + number as u64, item as u64, len);
                    let dims: Vec<usize> = std::iter::once(items.len()).chain(dims).collect();
                    InputArray::Floats(Array::new(dims, items.iter().flat_map(stream).collect())?)
                }
            })
        };
        let case = |items: Vec<usize>| {
            let inputs = inputs.iter().enumerate().map(|input| values(input, &items));
            Ok(Self { inputs: inputs.collect::<Result<_>>()? })
        };
        batches.into_iter().chain(singles).map(case).collect()
    }

    /// Returns the inputs for a session.
    pub(super) fn tensors(&self) -> Vec<InputTensor<'_>> {
        self.inputs.iter().map(InputArray::tensor).collect()
    }

    /// Returns the number of inputs.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.inputs.first().map_or(0, InputArray::batch)
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
            let x = InputArray::Floats(Array::new([labels.len(), 3, size, size], x)?);
            let t = InputArray::Floats(Array::new([labels.len()], t)?);
            let label = InputArray::Labels(labels.iter().map(|&label| label as i64).collect());
            Ok(Self { inputs: vec![x, t, label] })
        };
        batches.chain(singles).map(case).collect()
    }

    /// Returns noise and synthetic images in turn, in batches of three; then three of them in batches of one.
    fn classifier_cases(size: usize, task: &ClassifierMeta) -> Result<Vec<Self>> {
        let all: Vec<usize> = (0..IMAGES).collect();
        let singles = (0..3).map(|i| vec![i]);
        let case = |numbers: Vec<usize>| {
            let x = numbers.iter().flat_map(|&number| test_image(number, size, task)).collect();
            let x = InputArray::Floats(Array::new([numbers.len(), 3, size, size], x)?);
            Ok(Self { inputs: vec![x] })
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
