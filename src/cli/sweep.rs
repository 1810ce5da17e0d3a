//! `tiny-cats sweep`: trains with many settings.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{CommandFactory, FromArgMatches};
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

/// The maximum number of printed characters of a text from a file.
const MAX_TEXT: usize = 200;
/// The exit code of an invalid file, the same as that of wrong usage.
const EXIT_USAGE: u8 = 2;

const FILE_FORMAT: &str = r#"The file:
  task = "dit"                 # or "classifier"
  data = "data/cats"           # unset, what `train` takes
  config = "smoke"             # a profile or file for `train --config`; may be left out
  method = "grid"              # every combination; or "random", which needs `jobs` and takes `seed`
  metric = "validation_loss"   # what decides; a classifier's default is "validation_accuracy"
  goal = "min"                 # or "max"; unset, by the metric's name

  [fixed]                      # flags of `train` without their dashes; `true` for one that takes no value
  steps = 200

  [sweep]
  lr = [1e-4, 3e-4, 1e-3]
  weight-decay = { low = 1e-4, high = 1e-1, scale = "log" }   # "random" only

Everything is written into RUNS/sweeps/NAME, NAME being the file's: sweep.json, and a folder for each job with its runs and output.log.
Called again, it passes over what is finished and goes on with the rest. `tiny-cats runs --runs-dir RUNS/sweeps/NAME/JOB` shows a job's run.

Exit codes: 0 when at least one job has finished, 1 when none has, 2 for a wrong usage or an invalid file, 75 when it was stopped and can go on."#;

/// The arguments of `tiny-cats sweep`.
#[derive(clap::Args, Debug)]
#[command(after_long_help = FILE_FORMAT)]
pub struct Args {
    /// TOML file that states what to train and which settings to try; --help describes it
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Folder of the runs
    #[arg(long, default_value = RUNS, value_name = "DIR")]
    runs_dir: PathBuf,
    /// Print the jobs, and run none
    #[arg(long)]
    dry_run: bool,
    /// Collect the results from the jobs' folders, and run none: for jobs that ran elsewhere
    #[arg(long, conflicts_with_all = ["dry_run", "retry_failed"])]
    collect: bool,
    /// Run failed jobs again
    #[arg(long)]
    retry_failed: bool,
    /// Print the results as JSON; a line for each job goes to standard error
    #[arg(long)]
    json: bool,
    /// Run this program for the jobs instead of this one
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
        print(&if args.json { pretty_json(&json!(jobs))? } else { plan(&sweep, &jobs) })?;
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
    let all = jobs.len();
    let end = runner.run(&sweep, &jobs, &mut |progress| match progress {
        SweepEvent::Begins(i, job) => {
            let log = folder.join(&job.name).join(LOG);
            bar.set_message(format!(
                "[{}/{all}] {}  ({})",
                i + 1,
                settings(job.settings.iter()),
                log.display()
            ));
        }
        SweepEvent::Waits(i, job) => {
            let text = format!(
                "[{}/{all}] {}: is still trained by another process, which is waited for",
                i + 1,
                job.name
            );
            bar.suspend(|| eprintln!("{text}"));
        }
        SweepEvent::Ended(i, outcome) => {
            let line = format!("[{}/{all}] {}", i + 1, outcome_line(&sweep, outcome));
            // A closed pipe is no reason to stop.
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
    print_outcome(&sweep, &end, args.json)
}

/// Loads a sweep's file and its jobs, and checks that `train` accepts all of them.
///
/// # Errors
/// If the file or a job is invalid.
pub fn load(file: &Path) -> anyhow::Result<(Sweep, Vec<Job>)> {
    let sweep = Sweep::load(file)?;
    sweep.check_keys(&flags(sweep.task.name()))?;
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
pub fn print_outcome(sweep: &Sweep, end: &SweepResult, json: bool) -> anyhow::Result<ExitCode> {
    let all = end.state.jobs.len();
    print(&if json { pretty_json(&report(sweep, end))? } else { ranking(sweep, end) })?;
    if end.stopped {
        eprintln!("stopped; the same command goes on");
        return Ok(ExitCode::from(EXIT_RESUMABLE));
    }
    if end.state.count(JobStatus::Finished) == 0 {
        bail!("{}: none of {} has finished", end.folder.display(), pluralize(all, "job"));
    }
    let failed = end.state.count(JobStatus::Failed);
    if failed > 0 {
        eprintln!("{failed} of {} failed; --retry-failed tries again", pluralize(all, "job"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The flags of `train TASK`, without their dashes.
fn flags(task: &str) -> Vec<String> {
    let command = Cli::command();
    let task = command.find_subcommand("train").and_then(|train| train.find_subcommand(task));
    let arguments = task.into_iter().flat_map(clap::Command::get_arguments);
    let names = arguments.flat_map(|argument| {
        let others = argument.get_all_aliases().unwrap_or_default();
        argument.get_long().into_iter().chain(others).map(str::to_owned).collect::<Vec<_>>()
    });
    names.collect()
}

/// Parses a job as arguments of `train`.
///
/// # Errors
/// If `train` would refuse them.
pub fn train_args(sweep: &Sweep, job: &Job) -> anyhow::Result<super::train::Args> {
    let arguments = ["tiny-cats"].into_iter().chain(job.arguments.iter().map(String::as_str));
    let arguments: Vec<OsString> = arguments.map(OsString::from).collect();
    let command = super::train::config::with_defaults(Cli::command(), &arguments)
        .with_context(|| sweep.path.display().to_string())?;
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(Cli { command: Command::Train(args) }) => {
            // The error does not repeat the job's settings, since one of them may be a password.
            args.validate().with_context(|| sweep.path.display().to_string())?;
            Ok(args)
        }
        Ok(_) => bail!("{}: expected jobs that train", sweep.path.display()),
        Err(error) => {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
            bail!("{}: {}: {}", sweep.path.display(), settings(job.settings.iter()), clean(line, MAX_TEXT))
        }
    }
}

/// The settings that differ between jobs, on one line.
fn settings<'a>(settings: impl Iterator<Item = (&'a String, &'a Setting)>) -> String {
    let each = settings.map(|(key, value)| format!("{key}={}", clean(&value.to_string(), 60)));
    each.collect::<Vec<_>>().join(" ")
}

fn plan(sweep: &Sweep, jobs: &[Job]) -> String {
    let head: Vec<&str> = sweep.space.keys().map(String::as_str).chain(["job"]).collect();
    let row = |job: &Job| {
        let values = job.settings.values().map(|value| clean(&value.to_string(), 60));
        values.chain([job.name.clone()]).collect()
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    let all = pluralize(jobs.len(), "job");
    format!("{}\n{all}: tiny-cats {}\n", table(&head, &rows).trim_end(), shared(jobs))
}

/// The arguments that all jobs share.
fn shared(jobs: &[Job]) -> String {
    let Some(first) = jobs.first() else { return String::new() };
    let shared =
        first.arguments.iter().filter(|argument| jobs.iter().all(|job| job.arguments.contains(argument)));
    clean(&shared.map(String::as_str).collect::<Vec<_>>().join(" "), 5 * MAX_TEXT)
}

/// The result of a job, on one line.
fn outcome_line(sweep: &Sweep, outcome: &Outcome) -> String {
    let mut line = format!("{}  {}", settings(outcome.settings.iter()), outcome.status.name());
    match (&outcome.error, outcome.metric) {
        (Some(error), _) => line += &format!(": {}", clean(error, MAX_TEXT)),
        (None, Some(point)) => {
            line += &format!("  {} {} at {}", sweep.metric, format_number(point.value), point.step)
        }
        (None, None) => line += &format!("  no {}", sweep.metric),
    }
    line + &format!("  {:.0} s", outcome.seconds)
}

/// A table of the results, the best first.
fn ranking(sweep: &Sweep, end: &SweepResult) -> String {
    let keys = sweep.space.keys().map(String::as_str);
    let head: Vec<&str> = keys.chain([sweep.metric.as_str(), "step", "status", "job", "error"]).collect();
    let row = |outcome: &&Outcome| {
        let point = |text: fn(&crate::train::metrics::Point) -> String| {
            outcome.metric.as_ref().map_or_else(String::new, text)
        };
        let values = outcome.settings.values().map(|value| clean(&value.to_string(), 60));
        let more = [
            point(|p| format_number(p.value)),
            point(|p| p.step.to_string()),
            outcome.status.name().to_owned(),
        ];
        let error = outcome.error.as_ref().map_or_else(String::new, |error| clean(error, MAX_TEXT));
        values.chain(more).chain([outcome.job.clone(), error]).collect()
    };
    let rows: Vec<Vec<String>> = end.state.ranked(sweep.goal).iter().map(row).collect();
    let errors = rows.iter().any(|row| row.last().is_some_and(|error| !error.is_empty()));
    let head = if errors { &head[..] } else { &head[..head.len() - 1] };
    format!("{}{}\n", table(head, &rows), end.folder.display())
}

fn report(sweep: &Sweep, end: &SweepResult) -> serde_json::Value {
    json!({
        "sweep": sweep,
        "folder": end.folder.to_string_lossy(),
        "stopped": end.stopped,
        "jobs": end.state.ranked(sweep.goal),
    })
}
