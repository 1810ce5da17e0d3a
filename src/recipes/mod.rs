//! Recipes: from settings to a training that is ready to start.
//!
//! A [`Recipe`] is a struct of settings, which are also the flags of `tiny-cats train` and the keys of a [configuration](config). It
//! predicts the workload of a training, and prepares its task and options. [`DitSettings`] trains TinyDiT, [`ClassifierSettings`] a ResNet.

mod calibration;
mod classifier;
pub mod config;
mod counts;
mod dit;
mod error;
mod settings;
mod table;
mod value;

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tiny_cats_export::escape;
use toml::Table;

#[cfg(feature = "cli")]
pub(crate) use self::settings::parse_interval;
pub use self::{
    calibration::{calibration_task, describe_network},
    classifier::{ClassifierRelease, ClassifierSettings},
    counts::ImageCounts,
    dit::{DitRelease, DitSettings},
    error::{Error, Result},
    settings::{LogFormat, MethodSettings, OptimizerKind, RunSettings},
    table::KeyError,
};
use crate::{
    data::{Dataset, printable, skipped_lines},
    evaluate::ClassificationResults,
    plan::Workload,
    train::{Task, TrainOptions},
};

/// The tasks; each has a table in a configuration.
pub const TASKS: [TaskKind; 2] = [TaskKind::of::<DitSettings>(), TaskKind::of::<ClassifierSettings>()];

/// Checks the tables of all [`TASKS`] in the configuration `name`.
fn check_tasks(name: &str, configuration: &Table) -> Result<()> {
    config::check::<DitSettings>(name, configuration)?;
    config::check::<ClassifierSettings>(name, configuration)
}

/// A task that a recipe trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKind {
    /// The name.
    pub name: &'static str,
    /// The metric that ranks runs by default.
    pub metric: &'static str,
    /// The name of the released file, if the settings of the output name a file and not its folder.
    pub released_file: Option<&'static str>,
}

impl TaskKind {
    const fn of<R: Recipe>() -> Self {
        Self { name: R::TASK, metric: R::METRIC, released_file: R::RELEASED_FILE }
    }

    /// Finds a task by its name.
    pub fn find(name: &str) -> Option<Self> {
        TASKS.into_iter().find(|task| task.name == name)
    }
}

/// The extensions of the released files.
pub const EXTENSIONS: [&str; 2] = ["pt", "safetensors"];

/// The settings of a training, from which it is planned and prepared.
pub trait Recipe:
    Clone + std::fmt::Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The name of the task, which names its table in a configuration.
    const TASK: &'static str;

    /// The metric that ranks runs by default.
    const METRIC: &'static str;

    /// The name of the released file by default, if the settings of the output name a file and not its folder.
    const RELEASED_FILE: Option<&'static str>;

    /// The settings of the released files.
    type Release: Clone + Serialize + DeserializeOwned;

    /// The settings of the released files.
    fn release(&self) -> &Self::Release;

    /// Replaces the settings that other structs hold.
    #[must_use]
    fn with_parts(self, release: Self::Release, method: MethodSettings, run: RunSettings) -> Self;

    /// The keys of all settings.
    fn keys() -> Vec<&'static str> {
        let own = [table::keys::<Self>(), table::keys::<Self::Release>()].concat();
        [&own, table::keys::<MethodSettings>(), table::keys::<RunSettings>()].concat()
    }

    /// Reads the settings from a table with a value for every key that is not optional.
    ///
    /// # Errors
    /// If a value is missing or has another type.
    fn from_table(table: &Table) -> Result<Self, KeyError> {
        let own: Self = table::read(table)?;
        Ok(own.with_parts(table::read(table)?, table::read(table)?, table::read(table)?))
    }

    /// Writes the settings to a table, without optional ones that are not set.
    ///
    /// # Errors
    /// If a number is larger than TOML's largest, or a path is not UTF-8.
    fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut all = table::write(self)?;
        all.extend(table::write(self.release())?);
        all.extend(table::write(self.method())?);
        all.extend(table::write(self.run())?);
        Ok(all)
    }

    /// The settings of the method.
    fn method(&self) -> &MethodSettings;

    /// The settings of the run.
    fn run(&self) -> &RunSettings;

    /// True if a run with the settings `other` may be resumed with these: they differ only in [`run`](Self::run) and in what is released.
    fn resumes(&self, other: &Self) -> bool {
        let other = other.clone();
        let method = other.method().clone();
        *self == other.with_parts(self.release().clone(), method, self.run().clone())
    }

    /// The folder of the data.
    fn data(&self) -> &Path;

    /// The file of initial weights.
    fn initial_weights(&self) -> Option<&Path>;

    /// Numbers of classes and images to plan with if the data is not on this machine.
    fn default_counts() -> [usize; 2];

    /// The paths of the released files, with these [extensions](EXTENSIONS).
    ///
    /// # Errors
    /// If the setting of the output is not the name of such a file.
    fn released_paths(&self) -> Result<[PathBuf; 2]>;

    /// Checks the settings, before anything is written or started.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first invalid one.
    fn validate(&self) -> Result<()>;

    /// Predicts the workload of training on `images`.
    ///
    /// # Errors
    /// If the settings describe no valid network.
    fn workload(&self, images: &ImageCounts) -> Result<Workload>;

    /// Reads the data, and makes the task and its options. `notify` gets lines for the user.
    ///
    /// # Errors
    /// If a setting is invalid, or the data cannot be read.
    fn prepare(&self, job: &Job, notify: &mut dyn FnMut(Notice)) -> Result<Prepared>;
}

/// A process that trains.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The run's folder.
    pub folder: PathBuf,
    /// The training state that a new run starts from.
    pub initial_state: Option<PathBuf>,
    /// Rank of the process in its process group.
    pub rank: usize,
    /// Number of times that the micro-batch is halved, after out-of-memory errors.
    pub halvings: u32,
}

/// A line for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// Progress.
    Info(&'a str),
    /// Something that the user may not expect.
    Warning(&'a str),
}

/// A training that is ready to start.
pub struct Prepared {
    /// The task.
    pub task: Box<dyn Task>,
    /// The options of its training.
    pub options: TrainOptions,
    /// Evaluates the released file, if the recipe does so.
    pub evaluate: Option<EvaluateRelease>,
}

/// Evaluates a released file, given its path, on each split that is not trained on.
pub type EvaluateRelease = Box<dyn FnOnce(&Path) -> Result<Vec<SplitEvaluation>>>;

/// The evaluation of a released classifier on one split.
pub struct SplitEvaluation {
    /// The name of the split.
    pub split: &'static str,
    /// The path of its report, without the extension.
    pub path: PathBuf,
    /// The results.
    pub results: ClassificationResults,
}

/// Opens the data set, and reports its index, the skipped and the duplicate images.
fn open_data(path: &Path, notify: &mut dyn FnMut(Notice)) -> Result<Dataset> {
    let data = Dataset::open(path)?;
    if let Some(index) = &data.index {
        notify(Notice::Info(&format!("{}: using this index", index.display())));
    }
    report_skipped(&data.skipped, notify);
    for line in data.duplicate_lines() {
        notify(Notice::Warning(&escape(&line, usize::MAX)));
    }
    Ok(data)
}

/// Reports the skipped images.
fn report_skipped(skipped: &[(PathBuf, String)], notify: &mut dyn FnMut(Notice)) {
    skipped_lines(skipped).for_each(|line| notify(Notice::Warning(&line)));
}

/// Returns `path` for a message.
fn printable_path(path: &Path) -> String {
    printable(path).display().to_string()
}
