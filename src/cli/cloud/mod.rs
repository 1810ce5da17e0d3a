//! `tiny-cats cloud`: training on rented GPUs at Modal. All work there goes through Modal's own command line.

mod check;
mod runs;
mod sweep;
mod train;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::ArgMatches;
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
    /// Checks what training at Modal requires, and prints the command that fixes a failed check.
    Check,
    /// Trains at Modal, with the flags of `tiny-cats train`; prints time and cost before it starts.
    Train(train::Args),
    /// Lists the runs at Modal, or shows one.
    Status(runs::Status),
    /// Prints the log of a run.
    Logs(runs::Logs),
    /// Downloads the released files of a finished run, and verifies them.
    Fetch(runs::Fetch),
    /// Stops a run. Its saved state is kept, and it can be resumed.
    Stop(runs::Stop),
    /// Trains with many settings, several jobs at once.
    Sweep(sweep::Args),
}

/// Limits of a training's place, time and cost.
#[derive(clap::Args, Debug)]
struct CostLimits {
    /// Longest time of one attempt, such as 4h, or in seconds; at most 24h [default: by the plan]
    #[arg(long, value_parser = seconds, value_name = "TIME", help_heading = "Cloud")]
    timeout: Option<Duration>,
    /// Do not start if the expected cost is higher, and stop when this much is spent
    #[arg(long, value_name = "USD", help_heading = "Cloud")]
    max_cost: Option<f64>,
    /// Modal region; costs 1.5 to 1.75 times as much [default: anywhere]
    #[arg(long, value_name = "NAME", help_heading = "Cloud")]
    region: Option<String>,
    /// Keep the run going if this machine is switched off
    #[arg(long, help_heading = "Cloud")]
    detach: bool,
    /// Print the plan and the command, and start nothing
    #[arg(long, help_heading = "Cloud")]
    dry_run: bool,
}

impl CostLimits {
    /// The prices at Modal, with the surcharge for a region.
    ///
    /// # Errors
    /// If the price list is invalid.
    fn prices(&self, asked: &GpuArgs) -> anyhow::Result<Prices> {
        let prices = asked.prices()?;
        let dearer = CloudSettings::default().price.region;
        Ok(if self.region.is_some() { prices.scaled(dearer) } else { prices })
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    fn validate(&self, max_retries: u64, settings: &CloudSettings) -> anyhow::Result<()> {
        let longest = Duration::from_secs_f64(settings.time.longest_attempt_s);
        // Enough time to start, to make some progress, and to stop.
        let shortest = Duration::from_secs_f64(assumptions::START_S + settings.time.stop_before_s + 60.0);
        if let Some(timeout) = self.timeout.filter(|timeout| !(shortest..=longest).contains(timeout)) {
            let [shortest, longest, found] = [shortest, longest, timeout].map(humantime::format_duration);
            bail!("--timeout: expected {shortest} to {longest}, found {found}");
        }
        let most = settings.retries.most;
        if max_retries > most {
            bail!("--max-retries: expected 0 to {most}, found {max_retries}");
        }
        if let Some(dollars) = self.max_cost.filter(|dollars| !(*dollars > 0.0 && dollars.is_finite())) {
            bail!("--max-cost: expected more than 0 dollars, found {dollars}");
        }
        if let Some(region) = &self.region {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-,".contains(c);
            if region.is_empty() || !region.chars().all(plain) {
                bail!("--region: expected a name such as us-east, found {}", region.escape_debug());
            }
        }
        Ok(())
    }
}

/// Parses a duration such as `4h`, or plain seconds, like the app.
fn seconds(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    }
}

/// Runs the subcommand; `matches` are those of the whole command line.
///
/// # Errors
/// If a check before the start fails, or Modal reports an error; the error is one line.
pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check => check::run(),
        Command::Train(args) => train::run(args, matches),
        Command::Status(args) => runs::status(args),
        Command::Logs(args) => runs::logs(args),
        Command::Fetch(args) => runs::fetch(args),
        Command::Stop(args) => runs::stop(args),
        Command::Sweep(args) => sweep::run(args),
    }
}

/// Finds the app's file, and the program for its image.
fn app() -> anyhow::Result<ModalApp> {
    Ok(ModalApp::find(&std::env::current_dir()?)?)
}

/// Runs Modal's command line on the app, with its output on the terminal.
fn start(app: &ModalApp, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = modal::run_app(app, &arguments)?;
    // Passes on an exit code such as that of a stopped run that can be resumed.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The arguments with which Modal runs the app.
fn modal_run(app: &ModalApp, name: &str, detach: bool) -> Vec<String> {
    let detach = detach.then(|| "--detach".to_owned());
    let words = [Some("run".to_owned()), detach, Some(format!("--name={}", app_name(name)))];
    words.into_iter().flatten().chain([app.file.to_string_lossy().into_owned()]).collect()
}

/// The name of the app while it works on a run, by which the run is found again. Modal allows at most 64 letters, digits, -, _ and dots. If
/// that changes the run's name, a hash of the name keeps it unique.
fn app_name(run: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let whole = format!("{}-{run}", CloudSettings::default().app.name);
    let name: String = whole.chars().map(plain).collect();
    if name == whole && name.len() <= 64 {
        return name;
    }
    let hash = hex(&Sha256::digest(run)[..4]);
    name.chars().take(55).collect::<String>() + "-" + &hash
}

/// Quotes a command for a shell.
fn shell(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    let word = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    std::iter::once("modal".to_owned()).chain(arguments.iter().map(word)).collect::<Vec<_>>().join(" ")
}

/// Lists a folder of a volume: each name, and true if it is a folder.
fn list_volume(volume: &str, folder: &str) -> modal::Result<Vec<(String, bool)>> {
    let said = modal::run_captured(&["volume", "ls", "--json", volume, folder])?;
    let entries: Vec<serde_json::Value> =
        serde_json::from_slice(&said).map_err(|_| modal::Error::Failed {
            command: "volume ls".into(),
            message: format!("expected a list of {folder} in {volume} as JSON"),
        })?;
    let entry = |entry: &serde_json::Value| {
        let name = Path::new(entry["filename"].as_str()?).file_name()?.to_str()?.to_owned();
        Some((name, entry["type"] == "dir"))
    };
    Ok(entries.iter().filter_map(entry).collect())
}

/// Reads a file of a run from the volume, `runs/RUN/NAME`, if it exists.
fn file(run: &str, name: &str) -> modal::Result<Option<Vec<u8>>> {
    let volume = CloudSettings::default().app.output_volume;
    match modal::run_captured(&["volume", "get", &volume, &format!("runs/{run}/{name}"), "-"]) {
        Err(modal::Error::NotFound(_)) => Ok(None),
        said => said.map(Some),
    }
}

/// The ID of the app of this name, if it is running.
fn running_app(name: &str) -> anyhow::Result<Option<String>> {
    let said = modal::run_captured(&["app", "list", "--json"])?;
    let apps: Vec<serde_json::Value> =
        serde_json::from_slice(&said).context("modal app list: expected JSON")?;
    let works = |app: &&serde_json::Value| {
        let state = app["state"].as_str().unwrap_or_default();
        app["description"] == name && !state.starts_with("stop")
    };
    Ok(apps.iter().find(works).and_then(|app| Some(app["app_id"].as_str()?.to_owned())))
}

/// Checks that no app works on the run already, since two would interfere with each other.
fn require_idle(name: &str) -> anyhow::Result<()> {
    match running_app(&app_name(name))? {
        None => Ok(()),
        Some(app) => bail!("{name}: the app {app} works on it already; modal app stop {app} ends that"),
    }
}

/// Checks that the volume has data to train on.
fn require_data(volume: &str, data: &str) -> anyhow::Result<()> {
    let folder = data.trim_start_matches("data").trim_start_matches('/');
    let found = match list_volume(volume, &format!("/{folder}")) {
        Err(modal::Error::NotFound(_)) => list_volume(volume, "/").map(|_| Vec::new()),
        found => found,
    };
    let put = format!("modal volume put {volume} FOLDER /{folder}");
    match found {
        Ok(entries) if entries.iter().any(|(_, is_folder)| *is_folder) => Ok(()),
        Ok(_) => bail!(
            "{data}: there are no class folders in the volume {volume}: {put}, or modal run {} download-data",
            app()?.file.display()
        ),
        Err(modal::Error::NotFound(_)) => {
            bail!("{data}: there is no volume {volume}: modal volume create {volume} && {put}")
        }
        Err(error) => Err(error.into()),
    }
}
