//! The pickle inside of a PyTorch file, read as data.
//!
//! A pickle is a program for a stack machine; this is that machine with everything that could act taken out. The opcodes are those that
//! PyTorch emits with protocols 2 to 5 (Python's `pickletools` describes them), the names that it may mention are a closed list, and
//! what those names would do when called is written out in [`Machine::reduce`].

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::value::{Tensor, Value};
use crate::checkpoint::{Problem, numbers::Dtype};

/// The largest pickle; the numbers of tensors stand elsewhere.
pub(super) const MAX_BYTES: u64 = 32 << 20;
const MAX_VALUES: usize = 1 << 20;
const MAX_TEXT: usize = 64 << 20;
const MAX_DEPTH: usize = 64;
const MAX_AXES: usize = 8;

/// Reads the one value that the pickle describes.
pub(super) fn parse(pickle: &[u8]) -> Result<Value, Problem> {
    let mut machine = Machine {
        input: pickle,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let wrong = |at: usize, message: String| Problem::malformed(format!("data.pkl, byte {at}"), message);
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                let mut tree = Tree { nodes: &machine.nodes, values: 0, text: 0 };
                return tree.value(root, 0).map_err(|m| wrong(at, m));
            }
            Err(message) => return Err(wrong(at, message)),
        }
    }
}

type Id = usize;
type Step<T> = Result<T, String>;

/// A value while it is built. The memo shares values and later opcodes change them, so they refer to one another by number.
#[derive(Clone, Debug)]
enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    NumpyType { kind: u8, size: u8, big_endian: bool },
    Storage { dtype: Option<Dtype>, key: &'a str },
    Tensor(Box<Tensor>),
}

/// A name that a pickle may mention.
#[derive(Clone, Copy, Debug)]
enum Global {
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
    fn named(module: &str, name: &str) -> Option<Self> {
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

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; the pickle's value when that was the last.
    fn step(&mut self) -> Step<Option<Id>> {
        let [opcode] = self.number()?;
        match opcode {
            b'\x80' => {
                let [version] = self.number()?;
                if !(2..=5).contains(&version) {
                    return Err(format!("protocol {version}, expected 2 to 5"));
                }
            }
            // A frame only says how much to read at once.
            b'\x95' => drop(self.number::<8>()?),
            b'.' => return self.pop().map(Some),
            b'N' => self.push(Node::None)?,
            b'\x88' => self.push(Node::Bool(true))?,
            b'\x89' => self.push(Node::Bool(false))?,
            b'K' => {
                let [n] = self.number()?;
                self.push(Node::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.number()?);
                self.push(Node::Int(n.into()))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.number()?);
                self.push(Node::Int(n.into()))?;
            }
            b'\x8a' => {
                let [n] = self.number()?;
                self.long(n.into())?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.number()?);
                self.push(Node::Float(x))?;
            }
            b'X' => {
                let n = u32::from_le_bytes(self.number()?);
                self.text(n.into())?;
            }
            b'\x8c' => {
                let [n] = self.number()?;
                self.text(n.into())?;
            }
            b'\x8d' => {
                let n = u64::from_le_bytes(self.number()?);
                self.text(n)?;
            }
            b'B' => {
                let n = u32::from_le_bytes(self.number()?);
                self.bytes(n.into())?;
            }
            b'C' => {
                let [n] = self.number()?;
                self.bytes(n.into())?;
            }
            b'\x8e' => {
                let n = u64::from_le_bytes(self.number()?);
                self.bytes(n)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b']' => self.push(Node::List(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_marked()?;
                self.push(Node::Tuple(items))?;
            }
            b'\x85'..=b'\x87' => {
                let n = usize::from(opcode - b'\x84');
                let from = self.stack.len().checked_sub(n).ok_or("a tuple of more values than there are")?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_marked()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_marked()?;
                self.set(&items)?;
            }
            b'q' => {
                let [key] = self.number()?;
                self.memoize(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.number()?);
                self.memoize(key)?;
            }
            b'\x94' => self.memoize(self.memo.len() as u32)?,
            b'h' => {
                let [key] = self.number()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.number()?);
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            b'\x93' => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Node::Str(module), Node::Str(name)) = (self.node(module)?, self.node(name)?) else {
                    return Err("a name that is not text".into());
                };
                self.global(module, name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let node = self.reduce(function, arguments)?;
                self.push(node)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            _ => return Err(format!("opcode {opcode:#04x}, which no checkpoint needs")),
        }
        Ok(None)
    }

    fn take(&mut self, n: u64) -> Step<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or("the pickle ends too early")?;
        self.at += taken.len();
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N as u64)?.try_into().map_err(|_| "the pickle ends too early".into())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = self.take(n as u64 + 1)?;
        std::str::from_utf8(&line[..n]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn text(&mut self, n: u64) -> Step<()> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "text that is not UTF-8")?;
        self.push(Node::Str(text))
    }

    fn bytes(&mut self, n: u64) -> Step<()> {
        let bytes = self.take(n)?;
        self.push(Node::Bytes(bytes.into()))
    }

    /// A whole number of `n` bytes, little-endian, two's complement.
    fn long(&mut self, n: u64) -> Step<()> {
        let bytes = self.take(n)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole.get_mut(..bytes.len()).ok_or("a whole number of more than 64 bits")?.copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(whole)))
    }

    fn push(&mut self, node: Node<'a>) -> Step<()> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    fn pop(&mut self) -> Step<Id> {
        if self.marks.last().is_some_and(|&m| m >= self.stack.len()) {
            return Err("a value is missing".into());
        }
        self.stack.pop().ok_or_else(|| "a value is missing".into())
    }

    fn pop_marked(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().filter(|&m| m <= self.stack.len()).ok_or("a list without a beginning")?;
        Ok(self.stack.split_off(mark))
    }

    fn node(&self, id: Id) -> Step<&Node<'a>> {
        self.nodes.get(id).ok_or_else(|| "a value is missing".into())
    }

    fn top(&mut self) -> Step<&mut Node<'a>> {
        let id = self.stack.last().copied().ok_or("a value is missing")?;
        self.nodes.get_mut(id).ok_or_else(|| "a value is missing".into())
    }

    fn append(&mut self, new: Vec<Id>) -> Step<()> {
        match self.top()? {
            Node::List(items) => items.extend(new),
            _ => return Err("an append to what is not a list".into()),
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> Step<()> {
        let (pairs, rest) = new.as_chunks::<2>();
        match self.top()? {
            Node::Dict(items) if rest.is_empty() => items.extend(pairs.iter().map(|&[k, v]| (k, v))),
            _ => return Err("keys and values for what is not a dictionary".into()),
        }
        Ok(())
    }

    fn memoize(&mut self, key: u32) -> Step<()> {
        let id = self.stack.last().copied().ok_or("a value is missing")?;
        if self.memo.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values remembered"));
        }
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step<()> {
        let id = self.memo.get(&key).copied().ok_or("a remembered value is missing")?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let global = Global::named(module, name).ok_or_else(|| {
            format!("mentions {:?}, which is not part of a checkpoint", format!("{module}.{name}"))
        })?;
        self.push(Node::Global(global))
    }

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
    fn storage(&self, id: Id) -> Step<Node<'a>> {
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
    fn reduce(&self, function: Id, arguments: Id) -> Step<Node<'a>> {
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
            Global::Device => match self.arguments(items)? {
                [Node::Str(name)] => Ok(Node::Str(name)),
                [other] => Err(format!("a device of {}", other.kind())),
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
    fn build(&mut self, state: Id) -> Step<()> {
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

impl Node<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) => "a whole number",
            Node::Float(_) => "a real number",
            Node::Str(_) => "text",
            Node::Bytes(_) => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Dict(_) => "a dictionary",
            Node::Global(_) => "a name",
            Node::NumpyType { .. } => "a numpy type",
            Node::Storage { .. } => "a storage",
            Node::Tensor(_) => "a tensor",
        }
    }

    fn size(&self) -> Step<usize> {
        match self {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("{n}, expected a size")),
            other => Err(format!("expected a size, found {}", other.kind())),
        }
    }
}

/// Copies the nodes into a tree. Shared ones are copied as often as they are mentioned, and cycles would have no end: hence the limits.
struct Tree<'n, 'a> {
    nodes: &'n [Node<'a>],
    values: usize,
    text: usize,
}

impl Tree<'_, '_> {
    fn value(&mut self, id: Id, depth: usize) -> Step<Value> {
        self.values += 1;
        if depth > MAX_DEPTH || self.values > MAX_VALUES {
            return Err(format!("nested more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values"));
        }
        let node = self.nodes.get(id).ok_or("a value is missing")?;
        let list = |tree: &mut Self, items: &[Id]| {
            items.iter().map(|&i| tree.value(i, depth + 1)).collect::<Step<_>>()
        };
        Ok(match node {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::Float(x) => Value::Float(*x),
            Node::Str(s) => {
                self.text += s.len();
                if self.text > MAX_TEXT {
                    return Err(format!("more than {MAX_TEXT} bytes of text"));
                }
                Value::Str((*s).to_owned())
            }
            Node::List(items) => Value::List(list(self, items)?),
            Node::Tuple(items) => Value::Tuple(list(self, items)?),
            Node::Dict(items) => {
                let pair = |&(k, v): &(Id, Id)| Ok((self.value(k, depth + 1)?, self.value(v, depth + 1)?));
                Value::Dict(items.iter().map(pair).collect::<Step<_>>()?)
            }
            Node::Global(Global::Dtype(_, name)) => Value::Str((*name).to_owned()),
            Node::Tensor(tensor) => Value::Tensor((**tensor).clone()),
            Node::Global(_) | Node::NumpyType { .. } | Node::Storage { .. } | Node::Bytes(_) => {
                return Err(format!("{} where a value belongs", node.kind()));
            }
        })
    }
}
