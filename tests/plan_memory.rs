//! What training has in use at most, counted by the allocator, and what the plan says of it.

#[path = "../models/tests/common/counting.rs"]
mod counting;

use std::sync::atomic::Ordering::Relaxed;

use candle_core::Device;
use counting::{LIVE, PEAK};
use tiny_cats::{
    data::AugmentLevel,
    plan::{Workload, calibrate},
};
use tiny_cats_models::{NetworkConfig, ResNetConfig, TapeOptions, TinyDitConfig};

/// One test alone: nothing else allocates meanwhile.
#[test]
fn training_takes_the_memory_that_the_plan_says() {
    let dit = |size: &str, side| NetworkConfig::TinyDit(TinyDitConfig::named(size, side, 13).unwrap());
    let resnet = ResNetConfig::named("resnet18", 13).unwrap();
    for (name, network, side, batch, averages) in [
        ("nano", dit("nano", 32), 32, 12, 1),
        ("tiny", dit("tiny", 64), 64, 6, 2),
        ("resnet18", NetworkConfig::ResNet(resnet), 64, 16, 1),
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
                averages,
                augmentation: AugmentLevel::Full,
                eval_flops: 0.0,
            };
            let said = workload.requirements(false).unwrap().memory;
            let before = LIVE.load(Relaxed);
            let mut peaks = Vec::new();
            calibrate(&workload, &Device::Cpu, 4, &mut |_, _| {
                peaks.push(PEAK.swap(LIVE.load(Relaxed), Relaxed) - before);
            })
            .unwrap();
            // What a run begins with is built up in the first step, and kernels get their scratch memory.
            let found = peaks[2..].iter().copied().max().unwrap();
            let ratio = said.total() as f64 / found as f64;
            println!(
                "{name}, checkpointed {checkpoint}: {:.1} MB, said {said:?}, {ratio:.3}",
                found as f64 / 1e6
            );
            assert!(
                (0.85..1.15).contains(&ratio),
                "{name}, checkpointed {checkpoint}: {found} bytes, said {said:?}"
            );
        }
    }
}
