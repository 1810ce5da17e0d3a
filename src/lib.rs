//! Trains small image models, writes them as ONNX, proves the file is the model, and runs it anywhere.

pub mod checkpoint;
