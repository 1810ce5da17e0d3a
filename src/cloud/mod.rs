//! Training on rented GPUs at Modal: its command line, the app's files and settings, and records of runs.

mod app;
pub mod modal;
mod record;

pub use app::{BINARY, ModalApp};
pub use record::{Attempt, CloudRecord, RECORD};

pub use crate::plan::{CloudSettings, Container};
