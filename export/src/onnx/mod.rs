//! The ONNX backend, which exports a definition to a graph that any runtime can load, and a reader of ONNX files.

mod builder;
mod digest;
mod external;
mod file;
mod graph;
mod guidance;
mod half_precision;
pub(crate) mod proto;
mod scan;
mod value;

pub use file::{OnnxFile, ValueInfo};
pub use graph::{DEFAULT_OPSET, OPSETS, OnnxGraph, OnnxSource};
pub use half_precision::WeightStorage;
pub(crate) use half_precision::round_to_f16;
pub use proto::DataType;
pub use value::{Param, Value};
