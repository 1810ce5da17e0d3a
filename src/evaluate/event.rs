//! Events that an evaluation reports to its observer.

use std::path::{Path, PathBuf};

use tiny_cats_export::GeneratedImage;

use crate::{checkpoint::Assumption, data::Dataset};

/// An event of an evaluation. An observer prints or ignores it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A model was opened, and values that its file lacks were assumed.
    Assumed {
        /// The file.
        path: &'a Path,
        /// The values.
        assumptions: &'a [Assumption],
    },
    /// A data set was opened, with its skipped and duplicate images.
    Opened(&'a Dataset),
    /// Images were skipped: their paths, and the reasons.
    Skipped(&'a [(PathBuf, String)]),
    /// Images were processed. The first event of a subject has `done` 0, the last one has `done` equal to `total`.
    Progress {
        /// The images and what is done with them, such as `images classified`.
        subject: &'static str,
        /// The number of images that are done.
        done: usize,
        /// The number of images.
        total: usize,
    },
    /// The gate generated its images: one of each class in turn.
    Generated(&'a [GeneratedImage]),
}

/// Reports the progress of `total` images to an observer.
pub(super) struct Progress<'a> {
    observe: &'a mut dyn FnMut(Event),
    subject: &'static str,
    done: usize,
    total: usize,
}

impl<'a> Progress<'a> {
    pub(super) fn new(observe: &'a mut dyn FnMut(Event), subject: &'static str, total: usize) -> Self {
        observe(Event::Progress { subject, done: 0, total });
        Self { observe, subject, done: 0, total }
    }

    pub(super) fn add(&mut self, count: usize) {
        self.done += count;
        (self.observe)(Event::Progress { subject: self.subject, done: self.done, total: self.total });
    }
}
