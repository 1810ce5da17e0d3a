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
    /// The task's name, and the arguments that both tasks share.
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
            Command::Dit(args) => Ok(released::EXTENSIONS.map(|extension| args.released(extension))),
            Command::Classifier(args) => args.released(),
        }
    }

    /// The work of training on `pictures`.
    ///
    /// # Errors
    /// If there is no such network.
    pub fn workload(&self, pictures: &ImageCounts) -> anyhow::Result<Workload> {
        match &self.command {
            Command::Dit(args) => args.workload(pictures),
            Command::Classifier(args) => args.workload(pictures),
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
    /// Counts the images in a data set.
    pub fn of(data: &Dataset) -> Self {
        let [train, validation, test] = Split::ALL.map(|split| data.part(split).files.len());
        Self { classes: data.classes.len(), train, validation, test }
    }

    /// The counts that `--limit-files` leaves.
    fn limited(self, most: Option<usize>) -> Self {
        let least = |n: usize| most.map_or(n, |most| n.min(most));
        Self { train: least(self.train), validation: least(self.validation), test: least(self.test), ..self }
    }
}

/// A run to train in this process.
pub struct TrainJob {
    /// The run's folder.
    folder: PathBuf,
    /// The training state to start from.
    from: Option<PathBuf>,
    /// All flags, as TOML.
    configuration: String,
}

/// Trains, in a small parent process that restarts the run and one that computes. `matches` are those of this command.
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
        let places = args.output_paths()?;
        if let Some(folder) = finished_run(common, task, &configuration)? {
            // An incomplete run is resumed instead, which writes the missing files.
            let is_complete = RunRecord::load(&folder).is_ok_and(|record| record.complete);
            if is_complete && released::owned_by_run(&folder, &places) == [true; 2] {
                let [torch, safetensors] = places.each_ref().map(|place| place.display());
                logging::print_and_log(&format!(
                    "{}: is finished: {torch} and {safetensors}; without --resume a new run begins",
                    folder.display()
                ));
                return Ok(ExitCode::SUCCESS);
            }
        }
        let output = places[0].parent().unwrap_or(Path::new("."));
        writable::check_writable_folder("--output", output)?;
        return supervise(common, task, &configuration);
    };
    let from = Path::new(&common.resume);
    let from =
        Some(from.to_owned()).filter(|from| !["auto", "never"].contains(&&*common.resume) && from.is_file());
    let job = TrainJob { folder: folder.clone(), from, configuration: configuration.to_toml() };
    logging::print_and_log(&format!("configuration: {}", configuration.line()));
    let ended = match &args.command {
        Command::Dit(args) => dit::run(args, job),
        Command::Classifier(args) => classifier::run(args, job),
    };
    match ended.and_then(|()| finished(common, folder)) {
        ended if common.rank > 0 => Ok(process_group::report_exit(ended)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_transient(&error) => {
            logging::log_fatal(&super::one_line(&error));
            Ok(ExitCode::from(EXIT_TRANSIENT))
        }
        Err(error) => Err(error),
    }
}

/// Records in `folder` that the run is complete.
fn finished(common: &CommonArgs, folder: &Path) -> anyhow::Result<()> {
    if common.rank == 0 {
        train::folder::complete(folder)?;
    }
    Ok(())
}

/// Catches the signals that stop a run, if this process is the parent of one. Called first of all, so that early signals are handled like
/// later ones.
pub fn catch_signals() {
    let mut arguments = std::env::args_os().skip(1);
    let trains = arguments.next().is_some_and(|command| command == "train");
    if trains && !arguments.any(|argument| argument.to_string_lossy().starts_with("--worker")) {
        // A failure is reported by the later call, where it is an error.
        let _ = Signals::catch();
    }
}

/// True if the same may succeed later, in a new process.
fn is_transient(error: &anyhow::Error) -> bool {
    // Memory that runs out in the middle of an update, where nothing can be halved.
    let training = |error: &train::Error| error.is_transient() || error.is_out_of_memory();
    let data = |error: &data::Error| error.is_transient();
    error.downcast_ref().is_some_and(training) || error.downcast_ref().is_some_and(data)
}

/// Opens the data, and prints its index and the skipped images.
fn open(path: &Path) -> anyhow::Result<Dataset> {
    let data = Dataset::open(path)?;
    if let Some(index) = &data.index {
        logging::print_and_log(&format!("{}: as indexed", index.display()));
    }
    warn_skipped(&data.skipped);
    warn_duplicates(&data);
    Ok(data)
}

/// Tells glibc to keep freed memory for the next step. Returning it to the system would clear every page again: a step of a small network
/// takes a quarter less time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune_allocator() {
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt changes a limit of the allocator and touches no memory of ours.
        unsafe { libc::mallopt(option, i32::MAX) };
    }
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TOP_PAD, 256 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() {}

/// Trains, reports progress, and copies the released files to `places`. Returns the path of the `.safetensors` file; a process with a rank
/// above 0 writes none.
fn run_training(
    task: &mut dyn Task,
    plan: &TrainOptions,
    common: &CommonArgs,
    places: [PathBuf; 2],
) -> anyhow::Result<Option<PathBuf>> {
    tune_allocator();
    if common.rank > 0 {
        train::parallel::follow(task, plan, common.rank, common.gpus)?;
        return Ok(None);
    }
    let released = 4 * task.cost()?.parameters();
    for place in &places {
        let said = || format!("--output {}", place.display());
        if place.is_dir() {
            return Err(anyhow!("a folder is in the file's place")).with_context(said);
        }
        writable::check_free_space(place, places.len() as u64 * released).with_context(said)?;
    }
    let mut team = process_group::create(common)?;
    let reporter = Reporter::new(ReportOptions {
        steps: plan.schedule.steps,
        log_interval: plan.log_interval,
        trackers: common.trackers()?,
        log_format: common.log_format,
        device: Some(plan.device.clone()),
    })?;
    let reporter = Arc::new(Mutex::new(Some(reporter)));
    let finish = |reporter: &Mutex<Option<Reporter>>, status| {
        if let Some(reporter) = reporter.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reporter.finish(status);
        }
    };
    let deadline = common.deadline.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let stopped = reporter.clone();
    stop::watch(&plan.control, deadline, move || finish(&stopped, Status::Stopped))?;
    train::tune_allocator();
    let own = released::owned_by_run(&plan.folder, &places);
    let published = train::train_distributed(task, plan, &mut team, &mut |event| {
        if let Some(reporter) = &mut *reporter.lock().unwrap_or_else(PoisonError::into_inner) {
            reporter.observe(event);
        }
    });
    drop(team);
    let copied = published
        .map_err(anyhow::Error::from)
        .and_then(|released| released::publish(&released, &places, own));
    finish(&reporter, if copied.is_ok() { Status::Finished } else { Status::Failed });
    let kept = copied?;
    if !kept.is_empty() {
        let each = kept.iter().map(|(file, name)| format!("{} as {}", file.display(), name.display()));
        let each = each.collect::<Vec<_>>().join(" and ");
        logging::eprint_and_log(&format!("kept what another run released: {each}"));
    }
    let [torch, safetensors] = places;
    logging::print_and_log(&format!("finished: {} and {}", torch.display(), safetensors.display()));
    Ok(Some(safetensors))
}
