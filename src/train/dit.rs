//! The generator's task: TinyDiT by flow matching.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{Generator, Model, ModelMeta, Options, grid, runtime::RuntimeKind, sample};
use tiny_cats_models::{
    ParamSpec, Scope, TinyDit, TinyDitConfig, Weights,
    candle::Params,
    tape::{Tape, Var},
};

use super::{Error, Flow, Result, Task, flow::Example};
use crate::data::{Augmentation, Images, Level, Order};

/// How a generator is trained, besides what the engine does.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DitOptions {
    /// The network.
    pub network: TinyDitConfig,
    /// How examples are drawn.
    pub flow: Flow,
    /// How pictures are changed.
    pub augmentation: Level,
    /// Pictures in a micro-batch.
    pub batch: usize,
    /// Weight of guidance in the sample grids, which changes nothing else.
    #[serde(skip)]
    pub guidance: f32,
    /// Order, augmentation, times, noise and dropped labels.
    pub seed: u64,
}

/// Training of a generator on pictures in memory.
pub struct Dit {
    options: DitOptions,
    images: Images,
    order: Order,
    device: Device,
}

impl Dit {
    /// # Errors
    /// [`Error::Setting`] when pictures and network do not fit together.
    pub fn new(options: DitOptions, images: Images, device: Device) -> Result<Self> {
        let network = &options.network;
        network.validate()?;
        if images.size() as usize != network.image_size || images.classes.len() != network.classes {
            let (side, classes) = (images.size(), images.classes.len());
            return Err(Error::setting(
                "network",
                format!("expected pictures of {side} px in {classes} classes"),
            ));
        }
        if options.batch == 0 {
            return Err(Error::setting("--batch-size", "expected at least 1, found 0"));
        }
        let len = u32::try_from(images.len())
            .map_err(|_| Error::setting("data", "expected fewer than 2³² pictures"))?;
        Ok(Self { order: Order::new(options.seed, len), options, images, device })
    }

    /// What a file of this model says about itself.
    fn describe(&self) -> ModelMeta {
        ModelMeta::tiny_dit(&self.options.network, self.images.classes.clone())
    }
}

impl Task for Dit {
    fn name(&self) -> &str {
        "tinydit"
    }

    fn released(&self) -> String {
        "tinydit_final".into()
    }

    fn specs(&self) -> Result<Vec<ParamSpec>> {
        Ok(self.options.network.cost()?.params)
    }

    fn batch(&self) -> usize {
        self.options.batch
    }

    fn items(&self) -> usize {
        self.images.len()
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::json!({"options": self.options, "data": self.images.fingerprint, "items": self.images.len()})
    }

    fn meta(&self) -> ModelMeta {
        self.describe()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, position: u64) -> Result<Var> {
        let DitOptions { network, flow, augmentation, batch, seed, .. } = &self.options;
        let len: usize = network.picture().iter().product();
        let chosen: Vec<usize> = (position..position + *batch as u64).map(|p| self.order.at(p)).collect();
        let (mut noisy, mut target) = (vec![0.0; batch * len], vec![0.0; batch * len]);
        let null = network.null_label().map(|l| l as u32);
        let examples: Vec<Example> = noisy
            .par_chunks_mut(len)
            .zip(target.par_chunks_mut(len))
            .zip(chosen.par_iter().enumerate())
            .map(|((noisy, target), (i, &index))| {
                let position = position + i as u64;
                let mut clean = vec![0.0; len];
                self.images.fill_augmented(
                    index,
                    &Augmentation::draw(*augmentation, *seed, position),
                    &mut clean,
                );
                let label = (self.images.label(index), null);
                flow.draw(*seed, position, network.prediction(), label, &clean, noisy, target)
            })
            .collect();
        let [channels, height, width] = network.picture();
        let picture = (*batch, channels, height, width);
        let vector = |f: fn(&Example) -> f32| Tensor::from_iter(examples.iter().map(f), &self.device);
        let labels = Tensor::from_iter(examples.iter().map(|e| e.label), &self.device)?;
        let model = TinyDit::new(network, &mut Scope::root(&mut tape.params(params)))?;
        let x = tape.constant(Tensor::from_vec(noisy, picture, &self.device)?);
        let prediction = model.forward(&x, &tape.constant(vector(|e| e.t)?), &tape.constant(labels))?;
        let target = Tensor::from_vec(target, picture, &self.device)?;
        Ok(prediction.squared_error(&target, &vector(|e| e.weight)?)?)
    }

    fn samples(&mut self, weights: &Weights) -> Result<Option<RgbImage>> {
        const ROWS: usize = 4;
        let meta = self.describe();
        let classes = meta.classes.clone();
        let model = Model::from_weights(meta, weights.clone());
        let options = Options { runtime: Some(RuntimeKind::Candle), ..Options::default() };
        let mut generator = Generator::from_model(&model, &options)?;
        let mut request = generator.request();
        (request.count, request.guidance) = (classes.len() * ROWS, self.options.guidance);
        let go_on = |_: sample::Progress| ControlFlow::Continue(());
        let pictures: Vec<RgbImage> =
            generator.generate_with(&request, &mut { go_on })?.into_iter().map(|p| p.image).collect();
        let mut labels = classes.clone();
        labels.resize(pictures.len(), String::new());
        Ok(Some(grid(&pictures, classes.len(), Some(&labels))))
    }
}
