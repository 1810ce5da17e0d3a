//! `verify-checkpoint PATH`: checks that a checkpoint is intact, matches its network, and can be computed.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tiny_cats::device::DeviceKind;
use tiny_cats::{
    checkpoint::verify::{Onnx, VerifyOptions, verify},
    cli::{
        common::{EXIT_ASSUMED, OverrideArgs, WeightsKind, open_device, weights_selection},
        panic,
    },
};
use tiny_cats_export::escape;

/// Verifies a checkpoint: format, network, names and shapes, finite numbers, a forward pass, and the ONNX file next to it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 if the checkpoint is valid, 1 if not, 2 for invalid usage, 3 if it is valid, but values that it \
    lacks were assumed, or its network is unknown and was not verified."
)]
struct Args {
    /// Checkpoint: a released model, a training state, or a PyTorch file
    #[arg(required_unless_present = "checkpoint")]
    path: Option<PathBuf>,
    /// The same as PATH, as a flag
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    checkpoint: Option<PathBuf>,
    /// ONNX file to compare with [default: the file of the same name next to the checkpoint, if any]
    #[arg(long, value_name = "PATH")]
    onnx: Option<PathBuf>,
    /// Do not compare with an ONNX file
    #[arg(long, conflicts_with = "onnx")]
    skip_onnx: bool,
    /// Weights to verify [default: ema for files of this program, raw for others]
    #[arg(long)]
    weights: Option<WeightsKind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Device to compute on
    #[arg(long, default_value = "cpu")]
    device: DeviceKind,
    #[command(flatten)]
    overrides: OverrideArgs,
}

fn main() -> ExitCode {
    panic::install_hook();
    let args = Args::parse();
    let device = match open_device(args.device) {
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
        (None, false) => Onnx::Sibling,
    };
    // clap requires one of the two arguments.
    let path = args.path.or(args.checkpoint).unwrap_or_default();
    let report = verify(&path, &VerifyOptions { selection, onnx, device, overrides: args.overrides.into() });
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => println!("{json}"),
            Err(e) => eprintln!("verify-checkpoint: {e}"),
        }
    } else if let (None, Some(problem)) = (&report.format, report.problems.first()) {
        let path = report.path.display().to_string();
        let is_onnx = problem.contains("probably an ONNX file");
        let hint = if is_onnx { "; pass its checkpoint, and the ONNX file with --onnx" } else { "" };
        eprintln!("verify-checkpoint: {}: {problem}{hint}", escape(&path, usize::MAX));
    } else {
        println!("{report}");
    }
    match (report.is_ok(), report.is_complete()) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(EXIT_ASSUMED),
    }
}
