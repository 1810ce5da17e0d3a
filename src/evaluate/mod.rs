//! Evaluation of trained networks.
//!
//! For classifiers: the confusion matrix and the calibration of the probabilities. For generators: the similarity of generated and real
//! images, and the detection of repeated training images.
//!
//! [`evaluate_classifier`], [`evaluate_generator`] and [`evaluate_gate`] open files, evaluate them and return a report, which is text or
//! JSON. They report their progress to an observer, a function of [events](Event). The other functions compute single metrics from values
//! in memory.
//!
//! ```no_run
//! use tiny_cats::evaluate::{ClassifierOptions, Event, evaluate_classifier};
//!
//! let mut observe = |event: Event| {
//!     if let Event::Skipped(images) = event {
//!         eprintln!("skipped {} images", images.len());
//!     }
//! };
//! let options = ClassifierOptions { model: Some("cats.onnx".into()), ..ClassifierOptions::new("data/cats") };
//! let report = evaluate_classifier(&options, &mut observe)?;
//! println!("{report}");
//! println!("{}", serde_json::to_string(&report)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Comparisons of images use their [`Features`] and nothing else. Sums are taken in f64 over fixed pieces in a fixed order, so that results
//! are bitwise reproducible on one CPU with any number of threads.

mod bootstrap;
mod calibration;
mod classification;
mod classifier;
mod comparison;
mod confusion;
mod error;
mod event;
mod features;
mod frechet;
pub mod gate;
mod gate_report;
mod generated;
mod generator;
mod generator_report;
mod image_features;
mod kernel;
mod memorization;
mod neighbors;
mod source;

pub use bootstrap::{Interval, wilson_interval};
pub use calibration::{BINS, Bin, Calibration};
pub use classification::ClassificationResults;
pub use classifier::{ClassifierOptions, ClassifierReport, evaluate_classifier};
pub use comparison::{CompareOptions, Comparison, compare, proportional, split_randomly};
pub use confusion::Confusion;
pub use error::{Error, Result};
pub use event::Event;
pub use features::{Features, MAX_FEATURES};
pub use frechet::{Moments, frechet_distance, frechet_interval};
pub use gate_report::{GateData, GateOptions, GateReport, SHEET_IMAGES, evaluate_gate};
pub use generator::{FeatureOptions, GeneratorOptions, ImageSource, evaluate_generator};
pub use generator_report::{
    BreedReport, FeaturesReport, GeneratedSource, GeneratorReport, NearestPair, NearestReport,
};
pub use kernel::{Kernel, kernel_distance};
pub use memorization::{COPY_NEIGHBORS, Memorization, Nearest, memorization};
pub use neighbors::{
    DENSITY_NEIGHBORS, DensityCoverage, PRECISION_NEIGHBORS, PrecisionRecall, density_coverage,
    precision_recall,
};
pub use source::{DataReport, Provenance, SamplingReport};
