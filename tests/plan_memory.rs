//! Compares the peak memory of training, as counted by the allocator, with the estimate of `tiny-cats plan`.

#[path = "../models/tests/common/counting.rs"]
mod counting;

use std::sync::atomic::Ordering::Relaxed;

use candle_core::Device;
use counting::{LIVE, PEAK};
use tiny_cats::{
    data::AugmentLevel,
    plan::{Workload, calibrate},
    recipes::calibration_task,
};
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{ResNetConfig, TapeOptions, TinyDitConfig};

/// The only test of this program, so that no other test allocates during the measurement.
#[test]
fn training_uses_the_memory_that_the_plan_estimates() {
    let dit = |size: &str, side| NetworkConfig::new(TinyDitConfig::named(size, side, 13).unwrap()).unwrap();
    let resnet = NetworkConfig::new(ResNetConfig::named("resnet18", 13).unwrap()).unwrap();
    for (name, network, side, batch, averages) in [
        ("nano", dit("nano", 32), 32, 12, 1),
        ("tiny", dit("tiny", 64), 64, 6, 2),
        ("resnet18", resnet, 64, 16, 1),
    ] {
        for checkpoint in [false, true] {
            let tape = TapeOptions { checkpoint, ..TapeOptions::default() };
            let network = network.clone();
            let workload = Workload {
                network,
                side,
                steps: 3,
                batch,
                accumulation: 1,
                tape,
                moments: 2,
                averages,
                augmentation: AugmentLevel::Full,
                eval_flops: 0.0,
            };
            let estimate = workload.requirements(false).unwrap().memory;
            let before = LIVE.load(Relaxed);
            let folder = tempfile::tempdir().unwrap();
            let mut task = calibration_task(&workload, folder.path(), &Device::Cpu).unwrap();
            let mut peaks = Vec::new();
            calibrate(&mut *task, &workload, &Device::Cpu, 4, &mut |_, _| {
                peaks.push(PEAK.swap(LIVE.load(Relaxed), Relaxed) - before);
            })
            .unwrap();
            // The first step allocates the optimizer's moments and the scratch memory of kernels.
            let measured = peaks[2..].iter().copied().max().unwrap();
            let ratio = estimate.total() as f64 / measured as f64;
            println!(
                "{name}, checkpointed {checkpoint}: {:.1} MB, estimated {estimate:?}, ratio {ratio:.3}",
                measured as f64 / 1e6
            );
            assert!(
                (0.85..1.15).contains(&ratio),
                "{name}, checkpointed {checkpoint}: {measured} bytes, estimated {estimate:?}"
            );
        }
    }
}
