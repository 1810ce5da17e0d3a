//! Checks before the first step, so that a run does not fail hours later for a reason that is visible at the start.

use super::{Error, Result, Task, TrainOptions, run::MAX_STATES};
use crate::memory;

/// Checks that the disk has room for the run's files and that memory suffices for its steps.
///
/// `existing_bytes` is the size of the training states that the run will replace. Memory is needed in each of `processes`, which share it
/// on a CPU. The first step shows whether the data is readable and every parameter has a gradient; nothing is changed before it.
///
/// # Errors
/// Returns [`Error::Preflight`] if disk space or memory is too small.
pub(super) fn check(
    task: &dyn Task,
    options: &TrainOptions,
    micro_batch: usize,
    existing_bytes: u64,
    processes: usize,
) -> Result<()> {
    let weights = 4 * task.cost()?.parameters();
    let (moments, averages) = (options.optimizer.rule.moments(), options.optimizer.ema.len());
    let state = weights * (1 + moments + averages) as u64;
    // The best state apart from the newest, one that is being written, and the two released files.
    let needed = state * (MAX_STATES as u64 + 2) + 2 * weights;
    let free = fs4::available_space(&options.folder)
        .map_err(|source| Error::File { path: options.folder.clone(), source })?;
    if free + existing_bytes < needed {
        let (folder, needed, free) =
            (options.folder.display(), megabytes(needed - existing_bytes), megabytes(free));
        let message = format!("{folder}: training states need {needed}, {free} available");
        return Err(Error::Preflight(message));
    }
    let tape = if options.device.is_cpu() { options.tape.on_cpu() } else { options.tape };
    let step = task.training_bytes(micro_batch, tape)?;
    let sharing = if options.device.is_cpu() { processes as u64 } else { 1 };
    // A training state is assembled in memory before it is written.
    let needed_memory = sharing * (state + step.max(state));
    tracing::info!(
        parameters = weights / 4,
        state_bytes = state,
        step_bytes = step,
        "memory that training takes"
    );
    let device =
        memory::device(&options.device).map(|device| device.total - device.allocated.min(device.total));
    let available = if options.device.is_cpu() { memory::available() } else { device };
    if let Some(available) = available.filter(|available| *available < needed_memory) {
        let (needed_memory, available) = (megabytes(needed_memory), megabytes(available));
        let checkpointing = if options.tape.checkpoint { "" } else { ", or --gradient-checkpointing" };
        let per_process =
            if sharing > 1 { format!(" in each of {sharing} processes") } else { String::new() };
        let message = format!(
            "training with micro-batches of {micro_batch}{per_process} needs {needed_memory}, {available} available: pass a smaller --batch-size and more \
                 --gradient-accumulation-steps{checkpointing}"
        );
        return Err(Error::Preflight(message));
    }
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}
