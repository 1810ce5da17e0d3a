//! The generator's task: a network trained with flow matching.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{
    Generator, LoadOptions, LoadableNetwork, Model, ModelMeta, Request, SamplerDefaults, TaskMeta, grid,
    runtime::RuntimeKind, sample,
};
use tiny_cats_models::{
    InputValues, PredictionType, Role, Scope, Sizes, TapeOptions, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    main_output,
    tape::{Tape, Var},
};

use super::{
    Batch, BatchSource, Error, Flow, InitialWeightsSource, Result, Sample, Score, Task,
    examples::{batch_dims, order, paths, task_settings},
    flow::Example,
    initial::initial_weights,
    task::smallest_batch,
};
use crate::data::{Draw, Examples, Order};

/// Settings of a generator's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FlowMatchingOptions<N> {
    /// The network: a [generator](Role::Generator) whose first input has the sizes of the examples.
    pub network: N,
    /// The distribution of the examples.
    pub flow: Flow,
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

impl<N> FlowMatchingOptions<N> {
    /// Returns the options of plain training: the default distribution, guidance of weight 2 in samples, the last weights released.
    pub fn new(network: N) -> Self {
        let SamplerDefaults { guidance, guidance_interval, .. } = SamplerDefaults::default();
        Self {
            network,
            flow: Flow::default(),
            guidance,
            guidance_interval,
            best: false,
            seed: 0,
            kind: "generator",
            name: "generator".into(),
            init: None,
        }
    }
}

/// Draws of each example over which the validation loss is averaged.
pub const VALIDATION_DRAWS: u64 = 4;
/// Images of each class in a sample grid.
pub const SAMPLE_ROWS: usize = 4;
/// Draws that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: u64 = 32;
/// The seed of the validation's noise and times, the same for every run so that losses are comparable.
const VALIDATION: u64 = 0;

/// The training of a generator on labelled examples.
pub struct FlowMatching<N> {
    data: Arc<FlowMatchingBatches<N>>,
    validation: Option<Arc<dyn Examples>>,
    /// The sizes of the network's free axes.
    sizes: Sizes,
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
    train: Arc<dyn Examples>,
    order: Order,
}

/// The properties of a network that flow matching uses.
struct FlowNetwork {
    /// The sizes of the network's free axes.
    sizes: Sizes,
    null_label: Option<u32>,
    prediction: PredictionType,
}

/// Checks that a network takes a generator's inputs, for examples of the sizes `dims` in `classes` classes.
fn check_network<N: LoadableNetwork>(network: &N, dims: &[usize], classes: usize) -> Result<FlowNetwork> {
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
    if x.is_labels() {
        return invalid(format!("expected a first input of floating-point numbers, found {}", x.describe()));
    }
    if network_classes != classes {
        return invalid(format!("expected the data's {classes} classes, found {network_classes}"));
    }
    let sizes = x.sizes(dims)?;
    Ok(FlowNetwork { sizes, null_label: null_label.map(|label| label as u32), prediction })
}

impl<N: LoadableNetwork> FlowMatching<N> {
    /// Creates the task.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if the network is not a generator, or if the sizes or classes of the examples are not those of the network
    /// or the validation.
    pub fn new(
        options: FlowMatchingOptions<N>,
        train: Arc<dyn Examples>,
        validation: Option<Arc<dyn Examples>>,
        device: Device,
    ) -> Result<Self> {
        let (dims, classes) = (train.dims(), train.classes().to_vec());
        if train.training_dims() != dims {
            return Err(Error::setting(
                "data",
                "expected training examples of the same sizes as in evaluations",
            ));
        }
        let FlowNetwork { sizes, null_label, prediction } =
            check_network(&options.network, &dims, classes.len())?;
        let order = order(options.seed, &*train, validation.as_deref())?;
        let smallest_batch = smallest_batch(&options.network.specs()?);
        let mut meta = ModelMeta::for_network(options.network.clone(), sizes.clone(), classes)?;
        if let TaskMeta::Generator(task) = &mut meta.task {
            task.sampler.guidance = options.guidance;
            task.sampler.guidance_interval = options.guidance_interval;
        }
        let data = Arc::new(FlowMatchingBatches { options, null_label, prediction, train, order });
        Ok(Self { data, validation, sizes, meta, smallest_batch, device })
    }
}

impl<N: LoadableNetwork> BatchSource for FlowMatchingBatches<N> {
    fn items(&self) -> usize {
        self.train.count()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let FlowMatchingOptions { flow, seed, .. } = &self.options;
        let dims = self.train.dims();
        let len: usize = dims.iter().product();
        let chosen = self.order.range(position, batch);
        let (mut noisy, mut target) = (vec![0.0; batch * len], vec![0.0; batch * len]);
        let examples: Vec<Example> = noisy
            .par_chunks_mut(len)
            .zip(target.par_chunks_mut(len))
            .zip(chosen.par_iter().enumerate())
            .map(|((noisy, target), (i, &index))| {
                let position = position + i as u64;
                let mut clean = vec![0.0; len];
                let draw = Draw { seed: *seed, position };
                self.train.fill_augmented(index, draw, &mut clean)?;
                let label = (self.train.label(index), self.null_label);
                Ok(flow.draw(draw, self.prediction, label, &clean, noisy, target))
            })
            .collect::<Result<_>>()?;
        let shape = batch_dims(batch, &dims);
        let vector = |f: fn(&Example) -> f32| Tensor::from_iter(examples.iter().map(f), &Device::Cpu);
        Ok(Batch(vec![
            Tensor::from_vec(noisy, shape.clone(), &Device::Cpu)?,
            vector(|e| e.t)?,
            Tensor::from_iter(examples.iter().map(|e| e.label), &Device::Cpu)?,
            Tensor::from_vec(target, shape, &Device::Cpu)?,
            vector(|e| e.weight)?,
        ]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        paths(&*self.train, &self.order, position, len)
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
        Ok(self.data.options.network.cost(&self.sizes)?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        initial_weights(&self.cost()?.params, seed, self.data.options.init.as_ref())
    }

    fn smallest_batch(&self) -> usize {
        self.smallest_batch
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        Ok(self.data.options.network.training_bytes(&self.sizes, batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let FlowMatchingBatches { options, train, .. } = &*self.data;
        let mut settings = task_settings(options, &**train, self.validation.as_deref());
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

    /// Computes the flow loss on examples that are not trained on, at fixed noise and times, with their labels.
    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(validation) = &self.validation else { return Ok(Vec::new()) };
        let (prediction, dims) = (self.data.prediction, validation.dims());
        let flow = Flow { label_dropout: 0.0, ..self.data.options.flow.clone() };
        let len: usize = dims.iter().product();
        let mut params = Params::new(weights, DType::F32, &self.device)?;
        let network = self.data.options.network.build::<CandleValue>(&mut Scope::root(&mut params))?;
        let (all, mut sum) = (validation.count() as u64 * VALIDATION_DRAWS, 0.0);
        for first in (0..all).step_by(EVAL_BATCH as usize) {
            let count = EVAL_BATCH.min(all - first) as usize;
            let (mut noisy, mut target) = (vec![0.0; count * len], vec![0.0; count * len]);
            let draw = |(i, (noisy, target)): (usize, (&mut [f32], &mut [f32]))| {
                let position = first + i as u64;
                let index = (position / VALIDATION_DRAWS) as usize;
                let mut clean = vec![0.0; len];
                validation.fill(index, &mut clean)?;
                let label = (validation.label(index), None);
                Ok(flow.draw(Draw { seed: VALIDATION, position }, prediction, label, &clean, noisy, target))
            };
            let outputs = noisy.par_chunks_mut(len).zip(target.par_chunks_mut(len));
            let examples: Vec<Example> = outputs.enumerate().map(draw).collect::<Result<_>>()?;
            let noisy = Tensor::from_vec(noisy, batch_dims(count, &dims), &self.device)?;
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

    /// Generates a grid of images, if the network generates RGB images.
    fn sample(&mut self, weights: &Weights) -> Result<Option<Sample>> {
        let meta = self.meta();
        if meta.generator().is_none() {
            return Ok(None);
        }
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
        Ok(Some(Sample::Image(grid(&images, classes.len(), Some(&labels)))))
    }
}
