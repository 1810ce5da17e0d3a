//! Converts the nodes of a pickle's machine to a tree of values.

use super::{
    globals::{Global, full_name},
    pickle::{Id, MAX_VALUES, Node, Object, ParseResult},
    value::Value,
};

const MAX_TEXT: usize = 64 << 20;
const MAX_DEPTH: usize = 64;
/// The largest number of values that are kept for all objects of unknown classes together.
const MAX_ATTRIBUTES: usize = 1 << 16;
const MAX_ATTRIBUTE_TEXT: usize = 1 << 20;

/// Copies the nodes into a tree. Shared nodes are copied for each reference, and cycles would not end: hence the limits.
pub(super) struct TreeBuilder<'n, 'a> {
    nodes: &'n [Node<'a>],
    budget: Limits,
    left_for_objects: Limits,
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
    pub(super) fn new(nodes: &'n [Node<'a>]) -> Self {
        let budget = Limits { values: MAX_VALUES, text: MAX_TEXT };
        let left_for_objects = Limits { values: MAX_ATTRIBUTES, text: MAX_ATTRIBUTE_TEXT };
        Self { nodes, budget, left_for_objects }
    }

    pub(super) fn value(&mut self, root: Id) -> ParseResult<Value> {
        self.copy(root, Position { depth: 0, in_object: false })
    }

    fn limits(&mut self, place: Position) -> &mut Limits {
        if place.in_object { &mut self.left_for_objects } else { &mut self.budget }
    }

    fn text(&mut self, text: &str, place: Position) -> ParseResult<String> {
        let budget = &mut self.limits(place).text;
        *budget =
            budget.checked_sub(text.len()).ok_or_else(|| format!("more than {MAX_TEXT} bytes of text"))?;
        Ok(text.to_owned())
    }

    fn copy(&mut self, id: Id, place: Position) -> ParseResult<Value> {
        let budget = &mut self.limits(place).values;
        if place.depth > MAX_DEPTH || *budget == 0 {
            return Err(format!("nested more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values"));
        }
        *budget -= 1;
        let node = self.nodes.get(id).ok_or("a value is missing")?;
        let inner = Position { depth: place.depth + 1, ..place };
        Ok(match node {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::Float(x) => Value::Float(*x),
            Node::Str(s) => Value::Str(self.text(s, place)?),
            Node::Device(kind, index) => {
                let index = index.map(|i| format!(":{i}")).unwrap_or_default();
                Value::Str(self.text(kind, place)? + &index)
            }
            Node::List(items) => Value::List(self.list(items, inner)?),
            Node::Tuple(items) => Value::Tuple(self.list(items, inner)?),
            Node::Dict(items) => Value::Dict(self.pairs(items, inner)?),
            Node::Name { module, name, known: Some(Global::Dtype(_)) } => {
                Value::Str(self.text(&full_name(module, name), place)?)
            }
            Node::Tensor(tensor) => Value::Tensor((**tensor).clone()),
            Node::Unsupported(tensor) => {
                let (kind, dims) = &**tensor;
                Value::Unsupported { kind: self.text(kind, place)?, dims: dims.clone() }
            }
            Node::Object(object) => {
                let attributes = if place.in_object {
                    Vec::new()
                } else {
                    // Objects beyond the limits are skipped; smaller ones may be a configuration.
                    self.attributes(object, Position { in_object: true, ..inner }).unwrap_or_default()
                };
                Value::Object { class: self.class(object.class, place)?, attributes }
            }
            Node::Name { .. } => Value::Object { class: self.class(id, place)?, attributes: Vec::new() },
            Node::Storage { .. } | Node::NumpyType { .. } | Node::Bytes(_) | Node::Opaque(_) => {
                Value::Object { class: self.text(node.kind(), place)?, attributes: Vec::new() }
            }
        })
    }

    fn list(&mut self, items: &[Id], place: Position) -> ParseResult<Vec<Value>> {
        items.iter().map(|&id| self.copy(id, place)).collect()
    }

    fn pairs(&mut self, items: &[(Id, Id)], place: Position) -> ParseResult<Vec<(Value, Value)>> {
        items.iter().map(|&(k, v)| Ok((self.copy(k, place)?, self.copy(v, place)?))).collect()
    }

    fn class(&mut self, id: Id, place: Position) -> ParseResult<String> {
        match self.nodes.get(id) {
            Some(Node::Name { module, name, .. }) => self.text(&full_name(module, name), place),
            _ => Err("a class without a name".into()),
        }
    }

    /// The items of a kind of dictionary, else the attributes: a dictionary, or for classes with `__slots__` a pair of them.
    fn attributes(&mut self, object: &Object, place: Position) -> ParseResult<Vec<(Value, Value)>> {
        if !object.items.is_empty() {
            return self.pairs(&object.items, place);
        }
        let nodes = self.nodes;
        let dictionary = |id: &Id| match nodes.get(*id) {
            Some(Node::Dict(items)) => Some(items),
            _ => None,
        };
        let items = match object.state.map(|id| (dictionary(&id), nodes.get(id))) {
            Some((Some(items), _)) => Some(items),
            Some((None, Some(Node::Tuple(both)))) => both.iter().take(2).find_map(dictionary),
            _ => None,
        };
        items.map_or(Ok(Vec::new()), |items| self.pairs(items, place))
    }
}
