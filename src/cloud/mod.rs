//! Training on rented GPUs at Modal: its command line, the app's files and settings, the cost of a training, and runs in the cloud.

mod app;
mod command;
mod cost;
mod error;
mod fetch;
mod limits;
pub mod modal;
mod record;
mod requirements;
mod run;
mod running;
mod sweep;
mod training;
mod volume;

pub use app::{BINARY, ModalApp};
pub use command::{app_name, run_arguments, shell_command};
pub use cost::{AttemptLimits, ExpectedCost, TrainingCost, choose_gpus, choose_retries, gpu_names};
pub use error::{Error, Result};
pub use fetch::{FetchedRun, fetch};
pub use limits::{CostLimits, parse_timeout};
pub use record::{Attempt, CloudRecord, RECORD};
pub use requirements::{RequirementCheck, check_requirements};
pub use run::{CloudRun, RunLocation};
pub use running::{check_idle, running_app, stop};
pub use sweep::{CloudJob, CloudSweep};
pub use training::CloudTraining;
pub use volume::{BUCKET, check_data, list_volume, read_run_file, volume_path};

pub use crate::plan::{CloudSettings, Container};
