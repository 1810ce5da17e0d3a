//! The graph that the ONNX backend builds when it evaluates a definition.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use prost::Message;
use tiny_cats_models::{Array, Error as ModelError, ParamSpec, Source, Weights};

use super::{
    digest::digest,
    proto::{
        AttributeProto, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        StringStringEntryProto, TensorProto, ValueInfoProto,
    },
    value::{Param, Value},
};
use crate::{DIGEST_KEY, Error, Result, error::WEIGHTS};

/// The default operator set of files: the newest that every verified runtime reads.
pub const DEFAULT_OPSET: u32 = 17;

/// The operator sets in which files can be written. Older ones lack operators that we write; newer ones are not verified.
pub const OPSETS: std::ops::RangeInclusive<u32> = 17..=23;

/// Maximum size of a protobuf message, in bytes.
pub(super) const MAX_BYTES: usize = i32::MAX as usize;

/// The nodes and initializers written so far; all values of a graph share it.
#[derive(Debug)]
pub(super) struct GraphBuilder {
    pub opset: u32,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    constants: HashMap<(DataType, Vec<usize>, Vec<u8>), Rc<str>>,
    names: HashMap<String, usize>,
    inputs: Vec<ValueInfoProto>,
}

impl GraphBuilder {
    /// Returns `base`, with a number appended if it is in use.
    fn unique_name(&mut self, base: &str) -> Rc<str> {
        let mut name = base.to_owned();
        while let Some(n) = self.names.get_mut(&name) {
            *n += 1;
            name = format!("{base}_{n}");
        }
        self.names.insert(name.clone(), 0);
        name.into()
    }

    /// Appends a node with one output, both named after `module` and `op`.
    pub fn node(
        &mut self,
        module: &str,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> Rc<str> {
        let base = if module.is_empty() { op.to_owned() } else { format!("{module}/{op}") };
        let name = self.unique_name(&base);
        self.push(&name, op, inputs, &name, attribute);
        name
    }

    fn push(&mut self, name: &str, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: name.to_owned(),
            op_type: op.into(),
            attribute,
            domain: String::new(),
        });
    }

    fn constant(&mut self, dtype: DataType, tensor: TensorProto) -> Rc<str> {
        let dims = tensor.dims.iter().map(|&d| d as usize).collect();
        let key = (dtype, dims, tensor.raw_data.clone());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.unique_name("constant");
        self.initializers.push(TensorProto { name: name.to_string(), ..tensor });
        self.constants.insert(key, name.clone());
        name
    }

    /// Returns a constant of integers, such as a shape; equal constants are written once.
    pub fn ints(&mut self, values: &[i64]) -> Rc<str> {
        self.constant(DataType::Int64, TensorProto::ints("", values))
    }

    /// Returns a constant number; equal constants are written once.
    pub fn scalar(&mut self, value: f64) -> Rc<str> {
        self.constant(DataType::Float, TensorProto::floats("", &[], &[value as f32]))
    }

    /// Returns a constant array of numbers; equal constants are written once.
    pub fn floats(&mut self, dims: &[usize], values: &[f32]) -> Rc<str> {
        self.constant(DataType::Float, TensorProto::floats("", dims, values))
    }

    /// Adds an initializer. If `is_f16`, it is stored in half precision, and a cast to f32 has the output `name`.
    fn parameter(&mut self, name: &str, array: &Array, is_f16: bool) -> Result<Param, ModelError> {
        if self.names.contains_key(name) {
            let (expected, found) = ("a unique name".into(), name.into());
            return Err(ModelError::Shape { op: "parameter", expected, found });
        }
        self.names.insert(name.to_owned(), 0);
        if is_f16 {
            let stored = self.unique_name(&format!("{name}/halves"));
            self.initializers.push(TensorProto::f16(&stored, array.dims(), array.data()));
            let to = vec![AttributeProto::int("to", DataType::Float as i64)];
            self.push(&format!("{name}/Cast"), "Cast", &[&stored], name, to);
        } else {
            self.initializers.push(TensorProto::floats(name, array.dims(), array.data()));
        }
        Ok(Param { name: name.into(), dims: array.dims().into() })
    }

    fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| *n == from) {
                to.clone_into(name);
            }
        }
    }
}

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
        let builder = GraphBuilder {
            opset,
            nodes: Vec::new(),
            initializers: Vec::new(),
            constants: HashMap::new(),
            names: HashMap::new(),
            inputs: Vec::new(),
        };
        Ok(Self { builder: Rc::new(RefCell::new(builder)) })
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
        let param = self.builder.borrow_mut().parameter(&spec.name, array, is_f16)?;
        self.used.insert(spec.name);
        Ok(param)
    }

    fn constant(&mut self, name: &str, value: Array) -> Result<Param, ModelError> {
        self.builder.borrow_mut().parameter(name, &value, false)
    }
}
