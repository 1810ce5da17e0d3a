//! Small networks, trained for one step.
#![allow(dead_code, reason = "each test uses a part")]

use candle_core::{DType, Device, Tensor};
use tiny_cats_models::{
    Init, Network as _, NetworkConfig, ResNet, ResNetConfig, Scope, Sizes, TapeOptions, TinyDit,
    TinyDitConfig,
    candle::Params,
    init,
    random::noise,
    resnet::IMAGE_SIZE,
    tape::{BatchStatistics, Gradients, Tape, Var},
};

/// A network, its weights, none of them zero, and a batch.
pub struct Case {
    pub network: NetworkConfig,
    params: Params,
    inputs: Vec<Tensor>,
    target: Tensor,
}

fn random(stream: u64, dims: &[usize]) -> Tensor {
    Tensor::from_vec(noise(1, stream, dims.iter().product()), dims, &Device::Cpu).unwrap()
}

impl Case {
    pub fn new(network: NetworkConfig, side: usize, batch: usize) -> Self {
        let mut specs = network.specs().unwrap();
        for spec in specs.iter_mut().filter(|s| s.trainable && s.init == Init::Zeros) {
            spec.init = Init::Normal(0.1);
        }
        let params = Params::new(&init(&specs, 0), DType::F32, &Device::Cpu).unwrap();
        let image_dims = [batch, 3, side, side];
        let x = random(0, &image_dims);
        let (inputs, target) = match &network {
            NetworkConfig::TinyDit(config) => {
                let t = Tensor::from_iter((0..batch).map(|i| (i as f32 + 0.5) / batch as f32), &Device::Cpu);
                let labels = Tensor::from_iter((0..batch).map(|i| (i % config.classes) as u32), &Device::Cpu);
                (vec![x, t.unwrap(), labels.unwrap()], random(1, &image_dims))
            }
            NetworkConfig::ResNet(config) => {
                let target = (Tensor::ones((batch, config.classes), DType::F32, &Device::Cpu).unwrap()
                    / config.classes as f64)
                    .unwrap();
                (vec![x], target)
            }
        };
        Self { network, params, inputs, target }
    }

    pub fn dit(size: &str, side: usize, batch: usize) -> Self {
        Self::new(NetworkConfig::TinyDit(TinyDitConfig::named(size, side, 13).unwrap()), side, batch)
    }

    pub fn resnet(name: &str, side: usize, batch: usize) -> Self {
        Self::new(NetworkConfig::ResNet(ResNetConfig::named(name, 13).unwrap()), side, batch)
    }

    /// Returns the peak memory of one step by the cost backend, in bytes, without weights and batch.
    pub fn predicted_bytes(&self, options: TapeOptions) -> u64 {
        let &[batch, _, side, _] = self.inputs[0].dims() else { unreachable!("images have four axes") };
        match &self.network {
            NetworkConfig::TinyDit(config) => config.training_bytes(&Sizes::new(), batch, options),
            NetworkConfig::ResNet(config) => {
                config.training_bytes(&Sizes::from([(IMAGE_SIZE.into(), side)]), batch, options)
            }
        }
        .unwrap()
    }

    pub fn loss(&mut self, tape: &Tape) -> Var {
        let mut params = tape.params(&mut self.params);
        let scope = &mut Scope::root(&mut params);
        let x: Vec<Var> = self.inputs.iter().map(|x| tape.constant(x.clone())).collect();
        match &self.network {
            NetworkConfig::TinyDit(config) => {
                let y = TinyDit::new(config, scope).unwrap().forward(&x[0], &x[1], &x[2]).unwrap();
                let weight = Tensor::ones(x[0].value().dims()[0], DType::F32, &Device::Cpu).unwrap();
                y.weighted_mse(&self.target, &weight).unwrap()
            }
            NetworkConfig::ResNet(config) => {
                let y = ResNet::new(config, scope).unwrap().forward(&x[0]).unwrap();
                y.cross_entropy(&self.target).unwrap()
            }
        }
    }

    /// Computes one step; `scale` is the gradient of the loss. Returns the loss, the statistics of batch normalizations, and the gradients.
    pub fn step(&mut self, options: TapeOptions, scale: f64) -> (f32, Vec<BatchStatistics>, Gradients) {
        let tape = Tape::with_options(options);
        let loss = self.loss(&tape);
        let (value, statistics) = (loss.value().to_scalar().unwrap(), tape.take_statistics());
        let gradients = loss.backward(scale).unwrap();
        assert!(tape.take_statistics().is_empty(), "statistics are reported once");
        (value, statistics, gradients)
    }
}
