//! The gradients of a step over all processes.

use tiny_cats_models::{candle::Params, tape::DropoutKey};

use super::ProcessGroup;
use crate::train::{
    GradientOptions, Loader, Result, StepGradients, Task, TrainOptions, gradients::forward_backward,
};

/// Micro-batches that are ready or in progress beside the one that is being trained on.
const PREFETCH: usize = 2;

/// Computes the loss and the gradients of step `step` over all processes of `group`; each process calls this.
///
/// # Errors
/// Returns the errors of [`ProcessGroup::all_reduce`].
pub(crate) fn forward_backward_all(
    task: &mut dyn Task,
    options: &TrainOptions,
    mut params: Params,
    loader: &mut Loader,
    group: &mut ProcessGroup,
    step: u64,
    scale: f64,
) -> Result<(f64, StepGradients)> {
    let per_step = options.per_step();
    let accumulation = per_step as usize / (loader.size() * group.size());
    let dropout = DropoutKey { seed: options.seed, step, first_item: 0 };
    let position = step * per_step;
    let gradient_options =
        GradientOptions { tape: options.tape, accumulation, position, scale, dropout: Some(dropout) };
    let local = forward_backward(task, &mut params, loader, &gradient_options);
    drop(params);
    group.all_reduce(local)
}

/// Returns the loader of this process.
pub(crate) fn loader(
    task: &dyn Task,
    options: &TrainOptions,
    micro_batch: usize,
    group: &ProcessGroup,
) -> Result<Loader> {
    let loader = Loader::with_workers(task.batches(), micro_batch, options.workers, PREFETCH)?;
    Ok(loader.sharded(group.rank(), group.size()))
}
