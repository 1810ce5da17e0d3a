//! The command line: one file a subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub mod classify;
pub mod common;
pub mod data;
pub mod doctor;
#[cfg(feature = "download")]
pub mod download;
pub mod eval;
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
    /// Tells the breeds of cats in pictures.
    Classify(classify::Args),
    /// Makes training data.
    Data(data::Args),
    /// Trains a model.
    Train(train::Args),
    /// Says how good a trained model is.
    Eval(eval::Args),
    /// Writes a checkpoint as ONNX, and proves that the file is the model.
    Export(export::Args),
    /// Says what this machine and this program can do, what is missing, and how to get it.
    Doctor(doctor::Args),
}

/// Runs the command that the program was called with. An error is one line on the standard error stream and exit code 1;
/// a wrong usage has exit code 2.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // RUST_LOG=tiny_cats=debug shows what happens inside.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let result = match command {
        Command::Data(args) => data::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Classify(args) => classify::run(&args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(&args),
        Command::Export(args) => export::run(args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, those left out that it has named already; of one that brings a backtrace, its first line.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.lines().next().unwrap_or_default();
        if !line.ends_with(cause) {
            let between = if line.is_empty() { "" } else { ": " };
            line += &format!("{between}{cause}");
        }
    }
    line
}
