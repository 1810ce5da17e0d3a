//! The settings that all recipes share.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tiny_cats_models::{Precision, TapeOptions};

use super::{
    Error, Job, Notice, Result,
    value::{self, DEFAULT_TENSORBOARD},
};
use crate::{
    data::{AugmentLevel, Cache},
    device::DeviceKind,
    plural::pluralize,
    track::{self, Tracker},
    train::{
        AdamW, Control, EarlyStopping, LrScaling, LrShape, MAX_AVERAGES, OptimizerOptions, Schedule, Sgd,
        TrainOptions, folder::RUNS,
    },
};

/// Maximum steps or epochs of a run; small enough to count images without overflow.
pub(super) const MAX_STEPS: u64 = 1 << 40;
/// Maximum images per micro-batch, and micro-batches per step.
const MAX_ITEMS: usize = 1 << 24;
/// Maximum of settings that are numbers of files or threads.
const MAX_COUNT: u64 = 1 << 32;
/// Maximum of settings that are durations.
const MAX_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The optimizers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW.
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The format of a log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Time, level and text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The settings of the method, which determine the result. A run is resumed only with the same ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case")]
pub struct MethodSettings {
    /// Random seed; the same seed, data and CPU model give the same model
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 42, help_heading = "Run"))]
    #[serde(with = "value::seed")]
    pub seed: u64,
    /// Images per micro-batch; at most the number of training images
    #[cfg_attr(feature = "cli", arg(long, required = false, value_name = "N", help_heading = "Method"))]
    pub batch_size: usize,
    /// Micro-batches per optimizer step
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            default_value_t = 1,
            alias = "grad-accum-steps",
            value_name = "N",
            help_heading = "Method"
        )
    )]
    pub gradient_accumulation_steps: usize,
    /// Optimizer [default: adamw]
    #[cfg_attr(feature = "cli", arg(long, value_enum, value_name = "NAME", help_heading = "Method"))]
    pub optimizer: Option<OptimizerKind>,
    /// Momentum of --optimizer sgd [default: 0.9]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", help_heading = "Method"))]
    pub momentum: Option<f64>,
    /// Learning rate after the warm-up
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 1e-4, help_heading = "Method"))]
    pub lr: f64,
    /// Learning rate at the end [default: the smaller of 1e-6 and --lr]
    #[cfg_attr(feature = "cli", arg(long, value_name = "LR", help_heading = "Method"))]
    pub min_lr: Option<f64>,
    /// Schedule of the learning rate after the warm-up
    #[cfg_attr(
        feature = "cli",
        arg(long, value_enum, default_value_t = LrShape::Cosine, help_heading = "Method")
    )]
    pub lr_schedule: LrShape,
    /// Scaling of the learning rate with the images per step; --lr is the rate for 256 images
    #[cfg_attr(
        feature = "cli",
        arg(long, value_enum, default_value_t = LrScaling::None, help_heading = "Method")
    )]
    pub lr_scaling: LrScaling,
    /// Decay of the moving average of the weights, which is released. With two, separated by a comma, the one with the better
    /// evaluation is released
    #[cfg_attr(
        feature = "cli",
        arg(long, required = false, value_delimiter = ',', value_name = "DECAY", help_heading = "Method")
    )]
    pub ema_beta: Vec<f64>,
    /// Maximum norm of the gradients; 0 disables clipping
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 1.0, value_name = "NORM", help_heading = "Method")
    )]
    pub gradient_clip: f64,
    /// Weight decay of matrices and convolution kernels: decoupled with AdamW, an L2 penalty with SGD
    #[cfg_attr(feature = "cli", arg(long, required = false, value_name = "DECAY", help_heading = "Method"))]
    pub weight_decay: f64,
    /// Number format of matrix products; weights stay f32
    #[cfg_attr(
        feature = "cli",
        arg(long, value_parser = precisions(), default_value_t = Precision::F32, help_heading = "Method")
    )]
    pub precision: Precision,
    /// The same as --precision bf16
    #[cfg_attr(feature = "cli", arg(long, hide = true, conflicts_with = "precision"))]
    #[serde(default)]
    pub mixed_precision: bool,
    /// Recompute the activations of each block in backward instead of storing them: less memory, a third more time
    #[cfg_attr(feature = "cli", arg(long, help_heading = "Method"))]
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Strength of data augmentation
    #[cfg_attr(
        feature = "cli",
        arg(long, value_enum, default_value_t = AugmentLevel::Full, help_heading = "Method")
    )]
    pub augmentation_level: AugmentLevel,
    /// Stop after this many evaluations without an improvement
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", help_heading = "Method"))]
    pub early_stopping_patience: Option<u64>,
    /// Minimum improvement of an evaluation that counts
    #[cfg_attr(
        feature = "cli",
        arg(long, default_value_t = 0.0, value_name = "DELTA", help_heading = "Method")
    )]
    pub early_stopping_min_delta: f64,
    /// Stop after this many steps in a row whose loss or gradients are not finite; such steps are skipped
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 10, value_name = "N", help_heading = "Method"))]
    pub max_skipped_steps: u64,
    /// Use only N images of each split, spread over the classes
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", help_heading = "Data"))]
    pub limit_files: Option<usize>,
}

impl MethodSettings {
    /// Returns the settings with these values, which have another default in each recipe.
    pub(super) fn new(batch_size: usize, ema_beta: f64, weight_decay: f64) -> Self {
        Self {
            seed: 42,
            batch_size,
            gradient_accumulation_steps: 1,
            optimizer: None,
            momentum: None,
            lr: 1e-4,
            min_lr: None,
            lr_schedule: LrShape::Cosine,
            lr_scaling: LrScaling::None,
            ema_beta: vec![ema_beta],
            gradient_clip: 1.0,
            weight_decay,
            precision: Precision::F32,
            mixed_precision: false,
            gradient_checkpointing: false,
            augmentation_level: AugmentLevel::Full,
            early_stopping_patience: None,
            early_stopping_min_delta: 0.0,
            max_skipped_steps: 10,
            limit_files: None,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first invalid one.
    pub fn validate(&self) -> Result<()> {
        if let Some(decay) = self.ema_beta.iter().find(|decay| !(0.0..1.0).contains(*decay)) {
            return Err(Error::setting(
                "ema-beta",
                format!("expected 0 or more and less than 1, found {decay}"),
            ));
        }
        if self.ema_beta.is_empty() || self.ema_beta.len() > MAX_AVERAGES {
            let found = self.ema_beta.len();
            return Err(Error::setting(
                "ema-beta",
                format!("expected 1 to {MAX_AVERAGES} decays, found {found}"),
            ));
        }
        if let Some(momentum) = self.momentum {
            if self.optimizer != Some(OptimizerKind::Sgd) {
                return Err(Error::setting("momentum", "expected the optimizer sgd, found adamw"));
            }
            if !(0.0..1.0).contains(&momentum) {
                let message = format!("expected 0 or more and less than 1, found {momentum}");
                return Err(Error::setting("momentum", message));
            }
        }
        for (setting, value) in [
            ("gradient-clip", self.gradient_clip),
            ("weight-decay", self.weight_decay),
            ("early-stopping-min-delta", self.early_stopping_min_delta),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::setting(
                    setting,
                    format!("expected 0 or a positive number, found {value}"),
                ));
            }
        }
        at_least_one("batch-size", self.batch_size as u64)?;
        at_least_one("gradient-accumulation-steps", self.gradient_accumulation_steps as u64)?;
        at_least_one("early-stopping-patience", self.early_stopping_patience.unwrap_or(1))?;
        at_least_one("max-skipped-steps", self.max_skipped_steps)?;
        at_most("batch-size", self.batch_size, MAX_ITEMS)?;
        at_most("gradient-accumulation-steps", self.gradient_accumulation_steps, MAX_ITEMS)?;
        at_least_one("limit-files", self.limit_files.unwrap_or(1) as u64)?;
        at_most("limit-files", self.limit_files.unwrap_or(0) as u64, MAX_COUNT)?;
        at_most("early-stopping-patience", self.early_stopping_patience.unwrap_or(0), MAX_STEPS)?;
        at_most("max-skipped-steps", self.max_skipped_steps, MAX_STEPS)
    }

    /// The options for computing gradients.
    pub fn tape_options(&self) -> TapeOptions {
        let precision = if self.mixed_precision { Precision::Bf16 } else { self.precision };
        TapeOptions { checkpoint: self.gradient_checkpointing, precision }
    }

    /// The images per micro-batch: at most all `images`. Reports it if they are fewer than `batch_size`.
    pub(super) fn batch(&self, images: usize, notify: &mut dyn FnMut(Notice)) -> usize {
        let batch_size = self.batch_size;
        if batch_size > images {
            let images = pluralize(images, "image");
            notify(Notice::Warning(&format!(
                "batch size {batch_size}: reduced to {images}, since there are no more"
            )));
        }
        batch_size.min(images)
    }

    /// The learning rate over `steps` steps of `items` items, with a warm-up of `warmup` steps. Without `warmup`, it is the smaller of
    /// `default_warmup` and 5 % of the run.
    ///
    /// # Errors
    /// Those of [`Schedule::new`].
    pub(super) fn schedule(
        &self,
        steps: u64,
        items: usize,
        warmup: Option<u64>,
        default_warmup: u64,
    ) -> Result<Schedule> {
        let factor = self.lr_scaling.factor(items as u64);
        let peak = self.lr * factor;
        let min_lr = self.min_lr.map_or(peak.min(1e-6), |lr| lr * factor);
        Ok(Schedule::new(self.lr_schedule, peak, min_lr, warmup, default_warmup, steps)?)
    }

    /// The optimizer. `betas` are the decays of AdamW's moments.
    pub(super) fn optimizer(&self, betas: [f64; 2]) -> OptimizerOptions {
        let weight_decay = self.weight_decay;
        let options = match self.optimizer.unwrap_or(OptimizerKind::Adamw) {
            OptimizerKind::Adamw => OptimizerOptions::new(AdamW { betas, weight_decay, ..AdamW::default() }),
            OptimizerKind::Sgd => {
                let default = Sgd::default();
                let momentum = self.momentum.unwrap_or(default.momentum);
                OptimizerOptions::new(Sgd { momentum, weight_decay, ..default })
            }
        };
        OptimizerOptions { clip: self.gradient_clip, ema: self.ema_beta.clone(), ..options }
    }

    /// Checks that early stopping has validation images.
    pub(super) fn check_early_stopping(&self, validation: usize) -> Result<()> {
        if validation == 0 && self.early_stopping_patience.is_some() {
            return Err(Error::setting("early-stopping-patience", "expected validation images, found none"));
        }
        Ok(())
    }
}

/// The settings of a run that may differ when it is resumed: they do not change the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(rename_all = "kebab-case")]
pub struct RunSettings {
    /// Folder of the runs, each of which has its own folder
    #[cfg_attr(feature = "cli", arg(long, default_value = RUNS, value_name = "DIR", help_heading = "Run"))]
    pub runs_dir: PathBuf,
    /// Device to compute on
    #[cfg_attr(
        feature = "cli",
        arg(long, value_enum, default_value_t = DeviceKind::Auto, help_heading = "Run")
    )]
    pub device: DeviceKind,
    /// Number of GPUs that share the images of each step, with one process each. With --device cpu, the number of processes, for testing
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 1, value_name = "N", help_heading = "Run"))]
    pub gpus: usize,
    /// Stop after this time (8h, 90m); the run can be resumed
    #[cfg_attr(
        feature = "cli",
        arg(long, value_parser = humantime::parse_duration, value_name = "TIME", help_heading = "Run")
    )]
    #[serde(default, with = "value::optional_duration")]
    pub max_time: Option<Duration>,
    /// Maximum retries after a transient error or a killed process, without a new training state in between
    #[cfg_attr(feature = "cli", arg(long, default_value_t = 3, value_name = "N", help_heading = "Run"))]
    pub max_retries: u32,
    /// Delay before the first retry; it doubles with each retry
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            default_value = "10s",
            value_parser = humantime::parse_duration,
            value_name = "TIME",
            help_heading = "Run"
        )
    )]
    #[serde(with = "value::duration")]
    pub retry_initial: Duration,
    /// Maximum delay before a retry
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            default_value = "300s",
            value_parser = humantime::parse_duration,
            value_name = "TIME",
            help_heading = "Run"
        )
    )]
    #[serde(with = "value::duration")]
    pub retry_max: Duration,

    /// Threads that prepare images ahead; 0 prepares them in the training thread [default: one per core, at most 8]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", help_heading = "Data"))]
    pub num_workers: Option<usize>,
    /// Folder of cached decoded images [default: TINY_CATS_CACHE, or tiny-cats in the user's cache folder]
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", help_heading = "Data"))]
    pub cache: Option<PathBuf>,
    /// Keep decoded images in memory only
    #[cfg_attr(feature = "cli", arg(long, conflicts_with = "cache", help_heading = "Data"))]
    #[serde(default)]
    pub no_cache: bool,

    /// Steps between lines of metrics.jsonl
    #[cfg_attr(
        feature = "cli",
        arg(long, required = false, value_name = "STEPS", help_heading = "Monitoring")
    )]
    pub log_interval: u64,
    /// Also append the log to this file
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE", help_heading = "Monitoring"))]
    pub log_file: Option<PathBuf>,
    /// Format of log lines
    #[cfg_attr(
        feature = "cli",
        arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Monitoring")
    )]
    pub log_format: LogFormat,
    /// Write event files for TensorBoard: into the run's folder, or into DIR/ID
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            value_name = "DIR",
            num_args = 0..=1,
            default_missing_value = DEFAULT_TENSORBOARD,
            help_heading = "Monitoring"
        )
    )]
    #[serde(default, with = "value::tensorboard")]
    pub tensorboard: Option<PathBuf>,
    /// Report to the MLflow server at this address, with the credentials of MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD
    #[cfg_attr(feature = "cli", arg(long, value_name = "URI", help_heading = "Monitoring"))]
    pub mlflow: Option<String>,
}

impl RunSettings {
    /// Returns the settings with this value, which has another default in each recipe.
    pub(super) fn new(log_interval: u64) -> Self {
        Self {
            runs_dir: RUNS.into(),
            device: DeviceKind::Auto,
            gpus: 1,
            max_time: None,
            max_retries: 3,
            retry_initial: Duration::from_secs(10),
            retry_max: Duration::from_secs(300),
            num_workers: None,
            cache: None,
            no_cache: false,
            log_interval,
            log_file: None,
            log_format: LogFormat::Text,
            tensorboard: None,
            mlflow: None,
        }
    }

    /// Checks the settings, with `method`.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first invalid one.
    pub fn validate(&self, method: &MethodSettings) -> Result<()> {
        at_least_one("gpus", self.gpus as u64)?;
        at_most("num-workers", self.num_workers.unwrap_or(0) as u64, MAX_COUNT)?;
        for (setting, time) in [
            ("max-time", self.max_time.unwrap_or_default()),
            ("retry-initial", self.retry_initial),
            ("retry-max", self.retry_max),
        ] {
            if time > MAX_TIME {
                let [max, found] = [MAX_TIME, time].map(humantime::format_duration);
                return Err(Error::setting(setting, format!("expected at most {max}, found {found}")));
            }
        }
        at_most("log-interval", self.log_interval, MAX_STEPS)?;
        if !method.batch_size.is_multiple_of(self.gpus) {
            let (gpus, found) = (self.gpus, method.batch_size);
            return Err(Error::setting(
                "batch-size",
                format!("expected a multiple of gpus ({gpus}), found {found}"),
            ));
        }
        // Checked before anything slow starts.
        self.trackers()?;
        Ok(())
    }

    /// Opens the device that the process of this rank computes on. Reports why a GPU cannot be used.
    ///
    /// # Errors
    /// [`Error::Setting`] if the device is not available.
    pub fn open_device(&self, rank: usize, notify: &mut dyn FnMut(Notice)) -> Result<Device> {
        if self.gpus > 1 {
            self.device.open_for_rank(rank, self.gpus).map_err(|message| Error::setting("gpus", message))
        } else {
            let device = self.device.open(&mut |line| notify(Notice::Warning(line)));
            device.map_err(|message| Error::setting("device", message))
        }
    }

    /// Creates the trackers of the run.
    ///
    /// # Errors
    /// [`Error::Setting`] if a tracker cannot be created.
    pub fn trackers(&self) -> Result<Vec<Box<dyn Tracker>>> {
        let mut trackers: Vec<Box<dyn Tracker>> = Vec::new();
        if let Some(folder) = &self.tensorboard {
            let folder = Some(folder.clone()).filter(|folder| folder != Path::new(DEFAULT_TENSORBOARD));
            trackers.push(Box::new(track::tensorboard(folder)));
        }
        if let Some(uri) = &self.mlflow {
            trackers.push(mlflow(uri)?);
        }
        Ok(trackers)
    }

    /// The cache for decoded images.
    pub fn cache(&self) -> Cache {
        match &self.cache {
            _ if self.no_cache => Cache::Memory,
            Some(folder) => Cache::Folder(folder.clone()),
            None => Cache::Default,
        }
    }

    /// The number of threads that prepare images.
    fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |n| (n.get() / self.gpus).clamp(1, 8));
        self.num_workers.unwrap_or_else(cores)
    }
}

/// The parts of a training's options that are not settings.
pub(super) struct Training<'a> {
    pub(super) job: &'a Job,
    pub(super) configuration: String,
    pub(super) schedule: Schedule,
    /// Items in a micro-batch.
    pub(super) batch: usize,
    /// Decays of AdamW's moments.
    pub(super) betas: [f64; 2],
    /// Steps between training states, and between samples.
    pub(super) intervals: [u64; 2],
    pub(super) device: Device,
}

impl Training<'_> {
    /// The options of the run.
    pub(super) fn options(self, method: &MethodSettings, run: &RunSettings) -> TrainOptions {
        let [save_interval, sample_interval] = self.intervals;
        let early_stopping =
            |patience| EarlyStopping { patience, min_delta: method.early_stopping_min_delta };
        TrainOptions {
            folder: self.job.folder.clone(),
            from: self.job.initial_state.clone(),
            schedule: self.schedule,
            optimizer: method.optimizer(self.betas),
            batch: self.batch,
            accumulation: method.gradient_accumulation_steps,
            halvings: self.job.halvings,
            tape: method.tape_options(),
            workers: run.workers(),
            save_interval,
            sample_interval,
            log_interval: run.log_interval,
            early_stopping: method.early_stopping_patience.map(early_stopping),
            max_skipped_steps: method.max_skipped_steps,
            seed: method.seed,
            configuration: self.configuration,
            device: self.device,
            control: Control::default(),
        }
    }
}

pub(super) fn at_least_one(setting: &str, value: u64) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::setting(setting, "expected at least 1, found 0")) }
}

pub(super) fn at_most<T: PartialOrd + std::fmt::Display>(setting: &str, value: T, max: T) -> Result<()> {
    if value <= max {
        Ok(())
    } else {
        Err(Error::setting(setting, format!("expected at most {max}, found {value}")))
    }
}

/// Parses an interval of times, `FROM,TO`.
///
/// # Errors
/// If they are not times from 0 to 1, or the second is before the first.
#[cfg(feature = "cli")]
pub(crate) fn parse_interval(text: &str) -> Result<[f64; 2], String> {
    let times = text.split_once(',').and_then(|(from, to)| Some([from.parse().ok()?, to.parse().ok()?]));
    times
        .filter(|&[from, to]: &[f64; 2]| 0.0 <= from && from <= to && to <= 1.0)
        .ok_or_else(|| "expected two times from 0 to 1 in ascending order, such as 0.1,0.9".into())
}

/// A value parser that lists the possible precisions.
#[cfg(feature = "cli")]
fn precisions() -> impl clap::builder::TypedValueParser<Value = Precision> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Precision::ALL.map(|(_, name)| name)).try_map(|name| name.parse::<Precision>())
}

#[cfg(feature = "mlflow")]
fn mlflow(uri: &str) -> Result<Box<dyn Tracker>> {
    let tracker = track::mlflow::mlflow(uri, track::DeliveryPolicy::default());
    Ok(Box::new(tracker.map_err(|error| Error::setting("mlflow", error.to_string()))?))
}

#[cfg(not(feature = "mlflow"))]
fn mlflow(_uri: &str) -> Result<Box<dyn Tracker>> {
    Err(Error::setting("mlflow", "this program was built without the feature mlflow"))
}
