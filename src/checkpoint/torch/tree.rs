//! Converts the nodes of a pickle's machine to a tree of values.

use super::{
    globals::{Global, full_name},
    node::{Id, MAX_VALUES, Node, Nodes, Object, ParseResult},
    value::Value,
};

const MAX_TEXT: usize = 64 << 20;
const MAX_DEPTH: usize = 64;
/// The largest number of values that are kept for all objects of unknown classes together.
const MAX_ATTRIBUTES: usize = 1 << 16;
const MAX_ATTRIBUTE_TEXT: usize = 1 << 20;

/// Copies the nodes into a tree. Shared nodes are copied for each reference, and cycles would not end: hence the limits.
pub(super) struct TreeBuilder<'n, 'a> {
    nodes: &'n Nodes<'a>,
    budget: Limits,
    object_budget: Limits,
}

struct Limits {
    values: usize,
    text: usize,
}

/// The position of a value in the tree.
#[derive(Clone, Copy)]
struct Position {
    depth: usize,
    /// True among an object's attributes. An object there has no attributes of its own, because objects often refer to each other in
    /// cycles.
    in_object: bool,
}

impl<'n, 'a> TreeBuilder<'n, 'a> {
    pub(super) fn new(nodes: &'n Nodes<'a>) -> Self {
        let budget = Limits { values: MAX_VALUES, text: MAX_TEXT };
        let object_budget = Limits { values: MAX_ATTRIBUTES, text: MAX_ATTRIBUTE_TEXT };
        Self { nodes, budget, object_budget }
    }

    pub(super) fn value(&mut self, root: Id) -> ParseResult<Value> {
        self.copy(root, Position { depth: 0, in_object: false })
    }

    fn limits(&mut self, position: Position) -> &mut Limits {
        if position.in_object { &mut self.object_budget } else { &mut self.budget }
    }

    fn text(&mut self, text: &str, position: Position) -> ParseResult<String> {
        let budget = &mut self.limits(position).text;
        *budget =
            budget.checked_sub(text.len()).ok_or_else(|| format!("more than {MAX_TEXT} bytes of text"))?;
        Ok(text.to_owned())
    }

    fn copy(&mut self, id: Id, position: Position) -> ParseResult<Value> {
        let budget = &mut self.limits(position).values;
        if position.depth > MAX_DEPTH || *budget == 0 {
            return Err(format!("nested more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values"));
        }
        *budget -= 1;
        let node = self.nodes.node(id)?;
        let inner = Position { depth: position.depth + 1, ..position };
        Ok(match node {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::Float(x) => Value::Float(*x),
            Node::Str(s) => Value::Str(self.text(s, position)?),
            Node::Device(kind, index) => {
                let index = index.map(|i| format!(":{i}")).unwrap_or_default();
                Value::Str(self.text(kind, position)? + &index)
            }
            Node::List(items) => Value::List(self.list(items, inner)?),
            Node::Tuple(items) => Value::Tuple(self.list(items, inner)?),
            Node::Dict(items) => Value::Dict(self.pairs(items, inner)?),
            Node::Name { module, name, known: Some(Global::Dtype(_)) } => {
                Value::Str(self.text(&full_name(module, name), position)?)
            }
            Node::Tensor(tensor) => Value::Tensor((**tensor).clone()),
            Node::Unsupported(tensor) => {
                let (kind, dims) = &**tensor;
                Value::Unsupported { kind: self.text(kind, position)?, dims: dims.clone() }
            }
            Node::Object(object) => {
                let attributes = if position.in_object {
                    Vec::new()
                } else {
                    // Objects beyond the limits are skipped; smaller ones may be a configuration.
                    self.attributes(object, Position { in_object: true, ..inner }).unwrap_or_default()
                };
                Value::Object { class: self.class(object.class, position)?, attributes }
            }
            Node::Name { .. } => Value::Object { class: self.class(id, position)?, attributes: Vec::new() },
            Node::Storage { .. } | Node::NumpyType { .. } | Node::Bytes(_) | Node::Opaque(_) => {
                Value::Object { class: self.text(node.kind(), position)?, attributes: Vec::new() }
            }
        })
    }

    fn list(&mut self, items: &[Id], position: Position) -> ParseResult<Vec<Value>> {
        items.iter().map(|&id| self.copy(id, position)).collect()
    }

    fn pairs(&mut self, items: &[(Id, Id)], position: Position) -> ParseResult<Vec<(Value, Value)>> {
        items.iter().map(|&(k, v)| Ok((self.copy(k, position)?, self.copy(v, position)?))).collect()
    }

    fn class(&mut self, id: Id, position: Position) -> ParseResult<String> {
        match self.nodes.node(id) {
            Ok(Node::Name { module, name, .. }) => self.text(&full_name(module, name), position),
            _ => Err("a class without a name".into()),
        }
    }

    /// The items of a kind of dictionary, else the attributes: a dictionary, or for classes with `__slots__` a pair of them.
    fn attributes(&mut self, object: &Object, position: Position) -> ParseResult<Vec<(Value, Value)>> {
        if !object.items.is_empty() {
            return self.pairs(&object.items, position);
        }
        let nodes = self.nodes;
        let dictionary = |id: &Id| match nodes.node(*id) {
            Ok(Node::Dict(items)) => Some(items),
            _ => None,
        };
        let items = match object.state.map(|id| (dictionary(&id), nodes.node(id))) {
            Some((Some(items), _)) => Some(items),
            Some((None, Ok(Node::Tuple(both)))) => both.iter().take(2).find_map(dictionary),
            _ => None,
        };
        items.map_or(Ok(Vec::new()), |items| self.pairs(items, position))
    }
}
