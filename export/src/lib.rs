//! Writes models as ONNX, proves the file numerically, and samples from it.

mod atomic;
mod font;
mod grid;

pub use atomic::write_atomically;
pub use grid::{grid, to_rgb};
