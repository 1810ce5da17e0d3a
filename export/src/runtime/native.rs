//! The native runtime: the definition, computed by our own kernels.

use std::{borrow::Cow, ops::Range};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tiny_cats_models::{
    Array, Input, Scope, Weights,
    native::{Params, Value},
};

use super::{
    InputTensor, RuntimeKind, Session,
    batch_split::{MAX_ITEMS_PER_PASS, items, split_batch},
    definition::{check_weights, order_inputs},
    output_index,
};
use crate::{Result, loadable::NativeNetwork};

/// Version of this package, which is also that of the kernels.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A network on the CPU.
///
/// A batch with at least as many items as threads is split: each thread takes some items at a time through the whole network.
/// Threads wait for each other once, not at every operation. That changes no result, since an item's result does not depend on its
/// batch.
pub struct NativeSession<N: NativeNetwork> {
    network: N::Built<Value>,
    inputs: Vec<Input>,
    outputs: Vec<String>,
    /// Pools of one thread each.
    threads: Vec<ThreadPool>,
}

impl<N: NativeNetwork> NativeSession<N> {
    /// Builds a network from `weights`, which must be exactly those of the network.
    pub fn new(network: &N, weights: Weights) -> Result<Self> {
        check_weights(&network.specs()?, &weights)?;
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let threads = (0..rayon::current_num_threads()).map(pool).collect::<std::result::Result<_, _>>();
        Ok(Self {
            network: network.build(&mut Scope::root(&mut Params::new(weights)))?,
            inputs: network.inputs(),
            outputs: network.outputs(),
            threads: threads.map_err(|e| RuntimeKind::Native.error(e))?,
        })
    }
}

/// Returns the values of an input as floating-point numbers, the type of native values.
pub(crate) fn array<'a>(input: &InputTensor<'a>) -> Result<Cow<'a, Array>> {
    Ok(match *input {
        InputTensor::Floats(array) => Cow::Borrowed(array),
        InputTensor::Labels(labels) => {
            Cow::Owned(Array::new([labels.len()], labels.iter().map(|&label| label as f32).collect())?)
        }
    })
}

impl<N: NativeNetwork> Session for NativeSession<N> {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Native
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array> {
        let index = output_index(self, output)?;
        let (n, inputs) = order_inputs(RuntimeKind::Native, &self.inputs, inputs)?;
        let arrays = inputs.iter().map(array).collect::<Result<Vec<_>>>()?;
        let part = |range: Range<usize>| -> Result<Array> {
            let mut values = Vec::with_capacity(arrays.len());
            for array in &arrays {
                let (dims, data) = items(array, range.clone());
                values.push(Value::new(Array::new(dims, data.to_vec())?)?);
            }
            let outputs = N::forward(&self.network, &values)?;
            let value = outputs.into_iter().nth(index);
            Ok(value
                .ok_or_else(|| RuntimeKind::Native.error("the network returns fewer outputs"))?
                .into_array())
        };
        if self.threads.len() < 2 || n < self.threads.len() {
            return part(0..n);
        }
        let mut threads: Vec<&ThreadPool> = self.threads.iter().collect();
        split_batch(&mut threads, n, MAX_ITEMS_PER_PASS, |thread, range| thread.install(|| part(range)))
    }
}
