//! `verify-checkpoint PATH`: checks that a checkpoint is intact, matches its network, and computes.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tiny_cats::{
    checkpoint::verify::{Onnx, VerifyOptions, verify},
    cli::{
        common::{DeviceKind, EXIT_ASSUMED, OverrideArgs, WeightsKind, weights_selection},
        panic,
    },
};
use tiny_cats_export::escaped;

/// Verifies a checkpoint: format, network, names and shapes, finite numbers, a forward pass, and the ONNX file next to it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 if all is well, 1 if not, 2 for a wrong usage, 3 if all is well as far as the file says, but \
    some of what its model needs had to be assumed."
)]
struct Args {
    /// Checkpoint: a released model, a training state, or a PyTorch file
    #[arg(required_unless_present = "checkpoint")]
    path: Option<PathBuf>,
    /// The same as PATH, as a flag
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    checkpoint: Option<PathBuf>,
    /// ONNX file to compare with [default: the one of the same name beside it, if any]
    #[arg(long, value_name = "PATH")]
    onnx: Option<PathBuf>,
    /// Compare with no ONNX file
    #[arg(long, conflicts_with = "onnx")]
    skip_onnx: bool,
    /// Weights to verify [default: ema of our own training, raw of others']
    #[arg(long)]
    weights: Option<WeightsKind>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Device to compute on
    #[arg(long, default_value = "cpu")]
    device: DeviceKind,
    #[command(flatten)]
    given: OverrideArgs,
}

fn main() -> ExitCode {
    panic::install_hook();
    let args = Args::parse();
    let device = match args.device.device() {
        Ok(device) => device,
        Err(e) => {
            eprintln!("verify-checkpoint: {}", format!("{e:#}").lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
    };
    let selection = weights_selection(args.weights);
    let onnx = match (args.onnx, args.skip_onnx) {
        (Some(path), _) => Onnx::File(path),
        (None, true) => Onnx::Skip,
        (None, false) => Onnx::Beside,
    };
    // clap requires one of the two.
    let path = args.path.or(args.checkpoint).unwrap_or_default();
    let report = verify(&path, &VerifyOptions { selection, onnx, device, overrides: args.given.into() });
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => println!("{json}"),
            Err(e) => eprintln!("verify-checkpoint: {e}"),
        }
    } else if let (None, Some(problem)) = (&report.format, report.problems.first()) {
        eprintln!(
            "verify-checkpoint: {}: {problem}",
            escaped(&report.path.display().to_string(), usize::MAX)
        );
    } else {
        println!("{report}");
    }
    match (report.is_ok(), report.assumed.is_empty()) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(EXIT_ASSUMED),
    }
}
