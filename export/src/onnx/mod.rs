//! The ONNX reading: a definition written down as a graph that any runtime can load.

mod graph;
mod proto;
mod value;

pub use graph::{DEFAULT_OPSET, OPSETS, OnnxGraph, OnnxSource};
pub use value::{Param, Value};
