//! The command line: one module for each subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tiny_cats_export::escape;

pub mod classify;
pub mod cloud;
pub mod common;
pub mod data;
pub mod doctor;
#[cfg(feature = "download")]
pub mod download;
pub mod eval;
pub mod export;
pub mod generate;
pub mod logging;
pub mod panic;
pub mod plan;
pub mod runs;
#[cfg(feature = "serve")]
pub mod serve;
pub mod sweep;
mod table;
pub mod train;
mod writable;

/// Trains small image models, exports them as verified ONNX, and runs them anywhere.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generates images of cats.
    Generate(generate::Args),
    /// Classifies images by the breed of cat.
    Classify(classify::Args),
    /// Prepares training data.
    Data(data::Args),
    /// Trains a model.
    Train(train::Args),
    /// Estimates the memory, time and cost of a training before it starts.
    Plan(plan::Args),
    /// Evaluates a trained model.
    Eval(eval::Args),
    /// Serves models and the web demo over HTTP.
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Exports a checkpoint as ONNX and verifies the file on every runtime.
    Export(export::Args),
    /// Lists runs, or shows one.
    Runs(runs::Args),
    /// Trains with many settings and ranks the results.
    Sweep(sweep::Args),
    /// Trains on rented GPUs at Modal.
    Cloud(cloud::Args),
    /// Reports the capabilities of this machine and this program, and how to add missing ones.
    Doctor(doctor::Args),
}

/// Runs the command line. Prints an error as one line to standard error, with exit code 1. Invalid usage has exit code 2.
pub fn main() -> ExitCode {
    train::catch_signals();
    panic::install_hook();
    let Cli { command } = Cli::parse();
    logging::init();
    let success = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match command {
        Command::Data(args) => success(data::run(args)),
        Command::Generate(args) => success(generate::run(args)),
        Command::Classify(args) => success(classify::run(&args)),
        Command::Train(args) => train::run(&args),
        Command::Plan(args) => success(plan::run(&args)),
        Command::Eval(args) => eval::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        Command::Export(args) => export::run(args),
        Command::Runs(args) => success(runs::run(&args)),
        Command::Sweep(args) => sweep::run(&args),
        Command::Cloud(args) => cloud::run(&args),
        Command::Doctor(args) => success(doctor::run(&args)),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // A closed pipe, as by `| head`, is not an error.
    let is_closed_pipe = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    logging::log_fatal(&one_line(error));
    ExitCode::FAILURE
}

/// Formats an error and its causes on one line, without repeated causes. Omits the lines of a backtrace, and escapes control characters.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.lines().next().unwrap_or_default();
        if !line.ends_with(cause) {
            let separator = if line.is_empty() { "" } else { ": " };
            line += &format!("{separator}{cause}");
        }
    }
    escape(&line, MAX_ERROR_BYTES).into_owned()
}

/// Maximum bytes of a printed error, since text from a file may be long.
const MAX_ERROR_BYTES: usize = 560;
