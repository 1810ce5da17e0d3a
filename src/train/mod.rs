//! Training: one engine for all tasks. A task supplies batches, loss, evaluation and samples.

mod adamw;
mod classifier;
mod control;
pub(crate) mod difference;
mod engine;
mod error;
mod event;
mod examples;
mod flow;
mod flow_matching;
pub mod folder;
mod gradients;
mod group;
mod initial;
mod loader;
mod loss_scale;
pub mod metrics;
mod optimizer;
mod options;
pub mod parallel;
mod preflight;
pub mod released;
mod rule;
mod run;
mod sample;
mod schedule;
mod sgd;
pub mod stop;
pub mod supervise;
mod task;

pub use adamw::AdamW;
pub use classifier::{Classification, ClassificationOptions, classify};
pub use control::{Control, StoppedRun};
pub use engine::{train, train_distributed};
pub use error::{Error, Result};
pub use event::{Event, Score, Step};
pub use flow::{Example, Flow};
pub use flow_matching::{FlowMatching, FlowMatchingOptions, SAMPLE_ROWS, VALIDATION_DRAWS};
pub use folder::BestScore;
pub use gradients::{GradientOptions, forward_backward};
pub use initial::InitialWeightsSource;
pub use loader::{Batch, BatchSource, Loader};
pub use loss_scale::LossScale;
pub use optimizer::{MAX_AVERAGES, Optimizer, OptimizerOptions, StepGradients, StepOptions};
pub use options::{EarlyStopping, TrainOptions};
pub use parallel::ProcessGroup;
pub use rule::{MAX_MOMENTS, ParameterSlices, ParameterTensors, Update, UpdateRule};
pub use sample::Sample;
pub use schedule::{LrScaling, LrShape, Schedule};
pub use sgd::Sgd;
pub use task::Task;

/// Makes glibc's allocator keep the memory that one step frees for the next step.
///
/// By default the allocator returns large blocks to the system and gets them back page by page. Call it once in a process that trains. It
/// increases the memory of programs that train only occasionally. With other allocators it does nothing.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt changes two settings of the allocator. The first value, 32 MiB, is the largest that it accepts.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
