//! Training on rented GPUs, at Modal.

mod app;
pub mod modal;
mod record;
mod settings;

pub use app::{App, BINARY};
pub use record::{Attempt, RECORD, Record};
pub use settings::{Container, Settings};
