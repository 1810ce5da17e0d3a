//! The tract runtime, which is built in.

use std::{io::Cursor, sync::Arc};

use tiny_cats_models::Array;
use tract_onnx::prelude::{
    DatumExt, Framework, InferenceFact, InferenceModelExt, IntoRunnable, TValue, TVec, Tensor,
    TractError as Error, TractResult, TypedSimplePlan, tvec,
};

use super::{
    InputTensor, RuntimeKind, Session,
    batch_split::{items, split_batch},
    catch_panics, check_inputs, output_index, threads,
};
use crate::{
    Result,
    onnx::{DataType, OnnxFile, ValueInfo},
};

pub const VERSION: &str = "0.23.9";

const KIND: RuntimeKind = RuntimeKind::Tract;

/// A plan for one item, optimized once. Threads compute a batch item by item.
///
/// tract computes on one thread. A plan with constant sizes is several times as fast as one with a symbolic batch, and as fast for one
/// item as for many. An item's result does not depend on its batch.
pub struct TractSession {
    plan: Arc<TypedSimplePlan>,
    names: Vec<String>,
    outputs: Vec<String>,
}

impl TractSession {
    pub fn load(file: &OnnxFile, optimize: bool) -> Result<Self> {
        let plan = || -> TractResult<_> {
            // The file's shapes have a symbolic batch, which contradicts the batch of one here. tract infers the shapes itself.
            let onnx = tract_onnx::onnx().with_ignore_value_info(true);
            let mut model = onnx.model_for_read(&mut Cursor::new(file.bytes()))?;
            for (i, port) in file.inputs().iter().enumerate() {
                model.set_input_fact(i, one_item(port)?)?;
            }
            if optimize { model.into_optimized()? } else { model.into_typed()? }.into_runnable()
        };
        let plan = plan().map_err(|e| KIND.error(format!("{e:#}")))?;
        let names = |ports: &[ValueInfo]| ports.iter().map(|port| port.name.clone()).collect();
        Ok(Self { plan, names: names(file.inputs()), outputs: names(file.outputs()) })
    }

    /// Computes output number `output` for one item of the batch.
    fn item(&self, inputs: &[(&str, InputTensor)], output: usize, item: usize) -> TractResult<Array> {
        let mut values = tvec![];
        for name in &self.names {
            let input = inputs.iter().find(|(n, _)| n == name).map(|(_, input)| *input);
            let value: TValue = match input {
                Some(InputTensor::Floats(array)) => {
                    let (dims, data) = items(array, item..item + 1);
                    Tensor::from_shape(&dims, data)?.into()
                }
                Some(InputTensor::Labels(labels)) => {
                    Tensor::from_shape(&[1], labels.get(item..item + 1).unwrap_or(&[]))?.into()
                }
                None => return Err(Error::msg(format!("expected an input {name}, found none"))),
            };
            values.push(value);
        }
        let outputs = self.plan.run(values)?;
        let output = outputs.get(output).ok_or_else(|| Error::msg("expected an output, found none"))?;
        let view = output.to_plain_array_view::<f32>()?;
        Array::new(view.shape(), view.iter().copied().collect()).map_err(|e| Error::msg(e.to_string()))
    }
}

/// Returns the input fact of `port` for one item.
fn one_item(port: &ValueInfo) -> TractResult<InferenceFact> {
    let (batch, rest) = port
        .dims
        .split_first()
        .ok_or_else(|| Error::msg(format!("{}: expected a batch, found no axes", port.name)))?;
    let rest: Option<Vec<usize>> = rest.iter().copied().collect();
    let (None | Some(1), Some(rest)) = (batch, rest) else {
        return Err(Error::msg(format!(
            "{}: expected a batch of any size, and all other sizes known",
            port.name
        )));
    };
    let dims: TVec<usize> = std::iter::once(1).chain(rest).collect();
    match port.dtype {
        Some(DataType::Float) => Ok(f32::fact(dims).into()),
        Some(DataType::Int64) => Ok(i64::fact(dims).into()),
        None => Err(Error::msg(format!("{}: expected 32-bit floats or 64-bit integers", port.name))),
    }
}

impl Session for TractSession {
    fn kind(&self) -> RuntimeKind {
        KIND
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array> {
        let output = output_index(self, output)?;
        let batch = check_inputs(KIND, self.names.iter().map(String::as_str), inputs)?;
        let session = &*self;
        split_batch(&mut vec![(); threads().min(batch)], batch, 1, |(), range| {
            catch_panics(KIND, || {
                session.item(inputs, output, range.start).map_err(|e| KIND.error(format!("{e:#}")))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::{Message, encoding::encode_varint};

    use super::*;
    use crate::onnx::{
        OnnxGraph,
        proto::{ModelProto, ValueInfoProto},
    };
    use tiny_cats_models::{Init, Scope, Tensor as _, Weights};

    /// Returns a convolution, without a digest.
    fn convolution() -> ModelProto {
        let kernel = Array::new([2, 1, 3, 3], (0..18).map(|v| v as f32).collect()).unwrap();
        let weights = Weights::from([("kernel".into(), kernel)]);
        let graph = OnnxGraph::new(17).unwrap();
        let kernel =
            Scope::root(&mut graph.source(&weights)).param("kernel", [2, 1, 3, 3], Init::Zeros).unwrap();
        let y = graph.floats("x", &[1, 8, 8]).unwrap().conv2d(&kernel, None, 1, 1).unwrap();
        let bytes = graph.finish(&[("y", &y)], &[]).unwrap();
        let mut model = ModelProto::decode(&bytes[..]).unwrap();
        model.metadata_props.clear();
        model
    }

    #[test]
    fn shapes_of_intermediate_values_in_a_file_are_ignored() {
        let model = convolution();
        let x = Array::new([2, 1, 8, 8], (0..128).map(|v| v as f32).collect()).unwrap();
        let run = |bytes: Vec<u8>| {
            let file = OnnxFile::from_bytes(bytes, "f").unwrap();
            TractSession::load(&file, true).unwrap().run(&[("x", InputTensor::Floats(&x))]).unwrap()
        };
        // With a symbolic batch, as PyTorch writes them.
        let value = model.graph.as_ref().unwrap().node[0].output[0].clone();
        let info = ValueInfoProto::batched(&value, DataType::Float, &[2, 8, 8]);
        let mut graph = model.graph.as_ref().unwrap().encode_to_vec();
        prost::encoding::message::encode(13, &info, &mut graph);
        let mut bytes = ModelProto { graph: None, ..model.clone() }.encode_to_vec();
        bytes.push(7 << 3 | 2);
        encode_varint(graph.len() as u64, &mut bytes);
        bytes.extend(graph);
        assert_eq!(run(bytes), run(model.encode_to_vec()));
    }

    #[test]
    fn panics_of_tract_become_errors() {
        let mut model = convolution();
        let node = &mut model.graph.as_mut().unwrap().node[0];
        node.attribute.iter_mut().find(|a| a.name == "strides").unwrap().ints = vec![0, 0];
        let file = OnnxFile::from_bytes(model.encode_to_vec(), "f").unwrap();
        let error = KIND.load(&file).err().unwrap().to_string();
        assert_eq!(error, "tract: the runtime panicked: attempt to divide by zero");
    }
}
