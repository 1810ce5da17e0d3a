//! ResNets, with and without folded batch normalization, against torchvision's; their gradients on the tape.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor as CandleTensor};
use tiny_cats_models::{
    Array, Head, Network as _, ParamSpec, ResNet, ResNetConfig, Scope, Weights,
    candle::{CandleValue, Params, to_device, to_host},
    fold_batch_norm,
    random::noise,
    tape::{Tape, Var},
};

/// Numbers from 0 to 1 in steps of 2⁻²⁴, by SplitMix64 seeded with the name's FNV-1a hash. `fixtures/resnet/logits.py` has the same
/// function.
fn uniform(name: &str, n: usize) -> impl Iterator<Item = f64> {
    let hash = |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let state = name.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    (1..=n as u64).map(move |i| {
        let z = state.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// The weights that `fixtures/resnet/logits.py` uses.
fn formula_weights(specs: &[ParamSpec]) -> Weights {
    let array = |spec: &ParamSpec| {
        let (name, dims) = (&spec.name, &spec.dims);
        let u = uniform(name, dims.iter().product());
        let fan_in: usize = dims[1..].iter().product();
        let bound = (if dims.len() == 4 { 6.0 } else { 3.0 } / fan_in as f64).sqrt();
        let data = if name.ends_with("running_var") {
            u.map(|u| (0.5 + u) as f32).collect()
        } else if dims.len() > 1 {
            u.map(|u| ((2.0 * u - 1.0) * bound) as f32).collect()
        } else if name.ends_with("weight") {
            u.map(|u| (0.5 + 0.5 * u) as f32).collect()
        } else {
            u.map(|u| (0.2 * u - 0.1) as f32).collect()
        };
        (name.clone(), Array::new(dims.clone(), data).unwrap())
    };
    specs.iter().map(array).collect()
}

fn small_config(depth: usize, head: Head) -> ResNetConfig {
    ResNetConfig { depth, width: 8, classes: 5, head, batch_norm: true }
}

fn images(n: usize, [height, width]: [usize; 2]) -> Array {
    let values = (0..n).flat_map(|i| noise(1, i as u64, 3 * height * width)).collect();
    Array::new([n, 3, height, width], values).unwrap()
}

fn logits(config: &ResNetConfig, weights: &Weights, x: &Array) -> Vec<f32> {
    let mut params = Params::new(weights, DType::F32, &Device::Cpu).unwrap();
    let model = ResNet::new(config, &mut Scope::root(&mut params)).unwrap();
    let x = CandleValue::new(to_device(x, DType::F32, &Device::Cpu).unwrap());
    to_host(&model.forward(&x).unwrap().into_inner()).unwrap().into_data()
}

/// Asserts that `a` and `b` differ by at most `tolerance` times the largest absolute value in `b`.
#[track_caller]
fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |max, v| max.max(v.abs()));
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(a.iter().all(|v| v.is_finite()) && largest > 0.0);
    assert!(difference <= tolerance * largest, "difference {difference}, largest value {largest}");
}

#[test]
fn full_size_networks_match_torchvision_logits() {
    let text = include_str!("../fixtures/resnet/logits.json");
    let stored: serde_json::Value = serde_json::from_str(text).unwrap();
    let dims: Vec<usize> = serde_json::from_value(stored["pictures"].clone()).unwrap();
    let values = uniform("pictures", dims.iter().product()).map(|u| (4.0 * u - 2.0) as f32);
    let x = Array::new(dims, values.collect()).unwrap();
    for name in ["resnet18", "resnet34", "resnet50"] {
        let config = ResNetConfig::named(name, 1000).unwrap();
        let weights = formula_weights(&config.specs().unwrap());
        let expected: Vec<Vec<f32>> = serde_json::from_value(stored["logits"][name].clone()).unwrap();
        assert_close(&logits(&config, &weights, &x), &expected.concat(), 1e-4);
    }
}

#[test]
fn folding_batch_norm_preserves_logits() {
    for depth in [18, 34, 50] {
        let config = small_config(depth, Head::Plain);
        let weights = formula_weights(&config.specs().unwrap());
        let (folded, plain) = fold_batch_norm(&config, &weights).unwrap();
        assert!(!folded.batch_norm && plain.keys().all(|name| !name.contains("running")));
        let x = images(2, [48, 32]);
        assert_close(&logits(&folded, &plain, &x), &logits(&config, &weights, &x), 1e-5);
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    for depth in [18, 50] {
        let config = small_config(depth, Head::Dropout);
        let weights = formula_weights(&config.specs().unwrap());
        let all = images(3, [40, 40]);
        let batched = logits(&config, &weights, &all);
        for (i, image) in all.data().chunks(3 * 40 * 40).enumerate() {
            let image = Array::new([1, 3, 40, 40], image.to_vec()).unwrap();
            assert_close(&logits(&config, &weights, &image), &batched[5 * i..][..5], 1e-4);
        }
    }
}

type Tensors = HashMap<String, CandleTensor>;

fn tensors(weights: &Weights) -> Tensors {
    let tensor = |array| to_device(array, DType::F64, &Device::Cpu).unwrap();
    weights.iter().map(|(name, array)| (name.clone(), tensor(array))).collect()
}

/// The loss of a batch of four images on a tape, in f64.
fn loss(config: &ResNetConfig, weights: &Tensors) -> Var {
    let tape = Tape::new();
    let mut params = Params::from_tensors(weights.clone(), DType::F64, &Device::Cpu);
    let model = ResNet::<Var>::new(config, &mut Scope::root(&mut tape.params(&mut params))).unwrap();
    let tensor = |array: &Array| to_device(array, DType::F64, &Device::Cpu).unwrap();
    let target = tensor(&Array::new([4, 5], noise(7, 0, 20)).unwrap());
    let weight = CandleTensor::ones(4, DType::F64, &Device::Cpu).unwrap();
    let x = tape.constant(tensor(&images(4, [64, 64])));
    model.forward(&x).unwrap().weighted_mse(&target, &weight).unwrap()
}

#[test]
fn every_trainable_parameter_has_a_finite_nonzero_gradient() {
    for depth in [18, 50] {
        let config = small_config(depth, Head::Dropout);
        let specs = config.specs().unwrap();
        let initial_loss = loss(&config, &tensors(&formula_weights(&specs)));
        let statistics = initial_loss.tape().take_statistics();
        let norms = specs.iter().filter_map(|s| s.name.strip_suffix(".running_mean"));
        assert!(statistics.iter().map(|s| s.path.as_str()).eq(norms), "statistics are in definition order");
        let gradients = initial_loss.backward(1.0).unwrap();
        let trainable: Vec<&ParamSpec> = specs.iter().filter(|s| s.trainable).collect();
        assert_eq!(gradients.len(), trainable.len());
        for spec in trainable {
            let gradient = gradients.get(&spec.name).unwrap_or_else(|| panic!("{}: no gradient", spec.name));
            assert_eq!(gradient.dims(), spec.dims, "{}", spec.name);
            let values = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{}", spec.name);
            assert!(values.iter().any(|v| v.abs() > 1e-9), "{}: gradient is zero", spec.name);
        }
    }
}

#[test]
fn a_gradient_step_reduces_the_loss_as_predicted() {
    for depth in [18, 50] {
        let config = small_config(depth, Head::Plain);
        let mut weights = tensors(&formula_weights(&config.specs().unwrap()));
        let initial_loss = loss(&config, &weights);
        let value = |v: &Var| v.value().to_scalar::<f64>().unwrap();
        let before = value(&initial_loss);
        let gradients = initial_loss.backward(1.0).unwrap();
        let square = |g: &CandleTensor| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let predicted = 1e-6 * before;
        let rate = predicted / gradients.values().map(square).sum::<f64>();
        for (name, gradient) in gradients {
            let updated = (&weights[&name] - gradient * rate).unwrap();
            weights.insert(name, updated);
        }
        let measured = before - value(&loss(&config, &weights));
        assert!(
            (measured / predicted - 1.0).abs() < 0.01,
            "{depth}: predicted {predicted}, measured {measured}"
        );
    }
}
