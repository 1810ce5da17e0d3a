//! How a model is opened.

use crate::{Model, runtime::RuntimeKind};

/// How to open a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What computes it; `None` for our own kernels where the model is one of ours, and else for the first that is built in of tract and
    /// ONNX Runtime.
    pub runtime: Option<RuntimeKind>,
    /// Pictures computed at once; it bounds memory and changes no result.
    pub batch: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { runtime: None, batch: 16 }
    }
}

impl LoadOptions {
    /// What computes `model`.
    pub fn runtime(&self, model: &Model) -> RuntimeKind {
        let own = cfg!(feature = "native") && model.has_definition();
        self.runtime.unwrap_or_else(|| if own { RuntimeKind::Native } else { self.graph_runtime() })
    }

    /// What computes a graph that need not be one of ours.
    pub(crate) fn graph_runtime(&self) -> RuntimeKind {
        let first = if cfg!(feature = "tract") { RuntimeKind::Tract } else { RuntimeKind::Ort };
        self.runtime.unwrap_or(first)
    }
}
