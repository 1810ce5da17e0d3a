//! Options of the tape: gradient checkpointing and precision.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Options that reduce the memory or time of training. By default none is enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TapeOptions {
    /// True if backward recomputes the blocks of a network from their inputs, and keeps no other activations (gradient checkpointing; Chen et
    /// al., arXiv 1604.06174). The gradients are the same bit for bit; the cost is about one more forward pass.
    pub checkpoint: bool,
    /// Type of the factors of matrix products.
    pub precision: Precision,
}

impl TapeOptions {
    /// Returns options whose tape on any device keeps as much memory as these options do on a CPU. The CPU's kernels round
    /// factors while they multiply, and values stay f32.
    pub fn on_cpu(self) -> Self {
        Self { precision: Precision::F32, ..self }
    }
}

/// The type to which the factors of matrix products are rounded, in linear layers, convolutions and attention (mixed precision;
/// Micikevicius et al., arXiv 1710.03740).
///
/// As in PyTorch's autocast, results have the factors' type, and so do results of elementwise and channelwise operations on them.
/// Layer and RMS normalization, softmax, the residual stream of a transformer, means and losses are in f32. Sums are computed in
/// f32. Parameters, their gradients and the gradients of activations are f32, and are rounded for products alone. On a CPU
/// only the factors are rounded: results are f32, since rounding them gains nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// No rounding: products are in the type of the values.
    #[default]
    F32,
    /// 8 bits of mantissa, and the exponents of f32.
    Bf16,
    /// 11 bits of mantissa, numbers from 6e-8 to 65504. Gradients beyond become infinite or zero, so the loss must be scaled: see
    /// `tape::Var::backward`. An overflow shows as gradients that are not finite.
    F16,
}

impl Precision {
    /// All precisions, with their names.
    pub const ALL: [(Self, &'static str); 3] = [(Self::F32, "f32"), (Self::Bf16, "bf16"), (Self::F16, "f16")];
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::ALL.iter().find(|(precision, _)| precision == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(precision, _)| *precision).ok_or_else(|| Error::Config {
            field: "precision",
            message: format!("expected one of {}, found {text}", Self::ALL.map(|p| p.1).join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_parse_and_serde_use_the_same_names() {
        for (precision, name) in Precision::ALL {
            assert_eq!((precision.to_string(), name.parse::<Precision>().unwrap()), (name.into(), precision));
            assert_eq!(serde_json::to_value(precision).unwrap(), name);
        }
        let error = "bf17".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "precision: expected one of f32, bf16, f16, found bf17");
    }
}
