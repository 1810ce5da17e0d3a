//! `tiny-cats train`: trains a model.

mod classifier;
mod dit;
pub mod report;

use std::{
    fs::OpenOptions,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    data::Dataset,
    train::{Event, Plan, Step, Task, train},
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

/// Runs it.
///
/// # Errors
/// When a setting makes no sense, the data cannot be read, or the run stops.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Dit(args) => dit::run(&args),
        Command::Classifier(args) => classifier::run(&args),
    }
}

/// Refuses numbers that are negative or not finite.
fn not_negative(flags: &[(&str, f64)]) -> anyhow::Result<()> {
    match flags.iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
        Some((flag, value)) => bail!("{flag}: expected 0 or a positive number, found {value}"),
        None => Ok(()),
    }
}

/// Refuses a decay of a moving average that is none.
fn decay(flag: &str, value: f64) -> anyhow::Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    bail!("{flag}: expected 0 or more and less than 1, found {value}")
}

/// Pictures in a micro-batch: at most as many as there are.
fn batch(asked: usize, pictures: usize) -> usize {
    if asked > pictures {
        eprintln!("--batch-size {asked}: there are only {pictures} pictures, so that is the batch");
    }
    asked.min(pictures)
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

/// Trains with a progress bar on a terminal, with a line every --log-interval steps elsewhere; what is printed is appended to `log` too.
/// Returns the released files.
fn drive(task: &mut dyn Task, plan: &Plan, log: Option<&Path>) -> anyhow::Result<[PathBuf; 2]> {
    let open = |path: &Path| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.with_context(|| format!("--log-file {}", path.display()))
    };
    let mut log = log.map(open).transpose()?;
    let bar = ProgressBar::new(plan.schedule.steps).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left",
    )?);
    let terminal = std::io::stderr().is_terminal();
    if terminal {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    keep_freed_memory();
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
    let published = train(task, plan, &mut |event| match event {
        Event::Begin { step, steps, parameters, .. } => {
            say(format!("{parameters} parameters, steps {step} to {steps}"), true);
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
    let [torch, safetensors] = published?;
    println!("finished: {} and {}", torch.display(), safetensors.display());
    Ok([torch, safetensors])
}
