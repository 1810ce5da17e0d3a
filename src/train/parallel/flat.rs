//! The gradients of one process's step as one row of numbers for the all-reduce.

use candle_core::{Shape, Tensor};
use tiny_cats_models::tape::BatchStatistics;

use crate::train::{Result, StepGradients, group::concat};

/// The gradients and statistics of a step in one row, with the layout that restores them.
pub(super) struct FlatGradients {
    /// `[n]`: all gradients by name, then mean and variance of each batch normalization in the order of the network.
    pub(super) flat: Tensor,
    gradients: Vec<(String, Shape)>,
    statistics: Vec<(String, usize)>,
}

impl FlatGradients {
    /// Flattens the gradients of one of `size` processes.
    ///
    /// Gradients are already shares of the step's. Statistics are divided such that their sum is the mean over all micro-batches, and every
    /// process has the same number of these.
    pub(super) fn new(step: StepGradients, size: usize) -> Result<Self> {
        let (mut parts, mut gradients, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
        for (name, gradient) in step.gradients {
            gradients.push((name, gradient.shape().clone()));
            parts.push(gradient.contiguous()?.flatten_all()?);
        }
        for (i, first) in step.statistics.first().into_iter().flatten().enumerate() {
            statistics.push((first.path.clone(), first.mean.elem_count()));
            for part in [|s: &BatchStatistics| s.mean.clone(), |s: &BatchStatistics| s.var.clone()] {
                let seen: Vec<Tensor> =
                    step.statistics.iter().filter_map(|s| Some(part(s.get(i)?))).collect();
                parts.push((Tensor::stack(&seen, 0)?.mean(0)? / size as f64)?);
            }
        }
        Ok(Self { flat: concat(parts)?, gradients, statistics })
    }

    /// Restores gradients and statistics from the row, once it is the sum of all processes' rows. The tensors are views of it.
    pub(super) fn unflatten(self) -> Result<StepGradients> {
        let mut at = 0;
        let mut next = |shape: Shape| {
            let part = self.flat.narrow(0, at, shape.elem_count())?.reshape(&shape);
            at += shape.elem_count();
            part
        };
        let mut step = StepGradients::default();
        for (name, shape) in self.gradients {
            step.gradients.insert(name, next(shape)?);
        }
        let statistics = self.statistics.into_iter().map(|(path, n)| -> Result<_> {
            Ok(BatchStatistics { path, mean: next(n.into())?, var: next(n.into())? })
        });
        step.statistics = vec![statistics.collect::<Result<_>>()?];
        Ok(step)
    }
}
