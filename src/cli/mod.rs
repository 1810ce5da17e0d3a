//! The command line: one file a subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod common;
pub mod data;
pub mod export;
pub mod generate;
pub mod train;

/// Trains small image models, writes them as ONNX, proves that the file is the model, and runs it anywhere.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draws cats.
    Generate(generate::Args),
    /// Makes training data.
    Data(data::Args),
    /// Trains a model.
    Train(train::Args),
    /// Writes a checkpoint as ONNX, and proves that the file is the model.
    Export(export::Args),
}

/// Runs the command that the program was called with. An error is one line on the standard error stream and exit code 1;
/// a wrong usage has exit code 2.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Data(args) => data::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Train(args) => train::run(args),
        Command::Export(args) => export::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}
