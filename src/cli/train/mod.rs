//! `tiny-cats train`: trains a model.

pub mod args;
mod process_group;
mod terminal;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use serde_json::json;
use tiny_cats_export::write_png;

pub use self::args::{TrainArgs, flag_error};
use self::{args::WorkerCommand, terminal::Terminal};
use crate::{
    cli::{common::write_json, logging, writable},
    data,
    recipes::{
        ClassifierSettings, DitSettings, EvaluateRelease, Job, Notice, Prepared, Recipe, SplitEvaluation,
        config,
    },
    report::{ReportOptions, Reporter},
    train::{
        self, Task, TrainOptions,
        folder::{LOG, RunRecord, Status},
        released, stop,
        supervise::{
            EXIT_TRANSIENT, Event, Resume, RunSelection, Signals, SupervisorOptions, Worker, supervise,
        },
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
    Dit(Box<TrainArgs<DitSettings>>),
    /// Trains a ResNet, the classifier, on photographs in class folders.
    Classifier(Box<TrainArgs<ClassifierSettings>>),
}

impl Args {
    /// Checks the arguments, before anything is written or started.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn validate(&self) -> anyhow::Result<()> {
        struct Validate;
        impl Visit<()> for Validate {
            fn visit<R: Recipe>(self, args: &TrainArgs<R>) -> anyhow::Result<()> {
                args.valid_settings().map(|_| ())
            }
        }
        self.visit(Validate)
    }

    /// Calls `f` with the arguments of the task.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn visit<T>(&self, f: impl Visit<T>) -> anyhow::Result<T> {
        match &self.command {
            Command::Dit(args) => f.visit(args),
            Command::Classifier(args) => f.visit(args),
        }
    }
}

/// A function of the arguments of any task.
pub trait Visit<T> {
    /// Calls the function.
    ///
    /// # Errors
    /// Those of the function.
    fn visit<R: Recipe>(self, args: &TrainArgs<R>) -> anyhow::Result<T>;
}

/// Trains in a child process, which this process supervises and restarts; with `--worker`, in this process.
///
/// # Errors
/// If a setting is invalid, the data cannot be read, or the run stops.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    struct Train;
    impl Visit<ExitCode> for Train {
        fn visit<R: Recipe>(self, args: &TrainArgs<R>) -> anyhow::Result<ExitCode> {
            run_task(args)
        }
    }
    args.visit(Train)
}

fn run_task<R: Recipe>(args: &TrainArgs<R>) -> anyhow::Result<ExitCode> {
    let (settings, process) = (args.valid_settings()?, &args.process);
    if process.rank > 0 {
        process_group::become_follower();
    } else if let Some(path) = &settings.run().log_file {
        logging::add_file(path, settings.run().log_format)
            .with_context(|| format!("--log-file {}", path.display()))?;
    }
    let Some(folder) = &process.worker else { return supervise_run(args, settings) };
    if process.rank == 0 {
        let line = config::to_line(settings).map_err(flag_error::<R>)?;
        logging::print_and_log(&format!("configuration: {line}"));
    }
    let job = Job {
        folder: folder.clone(),
        initial_state: process.initial_state(),
        rank: process.rank,
        halvings: process.halvings,
    };
    let result = train_and_release(args, settings, &job);
    match result {
        result if process.rank > 0 => Ok(process_group::report_exit(result)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_transient(&error) => {
            logging::log_fatal(&super::one_line(&error));
            Ok(ExitCode::from(EXIT_TRANSIENT))
        }
        Err(error) => Err(error),
    }
}

/// Chooses the run's folder, and trains in another process, which is restarted after errors that may be transient.
fn supervise_run<R: Recipe>(args: &TrainArgs<R>, settings: &R) -> anyhow::Result<ExitCode> {
    let (process, run) = (&args.process, settings.run());
    let destinations = settings.released_paths().map_err(flag_error::<R>)?;
    let resume: Resume = process.resume.parse()?;
    let configuration = config::to_toml(settings).map_err(flag_error::<R>)?;
    let selection = RunSelection {
        task: R::TASK,
        runs: &run.runs_dir,
        id: process.run_id.as_deref(),
        resume: &resume,
        configuration: &configuration,
        resumes: &|text| config::resumes(settings, text),
    };
    if let Some(folder) = selection.finished_run()? {
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
    let command = WorkerCommand::new(settings, process.initial_state().as_deref())?;
    let command = |worker: &Worker| command.command(worker, 0);
    let options = SupervisorOptions {
        max_time: run.max_time,
        max_retries: run.max_retries,
        retry_initial: run.retry_initial,
        retry_max: run.retry_max,
        processes: run.gpus,
    };
    let code = supervise(&selection, &options, &command, &mut |event| match event {
        Event::Folder(folder) => {
            let log = folder.join(LOG);
            if log.is_file() {
                logging::add_run_file(&log, run.log_format);
            }
        }
        Event::Note(line) => logging::eprint_and_log(line),
        Event::Failed(line) => logging::log_fatal(line),
    });
    Ok(ExitCode::from(code.map_err(|error| flag_error::<R>(error.into()))?))
}

/// Trains in this process, copies the released files to their destinations, and evaluates them.
fn train_and_release<R: Recipe>(args: &TrainArgs<R>, settings: &R, job: &Job) -> anyhow::Result<()> {
    let mut notify = |notice: Notice| match notice {
        Notice::Info(line) => logging::print_and_log(line),
        Notice::Warning(line) => logging::eprint_and_log(line),
    };
    let prepared = settings.prepare(job, &mut notify).map_err(flag_error::<R>)?;
    let Prepared { mut task, options, evaluate } = prepared;
    train::tune_allocator();
    if job.rank > 0 {
        train::parallel::follow(&mut *task, &options, job.rank, settings.run().gpus)?;
        return Ok(());
    }
    let released = train_task(args, settings, &mut *task, &options)?;
    if let Some(evaluate) = evaluate {
        print_evaluations::<R>(evaluate, &released)?;
    }
    Ok(train::folder::complete(&job.folder)?)
}

/// Trains, reports progress, and copies the released files to their destinations. Returns the path of the `.safetensors` file.
fn train_task<R: Recipe>(
    args: &TrainArgs<R>,
    settings: &R,
    task: &mut dyn Task,
    options: &TrainOptions,
) -> anyhow::Result<PathBuf> {
    let destinations = settings.released_paths().map_err(flag_error::<R>)?;
    released::check(&destinations, 4 * task.cost()?.parameters()).context("--output")?;
    let mut process_group = process_group::create(args, settings, &options.folder)?;
    let (reporter, finish) = start_report(settings, options)?;
    let deadline = args
        .process
        .deadline
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let at_stop = finish.clone();
    stop::watch(&options.control, &options.folder, deadline, move |message| {
        logging::eprint_and_log(message);
        at_stop(Status::Stopped);
    })?;
    let is_own = released::owned_by_run(&options.folder, &destinations);
    let result = train::train_distributed(task, options, &mut process_group, &mut |event| {
        if let Some(reporter) = &mut *reporter.lock().unwrap_or_else(PoisonError::into_inner) {
            match event {
                train::Event::ScheduleChanged { field, change } => {
                    let field = schedule_flag::<R>(field);
                    reporter.observe(train::Event::Note(&format!("the schedule changed: {field} {change}")));
                }
                event => reporter.observe(event),
            }
        }
    });
    drop(process_group);
    let published = result.and_then(|files| released::publish(&files, &destinations, is_own));
    finish(if published.is_ok() { Status::Finished } else { Status::Failed });
    let renamed = published.map_err(|error| flag_error::<R>(error.into()))?;
    if !renamed.is_empty() {
        let pairs = renamed.iter().map(|(file, name)| format!("{} as {}", file.display(), name.display()));
        let pairs = pairs.collect::<Vec<_>>().join(" and ");
        logging::eprint_and_log(&format!("kept the files of another run: {pairs}"));
    }
    let [torch, safetensors] = destinations;
    logging::print_and_log(&format!("finished: {} and {}", torch.display(), safetensors.display()));
    Ok(safetensors)
}

/// The reporter of a run; it is gone once the run has ended.
type SharedReporter = Arc<Mutex<Option<Reporter>>>;

/// Starts the report of a run. Returns it, and a function that ends it.
fn start_report<R: Recipe>(
    settings: &R,
    options: &TrainOptions,
) -> anyhow::Result<(SharedReporter, impl Fn(Status) + Clone + Send + 'static + use<R>)> {
    let report_options = ReportOptions {
        steps: options.schedule.steps,
        log_interval: options.log_interval,
        trackers: settings.run().trackers().map_err(flag_error::<R>)?,
        device: Some(options.device.clone()),
    };
    let terminal = Terminal::new(options.schedule.steps, settings.run().log_format)?;
    let reporter = Reporter::new(report_options, terminal);
    let reporter = Arc::new(Mutex::new(Some(reporter)));
    let shared = reporter.clone();
    let finish = move |status| {
        if let Some(reporter) = shared.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reporter.finish(status);
        }
    };
    Ok((reporter, finish))
}

/// Returns the flag that sets a field of the schedule; the field itself if there is none. If the field has another unit than the flag,
/// both are named.
fn schedule_flag<R: Recipe>(field: &str) -> &str {
    let has_steps = R::keys().contains(&"steps");
    match field {
        "steps" if has_steps => "--steps",
        "steps" => "steps (--epochs)",
        "warmup" if has_steps => "--warmup-steps",
        "warmup" => "steps of the warm-up (--warmup-epochs)",
        // --lr-scaling scales both rates.
        "peak" => "learning rate (--lr, --lr-scaling)",
        "floor" => "learning rate at the end (--min-lr)",
        "shape" => "--lr-schedule",
        _ => field,
    }
}

/// Prints the confusion matrix of each split, and writes it as `PATH.png` and `PATH.json`.
fn print_evaluations<R: Recipe>(evaluate: EvaluateRelease, released: &Path) -> anyhow::Result<()> {
    for SplitEvaluation { split, path, results } in evaluate(released).map_err(flag_error::<R>)? {
        logging::print_and_log(&format!("\n{split} photographs, not used for training\n{results}"));
        let [image_path, report_path] = ["png", "json"].map(|extension| path.with_extension(extension));
        let mut report = results.report();
        report["photographs"] = json!(split);
        write_png(&image_path, &results.confusion.to_image())
            .with_context(|| image_path.display().to_string())?;
        write_json(&report_path, &report)?;
        logging::print_and_log(&format!("wrote {} and {}", image_path.display(), report_path.display()));
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
    error.downcast_ref().is_some_and(training) || error.downcast_ref().is_some_and(data::Error::is_transient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_schedule_has_a_flag() {
        let schedule = train::Schedule::new(Default::default(), 1e-3, 1e-6, None, 0, 10).unwrap();
        let fields = serde_json::to_value(schedule).unwrap();
        for field in fields.as_object().unwrap().keys() {
            for flag in [schedule_flag::<DitSettings>(field), schedule_flag::<ClassifierSettings>(field)] {
                assert!(flag.contains("--"), "{field}: {flag}");
            }
        }
        assert_eq!(schedule_flag::<DitSettings>("steps"), "--steps");
    }
}
