//! The classifier's task: a network trained with cross entropy.

use std::{path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{LoadableNetwork, ModelMeta, Prediction, Preprocessing, image_sizes};
use tiny_cats_models::{
    Network, Role, Scope, TapeOptions, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    main_output,
    random::{Purpose, Stream},
    tape::{Tape, Var},
};

use super::{
    Batch, BatchSource, Error, InitialWeightsSource, Result, Score, Task, initial::initial_weights,
    task::smallest_batch,
};
use crate::{
    data::{AugmentLevel, Order, Photos, View},
    evaluate::ClassificationResults,
};

/// Color channels of every image.
const CHANNELS: usize = 3;
/// Largest side of the images of any network, in pixels.
const MAX_SIDE: usize = 1 << 14;
/// Images that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: usize = 32;

/// Settings of a classifier's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassificationOptions<N> {
    /// The network: a [classifier](Role::Classifier) whose input is `[3, side, side]`.
    pub network: N,
    /// Side of the images that it is used on, in pixels.
    pub image_size: usize,
    /// Side of the images that it is trained on, in pixels.
    ///
    /// Somewhat smaller ones are faster. Training enlarges parts of images, so objects then appear as large as in use (arXiv 1906.06423).
    pub crop_size: usize,
    /// The augmentation of training images.
    pub augmentation: AugmentLevel,
    /// The parameter of the Beta distribution by which two images are mixed (mixup, arXiv 1710.09412), at most 1; 0 disables it.
    pub mixup: f64,
    /// The share of a target that is spread over all classes (arXiv 1512.00567).
    pub label_smoothing: f64,
    /// Seed of the order, the augmentation and the mixing.
    pub seed: u64,
    /// The base name of its released files, which affects nothing else.
    #[serde(skip)]
    pub name: String,
    /// A file with initial weights. The settings hold its name, not its path.
    #[serde(skip)]
    pub init: Option<InitialWeightsSource>,
}

/// Checks that a network takes square images of `side` px.
fn check_side<N: Network>(network: &N, side: usize) -> Result<(), String> {
    if !(1..=MAX_SIDE).contains(&side) {
        return Err(format!("expected 1 to {MAX_SIDE}, found {side}"));
    }
    let inputs = network.inputs();
    let sizes = image_sizes(side);
    let dims = match &inputs[..] {
        [input] if !input.is_labels() => input.dims(&sizes).map_err(|e| e.to_string())?,
        _ => return Err(format!("expected a network of one image, found {} inputs", inputs.len())),
    };
    if dims != [CHANNELS, side, side] {
        return Err(format!("expected the network's image {dims:?}, found {side}"));
    }
    // The definition knows which sizes it takes.
    network.cost(&sizes).map_err(|e| format!("the network takes no images of {side} px: {e}"))?;
    Ok(())
}

impl<N: Network> ClassificationOptions<N> {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for the first setting that is not valid.
    pub fn validate(&self) -> Result<()> {
        self.network.validate()?;
        if !matches!(self.network.role(), Role::Classifier { .. }) {
            let message = format!("expected a classifier, found {}", self.network.describe());
            return Err(Error::setting("network", message));
        }
        if !(0.0..=1.0).contains(&self.mixup) {
            return Err(Error::setting("--mixup", format!("expected 0 to 1, found {}", self.mixup)));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let message = format!("expected 0 or more and less than 1, found {}", self.label_smoothing);
            return Err(Error::setting("--label-smoothing", message));
        }
        check_side(&self.network, self.image_size).map_err(|e| Error::setting("--image-size", e))?;
        if self.crop_size > self.image_size {
            let message =
                format!("expected at most --image-size ({}), found {}", self.image_size, self.crop_size);
            return Err(Error::setting("--crop-size", message));
        }
        check_side(&self.network, self.crop_size).map_err(|e| Error::setting("--crop-size", e))
    }

    /// The shorter side in pixels of the photographs that the network is trained and evaluated on.
    pub fn short_side(&self) -> u32 {
        Preprocessing::imagenet(self.image_size).resize as u32
    }
}

/// The training of a classifier on decoded photographs.
pub struct Classification<N> {
    data: Arc<ClassificationBatches<N>>,
    validation: Option<Photos>,
    meta: ModelMeta,
    smallest_batch: usize,
    device: Device,
}

/// The source of the classifier's batches.
struct ClassificationBatches<N> {
    options: ClassificationOptions<N>,
    train: Photos,
    preprocessing: Preprocessing,
    order: Order,
}

impl<N: LoadableNetwork> Classification<N> {
    /// Creates the task for the classes of `train`, evaluated on `validation` if there is any.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if photographs, network and settings do not match.
    pub fn new(
        options: ClassificationOptions<N>,
        train: Photos,
        validation: Option<Photos>,
        device: Device,
    ) -> Result<Self> {
        options.validate()?;
        if options.network.role().classes() != Some(train.classes.len()) {
            let expected = format!("expected the data's {} classes", train.classes.len());
            return Err(Error::setting("network", expected));
        }
        let len = u32::try_from(train.len())
            .map_err(|_| Error::setting("data", "expected fewer than 2³² images"))?;
        let meta = ModelMeta::for_network(
            options.network.clone(),
            image_sizes(options.image_size),
            train.classes.clone(),
        )?;
        let smallest_batch = smallest_batch(&options.network.specs()?);
        let preprocessing = Preprocessing::imagenet(options.image_size);
        let order = Order::new(options.seed, len);
        let data = Arc::new(ClassificationBatches { options, train, preprocessing, order });
        Ok(Self { data, validation, meta, smallest_batch, device })
    }

    /// The photographs of the evaluations.
    pub fn validation(&self) -> Option<&Photos> {
        self.validation.as_ref()
    }

    /// Classifies `photos` with `weights` and collects the results.
    ///
    /// # Errors
    /// Returns errors of the network.
    pub fn classify(&self, weights: &Weights, photos: &Photos) -> Result<ClassificationResults> {
        let ClassificationBatches { options, preprocessing, .. } = &*self.data;
        let size = options.image_size;
        let mut params = Params::new(weights, DType::F32, &self.device)?;
        let network = options.network.build::<CandleValue>(&mut Scope::root(&mut params))?;
        let mut results = ClassificationResults::new(&photos.classes);
        let all: Vec<usize> = (0..photos.len()).collect();
        for chosen in all.chunks(EVAL_BATCH) {
            let mut pixels = vec![0.0; chosen.len() * CHANNELS * size * size];
            pixels.par_chunks_mut(CHANNELS * size * size).zip(chosen).try_for_each(|(out, &index)| {
                photos.fill(index, &View::center(photos.dimensions(index), size as u32), size, out)?;
                preprocessing.normalize(out);
                Ok::<_, Error>(())
            })?;
            let x = Tensor::from_vec(pixels, (chosen.len(), CHANNELS, size, size), &self.device)?;
            let logits = main_output(N::forward(&network, &[CandleValue::new(x)])?)?;
            let logits = to_host(&logits.into_inner())?;
            for (row, &index) in logits.data().chunks(photos.classes.len()).zip(chosen) {
                results.add(photos.label(index) as usize, &Prediction::new(row, &photos.classes));
            }
        }
        Ok(results)
    }
}

impl<N> ClassificationBatches<N> {
    /// The share of image `position` in a mixture; the rest is the next image in the batch.
    fn share(&self, position: u64) -> f32 {
        let alpha = self.options.mixup;
        if alpha == 0.0 {
            return 1.0;
        }
        // Beta(α, α) for α ≤ 1 by Jöhnk's method (1964).
        let mut stream = Stream::new(self.options.seed, Purpose::Training, position);
        loop {
            let [a, b] = [stream.uniform(), stream.uniform()].map(|u| u.powf(1.0 / alpha));
            if a + b <= 1.0 && a + b > 0.0 {
                return (a / (a + b)) as f32;
            }
        }
    }
}

impl<N: Network> BatchSource for ClassificationBatches<N> {
    fn items(&self) -> usize {
        self.train.len()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let size = self.options.crop_size;
        let classes = self.train.classes.len();
        let len = CHANNELS * size * size;
        let chosen = self.order.range(position, batch);
        let mut pure = vec![0.0; batch * len];
        let outputs = pure.par_chunks_mut(len).zip(chosen.par_iter().enumerate());
        outputs.try_for_each(|(out, (i, &index))| {
            let ClassificationOptions { augmentation, seed, image_size, .. } = self.options;
            let shape = self.train.dimensions(index);
            let view =
                View::for_classifier(augmentation, seed, position + i as u64, shape, image_size as u32);
            self.train.fill(index, &view, size, out)?;
            self.preprocessing.normalize(out);
            Ok::<_, Error>(())
        })?;
        let smooth = self.options.label_smoothing as f32;
        let mut targets = vec![smooth / classes as f32; batch * classes];
        let mut mixed = vec![0.0; batch * len];
        let outputs = mixed.par_chunks_mut(len).zip(targets.par_chunks_mut(classes));
        outputs.enumerate().for_each(|(i, (out, target))| {
            let (next, share) = ((i + 1) % batch, self.share(position + i as u64));
            let image_values = |i: usize| &pure[i * len..(i + 1) * len];
            let pairs = image_values(i).iter().zip(image_values(next));
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = share * a + (1.0 - share) * b);
            for (i, share) in [(i, share), (next, 1.0 - share)] {
                target[self.train.label(chosen[i]) as usize] += share * (1.0 - smooth);
            }
        });
        Ok(Batch(vec![
            Tensor::from_vec(mixed, (batch, CHANNELS, size, size), &Device::Cpu)?,
            Tensor::from_vec(targets, (batch, classes), &Device::Cpu)?,
        ]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        self.order.range(position, len).into_iter().map(|i| self.train.path(i).to_owned()).collect()
    }
}

impl<N: LoadableNetwork> Task for Classification<N> {
    fn kind(&self) -> &'static str {
        "classifier"
    }

    fn release_name(&self) -> String {
        self.data.options.name.clone()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(self.data.options.network.cost(&image_sizes(self.data.options.crop_size))?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        initial_weights(&self.cost()?.params, seed, self.data.options.init.as_ref())
    }

    fn smallest_batch(&self) -> usize {
        self.smallest_batch
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        let ClassificationOptions { network, crop_size, .. } = &self.data.options;
        Ok(network.training_bytes(&image_sizes(*crop_size), batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let validation = self.validation.as_ref().map_or(0, |photos| photos.len());
        let ClassificationBatches { options, train, .. } = &*self.data;
        let init = options.init.as_ref().and_then(InitialWeightsSource::name);
        serde_json::json!({
            "options": options,
            "init": init,
            "data": train.fingerprint,
            "items": train.len(),
            "validation": validation,
        })
    }

    fn meta(&self) -> ModelMeta {
        self.meta.clone()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [x, targets] = batch.to_device(&self.device)?;
        let network = self.data.options.network.build(&mut Scope::root(&mut tape.params(params)))?;
        let logits = main_output(N::forward(&network, &[tape.constant(x)])?)?;
        Ok(logits.cross_entropy(&targets)?)
    }

    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(photos) = &self.validation else { return Ok(Vec::new()) };
        let results = self.classify(weights, photos)?;
        let top3 = f64::from(results.top_k_correct()) / f64::from(results.total());
        let scores = [
            ("validation_accuracy", results.confusion.accuracy()),
            ("validation_top3", top3),
            ("validation_recall", results.confusion.mean_recall()),
        ];
        Ok(scores.map(|(name, value)| Score { name, value, higher_is_better: true }).to_vec())
    }

    fn sample_grid(&mut self, _: &Weights) -> Result<Option<RgbImage>> {
        Ok(None)
    }
}
