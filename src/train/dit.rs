//! The generator's task: TinyDiT trained with flow matching.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{
    Generator, LoadOptions, Model, ModelMeta, Request, TaskMeta, grid, runtime::RuntimeKind, sample,
};
use tiny_cats_models::{
    Scope, TapeOptions, TinyDit, TinyDitConfig, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    init,
    tape::{Tape, Var},
};

use super::{Batch, BatchSource, Error, Flow, Result, Score, Task, flow::Example};
use crate::{
    checkpoint::InitFile,
    data::{AugmentLevel, Images, Order, View},
};

/// Settings of a generator's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DitOptions {
    /// The network.
    pub network: TinyDitConfig,
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
    /// A file with initial weights: see [`InitFile::generator`].
    #[serde(skip)]
    pub init: Option<PathBuf>,
}

/// Examples of each image over which the validation loss is averaged.
pub const VALIDATION_DRAWS: u64 = 4;
/// Images of each class in a sample grid.
pub const SAMPLE_ROWS: usize = 4;
/// Examples that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: u64 = 32;
/// The seed of the validation's noise and times, the same for every run so that losses are comparable.
const VALIDATION: u64 = 0;

/// The training of a generator on decoded images.
pub struct Dit {
    data: Arc<DitBatches>,
    validation: Option<Images>,
    device: Device,
}

/// The source of the generator's batches.
struct DitBatches {
    options: DitOptions,
    images: Images,
    order: Order,
}

impl Dit {
    /// Creates the task.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if images and network do not match.
    pub fn new(
        options: DitOptions,
        images: Images,
        validation: Option<Images>,
        device: Device,
    ) -> Result<Self> {
        let network = &options.network;
        network.validate()?;
        if images.size() as usize != network.image_size || images.classes.len() != network.classes {
            let (side, classes) = (images.size(), images.classes.len());
            return Err(Error::setting(
                "network",
                format!("expected images of {side} px in {classes} classes"),
            ));
        }
        let len = u32::try_from(images.len())
            .map_err(|_| Error::setting("data", "expected fewer than 2³² images"))?;
        let order = Order::new(options.seed, len);
        Ok(Self { data: Arc::new(DitBatches { options, images, order }), validation, device })
    }
}

impl BatchSource for DitBatches {
    fn items(&self) -> usize {
        self.images.len()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let DitOptions { network, flow, augmentation, seed, .. } = &self.options;
        let len: usize = network.image_dims().iter().product();
        let chosen = self.order.range(position, batch);
        let (mut noisy, mut target) = (vec![0.0; batch * len], vec![0.0; batch * len]);
        let null = network.null_label().map(|l| l as u32);
        let examples: Vec<Example> = noisy
            .par_chunks_mut(len)
            .zip(target.par_chunks_mut(len))
            .zip(chosen.par_iter().enumerate())
            .map(|((noisy, target), (i, &index))| {
                let position = position + i as u64;
                let mut clean = vec![0.0; len];
                let view = View::for_generator(*augmentation, *seed, position, self.images.size());
                self.images.fill(index, &view, network.image_size, &mut clean)?;
                let label = (self.images.label(index), null);
                Ok(flow.draw(*seed, position, network.prediction(), label, &clean, noisy, target))
            })
            .collect::<Result<_>>()?;
        let [channels, height, width] = network.image_dims();
        let shape = (batch, channels, height, width);
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

impl Task for Dit {
    fn kind(&self) -> &'static str {
        "dit"
    }

    fn release_name(&self) -> String {
        "tinydit_final".into()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(self.data.options.network.cost()?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        let DitOptions { network, init: path, .. } = &self.data.options;
        let Some(path) = path else { return Ok(init(&self.cost()?.params, seed)) };
        let initial = InitFile::open(path)?.generator(network, &self.data.images.classes)?;
        initial
            .notes
            .iter()
            .for_each(|note| tracing::info!(target: "tiny_cats::init", "{}: {note}", path.display()));
        Ok(initial.weights)
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        Ok(self.data.options.network.training_bytes(batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let DitBatches { options, images, .. } = &*self.data;
        let validation = self.validation.as_ref().map_or(0, |images| images.len());
        let mut settings = serde_json::json!({
            "options": options,
            "data": images.fingerprint,
            "items": images.len(),
            "validation": validation,
        });
        // Without `init` the key is absent, so that the settings of earlier runs still match.
        if let Some(name) = options.init.as_ref().and_then(|path| path.file_name()?.to_str()) {
            settings["init"] = name.into();
        }
        settings
    }

    fn meta(&self) -> ModelMeta {
        let mut meta = ModelMeta::tiny_dit(&self.data.options.network, self.data.images.classes.clone());
        if let TaskMeta::Generator(task) = &mut meta.task {
            task.sampler.guidance = self.data.options.guidance;
            task.sampler.guidance_interval = self.data.options.guidance_interval;
        }
        meta
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [noisy, t, labels, target, weight] = batch.to_device(&self.device)?;
        let model = TinyDit::new(&self.data.options.network, &mut Scope::root(&mut tape.params(params)))?;
        let prediction = model.forward(&tape.constant(noisy), &tape.constant(t), &tape.constant(labels))?;
        Ok(prediction.weighted_mse(&target, &weight)?)
    }

    /// Computes the flow loss on images that are not trained on, at fixed noise and times, with their labels.
    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(images) = &self.validation else { return Ok(Vec::new()) };
        let network = &self.data.options.network;
        let flow = Flow { label_dropout: 0.0, ..self.data.options.flow.clone() };
        let [channels, height, width] = network.image_dims();
        let len = channels * height * width;
        let mut params = Params::new(weights, DType::F32, &self.device)?;
        let model = TinyDit::<CandleValue>::new(network, &mut Scope::root(&mut params))?;
        let (all, mut sum) = (images.len() as u64 * VALIDATION_DRAWS, 0.0);
        for first in (0..all).step_by(EVAL_BATCH as usize) {
            let count = EVAL_BATCH.min(all - first) as usize;
            let (mut noisy, mut target) = (vec![0.0; count * len], vec![0.0; count * len]);
            let draw = |(i, (noisy, target)): (usize, (&mut [f32], &mut [f32]))| {
                let position = first + i as u64;
                let index = (position / VALIDATION_DRAWS) as usize;
                let mut clean = vec![0.0; len];
                let all = View::center(images.dimensions(index), height as u32);
                images.fill(index, &all, height, &mut clean)?;
                let label = (images.label(index), None);
                Ok(flow.draw(VALIDATION, position, network.prediction(), label, &clean, noisy, target))
            };
            let outputs = noisy.par_chunks_mut(len).zip(target.par_chunks_mut(len));
            let examples: Vec<Example> = outputs.enumerate().map(draw).collect::<Result<_>>()?;
            let tensor =
                |values: Vec<f32>| Tensor::from_vec(values, (count, channels, height, width), &self.device);
            let t = Tensor::from_iter(examples.iter().map(|e| e.t), &self.device)?;
            let labels = Tensor::from_iter(examples.iter().map(|e| e.label), &self.device)?;
            let found = model.forward(
                &CandleValue::new(tensor(noisy)?),
                &CandleValue::new(t),
                &CandleValue::new(labels),
            )?;
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
