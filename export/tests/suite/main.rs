//! All integration tests of the library. One program builds and links faster than one for each file.

mod common;

mod classifier;
mod exported_classifier;
mod generator;
mod half_precision;
mod registry;
mod runtimes;
