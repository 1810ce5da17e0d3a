//! Networks of any kind, behind one interface, and their configurations in files.

use std::{any::Any, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
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
    Error, Result,
    onnx::{OnnxGraph, OnnxSource, Value},
    registry,
    runtime::Session,
};

/// A network that the native runtime can run on several threads. Every [`Network`] whose layers consist of parameters and plain data is one.
#[cfg(feature = "native")]
pub trait NativeNetwork: Network<Built<tiny_cats_models::native::Value>: Send + Sync> {}
#[cfg(feature = "native")]
impl<N: Network<Built<tiny_cats_models::native::Value>: Send + Sync>> NativeNetwork for N {}
/// A network that the native runtime can run on several threads; this build lacks the runtime.
#[cfg(not(feature = "native"))]
pub trait NativeNetwork: Network {}
#[cfg(not(feature = "native"))]
impl<N: Network> NativeNetwork for N {}

/// A network that the candle runtime can run on another thread. Every [`Network`] whose layers consist of parameters and plain data is one.
#[cfg(feature = "candle")]
pub trait CandleNetwork: Network<Built<tiny_cats_models::candle::CandleValue>: Send> {}
#[cfg(feature = "candle")]
impl<N: Network<Built<tiny_cats_models::candle::CandleValue>: Send>> CandleNetwork for N {}
/// A network that the candle runtime can run on another thread; this build lacks the runtime.
#[cfg(not(feature = "candle"))]
pub trait CandleNetwork: Network {}
#[cfg(not(feature = "candle"))]
impl<N: Network> CandleNetwork for N {}

/// A network that all runtimes of this build can load. Every [`Network`] whose layers consist of parameters and plain data is one.
pub trait LoadableNetwork: NativeNetwork + CandleNetwork {}
impl<N: NativeNetwork + CandleNetwork> LoadableNetwork for N {}

mod sealed {
    pub trait Sealed {}
    impl<N: super::LoadableNetwork> Sealed for N {}
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
    fn for_inference(&self, weights: &Weights) -> Result<(NetworkConfig, Weights)>;

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

    fn for_inference(&self, weights: &Weights) -> Result<(NetworkConfig, Weights)> {
        let (network, weights) = Network::for_inference(self, weights)?;
        Ok((NetworkConfig::new(network)?, weights))
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

/// The configuration of a network of any kind, as files store it: its kind, and its fields. It is enough to build the definition again
/// if the kind is [registered](crate::register). Otherwise a program can run exported graphs of the network, and cannot verify them.
#[derive(Clone)]
pub struct NetworkConfig {
    kind: String,
    fields: Vec<(String, Json)>,
    network: Option<Arc<dyn DynNetwork>>,
}

/// The key of a network's kind.
const KIND: &str = "kind";

impl NetworkConfig {
    /// Returns the configuration of `network`. Its kind need not be registered.
    ///
    /// # Errors
    /// If the configuration does not serialize as a struct or map with string keys, or has a field called `kind`.
    pub fn new<N: LoadableNetwork>(network: N) -> Result<Self> {
        Self::from_dyn(Arc::new(network))
    }

    pub(crate) fn from_dyn(network: Arc<dyn DynNetwork>) -> Result<Self> {
        let fields = network.fields()?;
        if fields.iter().any(|(name, _)| name == KIND) {
            return Err(Error::file(network.kind(), "config", "expected no field called kind"));
        }
        Ok(Self { kind: network.kind().into(), fields, network: Some(network) })
    }

    /// Returns the kind of the network.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns the network.
    ///
    /// # Errors
    /// [`Error::UnknownKind`] if its kind is not registered.
    pub fn network(&self) -> Result<&dyn DynNetwork> {
        self.network.as_deref().ok_or_else(|| Error::UnknownKind { kind: self.kind.clone() })
    }

    /// True if the kind is registered, so that the definition is known.
    pub fn is_known(&self) -> bool {
        self.network.is_some()
    }

    /// Returns the network as an `N`, if that is its type.
    pub fn downcast<N: Network>(&self) -> Option<&N> {
        self.network.as_deref()?.as_any().downcast_ref()
    }

    /// Returns the role of the network; [`Role::Other`] if its kind is not registered.
    pub fn role(&self) -> Role {
        self.network.as_deref().map_or(Role::Other, DynNetwork::role)
    }

    /// Returns the parameters of the network.
    ///
    /// # Errors
    /// As [`network`](Self::network), and if the configuration is invalid.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        self.network()?.specs()
    }

    /// Reads a configuration. A registered network is built from the fields, and is not validated yet.
    fn from_json(json: Json) -> Result<Self, String> {
        let Json::Object(mut fields) = json else {
            return Err(format!("expected a map, found {}", crate::excerpt(&json.to_string())));
        };
        let kind = match fields.remove(KIND) {
            Some(Json::String(kind)) => kind,
            Some(other) => {
                return Err(format!("kind: expected a name, found {}", crate::excerpt(&other.to_string())));
            }
            None => return Err("missing field `kind`".into()),
        };
        match registry::parse(&kind, &fields) {
            Some(network) => Self::from_dyn(network?).map_err(|e| e.to_string()),
            None => Ok(Self { kind, fields: fields.into_iter().collect(), network: None }),
        }
    }
}

impl PartialEq for NetworkConfig {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |config: &Self| {
            let mut fields = config.fields.clone();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields
        };
        self.kind == other.kind && sorted(self) == sorted(other)
    }
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct(&self.kind);
        for (name, value) in &self.fields {
            out.field(name, value);
        }
        out.finish()
    }
}

impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.network {
            Some(network) => f.write_str(&network.describe()),
            None => write!(f, "a network of the unknown kind {}", crate::excerpt(&self.kind)),
        }
    }
}

impl Serialize for NetworkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.fields.len()))?;
        map.serialize_entry(KIND, &self.kind)?;
        self.fields.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for NetworkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
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
