//! Settings of the Modal app, from the same file that the app reads.

use serde::Deserialize;

/// The parts of `deploy/modal/settings.toml` that this program uses. The default is that file.
#[derive(Clone, Debug, Deserialize)]
pub struct CloudSettings {
    /// Names of the app and its volumes.
    pub app: App,
    /// Resources of a container, except GPUs.
    pub container: Container,
    /// Time limits.
    pub time: Time,
    /// Retries of failed attempts.
    pub retries: Retries,
    /// Surcharges.
    pub price: Price,
}

/// Surcharges.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Price {
    /// Factor on the price in a requested region.
    pub region: f64,
}

/// Names of the app and its volumes.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    /// The name of the app.
    pub name: String,
    /// The name of the volume with images.
    pub data_volume: String,
    /// The name of the volume with runs.
    pub output_volume: String,
}

/// Resources of a container besides GPUs.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Container {
    /// Number of CPU cores.
    pub cpu: f64,
    /// Memory, in MiB.
    pub memory_mib: f64,
}

/// Durations in seconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Time {
    /// Maximum timeout of an attempt.
    pub longest_attempt_s: f64,
    /// Time before the timeout at which training stops.
    pub stop_before_s: f64,
    /// Interval of a container's heartbeats.
    pub heartbeat_s: f64,
}

/// Number of attempts after the first.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Retries {
    /// The default.
    pub default: u64,
    /// The maximum.
    #[serde(rename = "most")]
    pub max: u64,
}

impl Default for CloudSettings {
    fn default() -> Self {
        toml::from_str(include_str!("../../deploy/modal/settings.toml"))
            .expect("the embedded settings are valid")
    }
}
