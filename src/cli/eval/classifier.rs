//! `tiny-cats eval classifier`: measures the accuracy of a classifier.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::json;
use tiny_cats_export::{Classifier, Error, LoadOptions, write_png};
use tiny_cats_models::pretrained;

use super::{OpenedModel, SplitArg, labels, progress_bar, skipped_json};
use crate::{
    cli::common::{ModelContext, Runtime, warn_skipped, write_json},
    cli::writable::check_writable,
    data::evenly_spaced,
    evaluate::ClassificationResults,
};

/// The arguments of `tiny-cats eval classifier`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of photographs
    data: PathBuf,
    /// The model, .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Photographs to use
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    split: SplitArg,
    /// Use only N photographs, spread over the classes
    #[arg(long, value_name = "N")]
    limit_files: Option<usize>,
    /// Write all results to this JSON file, with the digests of the model and the data
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Write a plot of the confusion matrix to this file
    #[arg(long, value_name = "FILE.png")]
    confusion: Option<PathBuf>,
    /// Runtime of the model [default: native; tract for the file of another program]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Photographs per batch; affects memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Evaluates the classifier. Reports a photograph that cannot be used, and continues with the others.
///
/// # Errors
/// If an argument is invalid, the model or the data cannot be used, or the model lacks a class of the data.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        check_writable("--json", path, "json")?;
    }
    if let Some(path) = &args.confusion {
        check_writable("--confusion", path, "png")?;
    }
    if args.limit_files == Some(0) {
        bail!("--limit-files: expected at least 1, found 0");
    }
    let opened = OpenedModel::new(args.model.as_deref(), (pretrained::CLASSIFIER, "resnet18-breeds.onnx"))?;
    let options = LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch };
    let mut classifier =
        Classifier::from_model(&opened.model, &options).model_context(opened.path.as_deref())?;
    let data = args.split.open(&args.data)?;
    let model_labels = labels(&data.classes, &classifier.meta().classes);
    let files = evenly_spaced(&data.files, args.limit_files);
    if let Some(file) = files.iter().find(|file| model_labels[file.label as usize].is_none()) {
        bail!(
            "{}: the model has no class {:?}; its classes are {}",
            args.data.display(),
            data.classes[file.label as usize],
            classifier.meta().classes.join(", ")
        );
    }
    let mut result = ClassificationResults::new(&classifier.meta().classes);
    let mut skipped = Vec::new();
    let progress = progress_bar(files.len() as u64, "photographs")?;
    for chunk in files.chunks(args.batch) {
        let paths: Vec<PathBuf> = chunk.iter().map(|file| data.root.join(&file.path)).collect();
        for (file, prediction) in
            chunk.iter().zip(classifier.classify_files(&paths).model_context(opened.path.as_deref())?)
        {
            match (prediction, model_labels[file.label as usize]) {
                (Ok(prediction), Some(label)) => result.add(label, &prediction),
                (Err(Error::Image { reason, .. }), _) => skipped.push((file.path.clone(), reason)),
                (Err(error), _) => return Err(error.into()),
                (Ok(_), None) => {}
            }
        }
        progress.inc(chunk.len() as u64);
    }
    progress.finish_and_clear();
    warn_skipped(&skipped);
    if result.total() == 0 {
        bail!("{}: none of {} photographs could be decoded", args.data.display(), files.len());
    }
    println!(
        "{} photographs ({}), {} on {}\n",
        result.total(),
        args.split.name(),
        opened.file,
        classifier.runtime()
    );
    println!("{result}");
    if let Some(path) = &args.confusion {
        write_png(path, &result.confusion.to_image()).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if let Some(path) = &args.json {
        let report = json!({
            "evaluation": "classifier",
            "version": env!("CARGO_PKG_VERSION"),
            "model": opened.provenance(),
            "data": {
                "fingerprint": data.fingerprint,
                "split": args.split.name(),
                "pictures": files.len(),
                "limit_files": args.limit_files,
                "skipped": skipped_json(&skipped),
            },
            "runtime": classifier.runtime().name(),
            "preprocessing": classifier.meta().classifier().map(|task| &task.preprocessing),
            "image_size": classifier.meta().image_size,
            "results": result.report(),
        });
        write_json(path, &report)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
