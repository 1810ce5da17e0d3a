//! The network: two convolutions and a linear layer.

use serde::{Deserialize, Serialize};
use tiny_cats_models::{
    Error, Input, Network, Result, Role, Scope, Tensor,
    layers::{Conv2d, ConvOptions, Linear},
};

/// Side of the images, in pixels.
pub const SIDE: usize = 16;

/// The configuration: what it takes to build the network again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Digits {
    /// Channels of the first convolution; the second has twice as many.
    pub channels: usize,
}

/// The network in a backend.
pub struct Layers<T: Tensor> {
    conv1: Conv2d<T>,
    conv2: Conv2d<T>,
    head: Linear<T>,
}

impl Network for Digits {
    const KIND: &'static str = "digits";
    type Built<T: Tensor> = Layers<T>;

    fn validate(&self) -> Result<()> {
        if !(1..=256).contains(&self.channels) {
            let message = format!("expected 1 to 256, found {}", self.channels);
            return Err(Error::Config { field: "channels", message });
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("image", [1, SIDE, SIDE])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["logits".into()]
    }

    fn role(&self) -> Role {
        Role::Classifier { classes: 10 }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Layers<T>> {
        let options = ConvOptions { stride: 2, padding: 1, ..ConvOptions::default() };
        let c = self.channels;
        Ok(Layers {
            conv1: Conv2d::with_options(scope.sub("conv1"), 1, c, 3, options)?,
            conv2: Conv2d::with_options(scope.sub("conv2"), c, 2 * c, 3, options)?,
            head: Linear::new(scope.sub("head"), 2 * c * 16, 10)?,
        })
    }

    fn forward<T: Tensor>(layers: &Layers<T>, inputs: &[T]) -> Result<Vec<T>> {
        let x = layers.conv1.forward(&inputs[0])?.relu()?;
        let x = layers.conv2.forward(&x)?.relu()?;
        let features = x.dims().iter().product();
        Ok(vec![layers.head.forward(&x.reshape(&[features])?)?])
    }
}
