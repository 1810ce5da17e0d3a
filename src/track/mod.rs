//! Trackers, which record a run elsewhere: in TensorBoard's event files or on an MLflow server.
//!
//! A tracker never stops a run or slows it down. Its messages wait in a bounded queue for a separate thread; messages that do not fit are
//! dropped and counted. Failures cause a single warning per run.

mod background;
#[cfg(feature = "mlflow")]
pub mod mlflow;
mod tensorboard;

use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use crate::train::folder::Status;

pub use background::{BackgroundTracker, DeliveryPolicy, Failure, Message, MessageBody, Sink};
pub use tensorboard::tensorboard;

/// The run that a tracker records.
#[derive(Clone, Copy, Debug)]
pub struct RunInfo<'a> {
    /// The name of the run, which is the name of its folder.
    pub id: &'a str,
    /// The folder of the run.
    pub folder: &'a Path,
    /// Steps done before. If a run is resumed, records of later steps are obsolete.
    pub step: u64,
    /// All settings as names and values, see [`flatten_settings`].
    pub settings: &'a [(String, String)],
}

/// A tracker of a run. No method fails, and only [`end`](Self::end) blocks, for some seconds.
pub trait Tracker: Send {
    /// Starts recording when the run starts or resumes. Called once, before the other methods.
    fn begin(&mut self, run: &RunInfo);

    /// Records named numbers at `step`.
    fn scalars(&mut self, step: u64, values: &[(&str, f64)]);

    /// Records an image at `step`.
    fn image(&mut self, step: u64, name: &str, image: &RgbImage);

    /// Ends recording with the status of the run, and waits some seconds for the delivery of queued messages.
    fn end(&mut self, status: Status);
}

/// Maximum number of settings that are recorded.
const MAX_SETTINGS: usize = 1000;

/// Flattens settings: `{"a": {"b": 1}}` is `a.b` = `1`. A list is one setting, as JSON.
pub fn flatten_settings(settings: &Value) -> Vec<(String, String)> {
    fn flatten_into(path: &str, value: &Value, output: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    flatten_into(&path, value, output);
                }
            }
            _ if output.len() >= MAX_SETTINGS => {}
            Value::String(text) => output.push((path.to_owned(), text.clone())),
            other => output.push((path.to_owned(), other.to_string())),
        }
    }
    let mut output = Vec::new();
    flatten_into("", settings, &mut output);
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_settings_are_flattened() {
        let settings = serde_json::json!({"a": {"b": 1, "c": [1, 2]}, "d": "text", "e": null});
        let expected = [("a.b", "1"), ("a.c", "[1,2]"), ("d", "text"), ("e", "null")];
        assert_eq!(flatten_settings(&settings), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
