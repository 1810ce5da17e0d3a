//! The graph that the ONNX backend builds when it evaluates a definition.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use prost::Message;
use tiny_cats_models::{Array, Error as ModelError, ParamSpec, Source, Weights};

use super::{
    builder::GraphBuilder,
    digest::digest,
    proto::{DataType, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto},
    value::{Param, Value},
};
use crate::{DIGEST_KEY, Error, Result, error::WEIGHTS};

/// The default operator set of files: the newest that every verified runtime reads.
pub const DEFAULT_OPSET: u32 = 17;

/// The operator sets in which files can be written. Older ones lack operators that we write; newer ones are not verified.
pub const OPSETS: std::ops::RangeInclusive<u32> = 17..=23;

/// Maximum size of a protobuf message, in bytes.
pub(super) const MAX_BYTES: usize = i32::MAX as usize;

/// A graph into which the ONNX backend writes a definition.
///
/// ```
/// use tiny_cats_export::onnx::{DEFAULT_OPSET, OnnxGraph};
/// use tiny_cats_models::Tensor;
///
/// let graph = OnnxGraph::new(DEFAULT_OPSET)?;
/// let x = graph.floats("x", &[3, 8, 8])?;
/// let bytes = graph.finish(&[("y", &x.relu()?)], &[])?;
/// # assert!(!bytes.is_empty());
/// # Ok::<(), tiny_cats_export::Error>(())
/// ```
#[derive(Debug)]
pub struct OnnxGraph {
    builder: Rc<RefCell<GraphBuilder>>,
}

impl OnnxGraph {
    /// Creates an empty graph in version `opset` of ONNX's operator set.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not among [`OPSETS`].
    pub fn new(opset: u32) -> Result<Self> {
        if !OPSETS.contains(&opset) {
            let (first, last) = (OPSETS.start(), OPSETS.end());
            return Err(Error::request("opset", format!("expected {first} to {last}, found {opset}")));
        }
        Ok(Self { builder: Rc::new(RefCell::new(GraphBuilder::new(opset))) })
    }

    /// Adds an input `[batch, dims..]` of 32-bit floats.
    ///
    /// # Errors
    /// If the name is in use.
    pub fn floats(&self, name: &str, dims: &[usize]) -> Result<Value> {
        self.input(name, DataType::Float, dims)
    }

    /// Adds an input `[batch, dims..]` of 64-bit integers.
    ///
    /// # Errors
    /// If the name is in use.
    pub fn labels(&self, name: &str, dims: &[usize]) -> Result<Value> {
        self.input(name, DataType::Int64, dims)
    }

    fn input(&self, name: &str, dtype: DataType, dims: &[usize]) -> Result<Value> {
        let mut builder = self.builder.borrow_mut();
        if builder.names.insert(name.to_owned(), 0).is_some() {
            return Err(Error::request("input", format!("expected a unique name, found {name} twice")));
        }
        builder.inputs.push(ValueInfoProto::batched(name, dtype, dims));
        Ok(Value::new(self.builder.clone(), name.into(), dims.into(), dtype, "".into()))
    }

    /// Returns a source that adds `weights` as initializers of this graph, under their own names.
    pub fn source<'a>(&self, weights: &'a Weights) -> OnnxSource<'a> {
        OnnxSource {
            builder: self.builder.clone(),
            weights,
            f16_names: BTreeSet::new(),
            used: BTreeSet::new(),
        }
    }

    /// Returns the bytes of the file, equal for equal definitions, weights and metadata. `outputs` names the graph's outputs.
    /// `metadata` becomes `metadata_props`, together with the file's digest under [`DIGEST_KEY`].
    ///
    /// # Errors
    /// If an output's name is in use, or the file would exceed protobuf's 2 GiB.
    pub fn finish(self, outputs: &[(&str, &Value)], metadata: &[(&str, String)]) -> Result<Vec<u8>> {
        let mut builder = self.builder.borrow_mut();
        let mut infos = Vec::with_capacity(outputs.len());
        for &(name, value) in outputs {
            if builder.names.insert(name.to_owned(), 0).is_some() {
                return Err(Error::request("output", format!("expected a unique name, found {name} twice")));
            }
            // A separate node is needed, because an output may also be an input, or one value under two names.
            let identity = builder.node("", "Identity", &[&value.name], Vec::new());
            builder.rename(&identity, name);
            infos.push(ValueInfoProto::batched(name, value.dtype, &value.dims));
        }
        let ir_version = match builder.opset {
            ..=18 => 8,
            19 | 20 => 9,
            21 | 22 => 10,
            _ => 11,
        };
        let mut model = ModelProto {
            ir_version,
            producer_name: "tiny-cats".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: builder.opset.into() }],
            metadata_props: metadata
                .iter()
                .map(|(key, value)| StringStringEntryProto { key: (*key).into(), value: value.clone() })
                .collect(),
            graph: Some(GraphProto {
                name: "tiny-cats".into(),
                node: std::mem::take(&mut builder.nodes),
                initializer: std::mem::take(&mut builder.initializers),
                input: std::mem::take(&mut builder.inputs),
                output: infos,
            }),
        };
        let digest = StringStringEntryProto { key: DIGEST_KEY.into(), value: digest(&model) };
        // The digest is written before the graph, although its field has a higher number: a truncated file keeps its digest.
        let head = ModelProto {
            ir_version: std::mem::take(&mut model.ir_version),
            metadata_props: std::iter::once(digest)
                .chain(std::mem::take(&mut model.metadata_props))
                .collect(),
            ..Default::default()
        };
        match head.encoded_len() + model.encoded_len() {
            n if n > MAX_BYTES => {
                Err(Error::file("ONNX", "size", format!("expected at most {MAX_BYTES} bytes, found {n}")))
            }
            n => {
                let mut bytes = Vec::with_capacity(n);
                // Encoding cannot fail, because the buffer has sufficient capacity.
                let _ = head.encode(&mut bytes).and_then(|()| model.encode(&mut bytes));
                Ok(bytes)
            }
        }
    }
}

/// The [`Source`] of weights as initializers of a graph.
#[derive(Debug)]
pub struct OnnxSource<'a> {
    builder: Rc<RefCell<GraphBuilder>>,
    weights: &'a Weights,
    f16_names: BTreeSet<String>,
    used: BTreeSet<String>,
}

impl OnnxSource<'_> {
    /// Stores the weights `f16_names` in half precision. [`round_to_f16`](super::round_to_f16) must have rounded them.
    pub(crate) fn with_f16_weights(self, f16_names: BTreeSet<String>) -> Self {
        Self { f16_names, ..self }
    }

    /// Checks that the definition used every weight.
    ///
    /// # Errors
    /// [`Error::File`] with the name of an unused weight: such weights belong to another network.
    pub fn finish(self) -> Result<()> {
        match self.weights.keys().find(|name| !self.used.contains(*name)) {
            Some(name) => Err(Error::file(WEIGHTS, name, "the network has no parameter of this name")),
            None => Ok(()),
        }
    }
}

impl Source<Value> for OnnxSource<'_> {
    fn param(&mut self, spec: ParamSpec) -> Result<Param, ModelError> {
        let array = match self.weights.get(&spec.name) {
            Some(array) => array,
            None => return Err(ModelError::MissingParameter { name: spec.name }),
        };
        if array.dims() != spec.dims {
            let found = array.dims().to_vec();
            return Err(ModelError::ParameterShape { name: spec.name, expected: spec.dims, found });
        }
        let is_f16 = self.f16_names.contains(&spec.name);
        self.builder.borrow_mut().parameter(&spec.name, array, is_f16)?;
        let param = Param { name: spec.name.as_str().into(), dims: spec.dims };
        self.used.insert(spec.name);
        Ok(param)
    }

    fn constant(&mut self, name: &str, value: Array) -> Result<Param, ModelError> {
        self.builder.borrow_mut().parameter(name, &value, false)?;
        Ok(Param { name: name.into(), dims: value.dims().into() })
    }
}
