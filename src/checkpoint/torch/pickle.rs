//! The pickle in a PyTorch file, parsed as data.
//!
//! A pickle is a program for a stack machine. This is that machine without side effects. The opcodes are those of protocols 2 to 5
//! (Python's `pickletools` describes them). No name is imported: [`Unpickler::reduce`], in `globals.rs`, implements the results of calls of
//! known names. A call of any other name makes an object with class, attributes and items only.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use super::{
    globals::{Global, full_name},
    tree::TreeBuilder,
    value::{Tensor, Value},
};
use crate::checkpoint::ErrorKind;

/// The largest pickle, in bytes. It contains the numbers of numpy arrays, but not those of tensors.
pub(super) const MAX_BYTES: u64 = 256 << 20;
pub(super) const MAX_VALUES: usize = 1 << 20;
/// The largest number of times that values are pushed onto the stack again.
pub(super) const MAX_MEMO_READS: usize = 1 << 22;
/// The largest number of unknown names that are listed.
const MAX_NAMES: usize = 100;

/// Parses the value that the pickle describes, and the names of unknown classes and functions.
pub(super) fn parse(pickle: &[u8]) -> Result<(Value, Vec<String>), ErrorKind> {
    let mut machine = Unpickler {
        input: pickle,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        memo_reads: 0,
        opaque: BTreeSet::new(),
    };
    let invalid = |at: usize, message: String| ErrorKind::malformed(format!("data.pkl, byte {at}"), message);
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                let root = match TreeBuilder::new(&machine.nodes).value(root) {
                    Ok(Value::Object { class, .. }) => {
                        Err(format!("an object of {class}, expected a dictionary of tensors"))
                    }
                    other => other,
                };
                let opaque =
                    machine.opaque.iter().take(MAX_NAMES).map(|(module, name)| full_name(module, name));
                return Ok((root.map_err(|m| invalid(at, m))?, opaque.collect()));
            }
            Err(message) => return Err(invalid(at, message)),
        }
    }
}

pub(super) type Id = usize;
pub(super) type ParseResult<T> = Result<T, String>;

/// A value under construction. The memo shares values and later opcodes change them, so they refer to one another by index.
#[derive(Clone, Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function.
    Name {
        module: &'a str,
        name: &'a str,
        known: Option<Global>,
    },
    Device(&'a str, Option<i64>),
    NumpyType {
        kind: u8,
        size: u8,
        big_endian: bool,
    },
    /// `size` numbers of a class, or bytes if the class is untyped.
    Storage {
        class: Box<Node<'a>>,
        key: &'a str,
        size: usize,
    },
    Tensor(Box<Tensor>),
    /// A tensor of an unsupported type: its type and its sizes.
    Unsupported(Box<(String, Vec<usize>)>),
    /// The result of calling an unknown name.
    Object(Box<Object>),
    /// A Python value that is not needed.
    Opaque(&'static str),
}

/// The parts of an object of an unknown class that are kept.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// A [`Node::Name`].
    pub(super) class: Id,
    /// Its attributes, in any form.
    pub(super) state: Option<Id>,
    /// Its keys and values, if it is a kind of dictionary.
    pub(super) items: Vec<(Id, Id)>,
}

pub(super) struct Unpickler<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    memo_reads: usize,
    /// The unknown names.
    opaque: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Unpickler<'a> {
    /// Executes one opcode; returns the pickle's value after the last one.
    fn step(&mut self) -> ParseResult<Option<Id>> {
        let [opcode] = self.number()?;
        match opcode {
            b'\x80' => {
                let [version] = self.number()?;
                if !(2..=5).contains(&version) {
                    return Err(format!("protocol {version}, expected 2 to 5"));
                }
            }
            // A frame only gives the number of bytes to read at once.
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
            b'\x8b' => {
                let n = i32::from_le_bytes(self.number()?);
                self.long(u64::try_from(n).map_err(|_| "an integer of negative length")?)?;
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
            b'U' => {
                let [n] = self.number()?;
                self.text(n.into())?;
            }
            b'T' => {
                let n = u32::from_le_bytes(self.number()?);
                self.text(n.into())?;
            }
            b'B' => {
                let n = u32::from_le_bytes(self.number()?);
                self.bytes(n.into())?;
            }
            b'C' => {
                let [n] = self.number()?;
                self.bytes(n.into())?;
            }
            b'\x8e' | b'\x96' => {
                let n = u64::from_le_bytes(self.number()?);
                self.bytes(n)?;
            }
            b'(' => self.mark()?,
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_marked()?),
            b'2' => {
                let id = *self.stack.last().ok_or("a value is missing")?;
                self.push_existing(id)?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b'\x8f' => self.push(Node::Opaque("a set"))?,
            b'\x90' => {
                self.pop_marked()?;
                match self.top()? {
                    Node::Opaque(_) | Node::Object(_) => {}
                    other => return Err(format!("items for {}, expected a set", other.kind())),
                }
            }
            b'\x91' => {
                self.pop_marked()?;
                self.push(Node::Opaque("a frozenset"))?;
            }
            b'l' => {
                let items = self.pop_marked()?;
                self.push(Node::List(items))?;
            }
            b'd' => {
                let items = self.pop_marked()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set(&items)?;
            }
            b't' => {
                let items = self.pop_marked()?;
                self.push(Node::Tuple(items))?;
            }
            b'\x85'..=b'\x87' => {
                let n = usize::from(opcode - b'\x84');
                let from =
                    self.stack.len().checked_sub(n).ok_or("a tuple of more values than the stack has")?;
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
                self.read_memo(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.number()?);
                self.read_memo(key)?;
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
            // Calls of a function, of a class, and of a class with named arguments.
            b'R' | b'\x81' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let node = self.reduce(function, self.tuple(arguments)?)?;
                self.push(node)?;
            }
            b'\x92' => {
                let (_, arguments) = (self.pop()?, self.pop()?);
                let class = self.pop()?;
                let node = self.reduce(class, self.tuple(arguments)?)?;
                self.push(node)?;
            }
            b'i' => {
                let arguments = self.pop_marked()?;
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
                let class = self.pop()?;
                let node = self.reduce(class, &arguments)?;
                self.push(node)?;
            }
            b'o' => {
                let items = self.pop_marked()?;
                let [class, arguments @ ..] = &items[..] else {
                    return Err("a call without a function".into());
                };
                let node = self.reduce(*class, arguments)?;
                self.push(node)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            _ => return Err(format!("unsupported opcode {opcode:#04x}")),
        }
        Ok(None)
    }

    fn take(&mut self, n: u64) -> ParseResult<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let bytes = usize::try_from(n).ok().and_then(|n| rest.get(..n)).ok_or("the pickle ends too early")?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> ParseResult<[u8; N]> {
        self.take(N as u64)?.try_into().map_err(|_| "the pickle ends too early".into())
    }

    fn line(&mut self) -> ParseResult<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = self.take(n as u64 + 1)?;
        std::str::from_utf8(&line[..n]).map_err(|_| "a name that is not UTF-8".into())
    }

    /// Pushes text, or bytes if it is not UTF-8: file names in Python need not be.
    fn text(&mut self, n: u64) -> ParseResult<()> {
        let bytes = self.take(n)?;
        self.push(std::str::from_utf8(bytes).map_or(Node::Bytes(bytes.into()), Node::Str))
    }

    fn bytes(&mut self, n: u64) -> ParseResult<()> {
        let bytes = self.take(n)?;
        self.push(Node::Bytes(bytes.into()))
    }

    /// Pushes an integer of `n` bytes, little-endian, two's complement. The states of random generators have some of more than 64 bits.
    fn long(&mut self, n: u64) -> ParseResult<()> {
        let bytes = self.take(n)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut padded = [fill; 8];
        self.push(match padded.get_mut(..bytes.len()) {
            Some(part) => {
                part.copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(padded))
            }
            None => Node::Opaque("an integer of more than 64 bits"),
        })
    }

    fn push(&mut self, node: Node<'a>) -> ParseResult<()> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// Pushes an existing value.
    fn push_existing(&mut self, id: Id) -> ParseResult<()> {
        self.memo_reads += 1;
        if self.memo_reads > MAX_MEMO_READS {
            return Err(format!("more than {MAX_MEMO_READS} references to values"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> ParseResult<()> {
        if self.marks.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} open lists"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop(&mut self) -> ParseResult<Id> {
        if self.marks.last().is_some_and(|&m| m >= self.stack.len()) {
            return Err("a value is missing".into());
        }
        self.stack.pop().ok_or_else(|| "a value is missing".into())
    }

    fn pop_marked(&mut self) -> ParseResult<Vec<Id>> {
        let mark = self.marks.pop().filter(|&m| m <= self.stack.len()).ok_or("a list without a start")?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn node(&self, id: Id) -> ParseResult<&Node<'a>> {
        self.nodes.get(id).ok_or_else(|| "a value is missing".into())
    }

    pub(super) fn top(&mut self) -> ParseResult<&mut Node<'a>> {
        let id = self.stack.last().copied().ok_or("a value is missing")?;
        self.nodes.get_mut(id).ok_or_else(|| "a value is missing".into())
    }

    fn append(&mut self, new: Vec<Id>) -> ParseResult<()> {
        match self.top()? {
            Node::List(items) => items.extend(new),
            Node::Object(_) => {}
            _ => return Err("an append to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> ParseResult<()> {
        let (pairs, rest) = new.as_chunks::<2>();
        match self.top()? {
            Node::Dict(items) if rest.is_empty() => items.extend(pairs.iter().map(|&[k, v]| (k, v))),
            Node::Object(object) if rest.is_empty() => {
                object.items.extend(pairs.iter().map(|&[k, v]| (k, v)));
            }
            _ => return Err("items for a value that is not a dictionary".into()),
        }
        Ok(())
    }

    fn memoize(&mut self, key: u32) -> ParseResult<()> {
        let id = self.stack.last().copied().ok_or("a value is missing")?;
        if self.memo.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} memoized values"));
        }
        self.memo.insert(key, id);
        Ok(())
    }

    fn read_memo(&mut self, key: u32) -> ParseResult<()> {
        let id = self.memo.get(&key).copied().ok_or("a memoized value is missing")?;
        self.push_existing(id)
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> ParseResult<()> {
        let known = Global::named(module, name);
        if known.is_none() {
            self.opaque.insert((module, name));
        }
        self.push(Node::Name { module, name, known })
    }
}

impl Node<'_> {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) => "an integer",
            Node::Float(_) => "a real number",
            Node::Str(_) => "text",
            Node::Bytes(_) => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Dict(_) => "a dictionary",
            Node::Name { .. } => "a name",
            Node::Device(..) => "a device",
            Node::NumpyType { .. } => "a numpy type",
            Node::Storage { .. } => "a storage",
            Node::Tensor(_) | Node::Unsupported(_) => "a tensor",
            Node::Object(_) => "an object",
            Node::Opaque(kind) => kind,
        }
    }

    pub(super) fn size(&self) -> ParseResult<usize> {
        match self {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("{n}, expected a size")),
            other => Err(format!("expected a size, found {}", other.kind())),
        }
    }
}
