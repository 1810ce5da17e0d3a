//! `tiny-cats cloud`: trains on rented GPUs at Modal, with Modal's command line.

mod check;
mod runs;
mod sweep;
mod train;

use std::{process::ExitCode, time::Duration};

use anyhow::anyhow;

use super::{common::print, plan::GpuArgs};
use crate::{
    cloud::{self, CostLimits, Error, ModalApp, modal, parse_timeout, shell_command},
    plan::Gpu,
};

/// The arguments of `tiny-cats cloud`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Checks the requirements of training at Modal, and prints the command that fixes a failed check.
    Check,
    /// Trains at Modal, with the flags of `tiny-cats train`; prints time and cost before it starts.
    Train(train::Args),
    /// Lists the runs at Modal, or shows one.
    Status(runs::StatusArgs),
    /// Prints the log of a run.
    Logs(runs::LogsArgs),
    /// Downloads the released files of a finished run, and verifies them.
    Fetch(runs::FetchArgs),
    /// Stops a run. Its saved state is kept, and it can be resumed.
    Stop(runs::StopArgs),
    /// Trains with many settings, with parallel jobs.
    Sweep(sweep::Args),
}

/// The limits of the region, time and cost of a training, and how it starts.
#[derive(clap::Args, Debug)]
struct LimitArgs {
    /// Timeout of an attempt, such as 4h, or in seconds; at most 24h [default: from the plan]
    #[arg(long, value_parser = parse_timeout, value_name = "TIME", help_heading = "Cloud")]
    timeout: Option<Duration>,
    /// Maximum cost: do not start if the expected cost is higher, and stop when it is reached
    #[arg(long, value_name = "USD", help_heading = "Cloud")]
    max_cost: Option<f64>,
    /// Modal region, for 1.5 to 1.75 times the price [default: any]
    #[arg(long, value_name = "NAME", help_heading = "Cloud")]
    region: Option<String>,
    /// Keep the run going if this machine disconnects
    #[arg(long, help_heading = "Cloud")]
    detach: bool,
    /// Print the plan and the command without starting it
    #[arg(long, help_heading = "Cloud")]
    dry_run: bool,
}

impl LimitArgs {
    fn to_limits(&self, max_retries: Option<u64>) -> CostLimits {
        let Self { timeout, max_cost, region, .. } = self;
        CostLimits { timeout: *timeout, max_cost: *max_cost, region: region.clone(), max_retries }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If a check before the start fails, or Modal reports an error; the error is one line.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check => check::run(),
        Command::Train(args) => train::run(args),
        Command::Status(args) => runs::status(args),
        Command::Logs(args) => runs::logs(args),
        Command::Fetch(args) => runs::fetch(args),
        Command::Stop(args) => runs::stop(args),
        Command::Sweep(args) => sweep::run(args),
    }
}

/// Finds the file of the app and the program for its image.
fn find_app() -> anyhow::Result<ModalApp> {
    Ok(ModalApp::find(&std::env::current_dir()?)?)
}

/// The requested GPUs; empty if there are none.
fn requested_gpus(gpu_args: &GpuArgs) -> anyhow::Result<Vec<Gpu>> {
    if gpu_args.gpu.is_empty() { Ok(Vec::new()) } else { gpu_args.gpus() }
}

/// Prints a call of `modal` as a command for a shell.
fn print_command(arguments: &[String]) -> anyhow::Result<ExitCode> {
    print(&format!("{}\n", shell_command(arguments)))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs Modal's command line on the app, with its output on the terminal.
fn run_app(app: &ModalApp, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = modal::run_app(app, &arguments)?;
    // The exit code is forwarded, such as that of a stopped run that can be resumed.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Replaces fields in an error by flags.
fn with_flags(error: cloud::Error) -> anyhow::Error {
    match &error {
        Error::Setting { setting, message } => anyhow!("--{}: {message}", setting.replace('_', "-")),
        Error::Gpu { gpu, message } => anyhow!("--gpu {gpu}: {message}"),
        Error::NoGpu => anyhow!("{error}; tiny-cats plan train shows the reasons"),
        Error::NoPrice => anyhow!("--max-cost: these GPUs have no price; set one with --prices FILE"),
        Error::OtherRun { .. } => anyhow!("{error}; choose another folder with --runs-dir"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_errors_become_flags() {
        for (error, expected) in [
            (Error::Setting { setting: "max_cost", message: "x".into() }, "--max-cost: x"),
            (Error::Gpu { gpu: "A10".into(), message: "x".into() }, "--gpu A10: x"),
            (Error::NotRunning { run: "a".into() }, "a: no container works on this run"),
        ] {
            assert_eq!(with_flags(error).to_string(), expected);
        }
    }
}
