//! Measurement of this machine's training speed.

use std::time::Instant;

use candle_core::Device;
use serde::Serialize;
use tiny_cats_models::{NetworkConfig, init};

use super::Workload;
use crate::{
    data::{BREEDS, Cache, Dataset, Images, Photos, synth},
    train::{
        AdamW, Classifier, ClassifierOptions, Dit, DitOptions, Flow, Loader, Optimizer, Result, StepOptions,
        Task, forward_backward,
    },
};

/// Steps before the measurement starts.
const WARM_UP: u64 = 3;
/// Minimum number of synthetic images in the training data.
const MIN_IMAGES: usize = 100;

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

/// Trains `workload` on synthetic cats on `device` and measures `steps` steps.
///
/// `observe` receives the number of steps done and their total.
///
/// # Errors
/// Returns an error if training fails, such as for lack of memory.
pub fn calibrate(
    workload: &Workload,
    device: &Device,
    steps: u64,
    observe: &mut dyn FnMut(u64, u64),
) -> Result<Calibration> {
    let folder = tempfile::tempdir()
        .map_err(|source| crate::train::Error::File { path: std::env::temp_dir(), source })?;
    let mut task = task(workload, folder.path(), device)?;
    let specs = task.cost()?.params;
    let settings = AdamW { ema: vec![0.999; workload.averages], ..AdamW::default() };
    let mut optimizer = Optimizer::new(settings, &specs, &init(&specs, 0), device)?;
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let batch = workload.batch.min(task.batches().items());
    let mut loader = Loader::with_workers(task.batches(), batch, workers, 2)?;
    let mut times = Vec::new();
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        let position = step * (batch * workload.accumulation) as u64;
        let mut params = optimizer.params()?;
        let (_, gradients) = forward_backward(
            &mut *task,
            workload.tape,
            &mut params,
            &mut loader,
            workload.accumulation,
            position,
            1.0,
        )?;
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

/// Creates the task with synthetic images.
fn task(workload: &Workload, folder: &std::path::Path, device: &Device) -> Result<Box<dyn Task>> {
    let (side, augmentation, seed) = (workload.side as u32, workload.augmentation, 0);
    let data = folder.join("cats");
    let per_class = workload.batch.max(MIN_IMAGES).div_ceil(BREEDS.len() + 1).min(u32::MAX as usize) as u32;
    synth::write(&data, &synth::SynthManifest::new(per_class, side, seed)?, |_| ())?;
    let data = Dataset::open(&data)?;
    let classes = data.classes.len();
    Ok(match workload.network.clone() {
        NetworkConfig::TinyDit(network) => {
            let images = Images::load(&data, side, None, &Cache::Memory)?;
            let network = tiny_cats_models::TinyDitConfig { classes, ..network };
            let flow = Flow::default();
            let options = DitOptions {
                network,
                flow,
                augmentation,
                guidance: 1.0,
                guidance_interval: [0.0, 1.0],
                best: false,
                seed,
                init: None,
            };
            Box::new(Dit::new(options, images, None, device.clone())?)
        }
        NetworkConfig::ResNet(network) => {
            let options = ClassifierOptions {
                network: tiny_cats_models::ResNetConfig { classes, ..network },
                image_size: workload.side,
                crop_size: workload.side,
                augmentation,
                mixup: 0.0,
                label_smoothing: 0.1,
                seed,
                name: "calibration".into(),
                init: None,
            };
            let photos = Photos::load(&data, options.short_side(), None, &Cache::Memory)?;
            Box::new(Classifier::new(options, photos, None, device.clone())?)
        }
    })
}
