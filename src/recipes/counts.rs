use super::{Error, Result};
use crate::data::{Dataset, Split};

/// The size of a data set, in classes and images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCounts {
    /// Number of classes.
    pub classes: usize,
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub validation: usize,
    /// Test images.
    pub test: usize,
}

impl ImageCounts {
    /// Counts the images of a data set.
    pub fn from_dataset(data: &Dataset) -> Self {
        let [train, validation, test] = Split::ALL.map(|split| data.part(split).files.len());
        Self { classes: data.classes.len(), train, validation, test }
    }

    /// Checks that there are images to train on.
    pub(super) fn check(&self) -> Result<()> {
        if self.train == 0 {
            Err(Error::setting("data", "expected images to train on, found none"))
        } else {
            Ok(())
        }
    }

    /// The counts with at most `max` images of each split.
    pub(super) fn with_limit(self, max: Option<usize>) -> Self {
        let limit = |n: usize| max.map_or(n, |max| n.min(max));
        Self { train: limit(self.train), validation: limit(self.validation), test: limit(self.test), ..self }
    }
}
