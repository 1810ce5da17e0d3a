//! `tiny-cats eval gate`: decides whether a generator may be released.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use tiny_cats_export::{GeneratedImage, LoadOptions, contact_sheet, write_png};

use super::{Printer, SamplingArgs, with_flags, write_report};
use crate::{
    cli::{
        common::{Runtime, warn_skipped},
        logging,
        writable::check_writable,
    },
    evaluate::{Event, GateOptions, SHEET_IMAGES, evaluate_gate},
};

/// The arguments of `tiny-cats eval gate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of the training data of the generator; generated images are compared with its validation and test images
    data: PathBuf,
    /// The generator, .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Classifier whose features are compared [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Classifier that predicts the breeds of images [default: that of --classifier]
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Number of images to generate per breed
    #[arg(long, default_value_t = 20, value_name = "N")]
    count: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Random seed; the same seed gives the same images and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write all results to this JSON file, with the digests of the model and the data
    #[arg(short, long, value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Write a labeled grid of the first images of each breed to this file
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Runtime of all networks [default: native]; the generator is verified on all runtimes
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; affects memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Evaluates the criteria. If any fails, prints each failure as a line to standard error, with exit code 1.
///
/// # Errors
/// If an argument is invalid, a file cannot be used, or there are too few images to measure anything.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.output {
        check_writable("--output", path, "json")?;
    }
    if let Some(path) = &args.sheet {
        check_writable("--sheet", path, "png")?;
    }
    let options = GateOptions {
        data: args.data.clone(),
        model: args.model.clone(),
        classifier: args.classifier.clone(),
        judge: args.judge.clone(),
        count: args.count,
        request: args.sampling.to_request(args.seed),
        load: LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch },
    };
    let (mut printer, mut sheet_result) = (Printer::default(), Ok(()));
    let report = evaluate_gate(&options, &mut |event| match (event, &args.sheet) {
        (Event::Opened(data), _) => warn_skipped(&data.skipped),
        // The sheet can be viewed while the criteria are computed.
        (Event::Generated(images), Some(path)) => sheet_result = write_sheet(path, images, args.count),
        _ => printer.on_event(&event),
    });
    sheet_result?;
    let report = report.map_err(with_flags)?;
    println!("{report}");
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    write_report(args.output.as_deref(), &report)?;
    for criterion in report.failures() {
        logging::log_fatal(&criterion.to_string());
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the first images of each breed, of which there are `count`.
fn write_sheet(path: &Path, images: &[GeneratedImage], count: usize) -> anyhow::Result<()> {
    let shown = &images[..images.len() / count * SHEET_IMAGES.min(count)];
    write_png(path, &contact_sheet(shown)).with_context(|| path.display().to_string())?;
    println!("wrote {}", path.display());
    Ok(())
}
