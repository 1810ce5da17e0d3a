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
pub use control::{Control, StoppedRun};
pub use dit::{Dit, DitOptions, SAMPLE_ROWS, VALIDATION_DRAWS};
pub use engine::{EarlyStopping, TrainOptions, forward_backward, train, train_distributed};
pub use error::{Error, Result};
pub use event::{Event, Score, Step};
pub use flow::{Example, Flow};
pub use folder::BestScore;
pub use loader::{Batch, BatchSource, Loader};
pub use loss_scale::LossScale;
pub use optimizer::{AdamW, MAX_AVERAGES, Optimizer, StepGradients, StepOptions};
pub use parallel::ProcessGroup;
pub use schedule::{LrScaling, LrShape, Schedule};
pub use task::Task;

/// Lets this process keep the memory that a step frees for the next one, where the allocator is glibc's; it would give large pieces back to
/// the system, and get them page by page. Processes that train call it once; programs that train now and then may not want it.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it changes two settings of the allocator. The first is the largest that it takes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
