//! Who else is told how a run goes: TensorBoard's event files, an MLflow server.
//!
//! A tracker never stops a run and never slows it: what it is told waits in a queue of bounded size for a thread of its own, what does
//! not fit is dropped and counted, and whatever fails is one warning.

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

/// The run that a tracker is told of.
#[derive(Clone, Copy, Debug)]
pub struct RunInfo<'a> {
    /// Its name: that of its folder.
    pub id: &'a str,
    /// Its folder.
    pub folder: &'a Path,
    /// Steps done before: what a tracker has of later steps, from before a run was resumed, is of a past that did not happen.
    pub step: u64,
    /// All settings, as [`flat`] names and values.
    pub settings: &'a [(String, String)],
}

/// One who is told how a run goes. No method fails, and none waits, but for [`end`](Self::end), which waits some seconds.
pub trait Tracker: Send {
    /// The run begins or goes on. It is called first, and once.
    fn begin(&mut self, run: &RunInfo);

    /// Numbers after so many steps.
    fn scalars(&mut self, step: u64, values: &[(&str, f64)]);

    /// A picture after so many steps.
    fn picture(&mut self, step: u64, name: &str, picture: &RgbImage);

    /// The run ended like that: what still waits is delivered, if that takes no longer than some seconds.
    fn end(&mut self, status: Status);
}

/// Settings in at most so many lines are told.
const MAX_SETTINGS: usize = 1000;

/// All settings one by one: `{"a": {"b": 1}}` is `a.b` = `1`. Lists are one setting, as JSON.
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
