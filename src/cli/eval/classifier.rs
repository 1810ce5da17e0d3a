//! `tiny-cats eval classifier`: measures the accuracy of a classifier.

use std::path::PathBuf;

use anyhow::Context;
use tiny_cats_export::{LoadOptions, write_png};

use super::{Printer, SplitArg, with_flags, write_report};
use crate::{
    cli::{common::Runtime, writable::check_writable},
    evaluate::{ClassifierOptions, evaluate_classifier},
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
    let options = ClassifierOptions {
        data: args.data.clone(),
        model: args.model.clone(),
        split: args.split.to_split(),
        limit_files: args.limit_files,
        load: LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch },
    };
    let mut printer = Printer::default();
    let report = evaluate_classifier(&options, &mut |event| printer.on_event(&event)).map_err(with_flags)?;
    println!("{report}");
    if let Some(path) = &args.confusion {
        write_png(path, &report.results.confusion.to_image()).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    write_report(args.json.as_deref(), &report)
}
