//! The settings of a run.

use std::path::PathBuf;

use candle_core::Device;
use tiny_cats_models::TapeOptions;

use super::{Control, LrShape, OptimizerOptions, Result, Schedule};

/// Settings of a training run.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The run's folder, which holds all its files. A run with training states in it resumes from the newest.
    pub folder: PathBuf,
    /// The training state that a run in a new folder starts from.
    ///
    /// Its settings must be the same except for the schedule, so a run may be extended or shortened.
    pub from: Option<PathBuf>,
    /// The learning rate and the number of steps.
    pub schedule: Schedule,
    /// The optimizer: its rule, clipping and moving averages.
    pub optimizer: OptimizerOptions,
    /// Items in a micro-batch, of all processes together.
    pub batch: usize,
    /// Micro-batches in an optimizer step.
    pub accumulation: usize,
    /// Number of earlier attempts that ran out of memory. The micro-batch is halved once for each.
    pub halvings: u32,
    /// The precision of gradients, and gradient checkpointing.
    pub tape: TapeOptions,
    /// Threads that prepare batches ahead; 0 prepares each batch when it is needed.
    pub workers: usize,
    /// Steps between training states; each is evaluated. 0 saves only the last step.
    pub save_interval: u64,
    /// Steps between samples; 0 for none.
    pub sample_interval: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_interval: u64,
    /// The condition for early stopping; `None` trains to the last step.
    pub early_stopping: Option<EarlyStopping>,
    /// Maximum number of consecutive steps that are skipped because the loss or a gradient is not finite.
    pub max_skipped_steps: u64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// The user's settings as TOML, kept in the run's folder and in every training state.
    pub configuration: String,
    /// The device that computes.
    pub device: Device,
    /// The handle with which other threads stop the run.
    pub control: Control,
}

impl TrainOptions {
    /// Returns the settings of a run of `steps` steps with micro-batches of `batch` items in `folder`, on the CPU: AdamW at a learning rate
    /// of 1e-3 with a short warm-up and a cosine to zero, a training state and an evaluation every tenth of the run, two loader threads.
    ///
    /// # Errors
    /// Returns [`Error::Setting`](super::Error::Setting) for a run without steps.
    pub fn new(folder: impl Into<PathBuf>, steps: u64, batch: usize) -> Result<Self> {
        Ok(Self {
            folder: folder.into(),
            from: None,
            schedule: Schedule::new(LrShape::Cosine, 1e-3, 0.0, None, 100, steps)?,
            optimizer: OptimizerOptions::default(),
            batch,
            accumulation: 1,
            halvings: 0,
            tape: TapeOptions::default(),
            workers: 2,
            save_interval: steps.div_ceil(10),
            sample_interval: 0,
            log_interval: 10,
            early_stopping: None,
            max_skipped_steps: 10,
            seed: 0,
            configuration: String::new(),
            device: Device::Cpu,
            control: Control::default(),
        })
    }

    /// Items in an optimizer step.
    pub(super) fn per_step(&self) -> u64 {
        (self.batch * self.accumulation) as u64
    }
}

/// The condition that ends a run that no longer improves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// Number of evaluations without improvement after which the run ends.
    pub patience: u64,
    /// The smallest improvement of a score that counts.
    pub min_delta: f64,
}
