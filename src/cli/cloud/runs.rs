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

use super::{app_name, file, list_volume, running_app};
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
pub struct Status {
    /// The run; unset, the newest
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
pub struct Logs {
    /// The run
    run: String,
    /// Keep printing the output of its containers while it runs
    #[arg(short, long)]
    follow: bool,
}

/// The arguments of `tiny-cats cloud fetch`.
#[derive(clap::Args, Debug)]
pub struct Fetch {
    /// The run
    run: String,
    /// Folder of the runs on this machine; the run gets a folder in it
    #[arg(long, default_value = RUNS, value_name = "DIR")]
    runs_dir: PathBuf,
}

/// The arguments of `tiny-cats cloud stop`.
#[derive(clap::Args, Debug)]
pub struct Stop {
    /// The run
    run: String,
}

/// The maximum number of printed characters of a text from elsewhere.
const MAX_TEXT: usize = 200;

/// The maximum number of runs that are requested at once.
const MAX_CONCURRENT: usize = 8;

/// The location of a run: its folder below `runs/` in the volume, and the name of its app.
struct RunLocation {
    id: String,
    folder: String,
    app: String,
}

impl RunLocation {
    /// Parses the name of a run, or of a sweep's job as `sweeps/NAME/JOB`.
    ///
    /// # Errors
    /// If the name is neither.
    fn of(id: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = id.split('/').collect();
        let (folder, app) = match parts[..] {
            [run] => (run.to_owned(), run.to_owned()),
            [SWEEPS, sweep, job] => (format!("{SWEEPS}/{sweep}/{job}/{job}"), format!("sweep-{sweep}")),
            [SWEEPS, sweep] => (format!("{SWEEPS}/{sweep}"), format!("sweep-{sweep}")),
            _ => bail!("{}: expected a run's name, or sweeps/NAME/JOB", clean(id, MAX_TEXT)),
        };
        let names = if parts.len() > 1 { &parts[1..] } else { &parts[..] };
        if !names.iter().all(|name| folder::is_id(name)) {
            bail!("{}: expected a run's name, such as tiny-cats cloud status lists", clean(id, MAX_TEXT));
        }
        Ok(Self { id: id.to_owned(), folder, app })
    }
}

/// A run in the volume, with the records that exist.
struct CloudRun {
    place: RunLocation,
    record: Option<folder::RunRecord>,
    cloud: Option<CloudRecord>,
}

impl CloudRun {
    /// Loads the records of a run.
    ///
    /// # Errors
    /// If Modal cannot be reached, or there is no such run.
    fn load(id: &str) -> anyhow::Result<Self> {
        let place = RunLocation::of(id)?;
        let (record, cloud) = (file(&place.folder, folder::RECORD)?, file(&place.folder, RECORD)?);
        if record.is_none() && cloud.is_none() {
            let volume = CloudSettings::default().app.output_volume;
            let known = list_volume(&volume, "/runs").unwrap_or_default();
            let others = known.iter().map(|entry| entry.0.as_str()).filter(|other| *other != id);
            let near = tiny_cats_export::closest(id, others);
            let near =
                near.map_or(String::new(), |near| format!("; the nearest is {}", clean(near, MAX_TEXT)));
            bail!("{id}: there is no such run in the volume {volume}{near}");
        }
        let record = record.map(|text| serde_json::from_slice(&text)).transpose();
        let record = record.with_context(|| format!("{id}/{}", folder::RECORD))?;
        let cloud = cloud.map(|text| CloudRecord::parse(&Path::new(id).join(RECORD), &text)).transpose()?;
        Ok(Self { place, record, cloud })
    }

    /// True if the run and its work in the cloud have finished.
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

    fn json(&self) -> Value {
        json!({"id": self.place.id, "status": self.status(), "record": self.record, "cloud": self.cloud})
    }
}

/// Lists the newest runs, or shows one.
///
/// # Errors
/// If Modal cannot be reached, or there is no such run.
pub fn status(args: &Status) -> anyhow::Result<ExitCode> {
    if let Some(run) = &args.run {
        let run = CloudRun::load(run)?;
        print(&if args.json { pretty_json(&run.json())? } else { about(&run) })?;
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
    // Names begin with the time, unless the user chose them.
    names.sort();
    let newest = names.split_off(names.len().saturating_sub(args.count));
    let mut runs: Vec<anyhow::Result<CloudRun>> = Vec::new();
    for some in newest.chunks(MAX_CONCURRENT) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|name| scope.spawn(|| CloudRun::load(name))).collect();
            let gone = || Err(anyhow::anyhow!("could not be asked for"));
            runs.extend(asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())));
        });
    }
    // If Modal cannot be reached for one run, it cannot for any. A single unreadable run is a line of the list.
    if let Some(error) = runs.iter().position(|run| run.as_ref().is_err_and(|e| e.is::<modal::Error>())) {
        return runs.swap_remove(error).map(|_| ExitCode::FAILURE);
    }
    let both = newest.iter().zip(&runs);
    if args.json {
        let row = |(name, run): (&String, &anyhow::Result<CloudRun>)| match run {
            Ok(run) => run.json(),
            Err(error) => json!({"id": name, "status": "unreadable", "error": error.to_string()}),
        };
        print(&pretty_json(&both.map(row).collect())?)?;
    } else if runs.is_empty() {
        print(&format!("there are no runs in the volume {volume}\n"))?;
    } else {
        let head = ["id", "status", "steps", "gpu", "attempts", "preemptions", "hours", "$", "error"];
        let rows: Vec<Vec<String>> = both.map(|(name, run)| row(name, run)).collect();
        print(&table(&head, &rows))?;
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
        run.place.id.clone(),
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

fn about(run: &CloudRun) -> String {
    let mut said = format!("run       {}\nstatus    {}\n", run.place.id, clean(run.status(), 20));
    if let Some(record) = &run.record {
        said += &format!("task      {}\nsteps     {}\n", clean(&record.task, 20), run.steps());
        if let Some(best) = &record.best {
            said += &format!("best      {} {:.4} at {}\n", clean(&best.name, 40), best.value, best.step);
        }
    }
    if let Some(cloud) = &run.cloud {
        said += &format!("cloud     {}\n", clean(&cloud.line(), MAX_TEXT));
        for attempt in &cloud.attempts {
            let hours = attempt.ended.map_or_else(
                || "now".to_owned(),
                |ended| format!("{:.2} h", (ended - attempt.begun) / 3600.0),
            );
            let gpu = attempt.gpu.as_deref().unwrap_or("no GPU");
            said += &format!("          {}, {hours}, {}\n", clean(gpu, 60), clean(&attempt.outcome, 40));
        }
    }
    if !run.error().is_empty() {
        said += &format!("error     {}\n", clean(run.error(), MAX_TEXT));
    }
    said
}

/// Prints the log of a run.
///
/// # Errors
/// If Modal cannot be reached, or there is no such run.
pub fn logs(args: &Logs) -> anyhow::Result<ExitCode> {
    let place = RunLocation::of(&args.run)?;
    if args.follow {
        let Some(app) = running_app(&app_name(&place.app))? else {
            bail!("{}: no container works on it now", place.id)
        };
        let status = modal::run(&["app", "logs", "--follow", &app])?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let run = CloudRun::load(&args.run)?;
    let text =
        file(&place.folder, LOG)?.with_context(|| format!("{}: it has said nothing yet", run.place.id))?;
    // Control characters of a text from elsewhere could change the terminal.
    let text = String::from_utf8_lossy(&text);
    let shown = |c: char| if c == '\n' || c == '\t' || !c.is_control() { c } else { '\u{fffd}' };
    print(&text.chars().map(shown).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the app that works on a run.
///
/// # Errors
/// If Modal cannot be reached, or no app works on the run.
pub fn stop(args: &Stop) -> anyhow::Result<ExitCode> {
    let place = RunLocation::of(&args.run)?;
    let Some(app) = running_app(&app_name(&place.app))? else {
        bail!("{}: no container works on it; tiny-cats cloud status says how it stands", place.id);
    };
    modal::run_captured(&["app", "stop", "--yes", &app])?;
    print(&format!(
        "{}: stopped; what was saved stays, and the same command goes on from there\n",
        place.id
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Downloads everything except the training states into a temporary folder, verifies the released files, and only then moves it into place.
///
/// # Errors
/// If Modal cannot be reached, the run has not finished, or the downloaded files differ from the released ones.
pub fn fetch(args: &Fetch) -> anyhow::Result<ExitCode> {
    let run = CloudRun::load(&args.run)?;
    let (id, there) = (&run.place.id, &run.place.folder);
    if !run.is_finished() {
        bail!("{}: is not finished: {} at step {}", id, clean(run.status(), 20), run.steps());
    }
    let folder = args.runs_dir.join(Path::new(there).file_name().unwrap_or_default());
    let begun = |record: &folder::RunRecord| record.begun;
    if let Ok(here) = folder::RunRecord::load(&folder)
        && Some(here.begun) != run.record.as_ref().map(begun)
    {
        bail!("{}: another run of this name is here; --runs-dir can name another place", folder.display());
    }
    let volume = CloudSettings::default().app.output_volume;
    let entries = list_volume(&volume, &format!("/runs/{there}"))?;
    let wanted = |name: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let known = [".pt", ".safetensors", ".json", ".jsonl", ".toml", ".log", ".png", ".onnx"];
        name.chars().all(plain)
            && !name.starts_with('.')
            && !name.contains("_step_")
            && known.iter().any(|k| name.ends_with(k))
    };
    let names: Vec<String> = entries.into_iter().filter(|e| !e.1).map(|e| e.0).filter(wanted).collect();
    std::fs::create_dir_all(&args.runs_dir).with_context(|| args.runs_dir.display().to_string())?;
    let stage = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&args.runs_dir);
    let stage = stage.map_err(strip_temp_name).with_context(|| args.runs_dir.display().to_string())?;
    for name in &names {
        let to = stage.path().join(name);
        modal::run_captured(&[
            "volume",
            "get",
            &volume,
            &format!("runs/{there}/{name}"),
            &to.to_string_lossy(),
        ])?;
        if !to.is_file() {
            bail!("{}: {name} did not come", id);
        }
    }
    let released: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".pt") || name.ends_with(".safetensors")).collect();
    if released.is_empty() {
        bail!("{}: there is no released file, which a finished run has", id);
    }
    for name in released {
        let options = VerifyOptions::default();
        let report = verify(&stage.path().join(name), &options);
        if let Some(problem) = report.problems.first() {
            bail!("{name} is not kept: {problem}");
        }
        print(&format!("verified {name}\n"))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let lock = Lock::take(&folder)?;
    if lock.is_none() {
        bail!("{}: another process trains in this folder", folder.display());
    }
    for name in &names {
        let to = folder.join(name);
        std::fs::rename(stage.path().join(name), &to).with_context(|| to.display().to_string())?;
    }
    print(&format!("{}: {}\n", folder.display(), pluralize(names.len(), "file")))?;
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}
