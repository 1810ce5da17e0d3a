//! `tiny-cats sweep`: trains with many settings.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};
use serde_json::json;

use super::{
    Cli, Command,
    common::{pretty_json, print},
    logging, one_line,
    table::{clean, table},
};
use crate::{
    chart::format_number,
    plural::pluralize,
    signals::EXIT_RESUMABLE,
    sweep::{Job, JobStatus, LOG, Outcome, Runner, Setting, StopSignal, Sweep, SweepEvent, SweepResult},
    train::folder::RUNS,
};

/// Maximum printed characters of a text from a file.
const MAX_TEXT: usize = 200;
/// The exit code for an invalid file, the same as for invalid usage.
const EXIT_USAGE: u8 = 2;

/// The description of the file in --help.
const FILE_FORMAT: &str = r#"The file:
  task = "dit"                 # or "classifier"
  data = "data/cats"           # default: that of `train`
  config = "smoke"             # a profile or file for `train --config`; optional
  method = "grid"              # every combination; or "random", which needs `jobs` and accepts `seed`
  metric = "validation_loss"   # compares the jobs; a classifier's default is "validation_accuracy"
  goal = "min"                 # or "max"; default: derived from the name of the metric

  [fixed]                      # flags of `train` without their dashes; `true` for a flag without a value
  steps = 200

  [sweep]
  lr = [1e-4, 3e-4, 1e-3]
  weight-decay = { low = 1e-4, high = 1e-1, scale = "log" }   # "random" only

Output is in RUNS/sweeps/NAME, where NAME is the name of the file: sweep.json, and a folder for each job with its runs and output.log.
Run the same command again to skip finished jobs and continue with the others. `tiny-cats runs --runs-dir RUNS/sweeps/NAME/JOB` lists the
run of a job.

Exit codes: 0 if at least one job has finished, 1 if none has, 2 for invalid usage or an invalid file, 75 if it was stopped and can be
resumed."#;

/// The arguments of `tiny-cats sweep`.
#[derive(clap::Args, Debug)]
#[command(after_long_help = FILE_FORMAT)]
pub struct Args {
    /// TOML file with the task and the settings to try; --help describes it
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Folder of the runs
    #[arg(long, default_value = RUNS, value_name = "DIR")]
    runs_dir: PathBuf,
    /// Print the jobs without running them
    #[arg(long)]
    dry_run: bool,
    /// Collect the results from the folders of the jobs without running any, for jobs that ran on other machines
    #[arg(long, conflicts_with_all = ["dry_run", "retry_failed"])]
    collect: bool,
    /// Run failed jobs again
    #[arg(long)]
    retry_failed: bool,
    /// Print the results as JSON, and a line for each job to standard error
    #[arg(long)]
    json: bool,
    /// Program that runs the jobs, instead of this one
    #[arg(long, value_name = "PROGRAM", hide = true)]
    program: Option<PathBuf>,
}

/// Runs the jobs that have not finished, and prints the results.
///
/// # Errors
/// If a job cannot be started, or none has finished. An invalid file has exit code 2.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (sweep, jobs) = match load(&args.file) {
        Ok(loaded) => loaded,
        Err(error) => {
            logging::log_fatal(&one_line(&error));
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    if args.dry_run {
        print(&if args.json { pretty_json(&json!(jobs))? } else { job_table(&sweep, &jobs) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let stop = StopSignal::on_signals()?;
    let program = args.program.clone().map_or_else(std::env::current_exe, Ok)?;
    let runner = Runner { program, runs: args.runs_dir.clone(), retry_failed: args.retry_failed, stop };
    let folder = runner.folder(&sweep);
    if args.collect {
        return print_outcome(&sweep, &runner.collect(&sweep, &jobs)?, args.json);
    }
    let bar = indicatif::ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    let total = jobs.len();
    let result = runner.run(&sweep, &jobs, &mut |progress| match progress {
        SweepEvent::Started(i, job) => {
            let log = folder.join(&job.name).join(LOG);
            bar.set_message(format!(
                "[{}/{total}] {}  ({})",
                i + 1,
                settings_line(job.settings.iter()),
                log.display()
            ));
        }
        SweepEvent::Waiting(i, job) => {
            let text = format!(
                "[{}/{total}] {}: waiting for another process that still trains this job",
                i + 1,
                job.name
            );
            bar.suspend(|| eprintln!("{text}"));
        }
        SweepEvent::Ended(i, outcome) => {
            let line = format!("[{}/{total}] {}", i + 1, outcome_line(&sweep, outcome));
            // A closed pipe does not stop the sweep.
            bar.suspend(|| {
                let _ = if args.json {
                    writeln!(std::io::stderr(), "{line}")
                } else {
                    writeln!(std::io::stdout(), "{line}")
                };
            });
        }
    })?;
    bar.finish_and_clear();
    if !args.json {
        print("\n")?;
    }
    print_outcome(&sweep, &result, args.json)
}

/// Loads the file of a sweep, and checks that `train` accepts all jobs.
///
/// # Errors
/// If the file or a job is invalid.
pub fn load(file: &Path) -> anyhow::Result<(Sweep, Vec<Job>)> {
    let sweep = Sweep::load(file)?;
    sweep.check_keys(&train_flags(&sweep.task))?;
    let jobs = sweep.jobs()?;
    for job in &jobs {
        train_args(&sweep, job)?;
    }
    Ok((sweep, jobs))
}

/// Prints the results of the jobs.
///
/// # Errors
/// If no job has finished, or standard output cannot be written.
pub fn print_outcome(sweep: &Sweep, result: &SweepResult, json: bool) -> anyhow::Result<ExitCode> {
    let total = result.state.jobs.len();
    print(&if json { pretty_json(&report_json(sweep, result))? } else { ranking(sweep, result) })?;
    if result.stopped {
        eprintln!("stopped; run the same command to resume");
        return Ok(ExitCode::from(EXIT_RESUMABLE));
    }
    if result.state.count(JobStatus::Finished) == 0 {
        bail!("{}: none of {} has finished", result.folder.display(), pluralize(total, "job"));
    }
    let failed = result.state.count(JobStatus::Failed);
    if failed > 0 {
        eprintln!("{failed} of {} failed; pass --retry-failed to run them again", pluralize(total, "job"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The flags of `train TASK`, without their dashes.
fn train_flags(task: &str) -> Vec<String> {
    let command = Cli::command();
    let task = command.find_subcommand("train").and_then(|train| train.find_subcommand(task));
    let arguments = task.into_iter().flat_map(clap::Command::get_arguments);
    let names = arguments.flat_map(|argument| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        argument.get_long().into_iter().chain(aliases).map(str::to_owned).collect::<Vec<_>>()
    });
    names.collect()
}

/// Parses a job as arguments of `train`.
///
/// # Errors
/// If `train` does not accept them.
pub fn train_args(sweep: &Sweep, job: &Job) -> anyhow::Result<super::train::Args> {
    let arguments = ["tiny-cats"].into_iter().chain(job.arguments.iter().map(String::as_str));
    let arguments: Vec<OsString> = arguments.map(OsString::from).collect();
    match Cli::try_parse_from(arguments) {
        Ok(Cli { command: Command::Train(args) }) => {
            // The error does not repeat the settings, since they may contain a password.
            args.validate().with_context(|| sweep.path.display().to_string())?;
            Ok(args)
        }
        Ok(_) => bail!("{}: expected jobs of the command train", sweep.path.display()),
        Err(error) => {
            let message = error.to_string();
            let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
            bail!(
                "{}: {}: {}",
                sweep.path.display(),
                settings_line(job.settings.iter()),
                clean(line, MAX_TEXT)
            )
        }
    }
}

/// Formats the settings that differ between jobs on one line.
fn settings_line<'a>(items: impl Iterator<Item = (&'a String, &'a Setting)>) -> String {
    let pairs = items.map(|(key, value)| format!("{key}={}", clean(&value.to_string(), 60)));
    pairs.collect::<Vec<_>>().join(" ")
}

fn job_table(sweep: &Sweep, jobs: &[Job]) -> String {
    let headings: Vec<&str> = sweep.space.keys().map(String::as_str).chain(["job"]).collect();
    let row = |job: &Job| {
        let values = job.settings.values().map(|value| clean(&value.to_string(), 60));
        values.chain([job.name.clone()]).collect()
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    let total = pluralize(jobs.len(), "job");
    format!("{}\n{total}: tiny-cats {}\n", table(&headings, &rows).trim_end(), shared_arguments(jobs))
}

/// Formats the arguments that all jobs share.
fn shared_arguments(jobs: &[Job]) -> String {
    let Some(first) = jobs.first() else { return String::new() };
    let common =
        first.arguments.iter().filter(|argument| jobs.iter().all(|job| job.arguments.contains(argument)));
    clean(&common.map(String::as_str).collect::<Vec<_>>().join(" "), 5 * MAX_TEXT)
}

/// Formats the result of a job on one line.
fn outcome_line(sweep: &Sweep, outcome: &Outcome) -> String {
    let mut line = format!("{}  {}", settings_line(outcome.settings.iter()), outcome.status.name());
    match (&outcome.error, outcome.metric) {
        (Some(error), _) => line += &format!(": {}", clean(error, MAX_TEXT)),
        (None, Some(point)) => {
            line += &format!("  {} {} at {}", sweep.metric, format_number(point.value), point.step)
        }
        (None, None) => line += &format!("  no {}", sweep.metric),
    }
    line + &format!("  {:.0} s", outcome.seconds)
}

/// Formats a table of the results, the best first.
fn ranking(sweep: &Sweep, result: &SweepResult) -> String {
    let keys = sweep.space.keys().map(String::as_str);
    let headings: Vec<&str> = keys.chain([sweep.metric.as_str(), "step", "status", "job", "error"]).collect();
    let row = |outcome: &&Outcome| {
        let point = |text: fn(&crate::train::metrics::Point) -> String| {
            outcome.metric.as_ref().map_or_else(String::new, text)
        };
        let values = outcome.settings.values().map(|value| clean(&value.to_string(), 60));
        let columns = [
            point(|p| format_number(p.value)),
            point(|p| p.step.to_string()),
            outcome.status.name().to_owned(),
        ];
        let error = outcome.error.as_ref().map_or_else(String::new, |error| clean(error, MAX_TEXT));
        values.chain(columns).chain([outcome.job.clone(), error]).collect()
    };
    let rows: Vec<Vec<String>> = result.state.ranked(sweep.goal).iter().map(row).collect();
    let errors = rows.iter().any(|row| row.last().is_some_and(|error| !error.is_empty()));
    let headings = if errors { &headings[..] } else { &headings[..headings.len() - 1] };
    format!("{}{}\n", table(headings, &rows), result.folder.display())
}

fn report_json(sweep: &Sweep, result: &SweepResult) -> serde_json::Value {
    json!({
        "sweep": sweep,
        "folder": result.folder.to_string_lossy(),
        "stopped": result.stopped,
        "jobs": result.state.ranked(sweep.goal),
    })
}
