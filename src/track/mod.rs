//! Trackers, which record a run elsewhere: in TensorBoard's event files or on an MLflow server.
//!
//! A tracker never stops a run or slows it. Its messages wait in a bounded queue for a thread of its own; those that do not fit are dropped
//! and counted. Failures cause a single warning.

mod background;
#[cfg(feature = "mlflow")]
pub mod mlflow;
mod tensorboard;

use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use crate::train::folder::Status;

pub use background::{BackgroundTracker, Body, DeliveryPolicy, Failure, Message, Sink};
pub use tensorboard::tensorboard;

/// The run that a tracker records.
#[derive(Clone, Copy, Debug)]
pub struct RunInfo<'a> {
    /// The name of the run, which is that of its folder.
    pub id: &'a str,
    /// Its folder.
    pub folder: &'a Path,
    /// Steps done before. If a run is resumed, a tracker's records of later steps are of an abandoned branch.
    pub step: u64,
    /// All settings as names and values, see [`flatten_settings`].
    pub settings: &'a [(String, String)],
}

/// A tracker of a run. No method fails, and only [`end`](Self::end) waits, for some seconds.
pub trait Tracker: Send {
    /// Starts recording when the run starts or resumes. It is called first, and once.
    fn begin(&mut self, run: &RunInfo);

    /// Records numbers at `step`.
    fn scalars(&mut self, step: u64, values: &[(&str, f64)]);

    /// Records an image at `step`.
    fn picture(&mut self, step: u64, name: &str, picture: &RgbImage);

    /// Ends recording with the run's status, and waits some seconds for the delivery of queued messages.
    fn end(&mut self, status: Status);
}

/// Maximum number of settings that are recorded.
const MAX_SETTINGS: usize = 1000;

/// Flattens settings: `{"a": {"b": 1}}` is `a.b` = `1`. A list is one setting, as JSON.
pub fn flatten_settings(settings: &Value) -> Vec<(String, String)> {
    fn walk(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, out);
                }
            }
            _ if out.len() >= MAX_SETTINGS => {}
            Value::String(text) => out.push((path.to_owned(), text.clone())),
            other => out.push((path.to_owned(), other.to_string())),
        }
    }
    let mut out = Vec::new();
    walk("", settings, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_one_by_one() {
        let settings = serde_json::json!({"a": {"b": 1, "c": [1, 2]}, "d": "text", "e": null});
        let expected = [("a.b", "1"), ("a.c", "[1,2]"), ("d", "text"), ("e", "null")];
        assert_eq!(flatten_settings(&settings), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
