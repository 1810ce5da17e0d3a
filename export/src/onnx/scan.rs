//! Checks of a protobuf message, without allocation, before it is decoded.
//!
//! A decoder allocates about a hundred bytes for an empty node of two bytes, so a small malicious file could exhaust the memory. It also
//! skips unknown fields, so a subgraph or a function would be ignored. This module rejects both.

use super::proto::EXTERNAL;
use crate::{Error, Result};

/// Maximum number of fields of all kinds in a file, without the contents of tensors.
const MAX_FIELDS: usize = 2_000_000;

/// The kind of a message in the schema, as far as the checks need it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageKind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    /// A message whose fields are only counted.
    Other,
}

/// The content of a field of a message.
pub(super) enum Field {
    Message(MessageKind),
    Unsupported(&'static str),
    Other,
}

pub(super) fn field(kind: MessageKind, number: u64) -> Field {
    use Field::{Message, Other, Unsupported};
    match (kind, number) {
        (MessageKind::Model, 7) => Message(MessageKind::Graph),
        (MessageKind::Model, 8 | 14) => Message(MessageKind::Other),
        (MessageKind::Model, 20) => Unsupported("training information"),
        (MessageKind::Model, 25) => Unsupported("local functions"),
        (MessageKind::Graph, 1) => Message(MessageKind::Node),
        (MessageKind::Graph, 5) => Message(MessageKind::Tensor),
        (MessageKind::Graph, 11..=14) => Message(MessageKind::Other),
        (MessageKind::Graph, 15) => Unsupported("sparse weights"),
        (MessageKind::Node, 5) => Message(MessageKind::Attribute),
        (MessageKind::Attribute, 5 | 10) => Message(MessageKind::Tensor),
        (MessageKind::Attribute, 6 | 11) => Unsupported("a subgraph"),
        (MessageKind::Tensor, 13) => Message(MessageKind::Other),
        _ => Other,
    }
}

/// Checks that `bytes` are a well-formed ONNX model of bounded size, without control flow. Returns true if a tensor's values are in
/// another file.
///
/// # Errors
/// [`Error::File`] with the name `file`.
pub fn scan(bytes: &[u8], file: &str) -> Result<bool> {
    let mut scan = Scan { fields: 0, external: false };
    scan.message(bytes, MessageKind::Model).map_err(|message| Error::file(file, "ONNX", message))?;
    Ok(scan.external)
}

struct Scan {
    fields: usize,
    external: bool,
}

impl Scan {
    fn message(&mut self, mut bytes: &[u8], kind: MessageKind) -> Result<(), String> {
        while !bytes.is_empty() {
            self.fields += 1;
            if self.fields > MAX_FIELDS {
                return Err(format!("expected at most {MAX_FIELDS} fields"));
            }
            let raw = RawField::next(&mut bytes)
                .ok_or("expected an ONNX model, found a truncated or malformed file".to_owned())?;
            match (field(kind, raw.number), raw.value) {
                (Field::Message(kind), WireValue::Bytes(content)) => self.message(content, kind)?,
                (Field::Unsupported(found), _) => {
                    return Err(format!("expected a single graph without control flow, found {found}"));
                }
                // An int32 is the lower 32 bits of the varint.
                (_, WireValue::Varint(value)) if kind == MessageKind::Tensor && raw.number == 14 => {
                    self.external |= value as i32 == EXTERNAL;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A field of a message, as stored in the file.
pub(super) struct RawField<'a> {
    pub number: u64,
    pub value: WireValue<'a>,
    /// All bytes: tag and value.
    pub bytes: &'a [u8],
}

/// The value of a field.
pub(super) enum WireValue<'a> {
    Varint(u64),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// A number of four or eight bytes.
    Fixed,
}

impl<'a> RawField<'a> {
    /// Takes the next field from `bytes`; `None` if they are malformed.
    pub fn next(bytes: &mut &'a [u8]) -> Option<Self> {
        let start = *bytes;
        let tag = varint(bytes)?;
        let value = match tag & 7 {
            0 => WireValue::Varint(varint(bytes)?),
            1 => fixed(bytes, 8)?,
            5 => fixed(bytes, 4)?,
            2 => {
                let length = usize::try_from(varint(bytes)?).ok()?;
                let (content, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                WireValue::Bytes(content)
            }
            _ => return None,
        };
        Some(Self { number: tag >> 3, value, bytes: &start[..start.len() - bytes.len()] })
    }
}

fn fixed<'a>(bytes: &mut &[u8], length: usize) -> Option<WireValue<'a>> {
    *bytes = bytes.split_at_checked(length)?.1;
    Some(WireValue::Fixed)
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
