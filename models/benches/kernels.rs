//! Benchmarks of all kernels, at the sizes of the released models: `cargo bench -p tiny-cats-models --bench kernels [-- NAME]`.
//!
//! `forward` is inference on the native backend. `training` is forward and backward on the tape, in f32 and, for products, in bf16. `plain`
//! is `training` with compositions of candle's operations, as in a training loop with candle alone.

use candle_core::{DType, Device, Tensor as CandleTensor};
use criterion::{Criterion, criterion_group, criterion_main};
use tiny_cats_models::{
    Array, BatchNorm, Conv2dOptions, Init, Precision, Result, Scope, TapeOptions, Tensor, Weights,
    candle::{to_device, with_candle_ops},
    native,
    random::noise,
    tape::{Param, Tape, Var},
};

/// Number of items in a batch.
const BATCH: usize = 16;

fn array(stream: u64, dims: &[usize]) -> Array {
    Array::new(dims, noise(1, stream, dims.iter().product())).expect("the shape has this number of values")
}

/// Times an operation on inputs (without the batch) and parameters of these sizes.
macro_rules! case {
    ($c:expr, $name:literal, [$($input:expr),*], [$($param:expr),*], $operation:expr) => {{
        /// The operation, generic over the backend, which a closure cannot be.
        fn operation<T: Tensor>(x: &[T], p: &[T::Param]) -> Result<T> {
            #[allow(clippy::redundant_closure_call)]
            ($operation)(x, p)
        }
        let inputs: Vec<Vec<usize>> = vec![$($input.to_vec()),*];
        let params: Vec<Vec<usize>> = vec![$($param.to_vec()),*];
        let inputs: Vec<Array> = (0..).zip(inputs).map(|(i, d)| array(i, &[&[BATCH], &d[..]].concat())).collect();
        let weights: Weights = (0..).zip(&params).map(|(i, d)| (format!("p{i}"), array(100 + i, d))).collect();
        let mut group = $c.benchmark_group($name);

        let mut source = native::Params::new(weights.clone());
        let mut scope = Scope::<native::Value>::root(&mut source);
        let p: Vec<_> = weights
            .iter()
            .map(|(name, a)| scope.param(name, a.dims(), Init::Zeros).expect("the source has the parameter"))
            .collect();
        let x: Vec<_> =
            inputs.iter().map(|a| native::Value::new(a.clone()).expect("the array has a batch axis")).collect();
        group.bench_function("forward", |b| b.iter(|| operation(&x, &p).expect("the operation succeeds")));

        let tensor = |a: &Array| to_device(a, DType::F32, &Device::Cpu).expect("enough memory");
        let (x, p): (Vec<_>, Vec<_>) = (inputs.iter().map(tensor).collect(), weights.values().map(tensor).collect());
        let step = |precision: Precision| {
            let tape = Tape::with_options(TapeOptions { precision, ..TapeOptions::default() });
            let leaf = |i: usize, t: &CandleTensor| tape.leaf(&i.to_string(), t.clone());
            let x: Vec<Var> = x.iter().enumerate().map(|(i, t)| leaf(i, t)).collect();
            let p: Vec<Param> = p.iter().enumerate().map(|(i, t)| Param::from(leaf(100 + i, t))).collect();
            operation(&x, &p).expect("the operation succeeds").backward(1.0).expect("backward succeeds")
        };
        group.bench_function("training", |b| b.iter(|| step(Precision::F32)));
        if matches!($name, "linear" | "attention") {
            group.bench_function("training in bf16", |b| b.iter(|| step(Precision::Bf16)));
        }
        group.bench_function("plain", |b| b.iter(|| with_candle_ops(|| step(Precision::F32))));
        group.finish();
    }};
}

fn transformer(c: &mut Criterion) {
    let (tokens, width) = ([64, 192], [192]);
    case!(c, "linear", [tokens], [[1024, 192], [1024]], |x: &[T], p: &[T::Param]| x[0]
        .linear(&p[0], Some(&p[1])));
    let heads = [64, 6, 32];
    case!(c, "attention", [heads, heads, heads], [], |x: &[T], _| x[0].attention(&x[1], &x[2]));
    case!(c, "rms_norm", [heads], [[32]], |x: &[T], p: &[T::Param]| x[0].rms_norm(Some(&p[0]), 1e-6));
    case!(c, "layer_norm", [tokens], [width, width], |x: &[T], p: &[T::Param]| {
        x[0].layer_norm(Some((&p[0], &p[1])), 1e-5)
    });
    case!(c, "scale_shift", [tokens, width, width], [], |x: &[T], _| x[0].scale_shift(&x[1], &x[2]));
    case!(c, "gated_residual", [tokens, tokens, width], [], |x: &[T], _| x[0].gated_residual(&x[1], &x[2]));
    case!(c, "swiglu", [[64, 1024]], [], |x: &[T], _| x[0].swiglu());
    case!(c, "gelu", [[64, 768]], [], |x: &[T], _| x[0].gelu());
    case!(c, "silu", [tokens], [], |x: &[T], _| x[0].silu());
    case!(c, "tanh", [tokens], [], |x: &[T], _| x[0].tanh());
    case!(c, "exp", [tokens], [], |x: &[T], _| x[0].exp());
    case!(c, "max", [tokens], [], |x: &[T], _| x[0].max(0));
    case!(c, "softmax", [[6, 64, 64]], [], |x: &[T], _| x[0].softmax());
}

fn convolutional(c: &mut Criterion) {
    let (image, plane) = ([3, 128, 128], [32, 32, 32]);
    case!(c, "conv2d 3x3", [plane], [[32, 32, 3, 3]], |x: &[T], p: &[T::Param]| x[0]
        .conv2d(&p[0], None, 1, 1));
    case!(c, "conv2d 3x3 stride 2", [plane], [[64, 32, 3, 3]], |x: &[T], p: &[T::Param]| {
        x[0].conv2d(&p[0], None, 2, 1)
    });
    case!(c, "conv2d 7x7", [image], [[32, 3, 7, 7]], |x: &[T], p: &[T::Param]| x[0]
        .conv2d(&p[0], None, 2, 3));
    case!(c, "conv2d in groups", [plane], [[32, 8, 3, 3]], |x: &[T], p: &[T::Param]| {
        x[0].conv2d_with_options(&p[0], None, Conv2dOptions { groups: 4, ..Conv2dOptions::square(1, 1) })
    });
    case!(c, "depthwise conv2d", [plane], [[32, 1, 5, 5]], |x: &[T], p: &[T::Param]| {
        x[0].conv2d_with_options(&p[0], None, Conv2dOptions { groups: 32, ..Conv2dOptions::square(1, 2) })
    });
    case!(c, "group_norm", [plane], [[32], [32]], |x: &[T], p: &[T::Param]| {
        x[0].group_norm(8, Some((&p[0], &p[1])), 1e-5)
    });
    case!(c, "upsample_nearest2d", [plane], [], |x: &[T], _| x[0].upsample_nearest2d(2));
    case!(c, "batch_norm", [plane], [[32], [32], [32], [32]], |x: &[T], p: &[T::Param]| {
        let [weight, bias, running_mean, running_var] = [0, 1, 2, 3].map(|i: usize| p[i].clone());
        x[0].batch_norm(&BatchNorm {
            path: String::new(),
            weight,
            bias,
            running_mean,
            running_var,
            eps: 1e-5,
        })
    });
    case!(c, "relu", [plane], [], |x: &[T], _| x[0].relu());
    case!(c, "max_pool2d", [[32, 64, 64]], [], |x: &[T], _| x[0].max_pool2d(3, 2, 1));
    case!(c, "avg_pool2d", [plane], [], |x: &[T], _| x[0].avg_pool2d(2, 2));
}

criterion_group!(kernels, transformer, convolutional);
criterion_main!(kernels);
