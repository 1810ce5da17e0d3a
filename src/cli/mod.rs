//! The command line: one file a subcommand.

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tiny_cats_export::escaped;

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
    /// Says what a training takes before it is begun: memory, time and money.
    Plan(plan::Args),
    /// Says how good a trained model is.
    Eval(eval::Args),
    /// Serves models by HTTP, and the web demo.
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Writes a checkpoint as ONNX, and verifies the file on every runtime.
    Export(export::Args),
    /// Lists runs, and shows one.
    Runs(runs::Args),
    /// Trains with many settings, and says which are best.
    Sweep(sweep::Args),
    /// Trains on rented GPUs, at Modal.
    Cloud(cloud::Args),
    /// Says what this machine and this program can do, what is missing, and how to get it.
    Doctor(doctor::Args),
}

/// Runs the command that the program was called with. An error is one line on the standard error stream and exit code 1;
/// a wrong usage has exit code 2.
pub fn main() -> ExitCode {
    train::catch_signals();
    panic::install_hook();
    let (matches, Cli { command }) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return fail(&error),
    };
    logging::init();
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match command {
        Command::Data(args) => done(data::run(args)),
        Command::Generate(args) => done(generate::run(args)),
        Command::Classify(args) => done(classify::run(&args)),
        Command::Train(args) => {
            train::run(&args, &matches.subcommand_matches("train").cloned().unwrap_or_default())
        }
        Command::Plan(args) => done(plan::run(&args)),
        Command::Eval(args) => eval::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        Command::Export(args) => export::run(args),
        Command::Runs(args) => done(runs::run(&args)),
        Command::Sweep(args) => sweep::run(&args),
        Command::Cloud(args) => cloud::run(&args, &matches),
        Command::Doctor(args) => done(doctor::run(&args)),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// The command line, whose defaults a configuration may have changed.
fn parse() -> anyhow::Result<(ArgMatches, Cli)> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = train::config::with_defaults(Cli::command(), &arguments)?;
    let matches = command.get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok((matches, cli))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Nobody reads the output any more, as behind `| head`: there is nobody to tell, and nothing is wrong.
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(closed) {
        return ExitCode::SUCCESS;
    }
    logging::log_fatal(&one_line(error));
    ExitCode::FAILURE
}

/// The error and its causes, those left out that it has named already; of one that brings a backtrace, its first line. What a file or a
/// name may have brought into it is escaped.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.lines().next().unwrap_or_default();
        if !line.ends_with(cause) {
            let between = if line.is_empty() { "" } else { ": " };
            line += &format!("{between}{cause}");
        }
    }
    escaped(&line, MAX_ERROR_BYTES).into_owned()
}

/// The most bytes of an error's text that are shown; what comes from a file may be long.
const MAX_ERROR_BYTES: usize = 560;
