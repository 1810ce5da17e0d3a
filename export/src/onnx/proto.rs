//! The part of ONNX's protobuf schema (`onnx.proto3`, IR version 8 and later) that our files use.
//!
//! Field numbers are those of the schema. The decoder skips other fields, so [`scan`](super::scan) rejects those that would change a
//! file's meaning.

use prost::Message;

use super::half_precision::to_f16;

/// Element type of weights in [half precision](super::half_precision); no other tensor has it.
pub const FLOAT16: i32 = 10;

/// Value of `data_location` for a tensor whose values are in another file.
pub const EXTERNAL: i32 = 1;

/// The element types of tensors (`TensorProto.DataType`) that the operations of a graph use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    /// 32-bit floating point.
    Float = 1,
    /// 64-bit signed integer.
    Int64 = 7,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub s: Vec<u8>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    /// Location of values in another file: `location`, `offset`, `length`.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// [`EXTERNAL`] if the values are in another file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    pub value: Option<DimensionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum DimensionValue {
    #[prost(int64, tag = "1")]
    Size(i64),
    #[prost(string, tag = "2")]
    Symbol(String),
}

impl AttributeProto {
    pub fn float(name: &str, f: f32) -> Self {
        Self { name: name.into(), f, r#type: 1, ..Default::default() }
    }

    pub fn int(name: &str, i: i64) -> Self {
        Self { name: name.into(), i, r#type: 2, ..Default::default() }
    }

    pub fn string(name: &str, s: &str) -> Self {
        Self { name: name.into(), s: s.into(), r#type: 3, ..Default::default() }
    }

    pub fn ints(name: &str, ints: impl IntoIterator<Item = usize>) -> Self {
        let ints = ints.into_iter().map(|i| i as i64).collect();
        Self { name: name.into(), ints, r#type: 7, ..Default::default() }
    }
}

impl ValueInfoProto {
    /// Describes a tensor whose first axis is the batch.
    pub fn batched(name: &str, dtype: DataType, dims: &[usize]) -> Self {
        let batch = DimensionValue::Symbol("batch".into());
        let sizes = dims.iter().map(|&d| DimensionValue::Size(d as i64));
        let dim = std::iter::once(batch).chain(sizes).map(|v| DimensionProto { value: Some(v) }).collect();
        let tensor = TensorTypeProto { elem_type: dtype as i32, shape: Some(TensorShapeProto { dim }) };
        Self { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
    }
}

impl TensorProto {
    pub fn floats(name: &str, dims: &[usize], values: &[f32]) -> Self {
        Self::raw(name, dims, DataType::Float as i32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Creates a tensor in half precision from values that f16 represents exactly.
    pub(super) fn f16(name: &str, dims: &[usize], values: &[f32]) -> Self {
        let raw = to_f16(values).iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::raw(name, dims, FLOAT16, raw)
    }

    pub fn ints(name: &str, values: &[i64]) -> Self {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::raw(name, &[values.len()], DataType::Int64 as i32, raw)
    }

    /// Returns the size of the values in bytes, computed from shape and type.
    ///
    /// # Errors
    /// The expected and found type or shape.
    pub fn size(&self) -> Result<usize, String> {
        let count = self.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        let item_size = match self.data_type {
            1 | 6 | 12 => 4,
            7 | 11 | 13 => 8,
            2 | 3 | 9 => 1,
            4 | 5 | 10 | 16 => 2,
            found => return Err(format!("expected a numeric type, found type {found}")),
        };
        let size = count.and_then(|n| n.checked_mul(item_size));
        size.ok_or_else(|| format!("expected a shape, found {:?}", self.dims))
    }

    fn raw(name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) -> Self {
        let dims = dims.iter().map(|&d| d as i64).collect();
        Self { name: name.into(), dims, data_type, raw_data, ..Default::default() }
    }
}
