//! `tiny-cats eval`: says how good a trained model is.

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

/// What `tiny-cats eval` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Says how often a classifier is right, and how far its probabilities can be believed
    Classifier(classifier::Args),
    /// Says how near the pictures that a generator draws are to real ones, and whether it repeats those
    Dit(dit::Args),
    /// Says whether a generator is good enough to be released; the exit status is 0 only if it is
    Gate(gate::Args),
}

/// Runs it.
///
/// # Errors
/// When an argument makes no sense, a file cannot be used, or there are too few pictures to say anything.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Classifier(args) => classifier::run(args)?,
        Command::Dit(args) => dit::run(args)?,
        Command::Gate(args) => return gate::run(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Which pictures of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SplitArg {
    /// Those that measure a chosen model.
    Test,
    /// Those that choose among states.
    #[value(alias = "val")]
    Validation,
    /// Those that it learned from.
    Train,
    /// All of them.
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

    /// This part of a data set, after it was said what of all was left out.
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

/// A model, and which file it is.
struct OpenedModel {
    model: Model,
    /// Where it is; none of the one that comes with this program.
    path: Option<PathBuf>,
    /// The file's name, without the folders that it lies in.
    file: String,
    sha256: String,
}

impl OpenedModel {
    /// The model in `path`, of any format that this program writes; without one, that in `bytes`.
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

/// For each class of `from` the label in `to` of the class of that name; case, spaces, `_` and `-` do not matter.
fn labels(from: &[String], to: &[String]) -> Vec<Option<usize>> {
    let plain = |name: &String| name.to_lowercase().replace([' ', '-'], "_");
    from.iter().map(|name| to.iter().position(|other| plain(other) == plain(name))).collect()
}

fn skipped_json(skipped: &[(PathBuf, String)]) -> Value {
    skipped.iter().map(|(path, why)| json!({"path": path.to_string_lossy(), "reason": why})).collect()
}

/// On a terminal, a bar of `what` is done.
fn bar(len: u64, what: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden());
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")?);
    }
    bar.set_message(what.to_owned());
    Ok(bar)
}
