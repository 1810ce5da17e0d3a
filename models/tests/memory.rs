//! Compares the memory of a training step, counted by the allocator, with the cost backend's prediction.
#![cfg(feature = "candle")]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use candle_core::{DType, Device, Tensor as CandleTensor};
use common::Case;
use counting::{LIVE, PEAK};
use tiny_cats_models::{
    Conv1dOptions, Conv2dOptions, Precision, Result, TapeOptions, Tensor,
    candle::with_candle_ops,
    cost::Counter,
    random::noise,
    tape::{DropoutKey, Param, Tape},
};

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
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            for checkpoint in [false, true] {
                let options = TapeOptions { checkpoint, precision };
                let (found, predicted) = (
                    measured_bytes(&mut case, options) as f64,
                    case.predicted_bytes(options.on_cpu()) as f64,
                );
                println!("{name}, {options:?}: {:.1} MB, predicted {:.1} MB", found / 1e6, predicted / 1e6);
                assert!(
                    (predicted / found - 1.0).abs() < 0.05,
                    "{name}, {options:?}: {found} bytes, predicted {predicted}"
                );
            }
        }
    }
}

/// On a GPU, values are in half precision. candle's own operations do the same on a CPU, in f16.
#[test]
fn a_step_with_values_in_f16_uses_about_the_predicted_memory() {
    let _lock = lock();
    for (name, mut case) in [
        ("nano", Case::dit("nano", 32, 6)),
        ("tiny", Case::dit("tiny", 32, 4)),
        ("resnet18", Case::resnet("resnet18", 32, 2)),
    ] {
        for checkpoint in [false, true] {
            let options = TapeOptions { checkpoint, precision: Precision::F16 };
            let found = with_candle_ops(|| measured_bytes(&mut case, options)) as f64;
            let predicted = case.predicted_bytes(options) as f64;
            println!("{name}, {options:?}: {:.1} MB, predicted {:.1} MB", found / 1e6, predicted / 1e6);
            assert!(
                (predicted / found - 1.0).abs() < 0.2,
                "{name}, {options:?}: {found} bytes, predicted {predicted}"
            );
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

/// Number of items of [`operation_bytes`].
const ITEMS: usize = 8;

/// Returns the peak memory of an operation on `x + p0`, forward and backward, and the prediction, both in bytes without inputs.
macro_rules! operation_bytes {
    ($input:expr, [$($param:expr),*], |$x:ident, $p:ident| $body:expr) => {{
        fn operation<T: Tensor>(x: &T, $p: &[T::Param]) -> Result<T> {
            let _ = &$p;
            let $x = &x.add_param(&$p[0])?;
            // A small output, so that the loss does not need the most memory.
            let y = $body?;
            y.sum(0)
        }
        let input: Vec<usize> = $input.to_vec();
        let params: Vec<Vec<usize>> = vec![input.clone(), $($param.to_vec()),*];
        let counter = Counter::training(ITEMS, DEFAULT);
        let predicted = counter.training_bytes(operation(&counter.input(&input), &params).unwrap()).unwrap();
        let random = |dims: &[usize]| {
            let values = noise(1, 0, dims.iter().product());
            CandleTensor::from_vec(values, dims, &Device::Cpu).unwrap()
        };
        let x = random(&[&[ITEMS], &input[..]].concat());
        let params: Vec<CandleTensor> = params.iter().map(|dims| random(dims)).collect();
        let output = operation(&counter.input(&input), &params.iter().map(|p| p.dims().to_vec()).collect::<Vec<_>>());
        let target = random(&[&[ITEMS], output.unwrap().dims()].concat());
        let weight = CandleTensor::ones(ITEMS, DType::F32, &Device::Cpu).unwrap();
        let measure = || {
            let before = LIVE.load(Relaxed);
            PEAK.store(before, Relaxed);
            let tape = Tape::new().with_dropout(DropoutKey { seed: 0, step: 0, first_item: 0 });
            let leaf = |(i, p): (usize, &CandleTensor)| Param::from(tape.leaf(&i.to_string(), p.clone()));
            let params: Vec<Param> = params.iter().enumerate().map(leaf).collect();
            let y = operation(&tape.constant(x.clone()), &params).unwrap();
            let gradients = y.weighted_mse(&target, &weight).map(|loss| {
                drop(y);
                loss.backward(1.0).unwrap()
            });
            drop(gradients);
            (PEAK.load(Relaxed) - before) as u64
        };
        ((0..4).map(|_| measure()).min().unwrap(), predicted)
    }};
}

#[test]
fn each_operation_uses_the_memory_the_cost_backend_predicts() {
    let _lock = lock();
    let image = [16, 64, 64];
    let cases = [
        ("sub", operation_bytes!(image, [], |x, p| x.sub(&x.affine(2.0, 0.0)?))),
        ("div", operation_bytes!(image, [], |x, p| x.div(&x.affine(2.0, 0.0)?))),
        ("exp", operation_bytes!(image, [], |x, p| x.exp()?.exp())),
        ("log", operation_bytes!(image, [], |x, p| x.log()?.log())),
        ("sqrt", operation_bytes!(image, [], |x, p| x.sqrt()?.sqrt())),
        ("sigmoid", operation_bytes!(image, [], |x, p| x.sigmoid()?.sigmoid())),
        ("tanh", operation_bytes!(image, [], |x, p| x.tanh()?.tanh())),
        ("softplus", operation_bytes!(image, [], |x, p| x.softplus()?.softplus())),
        ("clamp", operation_bytes!(image, [], |x, p| x.clamp(-1.0, 1.0)?.clamp(-0.5, 0.5))),
        ("sum", operation_bytes!(image, [], |x, p| x.sum(1)?.sum(1))),
        ("max", operation_bytes!(image, [], |x, p| x.max(1)?.max(0))),
        ("pad", operation_bytes!(image, [], |x, p| x.pad(1, 2, 3)?.pad(2, 0, 9))),
        ("upsample_nearest2d", operation_bytes!([4, 32, 32], [], |x, p| x.upsample_nearest2d(2)?.silu())),
        ("group_norm", operation_bytes!(image, [], |x, p| x.group_norm(4, None, 1e-5)?.silu())),
        (
            "affine group_norm",
            operation_bytes!(image, [[16], [16]], |x, p| {
                x.group_norm(4, Some((&p[1], &p[2])), 1e-5)?.silu()
            }),
        ),
        ("dropout", operation_bytes!(image, [], |x, p| x.dropout(0.1)?.silu()?.dropout(0.5))),
        (
            "conv2d in groups",
            operation_bytes!(image, [[32, 8, 3, 3]], |x, p| {
                let options = Conv2dOptions { groups: 2, ..Conv2dOptions::square(1, 1) };
                x.conv2d_with_options(&p[1], None, options)?.silu()
            }),
        ),
        (
            "depthwise conv2d",
            operation_bytes!(image, [[16, 1, 5, 5], [16]], |x, p| {
                let options = Conv2dOptions { groups: 16, ..Conv2dOptions::square(1, 2) };
                x.conv2d_with_options(&p[1], Some(&p[2]), options)?.silu()
            }),
        ),
        (
            "dilated conv2d",
            operation_bytes!(image, [[16, 16, 3, 3]], |x, p| {
                let options = Conv2dOptions { dilation: [2; 2], ..Conv2dOptions::square(1, 2) };
                x.conv2d_with_options(&p[1], None, options)?.silu()
            }),
        ),
        (
            "conv1d",
            operation_bytes!([16, 4096], [[16, 16, 3]], |x, p| {
                x.conv1d(&p[1], None, Conv1dOptions { padding: 1, ..Conv1dOptions::default() })?.silu()
            }),
        ),
    ];
    for (name, (found, predicted)) in cases {
        println!("{name}: {:.2} MB, predicted {:.2} MB", found as f64 / 1e6, predicted as f64 / 1e6);
    }
    for (name, (found, predicted)) in cases {
        let ratio = predicted as f64 / found as f64;
        assert!((ratio - 1.0).abs() < 0.1, "{name}: {found} bytes, predicted {predicted}");
    }
}
