//! The contents of a PyTorch file as plain data.

use std::sync::Arc;

use crate::checkpoint::{ErrorKind, error::printable, tensor_data::Dtype};

/// A value in a PyTorch file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A real number, also of a numpy scalar.
    Float(f64),
    /// Text, also the name of a number type or device.
    Str(String),
    /// A list.
    List(Vec<Value>),
    /// A tuple or a `torch.Size`.
    Tuple(Vec<Value>),
    /// A dictionary or an `OrderedDict`, in its own order. A later key overrides an equal earlier one.
    Dict(Vec<(Value, Value)>),
    /// A tensor, whose numbers are still in the file.
    Tensor(Tensor),
    /// A tensor of an unsupported type.
    Unsupported {
        /// Its type, such as `torch.float8_e4m3fn`, `quantized` or `sparse`.
        kind: String,
        /// The sizes of its axes, if they are known.
        dims: Vec<usize>,
    },
    /// An object of an unknown class; nothing was imported or called.
    Object {
        /// The class, or the function that would make the object, such as `argparse.Namespace`.
        class: String,
        /// Its attributes in the file, or its items if it is a kind of dictionary. Objects among them have no attributes.
        attributes: Vec<(Value, Value)>,
    },
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The type of its numbers.
    pub dtype: Dtype,
    /// The sizes of its axes; empty for a scalar.
    pub dims: Vec<usize>,
    /// The distance in the storage between neighbors along each axis, in numbers.
    pub strides: Vec<usize>,
    /// The offset of the first element in the storage, in numbers.
    pub offset: usize,
    /// The name of the storage in the file; tensors may share one.
    pub storage: Arc<str>,
    /// The size of the storage, in bytes.
    pub storage_bytes: usize,
}

impl Value {
    /// The value under a text key of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Dict(items) => {
                items.iter().rev().find(|(k, _)| matches!(k, Value::Str(k) if k == key)).map(|(_, v)| v)
            }
            _ => None,
        }
    }

    /// The tensors of a dictionary, with their keys; other values are skipped.
    pub fn tensors(&self) -> Vec<(&str, &Tensor)> {
        let Value::Dict(items) = self else { return Vec::new() };
        items
            .iter()
            .filter_map(|(k, v)| match (k, v) {
                (Value::Str(k), Value::Tensor(t)) => Some((k.as_str(), t)),
                _ => None,
            })
            .collect()
    }

    /// Describes the value for messages; names at most `max` values of a dictionary.
    pub(in crate::checkpoint) fn describe(&self, max: usize) -> String {
        let text = match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a real number",
            Value::Str(_) => "text",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(items) if max == 0 || items.is_empty() => {
                return format!("a dictionary of {} values", items.len());
            }
            Value::Dict(items) => {
                let named = items
                    .iter()
                    .take(max)
                    .map(|(k, v)| format!("{} ({})", printable(&k.key(), 40), v.describe(0)));
                let rest = items.len().saturating_sub(max);
                let rest = (rest > 0).then(|| format!("{rest} more"));
                return named.chain(rest).collect::<Vec<_>>().join(", ");
            }
            Value::Tensor(_) => "a tensor",
            Value::Unsupported { kind, .. } => return format!("a tensor of type {kind}"),
            Value::Object { class, .. } => return class.clone(),
        };
        text.to_owned()
    }

    /// Converts to JSON, with `null` for values that JSON lacks: tensors, numbers that are not finite, and objects without attributes.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::None | Value::Tensor(_) | Value::Unsupported { .. } => Json::Null,
            Value::Object { attributes, .. } if attributes.is_empty() => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(x) => (*x).into(),
            Value::Str(s) => s.as_str().into(),
            Value::List(items) | Value::Tuple(items) => items.iter().map(Value::to_json).collect(),
            Value::Dict(items) | Value::Object { attributes: items, .. } => {
                items.iter().map(|(k, v)| (k.key(), v.to_json())).collect()
            }
        }
    }

    fn key(&self) -> String {
        match self {
            Value::Str(s) => s.clone(),
            other => other.to_json().to_string(),
        }
    }
}

impl Tensor {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Checks that no product or sum of sizes overflows, and returns the number of bytes that it needs in its storage.
    pub(super) fn bytes_needed(&self) -> Result<usize, ErrorKind> {
        let checked = || {
            self.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
            if self.dims.contains(&0) {
                return Some(0);
            }
            let steps = self.dims.iter().zip(&self.strides);
            let last = steps
                .map(|(d, s)| (d - 1).checked_mul(*s))
                .try_fold(self.offset, |sum, x| sum.checked_add(x?))?;
            last.checked_add(1)?.checked_mul(self.dtype.size())
        };
        checked().ok_or_else(|| {
            ErrorKind::malformed(&*self.storage, format!("a tensor of shape {:?} is too large", self.dims))
        })
    }

    /// The tensor's bytes in row-major order, from a storage of at least [`bytes_needed`](Self::bytes_needed) bytes.
    pub(super) fn gather<'a>(&self, storage: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        let size = self.dtype.size();
        let n = self.elements();
        let element = |i: usize| storage.get(i * size..).and_then(|s| s.get(..size)).unwrap_or_default();
        if n == 0 {
            return Default::default();
        }
        if self.is_contiguous() {
            return storage.get(self.offset * size..(self.offset + n) * size).unwrap_or_default().into();
        }
        let mut bytes = Vec::with_capacity(n * size);
        let mut index = vec![0; self.dims.len()];
        let mut position = self.offset;
        loop {
            bytes.extend_from_slice(element(position));
            // Increments the index, the last axis first.
            let mut axis = self.dims.len();
            loop {
                if axis == 0 {
                    return bytes.into();
                }
                axis -= 1;
                position += self.strides[axis];
                index[axis] += 1;
                if index[axis] < self.dims[axis] {
                    break;
                }
                position -= self.strides[axis] * self.dims[axis];
                index[axis] = 0;
            }
        }
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.dims.iter().zip(&self.strides).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[usize], strides: &[usize], offset: usize) -> Tensor {
        Tensor {
            dtype: Dtype::U8,
            dims: dims.into(),
            strides: strides.into(),
            offset,
            storage: "0".into(),
            storage_bytes: 24,
        }
    }

    #[test]
    fn gather_follows_the_strides() {
        let storage: Vec<u8> = (0..24).collect();
        for (dims, strides, offset) in [
            (vec![2, 3, 4], vec![12, 4, 1], 0),
            (vec![4, 3, 2], vec![1, 4, 12], 0),
            (vec![3, 2], vec![4, 2], 5),
            (vec![2, 3], vec![0, 1], 21),
            (vec![1, 4], vec![99, 1], 20),
            (vec![], vec![], 23),
        ] {
            let t = tensor(&dims, &strides, offset);
            let mut expected = vec![offset];
            for (d, s) in dims.iter().zip(&strides) {
                expected = expected.iter().flat_map(|p| (0..*d).map(move |i| p + i * s)).collect();
            }
            let expected: Vec<u8> = expected.into_iter().map(|p| p as u8).collect();
            assert!(t.bytes_needed().unwrap() <= storage.len());
            assert_eq!(*t.gather(&storage), expected, "{dims:?} {strides:?} {offset}");
        }
        assert!(tensor(&[0, 5], &[5, 1], 99).gather(&[]).is_empty());
    }

    #[test]
    fn overflowing_sizes_are_rejected() {
        for t in [
            tensor(&[1 << 40, 1 << 40], &[0, 0], 0),
            tensor(&[2, 0, 1 << 63, 2], &[1, 1, 1, 1], 0),
            tensor(&[3], &[1 << 63], 0),
            tensor(&[3], &[1], usize::MAX),
        ] {
            assert!(t.bytes_needed().is_err());
        }
    }
}
