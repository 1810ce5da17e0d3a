//! `tiny-cats export`: writes a checkpoint as ONNX, and verifies the file.

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
    after_help = "Exit codes: 0 if the file was written and verified, 1 if not, 2 for a wrong usage, 3 if it was written and verified, \
    but some of what its model needs had to be assumed."
)]
pub struct Args {
    /// Released model, training state, or PyTorch file
    checkpoint: PathBuf,
    /// ONNX file to write [default: the checkpoint's name with .onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Version of ONNX's operator set
    #[arg(long, default_value_t = DEFAULT_OPSET)]
    opset: u32,
    /// Weights to export [default: ema of our own training, raw of others']
    #[arg(long, value_enum)]
    weights: Option<WeightsKind>,
    /// Store weights in half precision: half the size, computed in f32
    #[arg(long)]
    f16: bool,
    /// Verify the file on every runtime present; this is always done
    #[arg(long)]
    verify: bool,
    /// Compare whole sampling trajectories of a generator too
    #[arg(long)]
    test: bool,
    #[command(flatten)]
    given: OverrideArgs,
}

/// Exports the checkpoint. The exit code is [`EXIT_ASSUMED`] if the checkpoint does not state everything that its model needs.
///
/// # Errors
/// If the checkpoint cannot be read, the file cannot be written, or a runtime's outputs differ from the definition's; then no file is left.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let loaded = checkpoint::open(&args.checkpoint, weights_selection(args.weights))?;
    let described =
        loaded.describe(&args.given.into()).with_context(|| args.checkpoint.display().to_string())?;
    let meta = described.meta;
    let output = args.output.unwrap_or_else(|| args.checkpoint.with_extension("onnx"));
    let storage = if args.f16 { WeightStorage::F16 } else { WeightStorage::F32 };
    let options = ExportOptions { opset: args.opset, trajectory: args.test, storage };
    let report = export(&meta, &loaded.weights, &output, &options).model_context(Some(&args.checkpoint))?;
    print(&report);
    println!(
        "wrote {} ({:.1} MB) and {}",
        output.display(),
        report.bytes as f64 / 1e6,
        report_path(&output).display()
    );
    warn_assumed(&args.checkpoint, &described.assumed);
    Ok(if described.assumed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_ASSUMED) })
}

fn print(report: &VerificationReport) {
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
