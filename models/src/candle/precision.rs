//! Values in half precision. Kernels and compositions that are no products compute in f32 what comes in halves.

use candle_core::{DType, Device, Tensor};

use super::ops::has_kernels;
use crate::{Precision, Result};

/// How the factors of products are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FactorPrecision {
    /// Not at all.
    Never,
    /// To bf16, by the kernels that multiply them: values stay f32.
    Bf16,
    /// To this type, in which they are handed to products, and results come back.
    To(DType),
}

impl FactorPrecision {
    pub(crate) fn new(precision: Precision, device: &Device) -> Self {
        match precision {
            Precision::F32 => Self::Never,
            Precision::Bf16 if has_kernels(device) => Self::Bf16,
            Precision::Bf16 => Self::To(DType::BF16),
            Precision::F16 => Self::To(DType::F16),
        }
    }

    /// `x` as it is handed to products.
    pub(crate) fn factor(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::To(dtype) => convert(x, dtype),
            _ => Ok(x.clone()),
        }
    }
}

/// Calls `$function` with the way to multiply `$x`, and its type with it.
macro_rules! by_factor {
    ($x:expr, $rounding:expr, $function:ident ( $($args:expr),* $(,)? )) => {
        match ($x.dtype(), $rounding) {
            (candle_core::DType::F32, $crate::candle::precision::FactorPrecision::Bf16) => {
                if $crate::kernels::product::has_bf16() {
                    $function::<$crate::kernels::product::Bf16>($($args),*)
                } else {
                    $function::<$crate::kernels::product::Widened>($($args),*)
                }
            }
            _ => $crate::candle::element::by_type!($x, $function($($args),*)),
        }
    };
}
pub(super) use by_factor;

/// `x` as `dtype`.
pub(crate) fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(if x.dtype() == dtype { x.clone() } else { x.to_dtype(dtype)? })
}

pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// What values of this type are computed in.
pub(crate) fn wide_type(dtype: DType) -> DType {
    if is_half(dtype) { DType::F32 } else { dtype }
}

/// `x` in f32 where it is in halves, and as it is otherwise.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    convert(x, wide_type(x.dtype()))
}
