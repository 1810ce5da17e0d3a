//! The pickle inside of a PyTorch file, read as data.
//!
//! A pickle is a program for a stack machine; this is that machine with everything that could act taken out. The opcodes are those that
//! PyTorch emits with protocols 2 to 5 (Python's `pickletools` describes them), the names that it may mention are a closed list, and
//! what those names would do when called is written out in [`Machine::reduce`], in `globals.rs`.

use std::{borrow::Cow, collections::HashMap};

use super::{
    globals::Global,
    value::{Tensor, Value},
};
use crate::checkpoint::{Problem, numbers::Dtype};

/// The largest pickle; the numbers of tensors stand elsewhere.
pub(super) const MAX_BYTES: u64 = 32 << 20;
const MAX_VALUES: usize = 1 << 20;
const MAX_TEXT: usize = 64 << 20;
const MAX_DEPTH: usize = 64;

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

pub(super) type Id = usize;
pub(super) type Step<T> = Result<T, String>;

/// A value while it is built. The memo shares values and later opcodes change them, so they refer to one another by number.
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
    Global(Global),
    Device(&'a str, Option<i64>),
    NumpyType { kind: u8, size: u8, big_endian: bool },
    Storage { dtype: Option<Dtype>, key: &'a str },
    Tensor(Box<Tensor>),
}

pub(super) struct Machine<'a> {
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

    pub(super) fn node(&self, id: Id) -> Step<&Node<'a>> {
        self.nodes.get(id).ok_or_else(|| "a value is missing".into())
    }

    pub(super) fn top(&mut self) -> Step<&mut Node<'a>> {
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
}

impl Node<'_> {
    pub(super) fn kind(&self) -> &'static str {
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
            Node::Device(..) => "a device",
            Node::NumpyType { .. } => "a numpy type",
            Node::Storage { .. } => "a storage",
            Node::Tensor(_) => "a tensor",
        }
    }

    pub(super) fn size(&self) -> Step<usize> {
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
    fn text(&mut self, text: &str) -> Step<String> {
        self.text += text.len();
        if self.text > MAX_TEXT {
            return Err(format!("more than {MAX_TEXT} bytes of text"));
        }
        Ok(text.to_owned())
    }

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
            Node::Str(s) => Value::Str(self.text(s)?),
            Node::Device(kind, index) => {
                let index = index.map(|i| format!(":{i}")).unwrap_or_default();
                Value::Str(self.text(kind)? + &index)
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

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/fixtures/torch/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        let folder = name.trim_end_matches(".pt");
        zip.by_name(&format!("{folder}/data.pkl")).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Without the archive's checksums in the way.
    #[test]
    fn no_altered_pickle_makes_the_machine_panic() {
        for name in ["training.pt", "views.pt", "values.pt"] {
            let good = fixture(name);
            assert!(parse(&good).is_ok());
            for i in 0..good.len() {
                assert!(parse(&good[..i]).is_err(), "{name} cut to {i} bytes");
                for byte in (0..=255).step_by(17) {
                    let mut bad = good.clone();
                    bad[i] = byte;
                    if let Ok(value) = parse(&bad) {
                        value.tensors().iter().for_each(|(_, t)| drop(t.bytes_needed()));
                    }
                }
            }
        }
    }

    fn refused(pickle: &[u8], why: &str) {
        match parse(pickle) {
            Err(Problem::Malformed { message, .. }) => {
                assert!(message.contains(why), "{message}, expected {why}")
            }
            other => panic!("{other:?}, expected {why}"),
        }
    }

    #[test]
    fn what_would_not_end_or_not_fit_is_refused() {
        refused(b"\x80\x02]q\x00h\x00a.", "nested more than");
        let deep = [vec![b']'; 1000], vec![b'a'; 999], vec![b'.']].concat();
        refused(&deep, "nested more than");
        // A list of two of a list of two of ..: a million values from each 20 doublings.
        let mut laughs = b"]".to_vec();
        for i in 0..50u8 {
            laughs.extend([b'q', i, b']', b'(', b'h', i, b'h', i, b'e']);
        }
        laughs.push(b'.');
        refused(&laughs, "values");
        refused(&[vec![b'N'; MAX_VALUES + 1], vec![b'.']].concat(), "values");
        refused(b"X\xff\xff\xff\xffa.", "too early");
        refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "too early");
        refused(b"\x8a\x091234567890.", "64 bits");
        let text = [b"X\x00\x00\x10\x00".to_vec(), vec![b'a'; 1 << 20], b"q\x00].".to_vec()].concat();
        assert!(parse(&text).is_ok());
        let repeated = [&text[..text.len() - 2], b"](", &b"h\x00".repeat(100)[..], b"e."].concat();
        refused(&repeated, "text");
    }

    #[test]
    fn only_the_names_of_tensors_may_be_mentioned() {
        refused(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system");
        refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval");
        refused(b"ctorch\nload\n.", "torch.load");
        refused(b"ctorch\nFloatStorage\n)R.", "a call of a type");
        refused(b"K\x01)R.", "a call of a whole number");
        refused(b"\x81.", "0x81");
    }
}
