//! The state of a sweep's jobs: `sweep.json`.

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

/// The file in a sweep's folder that holds its [`SweepState`].
pub const STATE_FILE: &str = "sweep.json";
/// Maximum bytes of the file; 10,000 jobs take about 10 MB.
const MAX_BYTES: u64 = 64 << 20;
/// The version of the format.
const FORMAT: u64 = 1;

/// The status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// The job has not started.
    Pending,
    /// The job has started, and its end is not recorded.
    Running,
    /// The job was stopped and can be resumed.
    Stopped,
    /// The job ended with an error.
    Failed,
    /// The job has finished.
    Finished,
}

impl JobStatus {
    /// The name of the status.
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

/// The outcome of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The name of the job.
    pub job: String,
    /// The settings that differ between jobs, by flag.
    pub settings: BTreeMap<String, Setting>,
    /// The status of the job.
    pub status: JobStatus,
    /// The metric that ranks jobs; `None` if the run did not log it.
    pub metric: Option<Point>,
    /// The folder of its run, relative to the sweep's folder.
    pub run: Option<PathBuf>,
    /// The error, if it failed.
    pub error: Option<String>,
    /// Duration of all attempts in seconds.
    pub seconds: f64,
}

/// The state of all jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepState {
    format: u64,
    /// The settings of the sweep, to detect a state of another sweep.
    sweep: Value,
    /// The outcomes in the order of the jobs.
    pub jobs: Vec<Outcome>,
}

impl SweepState {
    /// Creates the state of a new sweep.
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

    /// Reads the state in `folder`, or creates a new one if there is none.
    ///
    /// Jobs that the sweep does not have are dropped.
    ///
    /// # Errors
    /// Returns an error if the state is of another sweep or cannot be read.
    pub fn open(folder: &Path, sweep: &Sweep, jobs: &[Job]) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let mut state = Self::new(sweep, jobs);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(state),
            Err(e) => return Err(Error::file(&path, e)),
        };
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(Error::file(&path, "expected the state of a sweep"));
        }
        let text = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
        let parse_error = |e| Error::file(&path, format!("expected the state of a sweep: {e}"));
        let old: Self = serde_json::from_slice(&text).map_err(parse_error)?;
        if old.format != FORMAT {
            let message =
                format!("format: expected {FORMAT}, found {}; the file is from another version", old.format);
            return Err(Error::file(&path, message));
        }
        if let Some(field) = difference("", &old.sweep, &state.sweep) {
            let message = format!(
                "{} differs from the sweep in this folder: {field}; rename the file, or remove the folder to start again",
                sweep.path.display()
            );
            return Err(Error::file(folder, message));
        }
        let mut recorded: BTreeMap<String, Outcome> =
            old.jobs.into_iter().map(|o| (o.job.clone(), o)).collect();
        for outcome in &mut state.jobs {
            if let Some(old) = recorded.remove(&outcome.job) {
                let settings = std::mem::take(&mut outcome.settings);
                *outcome = Outcome { settings, ..old };
            }
        }
        Ok(state)
    }

    /// Writes the state to `folder`, atomically.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(STATE_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e))?;
        text.push(b'\n');
        write_atomically(&path, |w| w.write_all(&text)).map_err(|e: std::io::Error| Error::file(&path, e))
    }

    /// Ranks the outcomes: first those with the metric, the best first, then finished ones without it, then the others in order.
    pub fn ranked(&self, goal: Goal) -> Vec<&Outcome> {
        let value = |outcome: &Outcome| match outcome.status {
            JobStatus::Finished => outcome.metric.map_or(f64::NAN, |point| point.value),
            _ => f64::NAN,
        };
        let mut ranked: Vec<&Outcome> = self.jobs.iter().collect();
        ranked.sort_by(|a, b| {
            let (x, y) = (value(a), value(b));
            let is_unfinished = |o: &Outcome| o.status != JobStatus::Finished;
            goal.is_better(y, x).cmp(&goal.is_better(x, y)).then(is_unfinished(a).cmp(&is_unfinished(b)))
        });
        ranked
    }

    /// Returns the number of jobs with this status.
    pub fn count(&self, status: JobStatus) -> usize {
        self.jobs.iter().filter(|outcome| outcome.status == status).count()
    }
}
