//! The values of a pickle while they are made.

use std::borrow::Cow;

use super::{globals::Global, value::Tensor};

pub(super) const MAX_VALUES: usize = 1 << 20;

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

/// All values of a pickle, by index.
#[derive(Debug, Default)]
pub(super) struct Nodes<'a>(Vec<Node<'a>>);

impl<'a> Nodes<'a> {
    /// Adds a value.
    pub(super) fn push(&mut self, node: Node<'a>) -> ParseResult<Id> {
        if self.0.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.0.push(node);
        Ok(self.0.len() - 1)
    }

    pub(super) fn node(&self, id: Id) -> ParseResult<&Node<'a>> {
        self.0.get(id).ok_or_else(|| "a value is missing".into())
    }

    pub(super) fn node_mut(&mut self, id: Id) -> ParseResult<&mut Node<'a>> {
        self.0.get_mut(id).ok_or_else(|| "a value is missing".into())
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
