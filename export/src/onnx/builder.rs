//! The nodes and initializers of a graph while it is written.

use std::{collections::HashMap, rc::Rc};

use tiny_cats_models::{Array, Error as ModelError};

use super::proto::{AttributeProto, DataType, NodeProto, TensorProto, ValueInfoProto};

/// The nodes and initializers written so far; all values of a graph share it.
#[derive(Debug)]
pub(super) struct GraphBuilder {
    pub opset: u32,
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    constants: HashMap<(DataType, Vec<usize>, Vec<u8>), Rc<str>>,
    pub names: HashMap<String, usize>,
    pub inputs: Vec<ValueInfoProto>,
}

impl GraphBuilder {
    /// Creates an empty graph.
    pub fn new(opset: u32) -> Self {
        Self {
            opset,
            nodes: Vec::new(),
            initializers: Vec::new(),
            constants: HashMap::new(),
            names: HashMap::new(),
            inputs: Vec::new(),
        }
    }

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
    pub fn parameter(&mut self, name: &str, array: &Array, is_f16: bool) -> Result<(), ModelError> {
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
        Ok(())
    }

    /// Renames a value in all nodes.
    pub fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| *n == from) {
                to.clone_into(name);
            }
        }
    }
}
