//! The candle-onnx runtime: candle's interpreter of ONNX, for verification.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::ModelProto;
use prost::Message;
use tiny_cats_models::Array;

use super::{InputTensor, RuntimeKind, Session, check_inputs, output_index, panic_error};
use crate::{Result, guard::catch_in_pool, onnx::OnnxFile};

const KIND: RuntimeKind = RuntimeKind::CandleOnnx;

/// A graph that candle interprets node by node.
pub struct CandleOnnxSession {
    model: ModelProto,
    names: Vec<String>,
    outputs: Vec<String>,
}

impl CandleOnnxSession {
    pub fn load(file: &OnnxFile) -> Result<Self> {
        if file.opset() > KIND.max_opset() {
            return Err(KIND.error(format!(
                "expected an operator set up to {}, found {}",
                KIND.max_opset(),
                file.opset()
            )));
        }
        let model = ModelProto::decode(file.bytes()).map_err(|e| KIND.error(e))?;
        let names = file.inputs().iter().map(|port| port.name.clone()).collect();
        let outputs = file.outputs().iter().map(|port| port.name.clone()).collect();
        Ok(Self { model, names, outputs })
    }
}

impl Session for CandleOnnxSession {
    fn kind(&self) -> RuntimeKind {
        KIND
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array> {
        output_index(self, output)?;
        check_inputs(KIND, self.names.iter().map(String::as_str), inputs)?;
        let run = || -> candle_core::Result<(Vec<usize>, Vec<f32>)> {
            let mut values = HashMap::new();
            for &(name, input) in inputs {
                let value = match input {
                    InputTensor::Floats(array) => {
                        Tensor::from_slice(array.data(), array.dims(), &Device::Cpu)?
                    }
                    InputTensor::Labels(labels) => Tensor::from_slice(labels, labels.len(), &Device::Cpu)?,
                };
                values.insert(name.to_owned(), value);
            }
            let outputs = candle_onnx::simple_eval(&self.model, values)?;
            let missing = || candle_core::Error::Msg(format!("expected an output {output}, found none"));
            let output = outputs.get(output).ok_or_else(missing)?;
            Ok((output.dims().to_vec(), output.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
        };
        // candle computes on rayon's threads, so their panics must be caught too.
        let result = catch_in_pool(|| run().map_err(|e| KIND.error(e)));
        let (dims, data) = result.unwrap_or_else(|message| Err(panic_error(KIND, &message)))?;
        Ok(Array::new(dims, data)?)
    }
}
