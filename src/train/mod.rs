//! Training: one engine; a task supplies its batch, its loss, its evaluation and its samples.

mod classifier;
mod control;
pub(crate) mod difference;
mod dit;
mod engine;
mod error;
mod event;
mod flow;
pub mod folder;
mod group;
mod loader;
mod loss_scale;
pub mod metrics;
mod optimizer;
pub mod parallel;
mod preflight;
mod run;
mod schedule;
mod task;

pub use classifier::{Classifier, ClassifierOptions};
pub use control::{Control, Stopped};
pub use dit::{DRAWS, Dit, DitOptions, SAMPLE_ROWS};
pub use engine::{Patience, Plan, learn, train, train_together};
pub use error::{Error, Result};
pub use event::{Event, Score, Step};
pub use flow::{Example, Flow};
pub use folder::Best;
pub use loader::{Batch, Batches, Loader};
pub use loss_scale::LossScale;
pub use optimizer::{AdamW, Learnt, MOST_AVERAGES, Optimizer, Taken};
pub use parallel::Team;
pub use schedule::{Scaling, Schedule, Shape};
pub use task::Task;
