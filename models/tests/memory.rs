//! Compares the memory of a training step, counted by the allocator, with the cost backend's prediction.
#![cfg(feature = "candle")]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use common::Case;
use counting::{LIVE, PEAK};
use tiny_cats_models::{Precision, TapeOptions, tape::Tape};

/// Returns a lock, so that no other test allocates during a measurement.
fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a step, so that the kernels have allocated their scratch memory.
fn warm_up(mut case: Case) -> Case {
    case.step(DEFAULT, 1.0);
    case
}

/// Returns the peak memory of a step, in bytes, without weights and batch. It is the minimum of three measurements, because a thread
/// allocates scratch memory when it first works on a kernel.
fn measured_bytes(case: &mut Case, options: TapeOptions) -> u64 {
    let mut measure = || {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        case.step(options, 1.0);
        (PEAK.load(Relaxed) - before) as u64
    };
    (0..3).map(|_| measure()).min().unwrap()
}

const DEFAULT: TapeOptions = TapeOptions { checkpoint: false, precision: Precision::F32 };
const CHECKPOINTED: TapeOptions = TapeOptions { checkpoint: true, precision: Precision::F32 };

#[test]
fn a_step_uses_the_memory_the_cost_backend_predicts() {
    let _lock = lock();
    for (name, mut case) in [
        ("nano", Case::dit("nano", 32, 6)),
        ("tiny", Case::dit("tiny", 64, 6)),
        ("resnet18", Case::resnet("resnet18", 96, 4)),
        ("resnet50", Case::resnet("resnet50", 64, 3)),
    ] {
        case = warm_up(case);
        for (precision, tolerance) in [(Precision::F32, 0.05), (Precision::Bf16, 0.05), (Precision::F16, 0.1)]
        {
            for checkpoint in [false, true] {
                let options = TapeOptions { checkpoint, precision };
                let (found, predicted) = (
                    measured_bytes(&mut case, options) as f64,
                    case.predicted_bytes(options.on_cpu()) as f64,
                );
                println!("{name}, {options:?}: {:.1} MB, predicted {:.1} MB", found / 1e6, predicted / 1e6);
                assert!(
                    (predicted / found - 1.0).abs() < tolerance,
                    "{name}, {options:?}: {found} bytes, predicted {predicted}"
                );
            }
        }
    }
}

#[test]
fn gradient_checkpointing_reduces_memory() {
    let _lock = lock();
    // Checkpointing does not reduce the gradients of the parameters (22 MB and 45 MB), nor the activations of the second network's stem,
    // which is not a block and has the largest feature maps.
    for (name, mut case, max_ratio) in [
        ("tiny, of depth 8", Case::dit("tiny", 32, 10), 0.35),
        ("resnet18", Case::resnet("resnet18", 64, 40), 0.88),
    ] {
        case = warm_up(case);
        let (all, few) =
            (measured_bytes(&mut case, DEFAULT) as f64, measured_bytes(&mut case, CHECKPOINTED) as f64);
        println!("{name}: {:.1} MB, {:.1} MB checkpointed", all / 1e6, few / 1e6);
        assert!(few < max_ratio * all, "{name}: {few} bytes of {all}");
    }
}

#[test]
fn a_tape_without_backward_frees_saved_tensors() {
    let _lock = lock();
    for mut case in [Case::dit("nano", 32, 4), Case::resnet("resnet18", 32, 4)] {
        for options in [DEFAULT, CHECKPOINTED] {
            // Threads keep the scratch memory of kernels, and their work varies from run to run. A leak of the tape would show in every
            // run, so the minimum counts.
            let mut leaked = || {
                let before = LIVE.load(Relaxed);
                case.loss(&Tape::with_options(options));
                LIVE.load(Relaxed).saturating_sub(before)
            };
            let min = (0..6).map(|_| leaked()).min().unwrap();
            assert!(min < 1 << 16, "{min} bytes leaked");
        }
    }
}
