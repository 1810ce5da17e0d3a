//! How the jobs of a sweep stand: `sweep.json`.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tiny_cats_export::write_atomically;

use super::{Error, Job, Result, Setting, Sweep};
use crate::train::{
    difference::difference,
    metrics::{Goal, Point},
};

/// The file in a sweep's folder: a [`SweepState`].
pub const STATE_FILE: &str = "sweep.json";
/// Ten thousand jobs take some ten megabytes.
const MAX_BYTES: u64 = 64 << 20;
const FORMAT: u64 = 1;

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// It was not begun.
    Pending,
    /// It was begun, and it is not known how it ended.
    Running,
    /// It was stopped and can go on.
    Stopped,
    /// It ended with an error.
    Failed,
    /// It is done.
    Finished,
}

impl JobStatus {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Finished => "finished",
        }
    }
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The job's name.
    pub job: String,
    /// What differs, by flag.
    pub settings: BTreeMap<String, Setting>,
    /// How it stands.
    pub status: JobStatus,
    /// What decides; `None` where the run did not log it.
    pub metric: Option<Point>,
    /// The folder of its run, from the sweep's folder.
    pub run: Option<PathBuf>,
    /// Why it failed.
    pub error: Option<String>,
    /// How long it took, in seconds, over all attempts.
    pub seconds: f64,
}

/// How all jobs stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepState {
    format: u64,
    /// The sweep that it is of.
    sweep: Value,
    /// In the order of the jobs.
    pub jobs: Vec<Outcome>,
}

impl SweepState {
    /// Of a sweep that begins.
    pub fn new(sweep: &Sweep, jobs: &[Job]) -> Self {
        let outcome = |job: &Job| Outcome {
            job: job.name.clone(),
            settings: job.settings.clone(),
            status: JobStatus::Pending,
            metric: None,
            run: None,
            error: None,
            seconds: 0.0,
        };
        Self { format: FORMAT, sweep: json!(sweep), jobs: jobs.iter().map(outcome).collect() }
    }

    /// That in `folder`, or a new one if there is none. What it says of jobs that the sweep does not have is left out.
    ///
    /// # Errors
    /// When there is one of another sweep, or it cannot be read.
    pub fn open(folder: &Path, sweep: &Sweep, jobs: &[Job]) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let mut state = Self::new(sweep, jobs);
        let about = match std::fs::metadata(&path) {
            Ok(about) => about,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(state),
            Err(e) => return Err(Error::file(&path, e)),
        };
        if !about.is_file() || about.len() > MAX_BYTES {
            return Err(Error::file(&path, "expected what is known of a sweep"));
        }
        let text = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
        let broken = |e| Error::file(&path, format!("expected what is known of a sweep: {e}"));
        let old: Self = serde_json::from_slice(&text).map_err(broken)?;
        if old.format != FORMAT {
            let message =
                format!("format: expected {FORMAT}, found {}: it is of another version", old.format);
            return Err(Error::file(&path, message));
        }
        if let Some(field) = difference("", &old.sweep, &state.sweep) {
            let message = format!(
                "{} is not the sweep that was begun: {field}; give it another name, or remove the folder to begin anew",
                sweep.path.display()
            );
            return Err(Error::file(folder, message));
        }
        let mut known: BTreeMap<String, Outcome> = old.jobs.into_iter().map(|o| (o.job.clone(), o)).collect();
        for outcome in &mut state.jobs {
            if let Some(old) = known.remove(&outcome.job) {
                let settings = std::mem::take(&mut outcome.settings);
                *outcome = Outcome { settings, ..old };
            }
        }
        Ok(state)
    }

    /// Writes it into `folder`, atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(STATE_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e))?;
        text.push(b'\n');
        write_atomically(&path, |w| w.write_all(&text)).map_err(|e: std::io::Error| Error::file(&path, e))
    }

    /// The outcomes, the best first: those that have the metric, those that are done without it, then the others as they come.
    pub fn ranked(&self, goal: Goal) -> Vec<&Outcome> {
        let value = |outcome: &Outcome| match outcome.status {
            JobStatus::Finished => outcome.metric.map_or(f64::NAN, |point| point.value),
            _ => f64::NAN,
        };
        let mut ranked: Vec<&Outcome> = self.jobs.iter().collect();
        ranked.sort_by(|a, b| {
            let (x, y) = (value(a), value(b));
            let done = |o: &Outcome| o.status != JobStatus::Finished;
            goal.is_better(y, x).cmp(&goal.is_better(x, y)).then(done(a).cmp(&done(b)))
        });
        ranked
    }

    /// How many have that status.
    pub fn count(&self, status: JobStatus) -> usize {
        self.jobs.iter().filter(|outcome| outcome.status == status).count()
    }
}
