//! ResNets against torchvision's, folded and not, and through the training reading.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor as CandleTensor};
use tiny_cats_models::{
    Array, Head, ParamSpec, ResNet, ResNetConfig, Scope, Weights,
    candle::{CandleValue, Params, to_device, to_host},
    fold_batch_norm,
    random::noise,
    tape::{Tape, Var},
};

/// Numbers from 0 to 1 in steps of 2⁻²⁴: SplitMix64 from the name's FNV-1a hash on. `fixtures/resnet/logits.py` makes the same.
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

/// The formula of the weights in `fixtures/resnet/logits.py`.
fn formula(specs: &[ParamSpec]) -> Weights {
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

fn small(depth: usize, head: Head) -> ResNetConfig {
    ResNetConfig { depth, width: 8, classes: 5, head, batch_norm: true }
}

fn pictures(n: usize, [height, width]: [usize; 2]) -> Array {
    let values = (0..n).flat_map(|i| noise(1, i as u64, 3 * height * width)).collect();
    Array::new([n, 3, height, width], values).unwrap()
}

fn logits(config: &ResNetConfig, weights: &Weights, x: &Array) -> Vec<f32> {
    let mut params = Params::new(weights, DType::F32, &Device::Cpu).unwrap();
    let model = ResNet::new(config, &mut Scope::root(&mut params)).unwrap();
    let x = CandleValue::new(to_device(x, DType::F32, &Device::Cpu).unwrap());
    to_host(&model.forward(&x).unwrap().into_inner()).unwrap().into_data()
}

/// `a` differs from `b` by no more than `tolerance` of the largest of `b`.
#[track_caller]
fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |most, v| most.max(v.abs()));
    let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(a.iter().all(|v| v.is_finite()) && largest > 0.0);
    assert!(far <= tolerance * largest, "{far} apart, of {largest}");
}

#[test]
fn full_size_networks_have_torchvisions_logits() {
    let text = include_str!("../fixtures/resnet/logits.json");
    let stored: serde_json::Value = serde_json::from_str(text).unwrap();
    let dims: Vec<usize> = serde_json::from_value(stored["pictures"].clone()).unwrap();
    let values = uniform("pictures", dims.iter().product()).map(|u| (4.0 * u - 2.0) as f32);
    let x = Array::new(dims, values.collect()).unwrap();
    for name in ["resnet18", "resnet34", "resnet50"] {
        let config = ResNetConfig::named(name, 1000).unwrap();
        let weights = formula(&config.specs().unwrap());
        let theirs: Vec<Vec<f32>> = serde_json::from_value(stored["logits"][name].clone()).unwrap();
        close(&logits(&config, &weights, &x), &theirs.concat(), 1e-4);
    }
}

#[test]
fn folding_changes_no_logit() {
    for depth in [18, 34, 50] {
        let config = small(depth, Head::Plain);
        let weights = formula(&config.specs().unwrap());
        let (folded, plain) = fold_batch_norm(&config, &weights).unwrap();
        assert!(!folded.batch_norm && plain.keys().all(|name| !name.contains("running")));
        let x = pictures(2, [48, 32]);
        close(&logits(&folded, &plain, &x), &logits(&config, &weights, &x), 1e-5);
    }
}

#[test]
fn a_picture_does_not_depend_on_the_batch_it_is_in() {
    for depth in [18, 50] {
        let config = small(depth, Head::Dropout);
        let weights = formula(&config.specs().unwrap());
        let all = pictures(3, [40, 40]);
        let together = logits(&config, &weights, &all);
        for (i, one) in all.data().chunks(3 * 40 * 40).enumerate() {
            let one = Array::new([1, 3, 40, 40], one.to_vec()).unwrap();
            close(&logits(&config, &weights, &one), &together[5 * i..][..5], 1e-4);
        }
    }
}

type Tensors = HashMap<String, CandleTensor>;

fn tensors(weights: &Weights) -> Tensors {
    let tensor = |array| to_device(array, DType::F64, &Device::Cpu).unwrap();
    weights.iter().map(|(name, array)| (name.clone(), tensor(array))).collect()
}

/// The loss of a batch of four, on a tape, in f64.
fn loss(config: &ResNetConfig, weights: &Tensors) -> Var {
    let tape = Tape::new();
    let mut params = Params::from_tensors(weights.clone(), DType::F64, &Device::Cpu);
    let model = ResNet::<Var>::new(config, &mut Scope::root(&mut tape.params(&mut params))).unwrap();
    let tensor = |array: &Array| to_device(array, DType::F64, &Device::Cpu).unwrap();
    let target = tensor(&Array::new([4, 5], noise(7, 0, 20)).unwrap());
    let weight = CandleTensor::ones(4, DType::F64, &Device::Cpu).unwrap();
    let x = tape.constant(tensor(&pictures(4, [64, 64])));
    model.forward(&x).unwrap().weighted_mse(&target, &weight).unwrap()
}

#[test]
fn every_trained_parameter_has_a_gradient_that_is_a_number_and_not_zero() {
    for depth in [18, 50] {
        let config = small(depth, Head::Dropout);
        let specs = config.specs().unwrap();
        let at = loss(&config, &tensors(&formula(&specs)));
        let statistics = at.tape().take_statistics();
        let norms = specs.iter().filter_map(|s| s.name.strip_suffix(".running_mean"));
        assert!(statistics.iter().map(|s| s.path.as_str()).eq(norms), "in the order of the definition");
        let gradients = at.backward(1.0).unwrap();
        let trained: Vec<&ParamSpec> = specs.iter().filter(|s| s.trainable).collect();
        assert_eq!(gradients.len(), trained.len());
        for spec in trained {
            let gradient = gradients.get(&spec.name).unwrap_or_else(|| panic!("{}: no gradient", spec.name));
            assert_eq!(gradient.dims(), spec.dims, "{}", spec.name);
            let values = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{}", spec.name);
            assert!(values.iter().any(|v| v.abs() > 1e-9), "{}: gradient is zero", spec.name);
        }
    }
}

#[test]
fn a_step_against_the_gradient_lowers_the_loss_as_much_as_it_promises() {
    for depth in [18, 50] {
        let config = small(depth, Head::Plain);
        let mut weights = tensors(&formula(&config.specs().unwrap()));
        let at = loss(&config, &weights);
        let value = |v: &Var| v.value().to_scalar::<f64>().unwrap();
        let before = value(&at);
        let gradients = at.backward(1.0).unwrap();
        let square = |g: &CandleTensor| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let promised = 1e-6 * before;
        let rate = promised / gradients.values().map(square).sum::<f64>();
        for (name, gradient) in gradients {
            let moved = (&weights[&name] - gradient * rate).unwrap();
            weights.insert(name, moved);
        }
        let gained = before - value(&loss(&config, &weights));
        assert!((gained / promised - 1.0).abs() < 0.01, "{depth}: promised {promised}, gained {gained}");
    }
}
