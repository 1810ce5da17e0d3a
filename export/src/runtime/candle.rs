//! The candle runtime, which evaluates the definition with candle.

use candle_core::{DType, Device, Tensor};
use tiny_cats_models::{
    Array, Error as ModelError, ParamSpec, ResNet, ResNetConfig, Scope, TinyDit, TinyDitConfig, Weights,
    candle::{CandleValue, Params, best_device, to_device, to_host},
};

use super::{RuntimeKind, check_weights};
use crate::{Classify, Result, sample::Denoiser};

pub const VERSION: &str = "0.11.1";

/// A network on the first NVIDIA GPU if there is one, otherwise on the CPU.
pub struct CandleModel<M> {
    model: M,
    device: Device,
}

impl CandleModel<TinyDit<CandleValue>> {
    /// Builds a generator from `weights`, which must be exactly those of the network.
    pub fn tiny_dit(config: &TinyDitConfig, weights: &Weights) -> Result<Self> {
        let (mut params, device) = params(&config.cost()?.params, weights)?;
        Ok(Self { model: TinyDit::new(config, &mut Scope::root(&mut params))?, device })
    }
}

impl CandleModel<ResNet<CandleValue>> {
    /// Builds a classifier from `weights`, which must be exactly those of the network.
    pub fn resnet(config: &ResNetConfig, weights: &Weights) -> Result<Self> {
        let (mut params, device) = params(&config.specs()?, weights)?;
        Ok(Self { model: ResNet::new(config, &mut Scope::root(&mut params))?, device })
    }

    /// Computes the inputs of the classification layer, `[n, features]`, for normalized images `x` `[n, 3, size, size]`.
    pub fn features(&self, x: &Array) -> Result<Array> {
        let x = to_device(x, DType::F32, &self.device)?;
        Ok(to_host(&self.model.features(&CandleValue::new(x))?.into_inner())?)
    }
}

fn params(specs: &[ParamSpec], weights: &Weights) -> Result<(Params, Device)> {
    check_weights(specs, weights)?;
    let device = best_device();
    Ok((Params::new(weights, DType::F32, &device)?, device))
}

impl Classify for CandleModel<ResNet<CandleValue>> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        let x = to_device(x, DType::F32, &self.device)?;
        Ok(to_host(&self.model.forward(&CandleValue::new(x))?.into_inner())?)
    }
}

impl Denoiser for CandleModel<TinyDit<CandleValue>> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let to_u32 = |&label: &i64| {
            u32::try_from(label).map_err(|_| {
                RuntimeKind::Candle.error(format!("expected a label from 0 to {}, found {label}", u32::MAX))
            })
        };
        let label = label.iter().map(to_u32).collect::<Result<Vec<u32>>>()?;
        let vectors = || -> candle_core::Result<_> {
            Ok((
                Tensor::from_slice(t, t.len(), &self.device)?,
                Tensor::from_slice(&label, label.len(), &self.device)?,
            ))
        };
        let (t, label) = vectors().map_err(ModelError::from)?;
        let x = to_device(x, DType::F32, &self.device)?;
        let y = self.model.forward(&CandleValue::new(x), &CandleValue::new(t), &CandleValue::new(label))?;
        Ok(to_host(&y.into_inner())?)
    }
}
