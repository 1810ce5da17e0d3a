//! `tiny-cats cloud status|logs|fetch|stop`: commands on runs in the volume.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tiny_cats_export::strip_temp_name;

use super::{app_name, list_volume, read_file, running_app};
use crate::{
    checkpoint::verify::{VerifyOptions, verify},
    cli::{
        common::{pretty_json, print},
        table::{clean, table},
    },
    cloud::{CloudRecord, CloudSettings, RECORD, modal},
    plural::pluralize,
    sweep::SWEEPS,
    train::folder::{self, LOG, Lock, RUNS, Status as RunStatus},
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

/// Maximum number of runs that are requested in parallel.
const MAX_CONCURRENT: usize = 8;

/// The location of a run: its folder in `runs/` of the volume, and the name of its app.
struct RunLocation {
    id: String,
    folder: String,
    app: String,
}

impl RunLocation {
    /// Parses the name of a run, or of a job of a sweep, `sweeps/NAME/JOB`.
    ///
    /// # Errors
    /// If the name has another form.
    fn parse(id: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = id.split('/').collect();
        let (folder, app) = match parts[..] {
            [run] => (run.to_owned(), run.to_owned()),
            [SWEEPS, sweep, job] => (format!("{SWEEPS}/{sweep}/{job}/{job}"), format!("sweep-{sweep}")),
            [SWEEPS, sweep] => (format!("{SWEEPS}/{sweep}"), format!("sweep-{sweep}")),
            _ => bail!("{}: expected the name of a run, or sweeps/NAME/JOB", clean(id, MAX_TEXT)),
        };
        let names = if parts.len() > 1 { &parts[1..] } else { &parts[..] };
        if !names.iter().all(|name| folder::is_id(name)) {
            bail!("{}: expected a name that tiny-cats cloud status lists", clean(id, MAX_TEXT));
        }
        Ok(Self { id: id.to_owned(), folder, app })
    }
}

/// A run in the volume, with the records that exist.
struct CloudRun {
    location: RunLocation,
    record: Option<folder::RunRecord>,
    cloud: Option<CloudRecord>,
}

impl CloudRun {
    /// Loads the records of a run.
    ///
    /// # Errors
    /// If Modal cannot be reached, or there is no such run.
    fn load(id: &str) -> anyhow::Result<Self> {
        let location = RunLocation::parse(id)?;
        let (record, cloud) =
            (read_file(&location.folder, folder::RECORD)?, read_file(&location.folder, RECORD)?);
        if record.is_none() && cloud.is_none() {
            let volume = CloudSettings::default().app.output_volume;
            let entries = list_volume(&volume, "/runs").unwrap_or_default();
            let others = entries.iter().map(|entry| entry.0.as_str()).filter(|other| *other != id);
            let suggestion = tiny_cats_export::closest(id, others);
            let suggestion =
                suggestion.map_or(String::new(), |name| format!("; did you mean {}?", clean(name, MAX_TEXT)));
            bail!("{id}: there is no such run in the volume {volume}{suggestion}");
        }
        let record = record.map(|text| serde_json::from_slice(&text)).transpose();
        let record = record.with_context(|| format!("{id}/{}", folder::RECORD))?;
        let cloud = cloud.map(|text| CloudRecord::parse(&Path::new(id).join(RECORD), &text)).transpose()?;
        Ok(Self { location, record, cloud })
    }

    /// True if the run and its app have finished.
    fn is_finished(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.status == RunStatus::Finished)
            && self.cloud.as_ref().is_none_or(|cloud| cloud.status == "finished")
    }

    fn status(&self) -> &str {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        match (&self.cloud, &self.record) {
            (Some(cloud), _) => cloud.status_at(now, CloudSettings::default().time.heartbeat_s),
            (None, Some(record)) if record.status == RunStatus::Finished => "finished",
            _ => "unknown",
        }
    }

    fn steps(&self) -> String {
        self.record.as_ref().map_or_else(String::new, |record| format!("{}/{}", record.step, record.steps))
    }

    fn error(&self) -> &str {
        let error = self.cloud.as_ref().and_then(|cloud| cloud.error.as_deref());
        error.or(self.record.as_ref().and_then(|record| record.error.as_deref())).unwrap_or_default()
    }

    fn to_json(&self) -> Value {
        json!({"id": self.location.id, "status": self.status(), "record": self.record, "cloud": self.cloud})
    }
}

/// Lists the newest runs, or shows one.
///
/// # Errors
/// If Modal cannot be reached, or there is no such run.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    if let Some(run) = &args.run {
        let run = CloudRun::load(run)?;
        print(&if args.json { pretty_json(&run.to_json())? } else { run_details(&run) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let volume = CloudSettings::default().app.output_volume;
    let entries = match list_volume(&volume, "/runs") {
        Err(modal::Error::NotFound(_)) => Vec::new(),
        entries => entries?,
    };
    let mut names: Vec<String> = entries
        .into_iter()
        .filter(|(name, is_folder)| *is_folder && folder::is_id(name))
        .map(|e| e.0)
        .collect();
    // Names start with the time, unless the user chose them.
    names.sort();
    let newest = names.split_off(names.len().saturating_sub(args.count));
    let mut runs: Vec<anyhow::Result<CloudRun>> = Vec::new();
    for chunk in newest.chunks(MAX_CONCURRENT) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = chunk.iter().map(|name| scope.spawn(|| CloudRun::load(name))).collect();
            let thread_error = || Err(anyhow::anyhow!("the thread for this run panicked"));
            runs.extend(threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| thread_error())));
        });
    }
    // An error of Modal ends the command, since it affects all runs. A run that cannot be read is a line of the list.
    if let Some(error) = runs.iter().position(|run| run.as_ref().is_err_and(|e| e.is::<modal::Error>())) {
        return runs.swap_remove(error).map(|_| ExitCode::FAILURE);
    }
    let named_runs = newest.iter().zip(&runs);
    if args.json {
        let row = |(name, run): (&String, &anyhow::Result<CloudRun>)| match run {
            Ok(run) => run.to_json(),
            Err(error) => json!({"id": name, "status": "unreadable", "error": error.to_string()}),
        };
        print(&pretty_json(&named_runs.map(row).collect())?)?;
    } else if runs.is_empty() {
        print(&format!("no runs found in the volume {volume}\n"))?;
    } else {
        let headings = ["id", "status", "steps", "gpu", "attempts", "preemptions", "hours", "$", "error"];
        let rows: Vec<Vec<String>> = named_runs.map(|(name, run)| row(name, run)).collect();
        print(&table(&headings, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, run: &anyhow::Result<CloudRun>) -> Vec<String> {
    let run = match run {
        Ok(run) => run,
        Err(error) => {
            let unknown = vec![String::new(); 6];
            let (name, error) = (name.to_owned(), clean(&format!("{error:#}"), MAX_TEXT));
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
        let Some(app) = running_app(&app_name(&location.app))? else {
            bail!("{}: no container works on this run", location.id)
        };
        let status = modal::run(&["app", "logs", "--follow", &app])?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let run = CloudRun::load(&args.run)?;
    let text = read_file(&location.folder, LOG)?
        .with_context(|| format!("{}: the run has no log yet", run.location.id))?;
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
    let Some(app) = running_app(&app_name(&location.app))? else {
        bail!("{}: no container works on this run; tiny-cats cloud status shows its status", location.id);
    };
    modal::run_captured(&["app", "stop", "--yes", &app])?;
    print(&format!(
        "{}: stopped; saved states are kept, and the same command resumes the run\n",
        location.id
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Downloads all files except training states to a temporary folder, verifies the released files, and moves all files to the run's folder.
///
/// # Errors
/// If Modal cannot be reached, the run has not finished, or the downloaded files differ from the released ones.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let run = CloudRun::load(&args.run)?;
    let (id, run_path) = (&run.location.id, &run.location.folder);
    if !run.is_finished() {
        bail!("{}: expected a finished run, found {} at step {}", id, clean(run.status(), 20), run.steps());
    }
    let folder = args.runs_dir.join(Path::new(run_path).file_name().unwrap_or_default());
    let start_time = |record: &folder::RunRecord| record.started;
    if let Ok(local) = folder::RunRecord::load(&folder)
        && Some(local.started) != run.record.as_ref().map(start_time)
    {
        bail!(
            "{}: this folder contains another run; choose another folder with --runs-dir",
            folder.display()
        );
    }
    let volume = CloudSettings::default().app.output_volume;
    let entries = list_volume(&volume, &format!("/runs/{run_path}"))?;
    let is_wanted = |name: &String| {
        let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let extensions = [".pt", ".safetensors", ".json", ".jsonl", ".toml", ".log", ".png", ".onnx"];
        name.chars().all(is_safe)
            && !name.starts_with('.')
            && !name.contains("_step_")
            && extensions.iter().any(|extension| name.ends_with(extension))
    };
    let names: Vec<String> = entries.into_iter().filter(|e| !e.1).map(|e| e.0).filter(is_wanted).collect();
    std::fs::create_dir_all(&args.runs_dir).with_context(|| args.runs_dir.display().to_string())?;
    let temp_folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&args.runs_dir);
    let temp_folder =
        temp_folder.map_err(strip_temp_name).with_context(|| args.runs_dir.display().to_string())?;
    for name in &names {
        let to = temp_folder.path().join(name);
        modal::run_captured(&[
            "volume",
            "get",
            &volume,
            &format!("runs/{run_path}/{name}"),
            &to.to_string_lossy(),
        ])?;
        if !to.is_file() {
            bail!("{}: {name} was not downloaded", id);
        }
    }
    let released: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".pt") || name.ends_with(".safetensors")).collect();
    if released.is_empty() {
        bail!("{}: expected a released file, found none", id);
    }
    for name in released {
        let options = VerifyOptions::default();
        let report = verify(&temp_folder.path().join(name), &options);
        if let Some(problem) = report.problems.first() {
            bail!("{name}: verification failed: {problem}");
        }
        print(&format!("verified {name}\n"))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let lock = Lock::acquire(&folder)?;
    if lock.is_none() {
        bail!("{}: another process trains in this folder", folder.display());
    }
    for name in &names {
        let to = folder.join(name);
        std::fs::rename(temp_folder.path().join(name), &to).with_context(|| to.display().to_string())?;
    }
    print(&format!("{}: {}\n", folder.display(), pluralize(names.len(), "file")))?;
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}
