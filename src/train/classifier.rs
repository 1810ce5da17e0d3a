//! The classifier's task: a ResNet trained with cross entropy.

use std::{path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::{ModelMeta, Prediction, Preprocessing};
use tiny_cats_models::{
    ResNet, ResNetConfig, Scope, TapeOptions, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    init,
    random::{Purpose, Stream},
    resnet::{MAX_IMAGE_SIZE, MIN_IMAGE_SIZE},
    tape::{Tape, Var},
};

use super::{Batch, BatchSource, Error, Result, Score, Task};
use crate::{
    checkpoint::InitFile,
    data::{AugmentLevel, Order, Photos, View},
    evaluate::Classification,
};

/// Images that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: usize = 32;

/// Settings of a classifier's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassifierOptions {
    /// The network.
    pub network: ResNetConfig,
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
    /// A file with initial weights: see [`InitFile::classifier`]. The settings hold its name, not its path.
    #[serde(skip)]
    pub init: Option<PathBuf>,
}

impl ClassifierOptions {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for the first setting that is not valid.
    pub fn validate(&self) -> Result<()> {
        self.network.validate()?;
        if !(0.0..=1.0).contains(&self.mixup) {
            return Err(Error::setting("--mixup", format!("expected 0 to 1, found {}", self.mixup)));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let message = format!("expected 0 or more and less than 1, found {}", self.label_smoothing);
            return Err(Error::setting("--label-smoothing", message));
        }
        if !(MIN_IMAGE_SIZE..=MAX_IMAGE_SIZE).contains(&self.image_size) {
            let message = format!("expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}, found {}", self.image_size);
            return Err(Error::setting("--image-size", message));
        }
        if !(MIN_IMAGE_SIZE..=self.image_size).contains(&self.crop_size) {
            let (max, classification) = (self.image_size, self.crop_size);
            let message =
                format!("expected {MIN_IMAGE_SIZE} to --image-size ({max}), found {classification}");
            return Err(Error::setting("--crop-size", message));
        }
        Ok(())
    }

    /// The shorter side in pixels of the photographs that the network is trained and evaluated on.
    pub fn short_side(&self) -> u32 {
        Preprocessing::imagenet(self.image_size).resize as u32
    }
}

/// The training of a classifier on decoded photographs.
pub struct Classifier {
    data: Arc<ClassifierBatches>,
    validation: Option<Photos>,
    meta: ModelMeta,
    device: Device,
}

/// The source of the classifier's batches.
struct ClassifierBatches {
    options: ClassifierOptions,
    train: Photos,
    preprocessing: Preprocessing,
    order: Order,
}

impl Classifier {
    /// Makes a classifier for the classes of `train`, evaluated on `validation` if there is any.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if photographs, network and settings do not match.
    pub fn new(
        options: ClassifierOptions,
        train: Photos,
        validation: Option<Photos>,
        device: Device,
    ) -> Result<Self> {
        options.validate()?;
        if train.classes.len() != options.network.classes {
            let expected = format!("expected the data's {} classes", train.classes.len());
            return Err(Error::setting("network", expected));
        }
        let len = u32::try_from(train.len())
            .map_err(|_| Error::setting("data", "expected fewer than 2³² images"))?;
        let meta = ModelMeta::resnet(&options.network, options.image_size, train.classes.clone());
        let preprocessing = Preprocessing::imagenet(options.image_size);
        let order = Order::new(options.seed, len);
        let data = Arc::new(ClassifierBatches { options, train, preprocessing, order });
        Ok(Self { data, validation, meta, device })
    }

    /// The photographs of the evaluations.
    pub fn validation(&self) -> Option<&Photos> {
        self.validation.as_ref()
    }

    /// Classifies `photos` with `weights` and collects the results.
    ///
    /// # Errors
    /// Returns errors of the network.
    pub fn classify(&self, weights: &Weights, photos: &Photos) -> Result<Classification> {
        let ClassifierBatches { options, preprocessing, .. } = &*self.data;
        let size = options.image_size;
        let mut params = Params::new(weights, DType::F32, &self.device)?;
        let model = ResNet::<CandleValue>::new(&options.network, &mut Scope::root(&mut params))?;
        let mut classification = Classification::new(&photos.classes);
        let all: Vec<usize> = (0..photos.len()).collect();
        for chosen in all.chunks(EVAL_BATCH) {
            let mut pixels = vec![0.0; chosen.len() * 3 * size * size];
            pixels.par_chunks_mut(3 * size * size).zip(chosen).try_for_each(|(out, &index)| {
                photos.fill(index, &View::center(photos.dimensions(index), size as u32), size, out)?;
                preprocessing.normalize(out);
                Ok::<_, Error>(())
            })?;
            let x = Tensor::from_vec(pixels, (chosen.len(), 3, size, size), &self.device)?;
            let logits = to_host(&model.forward(&CandleValue::new(x))?.into_inner())?;
            for (row, &index) in logits.data().chunks(photos.classes.len()).zip(chosen) {
                classification.add(photos.label(index) as usize, &Prediction::new(row, &photos.classes));
            }
        }
        Ok(classification)
    }
}

impl ClassifierBatches {
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

impl BatchSource for ClassifierBatches {
    fn items(&self) -> usize {
        self.train.len()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let size = self.options.crop_size;
        let classes = self.train.classes.len();
        let len = 3 * size * size;
        let chosen = self.order.range(position, batch);
        let mut pure = vec![0.0; batch * len];
        let outputs = pure.par_chunks_mut(len).zip(chosen.par_iter().enumerate());
        outputs.try_for_each(|(out, (i, &index))| {
            let ClassifierOptions { augmentation, seed, image_size, .. } = self.options;
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
            Tensor::from_vec(mixed, (batch, 3, size, size), &Device::Cpu)?,
            Tensor::from_vec(targets, (batch, classes), &Device::Cpu)?,
        ]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        self.order.range(position, len).into_iter().map(|i| self.train.path(i).to_owned()).collect()
    }
}

impl Task for Classifier {
    fn kind(&self) -> &'static str {
        "classifier"
    }

    fn release_name(&self) -> String {
        self.data.options.name.clone()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(self.data.options.network.cost(self.data.options.crop_size)?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        let mut weights = init(&self.cost()?.params, seed);
        if let Some(path) = &self.data.options.init {
            let file = InitFile::open(path)?;
            let initial = file.classifier(&self.data.options.network, &self.data.train.classes)?;
            initial
                .notes
                .iter()
                .for_each(|note| tracing::info!(target: "tiny_cats::init", "{}: {note}", path.display()));
            weights.extend(initial.weights);
        }
        Ok(weights)
    }

    fn smallest_batch(&self) -> usize {
        2
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        let ClassifierOptions { network, crop_size, .. } = &self.data.options;
        Ok(network.training_bytes(*crop_size, batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let validation = self.validation.as_ref().map_or(0, |photos| photos.len());
        let ClassifierBatches { options, train, .. } = &*self.data;
        let init = options.init.as_ref().and_then(|path| path.file_name()?.to_str());
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
        let model = ResNet::new(&self.data.options.network, &mut Scope::root(&mut tape.params(params)))?;
        Ok(model.forward(&tape.constant(x))?.cross_entropy(&targets)?)
    }

    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(photos) = &self.validation else { return Ok(Vec::new()) };
        let classification = self.classify(weights, photos)?;
        let top3 = f64::from(classification.top_k_correct()) / f64::from(classification.total());
        let scores = [
            ("validation_accuracy", classification.confusion.accuracy()),
            ("validation_top3", top3),
            ("validation_recall", classification.confusion.mean_recall()),
        ];
        Ok(scores.map(|(name, value)| Score { name, value, higher_is_better: true }).to_vec())
    }

    fn sample_grid(&mut self, _: &Weights) -> Result<Option<RgbImage>> {
        Ok(None)
    }
}
