//! `tiny-cats cloud`: trains on rented GPUs at Modal, with Modal's command line.

mod check;
mod runs;
mod sweep;
mod train;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::plan::GpuArgs;
use crate::{
    cloud::{CloudSettings, ModalApp, modal},
    data::hex,
    plan::{Prices, assumptions},
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

/// The limits of the region, time and cost of a training.
#[derive(clap::Args, Debug)]
struct CostLimits {
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

impl CostLimits {
    /// The prices at Modal, with the surcharge for a region.
    ///
    /// # Errors
    /// If the price list is invalid.
    fn prices(&self, gpu_args: &GpuArgs) -> anyhow::Result<Prices> {
        let prices = gpu_args.prices()?;
        let region_factor = CloudSettings::default().price.region;
        Ok(if self.region.is_some() { prices.with_factor(region_factor) } else { prices })
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    fn validate(&self, max_retries: u64, settings: &CloudSettings) -> anyhow::Result<()> {
        let max_timeout = Duration::from_secs_f64(settings.time.longest_attempt_s);
        // The time to start, to make progress, and to stop.
        let min_timeout = Duration::from_secs_f64(assumptions::START_S + settings.time.stop_before_s + 60.0);
        if let Some(timeout) = self.timeout.filter(|timeout| !(min_timeout..=max_timeout).contains(timeout)) {
            let [min_timeout, max_timeout, found] =
                [min_timeout, max_timeout, timeout].map(humantime::format_duration);
            bail!("--timeout: expected {min_timeout} to {max_timeout}, found {found}");
        }
        let max_allowed = settings.retries.max;
        if max_retries > max_allowed {
            bail!("--max-retries: expected 0 to {max_allowed}, found {max_retries}");
        }
        if let Some(dollars) = self.max_cost.filter(|dollars| !(*dollars > 0.0 && dollars.is_finite())) {
            bail!("--max-cost: expected more than 0 dollars, found {dollars}");
        }
        if let Some(region) = &self.region {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-,".contains(c);
            if region.is_empty() || !region.chars().all(is_allowed) {
                bail!("--region: expected a name such as us-east, found {}", region.escape_debug());
            }
        }
        Ok(())
    }
}

/// Parses a duration such as `4h`, or a number of seconds, as the app does.
fn parse_timeout(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
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

/// Runs Modal's command line on the app, with its output on the terminal.
fn run_app(app: &ModalApp, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = modal::run_app(app, &arguments)?;
    // The exit code is forwarded, such as that of a stopped run that can be resumed.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The arguments of `modal` that run the app.
fn run_arguments(app: &ModalApp, name: &str, detach: bool) -> Vec<String> {
    let detach = detach.then(|| "--detach".to_owned());
    let arguments = [Some("run".to_owned()), detach, Some(format!("--name={}", app_name(name)))];
    arguments.into_iter().flatten().chain([app.file.to_string_lossy().into_owned()]).collect()
}

/// The name of the app while it works on a run. Modal allows at most 64 letters, digits, -, _ and dots. If the name of the run does not
/// comply, a hash keeps the name of the app unique.
fn app_name(run: &str) -> String {
    let sanitize = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let full_name = format!("{}-{run}", CloudSettings::default().app.name);
    let name: String = full_name.chars().map(sanitize).collect();
    if name == full_name && name.len() <= 64 {
        return name;
    }
    let hash = hex(&Sha256::digest(run)[..4]);
    name.chars().take(55).collect::<String>() + "-" + &hash
}

/// Quotes a command for a shell.
fn shell_command(arguments: &[String]) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    let quote = |argument: &String| {
        if !argument.is_empty() && argument.chars().all(is_allowed) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    };
    std::iter::once("modal".to_owned()).chain(arguments.iter().map(quote)).collect::<Vec<_>>().join(" ")
}

/// Lists a folder of a volume: each name, and true if it is a folder.
fn list_volume(volume: &str, folder: &str) -> modal::Result<Vec<(String, bool)>> {
    let output = modal::run_captured(&["volume", "ls", "--json", volume, folder])?;
    let entries: Vec<serde_json::Value> =
        serde_json::from_slice(&output).map_err(|_| modal::Error::Failed {
            command: "volume ls".into(),
            message: format!("expected a list of {folder} in {volume} as JSON"),
        })?;
    let entry = |entry: &serde_json::Value| {
        let name = Path::new(entry["filename"].as_str()?).file_name()?.to_str()?.to_owned();
        Some((name, entry["type"] == "dir"))
    };
    Ok(entries.iter().filter_map(entry).collect())
}

/// Reads the file `runs/RUN/NAME` from the volume, if it exists.
fn read_file(run: &str, name: &str) -> modal::Result<Option<Vec<u8>>> {
    let volume = CloudSettings::default().app.output_volume;
    match modal::run_captured(&["volume", "get", &volume, &format!("runs/{run}/{name}"), "-"]) {
        Err(modal::Error::NotFound(_)) => Ok(None),
        output => output.map(Some),
    }
}

/// The ID of the app of this name, if it is running.
fn running_app(name: &str) -> anyhow::Result<Option<String>> {
    let output = modal::run_captured(&["app", "list", "--json"])?;
    let apps: Vec<serde_json::Value> =
        serde_json::from_slice(&output).context("modal app list: expected JSON")?;
    let is_running = |app: &&serde_json::Value| {
        let state = app["state"].as_str().unwrap_or_default();
        app["description"] == name && !state.starts_with("stop")
    };
    Ok(apps.iter().find(is_running).and_then(|app| Some(app["app_id"].as_str()?.to_owned())))
}

/// Checks that no app works on the run, since two would conflict.
fn check_idle(name: &str) -> anyhow::Result<()> {
    match running_app(&app_name(name))? {
        None => Ok(()),
        Some(app) => {
            bail!("{name}: the app {app} already works on this run; stop it with modal app stop {app}")
        }
    }
}

/// Checks that the volume has data to train on.
fn check_data(volume: &str, data: &str) -> anyhow::Result<()> {
    let folder = data.trim_start_matches("data").trim_start_matches('/');
    let found = match list_volume(volume, &format!("/{folder}")) {
        Err(modal::Error::NotFound(_)) => list_volume(volume, "/").map(|_| Vec::new()),
        found => found,
    };
    let upload_command = format!("modal volume put {volume} FOLDER /{folder}");
    match found {
        Ok(entries) if entries.iter().any(|(_, is_folder)| *is_folder) => Ok(()),
        Ok(_) => bail!(
            "{data}: no class folders found in the volume {volume}; run {upload_command}, or modal run {} download-data",
            find_app()?.file.display()
        ),
        Err(modal::Error::NotFound(_)) => {
            bail!(
                "{data}: the volume {volume} does not exist; run modal volume create {volume} && {upload_command}"
            )
        }
        Err(error) => Err(error.into()),
    }
}
