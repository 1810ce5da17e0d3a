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
    /// Measures the accuracy of a classifier, and the calibration of its probabilities
    Classifier(classifier::Args),
    /// Measures how close a generator's images are to real ones, and looks for copies of training images
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

/// The images of a data set to use.
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

    /// Opens this part of a data set, and prints which of all images were skipped.
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
            bail!("{}: there are no {} pictures; --split all takes all", path.display(), self.name());
        }
        Ok(part)
    }
}

/// A model, and the file that it comes from.
struct OpenedModel {
    model: Model,
    /// The path; `None` for the model that comes with this program.
    path: Option<PathBuf>,
    /// The file's name, without its folders.
    file: String,
    sha256: String,
}

impl OpenedModel {
    /// Opens the model in `path`, of any format that this program writes; without a path, the one in `bytes`.
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
        let named = || path.display().to_string();
        let model = open_model(path)?;
        Ok(Self {
            model,
            path: Some(path.to_owned()),
            file: file_name(path),
            sha256: sha256(path).with_context(named)?,
        })
    }

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

/// For each class of `from`, the label in `to` of the class of that name; case, spaces, `_` and `-` are ignored.
fn labels(from: &[String], to: &[String]) -> Vec<Option<usize>> {
    let plain = |name: &String| name.to_lowercase().replace([' ', '-'], "_");
    from.iter().map(|name| to.iter().position(|other| plain(other) == plain(name))).collect()
}

fn skipped_json(skipped: &[(PathBuf, String)]) -> Value {
    skipped.iter().map(|(path, why)| json!({"path": path.to_string_lossy(), "reason": why})).collect()
}

/// A progress bar for `what`, shown on a terminal only.
fn bar(len: u64, what: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden());
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")?);
    }
    bar.set_message(what.to_owned());
    Ok(bar)
}
