//! Training: one engine; a task supplies its batch, its loss and its samples.

mod classifier;
mod dit;
mod engine;
mod error;
mod event;
mod flow;
pub mod folder;
mod loader;
pub mod metrics;
mod optimizer;
mod schedule;

pub use classifier::{Classifier, ClassifierOptions};
pub use dit::{Dit, DitOptions};
pub use engine::{Plan, Resume, Task, learn, train};
pub use error::{Error, Result};
pub use event::{Event, Score, Step};
pub use flow::{Example, Flow};
pub use loader::{Batch, Batches, Loader};
pub use optimizer::{AdamW, Learnt, Optimizer};
pub use schedule::Schedule;
