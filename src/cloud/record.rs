//! The record of a run in the cloud, `cloud.json` in its folder, which the Modal app writes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::train::{Error, Result, folder::read_bounded};

/// The file in a run's folder.
pub const RECORD: &str = "cloud.json";

/// The location, status and cost of a run in the cloud. Fields that an older or newer version of the app does not write are empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CloudRecord {
    /// The cloud provider.
    pub provider: String,
    /// The ID of the last call that worked on the run.
    pub call: String,
    /// The region, if it was requested or is known.
    pub region: Option<String>,
    /// `running`, `finished`, `failed` or `stopped`.
    pub status: String,
    /// The error that ended the run.
    pub error: Option<String>,
    /// The requested GPUs.
    pub gpu: Option<String>,
    /// Price of the last container in dollars per hour.
    pub price_per_hour: Option<f64>,
    /// Maximum cost in dollars.
    pub max_cost: Option<f64>,
    /// All containers that worked on the run.
    pub attempts: Vec<Attempt>,
    /// Number of preempted containers.
    pub preemptions: u64,
    /// Billed seconds.
    pub seconds: f64,
    /// Cost in dollars; `None` if a price is not known.
    pub dollars: Option<f64>,
    /// Time of the last heartbeat of a container, in seconds since 1970.
    pub heartbeat: Option<f64>,
}

/// A container that worked on a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Attempt {
    /// Start time in seconds since 1970.
    #[serde(rename = "begun")]
    pub started: f64,
    /// End time in seconds since 1970; `None` while it runs.
    pub ended: Option<f64>,
    /// The name that the GPU reports.
    pub gpu: Option<String>,
    /// The outcome: `finished`, `preempted`, `timed out`, `failed`, `budget`, `lost`.
    pub outcome: String,
}

impl CloudRecord {
    /// Reads the record in a run's folder, if there is one.
    ///
    /// # Errors
    /// Returns an error if the record exists but cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(RECORD);
        if !path.is_file() {
            return Ok(None);
        }
        Self::parse(&path, &read_bounded(&path)?).map(Some)
    }

    /// Parses the text of the record at `path`.
    ///
    /// # Errors
    /// Returns an error if the text is not a record.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let parse_error = |e: serde_json::Error| Error::Resume {
            path: path.to_owned(),
            message: format!(
                "expected the record of a run in the cloud: {}",
                tiny_cats_export::excerpt(&e.to_string())
            ),
        };
        serde_json::from_slice(text).map_err(parse_error)
    }

    /// Returns the status at `now`, in seconds since 1970.
    ///
    /// It is the recorded status, or `lost` if a running run has missed ten heartbeats of `heartbeat_s` seconds.
    pub fn status_at(&self, now: f64, heartbeat_s: f64) -> &str {
        let is_silent = |heartbeat: f64| now - heartbeat > 10.0 * heartbeat_s;
        if self.status == "running" && self.heartbeat.is_some_and(is_silent) { "lost" } else { &self.status }
    }

    /// Formats location, attempts and cost as one line.
    pub fn to_line(&self) -> String {
        let gpu = self.attempts.iter().rev().find_map(|attempt| attempt.gpu.as_deref());
        let gpu = gpu.or(self.gpu.as_deref()).unwrap_or("unknown GPU");
        let count = |n: u64, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
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
