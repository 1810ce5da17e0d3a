//! What a training step has in use, counted by the allocator, and what the cost reading says of it.
#![cfg(feature = "candle")]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use common::Case;
use counting::{LIVE, PEAK};
use tiny_cats_models::{Precision, TapeOptions, tape::Tape};

/// Nothing else allocates while one looks.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A case, and the kernels with the scratch memory that it takes.
fn warm(mut case: Case) -> Case {
    case.step(KEPT, 1.0);
    case
}

/// The most bytes that a step of a warm case has in use, besides weights and batch: the least of three, since a thread that gets its first
/// piece of a kernel's work takes its scratch memory then.
fn measured(case: &mut Case, options: TapeOptions) -> u64 {
    let mut once = || {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        case.step(options, 1.0);
        (PEAK.load(Relaxed) - before) as u64
    };
    (0..3).map(|_| once()).min().unwrap()
}

const KEPT: TapeOptions = TapeOptions { checkpoint: false, precision: Precision::F32 };
const CHECKPOINTED: TapeOptions = TapeOptions { checkpoint: true, precision: Precision::F32 };

#[test]
fn a_step_uses_the_memory_the_cost_backend_predicts() {
    let _turn = turn();
    for (name, mut case) in [
        ("nano", Case::dit("nano", 32, 6)),
        ("tiny", Case::dit("tiny", 64, 6)),
        ("resnet18", Case::resnet("resnet18", 96, 4)),
        ("resnet50", Case::resnet("resnet50", 64, 3)),
    ] {
        case = warm(case);
        // In halves operations have more in use for themselves, of which not everything is counted.
        for (precision, most) in [(Precision::F32, 0.05), (Precision::Bf16, 0.05), (Precision::F16, 0.1)] {
            for checkpoint in [false, true] {
                let options = TapeOptions { checkpoint, precision };
                let (found, said) =
                    (measured(&mut case, options) as f64, case.predicted(options.on_cpu()) as f64);
                println!("{name}, {options:?}: {:.1} MB, said {:.1} MB", found / 1e6, said / 1e6);
                assert!((said / found - 1.0).abs() < most, "{name}, {options:?}: {found} bytes, said {said}");
            }
        }
    }
}

#[test]
fn computing_blocks_again_takes_less_memory() {
    let _turn = turn();
    // What both have: gradients of the parameters, 22 MB of the first and 45 MB of the second, and the second's stem, which is not a
    // block and has the largest pictures.
    for (name, mut case, most) in [
        ("tiny, of depth 8", Case::dit("tiny", 32, 10), 0.35),
        ("resnet18", Case::resnet("resnet18", 64, 40), 0.88),
    ] {
        case = warm(case);
        let (all, few) = (measured(&mut case, KEPT) as f64, measured(&mut case, CHECKPOINTED) as f64);
        println!("{name}: {:.1} MB, {:.1} MB checkpointed", all / 1e6, few / 1e6);
        assert!(few < most * all, "{name}: {few} bytes of {all}");
    }
}

#[test]
fn a_tape_without_backward_frees_saved_tensors() {
    let _turn = turn();
    for mut case in [Case::dit("nano", 32, 4), Case::resnet("resnet18", 32, 4)] {
        for options in [KEPT, CHECKPOINTED] {
            // Which thread gets which piece of a kernel's work is chance, and each keeps scratch memory from its first: what a tape leaves,
            // it leaves every time.
            let mut left = || {
                let before = LIVE.load(Relaxed);
                case.loss(&Tape::with_options(options));
                LIVE.load(Relaxed).saturating_sub(before)
            };
            let least = (0..6).map(|_| left()).min().unwrap();
            assert!(least < 1 << 16, "{least} bytes are left");
        }
    }
}
