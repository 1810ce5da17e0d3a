//! Networks of any kind, behind one interface.

use std::{any::Any, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, de};
use serde_json::Value as Json;
#[cfg(feature = "candle")]
use tiny_cats_models::{
    Array, Source, Tensor,
    trace::{Trace, TraceSource, TracedOp},
};
use tiny_cats_models::{
    Input, Network, ParamSpec, Role, Scope, Sizes, TapeOptions, Weights, cost::CostSummary,
};

#[cfg(feature = "candle")]
use crate::runtime::InputTensor;
use crate::{
    Error, LoadableNetwork, Result,
    onnx::{OnnxGraph, OnnxSource, Value},
    runtime::Session,
};

mod sealed {
    pub trait Sealed {}
    impl<N: crate::LoadableNetwork> Sealed for N {}
}

/// The object-safe interface of a [`Network`], whose documentation describes the methods of the same names. It is implemented for every
/// network, and only for networks.
pub trait DynNetwork: sealed::Sealed + fmt::Debug + Send + Sync {
    /// Returns [`Network::KIND`].
    fn kind(&self) -> &'static str;

    /// Returns the fields of the configuration, in the order of their definition.
    ///
    /// # Errors
    /// If the configuration does not serialize as a struct or map with string keys.
    fn fields(&self) -> Result<Vec<(String, Json)>>;

    /// Returns [`Network::inputs`].
    fn inputs(&self) -> Vec<Input>;

    /// Returns [`Network::outputs`].
    fn outputs(&self) -> Vec<String>;

    /// Returns [`Network::role`].
    fn role(&self) -> Role;

    /// Returns [`Network::describe`].
    fn describe(&self) -> String;

    /// Returns [`Network::details`].
    fn details(&self) -> Vec<String>;

    /// Returns [`Network::is_untrained`].
    fn is_untrained(&self, weights: &Weights) -> bool;

    /// Checks the configuration: [`Network::validate`].
    ///
    /// # Errors
    /// If the configuration is invalid.
    fn validate(&self) -> Result<()>;

    /// Returns [`Network::specs`].
    ///
    /// # Errors
    /// If the configuration is invalid.
    fn specs(&self) -> Result<Vec<ParamSpec>>;

    /// Returns [`Network::cost`].
    ///
    /// # Errors
    /// If the configuration is invalid, or the sizes do not fit.
    fn cost(&self, sizes: &Sizes) -> Result<CostSummary>;

    /// Returns [`Network::training_bytes`].
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    fn training_bytes(&self, sizes: &Sizes, batch: usize, options: TapeOptions) -> Result<u64>;

    /// Returns [`Network::for_inference`].
    ///
    /// # Errors
    /// If weights are missing or have another shape.
    fn for_inference(&self, weights: &Weights) -> Result<(Arc<dyn DynNetwork>, Weights)>;

    /// Writes the network with its inputs into `graph`, and returns the names and values of the outputs. The first is the main output.
    ///
    /// # Errors
    /// If `sizes` lacks a free axis, the weights do not fit, or the operator set lacks an operation.
    fn write_graph(
        &self,
        graph: &OnnxGraph,
        source: &mut OnnxSource,
        sizes: &Sizes,
    ) -> Result<Vec<(String, Value)>>;

    /// Loads the network into the native runtime. `weights` must be exactly those of the network.
    ///
    /// # Errors
    /// If the weights do not fit, or this build lacks the runtime.
    fn load_native(&self, weights: Weights) -> Result<Box<dyn Session>>;

    /// Loads the network into the candle runtime. `weights` must be exactly those of the network.
    ///
    /// # Errors
    /// If the weights do not fit, or this build lacks the runtime.
    fn load_candle(&self, weights: &Weights) -> Result<Box<dyn Session>>;

    /// Loads the network into the candle runtime on `device`: see [`load_candle`](Self::load_candle).
    ///
    /// # Errors
    /// If the weights do not fit.
    #[cfg(feature = "candle")]
    fn load_candle_on(&self, weights: &Weights, device: &candle_core::Device) -> Result<Box<dyn Session>>;

    /// Computes the results of all operations with candle, for inputs in the order of [`inputs`](Self::inputs).
    ///
    /// # Errors
    /// If the weights or inputs do not fit.
    #[cfg(feature = "candle")]
    fn trace_candle(&self, weights: &Weights, inputs: &[InputTensor]) -> Result<Vec<TracedOp<Array>>>;

    /// Computes the results of all operations with the native kernels, as [`trace_candle`](Self::trace_candle) does with candle.
    ///
    /// # Errors
    /// If the weights or inputs do not fit.
    #[cfg(feature = "candle")]
    fn trace_native(&self, weights: &Weights, inputs: &[InputTensor]) -> Result<Vec<TracedOp<Array>>>;

    /// Returns the values of a graph that hold the results of all operations.
    ///
    /// # Errors
    /// As [`write_graph`](Self::write_graph).
    #[cfg(feature = "candle")]
    fn trace_graph(&self, weights: &Weights, sizes: &Sizes, opset: u32) -> Result<Vec<TracedOp<Value>>>;

    /// Returns the network for a downcast to its type.
    fn as_any(&self) -> &dyn Any;
}

impl<N: LoadableNetwork> DynNetwork for N {
    fn kind(&self) -> &'static str {
        N::KIND
    }

    fn fields(&self) -> Result<Vec<(String, Json)>> {
        let fields = serde_json::to_string(self).and_then(|text| serde_json::from_str::<Fields>(&text));
        fields.map(|fields| fields.0).map_err(|e| Error::file(N::KIND, "config", e.to_string()))
    }

    fn inputs(&self) -> Vec<Input> {
        Network::inputs(self)
    }

    fn outputs(&self) -> Vec<String> {
        Network::outputs(self)
    }

    fn role(&self) -> Role {
        Network::role(self)
    }

    fn describe(&self) -> String {
        Network::describe(self)
    }

    fn details(&self) -> Vec<String> {
        Network::details(self)
    }

    fn is_untrained(&self, weights: &Weights) -> bool {
        Network::is_untrained(self, weights)
    }

    fn validate(&self) -> Result<()> {
        Ok(Network::validate(self)?)
    }

    fn specs(&self) -> Result<Vec<ParamSpec>> {
        Ok(Network::specs(self)?)
    }

    fn cost(&self, sizes: &Sizes) -> Result<CostSummary> {
        Ok(Network::cost(self, sizes)?)
    }

    fn training_bytes(&self, sizes: &Sizes, batch: usize, options: TapeOptions) -> Result<u64> {
        Ok(Network::training_bytes(self, sizes, batch, options)?)
    }

    fn for_inference(&self, weights: &Weights) -> Result<(Arc<dyn DynNetwork>, Weights)> {
        let (network, weights) = Network::for_inference(self, weights)?;
        Ok((Arc::new(network), weights))
    }

    fn write_graph(
        &self,
        graph: &OnnxGraph,
        source: &mut OnnxSource,
        sizes: &Sizes,
    ) -> Result<Vec<(String, Value)>> {
        Network::validate(self)?;
        let inputs = graph_inputs(&Network::inputs(self), graph, sizes)?;
        let network = self.build(&mut Scope::root(source))?;
        let outputs = N::forward(&network, &inputs)?;
        Ok(Network::outputs(self).into_iter().zip(outputs).collect())
    }

    fn load_native(&self, weights: Weights) -> Result<Box<dyn Session>> {
        #[cfg(feature = "native")]
        return Ok(Box::new(crate::runtime::native::NativeSession::new(self, weights)?));
        #[cfg(not(feature = "native"))]
        {
            let _ = weights;
            Err(crate::runtime::RuntimeKind::Native.unavailable_error())
        }
    }

    fn load_candle(&self, weights: &Weights) -> Result<Box<dyn Session>> {
        #[cfg(feature = "candle")]
        return self.load_candle_on(weights, &tiny_cats_models::candle::best_device());
        #[cfg(not(feature = "candle"))]
        {
            let _ = weights;
            Err(crate::runtime::RuntimeKind::Candle.unavailable_error())
        }
    }

    #[cfg(feature = "candle")]
    fn load_candle_on(&self, weights: &Weights, device: &candle_core::Device) -> Result<Box<dyn Session>> {
        Ok(Box::new(crate::runtime::candle::CandleSession::new(self, weights, device)?))
    }

    #[cfg(feature = "candle")]
    fn trace_candle(&self, weights: &Weights, inputs: &[InputTensor]) -> Result<Vec<TracedOp<Array>>> {
        use tiny_cats_models::candle::{CandleValue, Params, best_device, to_host};
        let device = best_device();
        let mut params = Params::new(weights, candle_core::DType::F32, &device)?;
        let values = inputs.iter().map(|input| crate::runtime::candle::value(*input, &device));
        let ops = trace::<N, CandleValue>(self, &mut params, values.collect::<Result<Vec<_>>>()?)?;
        ops.into_iter().map(|op| op.try_map(|value| Ok(to_host(&value.into_inner())?))).collect()
    }

    #[cfg(feature = "candle")]
    fn trace_native(&self, weights: &Weights, inputs: &[InputTensor]) -> Result<Vec<TracedOp<Array>>> {
        use tiny_cats_models::native::{self, Params};
        let value = |input| Ok(native::Value::new(crate::runtime::native::array(input)?.into_owned())?);
        let values = inputs.iter().map(value).collect::<Result<Vec<_>>>()?;
        let ops = trace::<N, native::Value>(self, &mut Params::new(weights.clone()), values)?;
        ops.into_iter().map(|op| op.try_map(|value| Ok(value.into_array()))).collect()
    }

    #[cfg(feature = "candle")]
    fn trace_graph(&self, weights: &Weights, sizes: &Sizes, opset: u32) -> Result<Vec<TracedOp<Value>>> {
        let graph = OnnxGraph::new(opset)?;
        let inputs = graph_inputs(&Network::inputs(self), &graph, sizes)?;
        trace::<N, Value>(self, &mut graph.source(weights), inputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Adds the inputs of a network to `graph`.
fn graph_inputs(inputs: &[Input], graph: &OnnxGraph, sizes: &Sizes) -> Result<Vec<Value>> {
    let value = |input: &Input| {
        let dims = input.dims(sizes)?;
        if input.is_labels() { graph.labels(&input.name, &dims) } else { graph.floats(&input.name, &dims) }
    };
    inputs.iter().map(value).collect()
}

/// Computes a forward pass in a backend, and returns the results of all operations.
#[cfg(feature = "candle")]
fn trace<N: Network, T: Tensor>(
    network: &N,
    source: &mut dyn Source<T>,
    inputs: Vec<T>,
) -> Result<Vec<TracedOp<T>>> {
    let trace = Trace::default();
    let built = network.build(&mut Scope::root(&mut TraceSource::new(source)))?;
    let inputs: Vec<_> = inputs.into_iter().map(|input| trace.value(input)).collect();
    N::forward(&built, &inputs)?;
    Ok(trace.take())
}

/// The entries of a map, in their order.
struct Fields(Vec<(String, Json)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a configuration that is a struct or a map")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
