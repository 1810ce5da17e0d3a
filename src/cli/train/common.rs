//! The arguments that both tasks share.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use candle_core::Device;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tiny_cats_models::{Precision, TapeOptions};

use super::TrainJob;
use crate::{
    cli::{
        common::DeviceKind,
        logging::{self, Format},
    },
    data::{AugmentLevel, Cache},
    plural::pluralize,
    track::{self, Tracker},
    train::{
        AdamW, Control, EarlyStopping, LrScaling, LrShape, MAX_AVERAGES, OptimizerOptions, Schedule, Sgd,
        TrainOptions,
        folder::{self, RUNS},
    },
};

/// Maximum steps or epochs of a run; small enough to count images without overflow.
pub const MAX_STEPS: u64 = 1 << 40;
/// Maximum images per micro-batch, and micro-batches per step.
const MAX_ITEMS: usize = 1 << 24;

/// The value of `--tensorboard` without a folder, on the command line and in a configuration.
const DEFAULT_TENSORBOARD: &str = "true";

/// The arguments that both tasks share. Defaults that differ are set by the tasks.
#[derive(clap::Args, Debug)]
pub struct CommonArgs {
    /// Profile (smoke, local, t4, a10, a100, h100) or TOML file; flags take precedence
    #[arg(long, value_name = "NAME|FILE", help_heading = "Run")]
    pub config: Option<String>,
    /// Resume a run: `auto` the newest unfinished one of this configuration, if any; a folder the run in it. A training state starts a new
    /// run from it
    #[arg(long, default_value = "never", value_name = "auto|PATH|never", help_heading = "Run")]
    pub resume: String,
    /// Folder of the runs, each of which has its own folder
    #[arg(long, default_value = RUNS, value_name = "DIR", help_heading = "Run")]
    pub runs_dir: PathBuf,
    /// Name of the run's folder [default: time, task and a random suffix]. An existing run of that name is resumed
    #[arg(long, value_name = "NAME", conflicts_with = "resume", help_heading = "Run")]
    pub run_id: Option<String>,
    /// Random seed; the same seed, data and CPU model give the same model
    #[arg(long, default_value_t = 42, help_heading = "Run")]
    pub seed: u64,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto, help_heading = "Run")]
    pub device: DeviceKind,
    /// Number of GPUs that share the images of each step, with one process each. With --device cpu, the number of processes, for testing
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Run")]
    pub gpus: usize,
    /// Stop after this time (8h, 90m); the run can be resumed
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME", help_heading = "Run")]
    pub max_time: Option<Duration>,
    /// Maximum retries after a transient error or a killed process, without a new training state in between
    #[arg(long, default_value_t = 3, value_name = "N", help_heading = "Run")]
    pub max_retries: u32,
    /// Delay before the first retry; it doubles with each retry
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "TIME", help_heading = "Run")]
    pub retry_initial: Duration,
    /// Maximum delay before a retry
    #[arg(long, default_value = "300s", value_parser = humantime::parse_duration, value_name = "TIME", help_heading = "Run")]
    pub retry_max: Duration,

    /// Images per micro-batch; at most the number of training images
    #[arg(long, required = false, value_name = "N", help_heading = "Method")]
    pub batch_size: usize,
    /// Micro-batches per optimizer step
    #[arg(long, default_value_t = 1, alias = "grad-accum-steps", value_name = "N", help_heading = "Method")]
    pub gradient_accumulation_steps: usize,
    /// Optimizer [default: adamw]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Method")]
    pub optimizer: Option<OptimizerKind>,
    /// Momentum of --optimizer sgd [default: 0.9]
    #[arg(long, value_name = "SHARE", help_heading = "Method")]
    pub momentum: Option<f64>,
    /// Learning rate after the warm-up
    #[arg(long, default_value_t = 1e-4, help_heading = "Method")]
    pub lr: f64,
    /// Learning rate at the end [default: the smaller of 1e-6 and --lr]
    #[arg(long, value_name = "LR", help_heading = "Method")]
    pub min_lr: Option<f64>,
    /// Schedule of the learning rate after the warm-up
    #[arg(long, value_enum, default_value_t = LrShape::Cosine, help_heading = "Method")]
    pub lr_schedule: LrShape,
    /// Scaling of the learning rate with the images per step; --lr is the rate for 256 images
    #[arg(long, value_enum, default_value_t = LrScaling::None, help_heading = "Method")]
    pub lr_scaling: LrScaling,
    /// Decay of the moving average of the weights, which is released. With two, separated by a comma, the one with the better
    /// evaluation is released
    #[arg(long, required = false, value_delimiter = ',', value_name = "DECAY", help_heading = "Method")]
    pub ema_beta: Vec<f64>,
    /// Maximum norm of the gradients; 0 disables clipping
    #[arg(long, default_value_t = 1.0, value_name = "NORM", help_heading = "Method")]
    pub gradient_clip: f64,
    /// Weight decay of matrices and convolution kernels: decoupled with AdamW, an L2 penalty with SGD
    #[arg(long, required = false, value_name = "DECAY", help_heading = "Method")]
    pub weight_decay: f64,
    /// Number format of matrix products; weights stay f32
    #[arg(long, value_parser = precisions(), default_value_t = Precision::F32, help_heading = "Method")]
    pub precision: Precision,
    /// The same as --precision bf16
    #[arg(long, hide = true, conflicts_with = "precision")]
    pub mixed_precision: bool,
    /// Recompute the activations of each block in backward instead of storing them: less memory, a third more time
    #[arg(long, help_heading = "Method")]
    pub gradient_checkpointing: bool,
    /// Strength of data augmentation
    #[arg(long, value_enum, default_value_t = AugmentLevel::Full, help_heading = "Method")]
    pub augmentation_level: AugmentLevel,
    /// Stop after this many evaluations without an improvement
    #[arg(long, value_name = "N", help_heading = "Method")]
    pub early_stopping_patience: Option<u64>,
    /// Minimum improvement of an evaluation that counts
    #[arg(long, default_value_t = 0.0, value_name = "DELTA", help_heading = "Method")]
    pub early_stopping_min_delta: f64,
    /// Stop after this many steps in a row whose loss or gradients are not finite; such steps are skipped
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Method")]
    pub max_skipped_steps: u64,

    /// Use only N images of each split, spread over the classes
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub limit_files: Option<usize>,
    /// Threads that prepare images ahead; 0 prepares them in the training thread [default: one per core, at most 8]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub num_workers: Option<usize>,
    /// Folder of cached decoded images [default: TINY_CATS_CACHE, or tiny-cats in the user's cache folder]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub cache: Option<PathBuf>,
    /// Keep decoded images in memory only
    #[arg(long, conflicts_with = "cache", help_heading = "Data")]
    pub no_cache: bool,

    /// Steps between lines of metrics.jsonl
    #[arg(long, required = false, value_name = "STEPS", help_heading = "Monitoring")]
    pub log_interval: u64,
    /// Also append the log to this file
    #[arg(long, value_name = "FILE", help_heading = "Monitoring")]
    pub log_file: Option<PathBuf>,

    /// Format of log lines
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "Monitoring")]
    pub log_format: Format,
    /// Write event files for TensorBoard: into the run's folder, or into DIR/ID
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = DEFAULT_TENSORBOARD, help_heading = "Monitoring")]
    pub tensorboard: Option<PathBuf>,
    /// Report to the MLflow server at this address, with the credentials of MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD
    #[arg(long, value_name = "URI", help_heading = "Monitoring")]
    pub mlflow: Option<String>,

    /// Folder of the run that this process trains
    #[arg(long, hide = true)]
    pub worker: Option<PathBuf>,
    /// Rank of this process in its process group
    #[arg(long, hide = true, requires = "worker", default_value_t = 0)]
    pub rank: usize,
    /// Number of times that the micro-batch is halved, after out-of-memory errors
    #[arg(long, hide = true, default_value_t = 0)]
    pub halvings: u32,
    /// Time to stop at, in seconds since 1970
    #[arg(long, hide = true)]
    pub deadline: Option<u64>,
}

/// The optimizers by name.
///
/// A run without the flag has AdamW: its configuration stays that of versions without the flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OptimizerKind {
    /// AdamW.
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

impl CommonArgs {
    /// Checks the arguments.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn validate(&self) -> anyhow::Result<()> {
        for &decay in &self.ema_beta {
            if !(0.0..1.0).contains(&decay) {
                bail!("--ema-beta: expected 0 or more and less than 1, found {decay}");
            }
        }
        if self.ema_beta.is_empty() || self.ema_beta.len() > MAX_AVERAGES {
            bail!("--ema-beta: expected 1 to {MAX_AVERAGES} decays, found {}", self.ema_beta.len());
        }
        if let Some(momentum) = self.momentum {
            if self.optimizer != Some(OptimizerKind::Sgd) {
                bail!("--momentum {momentum}: expected --optimizer sgd, found adamw");
            }
            if !(0.0..1.0).contains(&momentum) {
                bail!("--momentum: expected 0 or more and less than 1, found {momentum}");
            }
        }
        let non_negative = [
            ("--gradient-clip", self.gradient_clip),
            ("--weight-decay", self.weight_decay),
            ("--early-stopping-min-delta", self.early_stopping_min_delta),
        ];
        if let Some((flag, value)) =
            non_negative.iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite()))
        {
            bail!("{flag}: expected 0 or a positive number, found {value}");
        }
        for (flag, value) in [
            ("--batch-size", Some(self.batch_size as u64)),
            ("--gpus", Some(self.gpus as u64)),
            ("--gradient-accumulation-steps", Some(self.gradient_accumulation_steps as u64)),
            ("--early-stopping-patience", self.early_stopping_patience),
            ("--max-skipped-steps", Some(self.max_skipped_steps)),
        ] {
            if value == Some(0) {
                bail!("{flag}: expected at least 1, found 0");
            }
        }
        for (flag, value) in [
            ("--batch-size", self.batch_size),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
        ] {
            if value > MAX_ITEMS {
                bail!("{flag}: expected at most {MAX_ITEMS}, found {value}");
            }
        }
        if let Some(id) = self.run_id.as_ref().filter(|id| !folder::is_id(id)) {
            let found = id.escape_debug();
            bail!(
                "--run-id: expected a name of at most 100 letters, digits, -, _, +, = and ., found {found}"
            );
        }
        if !self.batch_size.is_multiple_of(self.gpus) {
            bail!("--batch-size: expected a multiple of --gpus {}, found {}", self.gpus, self.batch_size);
        }
        // Checked before anything slow starts.
        self.trackers()?;
        Ok(())
    }

    /// The device that this process computes on.
    ///
    /// # Errors
    /// If it is not available.
    pub fn device(&self) -> anyhow::Result<Device> {
        if self.gpus > 1 { self.device.device_for_rank(self.rank, self.gpus) } else { self.device.device() }
    }

    /// Opens the file of `--log-file`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open_log(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.log_file {
            logging::add_file(path, self.log_format)
                .with_context(|| format!("--log-file {}", path.display()))?;
        }
        Ok(())
    }

    /// Creates the trackers of the run.
    ///
    /// # Errors
    /// If a tracker cannot be created.
    pub fn trackers(&self) -> anyhow::Result<Vec<Box<dyn Tracker>>> {
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

    /// Checks that early stopping has validation images.
    ///
    /// # Errors
    /// If early stopping is enabled and there are none.
    pub fn check_early_stopping(&self, validation: usize) -> anyhow::Result<()> {
        if validation == 0 && self.early_stopping_patience.is_some() {
            bail!("--early-stopping-patience: expected validation images, found none");
        }
        Ok(())
    }

    /// The options for computing gradients.
    pub fn tape_options(&self) -> TapeOptions {
        let precision = if self.mixed_precision { Precision::Bf16 } else { self.precision };
        TapeOptions { checkpoint: self.gradient_checkpointing, precision }
    }

    /// The images per micro-batch: at most all `images`. Prints a message if they are fewer than `--batch-size`.
    pub fn batch(&self, images: usize) -> usize {
        let batch_size = self.batch_size;
        if batch_size > images {
            logging::eprint_and_log(&format!(
                "--batch-size {batch_size}: reduced to {}, since there are no more",
                pluralize(images, "image")
            ));
        }
        batch_size.min(images)
    }

    /// The learning rate over `steps` steps of `items` items, with a warm-up of `warmup` steps. Without `warmup`, it is the smaller of
    /// `default_warmup` and 5 % of the run.
    ///
    /// # Errors
    /// Those of [`Schedule::new`].
    pub fn schedule(
        &self,
        steps: u64,
        items: usize,
        warmup: Option<u64>,
        default_warmup: u64,
    ) -> anyhow::Result<Schedule> {
        let factor = self.lr_scaling.factor(items as u64);
        let peak = self.lr * factor;
        let min_lr = self.min_lr.map_or(peak.min(1e-6), |lr| lr * factor);
        Ok(Schedule::new(self.lr_schedule, peak, min_lr, warmup, default_warmup, steps)?)
    }

    /// The optimizer. `betas` are the decays of AdamW's moments.
    pub fn optimizer(&self, betas: [f64; 2]) -> OptimizerOptions {
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

    /// The options of a run. `betas` are the decays of AdamW's moments; the intervals are the steps between training states and between
    /// sample grids.
    pub fn train_options(
        &self,
        job: TrainJob,
        schedule: Schedule,
        batch: usize,
        betas: [f64; 2],
        [save_interval, sample_interval]: [u64; 2],
        device: Device,
    ) -> TrainOptions {
        let cores = || std::thread::available_parallelism().map_or(1, |n| (n.get() / self.gpus).clamp(1, 8));
        let early_stopping = |patience| EarlyStopping { patience, min_delta: self.early_stopping_min_delta };
        TrainOptions {
            folder: job.folder,
            from: job.initial_state,
            schedule,
            optimizer: self.optimizer(betas),
            batch,
            accumulation: self.gradient_accumulation_steps,
            halvings: self.halvings,
            tape: self.tape_options(),
            workers: self.num_workers.unwrap_or_else(cores),
            save_interval,
            sample_interval,
            log_interval: self.log_interval,
            early_stopping: self.early_stopping_patience.map(early_stopping),
            max_skipped_steps: self.max_skipped_steps,
            seed: self.seed,
            configuration: job.configuration,
            device,
            control: Control::default(),
        }
    }
}

/// A value parser that lists the possible precisions.
fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(|(_, name)| name)).try_map(|name| name.parse::<Precision>())
}

#[cfg(feature = "mlflow")]
fn mlflow(uri: &str) -> anyhow::Result<Box<dyn Tracker>> {
    let tracker = track::mlflow::mlflow(uri, track::DeliveryPolicy::default());
    Ok(Box::new(tracker.map_err(|error| anyhow::anyhow!("{error}"))?))
}

#[cfg(not(feature = "mlflow"))]
fn mlflow(_uri: &str) -> anyhow::Result<Box<dyn Tracker>> {
    bail!("--mlflow: this program was built without the feature mlflow")
}
