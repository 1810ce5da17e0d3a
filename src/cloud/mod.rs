//! Training on rented GPUs, at Modal.

mod settings;

pub use settings::{Container, Settings};
