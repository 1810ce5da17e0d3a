//! How much a training computes and keeps.

use serde::Serialize;
use tiny_cats_models::{NetworkConfig, TapeOptions, cost::CostSummary};

use super::Result;
use crate::data::AugmentLevel;

/// A training, as far as it matters what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// What is trained.
    pub network: NetworkConfig,
    /// Side of the pictures that it is trained on.
    pub side: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Pictures in a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// How gradients are computed.
    pub tape: TapeOptions,
    /// Moving averages of the weights.
    pub averages: usize,
    /// How pictures are changed.
    pub augmentation: AugmentLevel,
    /// Floating-point operations of all evaluations and sample grids of the run.
    pub eval_flops: f64,
}

/// What it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requirements {
    /// Values in all parameters, running statistics included.
    pub parameters: u64,
    /// Floating-point operations of a step; a multiply-add counts as two.
    pub step_flops: u64,
    /// Of all steps, evaluations and sample grids.
    pub run_flops: f64,
    /// Kernels that a step launches on a GPU, about.
    pub launches: u64,
    /// Memory that it has in use at most.
    pub memory: Memory,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights, in f32.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// The optimizer's two moments.
    pub moments: u64,
    /// Moving averages of the weights.
    pub averages: u64,
    /// Pictures and targets of a micro-batch.
    pub batch: u64,
    /// What operations keep for their way back, and gradients on it.
    pub activations: u64,
    /// What the optimizer has in use for itself, when the activations are gone.
    pub workspace: u64,
}

impl Memory {
    /// The most that is in use at once.
    pub fn total(&self) -> u64 {
        let kept = [self.gradients, self.moments, self.averages, self.batch];
        let kept = kept.into_iter().fold(self.weights, u64::saturating_add);
        kept.saturating_add(self.activations.max(self.workspace))
    }
}

/// Kernels of the optimizer's step: some for each of its two groups, and one or two for each parameter, which is copied to its place.
const OPTIMIZER_LAUNCHES: u64 = 60;
/// Copies of all parameters that candle's operations make in the optimizer's step on a GPU: the gradients in one piece, and terms of the
/// update. A processor's kernel makes none.
const OPTIMIZER_COPIES: u64 = 7;

impl Workload {
    /// Pictures in a step.
    pub fn items(&self) -> u64 {
        (self.batch as u64).saturating_mul(self.accumulation as u64)
    }

    /// Values of a picture.
    pub fn values(&self) -> usize {
        3 * self.side * self.side
    }

    /// What it takes on a GPU, or on a processor.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn requirements(&self, gpu: bool) -> Result<Requirements> {
        let ledger = self.network.cost(self.side)?;
        let step_flops = ledger.training_flops(self.tape.checkpoint).saturating_mul(self.items());
        let run_flops = step_flops as f64 * self.steps as f64 + self.eval_flops;
        let (parameters, launches) = (ledger.parameters(), self.launches(&ledger));
        let memory = self.memory(&ledger, self.batch, gpu)?;
        Ok(Requirements { parameters, step_flops, run_flops, launches, memory })
    }

    /// The memory of steps of micro-batches of `batch`.
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
        // A generator's target is a picture, too.
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

    /// The largest micro-batch whose steps take no more than `bytes` on a GPU; 0 where none does.
    pub(super) fn largest_batch(&self, ledger: &CostSummary, bytes: u64) -> Result<usize> {
        /// More pictures than any step has.
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
