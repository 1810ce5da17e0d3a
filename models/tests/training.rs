//! Complete networks on the tape: its options change the memory and time of a step, but not the gradients beyond rounding.
#![cfg(feature = "candle")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::Case;
use tiny_cats_models::{
    Head, Init, Layout, Network, ParamSpec, Precision, ResNetConfig, TapeOptions, Tensor as _, TinyDitConfig,
    candle::{forward, with_candle_ops, with_fused_ops},
    init,
    random::noise,
    tape::{Param, Tape, Var},
};

fn dit(layout: Layout) -> TinyDitConfig {
    TinyDitConfig {
        image_size: 16,
        patch_size: 4,
        width: 32,
        depth: 3,
        heads: 4,
        mlp_width: 64,
        classes: 5,
        layout,
    }
}

fn resnet(depth: usize) -> ResNetConfig {
    ResNetConfig { depth, width: 8, classes: 5, head: Head::Plain, batch_norm: true }
}

/// Returns a small network of every kind.
fn cases() -> Vec<Case> {
    vec![
        Case::new(dit(Layout::Modern), 16, 4),
        Case::new(dit(Layout::Legacy), 16, 4),
        Case::new(resnet(18), 64, 4),
        Case::new(resnet(50), 64, 4),
    ]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn gradient_checkpointing_gives_the_same_bits() {
    for mut case in cases() {
        let (loss, statistics, gradients) = case.step(TapeOptions::default(), 1.0);
        let (checkpointed_loss, checkpointed_statistics, found) =
            case.step(TapeOptions { checkpoint: true, precision: Precision::F32 }, 1.0);
        let name = format!("{:?}", case.network);
        assert_eq!(loss.to_bits(), checkpointed_loss.to_bits(), "{name}");
        assert_eq!(statistics.len(), checkpointed_statistics.len(), "{name}");
        for (a, b) in statistics.iter().zip(&checkpointed_statistics) {
            assert_eq!((&a.path, bits(&a.mean), bits(&a.var)), (&b.path, bits(&b.mean), bits(&b.var)));
        }
        assert!(gradients.keys().eq(found.keys()), "{name}");
        for (parameter, gradient) in gradients {
            assert!(values(&gradient).iter().any(|v| *v != 0.0), "{name}: {parameter} has no gradient");
            assert_eq!(bits(&gradient), bits(&found[&parameter]), "{name}: {parameter}");
        }
    }
}

fn in_precision(precision: Precision) -> TapeOptions {
    TapeOptions { precision, ..TapeOptions::default() }
}

/// Returns the dot product, in f64.
fn dot_product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[test]
fn half_precision_gradients_match_f32() {
    // In f16 small gradients would be zero without loss scaling.
    for (precision, scale, min_cosine) in [(Precision::Bf16, 1.0, 0.99), (Precision::F16, 1024.0, 0.999)] {
        for checkpoint in [false, true] {
            for mut case in cases() {
                let (loss, _, expected) = case.step(TapeOptions::default(), 1.0);
                let options = TapeOptions { checkpoint, ..in_precision(precision) };
                let (rounded, statistics, found) = case.step(options, scale);
                let name = format!("{precision:?}, {:?}", case.network);
                assert!((rounded / loss - 1.0).abs() < 0.02, "{name}: loss {rounded}, in f32 {loss}");
                assert!(statistics.iter().all(|s| s.mean.dtype() == DType::F32), "{name}");
                assert!(expected.keys().eq(found.keys()), "{name}");
                let (mut dot, mut squares) = (0.0, [0.0; 2]);
                for (parameter, expected) in &expected {
                    assert_eq!(found[parameter].dtype(), DType::F32, "{name}: {parameter}");
                    let (a, b) = (values(&found[parameter]), values(expected));
                    assert!(a.iter().all(|v| v.is_finite()), "{name}: {parameter}");
                    assert!(a.iter().any(|v| *v != 0.0), "{name}: {parameter} has no gradient");
                    dot += dot_product(&a, &b);
                    squares[0] += dot_product(&a, &a);
                    squares[1] += dot_product(&b, &b);
                }
                let cosine = dot / (squares[0] * squares[1]).sqrt();
                println!("{name}: cosine {cosine:.6}");
                assert!(cosine > min_cosine, "{name}: cosine {cosine}");
                let length = (squares[0] / squares[1]).sqrt() / scale;
                assert!((length - 1.0).abs() < 0.05, "{name}: {length} times as long");
            }
        }
    }
}

#[test]
fn an_overflow_in_f16_gives_non_finite_gradients() {
    for mut case in cases() {
        let options = in_precision(Precision::F16);
        let (before, _, expected) = case.step(options, 1.0);
        let (loss, _, gradients) = case.step(options, 1e9);
        assert!(loss.is_finite(), "only the gradient is scaled");
        let has_overflow = gradients.values().any(|g| values(g).iter().any(|v| !v.is_finite()));
        assert!(has_overflow, "{:?}: all gradients are finite", case.network);
        // The next step is not affected.
        let (after, _, found) = case.step(options, 1.0);
        assert_eq!(before.to_bits(), after.to_bits());
        assert!(expected.iter().all(|(name, gradient)| bits(gradient) == bits(&found[name])));
        // bf16 has the exponent range of f32, and does not overflow.
        let (_, _, found) = case.step(in_precision(Precision::Bf16), 1e9);
        assert!(found.values().all(|g| values(g).iter().all(|v| v.is_finite())), "{:?}", case.network);
    }
}

/// What a GPU computes, with candle-nn's fused kernels, equals the compositions of candle's operations but for rounding.
#[test]
fn fused_kernels_give_the_loss_and_gradients_of_compositions() {
    // candle cannot multiply bf16 on a CPU. One rounding of f16 moves others, through all layers.
    for (precision, scale, tolerance) in [(Precision::F32, 1.0, 1e-4), (Precision::F16, 1024.0, 2e-2)] {
        for mut case in cases() {
            let name = format!("{precision:?}, {:?}", case.network);
            let (loss, _, found) = with_fused_ops(|| case.step(in_precision(precision), scale));
            let (expected_loss, _, expected) = with_candle_ops(|| case.step(in_precision(precision), scale));
            assert!((loss / expected_loss - 1.0).abs() < tolerance as f32, "{name}: {loss}, {expected_loss}");
            assert!(found.keys().eq(expected.keys()), "{name}");
            for (parameter, expected) in &expected {
                let (a, b) = (values(&found[parameter]), values(expected));
                let difference: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                let error = (dot_product(&difference, &difference) / dot_product(&b, &b)).sqrt();
                assert!(error < tolerance, "{name}: {parameter} differs by {error:e} of its norm");
            }
        }
    }
}

#[test]
fn fused_kernels_give_the_outputs_of_compositions() {
    fn check<N: Network>(network: &N, inputs: &[Tensor]) {
        let specs = network.specs().unwrap();
        let specs: Vec<_> = specs.into_iter().map(|s| ParamSpec { init: Init::Normal(0.3), ..s }).collect();
        let mut weights = init(&specs, 0);
        let variances = weights.iter_mut().filter(|(name, _)| name.ends_with("running_var"));
        variances.for_each(|(_, array)| array.data_mut().iter_mut().for_each(|v| *v = v.abs() + 0.5));
        let run = || values(&forward(network, &weights, inputs, &Device::Cpu).unwrap());
        let (found, expected) = (with_fused_ops(run), with_candle_ops(run));
        let scale = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
        let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(scale > 0.0 && error < 1e-5 * scale, "{}: {error:e} of {scale}", N::KIND);
    }
    let images = |side| {
        let dims = [2, 3, side, side];
        Tensor::from_vec(noise(1, 0, dims.iter().product()), &dims, &Device::Cpu).unwrap()
    };
    let times = Tensor::new(&[0.25f32, 0.75], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    for layout in [Layout::Modern, Layout::Legacy] {
        check(&dit(layout), &[images(16), times.clone(), labels.clone()]);
    }
    check(&resnet(18), &[images(64)]);
}

/// A product in bf16 equals that of the rounded factors in f32, and differs from that of the factors themselves.
#[test]
fn bf16_rounds_the_factors_of_products() {
    let rounded = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let random = |stream, dims: &[usize]| {
        Tensor::from_vec(noise(1, stream, dims.iter().product()), dims, &Device::Cpu).unwrap()
    };
    type Product = fn(&[Var], &Param) -> Var;
    let cases: [(&str, &[usize], &[usize], Product); 3] = [
        ("linear", &[2, 40, 33], &[7, 33], |x, w| x[0].linear(w, None).unwrap()),
        ("convolution", &[2, 3, 9, 8], &[5, 3, 3, 3], |x, w| x[0].conv2d(w, None, 2, 1).unwrap()),
        ("attention", &[2, 6, 2, 8], &[1], |x, _| x[0].attention(&x[1], &x[2]).unwrap()),
    ];
    for (name, dims, weight, product) in cases {
        let (x, w) = ([0, 1, 2].map(|i| random(i, dims)), random(3, weight));
        let run = |precision: Precision, change: &dyn Fn(&Tensor) -> Tensor| {
            let tape = Tape::with_options(in_precision(precision));
            let leaf = |name: &str, t: &Tensor| tape.leaf(name, change(t));
            let x = ["a", "b", "c"].iter().zip(&x).map(|(name, t)| leaf(name, t)).collect::<Vec<_>>();
            let w = leaf("w", &w);
            let y = product(&x, &Param::from(w));
            let value = values(y.value());
            let gradient = y.backward(1.0).unwrap().remove("a").expect("the gradient of x");
            (value, values(&gradient))
        };
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (half, gradient) = run(Precision::Bf16, &|t| t.clone());
        let (expected, expected_gradient) = run(Precision::F32, &rounded);
        let (exact, _) = run(Precision::F32, &|t| t.clone());
        // Attention also rounds the intermediate result between its two products.
        let allowed = if name == "attention" { 2e-2 } else { 1e-5 };
        assert!(distance(&half, &expected) <= allowed, "{name}: {}", distance(&half, &expected));
        assert!(
            distance(&gradient, &expected_gradient) <= 2e-2,
            "{name}: {}",
            distance(&gradient, &expected_gradient)
        );
        assert!(distance(&half, &exact) > 1e-4, "{name}: nothing was rounded");
    }
}
