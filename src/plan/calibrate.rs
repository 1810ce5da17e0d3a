//! Measurement of this machine's training speed.

use std::time::Instant;

use candle_core::Device;
use serde::Serialize;
use tiny_cats_models::init;

use super::Workload;
use crate::train::{
    GradientOptions, Loader, Optimizer, OptimizerOptions, Result, StepOptions, Task, forward_backward,
};

/// Steps before the measurement starts.
const WARM_UP: u64 = 3;
/// Number of batches for the measurement of image preparation.
const PREPARED_BATCHES: u64 = 8;

/// The measured speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Median seconds of a step; images are prepared ahead, as in training.
    pub step_seconds: f64,
    /// Floating-point operations per second.
    pub flops: f64,
    /// Images in the measured micro-batch.
    pub batch: usize,
    /// Number of measured steps.
    pub steps: u64,
    /// Nanoseconds for a CPU thread to prepare a value of an image: resampling, augmentation and mixing with noise.
    pub prepare_ns: f64,
}

/// Trains `task`, which is that of `workload`, on `device`, and measures `steps` steps.
///
/// `observe` receives the number of steps done and their total.
///
/// # Errors
/// Returns an error if training fails, such as for lack of memory.
pub fn calibrate(
    task: &mut dyn Task,
    workload: &Workload,
    device: &Device,
    steps: u64,
    observe: &mut dyn FnMut(u64, u64),
) -> Result<Calibration> {
    let specs = task.cost()?.params;
    // The time of the optimizer is small, so AdamW stands for all.
    let options = OptimizerOptions { ema: vec![0.999; workload.averages], ..OptimizerOptions::default() };
    let mut optimizer = Optimizer::new(options, &specs, &init(&specs, 0), device)?;
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let batch = workload.batch.min(task.batches().items());
    let mut loader = Loader::with_workers(task.batches(), batch, workers, 2)?;
    let mut times = Vec::new();
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        let position = step * (batch * workload.accumulation) as u64;
        let mut params = optimizer.params()?;
        let options = GradientOptions {
            accumulation: workload.accumulation,
            ..GradientOptions::new(workload.tape, position)
        };
        let (_, gradients) = forward_backward(task, &mut params, &mut loader, &options)?;
        drop(params);
        // The optimizer step reads the norm of the gradients, which waits for all kernels.
        optimizer.step(&gradients, StepOptions { rate: 1e-4, updates: step, scale: 1.0 })?;
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
        }
        observe(step + 1, WARM_UP + steps);
    }
    times.sort_by(f64::total_cmp);
    let step_seconds = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let (batches, start) = (task.batches(), Instant::now());
    for index in 0..PREPARED_BATCHES {
        batches.batch(index * batch as u64, batch)?;
    }
    // A batch is prepared by all threads.
    let threads = rayon::current_num_threads() as f64;
    let values = (PREPARED_BATCHES * (batch * workload.values()) as u64) as f64;
    let prepare_ns = start.elapsed().as_secs_f64() * 1e9 * threads / values;
    let items = (batch * workload.accumulation) as u64;
    let flops = task.cost()?.training_flops(workload.tape.checkpoint).saturating_mul(items) as f64;
    Ok(Calibration { step_seconds, flops: flops / step_seconds, batch, steps, prepare_ns })
}
