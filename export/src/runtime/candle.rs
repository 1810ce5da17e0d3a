//! The candle runtime: the definition, computed by candle.

use candle_core::{DType, Device, Tensor};
use tiny_cats_models::{
    Array, Error as ModelError, Input, Scope, Weights,
    candle::{CandleValue, Params, to_device, to_host},
};

use super::{
    InputTensor, RuntimeKind, Session,
    definition::{check_weights, order_inputs},
    output_index,
};
use crate::{Result, loadable::CandleNetwork};

pub const VERSION: &str = "0.11.1";

/// A network on a device.
pub struct CandleSession<N: CandleNetwork> {
    network: N::Built<CandleValue>,
    inputs: Vec<Input>,
    outputs: Vec<String>,
    device: Device,
}

impl<N: CandleNetwork> CandleSession<N> {
    /// Builds a network from `weights`, which must be exactly those of the network.
    pub fn new(network: &N, weights: &Weights, device: &Device) -> Result<Self> {
        check_weights(&network.specs()?, weights)?;
        let mut params = Params::new(weights, DType::F32, device)?;
        let (inputs, outputs) = (network.inputs(), network.outputs());
        let network = network.build(&mut Scope::root(&mut params))?;
        Ok(Self { network, inputs, outputs, device: device.clone() })
    }
}

/// Copies an input to `device`.
pub(crate) fn value(input: InputTensor, device: &Device) -> Result<CandleValue> {
    let labels = |labels: &[i64]| {
        let label = |&label: &i64| {
            u32::try_from(label).map_err(|_| RuntimeKind::Candle.error(format!("label {label}")))
        };
        labels.iter().map(label).collect::<Result<Vec<u32>>>()
    };
    Ok(CandleValue::new(match input {
        InputTensor::Floats(array) => to_device(array, DType::F32, device)?,
        InputTensor::Labels(given) => {
            Tensor::from_slice(&labels(given)?, given.len(), device).map_err(ModelError::from)?
        }
    }))
}

impl<N: CandleNetwork> Session for CandleSession<N> {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Candle
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array> {
        let index = output_index(self, output)?;
        let (_, inputs) = order_inputs(RuntimeKind::Candle, &self.inputs, inputs)?;
        let values =
            inputs.into_iter().map(|input| value(input, &self.device)).collect::<Result<Vec<_>>>()?;
        let outputs = N::forward(&self.network, &values)?;
        let value = outputs.into_iter().nth(index);
        let value = value.ok_or_else(|| RuntimeKind::Candle.error("the network returns fewer outputs"))?;
        Ok(to_host(&value.into_inner())?)
    }
}
