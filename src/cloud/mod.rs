//! Training on rented GPUs, at Modal.

mod app;
pub mod modal;
mod record;
mod settings;

pub use app::{BINARY, ModalApp};
pub use record::{Attempt, CloudRecord, RECORD};
pub use settings::{CloudSettings, Container};
