//! The generator's task: a network trained with flow matching.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{
    Generator, LoadOptions, LoadableNetwork, Model, ModelMeta, Request, TaskMeta, grid, image_sizes,
    runtime::RuntimeKind, sample,
};
use tiny_cats_models::{
    InputValues, PredictionType, Role, Scope, TapeOptions, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    main_output,
    tape::{Tape, Var},
};

use super::{
    Batch, BatchSource, Error, Flow, InitialWeightsSource, Result, Score, Task, flow::Example,
    initial::initial_weights, task::smallest_batch,
};
use crate::data::{AugmentLevel, Images, Order, View};

/// Settings of a generator's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FlowMatchingOptions<N> {
    /// The network: a [generator](Role::Generator) whose first input is `[3, side, side]`.
    pub network: N,
    /// The distribution of the examples.
    pub flow: Flow,
    /// The augmentation of training images.
    pub augmentation: AugmentLevel,
    /// Weight of guidance in the sample grids, and the released files' default. It affects nothing else.
    #[serde(skip)]
    pub guidance: f32,
    /// Interval of the times with guidance, for the same use.
    #[serde(skip)]
    pub guidance_interval: [f32; 2],
    /// True if the weights with the best evaluation are released.
    ///
    /// The flow loss is a poor measure of image quality, so usually the last weights are released.
    #[serde(skip)]
    pub best: bool,
    /// Seed of order, augmentation, times, noise and dropped labels.
    pub seed: u64,
    /// The kind of task, which names its runs and training states.
    #[serde(skip)]
    pub kind: &'static str,
    /// The base name of its released files, which affects nothing else.
    #[serde(skip)]
    pub name: String,
    /// A file with initial weights. The settings hold its name, not its path.
    #[serde(skip)]
    pub init: Option<InitialWeightsSource>,
}

/// Color channels of every image.
const CHANNELS: usize = 3;
/// Examples of each image over which the validation loss is averaged.
pub const VALIDATION_DRAWS: u64 = 4;
/// Images of each class in a sample grid.
pub const SAMPLE_ROWS: usize = 4;
/// Examples that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: u64 = 32;
/// The seed of the validation's noise and times, the same for every run so that losses are comparable.
const VALIDATION: u64 = 0;

/// The training of a generator on decoded images.
pub struct FlowMatching<N> {
    data: Arc<FlowMatchingBatches<N>>,
    validation: Option<Images>,
    meta: ModelMeta,
    smallest_batch: usize,
    device: Device,
}

/// The source of the generator's batches.
struct FlowMatchingBatches<N> {
    options: FlowMatchingOptions<N>,
    /// Label of the null class, if the network has one.
    null_label: Option<u32>,
    prediction: PredictionType,
    images: Images,
    order: Order,
}

impl<N> FlowMatchingBatches<N> {
    /// Returns the side of the images, in pixels.
    fn side(&self) -> usize {
        self.images.size() as usize
    }
}

/// Checks that a network takes a generator's inputs, for images of `side` px in `classes` classes. Returns the label of its null class and
/// the quantity that it predicts.
fn check_network<N: LoadableNetwork>(
    network: &N,
    side: usize,
    classes: usize,
) -> Result<(Option<u32>, PredictionType)> {
    let invalid = |message: String| Err(Error::setting("network", message));
    network.validate()?;
    let Role::Generator { classes: network_classes, null_label, prediction } = network.role() else {
        return invalid(format!("expected a generator, found {}", network.describe()));
    };
    let inputs = network.inputs();
    let [x, t, label] = &inputs[..] else {
        return invalid(format!(
            "expected a generator with the inputs x, t and label, found {}",
            inputs.len()
        ));
    };
    let labels = classes.max(null_label.map_or(0, |label| label + 1));
    let takes_labels = matches!(label.values, InputValues::Labels(count) if count >= labels);
    if t.is_labels() || !t.axes.is_empty() || !takes_labels {
        let [t, label] = [t, label].map(|input| input.describe());
        return invalid(format!(
            "expected t [batch] and labels [batch] below {labels}, found {t} and {label}"
        ));
    }
    let dims = x.dims(&image_sizes(side))?;
    if x.is_labels() || !matches!(dims[..], [3, height, width] if height == width) {
        return invalid(format!("expected a first input [batch, 3, side, side], found {}", x.describe()));
    }
    if dims[1] != side || network_classes != classes {
        return invalid(format!("expected images of {side} px in {classes} classes"));
    }
    Ok((null_label.map(|label| label as u32), prediction))
}

impl<N: LoadableNetwork> FlowMatching<N> {
    /// Creates the task.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if the network is not a generator of images, or images and network do not match.
    pub fn new(
        options: FlowMatchingOptions<N>,
        images: Images,
        validation: Option<Images>,
        device: Device,
    ) -> Result<Self> {
        let (side, classes) = (images.size() as usize, images.classes.len());
        let (null_label, prediction) = check_network(&options.network, side, classes)?;
        let len = u32::try_from(images.len())
            .map_err(|_| Error::setting("data", "expected fewer than 2³² images"))?;
        let order = Order::new(options.seed, len);
        let smallest_batch = smallest_batch(&options.network.specs()?);
        let mut meta =
            ModelMeta::for_network(options.network.clone(), image_sizes(side), images.classes.clone())?;
        if let TaskMeta::Generator(task) = &mut meta.task {
            task.sampler.guidance = options.guidance;
            task.sampler.guidance_interval = options.guidance_interval;
        }
        let data = Arc::new(FlowMatchingBatches { options, null_label, prediction, images, order });
        Ok(Self { data, validation, meta, smallest_batch, device })
    }
}

impl<N: LoadableNetwork> BatchSource for FlowMatchingBatches<N> {
    fn items(&self) -> usize {
        self.images.len()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let FlowMatchingOptions { flow, augmentation, seed, .. } = &self.options;
        let side = self.side();
        let len = CHANNELS * side * side;
        let chosen = self.order.range(position, batch);
        let (mut noisy, mut target) = (vec![0.0; batch * len], vec![0.0; batch * len]);
        let examples: Vec<Example> = noisy
            .par_chunks_mut(len)
            .zip(target.par_chunks_mut(len))
            .zip(chosen.par_iter().enumerate())
            .map(|((noisy, target), (i, &index))| {
                let position = position + i as u64;
                let mut clean = vec![0.0; len];
                let view = View::for_generator(*augmentation, *seed, position, self.images.size());
                self.images.fill(index, &view, side, &mut clean)?;
                let label = (self.images.label(index), self.null_label);
                Ok(flow.draw(*seed, position, self.prediction, label, &clean, noisy, target))
            })
            .collect::<Result<_>>()?;
        let shape = (batch, CHANNELS, side, side);
        let vector = |f: fn(&Example) -> f32| Tensor::from_iter(examples.iter().map(f), &Device::Cpu);
        Ok(Batch(vec![
            Tensor::from_vec(noisy, shape, &Device::Cpu)?,
            vector(|e| e.t)?,
            Tensor::from_iter(examples.iter().map(|e| e.label), &Device::Cpu)?,
            Tensor::from_vec(target, shape, &Device::Cpu)?,
            vector(|e| e.weight)?,
        ]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        self.order.range(position, len).into_iter().map(|i| self.images.path(i).to_owned()).collect()
    }
}

impl<N: LoadableNetwork> Task for FlowMatching<N> {
    fn kind(&self) -> &'static str {
        self.data.options.kind
    }

    fn release_name(&self) -> String {
        self.data.options.name.clone()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(self.data.options.network.cost(&image_sizes(self.data.side()))?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        initial_weights(&self.cost()?.params, seed, self.data.options.init.as_ref())
    }

    fn smallest_batch(&self) -> usize {
        self.smallest_batch
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        let sizes = image_sizes(self.data.side());
        Ok(self.data.options.network.training_bytes(&sizes, batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let FlowMatchingBatches { options, images, .. } = &*self.data;
        let validation = self.validation.as_ref().map_or(0, |images| images.len());
        let mut settings = serde_json::json!({
            "options": options,
            "data": images.fingerprint,
            "items": images.len(),
            "validation": validation,
        });
        // Without `init` the key is absent, so that the settings of earlier runs still match.
        if let Some(name) = options.init.as_ref().and_then(InitialWeightsSource::name) {
            settings["init"] = name.into();
        }
        settings
    }

    fn meta(&self) -> ModelMeta {
        self.meta.clone()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [noisy, t, labels, target, weight] = batch.to_device(&self.device)?;
        let network = self.data.options.network.build(&mut Scope::root(&mut tape.params(params)))?;
        let prediction = main_output(N::forward(&network, &[noisy, t, labels].map(|x| tape.constant(x)))?)?;
        Ok(prediction.weighted_mse(&target, &weight)?)
    }

    /// Computes the flow loss on images that are not trained on, at fixed noise and times, with their labels.
    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(images) = &self.validation else { return Ok(Vec::new()) };
        let (prediction, side) = (self.data.prediction, self.data.side());
        let flow = Flow { label_dropout: 0.0, ..self.data.options.flow.clone() };
        let len = CHANNELS * side * side;
        let mut params = Params::new(weights, DType::F32, &self.device)?;
        let network = self.data.options.network.build::<CandleValue>(&mut Scope::root(&mut params))?;
        let (all, mut sum) = (images.len() as u64 * VALIDATION_DRAWS, 0.0);
        for first in (0..all).step_by(EVAL_BATCH as usize) {
            let count = EVAL_BATCH.min(all - first) as usize;
            let (mut noisy, mut target) = (vec![0.0; count * len], vec![0.0; count * len]);
            let draw = |(i, (noisy, target)): (usize, (&mut [f32], &mut [f32]))| {
                let position = first + i as u64;
                let index = (position / VALIDATION_DRAWS) as usize;
                let mut clean = vec![0.0; len];
                let all = View::center(images.dimensions(index), side as u32);
                images.fill(index, &all, side, &mut clean)?;
                let label = (images.label(index), None);
                Ok(flow.draw(VALIDATION, position, prediction, label, &clean, noisy, target))
            };
            let outputs = noisy.par_chunks_mut(len).zip(target.par_chunks_mut(len));
            let examples: Vec<Example> = outputs.enumerate().map(draw).collect::<Result<_>>()?;
            let noisy = Tensor::from_vec(noisy, (count, CHANNELS, side, side), &self.device)?;
            let t = Tensor::from_iter(examples.iter().map(|e| e.t), &self.device)?;
            let labels = Tensor::from_iter(examples.iter().map(|e| e.label), &self.device)?;
            let found = main_output(N::forward(&network, &[noisy, t, labels].map(CandleValue::new))?)?;
            let found = to_host(&found.into_inner())?;
            for ((found, target), example) in found.data().chunks(len).zip(target.chunks(len)).zip(&examples)
            {
                let squares = found.iter().zip(target).map(|(a, b)| f64::from(a - b).powi(2));
                sum += f64::from(example.weight) * squares.sum::<f64>() / len as f64;
            }
        }
        Ok(vec![Score { name: "validation_loss", value: sum / all as f64, higher_is_better: false }])
    }

    fn releases_best(&self) -> bool {
        self.data.options.best
    }

    fn sample_grid(&mut self, weights: &Weights) -> Result<Option<RgbImage>> {
        let meta = self.meta();
        let classes = meta.classes.clone();
        let model = Model::from_weights(meta, weights.clone());
        // candle would compute on the training device; on a CPU the native backend's kernels are faster.
        let runtime = if self.device.is_cpu() { RuntimeKind::Native } else { RuntimeKind::Candle };
        let options = LoadOptions { runtime: Some(runtime), ..LoadOptions::default() };
        let mut generator = Generator::from_model(&model, &options)?;
        let request = Request { count: classes.len() * SAMPLE_ROWS, ..Request::default() };
        let no_progress = |_: sample::Progress| ControlFlow::Continue(());
        let images: Vec<RgbImage> =
            generator.generate_with(&request, &mut { no_progress })?.into_iter().map(|p| p.image).collect();
        let mut labels = classes.clone();
        labels.resize(images.len(), String::new());
        Ok(Some(grid(&images, classes.len(), Some(&labels))))
    }
}
