//! Evaluation of trained networks.
//!
//! For classifiers: the confusion matrix and the calibration of the probabilities. For generators: the similarity of generated and real
//! images, and the detection of repeated training images.
//!
//! Comparisons of images use their [`Features`] and nothing else. Sums are taken in f64 over fixed pieces in a fixed order, so that results
//! are bitwise reproducible on one CPU with any number of threads.

mod bootstrap;
mod calibration;
mod classification;
mod comparison;
mod confusion;
mod error;
mod features;
mod frechet;
pub mod gate;
mod kernel;
mod memorization;
mod neighbors;

pub use bootstrap::{Interval, wilson_interval};
pub use calibration::{BINS, Bin, Calibration};
pub use classification::ClassificationResults;
pub use comparison::{CompareOptions, Comparison, compare, proportional, split_randomly};
pub use confusion::Confusion;
pub use error::{Error, Result};
pub use features::{Features, MAX_FEATURES};
pub use frechet::{Moments, frechet_distance, frechet_interval};
pub use kernel::{Kernel, kernel_distance};
pub use memorization::{COPY_NEIGHBORS, Memorization, Nearest, memorization};
pub use neighbors::{
    DENSITY_NEIGHBORS, DensityCoverage, PRECISION_NEIGHBORS, PrecisionRecall, density_coverage,
    precision_recall,
};
