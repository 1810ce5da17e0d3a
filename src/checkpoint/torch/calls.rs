//! The results of calls of known names in a pickle.

use std::sync::Arc;

use super::{
    globals::{Global, full_name},
    node::{Id, Node, Nodes, Object, ParseResult},
    value::Tensor,
};
use crate::checkpoint::error::printable;

const MAX_AXES: usize = 8;

impl<'a> Nodes<'a> {
    pub(super) fn tuple(&self, id: Id) -> ParseResult<&[Id]> {
        match self.node(id)? {
            Node::Tuple(items) => Ok(items),
            other => Err(format!("expected a tuple, found {}", other.kind())),
        }
    }

    /// The first `N` of `items`.
    fn first<const N: usize>(&self, items: &[Id]) -> ParseResult<Option<[&Node<'a>; N]>> {
        let mut nodes = [&Node::None; N];
        for (node, i) in nodes.iter_mut().zip(0..N) {
            let Some(&id) = items.get(i) else { return Ok(None) };
            *node = self.node(id)?;
        }
        Ok(Some(nodes))
    }

    /// Reads `('storage', class, key, location, size)`: numbers in an entry of their own. The location (such as `cuda:0`) is ignored.
    pub(super) fn storage(&self, id: Id) -> ParseResult<Node<'a>> {
        let Node::Tuple(items) = self.node(id)? else { return Ok(Node::Opaque("a persistent id")) };
        match self.first(items)? {
            Some(
                [
                    Node::Str("storage"),
                    class @ Node::Name { .. },
                    Node::Str(key),
                    Node::Str(_),
                    size @ Node::Int(_),
                ],
            ) => Ok(Node::Storage { class: Box::new(class.clone()), key, size: size.size()? }),
            Some([Node::Str("storage"), ..]) => {
                Err("expected ('storage', class, key, location, size)".into())
            }
            _ => Ok(Node::Opaque("a persistent id")),
        }
    }

    /// The sizes of a tensor; `None` if it has too many axes.
    fn sizes(&self, node: &Node) -> ParseResult<Option<Vec<usize>>> {
        let Node::Tuple(items) = node else { return Err(format!("expected sizes, found {}", node.kind())) };
        if items.len() > MAX_AXES {
            return Ok(None);
        }
        items.iter().map(|&id| self.node(id)?.size()).collect::<ParseResult<_>>().map(Some)
    }

    /// The result of calling `function` with `arguments`; an unread object if the function is unknown.
    pub(super) fn reduce(&self, function: Id, arguments: &[Id]) -> ParseResult<Node<'a>> {
        let class = match self.node(function)? {
            Node::Name { known: Some(Global::RebuildOther), name, .. } => {
                return self.other_tensor(name, arguments).map(|tensor| Node::Unsupported(Box::new(tensor)));
            }
            Node::Name { known: Some(known), .. } => {
                if let Some(node) = self.known(*known, arguments)? {
                    return Ok(node);
                }
                function
            }
            Node::Name { .. } => function,
            // Such as the result of `getattr`.
            Node::Object(object) => object.class,
            other => return Err(format!("a call of {}", other.kind())),
        };
        Ok(Node::Object(Box::new(Object { class, state: None, items: Vec::new() })))
    }

    fn known(&self, function: Global, items: &[Id]) -> ParseResult<Option<Node<'a>>> {
        Ok(match function {
            // The following opcodes fill it like a dictionary.
            Global::DefaultDict => Some(Node::Dict(Vec::new())),
            Global::OrderedDict if items.is_empty() => Some(Node::Dict(Vec::new())),
            Global::OrderedDict => None,
            Global::RebuildTensor | Global::RebuildTensorV3 => Some(self.tensor(function, items)?),
            Global::RebuildFromType => match self.first(items)? {
                Some(
                    [
                        Node::Name {
                            known: Some(function @ (Global::RebuildTensor | Global::RebuildTensorV3)),
                            ..
                        },
                        Node::Name { known: Some(Global::TensorType), .. },
                        Node::Tuple(items),
                    ],
                ) => Some(self.tensor(*function, items)?),
                Some([_, Node::Name { module, name, .. }, _]) => {
                    Some(Node::Unsupported(Box::new((full_name(module, name), Vec::new()))))
                }
                _ => None,
            },
            Global::RebuildParameter => match self.first(items)? {
                Some([tensor @ (Node::Tensor(_) | Node::Unsupported(_))]) => Some(tensor.clone()),
                _ => None,
            },
            Global::Size => match self.first(items)? {
                Some([Node::Tuple(items)]) if items.len() <= MAX_AXES => Some(Node::Tuple(items.clone())),
                _ => None,
            },
            Global::Device => match (self.first(items)?, self.first(items)?) {
                (_, Some([Node::Str(kind), Node::Int(index)])) => Some(Node::Device(kind, Some(*index))),
                (Some([Node::Str(kind)]), None) => Some(Node::Device(kind, None)),
                _ => None,
            },
            Global::Encode => match self.first(items)? {
                // The bytes of a numpy scalar, which are short.
                Some([Node::Str(text), Node::Str("latin1" | "latin-1")]) if text.len() <= 64 => {
                    let bytes = text.chars().map(|c| u8::try_from(u32::from(c)).ok());
                    bytes.collect::<Option<Vec<u8>>>().map(|bytes| Node::Bytes(bytes.into()))
                }
                _ => None,
            },
            Global::NumpyType => match self.first(items)? {
                Some([Node::Str(name)]) => match name.as_bytes() {
                    &[kind @ (b'f' | b'i' | b'u' | b'b'), size @ b'1'..=b'8'] => {
                        Some(Node::NumpyType { kind, size: size - b'0', big_endian: false })
                    }
                    _ => None,
                },
                _ => None,
            },
            Global::NumpyScalar => match self.first(items)? {
                Some([Node::NumpyType { kind, size, big_endian }, Node::Bytes(bytes)]) => {
                    numpy_scalar(*kind, *size, *big_endian, bytes)
                }
                _ => None,
            },
            Global::RebuildOther | Global::TensorType | Global::Storage(_) | Global::Dtype(_) => None,
        })
    }

    /// The type and sizes of the tensor that `torch._utils._rebuild_..` makes.
    fn other_tensor(&self, function: &str, items: &[Id]) -> ParseResult<(String, Vec<usize>)> {
        let kind = match (function, self.first(items)?) {
            ("_rebuild_qtensor", _) => "quantized".to_owned(),
            ("_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor", _) => "sparse".to_owned(),
            ("_rebuild_meta_tensor_no_storage", _) => "meta".to_owned(),
            ("_rebuild_wrapper_subclass", Some([Node::Name { module, name, .. }])) => full_name(module, name),
            (other, _) => printable(other.trim_start_matches("_rebuild_"), 60),
        };
        // Functions with a storage have the sizes as their third argument, like `_rebuild_tensor`.
        let dims = match self.first(items)? {
            Some([Node::Storage { .. }, _, dims]) => self.sizes(dims)?,
            _ => None,
        };
        Ok((kind, dims.unwrap_or_default()))
    }

    /// Reads `(storage, offset, size, stride, requires_grad, hooks, ..)`; in the third version the number type follows.
    fn tensor(&self, function: Global, items: &[Id]) -> ParseResult<Node<'a>> {
        let invalid = || "expected (storage, offset, size, stride, ..)".to_owned();
        let [Node::Storage { class, key, size }, offset, dims, strides] =
            self.first(items)?.ok_or_else(invalid)?
        else {
            return Err(invalid());
        };
        let kind = match function {
            Global::RebuildTensorV3 => self.node(*items.get(6).ok_or_else(invalid)?)?,
            _ => &**class,
        };
        let unsupported = |kind: String, dims| Ok(Node::Unsupported(Box::new((kind, dims))));
        let (Some(dims), Some(strides)) = (self.sizes(dims)?, self.sizes(strides)?) else {
            return unsupported(format!("more than {MAX_AXES} axes"), Vec::new());
        };
        let dtype = match kind {
            Node::Name { known: Some(Global::Dtype(dtype) | Global::Storage(Some(dtype))), .. } => *dtype,
            Node::Name { module, name, .. } => return unsupported(full_name(module, name), dims),
            other => return Err(format!("expected a type of numbers, found {}", other.kind())),
        };
        if dims.len() != strides.len() {
            return Err(format!("a tensor of {} sizes and {} strides", dims.len(), strides.len()));
        }
        if key.len() > 64 {
            return Err("a storage name is longer than 64 bytes".into());
        }
        // The size of an untyped storage is in bytes.
        let element_size = match &**class {
            Node::Name { known: Some(Global::Storage(Some(dtype))), .. } => dtype.size(),
            _ => 1,
        };
        let storage_bytes = size.checked_mul(element_size).ok_or("a storage is too large")?;
        let (storage, offset) = (Arc::from(*key), offset.size()?);
        Ok(Node::Tensor(Box::new(Tensor { dtype, dims, strides, offset, storage, storage_bytes })))
    }

    /// Sets the attributes of a value. For numpy's types, the second one is the byte order.
    pub(super) fn build(&mut self, id: Id, state: Id) -> ParseResult<()> {
        let order = match self.node(state)? {
            Node::Tuple(items) => match items.get(1).map(|&id| self.node(id)).transpose()? {
                Some(Node::Str(order)) => Some(*order),
                _ => None,
            },
            _ => None,
        };
        match (self.node_mut(id)?, order) {
            (Node::NumpyType { big_endian, .. }, Some(order)) => *big_endian = order == ">",
            (Node::Object(object), _) => object.state = Some(state),
            // `state_dict()` gives its OrderedDict an attribute `_metadata`.
            (
                Node::Dict(_)
                | Node::Tensor(_)
                | Node::Unsupported(_)
                | Node::NumpyType { .. }
                | Node::Name { .. },
                _,
            ) => {}
            (other, _) => return Err(format!("attributes for {}", other.kind())),
        }
        Ok(())
    }
}

fn numpy_scalar<'a>(kind: u8, size: u8, big_endian: bool, bytes: &[u8]) -> Option<Node<'a>> {
    if bytes.len() != usize::from(size) {
        return None;
    }
    let mut bytes = bytes.to_vec();
    if big_endian {
        bytes.reverse();
    }
    let signed = kind == b'i' && bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut padded = [if signed { 0xff } else { 0 }; 8];
    padded.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    let n = i64::from_le_bytes(padded);
    Some(match (kind, size) {
        (b'f', 8) => Node::Float(f64::from_le_bytes(padded)),
        (b'f', 4) => Node::Float(f32::from_bits(n as u32).into()),
        (b'f', 2) => Node::Float(half::f16::from_bits(n as u16).into()),
        (b'f', _) => return None,
        (b'b', _) => Node::Bool(n != 0),
        // Exceeds 63 bits.
        (b'u', 8) if n < 0 => return None,
        _ => Node::Int(n),
    })
}
