//! `tiny-cats eval`: evaluates a trained model.

mod classifier;
mod dit;
mod gate;
mod generated;
mod image_features;

use std::{
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiny_cats_export::Model;

use crate::{
    cli::common::{open_model, warn_duplicates, warn_skipped},
    data::{Dataset, Split, hex},
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
    fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Train => "train",
            Self::All => "all",
        }
    }

    /// Opens this part of a data set, and prints the skipped images of the whole data set.
    fn open(self, path: &Path) -> anyhow::Result<Dataset> {
        let data = Dataset::open(path)?;
        warn_skipped(&data.skipped);
        warn_duplicates(&data);
        let part = match self {
            Self::Test => data.part(Split::Test),
            Self::Validation => data.part(Split::Validation),
            Self::Train => data.part(Split::Train),
            Self::All => data,
        };
        if part.files.is_empty() {
            bail!("{}: no {} images found; pass --split all to use all images", path.display(), self.name());
        }
        Ok(part)
    }
}

/// A model and its file.
struct OpenedModel {
    model: Model,
    /// The path; `None` for the bundled model.
    path: Option<PathBuf>,
    /// The name of the file, without its folders.
    file: String,
    /// The SHA-256 of the file, in hexadecimal.
    sha256: String,
}

impl OpenedModel {
    /// Opens the model in `path`, of any supported format; without a path, the bundled one in `bytes`.
    fn new(path: Option<&Path>, (bytes, name): (&[u8], &str)) -> anyhow::Result<Self> {
        let Some(path) = path else {
            let model = Model::from_bytes(bytes.to_vec(), name)?;
            return Ok(Self {
                model,
                path: None,
                file: name.to_owned(),
                sha256: hex(&Sha256::digest(bytes)),
            });
        };
        let context = || path.display().to_string();
        let model = open_model(path)?;
        Ok(Self {
            model,
            path: Some(path.to_owned()),
            file: file_name(path),
            sha256: sha256(path).with_context(context)?,
        })
    }

    /// Returns the name and digest of the file as JSON.
    fn provenance(&self) -> Value {
        json!({"file": self.file, "sha256": self.sha256})
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// For each class in `from`, the label of the class with that name in `to`. Case, spaces, `_` and `-` are ignored.
fn labels(from: &[String], to: &[String]) -> Vec<Option<usize>> {
    let normalized = |name: &String| name.to_lowercase().replace([' ', '-'], "_");
    from.iter()
        .map(|name| to.iter().position(|candidate| normalized(candidate) == normalized(name)))
        .collect()
}

fn skipped_json(skipped: &[(PathBuf, String)]) -> Value {
    skipped.iter().map(|(path, reason)| json!({"path": path.to_string_lossy(), "reason": reason})).collect()
}

/// A progress bar with the label `label`, shown only on a terminal.
fn progress_bar(len: u64, label: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden());
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")?);
    }
    bar.set_message(label.to_owned());
    Ok(bar)
}
