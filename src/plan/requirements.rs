//! The computation and memory of training.

use serde::Serialize;
use tiny_cats_export::{NetworkConfig, image_sizes};
use tiny_cats_models::{Role, TapeOptions, cost::CostSummary};

use super::Result;
use crate::data::AugmentLevel;

/// The properties of a training that determine its requirements.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The network.
    pub network: NetworkConfig,
    /// Height and width of the training images in pixels.
    pub side: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Images per micro-batch.
    pub batch: usize,
    /// Micro-batches per optimizer step.
    pub accumulation: usize,
    /// The options for gradients: precision and checkpointing.
    pub tape: TapeOptions,
    /// Number of tensors that the optimizer keeps for each parameter: 2 for AdamW.
    pub moments: usize,
    /// Number of moving averages of the weights.
    pub averages: usize,
    /// The augmentation of training images.
    pub augmentation: AugmentLevel,
    /// Floating-point operations of all evaluations and sample grids of the run.
    pub eval_flops: f64,
}

/// The requirements of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requirements {
    /// Number of values in all parameters, including running statistics.
    pub parameters: u64,
    /// Floating-point operations of a step; a multiply-add counts as two.
    pub step_flops: u64,
    /// Floating-point operations of all steps, evaluations and sample grids.
    pub run_flops: f64,
    /// Approximate number of kernel launches of a step on a GPU.
    pub launches: u64,
    /// Peak memory.
    pub memory: Memory,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights, in f32.
    pub weights: u64,
    /// The gradients of the parameters.
    pub gradients: u64,
    /// The moments of the optimizer.
    pub moments: u64,
    /// Moving averages of the weights.
    pub averages: u64,
    /// Images and targets of a micro-batch.
    pub batch: u64,
    /// Activations, and their gradients in the backward pass.
    pub activations: u64,
    /// Temporary memory of the optimizer, after the activations are freed.
    pub workspace: u64,
}

impl Memory {
    /// Returns the peak memory.
    pub fn total(&self) -> u64 {
        let persistent = [self.gradients, self.moments, self.averages, self.batch];
        let persistent = persistent.into_iter().fold(self.weights, u64::saturating_add);
        persistent.saturating_add(self.activations.max(self.workspace))
    }
}

/// Kernel launches of an optimizer step for its two parameter groups, in addition to those per parameter.
const OPTIMIZER_LAUNCHES: u64 = 60;
/// Copies of all parameters in an optimizer step on a GPU, by candle's operations.
///
/// These are the concatenated gradients and the terms of AdamW's update; other rules need less. The CPU kernel makes no copies.
const OPTIMIZER_COPIES: u64 = 7;

impl Workload {
    /// Returns the images per optimizer step.
    pub fn items(&self) -> u64 {
        (self.batch as u64).saturating_mul(self.accumulation as u64)
    }

    /// Returns the values per image.
    pub fn values(&self) -> usize {
        3 * self.side * self.side
    }

    /// Computes the network's parameters and the cost of one image.
    ///
    /// # Errors
    /// Returns an error if the kind of the network is not registered, or its settings are invalid.
    pub fn cost(&self) -> Result<CostSummary> {
        Ok(self.network.network()?.cost(&image_sizes(self.side))?)
    }

    /// Computes the requirements on a GPU, or on a CPU if `gpu` is false.
    ///
    /// # Errors
    /// Returns an error if the settings of the network are invalid.
    pub fn requirements(&self, gpu: bool) -> Result<Requirements> {
        let cost = self.cost()?;
        let step_flops = cost.training_flops(self.tape.checkpoint).saturating_mul(self.items());
        let run_flops = step_flops as f64 * self.steps as f64 + self.eval_flops;
        let (parameters, launches) = (cost.parameters(), self.launches(&cost));
        let memory = self.memory(&cost, self.batch, gpu)?;
        Ok(Requirements { parameters, step_flops, run_flops, launches, memory })
    }

    /// Computes the memory of steps with micro-batches of `batch`.
    pub(super) fn memory(&self, cost: &CostSummary, batch: usize, gpu: bool) -> Result<Memory> {
        const F32: u64 = size_of::<f32>() as u64;
        let values = |trainable_only: bool| -> u64 {
            let specs = cost.params.iter().filter(|spec| spec.trainable || !trainable_only);
            specs.map(|spec| spec.dims.iter().map(|&d| d as u64).product::<u64>()).sum()
        };
        let (all_bytes, trainable_bytes) = (F32 * values(false), F32 * values(true));
        let tape = if gpu { self.tape } else { self.tape.on_cpu() };
        let training_bytes = self.network.network()?.training_bytes(&image_sizes(self.side), batch, tape)?;
        let image_bytes = F32 * self.values() as u64;
        // The target of a generator is an image, too.
        let images_per_item = if matches!(self.network.role(), Role::Generator { .. }) { 2 } else { 1 };
        Ok(Memory {
            weights: all_bytes,
            gradients: trainable_bytes,
            moments: self.moments as u64 * trainable_bytes,
            averages: self.averages as u64 * all_bytes,
            batch: (batch as u64).saturating_mul(images_per_item * image_bytes),
            activations: training_bytes.saturating_sub(trainable_bytes),
            workspace: if gpu { OPTIMIZER_COPIES * trainable_bytes } else { 0 },
        })
    }

    /// Returns the largest micro-batch that needs at most `bytes` on a GPU, within 2 %; 0 if none fits.
    pub(super) fn largest_batch(&self, cost: &CostSummary, bytes: u64) -> Result<usize> {
        /// An upper bound for the search.
        const MAX_BATCH: usize = 1 << 20;
        let fits = |batch| Ok::<_, super::Error>(self.memory(cost, batch, true)?.total() <= bytes);
        let (mut low, mut high) = (0, 1);
        while high <= MAX_BATCH && fits(high)? {
            (low, high) = (high, 2 * high);
        }
        while high - low > (low >> 6).max(1) {
            let middle = low + (high - low) / 2;
            if fits(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    fn launches(&self, cost: &CostSummary) -> u64 {
        let computed = cost.ops.iter().filter(|entry| entry.bytes > 0);
        let kernels: u64 =
            computed.map(|entry| if self.tape.checkpoint && entry.in_block { 4 } else { 3 }).sum();
        kernels.saturating_mul(self.accumulation as u64) + 2 * cost.params.len() as u64 + OPTIMIZER_LAUNCHES
    }
}
