//! Computation and memory that training requires.

use serde::Serialize;
use tiny_cats_models::{NetworkConfig, TapeOptions, cost::CostSummary};

use super::Result;
use crate::data::AugmentLevel;

/// The properties of a training that determine its requirements.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The network.
    pub network: NetworkConfig,
    /// Side of the training images in pixels.
    pub side: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Images in a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// The precision of gradients, and gradient checkpointing.
    pub tape: TapeOptions,
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
    /// Number of values in all parameters, running statistics included.
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
    /// The optimizer's two moments.
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
    /// The peak.
    pub fn total(&self) -> u64 {
        let kept = [self.gradients, self.moments, self.averages, self.batch];
        let kept = kept.into_iter().fold(self.weights, u64::saturating_add);
        kept.saturating_add(self.activations.max(self.workspace))
    }
}

/// Kernel launches of the optimizer step: some for each of its two groups, and one or two for each parameter, which is copied.
const OPTIMIZER_LAUNCHES: u64 = 60;
/// Copies of all parameters that candle's operations make in the optimizer step on a GPU.
///
/// These are the concatenated gradients and terms of the update. A CPU's kernel makes none.
const OPTIMIZER_COPIES: u64 = 7;

impl Workload {
    /// Images in an optimizer step.
    pub fn items(&self) -> u64 {
        (self.batch as u64).saturating_mul(self.accumulation as u64)
    }

    /// Values of an image.
    pub fn values(&self) -> usize {
        3 * self.side * self.side
    }

    /// Computes the requirements on a GPU, or on a CPU if `gpu` is false.
    ///
    /// # Errors
    /// Returns an error if the network's settings are not valid.
    pub fn requirements(&self, gpu: bool) -> Result<Requirements> {
        let ledger = self.network.cost(self.side)?;
        let step_flops = ledger.training_flops(self.tape.checkpoint).saturating_mul(self.items());
        let run_flops = step_flops as f64 * self.steps as f64 + self.eval_flops;
        let (parameters, launches) = (ledger.parameters(), self.launches(&ledger));
        let memory = self.memory(&ledger, self.batch, gpu)?;
        Ok(Requirements { parameters, step_flops, run_flops, launches, memory })
    }

    /// Computes the memory of steps with micro-batches of `batch`.
    pub(super) fn memory(&self, ledger: &CostSummary, batch: usize, gpu: bool) -> Result<Memory> {
        const F32: u64 = size_of::<f32>() as u64;
        let values = |trained_alone: bool| -> u64 {
            let specs = ledger.params.iter().filter(|spec| spec.trainable || !trained_alone);
            specs.map(|spec| spec.dims.iter().map(|&d| d as u64).product::<u64>()).sum()
        };
        let (all, trained) = (F32 * values(false), F32 * values(true));
        let tape = if gpu { self.tape } else { self.tape.on_cpu() };
        let step = self.network.training_bytes(self.side, batch, tape)?;
        let picture = F32 * self.values() as u64;
        // A generator's target is an image too.
        let pictures = if matches!(self.network, NetworkConfig::TinyDit(_)) { 2 } else { 1 };
        Ok(Memory {
            weights: all,
            gradients: trained,
            moments: 2 * trained,
            averages: self.averages as u64 * all,
            batch: (batch as u64).saturating_mul(pictures * picture),
            activations: step.saturating_sub(trained),
            workspace: if gpu { OPTIMIZER_COPIES * trained } else { 0 },
        })
    }

    /// The largest micro-batch that needs at most `bytes` on a GPU, within 2 %; 0 if none does.
    pub(super) fn largest_batch(&self, ledger: &CostSummary, bytes: u64) -> Result<usize> {
        /// More images than any step has.
        const MAX_BATCH: usize = 1 << 20;
        let fits = |batch| Ok::<_, super::Error>(self.memory(ledger, batch, true)?.total() <= bytes);
        let (mut least, mut most) = (0, 1);
        while most <= MAX_BATCH && fits(most)? {
            (least, most) = (most, 2 * most);
        }
        while most - least > (least >> 6).max(1) {
            let middle = least + (most - least) / 2;
            if fits(middle)? { least = middle } else { most = middle }
        }
        Ok(least)
    }

    fn launches(&self, ledger: &CostSummary) -> u64 {
        let computed = ledger.ops.iter().filter(|entry| entry.bytes > 0);
        let kernels: u64 =
            computed.map(|entry| if self.tape.checkpoint && entry.in_block { 4 } else { 3 }).sum();
        kernels.saturating_mul(self.accumulation as u64) + 2 * ledger.params.len() as u64 + OPTIMIZER_LAUNCHES
    }
}
