//! The ONNX reading: a definition written down as a graph that any runtime can load.

mod digest;
mod external;
mod file;
mod graph;
mod guidance;
mod halves;
pub(crate) mod proto;
mod scan;
mod value;

pub use file::{OnnxFile, ValueInfo};
pub use graph::{DEFAULT_OPSET, OPSETS, OnnxGraph, OnnxSource};
pub use halves::WeightStorage;
pub(crate) use halves::rounded;
pub use proto::DataType;
pub use value::{Param, Value};
