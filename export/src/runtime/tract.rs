//! tract: the embedded runtime.

use std::{io::Cursor, sync::Arc, thread};

use tiny_cats_models::Array;
use tract_onnx::prelude::{
    Framework, InferenceModelExt, IntoRunnable, TValue, Tensor, TractError as Error, TractResult,
    TypedSimplePlan, tvec,
};

use super::{Input, RuntimeKind, Session, check_inputs, guarded, threads};
use crate::{Result, onnx::OnnxFile};

pub const VERSION: &str = "0.23.9";

const KIND: RuntimeKind = RuntimeKind::Tract;

/// A plan optimised once, with a symbolic batch. tract computes on one thread, so a batch is shared out among all of them.
pub struct TractSession {
    plan: Arc<TypedSimplePlan>,
    names: Vec<String>,
}

impl TractSession {
    pub fn load(file: &OnnxFile) -> Result<Self> {
        let plan = || -> TractResult<_> {
            let model = tract_onnx::onnx().model_for_read(&mut Cursor::new(file.bytes()))?;
            model.into_optimized()?.into_runnable()
        };
        let plan = plan().map_err(|e| KIND.error(format!("{e:#}")))?;
        let model = plan.model();
        let names = model.inputs.iter().map(|o| model.node(o.node).name.clone()).collect();
        Ok(Self { plan, names })
    }

    /// Items `from..to` of the batch.
    fn part(&self, inputs: &[(&str, Input)], from: usize, to: usize) -> TractResult<(Vec<usize>, Vec<f32>)> {
        let tensor = |name: &String| -> TractResult<TValue> {
            let input = inputs.iter().find(|(n, _)| n == name).map(|(_, input)| *input);
            Ok(match input {
                Some(Input::Floats(array)) => {
                    let item: usize = array.dims().iter().skip(1).product();
                    let mut dims = array.dims().to_vec();
                    if let Some(batch) = dims.first_mut() {
                        *batch = to - from;
                    }
                    let values = array.data().get(from * item..to * item).unwrap_or(&[]);
                    Tensor::from_shape(&dims, values)?.into()
                }
                Some(Input::Labels(labels)) => {
                    Tensor::from_shape(&[to - from], labels.get(from..to).unwrap_or(&[]))?.into()
                }
                None => return Err(Error::msg(format!("{name} is not given"))),
            })
        };
        let mut values = tvec![];
        for name in &self.names {
            values.push(tensor(name)?);
        }
        let outputs = self.plan.run(values)?;
        let output = outputs.first().ok_or_else(|| Error::msg("the graph returns nothing"))?;
        let view = output.to_plain_array_view::<f32>()?;
        Ok((view.shape().to_vec(), view.iter().copied().collect()))
    }
}

impl Session for TractSession {
    fn kind(&self) -> RuntimeKind {
        KIND
    }

    fn run(&mut self, inputs: &[(&str, Input)]) -> Result<Array> {
        let batch = check_inputs(KIND, self.names.iter().map(String::as_str), inputs)?;
        let parts = threads().min(batch);
        let place = |i: usize| i * batch / parts;
        let session = &*self;
        let results: Vec<TractResult<_>> = guarded(KIND, || {
            if parts == 1 {
                return Ok(vec![session.part(inputs, 0, batch)]);
            }
            thread::scope(|scope| {
                let part = |i| scope.spawn(move || session.part(inputs, place(i), place(i + 1)));
                let handles: Vec<_> = (0..parts).map(part).collect();
                let join = |handle: thread::ScopedJoinHandle<'_, _>| {
                    handle.join().map_err(|_| KIND.error("it panicked"))
                };
                handles.into_iter().map(join).collect()
            })
        })?;
        let (mut dims, mut data) = (Vec::new(), Vec::new());
        for result in results {
            let (part, values) = result.map_err(|e| KIND.error(format!("{e:#}")))?;
            dims = part;
            data.extend(values);
        }
        if let Some(first) = dims.first_mut() {
            *first = batch;
        }
        Ok(Array::new(dims, data)?)
    }
}
