//! How training computes.

use serde::{Deserialize, Serialize};

/// What training may do to fit into memory, and to be quick. The default does nothing of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TapeOptions {
    /// Whether the blocks of a network are computed again on the way back, and their inputs alone are kept (gradient checkpointing;
    /// Chen et al., arXiv 1604.06174): the gradients are the same bit for bit, for about another forward pass.
    pub checkpoint: bool,
}
