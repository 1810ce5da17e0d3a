//! How training computes.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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

impl TapeOptions {
    /// The options whose tape keeps what this one keeps on a processor: its kernels round to bf16 while they multiply, and values stay f32.
    pub fn on_cpu(self) -> Self {
        let precision = if self.precision == Precision::Bf16 { Precision::F32 } else { self.precision };
        Self { precision, ..self }
    }
}

/// What the factors of matrix products are rounded to, in linear layers, convolutions and attention (mixed precision; Micikevicius et
/// al., arXiv 1710.03740). As in PyTorch's autocast, results have the factors' type, and so has what is computed of those value by value
/// or channel by channel; layer and RMS normalisation, softmax, the residual stream of a transformer, means and losses are in f32. Sums
/// are taken in f32. Parameters, their gradients and all gradients on their way back are f32, and are rounded for products alone. On a
/// processor bf16 is for products alone, too: results are f32, since nothing is gained by rounding them.
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

impl Precision {
    /// All of them, and their names.
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

    fn from_str(given: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(_, name)| *name == given);
        known.map(|(precision, _)| *precision).ok_or_else(|| Error::Config {
            field: "precision",
            message: format!("expected one of {}, found {given}", Self::ALL.map(|p| p.1).join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_has_one_name_everywhere() {
        for (precision, name) in Precision::ALL {
            assert_eq!((precision.to_string(), name.parse::<Precision>().unwrap()), (name.into(), precision));
            assert_eq!(serde_json::to_value(precision).unwrap(), name);
        }
        let error = "bf17".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "precision: expected one of f32, bf16, f16, found bf17");
    }
}
