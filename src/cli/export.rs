//! `tiny-cats export`: writes a checkpoint as ONNX and verifies the file.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use tiny_cats_export::{
    ExportOptions, VerificationReport, export,
    onnx::{DEFAULT_OPSET, WeightStorage},
    report_path,
};

use super::common::{EXIT_ASSUMED, ModelContext, OverrideArgs, WeightsKind, warn_assumed, weights_selection};
use crate::checkpoint;

/// The arguments of `tiny-cats export`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit codes: 0 if the file was written and verified, 1 if not, 2 for invalid usage, 3 if it was written and verified, \
    but values that the checkpoint lacks were assumed."
)]
pub struct Args {
    /// Released model, training state, or PyTorch file
    checkpoint: PathBuf,
    /// ONNX file to write [default: the path of the checkpoint, with the extension .onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Version of the ONNX operator set
    #[arg(long, default_value_t = DEFAULT_OPSET)]
    opset: u32,
    /// Weights to export [default: ema for files of this program, raw for others]
    #[arg(long, value_enum)]
    weights: Option<WeightsKind>,
    /// Store weights in half precision, for half the size; they are computed in f32
    #[arg(long)]
    f16: bool,
    /// Verify the file on every available runtime; always enabled
    #[arg(long)]
    verify: bool,
    /// Also compare complete sampling trajectories of a generator
    #[arg(long)]
    test: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Exports the checkpoint. The exit code is [`EXIT_ASSUMED`] if values that the checkpoint lacks were assumed.
///
/// # Errors
/// If the checkpoint cannot be read, the file cannot be written, or the outputs of a runtime differ from those of the definition. Then no
/// file is left.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.verify {
        eprintln!("--verify: every export is verified; the flag changes nothing");
    }
    let loaded = checkpoint::open(&args.checkpoint, weights_selection(args.weights))?;
    let description =
        loaded.describe(&args.overrides.into()).with_context(|| args.checkpoint.display().to_string())?;
    let meta = description.meta;
    let output = args.output.unwrap_or_else(|| args.checkpoint.with_extension("onnx"));
    let storage = if args.f16 { WeightStorage::F16 } else { WeightStorage::F32 };
    let options =
        ExportOptions { opset: args.opset, trajectory: args.test, storage, ..ExportOptions::default() };
    let report = export(&meta, &loaded.weights, &output, &options).model_context(Some(&args.checkpoint))?;
    print_report(&report);
    println!(
        "wrote {} ({:.1} MB) and {}",
        output.display(),
        report.bytes as f64 / 1e6,
        report_path(&output).display()
    );
    warn_assumed(&args.checkpoint, &description.assumed);
    Ok(if description.assumed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_ASSUMED) })
}

fn print_report(report: &VerificationReport) {
    if let Some(rounding) = &report.rounding {
        println!("{rounding}");
    }
    for r in &report.runtimes {
        let trajectory = r.trajectory_psnr.map_or(String::new(), |db| format!(", trajectory {db:.1} dB"));
        let same_class =
            r.same_class.map_or(String::new(), |n| format!(", the same class for {n} of {}", report.inputs));
        println!(
            "{} {}: agrees with {} within {:.1e} ({:.0} % of the tolerance{trajectory}{same_class})",
            r.runtime,
            r.version,
            report.reference,
            r.max_absolute_error,
            100.0 * r.tolerance_used
        );
    }
    for (name, reason) in &report.skipped {
        println!("{name}: not compared: {reason}");
    }
}
