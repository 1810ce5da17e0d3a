//! Runs in the cloud.

use std::{path::Path, time::SystemTime};

use serde::{Serialize, Serializer};
use serde_json::json;
use tiny_cats_export::{closest, escape};

use super::{
    CloudRecord, CloudSettings, Error, RECORD, Result, modal,
    volume::{list_volume, read_run_file},
};
use crate::train::folder::{self, LOG, RunRecord, Status};

/// The folder of sweeps among the runs, as the app names it.
const SWEEPS: &str = "sweeps";

/// Maximum bytes of a name in an error.
const MAX_TEXT: usize = 200;
/// Maximum number of runs that are requested in parallel.
const MAX_CONCURRENT: usize = 8;

/// The location of a run: its folder in `runs/` of the volume, and the run or sweep that its app works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLocation {
    /// The name of the run, or `sweeps/NAME/JOB`.
    pub id: String,
    /// The folder.
    pub folder: String,
    /// The name of the run or of the sweep, from which [`app_name`](super::app_name) derives that of the app.
    pub app: String,
}

impl RunLocation {
    /// Parses the name of a run, or of a job of a sweep, `sweeps/NAME/JOB`.
    ///
    /// # Errors
    /// If the name has another form.
    pub fn parse(id: &str) -> Result<Self> {
        let invalid = |message| Error::state(escape(id, MAX_TEXT), message);
        let parts: Vec<&str> = id.split('/').collect();
        let (folder, app) = match parts[..] {
            [run] => (run.to_owned(), run.to_owned()),
            [SWEEPS, sweep, job] => (format!("{SWEEPS}/{sweep}/{job}/{job}"), format!("sweep-{sweep}")),
            [SWEEPS, sweep] => (format!("{SWEEPS}/{sweep}"), format!("sweep-{sweep}")),
            _ => return Err(invalid("expected the name of a run, or sweeps/NAME/JOB")),
        };
        let names = if parts.len() > 1 { &parts[1..] } else { &parts[..] };
        if !names.iter().all(|name| folder::is_id(name)) {
            return Err(invalid("expected a name that tiny-cats cloud status lists"));
        }
        Ok(Self { id: id.to_owned(), folder, app })
    }
}

/// A run in the volume, with the records that exist.
#[derive(Clone, Debug)]
pub struct CloudRun {
    /// The location.
    pub location: RunLocation,
    /// The record of the training.
    pub record: Option<RunRecord>,
    /// The record of the containers.
    pub cloud: Option<CloudRecord>,
}

impl CloudRun {
    /// Loads the records of a run.
    ///
    /// # Errors
    /// If Modal cannot be reached, or there is no such run.
    pub fn load(id: &str) -> Result<Self> {
        let location = RunLocation::parse(id)?;
        let record = read_run_file(&location.folder, folder::RECORD)?;
        let cloud = read_run_file(&location.folder, RECORD)?;
        if record.is_none() && cloud.is_none() {
            let volume = CloudSettings::default().app.output_volume;
            let entries = list_volume(&volume, "/runs").unwrap_or_default();
            let others = entries.iter().map(|entry| entry.0.as_str()).filter(|other| *other != id);
            let suggestion = closest(id, others)
                .map_or_else(String::new, |name| format!("; did you mean {}?", escape(name, MAX_TEXT)));
            let message = format!("there is no such run in the volume {volume}{suggestion}");
            return Err(Error::state(id, message));
        }
        Self::parse(location, record.as_deref(), cloud.as_deref())
    }

    /// Loads the records of a run; `None` if there is no record of its training.
    ///
    /// # Errors
    /// If Modal cannot be reached, or a record is invalid.
    pub fn find(id: &str) -> Result<Option<Self>> {
        let location = RunLocation::parse(id)?;
        let Some(record) = read_run_file(&location.folder, folder::RECORD)? else { return Ok(None) };
        let cloud = read_run_file(&location.folder, RECORD)?;
        Self::parse(location, Some(&record), cloud.as_deref()).map(Some)
    }

    fn parse(location: RunLocation, record: Option<&[u8]>, cloud: Option<&[u8]>) -> Result<Self> {
        let id = &location.id;
        let record = record.map(serde_json::from_slice).transpose();
        let record =
            record.map_err(|error| Error::Record { path: format!("{id}/{}", folder::RECORD), error })?;
        let cloud = cloud.map(|text| CloudRecord::parse(&Path::new(id).join(RECORD), text)).transpose()?;
        Ok(Self { location, record, cloud })
    }

    /// Loads the newest runs, at most `count`, sorted by name. A run that cannot be read is an error in the list.
    ///
    /// # Errors
    /// If Modal reports an error, since that affects all runs.
    pub fn newest(count: usize) -> Result<Vec<(String, Result<Self>)>> {
        let volume = CloudSettings::default().app.output_volume;
        let entries = match list_volume(&volume, "/runs") {
            Err(modal::Error::NotFound(_)) => Vec::new(),
            entries => entries?,
        };
        let is_run = |(name, is_folder): &(String, bool)| *is_folder && folder::is_id(name);
        let mut names: Vec<String> = entries.into_iter().filter(is_run).map(|entry| entry.0).collect();
        // Names start with the time, unless the user chose them.
        names.sort();
        let newest = names.split_off(names.len().saturating_sub(count));
        let mut runs = Vec::new();
        for chunk in newest.chunks(MAX_CONCURRENT) {
            std::thread::scope(|scope| {
                let load = |name: &String| (name.clone(), Self::load(name));
                let threads: Vec<_> =
                    chunk.iter().map(|name| (name, scope.spawn(move || load(name)))).collect();
                runs.extend(threads.into_iter().map(|(name, thread)| {
                    let panicked = || Error::state(name, "the thread for this run panicked");
                    thread.join().unwrap_or_else(|_| (name.clone(), Err(panicked())))
                }));
            });
        }
        match runs.iter().position(|(_, run)| matches!(run, Err(Error::Modal(_)))) {
            Some(index) => runs.swap_remove(index).1.map(|_| Vec::new()),
            None => Ok(runs),
        }
    }

    /// Reads the log of the run, as it was written.
    ///
    /// # Errors
    /// If there is none yet, or Modal cannot be reached.
    pub fn log(&self) -> Result<Vec<u8>> {
        let text = read_run_file(&self.location.folder, LOG)?;
        text.ok_or_else(|| Error::state(&self.location.id, "the run has no log yet"))
    }

    /// True if the run and its app have finished.
    pub fn is_finished(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.status == Status::Finished)
            && self.cloud.as_ref().is_none_or(|cloud| cloud.status == "finished")
    }

    /// The status: that of the [cloud](CloudRecord::status_at), `finished` or `unknown`.
    pub fn status(&self) -> &str {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        match (&self.cloud, &self.record) {
            (Some(cloud), _) => cloud.status_at(now, CloudSettings::default().time.heartbeat_s),
            (None, Some(record)) if record.status == Status::Finished => "finished",
            _ => "unknown",
        }
    }

    /// The done and all steps, such as `5/12`; empty if they are unknown.
    pub fn steps(&self) -> String {
        self.record.as_ref().map_or_else(String::new, |record| format!("{}/{}", record.step, record.steps))
    }

    /// The error that ended the run; empty if there is none.
    pub fn error(&self) -> &str {
        let error = self.cloud.as_ref().and_then(|cloud| cloud.error.as_deref());
        error.or(self.record.as_ref().and_then(|record| record.error.as_deref())).unwrap_or_default()
    }

    /// The cost so far in dollars, and the share of the steps that remain of `steps`. Without a record, nothing is spent or done.
    pub fn spent_and_remaining(&self, steps: u64) -> (f64, f64) {
        let Some(record) = &self.record else { return (0.0, 1.0) };
        let spent = self.cloud.as_ref().and_then(|cloud| cloud.dollars).unwrap_or(0.0);
        (spent, 1.0 - record.step.min(steps) as f64 / steps.max(1) as f64)
    }
}

impl Serialize for CloudRun {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        json!({"id": self.location.id, "status": self.status(), "record": self.record, "cloud": self.cloud})
            .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_in_the_same_folder_as_on_this_machine() {
        assert_eq!(SWEEPS, crate::sweep::SWEEPS);
    }

    #[test]
    fn runs_and_jobs_of_sweeps_have_locations() {
        let location = |id| RunLocation::parse(id).map(|found| [found.folder, found.app]);
        assert_eq!(location("mine").unwrap(), ["mine", "mine"]);
        assert_eq!(location("sweeps/a/b").unwrap(), ["sweeps/a/b/b", "sweep-a"]);
        assert_eq!(location("sweeps/a").unwrap(), ["sweeps/a", "sweep-a"]);
        for id in ["", "../x", "a/b", "sweeps/..", "sweeps/a/b/c", "a\u{1b}"] {
            let error = location(id).unwrap_err().to_string();
            assert!(error.contains(": expected ") && !error.contains('\u{1b}'), "{error}");
        }
    }

    #[test]
    fn the_share_of_remaining_steps_depends_on_the_requested_steps() {
        let record = json!({"id": "a", "task": "dit", "status": "stopped", "begun": 1, "written": 2, "step": 25,
            "steps": 100, "best": null, "error": null, "sample": null, "command": []});
        let location = RunLocation::parse("a").unwrap();
        let cloud = CloudRecord { dollars: Some(2.0), ..CloudRecord::default() };
        let run = |record| CloudRun { location: location.clone(), record, cloud: Some(cloud.clone()) };
        let started = run(Some(serde_json::from_value(record).unwrap()));
        assert_eq!(started.spent_and_remaining(100), (2.0, 0.75));
        assert_eq!(started.spent_and_remaining(20), (2.0, 0.0));
        assert_eq!(run(None).spent_and_remaining(100), (0.0, 1.0));
    }
}
