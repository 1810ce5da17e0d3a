//! How training computes.

use serde::{Deserialize, Serialize};

/// What training may do to fit into memory, and to be quick. The default does nothing of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TapeOptions {
    /// Whether the blocks of a network are computed again on the way back, and their inputs alone are kept (gradient checkpointing;
    /// Chen et al., arXiv 1604.06174): the gradients are the same bit for bit, for about another forward pass.
    pub checkpoint: bool,
    /// What products are computed in.
    pub precision: Precision,
}

/// What the factors of matrix products are rounded to, in linear layers, convolutions and attention (mixed precision; Micikevicius et
/// al., arXiv 1710.03740). As in PyTorch's autocast, results have the factors' type, and so has what is computed of those value by value
/// or channel by channel; layer and RMS normalisation, softmax, the residual stream of a transformer, means and losses are in f32. Sums
/// are taken in f32. Parameters, their gradients and all gradients on their way back are f32, and are rounded for products alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Nothing is rounded: products are in the type of the values.
    #[default]
    F32,
    /// 8 bits of mantissa, the exponents of f32.
    Bf16,
    /// 11 bits of mantissa, numbers from 6e-8 to 65504. Gradients beyond become infinite or zero, so the loss is to be scaled: see
    /// `tape::Var::backward`. What overflows shows as gradients that are not finite.
    F16,
}
