//! Events that a run reports to its observer.

use std::path::Path;

use serde_json::Value;

use super::Sample;

/// An event of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run starts or resumes.
    Begin {
        /// Its folder.
        folder: &'a Path,
        /// All settings.
        settings: &'a Value,
        /// Steps done before.
        step: u64,
        /// Total steps.
        steps: u64,
        /// Number of values in all parameters.
        parameters: u64,
    },
    /// A step was done or skipped.
    Step(&'a Step),
    /// The averaged weights were evaluated.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The scores; the first one selects the best weights.
        scores: &'a [Score],
        /// True if it is the best evaluation of the run so far.
        best: bool,
    },
    /// A sample was made.
    Sampled {
        /// Steps done.
        step: u64,
        /// The sample.
        sample: &'a Sample,
        /// The path of its file.
        path: &'a Path,
    },
    /// A file was written.
    Wrote(&'a Path),
    /// The schedule differs from that of the state that the run resumes from.
    ScheduleChanged {
        /// The field, such as `steps`.
        field: &'a str,
        /// Both values: `changed from 20 to 30`.
        change: &'a str,
    },
    /// A message for the user.
    Note(&'a str),
}

/// One step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of the step's items.
    pub loss: f64,
    /// Exponential mean of the loss over about the last fifty steps, this one included. A resumed run continues it.
    pub mean_loss: f64,
    /// Learning rate.
    pub rate: f64,
    /// Norm of the gradients before clipping.
    pub norm: f64,
    /// True if the step left the weights unchanged because the loss or the gradients were not finite.
    pub skipped: bool,
    /// Items of this step.
    pub items: u64,
    /// Duration of the step in seconds.
    pub seconds: f64,
    /// Time that the step waited for data, in seconds.
    pub waited: f64,
}

/// One score of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The name of the metric.
    pub name: &'static str,
    /// The value.
    pub value: f64,
    /// True if a higher value is better.
    pub higher_is_better: bool,
}
