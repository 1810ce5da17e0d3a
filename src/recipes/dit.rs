//! The recipe of TinyDiT, the generator.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{Network, Sizes, TinyDitConfig};

use super::{
    EXTENSIONS, Error, ImageCounts, Job, MethodSettings, Notice, Prepared, Recipe, Result, RunSettings,
    open_data, report_skipped,
    settings::{MAX_STEPS, Training, at_most},
};
use crate::{
    checkpoint::InitFile,
    data::{BREEDS, Dataset, Examples, ImageExamples, Images, Split},
    plan::Workload,
    plural::pluralize,
    train::{Flow, FlowMatching, FlowMatchingOptions, InitialWeightsSource, SAMPLE_ROWS, VALIDATION_DRAWS},
};

/// The base name of the released files.
const NAME: &str = "tinydit_final";
/// Forward passes per sample: 20 steps of Heun's two evaluations, each with two passes for guidance.
const SAMPLE_PASSES: f64 = 80.0;
/// Decays of AdamW's moments.
const BETAS: [f64; 2] = [0.9, 0.95];
/// Maximum number of steps of the default warm-up.
const WARMUP_STEPS: u64 = 10_000;

/// The settings of TinyDiT's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(
    feature = "cli",
    command(
        args_override_self = true,
        mut_arg("batch_size", |arg| arg.default_value("256")),
        mut_arg("ema_beta", |arg| arg.default_value("0.9999")),
        mut_arg("weight_decay", |arg| arg.default_value("0")),
        mut_arg("log_interval", |arg| arg.default_value("100"))
    )
)]
#[serde(rename_all = "kebab-case")]
pub struct DitSettings {
    /// Folder of class folders of images
    #[cfg_attr(feature = "cli", arg(default_value = "data/cats"))]
    pub data: PathBuf,
    /// Number of optimizer steps
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 200_000))]
    pub steps: u64,
    /// Height and width of the images [default: those of --init, 128]
    #[cfg_attr(feature = "cli", arg(long, value_name = "PIXELS"))]
    pub image_size: Option<usize>,
    /// Size of the network [default: that of --init, small]
    #[cfg_attr(
        feature = "cli",
        arg(long, value_parser = clap::builder::PossibleValuesParser::new(tiny_cats_models::tiny_dit::SIZES.map(|s| s.0)))
    )]
    pub size: Option<String>,
    /// Start from the weights of this file: a generator, whose images may be smaller. Classes that it has keep their embeddings; the
    /// others start from the mean of all
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub init: Option<PathBuf>,
    /// Train on all images, including those for validation and test
    #[cfg_attr(feature = "cli", arg(long, help_heading = "Data"))]
    #[serde(default)]
    pub no_validation: bool,
    /// Steps of the warm-up [default: the smaller of 10000 and 5 % of the run]
    #[cfg_attr(feature = "cli", arg(long, value_name = "STEPS", help_heading = "Method"))]
    pub warmup_steps: Option<u64>,
    /// Share of labels that are dropped for classifier-free guidance
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Method")
    )]
    pub label_dropout: f64,
    /// Steps between evaluations and saved training states; 0 saves only the last step
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 10_000, value_name = "STEPS", help_heading = "Monitoring")
    )]
    pub save_interval: u64,
    /// Steps between sample grids; 0 disables them
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 5_000, value_name = "STEPS", help_heading = "Monitoring")
    )]
    pub sample_interval: u64,
    /// The settings of the released files.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip)]
    pub release: DitRelease,
    /// The settings of the method.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip, default = "method")]
    pub method: MethodSettings,
    /// The settings of the run.
    #[cfg_attr(feature = "cli", command(flatten))]
    #[serde(skip, default = "run")]
    pub run: RunSettings,
}

/// The settings of the released files and of samples. They may differ when a run is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case")]
pub struct DitRelease {
    /// Folder of the released files; the run's own folder is in --runs-dir
    #[cfg_attr(feature = "cli", arg(short, long, default_value = "checkpoints", value_name = "DIR"))]
    pub output: PathBuf,
    /// Weight of guidance in the sample grids, also the recommended value in the released files
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 2.0, value_name = "WEIGHT", help_heading = "Monitoring")
    )]
    pub cfg_scale: f64,
    /// Interval of times with guidance in the sample grids, also the recommended value in the released files
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            default_value = "0.1,0.9",
            value_name = "FROM,TO",
            value_parser = super::settings::parse_interval,
            help_heading = "Monitoring"
        )
    )]
    pub cfg_interval: [f64; 2],
}

impl Default for DitRelease {
    fn default() -> Self {
        Self { output: "checkpoints".into(), cfg_scale: 2.0, cfg_interval: [0.1, 0.9] }
    }
}

fn method() -> MethodSettings {
    MethodSettings::new(256, 0.9999, 0.0)
}

fn run() -> RunSettings {
    RunSettings::new(100)
}

impl Default for DitSettings {
    fn default() -> Self {
        Self {
            data: "data/cats".into(),
            steps: 200_000,
            image_size: None,
            size: None,
            init: None,
            no_validation: false,
            warmup_steps: None,
            label_dropout: 0.1,
            save_interval: 10_000,
            sample_interval: 5_000,
            release: DitRelease::default(),
            method: method(),
            run: run(),
        }
    }
}

impl DitSettings {
    /// The path of the released file with this extension.
    fn released_path(&self, extension: &str) -> PathBuf {
        self.release.output.join(format!("{NAME}.{extension}"))
    }

    /// The network for a number of classes, from the settings or the file of `init`.
    ///
    /// # Errors
    /// If the settings describe no valid network, or the file cannot be read.
    pub fn network(&self, classes: usize) -> Result<TinyDitConfig> {
        let init_config = self.init.as_ref().map(|path| InitFile::open(path)?.tiny_dit()).transpose()?;
        let image_size =
            self.image_size.or(init_config.as_ref().map(|init_config| init_config.image_size)).unwrap_or(128);
        match (&self.size, init_config) {
            (None, Some(init_config)) => {
                // The number of patches stays the same, so larger images have larger patches.
                let patch_size = init_config.patch_size * (image_size / init_config.image_size).max(1);
                Ok(TinyDitConfig { image_size, patch_size, classes, ..init_config })
            }
            (size, _) => Ok(TinyDitConfig::named(size.as_deref().unwrap_or("small"), image_size, classes)?),
        }
    }

    /// Loads the images for training and validation.
    fn load(
        &self,
        data: &Dataset,
        size: usize,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<[Option<Arc<dyn Examples>>; 2]> {
        let mut load = |part: &Dataset| -> Result<Arc<dyn Examples>> {
            let images = Images::load(part, size as u32, self.method.limit_files, &self.run.cache())?;
            report_skipped(&images.skipped, notify);
            images.notes.iter().for_each(|note| notify(Notice::Warning(note)));
            Ok(Arc::new(ImageExamples::new(images, self.method.augmentation_level)))
        };
        if self.no_validation {
            return Ok([Some(load(data)?), None]);
        }
        let held_out = data.part(Split::Validation);
        let validation = if held_out.files.is_empty() { None } else { Some(load(&held_out)?) };
        Ok([Some(load(&data.part(Split::Train))?), validation])
    }
}

impl Recipe for DitSettings {
    const TASK: &'static str = "dit";
    const METRIC: &'static str = "validation_loss";
    const RELEASED_FILE: Option<&'static str> = None;

    type Release = DitRelease;

    fn release(&self) -> &DitRelease {
        &self.release
    }

    fn with_parts(self, release: DitRelease, method: MethodSettings, run: RunSettings) -> Self {
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
        self.init.as_deref()
    }

    /// Those of the cat heads that `prepare` extracts from the Oxford-IIIT Pet Dataset.
    fn default_counts() -> [usize; 2] {
        [BREEDS.len(), 1_082]
    }

    fn released_paths(&self) -> Result<[PathBuf; 2]> {
        Ok(EXTENSIONS.map(|extension| self.released_path(extension)))
    }

    fn validate(&self) -> Result<()> {
        self.method.validate()?;
        self.run.validate(&self.method)?;
        if !(0.0..=1.0).contains(&self.label_dropout) {
            let found = self.label_dropout;
            return Err(Error::setting("label-dropout", format!("expected 0 to 1, found {found}")));
        }
        let DitRelease { cfg_scale, cfg_interval: [from, to], .. } = self.release;
        // It is an f32 in the released files.
        if !(cfg_scale as f32).is_finite() {
            return Err(Error::setting("cfg-scale", format!("expected a number, found {cfg_scale}")));
        }
        if !(0.0 <= from && from <= to && to <= 1.0) {
            let message = format!("expected two times from 0 to 1 in ascending order, found {from},{to}");
            return Err(Error::setting("cfg-interval", message));
        }
        at_most("steps", self.steps, MAX_STEPS)?;
        at_most("save-interval", self.save_interval, MAX_STEPS)?;
        at_most("sample-interval", self.sample_interval, MAX_STEPS)?;
        // The batch size is not known yet, and the number of classes does not matter.
        self.method.schedule(self.steps, 1, self.warmup_steps, WARMUP_STEPS)?;
        self.network(1)?;
        Ok(())
    }

    fn workload(&self, images: &ImageCounts) -> Result<Workload> {
        let network = self.network(images.classes)?;
        images.check()?;
        let ImageCounts { train, validation, test, .. } = images.with_limit(self.method.limit_files);
        let (train, validation) =
            if self.no_validation { (train + validation + test, 0) } else { (train, validation) };
        let averages = self.method.ema_beta.len();
        let count = |interval: u64| if interval == 0 { 0.0 } else { self.steps.div_ceil(interval) as f64 };
        let save_interval = if self.save_interval == 0 { self.steps } else { self.save_interval };
        let evaluations = count(save_interval) * VALIDATION_DRAWS as f64 * (validation * averages) as f64;
        let samples = count(self.sample_interval) * (SAMPLE_ROWS * network.classes) as f64 * SAMPLE_PASSES;
        let image_size = network.image_size;
        Ok(Workload {
            eval_flops: network.cost(&Sizes::new())?.flops() as f64 * (evaluations + samples),
            network: NetworkConfig::new(network)?,
            side: image_size,
            steps: self.steps,
            batch: self.method.batch_size.min(train),
            accumulation: self.method.gradient_accumulation_steps,
            tape: self.method.tape_options(),
            moments: self.method.optimizer(BETAS).rule.moments(),
            averages,
            augmentation: self.method.augmentation_level,
        })
    }

    fn prepare(&self, job: &Job, notify: &mut dyn FnMut(Notice)) -> Result<Prepared> {
        let device = self.run.open_device(job.rank, notify)?;
        let data = open_data(&self.data, notify)?;
        let network = self.network(data.classes.len())?;
        let [train, validation] = self.load(&data, network.image_size, notify)?;
        let train = train.ok_or_else(|| Error::setting("data", "expected images, found none"))?;
        let validation_count = validation.as_ref().map_or(0, |images| images.count());
        self.method.check_early_stopping(validation_count)?;
        notify(Notice::Info(&format!(
            "{}: {} in {} to train on, {validation_count} to validate",
            self.data.display(),
            pluralize(train.count(), "image"),
            pluralize(train.classes().len(), "class"),
        )));
        let batch = self.method.batch(train.count(), notify);
        let items = batch * self.method.gradient_accumulation_steps;
        let training = Training {
            job,
            configuration: super::config::to_toml(self)?,
            schedule: self.method.schedule(self.steps, items, self.warmup_steps, WARMUP_STEPS)?,
            batch,
            betas: BETAS,
            intervals: [self.save_interval, self.sample_interval],
            device: device.clone(),
        };
        let init = self.init.clone().map(|path| {
            let (network, classes) = (network.clone(), data.classes.clone());
            InitialWeightsSource::new(path.clone(), move || {
                InitFile::open(&path)?.generator(&network, &classes)
            })
        });
        let options = FlowMatchingOptions {
            network,
            flow: Flow { label_dropout: self.label_dropout, ..Flow::default() },
            guidance: self.release.cfg_scale as f32,
            guidance_interval: self.release.cfg_interval.map(|time| time as f32),
            best: self.method.early_stopping_patience.is_some(),
            seed: self.method.seed,
            kind: Self::TASK,
            name: NAME.into(),
            init,
        };
        let task = FlowMatching::new(options, train, validation, device)?;
        Ok(Prepared {
            task: Box::new(task),
            options: training.options(&self.method, &self.run),
            evaluate: None,
        })
    }
}
