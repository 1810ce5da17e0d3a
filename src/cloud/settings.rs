//! What the app at Modal goes by: the same file that it reads itself.

use serde::Deserialize;

/// `deploy/modal/settings.toml`, as far as it matters here. The default is the file.
#[derive(Clone, Debug, Deserialize)]
pub struct CloudSettings {
    /// What is called how.
    pub app: App,
    /// What a container has besides GPUs.
    pub container: Container,
    /// How long things may take.
    pub time: Time,
    /// How often an attempt that failed is made again.
    pub retries: Retries,
    /// What makes things dearer.
    pub price: Price,
}

/// What makes things dearer.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Price {
    /// In a region that is asked for, so many times.
    pub region: f64,
}

/// Names.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    /// Of the app.
    pub name: String,
    /// Of the volume with pictures.
    pub data_volume: String,
    /// Of the volume with runs.
    pub output_volume: String,
}

/// What a container has besides GPUs.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Container {
    /// Cores.
    pub cpu: f64,
    /// Memory, in MiB.
    pub memory_mib: f64,
}

/// Durations, in seconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Time {
    /// No attempt may have a longer timeout.
    pub longest_attempt_s: f64,
    /// The engine stops by itself so long before the timeout.
    pub stop_before_s: f64,
    /// A container that works says so that often.
    pub heartbeat_s: f64,
}

/// Attempts after the first.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Retries {
    /// Unless it is said otherwise.
    pub default: u64,
    /// At most.
    pub most: u64,
}

impl Default for CloudSettings {
    fn default() -> Self {
        toml::from_str(include_str!("../../deploy/modal/settings.toml")).expect("the program's own settings")
    }
}
