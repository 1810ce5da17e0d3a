//! The choice of a run's folder: a new one, or that of a run to resume.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Event, Result, STOPPED_MESSAGE, Signals};
use crate::{
    train::{
        Error,
        folder::{self, Lock, ParentLock, RunRecord, Status},
    },
    writable::check_can_write,
};

/// The timeout for another process that trains in the run's folder to end; the longest delay of a retry, if shorter.
const SAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between checks that this process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The run to start or resume.
#[derive(Clone, Copy)]
pub struct RunSelection<'a> {
    /// The name of the task.
    pub task: &'a str,
    /// The folder of all runs.
    pub runs: &'a Path,
    /// The name of the run's folder; an existing run of that name is resumed.
    pub id: Option<&'a str>,
    /// The run to resume, if it has no name.
    pub resume: &'a Resume,
    /// The configuration of a new run, as TOML.
    pub configuration: &'a str,
    /// True for the configuration of a run that may be resumed.
    pub resumes: &'a dyn Fn(&str) -> bool,
}

/// The run to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// None: a new run starts.
    Never,
    /// The newest unfinished run of the same configuration, if any.
    Auto,
    /// The run in this folder; or a new run that starts from this training state.
    Path(PathBuf),
}

impl std::str::FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "never" => Self::Never,
            "auto" => Self::Auto,
            path => Self::Path(path.into()),
        })
    }
}

impl RunSelection<'_> {
    /// Locks the run's folder as soon as no process trains in it, since a process whose parent was killed saves its state first. Reports and
    /// returns `None` at the timeout, or if a signal arrives. `max_delay` is the longest delay of a retry.
    pub(super) fn acquire(
        &self,
        max_delay: Duration,
        signals: &Signals,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<(PathBuf, ParentLock)>> {
        let timeout = SAVE_TIMEOUT.min(max_delay);
        let deadline = Instant::now() + timeout;
        let mut was_reported = false;
        loop {
            // Repeated in every iteration, since the other process may finish the run.
            if let Some(found) = self.lock()? {
                return Ok(Some(found));
            }
            let folder = self.folder()?;
            let (name, seconds) = (folder.display(), timeout.as_secs_f64());
            if !was_reported {
                was_reported = true;
                observe(Event::Note(&format!(
                    "{name}: another process trains in this folder; waiting at most {seconds} s for it to end"
                )));
            }
            if Instant::now() >= deadline {
                observe(Event::Failed(&format!(
                    "{name}: another process trains in this folder; given up after {seconds} s"
                )));
                return Ok(None);
            }
            if !signals.sleep(POLL_INTERVAL) {
                observe(Event::Note(STOPPED_MESSAGE));
                return Ok(None);
            }
        }
    }

    /// Locks the run's folder; `None` if another process trains in it. Writes the record and the configuration of a new run, so that the same
    /// settings find the run even if this process ends early.
    fn lock(&self) -> Result<Option<(PathBuf, ParentLock)>> {
        let check = |folder: &Path| {
            check_can_write(folder).map_err(|error| Error::File {
                path: folder.to_owned(),
                source: std::io::Error::new(error.kind(), format!("cannot write: {error}")),
            })
        };
        check(self.runs)?;
        // Locked, so that two commands do not start the same run.
        let _runs_lock = ParentLock::for_runs(self.runs)?;
        let folder = self.folder()?;
        check(&folder)?;
        if Lock::is_held(&folder) {
            return Ok(None);
        }
        let Some(lock) = ParentLock::acquire(&folder)? else { return Ok(None) };
        folder::prepare(&folder, self.task, self.configuration)?;
        Ok(Some((folder, lock)))
    }

    /// True if the run in `folder` may be resumed.
    fn is_same(&self, folder: &Path) -> bool {
        let text = folder::read_bounded(&folder.join(folder::CONFIGURATION)).unwrap_or_default();
        (self.resumes)(&String::from_utf8_lossy(&text))
    }

    /// Finds the newest finished run of this configuration, which [`Resume::Auto`] uses if there is no unfinished one.
    ///
    /// # Errors
    /// If the runs' folder cannot be read.
    pub fn finished_run(&self) -> Result<Option<PathBuf>> {
        if self.id.is_some() || *self.resume != Resume::Auto {
            return Ok(None);
        }
        let mut runs = folder::list(self.runs)?;
        runs.retain(|(path, record)| record.task == self.task && self.is_same(path));
        let all_finished = runs.iter().all(|(_, record)| record.status == Status::Finished);
        Ok(runs.pop().filter(|_| all_finished).map(|(path, _)| path))
    }

    /// The folder of the run to resume or start.
    fn folder(&self) -> Result<PathBuf> {
        if let Some(id) = self.id {
            return Ok(self.runs.join(id));
        }
        let new_folder = || folder::new_run_folder(self.runs, self.task);
        match self.resume {
            Resume::Never => Ok(new_folder()),
            Resume::Auto => {
                let unfinished = |(path, record): &(PathBuf, RunRecord)| {
                    record.task == self.task && record.status != Status::Finished && self.is_same(path)
                };
                let found = folder::list(self.runs)?.into_iter().rfind(unfinished).map(|(path, _)| path);
                let found = found.map_or_else(|| self.finished_run(), |path| Ok(Some(path)))?;
                Ok(found.unwrap_or_else(new_folder))
            }
            Resume::Path(path) if path.is_dir() => {
                RunRecord::load(path)?.check_task(path, self.task)?;
                // A link such as `latest` may change its target.
                path.canonicalize().map_err(|source| Error::File { path: path.clone(), source })
            }
            Resume::Path(path) if !path.exists() => {
                let shown = path.display();
                let message =
                    format!("expected auto, never, a run's folder or a training state, found {shown}");
                Err(Error::setting("resume", message))
            }
            Resume::Path(_) => Ok(new_folder()),
        }
    }
}
