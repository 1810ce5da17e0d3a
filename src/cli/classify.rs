//! `tiny-cats classify`: classifies images.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::bail;
use serde_json::{Value, json};
use tiny_cats_export::{Candidate, Classifier, Error, LoadOptions, Model, Prediction};
use tiny_cats_models::pretrained;
use walkdir::WalkDir;

use super::common::{ModelContext, Runtime, open_model};
use crate::data::{can_be_image, printable};

/// Maximum number of files, so that the list of paths fits into memory.
const MAX_FILES: usize = 1 << 20;

/// The arguments of `tiny-cats classify`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Images (PNG, JPEG or WebP) and folders. All files in folders are used, except hidden ones, those of operating systems (Thumbs.db)
    /// and those of this program (index.json); links to folders in them are not followed
    #[arg(required = true, value_name = "IMAGE|DIR")]
    paths: Vec<PathBuf>,
    /// The model: .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Number of classes to print for each image, most probable first [default: 3]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Print a JSON array with the path and the most probable classes, or an error, of each file
    #[arg(long)]
    json: bool,
    /// Runtime of the model [default: native; tract for the file of another program]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; affects memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// A path that could not be classified, and the reason.
type Skipped = (PathBuf, String);

/// Classifies the images. Reports a file that cannot be classified, and continues with the others.
///
/// # Errors
/// If an argument is invalid, the model cannot be used, or any file could not be classified.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let options = LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch };
    let model = match &args.model {
        Some(path) => open_model(path)?,
        None => Model::from_bytes(pretrained::CLASSIFIER.to_vec(), "the pretrained ResNet-18")?,
    };
    let mut classifier = Classifier::from_model(&model, &options).model_context(args.model.as_deref())?;
    let classes = classifier.meta().classes.len();
    let top_k = args.top_k.unwrap_or(3.min(classes));
    if !(1..=classes).contains(&top_k) {
        bail!("--top-k: expected 1 to {classes}, the number of classes, found {top_k}");
    }
    let (files, skipped) = find(&args.paths)?;
    let total = files.len() + skipped.len();
    let mut report = Report { top_k, json: args.json.then(Vec::new), width: 0, failed: 0 };
    report.width = files.iter().map(|path| printable_path(path).chars().count()).max().unwrap_or(0);
    for (path, reason) in skipped {
        report.add_failure(&path, &reason);
    }
    for part in files.chunks(args.batch) {
        for (path, result) in
            part.iter().zip(classifier.classify_files(part).model_context(args.model.as_deref())?)
        {
            match result {
                Ok(prediction) => report.add_prediction(path, &prediction)?,
                Err(Error::Image { reason, .. }) => report.add_failure(path, &reason),
                Err(error) => return Err(error.into()),
            }
        }
    }
    if let Some(items) = &report.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(items)?)?;
    }
    match report.failed {
        0 => Ok(()),
        failed => bail!("{failed} of {total} could not be classified"),
    }
}

/// Collects or prints the results.
struct Report {
    top_k: usize,
    /// The items of the JSON array, if one is printed.
    json: Option<Vec<Value>>,
    /// Width of the column of paths, in characters.
    width: usize,
    failed: usize,
}

impl Report {
    fn add_prediction(&mut self, path: &Path, prediction: &Prediction) -> std::io::Result<()> {
        let top = prediction.top(self.top_k);
        if let Some(items) = &mut self.json {
            let top: Vec<Value> =
                top.iter().map(|c| json!({"class": c.class, "probability": c.probability})).collect();
            items.push(json!({"path": path.to_string_lossy(), "top": top}));
            return Ok(());
        }
        let format_candidate =
            |c: &Candidate| format!("{} {:.1} %", c.class.replace('_', " "), 100.0 * c.probability);
        let top = top.iter().map(format_candidate).collect::<Vec<_>>().join(", ");
        writeln!(std::io::stdout(), "{:width$}  {top}", printable_path(path), width = self.width)
    }

    fn add_failure(&mut self, path: &Path, reason: &str) {
        self.failed += 1;
        eprintln!("skipped {}: {reason}", printable_path(path));
        if let Some(items) = &mut self.json {
            items.push(json!({"path": path.to_string_lossy(), "error": reason}));
        }
    }
}

/// Formats a path without control characters.
fn printable_path(path: &Path) -> String {
    printable(path).display().to_string()
}

/// Finds the files among `paths`, and in folders all files that may be images, sorted by name. Also returns paths that cannot be read.
fn find(paths: &[PathBuf]) -> anyhow::Result<(Vec<PathBuf>, Vec<Skipped>)> {
    let (mut files, mut skipped) = (Vec::new(), Vec::new());
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len() + skipped.len();
        let entries = WalkDir::new(path).sort_by_file_name().into_iter();
        for entry in entries.filter_entry(|entry| entry.depth() == 0 || can_be_image(entry.file_name())) {
            match entry {
                Ok(entry) if !entry.path().is_dir() => files.push(entry.into_path()),
                Ok(_) => {}
                Err(error) => {
                    let reason = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                    skipped
                        .push((error.path().unwrap_or(path).to_owned(), format!("not readable: {reason}")));
                }
            }
            if files.len() > MAX_FILES {
                bail!("{}: expected at most {MAX_FILES} files", path.display());
            }
        }
        if files.len() + skipped.len() == before {
            skipped.push((path.clone(), "no files found in this folder".to_owned()));
        }
    }
    Ok((files, skipped))
}
