//! Writes models as ONNX, proves the file numerically, and samples from it.

mod atomic;

pub use atomic::write_atomically;
