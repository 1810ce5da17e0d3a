//! Gradients of micro-batches.

use tiny_cats_models::{
    TapeOptions,
    candle::Params,
    tape::{DropoutKey, Tape},
};

use super::{Loader, Result, StepGradients, Task};

/// The options of [`forward_backward`].
#[derive(Clone, Copy, Debug)]
pub struct GradientOptions {
    /// The precision of gradients, and gradient checkpointing.
    pub tape: TapeOptions,
    /// Number of micro-batches.
    pub accumulation: usize,
    /// The number of items drawn before the first one.
    pub position: u64,
    /// The loss scale, by which gradients are multiplied; 1 without scaling.
    pub scale: f64,
    /// The key of the first item; without it, dropout is the identity.
    pub dropout: Option<DropoutKey>,
}

impl GradientOptions {
    /// Returns the options of one micro-batch from `position` on, without loss scaling and dropout.
    pub fn new(tape: TapeOptions, position: u64) -> Self {
        Self { tape, accumulation: 1, position, scale: 1.0, dropout: None }
    }
}

/// Computes the mean loss and the gradients of some micro-batches. A [sharded](Loader::sharded) loader yields its share of both.
///
/// # Errors
/// Returns errors of the task.
pub fn forward_backward(
    task: &mut dyn Task,
    params: &mut Params,
    loader: &mut Loader,
    options: &GradientOptions,
) -> Result<(f64, StepGradients)> {
    let &GradientOptions { tape, accumulation, position, scale, dropout } = options;
    let share = 1.0 / (accumulation * loader.shards()) as f64;
    let (mut loss, mut gradients) = (0.0, StepGradients::default());
    for micro in 0..accumulation {
        let mut tape = Tape::with_options(tape);
        if let Some(key) = dropout {
            tape = tape.with_dropout(DropoutKey { first_item: key.first_item + loader.offset(micro), ..key });
        }
        let batch = loader.load(position + loader.offset(micro))?;
        let value = task.loss(&tape, params, &batch)?;
        loss += share * f64::from(value.value().to_scalar::<f32>()?);
        gradients.statistics.push(tape.take_statistics());
        for (name, gradient) in value.backward(share * scale)? {
            let total = match gradients.gradients.remove(&name) {
                Some(old) => (old + gradient)?,
                None => gradient,
            };
            gradients.gradients.insert(name, total);
        }
    }
    Ok((loss, gradients))
}

/// The largest divisor of `size` that is at most half of it; `None` if that is less than `smallest`.
pub(super) fn halve_micro_batch(size: usize, smallest: usize) -> Option<usize> {
    (smallest..=size / 2).rev().find(|part| size.is_multiple_of(*part))
}
