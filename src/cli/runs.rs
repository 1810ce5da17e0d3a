//! `tiny-cats runs`: lists runs, or shows one.

use std::{
    fmt::Write as _,
    io::{ErrorKind, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tiny_cats_export::closest;

use super::{
    common::{pretty_json, print},
    table::{clean, table},
};
use crate::{
    chart::{Curve, draw, format_number},
    cloud,
    plural::pluralize,
    sweep,
    train::{
        folder::{CONFIGURATION, Lock, RUNS, RunRecord, Status, latest, read_bounded},
        metrics::{Goal, LOSS, MEAN_LOSS, METRICS, Metrics, Point, best},
    },
};

/// Bytes at the end of `metrics.jsonl` that are searched for the last loss, some hundreds of lines.
const TAIL_BYTES: u64 = 64 << 10;
/// The width of the loss curve without a terminal, in characters.
const WIDTH: usize = 80;
/// Maximum printed characters of a text from a file.
const MAX_TEXT: usize = 200;
/// The name for the newest run.
const LATEST: &str = "latest";

/// The arguments of `tiny-cats runs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder of the runs
    #[arg(long, default_value = RUNS, value_name = "DIR", global = true)]
    runs_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Shows the record, the configuration, the best evaluations and the loss curve of a run.
    Show {
        /// The run: `latest`, its ID, or a unique prefix or suffix of the ID
        #[arg(default_value = LATEST)]
        id: String,
    },
}

/// Lists the runs, or shows one.
///
/// # Errors
/// If the folder cannot be read or the run does not exist. In the list, a run that cannot be read is a line with the reason.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let output = match &args.command {
        None => {
            let runs = list(&args.runs_dir)?;
            if args.json {
                pretty_json(&runs.iter().map(RunSummary::to_json).collect())?
            } else {
                runs_table(&runs, &args.runs_dir)
            }
        }
        Some(Command::Show { id }) => {
            let run = RunSummary::open(find(&args.runs_dir, id)?);
            show(&run, args.json)?
        }
    };
    print(&output)
}

/// The readable information about a run.
struct RunSummary {
    folder: PathBuf,
    id: String,
    /// The record, or the reason why it cannot be read.
    record: Result<RunRecord, String>,
    /// The status in the record; `killed` and `broken` are determined here.
    status: &'static str,
    /// The loss of the last logged step.
    loss: Option<Point>,
    /// The running mean of the loss at that step; `None` for runs of earlier versions.
    mean_loss: Option<Point>,
}

impl RunSummary {
    fn open(folder: PathBuf) -> Self {
        let id = name(&folder);
        let record = RunRecord::load(&folder).map_err(|e| e.to_string());
        let status = match &record {
            Err(_) => "broken",
            Ok(record) => match record.status {
                Status::Running if Lock::is_held(&folder) => "running",
                Status::Running => "killed",
                Status::Stopped => "stopped",
                Status::Failed => "failed",
                Status::Finished => "finished",
            },
        };
        let metrics = Metrics::tail(&folder.join(METRICS), TAIL_BYTES).unwrap_or_default();
        let [loss, mean_loss] = [LOSS, MEAN_LOSS].map(|name| metrics.training(name).last().copied());
        Self { folder, id, record, status, loss, mean_loss }
    }

    /// The newest sample grid, relative to the working directory.
    fn sample(&self) -> Option<PathBuf> {
        Some(self.folder.join(self.record.as_ref().ok()?.sample.as_ref()?))
    }

    fn to_json(&self) -> Value {
        let mut json = match &self.record {
            Ok(record) => json!(record),
            Err(error) => json!({"id": self.id, "error": error}),
        };
        json["status"] = json!(self.status);
        json["folder"] = json!(self.folder.to_string_lossy());
        json["loss"] = json!(self.loss);
        json[MEAN_LOSS] = json!(self.mean_loss);
        json["sample"] = json!(self.sample().map(|path| path.to_string_lossy().into_owned()));
        json
    }
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders that may contain runs, sorted by name; empty if `root` does not exist.
fn folders(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("--runs-dir {}", root.display()))?,
    };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_run = |path: &PathBuf| {
        let name = name(path);
        path.is_dir() && !path.is_symlink() && !name.starts_with('.') && name != sweep::SWEEPS
    };
    let mut folders: Vec<_> = folders.filter(is_run).collect();
    folders.sort();
    Ok(folders)
}

/// All runs, oldest first; runs that cannot be read come before the others.
fn list(root: &Path) -> anyhow::Result<Vec<RunSummary>> {
    let mut runs: Vec<RunSummary> = folders(root)?.into_iter().map(RunSummary::open).collect();
    runs.sort_by_key(|run| run.record.as_ref().map_or(0, |record| record.started));
    Ok(runs)
}

/// Finds the folder of a run by its ID, or by a unique prefix or suffix of it.
fn find(root: &Path, id: &str) -> anyhow::Result<PathBuf> {
    let folders = folders(root)?;
    if id == LATEST {
        // The link is used only for its name, and only if that run exists.
        let linked_name = latest(root);
        let latest = folders.iter().find(|folder| Some(name(folder)) == linked_name).cloned();
        let newest = || Some(list(root).ok()?.pop()?.folder);
        return latest.or_else(newest).with_context(|| format!("{}: no runs found", root.display()));
    }
    let names: Vec<String> = folders.iter().map(|folder| name(folder)).collect();
    if let Some(exact) = names.iter().position(|name| name == id) {
        return Ok(folders[exact].clone());
    }
    let is_match = |i: &usize| !id.is_empty() && (names[*i].starts_with(id) || names[*i].ends_with(id));
    match (0..names.len()).filter(is_match).collect::<Vec<_>>()[..] {
        [index] => Ok(folders[index].clone()),
        [] => {
            let suggestion = closest(id, names.iter().map(String::as_str));
            let suggestion =
                suggestion.map_or(String::new(), |id| format!("; did you mean {}?", clean(id, MAX_TEXT)));
            bail!("{}: no run is called {}{suggestion}", root.display(), clean(id, MAX_TEXT))
        }
        [first, second, ..] => bail!(
            "{}: several runs match {}, such as {} and {}",
            root.display(),
            clean(id, MAX_TEXT),
            clean(&names[first], MAX_TEXT),
            clean(&names[second], MAX_TEXT)
        ),
    }
}

/// Formats seconds since 1970 as a date and time in UTC.
fn time(seconds: u64) -> String {
    // RFC 3339 has no years after 9999.
    let time = (seconds < 253_402_300_800).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    time.map_or_else(
        || "unknown".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', ""),
    )
}

fn score(name: &str, value: f64, step: u64) -> String {
    format!("{} {} at {step}", clean(name, 40), format_number(value))
}

fn runs_table(runs: &[RunSummary], root: &Path) -> String {
    if runs.is_empty() {
        return format!("{}: no runs found\n", root.display());
    }
    let row = |run: &RunSummary| -> Vec<String> {
        let id = clean(&run.id, 60);
        let Ok(record) = &run.record else {
            return vec![id, String::new(), run.status.to_owned()];
        };
        let best = record.best.as_ref().map(|best| score(&best.name, best.value, best.step));
        let last_loss =
            || run.loss.map_or_else(String::new, |loss| format!("{} (last step)", format_number(loss.value)));
        let sample = run.sample().map(|path| clean(&path.to_string_lossy(), MAX_TEXT));
        vec![
            id,
            clean(&record.task, 20),
            run.status.to_owned(),
            format!("{}/{}", record.step, record.steps),
            best.unwrap_or_default(),
            run.mean_loss.map_or_else(last_loss, |mean| format_number(mean.value)),
            time(record.started),
            sample.unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = runs.iter().map(row).collect();
    let headings = ["id", "task", "status", "steps", "best", "mean loss", "started (UTC)", "sample"];
    let mut output = String::new();
    for (line, run) in table(&headings, &rows).lines().zip(std::iter::once(None).chain(runs.iter().map(Some)))
    {
        output += line;
        // The reason why the record cannot be read replaces the unknown columns.
        if let Some(Err(error)) = run.map(|run| &run.record) {
            let _ = write!(output, ": {}", clean(error, MAX_TEXT));
        }
        output.push('\n');
    }
    output
}

fn show(run: &RunSummary, json: bool) -> anyhow::Result<String> {
    if let Err(error) = &run.record {
        bail!("{}", clean(error, 2 * MAX_TEXT));
    }
    let metrics = Metrics::read(&run.folder.join(METRICS));
    let error = metrics.as_ref().err().map(ToString::to_string);
    let metrics = metrics.unwrap_or_default();
    let config = read_bounded(&run.folder.join(CONFIGURATION))
        .ok()
        .map(|text| String::from_utf8_lossy(&text).into_owned());
    // A metric whose goal is unknown is minimized.
    let goal = |name: &str| Goal::for_metric(name).unwrap_or(Goal::Min);
    let best =
        metrics.evaluations().filter_map(|(name, points)| Some((name, best(points, goal(name))?, points)));
    let best: Vec<(&str, Point, &[Point])> = best.collect();
    if json {
        let mut output = run.to_json();
        output["config"] = json!(config.and_then(|text| text.parse::<toml::Table>().ok()));
        let evaluations = best.iter().map(|(name, best_point, points)| {
            json!({"name": name, "best": best_point, "last": points.last(), "evaluations": points.len()})
        });
        output["evaluations"] = evaluations.collect();
        output["metrics"] = json!(run.folder.join(METRICS).to_string_lossy());
        output["cloud"] = json!(cloud::CloudRecord::load(&run.folder).ok().flatten());
        output["unreadable_lines"] = json!(metrics.unreadable);
        return pretty_json(&output);
    }
    let mut output = String::new();
    write_record(&mut output, run)?;
    if let Some(config) = config {
        writeln!(output, "\n{CONFIGURATION}")?;
        for line in config.lines().take(MAX_TEXT).filter(|line| !line.trim().is_empty()) {
            writeln!(output, "  {}", clean(line, MAX_TEXT))?;
        }
    }
    if !best.is_empty() {
        writeln!(output)?;
        let row = |(name, best_point, points): &(&str, Point, &[Point])| {
            let last_value = points.last().map_or(f64::NAN, |point| point.value);
            vec![
                clean(name, 40),
                format_number(best_point.value),
                best_point.step.to_string(),
                format_number(last_value),
                points.len().to_string(),
            ]
        };
        let rows: Vec<_> = best.iter().map(row).collect();
        output += &table(&["evaluation", "best", "step", "last", "count"], &rows);
    }
    writeln!(output)?;
    let best_name = run.record.as_ref().ok().and_then(|record| record.best.as_ref()).map(|best| &best.name);
    let scores: Vec<_> = metrics.evaluations().collect();
    let selected =
        scores.iter().find(|(name, _)| Some(*name) == best_name.map(String::as_str)).or(scores.first());
    let title = selected.map_or(String::new(), |(name, _)| clean(name, 40));
    let evaluation_curve = selected.map(|(_, points)| Curve { name: &title, points });
    let share_axis = title == format!("validation_{LOSS}");
    let is_terminal = std::io::stdout().is_terminal();
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| usize::from(width.0));
    let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    output += &draw(
        Curve { name: LOSS, points: metrics.training(LOSS) },
        evaluation_curve,
        share_axis,
        width.min(160),
        color,
    );
    if metrics.unreadable > 0 {
        let lines = pluralize(metrics.unreadable, "line");
        writeln!(output, "{METRICS}: skipped {lines} without metrics")?;
    }
    if metrics.omitted > 0 {
        writeln!(output, "{METRICS}: skipped the first {} MiB", metrics.omitted >> 20)?;
    }
    if let Some(error) = error {
        writeln!(output, "{}", clean(&error, MAX_TEXT))?;
    }
    Ok(output)
}

/// Writes the record of a run to `output`.
fn write_record(output: &mut String, run: &RunSummary) -> std::fmt::Result {
    let Ok(record) = &run.record else { return Ok(()) };
    let mut row = |name: &str, text: &str| {
        if text.is_empty() { Ok(()) } else { writeln!(output, "{name:<10}{}", clean(text, 5 * MAX_TEXT)) }
    };
    row("run", &run.id)?;
    row("task", &record.task)?;
    row("status", run.status)?;
    row("step", &format!("{} of {}", record.step, record.steps))?;
    row("started", &format!("{} UTC", time(record.started)))?;
    row("written", &format!("{} UTC", time(record.written)))?;
    let best = record.best.as_ref().map(|best| score(&best.name, best.value, best.step));
    row("best", &best.unwrap_or_default())?;
    for (name, loss) in [("mean loss", run.mean_loss), ("loss", run.loss)] {
        row(
            name,
            &loss.map_or_else(String::new, |loss| format!("{} at {}", format_number(loss.value), loss.step)),
        )?;
    }
    row("error", record.error.as_deref().unwrap_or_default())?;
    row("sample", &run.sample().map_or_else(String::new, |path| path.to_string_lossy().into_owned()))?;
    if let Ok(Some(cloud)) = cloud::CloudRecord::load(&run.folder) {
        row("cloud", &cloud.to_line())?;
    }
    row("command", &record.command.join(" "))?;
    row("folder", &run.folder.to_string_lossy())
}
