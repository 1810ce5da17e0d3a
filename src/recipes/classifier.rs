//! The recipe of the breed classifier, a ResNet.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tiny_cats_export::{NetworkConfig, image_sizes};
use tiny_cats_models::{
    Network, ResNetConfig,
    resnet::{MAX_IMAGE_SIZE, MIN_IMAGE_SIZE},
};

use super::{
    EXTENSIONS, Error, EvaluateRelease, ImageCounts, Job, MethodSettings, Notice, Prepared, Recipe, Result,
    RunSettings, SplitEvaluation, open_data, printable_path, report_skipped,
    settings::{MAX_STEPS, Training, at_least_one, at_most},
};
use crate::{
    checkpoint::{self, InitFile, WeightsSelection},
    data::{BREEDS, Dataset, Examples, PhotoExamples, PhotoOptions, Photos, Split},
    plan::Workload,
    plural::pluralize,
    train::{Classification, ClassificationOptions, InitialWeightsSource, classify},
};

/// Decays of AdamW's moments.
const BETAS: [f64; 2] = [0.9, 0.999];
/// Maximum number of epochs of the default warm-up.
const WARMUP_EPOCHS: u64 = 2;

/// The settings of the breed classifier's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(
    feature = "cli",
    command(
        args_override_self = true,
        mut_arg("batch_size", |arg| arg.default_value("32")),
        mut_arg("ema_beta", |arg| arg.default_value("0.999")),
        mut_arg("weight_decay", |arg| arg.default_value("0.05")),
        mut_arg("log_interval", |arg| arg.default_value("20"))
    )
)]
#[serde(rename_all = "kebab-case")]
pub struct ClassifierSettings {
    /// Folder of class folders of photographs
    #[cfg_attr(feature = "cli", arg(default_value = "data/cats"))]
    pub data: PathBuf,
    /// Number of passes over the training photographs
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 10))]
    pub epochs: u64,
    /// Network [default: that of --init, resnet18]
    #[cfg_attr(feature = "cli", arg(long, value_parser = ["resnet18", "resnet34", "resnet50"]))]
    pub backbone: Option<String>,
    /// Channels of the first stage; torchvision's networks have 64 [default: those of --init, 64]
    #[cfg_attr(feature = "cli", arg(long))]
    pub width: Option<usize>,
    /// Start from the weights of this PyTorch or safetensors file: a ResNet with any head or none. Classes that it has keep their
    /// rows of the head
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub init: Option<PathBuf>,
    /// Start from random weights, as without --init
    #[cfg_attr(feature = "cli", arg(long, conflicts_with = "init"))]
    #[serde(default)]
    pub no_pretrained: bool,
    /// Height and width of the images to classify [default: that of --init if it has one, 128]
    #[cfg_attr(feature = "cli", arg(long, value_name = "PIXELS"))]
    pub image_size: Option<usize>,
    /// Height and width of the training images [default: --image-size]
    #[cfg_attr(feature = "cli", arg(long, value_name = "PIXELS"))]
    pub crop_size: Option<usize>,
    /// Epochs of the warm-up [default: the smaller of 2 and 5 % of the run]
    #[cfg_attr(feature = "cli", arg(long, value_name = "EPOCHS", help_heading = "Method"))]
    pub warmup_epochs: Option<u64>,
    /// Mix pairs of images by shares from Beta(ALPHA, ALPHA), ALPHA at most 1; 0 disables mixing
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 0.0, value_name = "ALPHA", help_heading = "Method")
    )]
    pub mixup: f64,
    /// Share of the target distribution that is spread over all classes
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Method")
    )]
    pub label_smoothing: f64,
    /// Epochs between evaluations and saved training states; 0 saves only the last epoch
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 1, value_name = "EPOCHS", help_heading = "Monitoring")
    )]
    pub save_interval: u64,
    /// The settings of the released files.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip)]
    pub release: ClassifierRelease,
    /// The settings of the method.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip, default = "method")]
    pub method: MethodSettings,
    /// The settings of the run.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip, default = "run")]
    pub run: RunSettings,
}

/// The settings of the released files. They may differ when a run is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case")]
pub struct ClassifierRelease {
    /// Released file; the run's own folder is in --runs-dir
    #[cfg_attr(
        feature = "cli",
        arg(short, long, default_value = "checkpoints/cats_model.pt", value_name = "FILE")
    )]
    pub output: PathBuf,
}

impl Default for ClassifierRelease {
    fn default() -> Self {
        Self { output: "checkpoints/cats_model.pt".into() }
    }
}

fn method() -> MethodSettings {
    MethodSettings::new(32, 0.999, 0.05)
}

fn run() -> RunSettings {
    RunSettings::new(20)
}

impl Default for ClassifierSettings {
    fn default() -> Self {
        Self {
            data: "data/cats".into(),
            epochs: 10,
            backbone: None,
            width: None,
            init: None,
            no_pretrained: false,
            image_size: None,
            crop_size: None,
            warmup_epochs: None,
            mixup: 0.0,
            label_smoothing: 0.1,
            save_interval: 1,
            release: ClassifierRelease::default(),
            method: method(),
            run: run(),
        }
    }
}

/// The network and the sizes of its images.
struct NetworkSizes {
    network: ResNetConfig,
    /// Height and width of the images to classify, in pixels.
    image_size: usize,
    /// Height and width of the training images, in pixels.
    crop_size: usize,
}

/// The examples of each split.
struct Splits {
    train: Arc<dyn Examples>,
    validation: Option<Arc<dyn Examples>>,
    test: Option<Arc<dyn Examples>>,
}

impl ClassifierSettings {
    /// The network and its sizes for a number of classes, from the settings or the file of `init`.
    fn sizes(&self, classes: usize) -> Result<NetworkSizes> {
        let file = self.initial_weights().map(InitFile::open).transpose()?;
        let init_config = file.as_ref().map(InitFile::resnet).transpose()?;
        let backbone = match (&self.backbone, &init_config) {
            (Some(name), _) => name.clone(),
            (None, Some(init_config)) => format!("resnet{}", init_config.depth),
            (None, None) => "resnet18".to_owned(),
        };
        let width = self.width.or(init_config.map(|init_config| init_config.width)).unwrap_or(64);
        let network = ResNetConfig { width, ..ResNetConfig::named(&backbone, classes)? };
        network.validate()?;
        let image_size = self.image_size.or(file.and_then(|file| file.image_size())).unwrap_or(128);
        let crop_size = self.crop_size.unwrap_or(image_size);
        if !(MIN_IMAGE_SIZE..=MAX_IMAGE_SIZE).contains(&image_size) {
            let message = format!("expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}, found {image_size}");
            return Err(Error::setting("image-size", message));
        }
        if !(MIN_IMAGE_SIZE..=image_size).contains(&crop_size) {
            let message =
                format!("expected {MIN_IMAGE_SIZE} to the image size ({image_size}), found {crop_size}");
            return Err(Error::setting("crop-size", message));
        }
        Ok(NetworkSizes { network, image_size, crop_size })
    }

    /// The folder and name of the released files.
    fn split_output(&self) -> Result<(PathBuf, String)> {
        let path = &self.release.output;
        let [stem, extension] =
            [path.file_stem(), path.extension()].map(|part| part.and_then(|part| part.to_str()));
        let (Some(stem), Some("pt" | "safetensors")) = (stem, extension) else {
            let message = format!("expected the name of a .pt file, found {}", printable_path(path));
            return Err(Error::setting("output", message));
        };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok((folder.to_owned(), stem.to_owned()))
    }

    /// Loads the photographs of each split.
    fn load(&self, data: &Dataset, options: PhotoOptions, notify: &mut dyn FnMut(Notice)) -> Result<Splits> {
        let mut load = |split: Split| -> Result<Option<Arc<dyn Examples>>> {
            let part = data.part(split);
            if part.files.is_empty() {
                return Ok(None);
            }
            let photos =
                Photos::load(&part, options.short_side(), self.method.limit_files, &self.run.cache())?;
            report_skipped(&photos.skipped, notify);
            photos.notes.iter().for_each(|note| notify(Notice::Warning(note)));
            Ok(Some(Arc::new(PhotoExamples::new(photos, options)?)))
        };
        let train = load(Split::Train)?.ok_or_else(|| {
            let data = printable_path(&self.data);
            Error::setting("data", format!("{data}: expected photographs to train on, found none"))
        })?;
        Ok(Splits { train, validation: load(Split::Validation)?, test: load(Split::Test)? })
    }

    /// Returns the evaluation of the released file on the splits that are not trained on.
    fn evaluation(
        &self,
        network: &ResNetConfig,
        splits: &Splits,
        device: &Device,
    ) -> Result<EvaluateRelease> {
        let (folder, name) = self.split_output()?;
        let (network, device) = (network.clone(), device.clone());
        let parts = [(splits.validation.clone(), "validation"), (splits.test.clone(), "test")];
        Ok(Box::new(move |released| {
            let weights = checkpoint::open(released, WeightsSelection::Default)?.weights;
            let parts = parts.into_iter().filter_map(|(examples, split)| Some((examples?, split)));
            let evaluate = |(examples, split): (Arc<dyn Examples>, &'static str)| {
                let results = classify(&network, &weights, &*examples, &device)?;
                Ok(SplitEvaluation { split, path: folder.join(format!("{name}_{split}")), results })
            };
            parts.map(evaluate).collect()
        }))
    }
}

impl Recipe for ClassifierSettings {
    const TASK: &'static str = "classifier";
    const METRIC: &'static str = "validation_accuracy";
    const RELEASED_FILE: Option<&'static str> = Some("cats_model.pt");

    type Release = ClassifierRelease;

    fn release(&self) -> &ClassifierRelease {
        &self.release
    }

    fn with_parts(self, release: ClassifierRelease, method: MethodSettings, run: RunSettings) -> Self {
        Self { release, method, run, ..self }
    }

    fn method(&self) -> &MethodSettings {
        &self.method
    }

    fn run(&self) -> &RunSettings {
        &self.run
    }

    fn data(&self) -> &Path {
        &self.data
    }

    fn initial_weights(&self) -> Option<&Path> {
        self.init.as_deref().filter(|_| !self.no_pretrained)
    }

    /// Those of the photographs in the Oxford-IIIT Pet Dataset, with dogs as another class.
    fn default_counts() -> [usize; 2] {
        [BREEDS.len() + 1, 2_403]
    }

    fn released_paths(&self) -> Result<[PathBuf; 2]> {
        let (folder, name) = self.split_output()?;
        Ok(EXTENSIONS.map(|extension| folder.join(format!("{name}.{extension}"))))
    }

    fn validate(&self) -> Result<()> {
        self.method.validate()?;
        self.run.validate(&self.method)?;
        at_least_one("epochs", self.epochs)?;
        at_most("epochs", self.epochs, MAX_STEPS)?;
        at_most("save-interval", self.save_interval, MAX_STEPS)?;
        if let Some(warmup) = self.warmup_epochs.filter(|&warmup| warmup >= self.epochs) {
            let message = format!("expected fewer than epochs ({}), found {warmup}", self.epochs);
            return Err(Error::setting("warmup-epochs", message));
        }
        self.split_output()?;
        // The steps per epoch and the number of classes are not known yet.
        self.method.schedule(self.epochs, 1, None, 0)?;
        let network = self.sizes(2)?.network;
        let (mixup, label_smoothing) = (self.mixup, self.label_smoothing);
        let options = ClassificationOptions { mixup, label_smoothing, ..ClassificationOptions::new(network) };
        Ok(options.validate()?)
    }

    fn workload(&self, images: &ImageCounts) -> Result<Workload> {
        let NetworkSizes { network, image_size, crop_size } = self.sizes(images.classes)?;
        images.check()?;
        let ImageCounts { train, validation, test, .. } = images.with_limit(self.method.limit_files);
        let averages = self.method.ema_beta.len();
        let batch = self.method.batch_size.min(train);
        let accumulation = self.method.gradient_accumulation_steps;
        let steps = self.epochs.saturating_mul(train.div_ceil(batch * accumulation) as u64);
        let evaluations = if self.save_interval == 0 { 1 } else { self.epochs.div_ceil(self.save_interval) };
        // At the end, the released weights are evaluated on validation and test images.
        let evaluated = evaluations as f64 * (validation * averages) as f64 + (validation + test) as f64;
        Ok(Workload {
            eval_flops: network.cost(&image_sizes(image_size))?.flops() as f64 * evaluated,
            network: NetworkConfig::new(network)?,
            side: crop_size,
            steps,
            batch,
            accumulation,
            tape: self.method.tape_options(),
            moments: self.method.optimizer(BETAS).rule.moments(),
            averages,
            augmentation: self.method.augmentation_level,
        })
    }

    fn prepare(&self, job: &Job, notify: &mut dyn FnMut(Notice)) -> Result<Prepared> {
        let device = self.run.open_device(job.rank, notify)?;
        let (data, name) = (open_data(&self.data, notify)?, self.split_output()?.1);
        if data.classes.len() < 2 {
            let data = printable_path(&self.data);
            return Err(Error::setting(
                "data",
                format!("{data}: expected at least 2 class folders, found 1"),
            ));
        }
        let NetworkSizes { network, image_size, crop_size } = self.sizes(data.classes.len())?;
        let init = self.initial_weights().map(Path::to_owned).map(|path| {
            let (network, classes) = (network.clone(), data.classes.clone());
            InitialWeightsSource::new(path.clone(), move || {
                InitFile::open(&path)?.classifier(&network, &classes)
            })
        });
        let augmentation = self.method.augmentation_level;
        let splits = self.load(&data, PhotoOptions { image_size, crop_size, augmentation }, notify)?;
        let shown = self.data.display();
        if splits.validation.is_none() {
            notify(Notice::Warning(&format!(
                "{shown}: no photographs for validation; the last state is released"
            )));
        }
        let validation_count = splits.validation.as_ref().map_or(0, |photos| photos.count());
        self.method.check_early_stopping(validation_count)?;
        let count = splits.train.count();
        notify(Notice::Info(&format!(
            "{shown}: {} of {} to train on, {validation_count} to validate",
            pluralize(count, "photograph"),
            pluralize(splits.train.classes().len(), "class"),
        )));
        let batch = self.method.batch(count, notify);
        let items = batch * self.method.gradient_accumulation_steps;
        let per_epoch = (count as u64).div_ceil(items as u64);
        let steps = |epochs: u64| epochs.saturating_mul(per_epoch);
        let (total, warmup) = (steps(self.epochs), self.warmup_epochs.map(steps));
        let training = Training {
            job,
            configuration: super::config::to_toml(self)?,
            schedule: self.method.schedule(total, items, warmup, steps(WARMUP_EPOCHS))?,
            batch,
            betas: BETAS,
            intervals: [steps(self.save_interval), 0],
            device: device.clone(),
        };
        let evaluate = self.evaluation(&network, &splits, &device)?;
        let (mixup, label_smoothing, seed) = (self.mixup, self.label_smoothing, self.method.seed);
        let options = ClassificationOptions { network, mixup, label_smoothing, seed, name, init };
        let task = Classification::new(options, splits.train, splits.validation, device)?;
        Ok(Prepared {
            task: Box::new(task),
            options: training.options(&self.method, &self.run),
            evaluate: Some(evaluate),
        })
    }
}
