//! What a run in the cloud left about where it ran: `cloud.json` in its folder, which the app at Modal writes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::train::{Error, Result, folder::read_bounded};

/// The file in a run's folder.
pub const RECORD: &str = "cloud.json";

/// Where a run ran, and what it cost. What an older or newer app does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CloudRecord {
    /// Whose machines.
    pub provider: String,
    /// The call that worked on it last.
    pub call: String,
    /// Where they stand, if that was asked for or told.
    pub region: Option<String>,
    /// `running`, `finished`, `failed` or `stopped`.
    pub status: String,
    /// The error that ended it.
    pub error: Option<String>,
    /// The GPUs that were asked for.
    pub gpu: Option<String>,
    /// Dollars an hour of the last container.
    pub price_per_hour: Option<f64>,
    /// What it may cost.
    pub max_cost: Option<f64>,
    /// Every container that worked on it.
    pub attempts: Vec<Attempt>,
    /// How many of them were taken away.
    pub preemptions: u64,
    /// Seconds that are paid for.
    pub seconds: f64,
    /// Dollars; `None` where a price is not known.
    pub dollars: Option<f64>,
    /// When its container was last seen to work, in seconds since 1970.
    pub heartbeat: Option<f64>,
}

/// A container that worked on a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Attempt {
    /// When it began, in seconds since 1970.
    pub begun: f64,
    /// When it ended; `None` while it works.
    pub ended: Option<f64>,
    /// What its GPU calls itself.
    pub gpu: Option<String>,
    /// How it ended: `finished`, `preempted`, `timed out`, `failed`, `budget`, `lost`.
    pub outcome: String,
}

impl CloudRecord {
    /// That in a run's folder, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(RECORD);
        if !path.is_file() {
            return Ok(None);
        }
        Self::parse(&path, &read_bounded(&path)?).map(Some)
    }

    /// Reads the text of one, of the file at `path`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let broken = |e: serde_json::Error| Error::Resume {
            path: path.to_owned(),
            message: format!(
                "expected the record of a run in the cloud: {}",
                tiny_cats_export::excerpt(&e.to_string())
            ),
        };
        serde_json::from_slice(text).map_err(broken)
    }

    /// How it stands at `now`, in seconds since 1970: as it says, or `lost`, where it was said to run and nobody has been seen to for ten
    /// heartbeats of `heartbeat_s`.
    pub fn status_at(&self, now: f64, heartbeat_s: f64) -> &str {
        let silent = |heartbeat: f64| now - heartbeat > 10.0 * heartbeat_s;
        if self.status == "running" && self.heartbeat.is_some_and(silent) { "lost" } else { &self.status }
    }

    /// Where it ran and what became of it, in one line.
    pub fn line(&self) -> String {
        let gpu = self.attempts.iter().rev().find_map(|attempt| attempt.gpu.as_deref());
        let gpu = gpu.or(self.gpu.as_deref()).unwrap_or("no GPU known");
        let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let region = self.region.as_ref().map_or(String::new(), |region| format!(", {region}"));
        let dollars = self.dollars.map_or("an unknown price".to_owned(), |dollars| format!("${dollars:.2}"));
        format!(
            "{}{region}, {gpu}, {}, {}, {:.2} h, {dollars}",
            self.provider,
            count(self.attempts.len() as u64, "attempt"),
            count(self.preemptions, "preemption"),
            self.seconds / 3600.0,
        )
    }
}
