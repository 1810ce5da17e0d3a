//! `tiny-cats eval`: evaluates a trained model.

mod classifier;
mod dit;
mod gate;

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tiny_cats_export::{Request, Sampler};

use super::common::{warn_assumed, warn_duplicates, warn_skipped, write_json};
use crate::{
    data::Split,
    evaluate::{Error, Event},
    recipes::parse_interval,
};

/// The arguments of `tiny-cats eval`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Measures the accuracy of a classifier and the calibration of its probabilities
    Classifier(classifier::Args),
    /// Measures the distance of generated images to real ones, and detects copies of training images
    Dit(dit::Args),
    /// Decides whether a generator may be released; the exit code is 0 only if it may
    Gate(gate::Args),
}

/// Runs the subcommand.
///
/// # Errors
/// If an argument is invalid, a file cannot be used, or there are too few images to measure anything.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Classifier(args) => classifier::run(args)?,
        Command::Dit(args) => dit::run(args)?,
        Command::Gate(args) => return gate::run(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// The part of a data set to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SplitArg {
    /// Test images, which measure the selected model.
    Test,
    /// Validation images, which select among training states.
    #[value(alias = "val")]
    Validation,
    /// Training images.
    Train,
    /// All images.
    All,
}

impl SplitArg {
    /// The part of the data set; `None` for all of it.
    fn to_split(self) -> Option<Split> {
        match self {
            Self::Test => Some(Split::Test),
            Self::Validation => Some(Split::Validation),
            Self::Train => Some(Split::Train),
            Self::All => None,
        }
    }
}

/// The settings of the sampler.
#[derive(clap::Args, Debug)]
struct SamplingArgs {
    /// Weight of classifier-free guidance; 1 disables it [default: recommended by the model]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// Interval of times with guidance, from 0 (noise) to 1 (image) [default: recommended by the model]
    #[arg(long, value_name = "FROM,TO", value_parser = parse_interval)]
    cfg_interval: Option<[f64; 2]>,
    /// Steps from noise to image [default: recommended by the model]
    #[arg(long)]
    steps: Option<usize>,
    /// Sampler: heun, euler or midpoint [default: recommended by the model]
    #[arg(long)]
    sampler: Option<Sampler>,
}

impl SamplingArgs {
    /// Creates the request for a generator.
    fn to_request(&self, seed: u64) -> Request {
        Request {
            seed,
            steps: self.steps,
            sampler: self.sampler,
            guidance: self.cfg,
            guidance_interval: self.cfg_interval.map(|times| times.map(|time| time as f32)),
            ..Request::default()
        }
    }
}

/// Prints warnings of an evaluation, and shows its progress on a terminal.
#[derive(Default)]
struct Printer {
    bar: Option<ProgressBar>,
}

impl Printer {
    fn on_event(&mut self, event: &Event) {
        match *event {
            Event::Assumed { path, assumptions } => warn_assumed(path, assumptions),
            Event::Opened(data) => {
                warn_skipped(&data.skipped);
                warn_duplicates(data);
            }
            Event::Skipped(skipped) => warn_skipped(&with_flags_in_reasons(skipped)),
            Event::Progress { subject, done, total } => {
                let bar = match &mut self.bar {
                    Some(bar) if done > 0 => bar,
                    bar => bar.insert(progress_bar(total, subject)),
                };
                bar.set_position(done as u64);
                if done == total {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }
}

/// Creates a progress bar with the label `label`, shown only on a terminal.
fn progress_bar(len: usize, label: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::hidden());
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
    }
    bar.set_message(label);
    bar
}

/// Replaces fields in an error by flags.
fn with_flags(error: Error) -> anyhow::Error {
    match &error {
        Error::Setting { setting, message } => match *setting {
            "samples" | "image_size" | "limit_files" | "count" => {
                anyhow!("--{}: {message}", setting.replace('_', "-"))
            }
            "preprocessing" => anyhow!("--features-resize, --features-mean, --features-std: {message}"),
            _ => error.into(),
        },
        Error::EmptySplit { .. } => anyhow!("{error}; pass --split all to use all images"),
        Error::GeneratedImages { .. } => anyhow!("--images {error}"),
        Error::Images { path, message } => anyhow!("{}: {}", path.display(), with_flags_in(message)),
        _ => error.into(),
    }
}

/// Replaces the field in an advice of the library by its flag.
fn with_flags_in(message: &str) -> String {
    message.replace("; set image_size to resize", "; pass --image-size to resize")
}

fn with_flags_in_reasons(skipped: &[(PathBuf, String)]) -> Vec<(PathBuf, String)> {
    skipped.iter().map(|(path, reason)| (path.clone(), with_flags_in(reason))).collect()
}

/// Writes a report, if a path is given for it, and prints the path.
fn write_report(path: Option<&Path>, report: &impl Serialize) -> anyhow::Result<()> {
    if let Some(path) = path {
        // The fields of a value are sorted by name.
        write_json(path, &serde_json::to_value(report)?)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_errors_become_flags() {
        let setting = |setting| Error::Setting { setting, message: "expected 2".into() };
        let path = || PathBuf::from("a");
        for (error, expected) in [
            (setting("limit_files"), "--limit-files: expected 2"),
            (setting("bootstrap"), "bootstrap: expected 2"),
            (
                Error::EmptySplit { path: path(), split: "test" },
                "a: no test images found; pass --split all to use all images",
            ),
            (Error::GeneratedImages { path: path(), message: "x".into() }, "--images a: x"),
            (
                Error::Images { path: path(), message: "y; set image_size to resize".into() },
                "a: y; pass --image-size to resize",
            ),
        ] {
            assert_eq!(with_flags(error).to_string(), expected);
        }
    }
}
