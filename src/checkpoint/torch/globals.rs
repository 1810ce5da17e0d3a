//! The names that a pickle may mention, and what they would make if they were called.

use std::sync::Arc;

use super::{
    pickle::{Id, Machine, Node, Step},
    value::Tensor,
};
use crate::checkpoint::numbers::Dtype;

const MAX_AXES: usize = 8;

/// A name that a pickle may mention.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    /// A storage class; the untyped one has no type of its own.
    Storage(Option<Dtype>),
    /// A number type as a value.
    Dtype(Dtype, &'static str),
    Size,
    Device,
    NumpyScalar,
    NumpyType,
    Encode,
}

impl Global {
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let storage = |dtype| Some(Global::Storage(Some(dtype)));
        let dtype = |dtype, name| Some(Global::Dtype(dtype, name));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch._utils", "_rebuild_parameter_with_state") => Some(Global::RebuildParameterWithState),
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Some(Global::Storage(None)),
            ("torch", "Size") => Some(Global::Size),
            ("torch", "device") => Some(Global::Device),
            ("torch", "DoubleStorage") => storage(Dtype::F64),
            ("torch", "FloatStorage") => storage(Dtype::F32),
            ("torch", "HalfStorage") => storage(Dtype::F16),
            ("torch", "BFloat16Storage") => storage(Dtype::BF16),
            ("torch", "LongStorage") => storage(Dtype::I64),
            ("torch", "IntStorage") => storage(Dtype::I32),
            ("torch", "ShortStorage") => storage(Dtype::I16),
            ("torch", "CharStorage") => storage(Dtype::I8),
            ("torch", "ByteStorage") => storage(Dtype::U8),
            ("torch", "BoolStorage") => storage(Dtype::Bool),
            ("torch", "float64") => dtype(Dtype::F64, "torch.float64"),
            ("torch", "float32") => dtype(Dtype::F32, "torch.float32"),
            ("torch", "float16") => dtype(Dtype::F16, "torch.float16"),
            ("torch", "bfloat16") => dtype(Dtype::BF16, "torch.bfloat16"),
            ("torch", "int64") => dtype(Dtype::I64, "torch.int64"),
            ("torch", "int32") => dtype(Dtype::I32, "torch.int32"),
            ("torch", "int16") => dtype(Dtype::I16, "torch.int16"),
            ("torch", "int8") => dtype(Dtype::I8, "torch.int8"),
            ("torch", "uint8") => dtype(Dtype::U8, "torch.uint8"),
            ("torch", "bool") => dtype(Dtype::Bool, "torch.bool"),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Global::NumpyScalar),
            ("numpy", "dtype") => Some(Global::NumpyType),
            ("_codecs", "encode") => Some(Global::Encode),
            _ => None,
        }
    }
}

impl<'a> Machine<'a> {
    fn tuple(&self, id: Id) -> Step<&[Id]> {
        match self.node(id)? {
            Node::Tuple(items) => Ok(items),
            other => Err(format!("expected a tuple, found {}", other.kind())),
        }
    }

    fn arguments<const N: usize>(&self, items: &[Id]) -> Step<[&Node<'a>; N]> {
        let mut nodes = [&Node::None; N];
        for (node, i) in nodes.iter_mut().zip(0..N) {
            *node =
                self.node(*items.get(i).ok_or_else(|| format!("{} arguments, expected {N}", items.len()))?)?;
        }
        Ok(nodes)
    }

    /// `('storage', class, key, location, size)`: numbers in an entry of their own. Where they once were (`cuda:0`) is of no interest.
    pub(super) fn storage(&self, id: Id) -> Step<Node<'a>> {
        match self.arguments(self.tuple(id)?)? {
            [
                Node::Str("storage"),
                Node::Global(Global::Storage(dtype)),
                Node::Str(key),
                Node::Str(_),
                Node::Int(_),
            ] => Ok(Node::Storage { dtype: *dtype, key }),
            _ => Err("expected ('storage', class, key, location, size)".into()),
        }
    }

    fn sizes(&self, node: &Node) -> Step<Vec<usize>> {
        let Node::Tuple(items) = node else { return Err(format!("expected sizes, found {}", node.kind())) };
        if items.len() > MAX_AXES {
            return Err(format!("a tensor of {} axes, expected at most {MAX_AXES}", items.len()));
        }
        items.iter().map(|&id| self.node(id)?.size()).collect()
    }

    /// What calling `function` would make, for each of the names of [`Global`].
    pub(super) fn reduce(&self, function: Id, arguments: Id) -> Step<Node<'a>> {
        let items = self.tuple(arguments)?;
        let Node::Global(function) = self.node(function)? else {
            return Err(format!("a call of {}", self.node(function)?.kind()));
        };
        match function {
            // Filled by the opcodes that follow, as a dictionary is.
            Global::OrderedDict if items.is_empty() => Ok(Node::Dict(Vec::new())),
            Global::OrderedDict => Err("an OrderedDict that is not empty at first".into()),
            Global::RebuildTensor => match self.arguments(items)? {
                [Node::Storage { dtype: Some(dtype), key }, offset, dims, strides] => {
                    self.tensor(*dtype, key, offset, dims, strides)
                }
                _ => Err("expected (storage, offset, size, stride, ..)".into()),
            },
            Global::RebuildTensorV3 => match self.arguments(items)? {
                [
                    Node::Storage { dtype: None, key },
                    offset,
                    dims,
                    strides,
                    _,
                    _,
                    Node::Global(Global::Dtype(dtype, _)),
                ] => self.tensor(*dtype, key, offset, dims, strides),
                _ => Err("expected (storage, offset, size, stride, .., dtype)".into()),
            },
            Global::RebuildParameter | Global::RebuildParameterWithState => match self.arguments(items)? {
                [tensor @ Node::Tensor(_)] => Ok(tensor.clone()),
                [other] => Err(format!("a parameter of {}", other.kind())),
            },
            Global::Size => match self.arguments(items)? {
                [Node::Tuple(items)] if items.len() <= MAX_AXES => Ok(Node::Tuple(items.clone())),
                [other] => Err(format!("a size of {}", other.kind())),
            },
            Global::Device => match items.iter().map(|&id| self.node(id)).collect::<Step<Vec<_>>>()?[..] {
                [Node::Str(kind)] => Ok(Node::Device(kind, None)),
                [Node::Str(kind), Node::Int(index)] => Ok(Node::Device(kind, Some(*index))),
                _ => Err("expected a device's kind and number".into()),
            },
            Global::Encode => match self.arguments(items)? {
                [Node::Str(text), Node::Str("latin1" | "latin-1")] if text.len() <= 64 => {
                    let bytes = text
                        .chars()
                        .map(|c| u8::try_from(u32::from(c)).map_err(|_| "text that is not Latin-1"));
                    Ok(Node::Bytes(bytes.collect::<Result<Vec<u8>, _>>()?.into()))
                }
                _ => Err("expected the few bytes of a number".into()),
            },
            Global::NumpyType => match self.arguments(items)? {
                [Node::Str(name)] => match name.as_bytes() {
                    &[kind @ (b'f' | b'i' | b'u' | b'b'), size @ b'1'..=b'8'] => {
                        Ok(Node::NumpyType { kind, size: size - b'0', big_endian: false })
                    }
                    _ => Err(format!("numpy numbers of type {name:?}")),
                },
                [other] => Err(format!("a numpy type of {}", other.kind())),
            },
            Global::NumpyScalar => match self.arguments(items)? {
                [Node::NumpyType { kind, size, big_endian }, Node::Bytes(bytes)] => {
                    numpy_scalar(*kind, *size, *big_endian, bytes)
                }
                _ => Err("expected (numpy type, bytes)".into()),
            },
            Global::Storage(_) | Global::Dtype(..) => Err("a call of a type".into()),
        }
    }

    fn tensor(&self, dtype: Dtype, key: &str, offset: &Node, dims: &Node, strides: &Node) -> Step<Node<'a>> {
        let (dims, strides) = (self.sizes(dims)?, self.sizes(strides)?);
        if dims.len() != strides.len() {
            return Err(format!("a tensor of {} sizes and {} strides", dims.len(), strides.len()));
        }
        if key.len() > 64 {
            return Err("a storage's name of more than 64 bytes".into());
        }
        let tensor = Tensor { dtype, dims, strides, offset: offset.size()?, storage: Arc::from(key) };
        Ok(Node::Tensor(Box::new(tensor)))
    }

    /// Gives the value on top of the stack attributes: of interest only for numpy's types, whose second one is the byte order.
    pub(super) fn build(&mut self, state: Id) -> Step<()> {
        let order = match self.node(state)? {
            Node::Tuple(items) => items.get(1).map(|&id| self.node(id)).transpose()?.cloned(),
            _ => None,
        };
        match (self.top()?, order) {
            (Node::NumpyType { big_endian, .. }, Some(Node::Str(order))) => *big_endian = order == ">",
            // `state_dict()` gives its OrderedDict an attribute `_metadata`.
            (Node::Dict(_) | Node::Tensor(_), _) => {}
            (other, _) => return Err(format!("attributes for {}", other.kind())),
        }
        Ok(())
    }
}

fn numpy_scalar<'a>(kind: u8, size: u8, big_endian: bool, bytes: &[u8]) -> Step<Node<'a>> {
    let wrong = || format!("{} bytes for a number of {size}", bytes.len());
    if bytes.len() != usize::from(size) {
        return Err(wrong());
    }
    let mut bytes = bytes.to_vec();
    if big_endian {
        bytes.reverse();
    }
    let signed = kind == b'i' && bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut whole = [if signed { 0xff } else { 0 }; 8];
    whole.get_mut(..bytes.len()).ok_or_else(wrong)?.copy_from_slice(&bytes);
    let n = i64::from_le_bytes(whole);
    Ok(match (kind, size) {
        (b'f', 8) => Node::Float(f64::from_le_bytes(whole)),
        (b'f', 4) => Node::Float(f32::from_bits(n as u32).into()),
        (b'f', 2) => Node::Float(half::f16::from_bits(n as u16).into()),
        (b'f', _) => return Err(wrong()),
        (b'b', _) => Node::Bool(n != 0),
        (b'u', 8) if n < 0 => return Err("a whole number of more than 63 bits".into()),
        _ => Node::Int(n),
    })
}
