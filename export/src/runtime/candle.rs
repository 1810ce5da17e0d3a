//! The definition itself, read by candle.

use candle_core::{DType, Device, Tensor};
use tiny_cats_models::{
    Array, Error as ModelError, Scope, TinyDit, Weights,
    candle::{Params, Plain, to_device, to_host},
    cost,
};

use super::RuntimeKind;
use crate::{Error, ModelMeta, Network, Result, sample::Denoiser};

pub const VERSION: &str = "0.11.1";

/// A generator on the processor, or on the first NVIDIA GPU where there is one.
pub struct Definition {
    model: TinyDit<Plain>,
    device: Device,
}

impl Definition {
    /// Builds the network that `meta` describes out of `weights`, which must be its own: all of them, and no others.
    pub fn new(meta: &ModelMeta, weights: &Weights) -> Result<Self> {
        let Network::TinyDit(config) = &meta.config;
        let ledger: cost::Ledger = config.cost()?;
        if let Some(other) = weights.keys().find(|name| ledger.params.iter().all(|spec| spec.name != **name))
        {
            return Err(Error::file("weights", other, "the network has no parameter of this name"));
        }
        let failed = |e| Error::from(ModelError::from(e));
        let device = if cfg!(feature = "cuda") { Device::cuda_if_available(0) } else { Ok(Device::Cpu) };
        let device = device.map_err(failed)?;
        let mut params = Params::new(weights, DType::F32, &device)?;
        let model = TinyDit::new(config, &mut Scope::root(&mut params))?;
        Ok(Self { model, device })
    }
}

impl Denoiser for Definition {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let whole = |&label: &i64| {
            u32::try_from(label).map_err(|_| RuntimeKind::Candle.error(format!("label {label}")))
        };
        let label = label.iter().map(whole).collect::<Result<Vec<u32>>>()?;
        let vectors = || -> candle_core::Result<_> {
            Ok((
                Tensor::from_slice(t, t.len(), &self.device)?,
                Tensor::from_slice(&label, label.len(), &self.device)?,
            ))
        };
        let (t, label) = vectors().map_err(ModelError::from)?;
        let x = to_device(x, DType::F32, &self.device)?;
        let y = self.model.forward(&Plain::new(x), &Plain::new(t), &Plain::new(label))?;
        Ok(to_host(&y.into_inner())?)
    }
}
