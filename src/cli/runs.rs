//! `tiny-cats runs`: lists runs, or shows one.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{anyhow, bail};
use serde_json::json;

use super::{
    common::{pretty_json, print},
    table::{clean, table},
};
use crate::{
    chart::{Curve, draw, format_number},
    plural::pluralize,
    runs::{Error, EvaluationSummary, LATEST, RunDetails, RunSummary, find, list},
    train::{
        folder::{CONFIGURATION, RUNS},
        metrics::{LOSS, METRICS},
    },
};

/// The width of the loss curve without a terminal, in characters.
const WIDTH: usize = 80;
/// Maximum width of the loss curve, in characters.
const MAX_WIDTH: usize = 160;
/// Maximum printed characters of a text from a file.
const MAX_TEXT: usize = 200;

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
            let runs = list(&args.runs_dir).map_err(with_flags)?;
            if args.json { pretty_json(&json!(runs))? } else { runs_table(&runs, &args.runs_dir) }
        }
        Some(Command::Show { id }) => {
            let run = RunSummary::open(find(&args.runs_dir, id).map_err(with_flags)?);
            if let Err(error) = &run.record {
                bail!("{}", clean(error, 2 * MAX_TEXT));
            }
            let run = RunDetails::read(run);
            if args.json { pretty_json(&json!(run))? } else { show(&run)? }
        }
    };
    print(&output)
}

/// Adds the flag to an error about the folder of the runs.
fn with_flags(error: Error) -> anyhow::Error {
    match error {
        Error::Folder { .. } => anyhow!("--runs-dir {error}"),
        error => error.into(),
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

/// Formats all information about a run.
fn show(run: &RunDetails) -> Result<String, std::fmt::Error> {
    let RunDetails { metrics, metrics_error, .. } = run;
    let mut output = String::new();
    write_record(&mut output, run)?;
    if let Some(text) = &run.configuration {
        writeln!(output, "\n{CONFIGURATION}")?;
        for line in text.lines().take(MAX_TEXT).filter(|line| !line.trim().is_empty()) {
            writeln!(output, "  {}", clean(line, MAX_TEXT))?;
        }
    }
    let evaluations = run.evaluations();
    if !evaluations.is_empty() {
        writeln!(output)?;
        output += &evaluations_table(&evaluations);
    }
    writeln!(output)?;
    output += &curves(run);
    if metrics.unreadable > 0 {
        let lines = pluralize(metrics.unreadable, "line");
        writeln!(output, "{METRICS}: skipped {lines} without metrics")?;
    }
    if metrics.omitted > 0 {
        writeln!(output, "{METRICS}: skipped the first {} MiB", metrics.omitted >> 20)?;
    }
    if let Some(error) = metrics_error {
        writeln!(output, "{}", clean(error, MAX_TEXT))?;
    }
    Ok(output)
}

fn evaluations_table(evaluations: &[EvaluationSummary]) -> String {
    let row = |evaluation: &EvaluationSummary| {
        let EvaluationSummary { name, best, last, count } = evaluation;
        vec![
            clean(name, 40),
            format_number(best.value),
            best.step.to_string(),
            format_number(last.value),
            count.to_string(),
        ]
    };
    let rows: Vec<_> = evaluations.iter().map(row).collect();
    table(&["evaluation", "best", "step", "last", "count"], &rows)
}

/// Draws the loss, and the metric that selects the best weights.
fn curves(run: &RunDetails) -> String {
    let record = run.summary.record.as_ref().ok();
    let best_name = record.and_then(|record| record.best.as_ref()).map(|best| &best.name);
    let scores: Vec<_> = run.metrics.evaluations().collect();
    let selected =
        scores.iter().find(|(name, _)| Some(*name) == best_name.map(String::as_str)).or(scores.first());
    let title = selected.map_or(String::new(), |(name, _)| clean(name, 40));
    let evaluation_curve = selected.map(|(_, points)| Curve { name: &title, points });
    let share_axis = title == format!("validation_{LOSS}");
    let is_terminal = std::io::stdout().is_terminal();
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| usize::from(width.0));
    let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    draw(
        Curve { name: LOSS, points: run.metrics.training(LOSS) },
        evaluation_curve,
        share_axis,
        width.min(MAX_WIDTH),
        color,
    )
}

/// Writes the record of a run to `output`.
fn write_record(output: &mut String, details: &RunDetails) -> std::fmt::Result {
    let run = &details.summary;
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
    if let Some(cloud) = &details.cloud {
        row("cloud", &cloud.to_line())?;
    }
    row("command", &record.command.join(" "))?;
    row("folder", &run.folder.to_string_lossy())
}
