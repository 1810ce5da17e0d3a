//! `tiny-cats train`: trains a model.

pub mod classifier;
mod common;
pub mod config;
pub mod dit;
mod process_group;
mod released;
pub mod report;
mod stop;
mod supervise;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, anyhow};
use clap::{ArgMatches, CommandFactory};

use self::{
    common::CommonArgs,
    config::ResolvedConfig,
    report::{ReportOptions, Reporter},
    supervise::{EXIT_TRANSIENT, Signals, finished_run, supervise},
};
use crate::{
    cli::{
        common::{warn_duplicates, warn_skipped},
        logging, writable,
    },
    data::{self, Dataset, Split},
    plan::Workload,
    train::{
        self, Task, TrainOptions,
        folder::{RunRecord, Status},
    },
};

/// The arguments of `tiny-cats train`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Trains TinyDiT, the generator, on images in class folders.
    Dit(Box<dit::Args>),
    /// Trains a ResNet, the classifier, on photographs in class folders.
    Classifier(Box<classifier::Args>),
}

impl Args {
    /// The name of the task, and the arguments that both tasks share.
    fn common(&self) -> (&'static str, &CommonArgs) {
        match &self.command {
            Command::Dit(args) => ("dit", &args.common),
            Command::Classifier(args) => ("classifier", &args.common),
        }
    }

    /// The folder of the images.
    pub fn data(&self) -> &Path {
        match &self.command {
            Command::Dit(args) => args.data(),
            Command::Classifier(args) => args.data(),
        }
    }

    /// The paths of the released files.
    ///
    /// # Errors
    /// If `--output` is not the name of such a file.
    fn output_paths(&self) -> anyhow::Result<[PathBuf; 2]> {
        match &self.command {
            Command::Dit(args) => Ok(released::EXTENSIONS.map(|extension| args.released_path(extension))),
            Command::Classifier(args) => args.released_paths(),
        }
    }

    /// The workload of training on `images`.
    ///
    /// # Errors
    /// If the flags describe no valid network.
    pub fn workload(&self, images: &ImageCounts) -> anyhow::Result<Workload> {
        match &self.command {
            Command::Dit(args) => args.workload(images),
            Command::Classifier(args) => args.workload(images),
        }
    }

    /// Checks the arguments, before anything is written or started.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn validate(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::Dit(args) => args.validate(),
            Command::Classifier(args) => args.validate(),
        }
    }
}

/// The size of a data set, in classes and images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCounts {
    /// Number of classes.
    pub classes: usize,
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub validation: usize,
    /// Test images.
    pub test: usize,
}

impl ImageCounts {
    /// Counts the images of a data set.
    pub fn from_dataset(data: &Dataset) -> Self {
        let [train, validation, test] = Split::ALL.map(|split| data.part(split).files.len());
        Self { classes: data.classes.len(), train, validation, test }
    }

    /// The counts after `--limit-files`.
    fn with_limit(self, max: Option<usize>) -> Self {
        let limit = |n: usize| max.map_or(n, |max| n.min(max));
        Self { train: limit(self.train), validation: limit(self.validation), test: limit(self.test), ..self }
    }
}

/// A run to train in this process.
pub struct TrainJob {
    /// The run's folder.
    folder: PathBuf,
    /// The training state to start from, of `--resume`.
    initial_state: Option<PathBuf>,
    /// All flags, as TOML.
    configuration: String,
}

/// Trains in a child process, which this process supervises and restarts. `matches` are those of this command.
///
/// # Errors
/// If a setting is invalid, the data cannot be read, or the run stops.
pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (task, common) = args.common();
    let matches = matches.subcommand_matches(task).context("the task's arguments")?;
    let configuration = ResolvedConfig::new(task, &super::Cli::command(), matches)?;
    args.validate()?;
    if common.rank > 0 {
        process_group::become_follower();
    } else {
        common.open_log()?;
    }
    let Some(folder) = &common.worker else {
        let destinations = args.output_paths()?;
        if let Some(folder) = finished_run(common, task, &configuration)? {
            // An incomplete run is resumed instead, which writes the missing files.
            let is_complete = RunRecord::load(&folder).is_ok_and(|record| record.complete);
            if is_complete && released::owned_by_run(&folder, &destinations) == [true; 2] {
                let [torch, safetensors] = destinations.each_ref().map(|destination| destination.display());
                logging::print_and_log(&format!(
                    "{}: the run is finished: {torch} and {safetensors}; omit --resume to start a new run",
                    folder.display()
                ));
                return Ok(ExitCode::SUCCESS);
            }
        }
        let output = destinations[0].parent().unwrap_or(Path::new("."));
        writable::check_writable_folder("--output", output)?;
        return supervise(common, task, &configuration);
    };
    let path = Path::new(&common.resume);
    let initial_state =
        Some(path.to_owned()).filter(|path| !["auto", "never"].contains(&&*common.resume) && path.is_file());
    let job = TrainJob { folder: folder.clone(), initial_state, configuration: configuration.to_toml() };
    logging::print_and_log(&format!("configuration: {}", configuration.to_line()));
    let result = match &args.command {
        Command::Dit(args) => dit::run(args, job),
        Command::Classifier(args) => classifier::run(args, job),
    };
    match result.and_then(|()| mark_complete(common, folder)) {
        result if common.rank > 0 => Ok(process_group::report_exit(result)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_transient(&error) => {
            logging::log_fatal(&super::one_line(&error));
            Ok(ExitCode::from(EXIT_TRANSIENT))
        }
        Err(error) => Err(error),
    }
}

/// Records in `folder` that the run is complete.
fn mark_complete(common: &CommonArgs, folder: &Path) -> anyhow::Result<()> {
    if common.rank == 0 {
        train::folder::complete(folder)?;
    }
    Ok(())
}

/// Catches the signals that stop a run, if this process supervises one. Called at the start of the program, so that early signals are
/// handled, too.
pub fn catch_signals() {
    let mut arguments = std::env::args_os().skip(1);
    let is_train = arguments.next().is_some_and(|command| command == "train");
    if is_train && !arguments.any(|argument| argument.to_string_lossy().starts_with("--worker")) {
        // A failure is reported by the second call, in `supervise`.
        let _ = Signals::catch();
    }
}

/// True if a new process may succeed later.
fn is_transient(error: &anyhow::Error) -> bool {
    // Out of memory in the middle of an update, which has no micro-batches to halve.
    let training = |error: &train::Error| error.is_transient() || error.is_out_of_memory();
    let data = |error: &data::Error| error.is_transient();
    error.downcast_ref().is_some_and(training) || error.downcast_ref().is_some_and(data)
}

/// Opens the data set, and prints its index and the skipped images.
fn open_data(path: &Path) -> anyhow::Result<Dataset> {
    let data = Dataset::open(path)?;
    if let Some(index) = &data.index {
        logging::print_and_log(&format!("{}: using this index", index.display()));
    }
    warn_skipped(&data.skipped);
    warn_duplicates(&data);
    Ok(data)
}

/// Makes glibc keep freed memory for the next step. Memory returned to the system must be cleared again; keeping it saves a quarter of the
/// time of a step of a small network.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune_allocator() {
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt changes a limit of the allocator and accesses no memory of this program.
        unsafe { libc::mallopt(option, i32::MAX) };
    }
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TOP_PAD, 256 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() {}

/// Trains, reports progress, and copies the released files to `destinations`. Returns the path of the `.safetensors`
/// file, or `None` in a process with a rank above 0, which writes no files.
fn run_training(
    task: &mut dyn Task,
    plan: &TrainOptions,
    common: &CommonArgs,
    destinations: [PathBuf; 2],
) -> anyhow::Result<Option<PathBuf>> {
    tune_allocator();
    if common.rank > 0 {
        train::parallel::follow(task, plan, common.rank, common.gpus)?;
        return Ok(None);
    }
    let file_bytes = 4 * task.cost()?.parameters();
    for destination in &destinations {
        let flag = || format!("--output {}", destination.display());
        if destination.is_dir() {
            return Err(anyhow!("expected a file, found a folder")).with_context(flag);
        }
        writable::check_free_space(destination, destinations.len() as u64 * file_bytes).with_context(flag)?;
    }
    let mut process_group = process_group::create(common)?;
    let reporter = Reporter::new(ReportOptions {
        steps: plan.schedule.steps,
        task: task.kind(),
        log_interval: plan.log_interval,
        trackers: common.trackers()?,
        log_format: common.log_format,
        device: Some(plan.device.clone()),
    })?;
    let reporter = Arc::new(Mutex::new(Some(reporter)));
    let finish_reporter = |reporter: &Mutex<Option<Reporter>>, status| {
        if let Some(reporter) = reporter.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reporter.finish(status);
        }
    };
    let deadline = common.deadline.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let shared_reporter = reporter.clone();
    stop::watch(&plan.control, &plan.folder, deadline, move || {
        finish_reporter(&shared_reporter, Status::Stopped)
    })?;
    train::tune_allocator();
    let is_own = released::owned_by_run(&plan.folder, &destinations);
    let result = train::train_distributed(task, plan, &mut process_group, &mut |event| {
        if let Some(reporter) = &mut *reporter.lock().unwrap_or_else(PoisonError::into_inner) {
            reporter.observe(event);
        }
    });
    drop(process_group);
    let published = result
        .map_err(anyhow::Error::from)
        .and_then(|files| released::publish(&files, &destinations, is_own));
    finish_reporter(&reporter, if published.is_ok() { Status::Finished } else { Status::Failed });
    let renamed = published?;
    if !renamed.is_empty() {
        let pairs = renamed.iter().map(|(file, name)| format!("{} as {}", file.display(), name.display()));
        let pairs = pairs.collect::<Vec<_>>().join(" and ");
        logging::eprint_and_log(&format!("kept the files of another run: {pairs}"));
    }
    let [torch, safetensors] = destinations;
    logging::print_and_log(&format!("finished: {} and {}", torch.display(), safetensors.display()));
    Ok(Some(safetensors))
}
