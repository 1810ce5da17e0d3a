//! The runs in a folder: their status, records and metrics.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tiny_cats_export::{closest, escape};

use crate::{
    cloud::CloudRecord,
    sweep::SWEEPS,
    train::{
        folder::{CONFIGURATION, Lock, RunRecord, Status, latest, read_bounded},
        metrics::{Goal, LOSS, MEAN_LOSS, METRICS, Metrics, Point, best},
    },
};

/// Bytes at the end of `metrics.jsonl` that are searched for the last loss, some hundreds of lines.
const TAIL_BYTES: u64 = 64 << 10;
/// Maximum bytes of a name in an error.
const MAX_TEXT: usize = 200;
/// The name for the newest run.
pub const LATEST: &str = "latest";

/// An error of finding a run, in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder of the runs cannot be read.
    #[error("{}: {error}", root.display())]
    Folder {
        /// The folder.
        root: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// There are no runs.
    #[error("{}: no runs found", root.display())]
    NoRuns {
        /// The folder of the runs.
        root: PathBuf,
    },
    /// No run has this ID.
    #[error("{}: no run is called {}{}", root.display(), escape(id, MAX_TEXT), suggest(suggestion.as_deref()))]
    NotFound {
        /// The folder of the runs.
        root: PathBuf,
        /// The requested ID.
        id: String,
        /// A similar ID.
        suggestion: Option<String>,
    },
    /// Several runs have this prefix or suffix.
    #[error(
        "{}: several runs match {}, such as {} and {}",
        root.display(),
        escape(id, MAX_TEXT),
        escape(&matches[0], MAX_TEXT),
        escape(&matches[1], MAX_TEXT)
    )]
    Ambiguous {
        /// The folder of the runs.
        root: PathBuf,
        /// The requested ID.
        id: String,
        /// The first two IDs.
        matches: [String; 2],
    },
}

/// The result of finding runs.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn suggest(id: Option<&str>) -> String {
    id.map_or_else(String::new, |id| format!("; did you mean {}?", escape(id, MAX_TEXT)))
}

/// The readable information about a run.
#[derive(Debug)]
pub struct RunSummary {
    /// The folder.
    pub folder: PathBuf,
    /// The ID, which is the name of the folder.
    pub id: String,
    /// The record, or the reason why it cannot be read.
    pub record: std::result::Result<RunRecord, String>,
    /// The status in the record; `running` becomes `killed` if no process trains, and without a record the status is `broken`.
    pub status: &'static str,
    /// The loss of the last logged step.
    pub loss: Option<Point>,
    /// The running mean of the loss at that step; `None` for runs of earlier versions.
    pub mean_loss: Option<Point>,
}

impl RunSummary {
    /// Reads the record and the last loss of the run in `folder`. What cannot be read is left out.
    pub fn open(folder: PathBuf) -> Self {
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

    /// The path of the newest sample grid.
    pub fn sample(&self) -> Option<PathBuf> {
        Some(self.folder.join(self.record.as_ref().ok()?.sample.as_ref()?))
    }
}

impl Serialize for RunSummary {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut json = match &self.record {
            Ok(record) => json!(record),
            Err(error) => json!({"id": self.id, "error": error}),
        };
        json["status"] = json!(self.status);
        json["folder"] = json!(self.folder.to_string_lossy());
        json["loss"] = json!(self.loss);
        json[MEAN_LOSS] = json!(self.mean_loss);
        json["sample"] = json!(self.sample().map(|path| path.to_string_lossy().into_owned()));
        json.serialize(serializer)
    }
}

/// All files of a run.
#[derive(Debug)]
pub struct RunDetails {
    /// The record and the last loss.
    pub summary: RunSummary,
    /// The text of the configuration, if it can be read.
    pub configuration: Option<String>,
    /// The metrics; empty if they cannot be read.
    pub metrics: Metrics,
    /// The reason why the metrics cannot be read.
    pub metrics_error: Option<String>,
    /// The record of the cloud, for a run that was downloaded.
    pub cloud: Option<CloudRecord>,
}

/// The evaluations of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationSummary {
    /// The name of the metric.
    pub name: String,
    /// The best value. A metric whose [goal](Goal) is unknown is minimized.
    pub best: Point,
    /// The last value.
    pub last: Point,
    /// The number of evaluations.
    #[serde(rename = "evaluations")]
    pub count: usize,
}

impl RunDetails {
    /// Reads the files of a run. What cannot be read is left out.
    pub fn read(summary: RunSummary) -> Self {
        let metrics = Metrics::read(&summary.folder.join(METRICS));
        let metrics_error = metrics.as_ref().err().map(ToString::to_string);
        let configuration = read_bounded(&summary.folder.join(CONFIGURATION)).ok();
        Self {
            configuration: configuration.map(|text| String::from_utf8_lossy(&text).into_owned()),
            metrics: metrics.unwrap_or_default(),
            metrics_error,
            cloud: CloudRecord::load(&summary.folder).ok().flatten(),
            summary,
        }
    }

    /// The evaluations of each metric.
    pub fn evaluations(&self) -> Vec<EvaluationSummary> {
        let evaluation = |(name, points): (&str, &[Point])| {
            let goal = Goal::for_metric(name).unwrap_or(Goal::Min);
            let (best, last) = (best(points, goal)?, *points.last()?);
            Some(EvaluationSummary { name: name.to_owned(), best, last, count: points.len() })
        };
        self.metrics.evaluations().filter_map(evaluation).collect()
    }
}

impl Serialize for RunDetails {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut json: Value = json!(self.summary);
        let configuration = self.configuration.as_ref();
        json["config"] = json!(configuration.and_then(|text| text.parse::<toml::Table>().ok()));
        json["evaluations"] = json!(self.evaluations());
        json["metrics"] = json!(self.summary.folder.join(METRICS).to_string_lossy());
        json["cloud"] = json!(self.cloud);
        json["unreadable_lines"] = json!(self.metrics.unreadable);
        json.serialize(serializer)
    }
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders that may contain runs, sorted by name; empty if `root` does not exist.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| Error::Folder { root: root.to_owned(), error })?,
    };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_run = |path: &PathBuf| {
        let name = name(path);
        path.is_dir() && !path.is_symlink() && !name.starts_with('.') && name != SWEEPS
    };
    let mut folders: Vec<_> = folders.filter(is_run).collect();
    folders.sort();
    Ok(folders)
}

/// All runs in the folder `root`, oldest first; runs that cannot be read come before the others.
///
/// # Errors
/// If the folder cannot be read. Without a folder, there are no runs.
pub fn list(root: &Path) -> Result<Vec<RunSummary>> {
    let mut runs: Vec<RunSummary> = folders(root)?.into_iter().map(RunSummary::open).collect();
    runs.sort_by_key(|run| run.record.as_ref().map_or(0, |record| record.started));
    Ok(runs)
}

/// Finds the folder of a run in `root` by its ID, by a unique prefix or suffix of it, or by [`LATEST`].
///
/// # Errors
/// If there is no such run, or there are several.
pub fn find(root: &Path, id: &str) -> Result<PathBuf> {
    let folders = folders(root)?;
    if id == LATEST {
        // The link is used only for its name, and only if that run exists.
        let linked_name = latest(root);
        let latest = folders.iter().find(|folder| Some(name(folder)) == linked_name).cloned();
        let newest = || Some(list(root).ok()?.pop()?.folder);
        return latest.or_else(newest).ok_or_else(|| Error::NoRuns { root: root.to_owned() });
    }
    let names: Vec<String> = folders.iter().map(|folder| name(folder)).collect();
    if let Some(exact) = names.iter().position(|name| name == id) {
        return Ok(folders[exact].clone());
    }
    let is_match = |i: &usize| !id.is_empty() && (names[*i].starts_with(id) || names[*i].ends_with(id));
    let found: Vec<usize> = (0..names.len()).filter(is_match).collect();
    let (root, id) = (root.to_owned(), id.to_owned());
    match found[..] {
        [index] => Ok(folders[index].clone()),
        [] => {
            let suggestion = closest(&id, names.iter().map(String::as_str)).map(str::to_owned);
            Err(Error::NotFound { root, id, suggestion })
        }
        [first, second, ..] => {
            let matches = [names[first].clone(), names[second].clone()];
            Err(Error::Ambiguous { root, id, matches })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_a_unique_prefix_or_suffix() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
        assert!(matches!(find(dir.path(), LATEST), Err(Error::NoRuns { .. })));
        for name in ["2026-dit-a1", "2026-dit-b2", ".hidden", "sweeps"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        let found = |id| find(dir.path(), id).map(|folder| name(&folder));
        assert_eq!(found("b2").unwrap(), "2026-dit-b2");
        assert!(matches!(found("2026"), Err(Error::Ambiguous { .. })));
        let error = found("2026-dit-a2").unwrap_err().to_string();
        assert!(error.ends_with("no run is called 2026-dit-a2; did you mean 2026-dit-a1?"), "{error}");
        assert!(matches!(found("sweeps"), Err(Error::NotFound { .. })));
        let details = RunDetails::read(RunSummary::open(dir.path().join("2026-dit-a1")));
        assert_eq!((details.summary.status, details.evaluations().len()), ("broken", 0));
    }
}
