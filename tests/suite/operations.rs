//! Every operation of the vocabulary through every backend. A new operation is one line in [`cases`].

use candle_core::{DType, Device, Tensor as CandleTensor, Var as CandleVar};
use tiny_cats_export::{
    onnx::{OPSETS, OnnxFile, OnnxGraph, Value},
    runtime::{InputTensor, RuntimeKind, run_on_all},
};
use tiny_cats_models::{
    Array, BatchNorm, Init, Precision, Result, Scope, TapeOptions, Tensor, Weights,
    candle::{CandleValue, to_device, with_candle_ops},
    cost::{Cost, Counter},
    native,
    random::{Purpose, Stream},
    tape::{Param, Tape, Var},
};

/// What an input or parameter holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Normal numbers, in and out of gradients.
    Real,
    /// Numbers from 0.5 to 1.5 that no gradient is wanted for: running statistics, times.
    Fixed,
    /// Whole numbers below 4: labels.
    Label,
}
use Kind::{Fixed, Label, Real};

/// An operation with the shapes to try it on; inputs' shapes are without the batch.
trait Operation {
    const NAME: &'static str;
    /// Whether training computes what inference does (batch normalisation does not).
    const SAME_IN_TRAINING: bool = true;
    /// Whether candle's autograd knows its gradients: it fails on convolutions whose stride leaves another rest of the height than of
    /// the width.
    const KNOWN_TO_CANDLE: bool = true;
    fn inputs(&self) -> Vec<(Kind, Vec<usize>)>;
    fn params(&self) -> Vec<(Kind, Vec<usize>)>;
    fn run<T: Tensor>(&self, x: &[T], p: &[T::Param]) -> Result<T>;
}

const BATCH: usize = 3;

fn values(stream: u64, kind: Kind, dims: &[usize]) -> Array {
    let mut s = Stream::new(11, Purpose::Synthetic, stream);
    let n = dims.iter().product();
    let one = |_| match kind {
        Real => s.normal() as f32,
        Fixed => 0.5 + s.uniform() as f32,
        Label => s.below(4) as f32,
    };
    Array::new(dims, (0..n).map(one).collect()).unwrap()
}

fn batched(dims: &[usize]) -> Vec<usize> {
    std::iter::once(BATCH).chain(dims.iter().copied()).collect()
}

fn inputs(op: &impl Operation) -> Vec<(Kind, Array)> {
    let make =
        |(i, (kind, dims)): (usize, (Kind, Vec<usize>))| (kind, values(i as u64, kind, &batched(&dims)));
    op.inputs().into_iter().enumerate().map(make).collect()
}

fn params(op: &impl Operation) -> Vec<(Kind, Array)> {
    let make = |(i, (kind, dims)): (usize, (Kind, Vec<usize>))| (kind, values(100 + i as u64, kind, &dims));
    op.params().into_iter().enumerate().map(make).collect()
}

fn tensor(kind: Kind, array: &Array, dtype: DType) -> CandleTensor {
    to_device(array, if kind == Label { DType::U32 } else { dtype }, &Device::Cpu).unwrap()
}

/// All values and parameters as f64 or f32 tensors: inputs first.
fn tensors(op: &impl Operation, dtype: DType) -> Vec<(Kind, CandleTensor)> {
    inputs(op).iter().chain(&params(op)).map(|(kind, array)| (*kind, tensor(*kind, array, dtype))).collect()
}

fn on_tape<O: Operation>(op: &O, all: &[(Kind, CandleTensor)], precision: Precision) -> Var {
    let tape = Tape::with_options(TapeOptions { checkpoint: true, precision });
    let vars: Vec<Var> = all
        .iter()
        .enumerate()
        .map(|(i, (kind, t))| match kind {
            Real => tape.leaf(&i.to_string(), t.clone()),
            _ => tape.constant(t.clone()),
        })
        .collect();
    let (x, p) = vars.split_at(op.inputs().len());
    let p: Vec<Param> = p.iter().cloned().map(Param::from).collect();
    op.run(x, &p).unwrap_or_else(|e| panic!("{}: {e}", O::NAME))
}

fn plain<O: Operation>(op: &O, all: &[CandleTensor]) -> CandleTensor {
    let (x, p) = all.split_at(op.inputs().len());
    let x: Vec<CandleValue> = x.iter().cloned().map(CandleValue::new).collect();
    op.run(&x, p).unwrap_or_else(|e| panic!("{}: {e}", O::NAME)).into_inner()
}

/// `Σ c·y` and, for every real input, its gradient, where `c` are fixed random numbers.
fn loss_and_gradients<O: Operation>(op: &O, all: &[(Kind, CandleTensor)]) -> (f64, Vec<Option<Vec<f64>>>) {
    loss_and_gradients_in(op, all, Precision::F32)
}

fn loss_and_gradients_in<O: Operation>(
    op: &O,
    all: &[(Kind, CandleTensor)],
    precision: Precision,
) -> (f64, Vec<Option<Vec<f64>>>) {
    let y = on_tape(op, all, precision);
    let dtype = if y.value().dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let c = to_device(&values(999, Real, y.value().dims()), dtype, &Device::Cpu).unwrap();
    let tape_c = y.mul(&y.tape().constant(c)).unwrap();
    let sum = tape_c.value().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    let mut gradients = tape_c.backward(1.0).unwrap();
    let take = |i: usize| {
        let gradient = gradients.remove(&i.to_string())?.to_dtype(DType::F64).unwrap();
        assert_eq!(gradient.dims(), all[i].1.dims(), "{}: gradient {i}", O::NAME);
        Some(gradient.flatten_all().unwrap().to_vec1().unwrap())
    };
    (sum, (0..all.len()).map(take).collect())
}

fn close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs())), "{what}, value {i}: {a} and {b}");
    }
}

fn flat(t: &CandleTensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The tape's gradients are the slopes of its own forward pass.
fn finite_differences<O: Operation>(op: &O) {
    let all = tensors(op, DType::F64);
    let (_, gradients) = loss_and_gradients(op, &all);
    for (i, (kind, t)) in all.iter().enumerate() {
        if *kind != Real {
            assert!(gradients[i].is_none());
            continue;
        }
        let gradient = gradients[i].as_ref().unwrap_or_else(|| panic!("{}: no gradient {i}", O::NAME));
        let base = flat(t);
        let at = |j: usize, step: f64| {
            let mut moved = base.clone();
            moved[j] += step;
            let mut all = all.clone();
            all[i].1 = CandleTensor::from_vec(moved, t.shape(), &Device::Cpu).unwrap();
            loss_and_gradients(op, &all).0
        };
        // Every value of small tensors, a spread of those of large ones.
        for j in (0..base.len()).step_by(base.len() / 48 + 1) {
            let slope = (at(j, 1e-5) - at(j, -1e-5)) / 2e-5;
            close(&format!("{}: slope {j} of input {i}", O::NAME), &[gradient[j]], &[slope], 1e-7);
        }
    }
}

/// The tape's gradients are those of candle's autograd on the composition of candle's own operations.
fn candle_autograd<O: Operation>(op: &O) {
    let all = tensors(op, DType::F64);
    let (_, gradients) = loss_and_gradients(op, &all);
    let vars: Vec<CandleVar> = all.iter().map(|(_, t)| CandleVar::from_tensor(t).unwrap()).collect();
    let leaves: Vec<CandleTensor> = vars
        .iter()
        .zip(&all)
        .map(|(v, (k, t))| if *k == Real { v.as_tensor().clone() } else { t.clone() })
        .collect();
    let y = with_candle_ops(|| plain(op, &leaves));
    let c = to_device(&values(999, Real, y.dims()), DType::F64, &Device::Cpu).unwrap();
    let theirs = (y * c).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, gradient) in gradients.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        let their = theirs.get(&vars[i]).unwrap_or_else(|| panic!("{}: candle has no gradient {i}", O::NAME));
        close(&format!("{}: gradient {i} against candle's", O::NAME), gradient, &flat(their), 1e-9);
    }
}

/// The fused kernels compute, forward and backward, what the compositions do, in f32.
fn fused_and_plain<O: Operation>(op: &O) {
    let all = tensors(op, DType::F32);
    let fused = loss_and_gradients(op, &all);
    let reference = with_candle_ops(|| loss_and_gradients(op, &all));
    for (i, pair) in fused.1.iter().zip(&reference.1).enumerate() {
        if let (Some(a), Some(b)) = pair {
            close(&format!("{}: fused gradient {i}", O::NAME), a, b, 2e-5);
        }
    }
    let bare: Vec<CandleTensor> = all.iter().map(|(_, t)| t.clone()).collect();
    let (a, b) = (plain(op, &bare), with_candle_ops(|| plain(op, &bare)));
    close(&format!("{}: fused value", O::NAME), &flat(&a), &flat(&b), 1e-5);
    if O::SAME_IN_TRAINING {
        close(
            &format!("{}: training value", O::NAME),
            &flat(on_tape(op, &all, Precision::F32).value()),
            &flat(&a),
            1e-6,
        );
    }
}

/// In half precision, and from values in halves, an operation makes what it makes in f32, to some roundings of its largest values; so do
/// the compositions, which multiply halves as a GPU does (candle cannot multiply bf16 on a processor).
fn in_halves<O: Operation>(op: &O) {
    for (precision, dtype, eps) in
        [(Precision::Bf16, DType::BF16, 1.0 / 256.0), (Precision::F16, DType::F16, 1.0 / 2048.0)]
    {
        let n = op.inputs().len();
        let rounded = |(i, (kind, t)): (usize, (Kind, CandleTensor))| {
            let halves = if kind == Real { t.to_dtype(dtype).unwrap() } else { t };
            // Parameters are masters, in f32.
            let halves = if i < n || kind == Label { halves } else { halves.to_dtype(DType::F32).unwrap() };
            (kind, halves)
        };
        let halves: Vec<(Kind, CandleTensor)> =
            tensors(op, DType::F32).into_iter().enumerate().map(rounded).collect();
        let exact: Vec<(Kind, CandleTensor)> = halves
            .iter()
            .map(|(k, t)| (*k, if *k == Label { t.clone() } else { t.to_dtype(DType::F64).unwrap() }))
            .collect();
        let (expected, slopes) = loss_and_gradients(op, &exact);
        let size = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let check = |way: &str, (value, gradients): (f64, Vec<Option<Vec<f64>>>)| {
            let what = format!("{} in {precision:?}, {way}", O::NAME);
            assert!(
                (value - expected).abs() < 64.0 * eps * (1.0 + expected.abs()),
                "{what}: {value}, {expected}"
            );
            for (i, pair) in gradients.iter().zip(&slopes).enumerate() {
                let (Some(found), Some(expected)) = pair else {
                    assert!(pair.0.is_none() && pair.1.is_none(), "{what}: gradient {i}");
                    continue;
                };
                let far: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = size(&far) / size(expected).max(1e-3);
                assert!(error < 8.0 * eps, "{what}: gradient {i} is {:.1} roundings off", error / eps);
            }
        };
        check("by kernels", loss_and_gradients_in(op, &halves, precision));
        if precision == Precision::F16 {
            check("by compositions", with_candle_ops(|| loss_and_gradients_in(op, &halves, precision)));
        }
    }
}

/// An item's result does not depend on the batch it is in, and the cost reading knows its shape and size.
fn items_and_cost<O: Operation>(op: &O) {
    let all = tensors(op, DType::F32);
    let bare: Vec<CandleTensor> = all.iter().map(|(_, t)| t.clone()).collect();
    let together = plain(op, &bare);
    let n = op.inputs().len();
    for item in 0..BATCH {
        let one: Vec<CandleTensor> = bare
            .iter()
            .enumerate()
            .map(|(i, t)| if i < n { t.narrow(0, item, 1).unwrap() } else { t.clone() })
            .collect();
        let alone = plain(op, &one);
        close(
            &format!("{}: item {item}", O::NAME),
            &flat(&alone),
            &flat(&together.narrow(0, item, 1).unwrap()),
            1e-5,
        );
    }
    let counter = Counter::default();
    let x: Vec<_> = op.inputs().iter().map(|(_, dims)| counter.input(dims)).collect();
    let p: Vec<_> = op.params().into_iter().map(|(_, dims)| dims).collect();
    let cost = op.run(&x, &p).unwrap();
    assert_eq!(cost.dims(), &together.dims()[1..], "{}: cost's shape", O::NAME);
    let ledger = counter.summary();
    let most = 4 * together.elem_count() as u64 / BATCH as u64;
    assert!(!ledger.ops.is_empty(), "{}: cost has no entry", O::NAME);
    let last = ledger.ops.last().unwrap();
    assert!(
        last.bytes == 0 || last.bytes >= most,
        "{}: {} bytes for a result of {most}",
        O::NAME,
        last.bytes
    );
}

/// The kernels alone make what candle's own operations make, and of an item the same bits in every batch.
fn natively<O: Operation>(op: &O) {
    let (inputs, params) = (inputs(op), params(op));
    let weights = params.iter().enumerate().map(|(i, (_, array))| (format!("p{i}"), array.clone())).collect();
    let mut source = native::Params::new(weights);
    let mut scope = Scope::<native::Value>::root(&mut source);
    let p: Vec<_> = params
        .iter()
        .enumerate()
        .map(|(i, (_, array))| scope.param(&format!("p{i}"), array.dims(), Init::Zeros).unwrap())
        .collect();
    let run = |from: usize, n: usize| {
        let part = |(_, array): &(Kind, Array)| {
            let len = array.data().len() / BATCH;
            let dims: Vec<usize> = std::iter::once(n).chain(array.dims()[1..].iter().copied()).collect();
            let values = array.data()[from * len..(from + n) * len].to_vec();
            native::Value::new(Array::new(dims, values).unwrap()).unwrap()
        };
        let x: Vec<native::Value> = inputs.iter().map(part).collect();
        op.run(&x, &p).unwrap_or_else(|e| panic!("{}: {e}", O::NAME)).into_array()
    };
    let together = run(0, BATCH);
    let expected: Vec<CandleTensor> = tensors(op, DType::F32).into_iter().map(|(_, t)| t).collect();
    let expected = with_candle_ops(|| plain(op, &expected));
    assert_eq!(together.dims(), expected.dims(), "{}: the native shape", O::NAME);
    let found: Vec<f64> = together.data().iter().map(|&v| f64::from(v)).collect();
    close(&format!("{}: native", O::NAME), &found, &flat(&expected), 1e-5);
    let alone: Vec<f32> = (0..BATCH).flat_map(|item| run(item, 1).into_data()).collect();
    assert!(alone == together.data(), "{}: an item depends on its batch", O::NAME);
    assert_eq!(run(0, 0).dims()[1..], together.dims()[1..], "{}: natively of no items", O::NAME);
}

/// Of no items there is nothing, which has no slope.
fn of_no_items<O: Operation>(op: &O) {
    let n = op.inputs().len();
    let none = |(i, (kind, t)): (usize, (Kind, CandleTensor))| {
        (kind, if i < n { t.narrow(0, 0, 0).unwrap().contiguous().unwrap() } else { t })
    };
    let all: Vec<(Kind, CandleTensor)> = tensors(op, DType::F32).into_iter().enumerate().map(none).collect();
    let y = on_tape(op, &all, Precision::F32);
    assert_eq!(y.value().dims()[0], 0, "{}: of no items", O::NAME);
    let error = y.backward(1.0).unwrap_err().to_string();
    assert_eq!(error, "backward: expected at least one value, found 0", "{}", O::NAME);
}

/// The ONNX reading, computed by every runtime that is present, in the first and the last operator set, whole and one by one.
fn on_runtimes<O: Operation>(op: &O) {
    let expected: Vec<CandleTensor> = tensors(op, DType::F32).into_iter().map(|(_, t)| t).collect();
    let expected = plain(op, &expected);
    let (inputs, params) = (inputs(op), params(op));
    let weights: Weights =
        params.iter().enumerate().map(|(i, (_, array))| (format!("p{i}"), array.clone())).collect();
    for opset in [*OPSETS.start(), *OPSETS.end()] {
        let graph = OnnxGraph::new(opset).unwrap();
        let input = |(i, (kind, array)): (usize, &(Kind, Array))| match kind {
            Label => graph.labels(&format!("x{i}"), &array.dims()[1..]).unwrap(),
            _ => graph.floats(&format!("x{i}"), &array.dims()[1..]).unwrap(),
        };
        let x: Vec<Value> = inputs.iter().enumerate().map(input).collect();
        let mut source = graph.source(&weights);
        let mut scope = Scope::root(&mut source);
        let p: Vec<_> =
            weights.iter().map(|(name, a)| scope.param(name, a.dims(), Init::Zeros).unwrap()).collect();
        source.finish().unwrap();
        let y = op.run(&x, &p).unwrap_or_else(|e| panic!("{}: {e}", O::NAME));
        assert_eq!(y.dims(), &expected.dims()[1..], "{}: the graph's shape", O::NAME);
        let file = OnnxFile::from_bytes(graph.finish(&[("y", &y)], &[]).unwrap(), O::NAME).unwrap();
        for (from, n) in std::iter::once((0, BATCH)).chain((0..BATCH).map(|item| (item, 1))) {
            let part = |array: &Array| {
                let len = array.data().len() / BATCH;
                let dims: Vec<usize> = std::iter::once(n).chain(array.dims()[1..].iter().copied()).collect();
                Array::new(dims, array.data()[from * len..(from + n) * len].to_vec()).unwrap()
            };
            let given: Vec<(String, Kind, Array, Vec<i64>)> = inputs
                .iter()
                .enumerate()
                .map(|(i, (kind, array))| {
                    let array = part(array);
                    let labels = array.data().iter().map(|&v| v as i64).collect();
                    (format!("x{i}"), *kind, array, labels)
                })
                .collect();
            let given: Vec<(&str, InputTensor)> = given
                .iter()
                .map(|(name, kind, array, labels)| match kind {
                    Label => (name.as_str(), InputTensor::Labels(labels)),
                    _ => (name.as_str(), InputTensor::Floats(array)),
                })
                .collect();
            let results = run_on_all(&file, &given);
            let present = |kind| results.iter().any(|(k, _)| *k == kind);
            assert!(present(RuntimeKind::Tract), "tract is built in");
            if std::env::var_os("ORT_DYLIB_PATH").is_some() {
                assert!(present(RuntimeKind::Ort), "ORT_DYLIB_PATH is set, but ONNX Runtime does not load");
            }
            if cfg!(feature = "candle-onnx") && opset == *OPSETS.start() {
                assert!(present(RuntimeKind::CandleOnnx), "candle-onnx is built in");
            }
            for (runtime, result) in results {
                let what = format!("{}: {runtime}, opset {opset}, items {from} and {n} on", O::NAME);
                let result = result.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(result.dims()[1..], expected.dims()[1..], "{what}");
                let found: Vec<f64> = result.data().iter().map(|&v| v.into()).collect();
                close(&what, &found, &flat(&expected.narrow(0, from, n).unwrap()), 2e-5);
            }
        }
    }
}

fn every_backend<O: Operation>(op: &O) {
    natively(op);
    if O::SAME_IN_TRAINING {
        of_no_items(op);
    }
    on_runtimes(op);
    finite_differences(op);
    if O::SAME_IN_TRAINING && O::KNOWN_TO_CANDLE {
        candle_autograd(op);
    }
    fused_and_plain(op);
    in_halves(op);
    items_and_cost(op);
}

/// A test of an operation; in brackets behind its name what is not true of it.
macro_rules! operation {
    ($name:ident $(($not:ident))?, [$(($ik:ident $($id:literal)*)),*], [$(($pk:ident $($pd:literal)*)),*], |$x:ident, $p:ident| $body:expr) => {
        #[test]
        fn $name() {
            struct This;
            impl Operation for This {
                const NAME: &'static str = stringify!($name);
                $(const $not: bool = false;)?
                fn inputs(&self) -> Vec<(Kind, Vec<usize>)> {
                    vec![$(($ik, vec![$($id),*])),*]
                }
                fn params(&self) -> Vec<(Kind, Vec<usize>)> {
                    vec![$(($pk, vec![$($pd),*])),*]
                }
                fn run<T: Tensor>(&self, $x: &[T], $p: &[T::Param]) -> Result<T> {
                    let _ = (&$x, &$p);
                    $body
                }
            }
            every_backend(&This);
        }
    };
}

mod cases {
    use super::*;

    operation!(linear_without_bias, [(Real 5 8)], [(Real 7 8)], |x, p| x[0].linear(&p[0], None));
    operation!(linear_with_bias, [(Real 8)], [(Real 7 8), (Real 7)], |x, p| x[0].linear(&p[0], Some(&p[1])));
    operation!(conv2d_3, [(Real 2 7 6)], [(Real 4 2 3 3), (Real 4)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 1));
    operation!(conv2d_strided(KNOWN_TO_CANDLE), [(Real 2 7 6)], [(Real 4 2 3 3)], |x, p| x[0].conv2d(&p[0], None, 2, 1));
    operation!(conv2d_1, [(Real 2 5 5)], [(Real 3 2 1 1)], |x, p| x[0].conv2d(&p[0], None, 2, 0));
    operation!(conv2d_7, [(Real 3 9 9)], [(Real 2 3 7 7)], |x, p| x[0].conv2d(&p[0], None, 2, 3));
    operation!(conv2d_patches, [(Real 3 8 8)], [(Real 5 3 4 4), (Real 5)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 4, 0));
    operation!(conv2d_1_dense, [(Real 2 14 13)], [(Real 3 2 1 1), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 0));
    operation!(conv2d_groups(KNOWN_TO_CANDLE), [(Real 2 27 26)], [(Real 3 2 3 3), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 2, 1));
    operation!(conv2d_tiles, [(Real 2 26 25)], [(Real 3 2 5 5), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 2));
    operation!(conv2d_1_tiles, [(Real 2 26 25)], [(Real 3 2 1 1)], |x, p| x[0].conv2d(&p[0], None, 1, 0));
    // Made small, so that the tolerances, which are absolute near zero, are those of its sums of many products.
    operation!(conv2d_by_winograd, [(Real 16 18 17)], [(Real 17 16 3 3), (Real 17)], |x, p| {
        x[0].affine(0.01, 0.0)?.conv2d(&p[0], Some(&p[1]), 1, 1)
    });
    operation!(batch_norm(SAME_IN_TRAINING), [(Real 3 4 5)], [(Real 3), (Real 3), (Fixed 3), (Fixed 3)], |x, p| x[0].batch_norm(
        &BatchNorm {
            path: "bn".into(),
            weight: p[0].clone(),
            bias: p[1].clone(),
            running_mean: p[2].clone(),
            running_var: p[3].clone(),
            eps: 1e-5,
        }
    ));
    operation!(layer_norm, [(Real 5 12)], [], |x, p| x[0].layer_norm(None, 1e-5));
    operation!(layer_norm_affine, [(Real 5 12)], [(Real 12), (Real 12)], |x, p| x[0].layer_norm(Some((&p[0], &p[1])), 1e-5));
    operation!(rms_norm, [(Real 5 12)], [], |x, p| x[0].rms_norm(None, 1e-6));
    operation!(rms_norm_weighted, [(Real 5 2 13)], [(Real 13)], |x, p| x[0].rms_norm(Some(&p[0]), 1e-6));
    operation!(scale_shift, [(Real 5 8), (Real 8), (Real 8)], [], |x, p| x[0].scale_shift(&x[1], &x[2]));
    operation!(gated_residual, [(Real 5 8), (Real 5 8), (Real 8)], [], |x, p| x[0].gated_residual(&x[1], &x[2]));
    operation!(attention, [(Real 7 2 6), (Real 7 2 6), (Real 7 2 6)], [], |x, p| x[0].attention(&x[1], &x[2]));
    operation!(attention_on_itself, [(Real 7 2 6)], [], |x, p| x[0].attention(&x[0], &x[0]));
    operation!(embedding, [(Label)], [(Real 4 6)], |x, p| x[0].embedding(&p[0]));
    operation!(sinusoids, [(Fixed)], [(Real 4 16)], |x, p| x[0].sinusoids(16, 10_000.0, 1000.0)?.linear(&p[0], None));
    operation!(add_param, [(Real 5 8)], [(Real 5 8)], |x, p| x[0].add_param(&p[0]));
    operation!(add, [(Real 5 8), (Real 5 8)], [], |x, p| x[0].add(&x[1])?.add(&x[0]));
    operation!(long_skip, [(Real 5 8), (Real 5 8), (Real 8)], [], |x, p| {
        let once = x[0].gated_residual(&x[1], &x[2])?;
        let twice = once.gated_residual(&x[1], &x[2])?;
        twice.gated_residual(&once, &x[2])?.add(&once)?.add(&x[0])
    });
    operation!(parameter_used_twice, [(Real 5 8)], [(Real 5 8)], |x, p| x[0].add_param(&p[0])?.add(&x[0].add_param(&p[0])?));
    operation!(whole_slice_and_chunk, [(Real 4 6)], [], |x, p| {
        let all = x[0].slice(1, 0, 6)?.add(&x[0])?;
        all.chunk(1, 0)?[0].add(&all)?.add(&x[0].reshape(&[4, 6])?)
    });
    operation!(checkpoint, [(Real 5 8), (Real 5 8)], [(Real 8 8)], |x, p| {
        let weight = p[0].clone();
        let y = T::checkpoint([&x[0], &x[1]], move |[a, b]| a.linear(&weight, None)?.silu()?.mul(b)?.add(a))?;
        y.linear(&p[0], None)?.add(&x[1])
    });
    operation!(mul, [(Real 5 8), (Real 5 8)], [], |x, p| x[0].mul(&x[1])?.mul(&x[0]));
    operation!(affine, [(Real 5 8)], [], |x, p| x[0].affine(-2.5, 0.75));
    operation!(gelu, [(Real 5 8)], [], |x, p| x[0].gelu());
    operation!(silu, [(Real 5 8)], [], |x, p| x[0].silu());
    operation!(relu, [(Real 5 8)], [], |x, p| x[0].relu());
    operation!(swiglu, [(Real 5 8)], [], |x, p| x[0].swiglu());
    operation!(softmax, [(Real 5 9)], [], |x, p| x[0].softmax());
    operation!(reshape, [(Real 4 6)], [], |x, p| x[0].reshape(&[2, 2, 6])?.mul(&x[0].reshape(&[2, 2, 6])?));
    operation!(permute, [(Real 2 3 4)], [], |x, p| x[0].permute(&[2, 0, 1])?.softmax());
    operation!(concat, [(Real 2 3), (Real 4 3)], [], |x, p| T::concat(&[x[0].clone(), x[1].clone(), x[0].clone()], 0));
    operation!(chunk, [(Real 4 6)], [], |x, p| {
        let parts = x[0].chunk(3, 1)?;
        parts[2].mul(&parts[0])
    });
    operation!(slice, [(Real 4 6)], [], |x, p| x[0].slice(1, 1, 3)?.mul(&x[0].slice(1, 2, 3)?));
    operation!(mean, [(Real 4 6)], [], |x, p| x[0].mean(0));
    operation!(mean_last, [(Real 4 6)], [], |x, p| x[0].mean(1));
    operation!(max_pool2d, [(Real 2 6 6)], [], |x, p| x[0].max_pool2d(2, 2, 0));
    operation!(max_pool2d_padded, [(Real 2 7 7)], [], |x, p| x[0].max_pool2d(3, 2, 1));
    operation!(avg_pool2d, [(Real 2 6 6)], [], |x, p| x[0].avg_pool2d(2, 2));
    operation!(avg_pool2d_overlapping, [(Real 2 6 6)], [], |x, p| x[0].avg_pool2d(3, 1));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let counter = Counter::default();
    let (a, b) = (counter.input(&[4, 6]), counter.input(&[4, 5]));
    assert!(a.add(&b).is_err() && a.mul(&b).is_err() && a.attention(&b, &b).is_err());
    assert!(a.linear(&vec![3, 5], None).is_err() && a.linear(&vec![3, 6], Some(&vec![4])).is_err());
    assert!(a.reshape(&[5, 5]).is_err() && a.permute(&[0, 0]).is_err() && a.chunk(4, 1).is_err());
    assert!(a.slice(1, 4, 3).is_err() && a.mean(2).is_err() && b.swiglu().is_err());
    assert!(a.max_pool2d(2, 2, 0).is_err() && a.slice(0, usize::MAX, 2).is_err());
}

/// Operations and bytes of one item, worked out by hand.
#[test]
fn the_cost_backend_counts_parameters_and_flops() {
    type Case = (&'static str, fn(&Counter) -> Result<Cost>, u64, u64);
    let cases: [Case; 6] = [
        // 5 rows of 7 results, each 8 products and sums, and a bias.
        ("linear", |c| c.input(&[5, 8]).linear(&vec![7, 8], Some(&vec![7])), 5 * 7 * (2 * 8 + 1), 4 * 5 * 7),
        // 4 channels of 7 x 6 results, each 2 channels of 3 x 3 products and sums.
        (
            "conv2d",
            |c| c.input(&[2, 7, 6]).conv2d(&vec![4, 2, 3, 3], None, 1, 1),
            4 * 42 * 2 * 18,
            4 * 4 * 42,
        ),
        // Two products of 7 x 7 x 6 for each of 2 heads, and 5 for each score of the softmax; the scores are kept.
        (
            "attention",
            |c| c.input(&[7, 2, 6]).attention(&c.input(&[7, 2, 6]), &c.input(&[7, 2, 6])),
            2 * (2 * 2 * 7 * 7 * 6) + 5 * 2 * 7 * 7,
            4 * (7 * 2 * 6 + 2 * 7 * 7),
        ),
        ("gated_residual", |c| c.input(&[5, 8]).gated_residual(&c.input(&[5, 8]), &c.input(&[8])), 80, 160),
        ("reshape", |c| c.input(&[5, 8]).reshape(&[40]), 0, 0),
        ("avg_pool2d", |c| c.input(&[2, 6, 6]).avg_pool2d(2, 2), 2 * 9 * 4, 4 * 2 * 9),
    ];
    for (name, run, flops, bytes) in cases {
        let counter = Counter::default();
        run(&counter).unwrap();
        let ledger = counter.summary();
        assert_eq!((ledger.flops(), ledger.activation_bytes()), (flops, bytes), "{name}");
        assert_eq!(ledger.ops[0].op, name);
    }
}

/// A parameter that a network asks for twice is one parameter, with one gradient.
#[test]
fn a_leaf_asked_for_twice_has_the_sum_of_both_gradients() {
    let tape = Tape::new();
    let value = CandleTensor::new(&[[2f64, 3.0]], &Device::Cpu).unwrap();
    let (a, b) = (tape.leaf("w", value.clone()), tape.leaf("w", value));
    let gradients = a.affine(5.0, 0.0).unwrap().add(&b).unwrap().backward(1.0).unwrap();
    assert_eq!(flat(&gradients["w"]), [6.0, 6.0]);
}
