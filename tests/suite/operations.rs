//! Every tensor operation on every backend. A new operation is one line in [`cases`].

use candle_core::{DType, Device, Tensor as CandleTensor, Var as CandleVar};
use tiny_cats_export::{
    onnx::{OPSETS, OnnxFile, OnnxGraph, Value},
    runtime::{InputTensor, RuntimeKind, run_on_all},
};
use tiny_cats_models::{
    Array, BatchNorm, Conv1dOptions, Conv2dOptions, Init, Precision, Result, Scope, TapeOptions, Tensor,
    Weights,
    candle::{CandleValue, to_device, with_candle_ops, with_fused_ops},
    cost::{Cost, Counter},
    native,
    random::{Purpose, Stream},
    tape::{Param, Tape, Var},
};

/// The values of an input or parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Normally distributed, with a gradient.
    Real,
    /// From 0.5 to 1.5, without a gradient: running statistics, times.
    Fixed,
    /// Integers from 0 to 3, without a gradient: labels.
    Label,
}
use Kind::{Fixed, Label, Real};

/// An operation and the shapes that it is tested with. The shapes of inputs lack the batch axis.
trait Operation {
    const NAME: &'static str;
    /// True if training computes the same as inference; batch normalization does not.
    const SAME_IN_TRAINING: bool = true;
    /// True if candle's autograd supports the operation. It fails on convolutions whose stride leaves different remainders of the
    /// height and of the width.
    const SUPPORTED_BY_CANDLE: bool = true;
    fn inputs(&self) -> Vec<(Kind, Vec<usize>)>;
    fn params(&self) -> Vec<(Kind, Vec<usize>)>;
    fn run<T: Tensor>(&self, x: &[T], p: &[T::Param]) -> Result<T>;
}

const BATCH: usize = 3;

fn values(stream: u64, kind: Kind, dims: &[usize]) -> Array {
    let mut s = Stream::new(11, Purpose::Synthetic, stream);
    let n = dims.iter().product();
    let value = |_| match kind {
        Real => s.normal() as f32,
        Fixed => 0.5 + s.uniform() as f32,
        Label => s.uniform_int(4) as f32,
    };
    Array::new(dims, (0..n).map(value).collect()).unwrap()
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

/// The inputs, then the parameters, as tensors. Labels are u32, all others are of type `dtype`.
fn tensors(op: &impl Operation, dtype: DType) -> Vec<(Kind, CandleTensor)> {
    inputs(op).iter().chain(&params(op)).map(|(kind, array)| (*kind, tensor(*kind, array, dtype))).collect()
}

fn run_on_tape<O: Operation>(op: &O, all: &[(Kind, CandleTensor)], precision: Precision) -> Var {
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

fn run_on_candle<O: Operation>(op: &O, all: &[CandleTensor]) -> CandleTensor {
    let (x, p) = all.split_at(op.inputs().len());
    let x: Vec<CandleValue> = x.iter().cloned().map(CandleValue::new).collect();
    op.run(&x, p).unwrap_or_else(|e| panic!("{}: {e}", O::NAME)).into_inner()
}

/// Computes `Σ c·y` for fixed random numbers `c`, and its gradient with respect to every real input and parameter.
fn loss_and_gradients<O: Operation>(op: &O, all: &[(Kind, CandleTensor)]) -> (f64, Vec<Option<Vec<f64>>>) {
    loss_and_gradients_with(op, all, Precision::F32)
}

fn loss_and_gradients_with<O: Operation>(
    op: &O,
    all: &[(Kind, CandleTensor)],
    precision: Precision,
) -> (f64, Vec<Option<Vec<f64>>>) {
    let y = run_on_tape(op, all, precision);
    let dtype = if y.value().dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let c = to_device(&values(999, Real, y.value().dims()), dtype, &Device::Cpu).unwrap();
    let product = y.mul(&y.tape().constant(c)).unwrap();
    let sum = product.value().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    let mut gradients = product.backward(1.0).unwrap();
    let remove_gradient = |i: usize| {
        let gradient = gradients.remove(&i.to_string())?.to_dtype(DType::F64).unwrap();
        assert_eq!(gradient.dims(), all[i].1.dims(), "{}: gradient {i}", O::NAME);
        Some(gradient.flatten_all().unwrap().to_vec1().unwrap())
    };
    (sum, (0..all.len()).map(remove_gradient).collect())
}

fn assert_close(case: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{case}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs())), "{case}, value {i}: {a} and {b}");
    }
}

fn to_flat(t: &CandleTensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the tape's gradients with finite differences of its forward pass.
fn check_finite_differences<O: Operation>(op: &O) {
    let all = tensors(op, DType::F64);
    let (_, gradients) = loss_and_gradients(op, &all);
    for (i, (kind, t)) in all.iter().enumerate() {
        if *kind != Real {
            assert!(gradients[i].is_none());
            continue;
        }
        let gradient = gradients[i].as_ref().unwrap_or_else(|| panic!("{}: no gradient {i}", O::NAME));
        let base = to_flat(t);
        let loss_at = |j: usize, step: f64| {
            let mut shifted = base.clone();
            shifted[j] += step;
            let mut all = all.clone();
            all[i].1 = CandleTensor::from_vec(shifted, t.shape(), &Device::Cpu).unwrap();
            loss_and_gradients(op, &all).0
        };
        // All values of a small tensor, evenly spaced values of a large one.
        for j in (0..base.len()).step_by(base.len() / 48 + 1) {
            let slope = (loss_at(j, 1e-5) - loss_at(j, -1e-5)) / 2e-5;
            assert_close(&format!("{}: slope {j} of input {i}", O::NAME), &[gradient[j]], &[slope], 1e-7);
        }
    }
}

/// Compares the tape's gradients with those of candle's autograd over candle's own operations.
fn check_candle_autograd<O: Operation>(op: &O) {
    let all = tensors(op, DType::F64);
    let (_, gradients) = loss_and_gradients(op, &all);
    let vars: Vec<CandleVar> = all.iter().map(|(_, t)| CandleVar::from_tensor(t).unwrap()).collect();
    let leaves: Vec<CandleTensor> = vars
        .iter()
        .zip(&all)
        .map(|(v, (k, t))| if *k == Real { v.as_tensor().clone() } else { t.clone() })
        .collect();
    let y = with_candle_ops(|| run_on_candle(op, &leaves));
    let c = to_device(&values(999, Real, y.dims()), DType::F64, &Device::Cpu).unwrap();
    let reference = (y * c).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, gradient) in gradients.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        let expected =
            reference.get(&vars[i]).unwrap_or_else(|| panic!("{}: candle has no gradient {i}", O::NAME));
        assert_close(
            &format!("{}: gradient {i} against candle's", O::NAME),
            gradient,
            &to_flat(expected),
            1e-9,
        );
    }
}

/// Compares the kernels, and the operations of a GPU, with compositions of candle's operations, forward and backward, in f32.
fn check_fused_kernels<O: Operation>(op: &O) {
    let all = tensors(op, DType::F32);
    let reference = with_candle_ops(|| loss_and_gradients(op, &all));
    for (variant, found) in [
        ("CPU kernel's", loss_and_gradients(op, &all)),
        ("candle-nn's", with_fused_ops(|| loss_and_gradients(op, &all))),
    ] {
        for (i, pair) in found.1.iter().zip(&reference.1).enumerate() {
            if let (Some(a), Some(b)) = pair {
                assert_close(&format!("{}: {variant} gradient {i}", O::NAME), a, b, 2e-5);
            }
        }
    }
    let operands: Vec<CandleTensor> = all.iter().map(|(_, t)| t.clone()).collect();
    let (a, b) = (run_on_candle(op, &operands), with_candle_ops(|| run_on_candle(op, &operands)));
    assert_close(&format!("{}: CPU kernel's value", O::NAME), &to_flat(&a), &to_flat(&b), 1e-5);
    let gpu = with_fused_ops(|| run_on_candle(op, &operands));
    assert_close(&format!("{}: candle-nn's value", O::NAME), &to_flat(&gpu), &to_flat(&b), 1e-5);
    if O::SAME_IN_TRAINING {
        assert_close(
            &format!("{}: training value", O::NAME),
            &to_flat(run_on_tape(op, &all, Precision::F32).value()),
            &to_flat(&a),
            1e-6,
        );
    }
}

/// Compares results and gradients in half precision, from inputs in half precision, with those in f64 within some roundings. It checks the
/// kernels and, in f16, the compositions of candle's operations, which multiply as a GPU does (candle cannot multiply bf16 on a CPU).
fn check_half_precision<O: Operation>(op: &O) {
    for (precision, dtype, eps) in
        [(Precision::Bf16, DType::BF16, 1.0 / 256.0), (Precision::F16, DType::F16, 1.0 / 2048.0)]
    {
        let n = op.inputs().len();
        let round = |(i, (kind, t)): (usize, (Kind, CandleTensor))| {
            let value = if kind == Real { t.to_dtype(dtype).unwrap() } else { t };
            // Parameters are master weights, in f32.
            let value = if i < n || kind == Label { value } else { value.to_dtype(DType::F32).unwrap() };
            (kind, value)
        };
        let operands: Vec<(Kind, CandleTensor)> =
            tensors(op, DType::F32).into_iter().enumerate().map(round).collect();
        let exact: Vec<(Kind, CandleTensor)> = operands
            .iter()
            .map(|(k, t)| (*k, if *k == Label { t.clone() } else { t.to_dtype(DType::F64).unwrap() }))
            .collect();
        let (expected, slopes) = loss_and_gradients(op, &exact);
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let check = |variant: &str, (value, gradients): (f64, Vec<Option<Vec<f64>>>)| {
            let case = format!("{} in {precision:?}, {variant}", O::NAME);
            assert!(
                (value - expected).abs() < 64.0 * eps * (1.0 + expected.abs()),
                "{case}: {value}, expected {expected}"
            );
            for (i, pair) in gradients.iter().zip(&slopes).enumerate() {
                let (Some(found), Some(expected)) = pair else {
                    assert!(pair.0.is_none() && pair.1.is_none(), "{case}: gradient {i}");
                    continue;
                };
                let differences: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = norm(&differences) / norm(expected).max(1e-3);
                assert!(error < 8.0 * eps, "{case}: gradient {i} is {:.1} roundings off", error / eps);
            }
        };
        check("kernels", loss_and_gradients_with(op, &operands, precision));
        if precision == Precision::F16 {
            check("compositions", with_candle_ops(|| loss_and_gradients_with(op, &operands, precision)));
            check("candle-nn's", with_fused_ops(|| loss_and_gradients_with(op, &operands, precision)));
        }
    }
}

/// Checks that an item's result does not depend on its batch, and that the cost backend reports its shape and size.
fn check_items_and_cost<O: Operation>(op: &O) {
    let all = tensors(op, DType::F32);
    let operands: Vec<CandleTensor> = all.iter().map(|(_, t)| t.clone()).collect();
    let batched_result = run_on_candle(op, &operands);
    let n = op.inputs().len();
    for item in 0..BATCH {
        let one: Vec<CandleTensor> = operands
            .iter()
            .enumerate()
            .map(|(i, t)| if i < n { t.narrow(0, item, 1).unwrap() } else { t.clone() })
            .collect();
        let single = run_on_candle(op, &one);
        assert_close(
            &format!("{}: item {item}", O::NAME),
            &to_flat(&single),
            &to_flat(&batched_result.narrow(0, item, 1).unwrap()),
            1e-5,
        );
    }
    let counter = Counter::default();
    let x: Vec<_> = op.inputs().iter().map(|(_, dims)| counter.input(dims)).collect();
    let p: Vec<_> = op.params().into_iter().map(|(_, dims)| dims).collect();
    let cost = op.run(&x, &p).unwrap();
    assert_eq!(cost.dims(), &batched_result.dims()[1..], "{}: shape of the cost backend", O::NAME);
    let summary = counter.summary();
    let result_bytes = 4 * batched_result.elem_count() as u64 / BATCH as u64;
    assert!(!summary.ops.is_empty(), "{}: cost has no entry", O::NAME);
    let last = summary.ops.last().unwrap();
    assert!(
        last.bytes == 0 || last.bytes >= result_bytes,
        "{}: {} bytes for a result of {result_bytes}",
        O::NAME,
        last.bytes
    );
}

/// Compares the native backend with candle's own operations, and checks that the bits of an item do not depend on its batch.
fn check_native<O: Operation>(op: &O) {
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
    let batched_result = run(0, BATCH);
    let expected: Vec<CandleTensor> = tensors(op, DType::F32).into_iter().map(|(_, t)| t).collect();
    let expected = with_candle_ops(|| run_on_candle(op, &expected));
    assert_eq!(batched_result.dims(), expected.dims(), "{}: the native shape", O::NAME);
    let found: Vec<f64> = batched_result.data().iter().map(|&v| f64::from(v)).collect();
    assert_close(&format!("{}: native", O::NAME), &found, &to_flat(&expected), 1e-5);
    let single: Vec<f32> = (0..BATCH).flat_map(|item| run(item, 1).into_data()).collect();
    assert!(single == batched_result.data(), "{}: an item depends on its batch", O::NAME);
    assert_eq!(run(0, 0).dims()[1..], batched_result.dims()[1..], "{}: native, empty batch", O::NAME);
}

/// Checks that an empty batch gives an empty result, and that its backward pass fails.
fn check_empty_batch<O: Operation>(op: &O) {
    let n = op.inputs().len();
    let empty = |(i, (kind, t)): (usize, (Kind, CandleTensor))| {
        (kind, if i < n { t.narrow(0, 0, 0).unwrap().contiguous().unwrap() } else { t })
    };
    let all: Vec<(Kind, CandleTensor)> = tensors(op, DType::F32).into_iter().enumerate().map(empty).collect();
    let y = run_on_tape(op, &all, Precision::F32);
    assert_eq!(y.value().dims()[0], 0, "{}: empty batch", O::NAME);
    let error = y.backward(1.0).unwrap_err().to_string();
    assert_eq!(error, "backward: expected at least one value, found 0", "{}", O::NAME);
}

/// Compares every available ONNX runtime with candle: in the first and the last operator set, for the batch and for single items.
fn check_runtimes<O: Operation>(op: &O) {
    let expected: Vec<CandleTensor> = tensors(op, DType::F32).into_iter().map(|(_, t)| t).collect();
    let expected = run_on_candle(op, &expected);
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
            let arrays: Vec<(String, Kind, Array, Vec<i64>)> = inputs
                .iter()
                .enumerate()
                .map(|(i, (kind, array))| {
                    let array = part(array);
                    let labels = array.data().iter().map(|&v| v as i64).collect();
                    (format!("x{i}"), *kind, array, labels)
                })
                .collect();
            let feeds: Vec<(&str, InputTensor)> = arrays
                .iter()
                .map(|(name, kind, array, labels)| match kind {
                    Label => (name.as_str(), InputTensor::Labels(labels)),
                    _ => (name.as_str(), InputTensor::Floats(array)),
                })
                .collect();
            let results = run_on_all(&file, &feeds);
            let is_present = |kind| results.iter().any(|(k, _)| *k == kind);
            assert!(is_present(RuntimeKind::Tract), "tract is built in");
            if std::env::var_os("ORT_DYLIB_PATH").is_some() {
                assert!(
                    is_present(RuntimeKind::Ort),
                    "ORT_DYLIB_PATH is set, but ONNX Runtime does not load"
                );
            }
            if cfg!(feature = "candle-onnx") && opset == *OPSETS.start() {
                assert!(is_present(RuntimeKind::CandleOnnx), "candle-onnx is built in");
            }
            for (runtime, result) in results {
                let case = format!("{}: {runtime}, opset {opset}, {n} items from {from}", O::NAME);
                let result = result.unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(result.dims()[1..], expected.dims()[1..], "{case}");
                let found: Vec<f64> = result.data().iter().map(|&v| v.into()).collect();
                assert_close(&case, &found, &to_flat(&expected.narrow(0, from, n).unwrap()), 2e-5);
            }
        }
    }
}

fn check_all_backends<O: Operation>(op: &O) {
    check_native(op);
    if O::SAME_IN_TRAINING {
        check_empty_batch(op);
    }
    check_runtimes(op);
    check_finite_differences(op);
    if O::SAME_IN_TRAINING && O::SUPPORTED_BY_CANDLE {
        check_candle_autograd(op);
    }
    check_fused_kernels(op);
    check_half_precision(op);
    check_items_and_cost(op);
}

/// A test of one operation. The constant in parentheses after its name is false for it.
macro_rules! operation {
    ($name:ident $(($flag:ident))?, [$(($ik:ident $($id:literal)*)),*], [$(($pk:ident $($pd:literal)*)),*], |$x:ident, $p:ident| $body:expr) => {
        #[test]
        fn $name() {
            struct TestedOperation;
            impl Operation for TestedOperation {
                const NAME: &'static str = stringify!($name);
                $(const $flag: bool = false;)?
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
            check_all_backends(&TestedOperation);
        }
    };
}

mod cases {
    use super::*;

    operation!(linear_without_bias, [(Real 5 8)], [(Real 7 8)], |x, p| x[0].linear(&p[0], None));
    operation!(linear_with_bias, [(Real 8)], [(Real 7 8), (Real 7)], |x, p| x[0].linear(&p[0], Some(&p[1])));
    operation!(conv2d_3, [(Real 2 7 6)], [(Real 4 2 3 3), (Real 4)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 1));
    operation!(conv2d_strided(SUPPORTED_BY_CANDLE), [(Real 2 7 6)], [(Real 4 2 3 3)], |x, p| x[0].conv2d(&p[0], None, 2, 1));
    operation!(conv2d_1, [(Real 2 5 5)], [(Real 3 2 1 1)], |x, p| x[0].conv2d(&p[0], None, 2, 0));
    operation!(conv2d_7, [(Real 3 9 9)], [(Real 2 3 7 7)], |x, p| x[0].conv2d(&p[0], None, 2, 3));
    operation!(conv2d_patches, [(Real 3 8 8)], [(Real 5 3 4 4), (Real 5)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 4, 0));
    operation!(conv2d_1_dense, [(Real 2 14 13)], [(Real 3 2 1 1), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 0));
    operation!(conv2d_groups(SUPPORTED_BY_CANDLE), [(Real 2 27 26)], [(Real 3 2 3 3), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 2, 1));
    operation!(conv2d_tiles, [(Real 2 26 25)], [(Real 3 2 5 5), (Real 3)], |x, p| x[0].conv2d(&p[0], Some(&p[1]), 1, 2));
    operation!(conv2d_1_tiles, [(Real 2 26 25)], [(Real 3 2 1 1)], |x, p| x[0].conv2d(&p[0], None, 1, 0));
    // Scaled down, so that the rounding errors of its long sums stay within a tolerance that is absolute near zero.
    operation!(conv2d_winograd, [(Real 16 18 17)], [(Real 17 16 3 3), (Real 17)], |x, p| {
        x[0].affine(0.01, 0.0)?.conv2d(&p[0], Some(&p[1]), 1, 1)
    });
    operation!(conv2d_rectangular, [(Real 2 7 6)], [(Real 3 2 1 4), (Real 3)], |x, p| {
        x[0].conv2d_with_options(&p[0], Some(&p[1]), Conv2dOptions { padding: [0, 2], ..Default::default() })
    });
    operation!(conv2d_axis_options, [(Real 2 9 8)], [(Real 3 2 3 2), (Real 3)], |x, p| {
        let options = Conv2dOptions { stride: [2, 1], padding: [2, 1], ..Default::default() };
        x[0].conv2d_with_options(&p[0], Some(&p[1]), options)
    });
    operation!(conv2d_dilated_row, [(Real 2 4 9)], [(Real 3 2 1 3)], |x, p| {
        let options = Conv2dOptions { stride: [2, 1], padding: [1, 2], dilation: [1, 2], groups: 1 };
        x[0].conv2d_with_options(&p[0], None, options)
    });
    operation!(conv2d_dilated, [(Real 2 9 8)], [(Real 3 2 3 3)], |x, p| {
        let options = Conv2dOptions { dilation: [2, 2], ..Conv2dOptions::square(1, 2) };
        x[0].conv2d_with_options(&p[0], None, options)
    });
    operation!(conv2d_in_groups, [(Real 6 7 6)], [(Real 9 2 3 3), (Real 9)], |x, p| {
        let options = Conv2dOptions { groups: 3, ..Conv2dOptions::square(2, 1) };
        x[0].conv2d_with_options(&p[0], Some(&p[1]), options)
    });
    operation!(conv2d_depthwise, [(Real 5 7 6)], [(Real 5 1 3 3), (Real 5)], |x, p| {
        let options = Conv2dOptions { groups: 5, ..Conv2dOptions::square(1, 1) };
        x[0].conv2d_with_options(&p[0], Some(&p[1]), options)
    });
    operation!(conv2d_depthwise_multiplied, [(Real 3 9 7)], [(Real 6 1 5 3)], |x, p| {
        let options = Conv2dOptions { groups: 3, padding: [2, 0], dilation: [1, 1], stride: [2, 2] };
        x[0].conv2d_with_options(&p[0], None, options)
    });
    operation!(conv1d, [(Real 3 9)], [(Real 4 3 3), (Real 4)], |x, p| {
        x[0].conv1d(&p[0], Some(&p[1]), Conv1dOptions { padding: 1, ..Default::default() })
    });
    operation!(conv1d_in_groups, [(Real 4 11)], [(Real 6 2 3)], |x, p| {
        x[0].conv1d(&p[0], None, Conv1dOptions { stride: 2, padding: 3, dilation: 2, groups: 2 })
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
    operation!(group_norm, [(Real 6 4 5)], [], |x, p| x[0].group_norm(2, None, 1e-5));
    operation!(group_norm_affine, [(Real 6 3 2)], [(Real 6), (Real 6)], |x, p| x[0].group_norm(3, Some((&p[0], &p[1])), 1e-5));
    operation!(group_norm_of_channels, [(Real 12)], [(Real 12), (Real 12)], |x, p| x[0].group_norm(1, Some((&p[0], &p[1])), 1e-5));
    operation!(rms_norm, [(Real 5 12)], [], |x, p| x[0].rms_norm(None, 1e-6));
    operation!(rms_norm_weighted, [(Real 5 2 13)], [(Real 13)], |x, p| x[0].rms_norm(Some(&p[0]), 1e-6));
    operation!(scale_shift, [(Real 5 8), (Real 8), (Real 8)], [], |x, p| x[0].scale_shift(&x[1], &x[2]));
    operation!(gated_residual, [(Real 5 8), (Real 5 8), (Real 8)], [], |x, p| x[0].gated_residual(&x[1], &x[2]));
    operation!(attention, [(Real 7 2 6), (Real 7 2 6), (Real 7 2 6)], [], |x, p| x[0].attention(&x[1], &x[2]));
    operation!(self_attention, [(Real 7 2 6)], [], |x, p| x[0].attention(&x[0], &x[0]));
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
    operation!(full_slice_and_chunk, [(Real 4 6)], [], |x, p| {
        let all = x[0].slice(1, 0, 6)?.add(&x[0])?;
        all.chunk(1, 0)?[0].add(&all)?.add(&x[0].reshape(&[4, 6])?)
    });
    operation!(checkpoint, [(Real 5 8), (Real 5 8)], [(Real 8 8)], |x, p| {
        let weight = p[0].clone();
        let y = T::checkpoint([&x[0], &x[1]], move |[a, b]| a.linear(&weight, None)?.silu()?.mul(b)?.add(a))?;
        y.linear(&p[0], None)?.add(&x[1])
    });
    operation!(mul, [(Real 5 8), (Real 5 8)], [], |x, p| x[0].mul(&x[1])?.mul(&x[0]));
    operation!(sub, [(Real 5 8), (Real 5 8)], [], |x, p| x[0].sub(&x[1])?.mul(&x[0].sub(&x[1])?));
    operation!(sub_itself, [(Real 5 8)], [(Real 5 8)], |x, p| x[0].add_param(&p[0])?.mul(&x[0])?.sub(&x[0]));
    operation!(div, [(Real 5 8), (Real 5 8)], [], |x, p| x[0].div(&x[1].mul(&x[1])?.affine(1.0, 0.5)?));
    operation!(exp, [(Real 5 8)], [], |x, p| x[0].exp());
    operation!(log, [(Real 5 8)], [], |x, p| x[0].mul(&x[0])?.affine(1.0, 0.5)?.log());
    operation!(sqrt, [(Real 5 8)], [], |x, p| x[0].mul(&x[0])?.affine(1.0, 0.5)?.sqrt());
    operation!(sigmoid, [(Real 5 8)], [], |x, p| x[0].sigmoid());
    operation!(tanh, [(Real 5 8)], [], |x, p| x[0].tanh());
    operation!(softplus, [(Real 5 8)], [], |x, p| x[0].affine(4.0, 0.0)?.softplus());
    operation!(clamp, [(Real 5 8)], [], |x, p| x[0].clamp(-0.5, 1.25));
    operation!(affine, [(Real 5 8)], [], |x, p| x[0].affine(-2.5, 0.75));
    operation!(gelu, [(Real 5 8)], [], |x, p| x[0].gelu());
    operation!(silu, [(Real 5 8)], [], |x, p| x[0].silu());
    operation!(relu, [(Real 5 8)], [], |x, p| x[0].relu());
    operation!(swiglu, [(Real 5 8)], [], |x, p| x[0].swiglu());
    operation!(dropout_without_key, [(Real 5 8)], [], |x, p| x[0].dropout(0.3));
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
    operation!(pad, [(Real 4 6)], [], |x, p| x[0].pad(0, 2, 1)?.softmax());
    operation!(pad_last, [(Real 4 3)], [], |x, p| x[0].pad(1, 0, 5)?.add(&x[0].pad(1, 5, 0)?)?.pad(1, 0, 0)?.softmax());
    operation!(sum, [(Real 4 6)], [], |x, p| x[0].sum(0));
    operation!(sum_last, [(Real 4 6)], [], |x, p| x[0].sum(1));
    operation!(sum_of_one, [(Real 1 6)], [], |x, p| x[0].sum(0)?.add(&x[0].reshape(&[6])?)?.add(&x[0].sum(0)?));
    operation!(max, [(Real 4 6)], [], |x, p| x[0].max(0));
    operation!(max_last, [(Real 2 3 7)], [], |x, p| x[0].max(2));
    operation!(upsample_nearest2d, [(Real 2 3 4)], [], |x, p| x[0].upsample_nearest2d(3)?.softmax());
    operation!(max_pool2d, [(Real 2 6 6)], [], |x, p| x[0].max_pool2d(2, 2, 0));
    operation!(max_pool2d_padded, [(Real 2 7 7)], [], |x, p| x[0].max_pool2d(3, 2, 1));
    operation!(avg_pool2d, [(Real 2 6 6)], [], |x, p| x[0].avg_pool2d(2, 2));
    operation!(avg_pool2d_overlapping, [(Real 2 6 6)], [], |x, p| x[0].avg_pool2d(3, 1));
}

#[test]
fn incompatible_shapes_are_rejected() {
    let counter = Counter::default();
    let (a, b) = (counter.input(&[4, 6]), counter.input(&[4, 5]));
    assert!(a.add(&b).is_err() && a.mul(&b).is_err() && a.attention(&b, &b).is_err());
    assert!(a.linear(&vec![3, 5], None).is_err() && a.linear(&vec![3, 6], Some(&vec![4])).is_err());
    assert!(a.reshape(&[5, 5]).is_err() && a.permute(&[0, 0]).is_err() && a.chunk(4, 1).is_err());
    assert!(a.slice(1, 4, 3).is_err() && a.mean(2).is_err() && b.swiglu().is_err());
    assert!(a.sub(&b).is_err() && a.div(&b).is_err() && a.sum(2).is_err() && a.max(2).is_err());
    assert!(a.clamp(1.0, 0.0).is_err() && a.clamp(f64::NAN, 0.0).is_err() && a.dropout(1.0).is_err());
    assert!(a.pad(2, 1, 1).is_err() && a.pad(0, usize::MAX, 1).is_err() && a.upsample_nearest2d(2).is_err());
    assert!(
        a.group_norm(3, None, 1e-5).is_err() && a.group_norm(2, Some((&vec![6], &vec![4])), 1e-5).is_err()
    );
    let image = counter.input(&[4, 6, 5]);
    assert!(image.upsample_nearest2d(0).is_err() && image.upsample_nearest2d(usize::MAX).is_err());
    let convolve = |weight: [usize; 4], options| image.conv2d_with_options(&weight.to_vec(), None, options);
    let options = |stride, dilation, groups| Conv2dOptions { stride, padding: [0; 2], dilation, groups };
    assert!(convolve([2, 2, 3, 3], options([1; 2], [1; 2], 2)).is_ok());
    assert!(
        convolve([3, 2, 3, 3], options([1; 2], [1; 2], 2)).is_err(),
        "groups that do not divide the outputs"
    );
    assert!(convolve([2, 4, 3, 3], options([1; 2], [1; 2], 0)).is_err(), "no groups");
    assert!(convolve([2, 4, 3, 3], options([1; 2], [1, 3], 1)).is_err(), "a dilation that is too large");
    assert!(convolve([2, 4, 3, 3], options([0, 1], [1; 2], 1)).is_err(), "a stride of 0");
    assert!(convolve([2, 4, 3, 3], options([1; 2], [0, 1], 1)).is_err(), "a dilation of 0");
    assert!(a.conv1d(&vec![2, 3, 3], None, Conv1dOptions::default()).is_err());
    assert!(a.conv1d(&vec![2, 4, 7], None, Conv1dOptions::default()).is_err());
    assert!(a.max_pool2d(2, 2, 0).is_err() && a.slice(0, usize::MAX, 2).is_err());
}

#[test]
fn onnx_rejects_a_convolution_that_candle_onnx_cannot_compute() {
    let graph = OnnxGraph::new(*OPSETS.start()).unwrap();
    let weights = Weights::from([("w".into(), values(0, Real, &[3, 2, 3, 3]))]);
    let weight = Scope::root(&mut graph.source(&weights)).param("w", [3, 2, 3, 3], Init::Zeros).unwrap();
    let x = graph.floats("x", &[2, 9, 9]).unwrap();
    let options = Conv2dOptions { dilation: [1, 2], ..Conv2dOptions::default() };
    let error = x.conv2d_with_options(&weight, None, options).unwrap_err().to_string();
    assert_eq!(error, "ONNX does not support conv2d with dilation 1 of the height and 2 of the width");
}

/// FLOPs and activation bytes of one item, computed by hand.
#[test]
fn the_cost_backend_counts_parameters_and_flops() {
    type Case = (&'static str, fn(&Counter) -> Result<Cost>, u64, u64);
    let cases: [Case; 6] = [
        // 5 rows of 7 outputs, each of 8 multiply-adds and a bias.
        ("linear", |c| c.input(&[5, 8]).linear(&vec![7, 8], Some(&vec![7])), 5 * 7 * (2 * 8 + 1), 4 * 5 * 7),
        // 4 channels of 7 x 6 outputs, each of 2 x 3 x 3 multiply-adds.
        (
            "conv2d",
            |c| c.input(&[2, 7, 6]).conv2d(&vec![4, 2, 3, 3], None, 1, 1),
            4 * 42 * 2 * 18,
            4 * 4 * 42,
        ),
        // For each of 2 heads: two products of 7 x 7 x 6 multiply-adds, and 5 FLOPs for each softmax score. The scores are stored.
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
        let summary = counter.summary();
        assert_eq!((summary.flops(), summary.activation_bytes()), (flops, bytes), "{name}");
        assert_eq!(summary.ops[0].op, name);
    }
}

/// A parameter that a network uses twice has one gradient.
#[test]
fn a_leaf_used_twice_sums_both_gradients() {
    let tape = Tape::new();
    let value = CandleTensor::new(&[[2f64, 3.0]], &Device::Cpu).unwrap();
    let (a, b) = (tape.leaf("w", value.clone()), tape.leaf("w", value));
    let gradients = a.affine(5.0, 0.0).unwrap().add(&b).unwrap().backward(1.0).unwrap();
    assert_eq!(to_flat(&gradients["w"]), [6.0, 6.0]);
}
