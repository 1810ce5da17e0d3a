//! All tests of the library: one program is built and linked faster than one for each file.

mod common;

mod classifier;
mod exported_classifier;
mod generator;
mod half_precision;
mod runtimes;
