//! Training: one engine; a task supplies its batch, its loss and its samples.

mod classifier;
mod dit;
mod engine;
mod error;
mod flow;
mod loader;
mod optimizer;
mod schedule;

pub use classifier::{Classifier, ClassifierOptions};
pub use dit::{Dit, DitOptions};
pub use engine::{Event, Plan, Resume, Score, Task, learn, train};
pub use error::{Error, Result};
pub use flow::{Example, Flow};
pub use loader::{Batch, Batches, Loader};
pub use optimizer::{AdamW, Learnt, Optimizer};
pub use schedule::Schedule;
