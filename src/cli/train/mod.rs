//! `tiny-cats train`: trains a model.

mod classifier;
mod common;
pub mod config;
mod dit;
mod stop;
mod supervise;

use std::{
    fs::OpenOptions,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_export::write_atomically;

use self::{
    common::Common,
    config::Resolved,
    supervise::{TRANSIENT, supervise},
};
use crate::{
    data::Dataset,
    train::{self, Event, Plan, Step, Task},
};

/// What `tiny-cats train` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Trains TinyDiT, the generator, on a folder of pictures in class folders.
    Dit(Box<dit::Args>),
    /// Trains a ResNet, the classifier, on a folder of photographs in class folders.
    Classifier(Box<classifier::Args>),
}

/// What a training process is to do.
pub struct Job {
    /// The run's folder.
    folder: PathBuf,
    /// The training state that the run begins from.
    from: Option<PathBuf>,
    /// All flags, as TOML.
    configuration: String,
}

/// Runs it: a small parent process that sees to it that the run gets on, and one that trains. `matches` are those of this command.
///
/// # Errors
/// When a setting makes no sense, the data cannot be read, or the run stops.
pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (task, common) = match &args.command {
        Command::Dit(args) => ("dit", &args.common),
        Command::Classifier(args) => ("classifier", &args.common),
    };
    let matches = matches.subcommand_matches(task).context("the task's arguments")?;
    let configuration = Resolved::new(task, matches);
    let Some(folder) = &common.worker else { return supervise(common, task, &configuration) };
    let from = Path::new(&common.resume);
    let job = Job {
        folder: folder.clone(),
        from: Some(from.to_owned()).filter(|from| from.is_file()),
        configuration: configuration.to_toml(),
    };
    let ended = match &args.command {
        Command::Dit(args) => dit::run(args, job),
        Command::Classifier(args) => classifier::run(args, job),
    };
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.downcast_ref().is_some_and(train::Error::is_transient) => {
            eprintln!("error: {}", super::one_line(&error));
            Ok(ExitCode::from(TRANSIENT))
        }
        Err(error) => Err(error),
    }
}

/// Opens the data, and says what it goes by and what was left out.
fn open(path: &Path) -> anyhow::Result<Dataset> {
    let data = Dataset::open(path)?;
    if let Some(index) = &data.index {
        println!("{}: as indexed", index.display());
    }
    tell_skipped(&data.skipped);
    Ok(data)
}

/// Says which pictures were left out.
fn tell_skipped(skipped: &[(PathBuf, String)]) {
    for (path, why) in skipped {
        eprintln!("skipped {}: {why}", path.display());
    }
}

/// Tells glibc to keep freed memory for the next step instead of returning it to the system, which would clear every page anew: a
/// step of a small network takes a quarter less time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt changes a limit of the allocator and touches no memory of ours.
        unsafe { libc::mallopt(option, i32::MAX) };
    }
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TOP_PAD, 256 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Trains with a progress bar on a terminal, with a line every --log-interval steps elsewhere, and copies the released files to where
/// `place` says, by their extension. Returns where the `.safetensors` is.
fn drive(
    task: &mut dyn Task,
    plan: &Plan,
    common: &Common,
    place: impl Fn(&str) -> PathBuf,
) -> anyhow::Result<PathBuf> {
    let open = |path: &PathBuf| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.with_context(|| format!("--log-file {}", path.display()))
    };
    let mut log = common.log_file.as_ref().map(open).transpose()?;
    let bar = ProgressBar::new(plan.schedule.steps).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left",
    )?);
    let terminal = std::io::stderr().is_terminal();
    if terminal {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    keep_freed_memory();
    let deadline = common.deadline.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    stop::watch(&plan.control, deadline)?;
    let mut say = |line: String, show: bool| {
        if let Some(file) = &mut log {
            // A full disk will stop the run where it matters.
            let _ = writeln!(file, "{line}");
        }
        if show {
            bar.suspend(|| println!("{line}"));
        }
    };
    let mut average = None;
    let published = train::train(task, plan, &mut |event| match event {
        Event::Begin { step, steps, parameters, folder, .. } => {
            say(format!("{}: {parameters} parameters, steps {step} to {steps}", folder.display()), true);
            bar.set_position(step);
            bar.reset_eta();
        }
        Event::Step(&Step { step, loss, rate, norm, items, seconds, .. }) => {
            let speed = items as f64 / seconds;
            let smooth = average.map_or(loss, |a| 0.98 * a + 0.02 * loss);
            average = Some(smooth);
            bar.set_position(step);
            bar.set_message(format!("loss {smooth:.4}  {speed:.1} pictures/s"));
            if step.is_multiple_of(plan.log_interval.max(1)) || step == plan.schedule.steps {
                let line = format!(
                    "step {step}  loss {smooth:.4}  lr {rate:.2e}  gradient {norm:.3}  {speed:.1} pictures/s"
                );
                say(line, !terminal);
            }
        }
        Event::Evaluated { step, scores, best } => {
            let best = if best { ", the best so far" } else { "" };
            let scores: Vec<String> = scores.iter().map(|s| format!("{} {:.4}", s.name, s.value)).collect();
            say(format!("step {step}  {}{best}", scores.join("  ")), true);
        }
        Event::Sampled { path, .. } => say(format!("wrote {}", path.display()), true),
        Event::Note(text) => bar.suspend(|| eprintln!("{text}")),
        Event::Wrote(path) => say(format!("wrote {}", path.display()), true),
    });
    bar.finish_and_clear();
    let released = published?;
    let places = ["pt", "safetensors"].map(place);
    for (from, to) in released.iter().zip(&places) {
        copy(from, to).with_context(|| to.display().to_string())?;
    }
    let [torch, safetensors] = places;
    println!("finished: {} and {}", torch.display(), safetensors.display());
    Ok(safetensors)
}

/// Copies a file so that its place has the old one or the whole new one.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut source = std::fs::File::open(from)?;
    Ok(write_atomically(to, |w| std::io::copy(&mut source, w).map(|_| ()))?)
}
