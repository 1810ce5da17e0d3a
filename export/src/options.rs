//! Options for loading a model.

use crate::{Model, runtime::RuntimeKind};

/// The runtime and the batch size of a loaded model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The runtime. `None` selects the native runtime for our own models. For other models it selects tract, or ONNX Runtime if
    /// tract is not built in.
    pub runtime: Option<RuntimeKind>,
    /// Number of images computed at once. It bounds memory and does not affect results.
    pub batch: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { runtime: None, batch: 16 }
    }
}

impl LoadOptions {
    /// Returns the runtime for `model`.
    pub fn runtime(&self, model: &Model) -> RuntimeKind {
        let is_native = cfg!(feature = "native") && model.has_definition();
        self.runtime.unwrap_or_else(|| if is_native { RuntimeKind::Native } else { self.graph_runtime() })
    }

    /// Returns the runtime for a graph that may come from another program.
    pub(crate) fn graph_runtime(&self) -> RuntimeKind {
        let default = if cfg!(feature = "tract") { RuntimeKind::Tract } else { RuntimeKind::Ort };
        self.runtime.unwrap_or(default)
    }
}
