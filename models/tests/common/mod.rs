//! Small networks, trained for one step.
#![allow(dead_code, reason = "each test uses a part")]

use std::fmt::Debug;

use candle_core::{DType, Device, Tensor};
use tiny_cats_models::{
    Init, Network, ParamSpec, ResNetConfig, Role, Scope, Sizes, TapeOptions, TinyDitConfig,
    candle::Params,
    init, main_output,
    random::noise,
    resnet::IMAGE_SIZE,
    tape::{BatchStatistics, Gradients, Tape, Var},
};

/// The part of [`Network`] that the tests use, object-safe.
pub trait AnyNetwork: Debug {
    fn specs(&self) -> Vec<ParamSpec>;
    fn role(&self) -> Role;
    fn training_bytes(&self, sizes: &Sizes, batch: usize, options: TapeOptions) -> u64;
    fn forward(&self, scope: &mut Scope<Var>, inputs: &[Var]) -> Var;
}

impl<N: Network> AnyNetwork for N {
    fn specs(&self) -> Vec<ParamSpec> {
        Network::specs(self).unwrap()
    }

    fn role(&self) -> Role {
        Network::role(self)
    }

    fn training_bytes(&self, sizes: &Sizes, batch: usize, options: TapeOptions) -> u64 {
        Network::training_bytes(self, sizes, batch, options).unwrap()
    }

    fn forward(&self, scope: &mut Scope<Var>, inputs: &[Var]) -> Var {
        main_output(N::forward(&self.build(scope).unwrap(), inputs).unwrap()).unwrap()
    }
}

/// A network, its weights, none of them zero, and a batch.
pub struct Case {
    pub network: Box<dyn AnyNetwork>,
    params: Params,
    inputs: Vec<Tensor>,
    target: Tensor,
}

fn random(stream: u64, dims: &[usize]) -> Tensor {
    Tensor::from_vec(noise(1, stream, dims.iter().product()), dims, &Device::Cpu).unwrap()
}

impl Case {
    pub fn new(network: impl Network, side: usize, batch: usize) -> Self {
        let network: Box<dyn AnyNetwork> = Box::new(network);
        let mut specs = network.specs();
        for spec in specs.iter_mut().filter(|s| s.trainable && s.init == Init::Zeros) {
            spec.init = Init::Normal(0.1);
        }
        let params = Params::new(&init(&specs, 0), DType::F32, &Device::Cpu).unwrap();
        let image_dims = [batch, 3, side, side];
        let x = random(0, &image_dims);
        let (inputs, target) = match network.role() {
            Role::Generator { classes, .. } => {
                let t = Tensor::from_iter((0..batch).map(|i| (i as f32 + 0.5) / batch as f32), &Device::Cpu);
                let labels = Tensor::from_iter((0..batch).map(|i| (i % classes) as u32), &Device::Cpu);
                (vec![x, t.unwrap(), labels.unwrap()], random(1, &image_dims))
            }
            Role::Classifier { classes } => {
                let ones = Tensor::ones((batch, classes), DType::F32, &Device::Cpu).unwrap();
                (vec![x], (ones / classes as f64).unwrap())
            }
            Role::Other => unreachable!("no test has such a network"),
        };
        Self { network, params, inputs, target }
    }

    pub fn dit(size: &str, side: usize, batch: usize) -> Self {
        Self::new(TinyDitConfig::named(size, side, 13).unwrap(), side, batch)
    }

    pub fn resnet(name: &str, side: usize, batch: usize) -> Self {
        Self::new(ResNetConfig::named(name, 13).unwrap(), side, batch)
    }

    /// Returns the peak memory of one step by the cost backend, in bytes, without weights and batch.
    pub fn predicted_bytes(&self, options: TapeOptions) -> u64 {
        let &[batch, _, side, _] = self.inputs[0].dims() else { unreachable!("images have four axes") };
        self.network.training_bytes(&Sizes::from([(IMAGE_SIZE.into(), side)]), batch, options)
    }

    pub fn loss(&mut self, tape: &Tape) -> Var {
        let mut params = tape.params(&mut self.params);
        let x: Vec<Var> = self.inputs.iter().map(|x| tape.constant(x.clone())).collect();
        let y = self.network.forward(&mut Scope::root(&mut params), &x);
        if let Role::Classifier { .. } = self.network.role() {
            return y.cross_entropy(&self.target).unwrap();
        }
        let weight = Tensor::ones(x[0].value().dims()[0], DType::F32, &Device::Cpu).unwrap();
        y.weighted_mse(&self.target, &weight).unwrap()
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
