//! How a model is opened.

use crate::runtime::RuntimeKind;

/// How to open a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// What computes it; `None` for the first that is built in of tract, ONNX Runtime, candle.
    pub runtime: Option<RuntimeKind>,
    /// Pictures computed at once; it bounds memory and changes no result.
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { runtime: None, batch: 16 }
    }
}

impl Options {
    /// What computes the model.
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime.unwrap_or(if cfg!(feature = "tract") {
            RuntimeKind::Tract
        } else if cfg!(feature = "ort") {
            RuntimeKind::Ort
        } else {
            RuntimeKind::Candle
        })
    }
}
