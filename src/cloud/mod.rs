//! Training on rented GPUs, at Modal.

mod record;
mod settings;

pub use record::{Attempt, RECORD, Record};
pub use settings::{Container, Settings};
