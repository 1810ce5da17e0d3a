//! Looks through a protobuf message without allocating, before anything else decodes it.
//!
//! A decoder makes some hundred bytes out of a two-byte empty node, so a small hostile file could fill the memory; and it skips what
//! it does not know, so a subgraph or a function would go unseen. Both are refused here.

use crate::{Error, Result};

/// Fields of all kinds in a file, tensors' contents not counted.
const MAX_FIELDS: usize = 2_000_000;

/// A message of the schema, as far as counting needs it.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    /// A message that is not looked into more closely than counting its fields.
    Plain,
}

/// What a field of a message holds.
enum Field {
    Message(Kind),
    Refused(&'static str),
    Other,
}

fn field(kind: Kind, number: u64) -> Field {
    use Field::{Message, Other, Refused};
    match (kind, number) {
        (Kind::Model, 7) => Message(Kind::Graph),
        (Kind::Model, 8 | 14) => Message(Kind::Plain),
        (Kind::Model, 20) => Refused("training_info"),
        (Kind::Model, 25) => Refused("functions"),
        (Kind::Graph, 1) => Message(Kind::Node),
        (Kind::Graph, 5) => Message(Kind::Tensor),
        (Kind::Graph, 11..=14) => Message(Kind::Plain),
        (Kind::Graph, 15) => Refused("sparse_initializer"),
        (Kind::Node, 5) => Message(Kind::Attribute),
        (Kind::Attribute, 5 | 10) => Message(Kind::Tensor),
        (Kind::Attribute, 6 | 11) => Refused("subgraph"),
        (Kind::Tensor, 13) => Refused("external_data"),
        _ => Other,
    }
}

/// Checks that `bytes` are a well-formed ONNX model of bounded size, in one file and without control flow.
///
/// # Errors
/// [`Error::File`] naming `file`.
pub fn scan(bytes: &[u8], file: &str) -> Result<()> {
    let mut fields = 0;
    message(bytes, Kind::Model, &mut fields).map_err(|message| Error::file(file, "ONNX", message))
}

fn message(mut bytes: &[u8], kind: Kind, fields: &mut usize) -> Result<(), String> {
    let truncated = || "the file is truncated, or no ONNX model".to_owned();
    while !bytes.is_empty() {
        *fields += 1;
        if *fields > MAX_FIELDS {
            return Err(format!("expected at most {MAX_FIELDS} fields"));
        }
        let tag = varint(&mut bytes).ok_or_else(truncated)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes).ok_or_else(truncated)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes).ok_or_else(truncated)?,
            _ => return Err(truncated()),
        };
        let length = usize::try_from(length).ok().filter(|&n| n <= bytes.len()).ok_or_else(truncated)?;
        let (inside, rest) = bytes.split_at(length);
        bytes = rest;
        match field(kind, tag >> 3) {
            Field::Message(kind) if tag & 7 == 2 => message(inside, kind, fields)?,
            Field::Refused(what) => {
                return Err(format!("expected one plain graph in one file, found a {what}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
