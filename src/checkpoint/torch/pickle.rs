//! The pickle in a PyTorch file, parsed as data.
//!
//! A pickle is a program for a stack machine. This is that machine without side effects. The opcodes are those of protocols 2 to 5
//! (Python's `pickletools` describes them). No name is imported: [`Nodes::reduce`] implements the results of calls of known names. A call
//! of any other name makes an object with class, attributes and items only.

use std::collections::{BTreeSet, HashMap};

use super::{
    globals::{Global, full_name},
    node::{Id, MAX_VALUES, Node, Nodes, ParseResult},
    tree::TreeBuilder,
    value::Value,
};
use crate::checkpoint::ErrorKind;

/// The largest pickle, in bytes. It contains the numbers of numpy arrays, but not those of tensors.
pub(super) const MAX_BYTES: u64 = 256 << 20;
/// The largest number of times that values are pushed onto the stack again.
pub(super) const MAX_MEMO_READS: usize = 1 << 22;
/// The largest number of unknown names that are listed.
const MAX_NAMES: usize = 100;

/// Parses the value that the pickle describes, and the names of unknown classes and functions.
pub(super) fn parse(pickle: &[u8]) -> Result<(Value, Vec<String>), ErrorKind> {
    let mut machine = Unpickler {
        input: pickle,
        at: 0,
        nodes: Nodes::default(),
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

struct Unpickler<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Nodes<'a>,
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
                let id = self.top_id()?;
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
                let (Node::Str(module), Node::Str(name)) = (self.nodes.node(module)?, self.nodes.node(name)?)
                else {
                    return Err("a name that is not text".into());
                };
                self.global(module, name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.nodes.storage(id)?;
                self.push(storage)?;
            }
            // Calls of a function, of a class, and of a class with named arguments.
            b'R' | b'\x81' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let node = self.nodes.reduce(function, self.nodes.tuple(arguments)?)?;
                self.push(node)?;
            }
            b'\x92' => {
                let (_, arguments) = (self.pop()?, self.pop()?);
                let class = self.pop()?;
                let node = self.nodes.reduce(class, self.nodes.tuple(arguments)?)?;
                self.push(node)?;
            }
            b'i' => {
                let arguments = self.pop_marked()?;
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
                let class = self.pop()?;
                let node = self.nodes.reduce(class, &arguments)?;
                self.push(node)?;
            }
            b'o' => {
                let items = self.pop_marked()?;
                let [class, arguments @ ..] = &items[..] else {
                    return Err("a call without a function".into());
                };
                let node = self.nodes.reduce(*class, arguments)?;
                self.push(node)?;
            }
            b'b' => {
                let state = self.pop()?;
                let id = self.top_id()?;
                self.nodes.build(id, state)?;
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
        let id = self.nodes.push(node)?;
        self.stack.push(id);
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

    fn top_id(&self) -> ParseResult<Id> {
        self.stack.last().copied().ok_or_else(|| "a value is missing".into())
    }

    fn top(&mut self) -> ParseResult<&mut Node<'a>> {
        let id = self.top_id()?;
        self.nodes.node_mut(id)
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
        let id = self.top_id()?;
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
