//! Complete TinyDiT networks: gradients on the tape, and independence of the batch.

use candle_core::{DType, Device, Tensor as CandleTensor};
use tiny_cats_models::{
    Array, Layout, Network as _, Scope, TinyDit, TinyDitConfig, Weights,
    candle::{CandleValue, Params, to_device},
    init,
    random::noise,
    tape::{Tape, Var},
};

fn config(layout: Layout) -> TinyDitConfig {
    TinyDitConfig {
        image_size: 16,
        patch_size: 4,
        width: 32,
        depth: 2,
        heads: 4,
        mlp_width: 64,
        classes: 5,
        layout,
    }
}

/// Initial weights, with noise in the zero-initialized arrays, as after some optimizer steps.
fn perturbed_weights(config: &TinyDitConfig) -> Weights {
    let mut weights = init(&config.specs().unwrap(), 3);
    for (i, array) in weights.values_mut().enumerate() {
        if array.data().iter().all(|&v| v == 0.0) {
            let n = array.data().len();
            array.data_mut().iter_mut().zip(noise(9, i as u64, n)).for_each(|(v, n)| *v = 0.1 * n);
        }
    }
    weights
}

fn inputs(batch: usize) -> [CandleTensor; 3] {
    let x: Vec<f32> = (0..batch).flat_map(|i| noise(1, i as u64, 3 * 16 * 16)).collect();
    let t: Vec<f32> = (0..batch).map(|i| 0.1 + 0.2 * i as f32).collect();
    let label: Vec<u32> = (0..batch).map(|i| i as u32 % 5).collect();
    [
        CandleTensor::from_vec(x, (batch, 3, 16, 16), &Device::Cpu).unwrap(),
        CandleTensor::from_vec(t, batch, &Device::Cpu).unwrap(),
        CandleTensor::from_vec(label, batch, &Device::Cpu).unwrap(),
    ]
}

fn loss(config: &TinyDitConfig, weights: &Weights) -> Var {
    let tape = Tape::new();
    let mut params = Params::new(weights, DType::F32, &Device::Cpu).unwrap();
    let model = TinyDit::<Var>::new(config, &mut Scope::root(&mut tape.params(&mut params))).unwrap();
    let [x, t, label] = inputs(4).map(|v| tape.constant(v));
    let target =
        to_device(&Array::new([4, 3, 16, 16], noise(7, 0, 4 * 768)).unwrap(), DType::F32, &Device::Cpu);
    let weight = CandleTensor::new(&[1f32, 2.0, 0.5, 1.0], &Device::Cpu).unwrap();
    model.forward(&x, &t, &label).unwrap().weighted_mse(&target.unwrap(), &weight).unwrap()
}

#[test]
fn every_parameter_has_a_finite_nonzero_gradient() {
    for layout in [Layout::Modern, Layout::Legacy] {
        let config = config(layout);
        let weights = perturbed_weights(&config);
        let gradients = loss(&config, &weights).backward(1.0).unwrap();
        for (name, array) in &weights {
            let gradient = gradients.get(name).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_eq!(gradient.dims(), array.dims(), "{name}");
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{name}");
            assert!(values.iter().any(|v| v.abs() > 1e-9), "{name}: gradient is zero");
        }
        assert_eq!(gradients.len(), weights.len());
    }
}

#[test]
fn a_gradient_step_reduces_the_loss_as_predicted() {
    for layout in [Layout::Modern, Layout::Legacy] {
        let config = config(layout);
        let weights = perturbed_weights(&config);
        let initial_loss = loss(&config, &weights);
        let value = |v: &Var| f64::from(v.value().to_scalar::<f32>().unwrap());
        let before = value(&initial_loss);
        let gradients = initial_loss.backward(1.0).unwrap();
        let (mut updated, mut predicted) = (weights.clone(), 0.0);
        for (name, array) in &mut updated {
            let gradient = gradients[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (v, g) in array.data_mut().iter_mut().zip(gradient) {
                *v -= 1e-3 * g;
                predicted += 1e-3 * f64::from(g) * f64::from(g);
            }
        }
        let measured = before - value(&loss(&config, &updated));
        assert!(
            (measured / predicted - 1.0).abs() < 0.05,
            "{layout:?}: predicted {predicted}, measured {measured}"
        );
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    for layout in [Layout::Modern, Layout::Legacy] {
        let config = config(layout);
        let mut params = Params::new(&perturbed_weights(&config), DType::F32, &Device::Cpu).unwrap();
        let model = TinyDit::<CandleValue>::new(&config, &mut Scope::root(&mut params)).unwrap();
        let run = |inputs: [CandleTensor; 3]| -> Vec<f32> {
            let [x, t, label] = inputs.map(CandleValue::new);
            let y = model.forward(&x, &t, &label).unwrap().into_inner();
            y.flatten_all().unwrap().to_vec1().unwrap()
        };
        let batched = run(inputs(4));
        let scale = batched.iter().fold(0f32, |max, v| max.max(v.abs()));
        for item in 0..4 {
            let single = run(inputs(4).map(|v| v.narrow(0, item, 1).unwrap()));
            for (a, b) in single.iter().zip(&batched[item * 768..]) {
                assert!((a - b).abs() <= 1e-4 * scale, "{layout:?}, item {item}: {a} and {b}");
            }
        }
    }
}
