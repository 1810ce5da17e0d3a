//! `tiny-cats cloud status|logs|fetch|stop`: commands on runs in the volume.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{anyhow, bail};
use serde_json::json;

use super::with_flags;
use crate::{
    cli::{
        common::{pretty_json, print},
        table::{clean, table},
    },
    cloud::{self, CloudRun, CloudSettings, RunLocation, modal, running_app},
    plural::pluralize,
    train::folder::RUNS,
};

/// The arguments of `tiny-cats cloud status`.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// The run [default: the newest runs]
    run: Option<String>,
    /// Number of runs to list
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N", conflicts_with = "run")]
    count: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `tiny-cats cloud logs`.
#[derive(clap::Args, Debug)]
pub struct LogsArgs {
    /// The run
    run: String,
    /// Keep printing the output of its containers while it runs
    #[arg(short, long)]
    follow: bool,
}

/// The arguments of `tiny-cats cloud fetch`.
#[derive(clap::Args, Debug)]
pub struct FetchArgs {
    /// The run
    run: String,
    /// Folder of the runs on this machine; the run gets a folder in it
    #[arg(long, default_value = RUNS, value_name = "DIR")]
    runs_dir: PathBuf,
}

/// The arguments of `tiny-cats cloud stop`.
#[derive(clap::Args, Debug)]
pub struct StopArgs {
    /// The run
    run: String,
}

/// Maximum printed characters of a text from the cloud.
const MAX_TEXT: usize = 200;

/// Lists the newest runs, or shows one.
///
/// # Errors
/// If Modal cannot be reached, or there is no such run.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    if let Some(run) = &args.run {
        let run = CloudRun::load(run)?;
        print(&if args.json { pretty_json(&json!(run))? } else { run_details(&run) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let runs = CloudRun::newest(args.count)?;
    if args.json {
        let row = |(name, run): &(String, cloud::Result<CloudRun>)| match run {
            Ok(run) => json!(run),
            Err(error) => json!({"id": name, "status": "unreadable", "error": unreadable_part(error)}),
        };
        print(&pretty_json(&runs.iter().map(row).collect())?)?;
    } else if runs.is_empty() {
        print(&format!("no runs found in the volume {}\n", CloudSettings::default().app.output_volume))?;
    } else {
        let headings = ["id", "status", "steps", "gpu", "attempts", "preemptions", "hours", "$", "error"];
        let rows: Vec<Vec<String>> = runs.iter().map(|(name, run)| row(name, run)).collect();
        print(&table(&headings, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The error of an unreadable run in JSON, which has only the path of an invalid record.
fn unreadable_part(error: &cloud::Error) -> String {
    match error {
        cloud::Error::Record { path, .. } => path.clone(),
        error => error.to_string(),
    }
}

fn row(name: &str, run: &cloud::Result<CloudRun>) -> Vec<String> {
    let run = match run {
        Ok(run) => run,
        Err(error) => {
            let unknown = vec![String::new(); 6];
            let (name, error) = (name.to_owned(), clean(&error.to_string(), MAX_TEXT));
            return [vec![name, "unreadable".into()], unknown, vec![error]].concat();
        }
    };
    let cloud = run.cloud.clone().unwrap_or_default();
    vec![
        run.location.id.clone(),
        clean(run.status(), 20),
        run.steps(),
        clean(cloud.gpu.as_deref().unwrap_or_default(), 40),
        cloud.attempts.len().to_string(),
        cloud.preemptions.to_string(),
        format!("{:.2}", cloud.seconds / 3600.0),
        cloud.dollars.map_or_else(String::new, |dollars| format!("{dollars:.2}")),
        clean(run.error(), MAX_TEXT),
    ]
}

fn run_details(run: &CloudRun) -> String {
    let mut output = format!("run       {}\nstatus    {}\n", run.location.id, clean(run.status(), 20));
    if let Some(record) = &run.record {
        output += &format!("task      {}\nsteps     {}\n", clean(&record.task, 20), run.steps());
        if let Some(best) = &record.best {
            output += &format!("best      {} {:.4} at {}\n", clean(&best.name, 40), best.value, best.step);
        }
    }
    if let Some(cloud) = &run.cloud {
        output += &format!("cloud     {}\n", clean(&cloud.to_line(), MAX_TEXT));
        for attempt in &cloud.attempts {
            let hours = attempt.ended.map_or_else(
                || "now".to_owned(),
                |ended| format!("{:.2} h", (ended - attempt.started) / 3600.0),
            );
            let gpu = attempt.gpu.as_deref().unwrap_or("no GPU");
            output += &format!("          {}, {hours}, {}\n", clean(gpu, 60), clean(&attempt.outcome, 40));
        }
    }
    if !run.error().is_empty() {
        output += &format!("error     {}\n", clean(run.error(), MAX_TEXT));
    }
    output
}

/// Prints the log of a run.
///
/// # Errors
/// If Modal cannot be reached, or there is no such run.
pub fn logs(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let location = RunLocation::parse(&args.run)?;
    if args.follow {
        let Some(app) = running_app(&location.app)? else {
            bail!("{}: no container works on this run", location.id)
        };
        let status = modal::run(&["app", "logs", "--follow", &app])?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let text = CloudRun::load(&args.run)?.log()?;
    // Control characters from the cloud could change the state of the terminal.
    let text = String::from_utf8_lossy(&text);
    let printable_char = |c: char| if c == '\n' || c == '\t' || !c.is_control() { c } else { '\u{fffd}' };
    print(&text.chars().map(printable_char).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the app that works on a run.
///
/// # Errors
/// If Modal cannot be reached, or no app works on the run.
pub fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    let location = RunLocation::parse(&args.run)?;
    cloud::stop(&location).map_err(|error| match error {
        cloud::Error::NotRunning { .. } => anyhow!("{error}; tiny-cats cloud status shows its status"),
        error => error.into(),
    })?;
    print(&format!(
        "{}: stopped; saved states are kept, and the same command resumes the run\n",
        location.id
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Downloads the files of a finished run, and prints the verified ones.
///
/// # Errors
/// If Modal cannot be reached, the run has not finished, or the downloaded files differ from the released ones.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let run = CloudRun::load(&args.run)?;
    let mut printed = Ok(());
    let fetched = cloud::fetch(&run, &args.runs_dir, &mut |name| {
        if printed.is_ok() {
            printed = print(&format!("verified {name}\n"));
        }
    });
    printed?;
    let fetched = fetched.map_err(with_flags)?;
    print(&format!("{}: {}\n", fetched.folder.display(), pluralize(fetched.files, "file")))?;
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}
