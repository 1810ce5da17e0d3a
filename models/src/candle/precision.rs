//! Values in half precision. Operations other than products convert them to f32, and compute in that.

use candle_core::{DType, Tensor};

use crate::{Precision, Result};

/// The type to which the factors of products are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FactorPrecision {
    /// No rounding.
    Never,
    /// bf16, rounded by the CPU kernels that multiply them; values stay f32.
    Bf16,
    /// f16, rounded by the CPU kernels that multiply them; values stay f32.
    F16,
    /// This type, which the inputs and results of products have.
    To(DType),
}

impl FactorPrecision {
    /// Returns the type for `precision`. `has_kernels` says whether this crate's kernels compute.
    pub(crate) fn new(precision: Precision, has_kernels: bool) -> Self {
        match precision {
            Precision::F32 => Self::Never,
            Precision::Bf16 if has_kernels => Self::Bf16,
            Precision::Bf16 => Self::To(DType::BF16),
            Precision::F16 if has_kernels => Self::F16,
            Precision::F16 => Self::To(DType::F16),
        }
    }

    /// Converts `x` to the type in which products take it.
    pub(crate) fn factor(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::To(dtype) => convert(x, dtype),
            _ => Ok(x.clone()),
        }
    }
}

/// Calls `$function` for the type of `$x` and the type of its factors in products.
macro_rules! by_factor {
    ($x:expr, $rounding:expr, $function:ident ( $($args:expr),* $(,)? )) => {
        match ($x.dtype(), $rounding) {
            (candle_core::DType::F32, $crate::candle::precision::FactorPrecision::Bf16) => {
                if $crate::kernels::product::has_bf16() {
                    $function::<$crate::kernels::product::Bf16>($($args),*)
                } else {
                    $function::<$crate::kernels::product::RoundedToBf16>($($args),*)
                }
            }
            (candle_core::DType::F32, $crate::candle::precision::FactorPrecision::F16) => {
                $function::<$crate::kernels::product::RoundedToF16>($($args),*)
            }
            _ => $crate::candle::element::by_type!($x, $function($($args),*)),
        }
    };
}
pub(super) use by_factor;

/// Converts `x` to `dtype`.
pub(crate) fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(if x.dtype() == dtype { x.clone() } else { x.to_dtype(dtype)? })
}

pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// Returns the type in which values of type `dtype` are computed.
pub(crate) fn wide_type(dtype: DType) -> DType {
    if is_half(dtype) { DType::F32 } else { dtype }
}

/// Converts `x` to f32 if it is in half precision, and returns it unchanged otherwise.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    convert(x, wide_type(x.dtype()))
}
