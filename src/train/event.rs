//! What happens during a run, for those who watch it.

use std::path::Path;

use image::RgbImage;
use serde_json::Value;

/// What happens during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins or goes on.
    Begin {
        /// Its folder.
        folder: &'a Path,
        /// All settings.
        settings: &'a Value,
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Values in all parameters.
        parameters: u64,
    },
    /// A step was taken, or skipped.
    Step(&'a Step),
    /// The averaged weights were evaluated.
    Evaluated {
        /// Steps done.
        step: u64,
        /// What was found, the one that decides first.
        scores: &'a [Score],
        /// Whether it is the best of the run so far.
        best: bool,
    },
    /// A sample grid was drawn.
    Sampled {
        /// Steps done.
        step: u64,
        /// The grid.
        picture: &'a RgbImage,
        /// Where it was written.
        path: &'a Path,
    },
    /// A file was written.
    Wrote(&'a Path),
    /// Something that the user should know.
    Note(&'a str),
}

/// One step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of the step's items.
    pub loss: f64,
    /// Running mean of the loss over the run's last steps, some fifty, this one included; an interruption does not change it.
    pub mean_loss: f64,
    /// Learning rate.
    pub rate: f64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Whether the weights were left as they were, because the loss or the gradient was not finite.
    pub skipped: bool,
    /// Items seen in this step.
    pub items: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long of that it waited for data, in seconds.
    pub waited: f64,
}

/// A measure of how good a network is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// What is measured.
    pub name: &'static str,
    /// The measure.
    pub value: f64,
    /// Whether more of it is better.
    pub higher_is_better: bool,
}
