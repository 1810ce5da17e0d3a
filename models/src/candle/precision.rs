//! Values in half precision. Kernels and compositions that are no products compute in f32 what comes in halves.

use candle_core::{DType, Tensor};
use half::bf16;

use super::{
    element::{made, view},
    ops::fused,
};
use crate::{Precision, Result, kernels::rounding};

impl Precision {
    /// The type of the factors of products; none where it is that of the values.
    pub(crate) fn factors(self) -> Option<DType> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Some(DType::BF16),
            Precision::F16 => Some(DType::F16),
        }
    }
}

/// `x` as a factor of products.
pub(crate) fn factor(factors: Option<DType>, x: &Tensor) -> Result<Tensor> {
    factors.map_or_else(|| Ok(x.clone()), |dtype| convert(x, dtype))
}

/// `x` as `dtype`; between f32 and bf16 by all threads, where candle takes one.
pub(crate) fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match (x.dtype(), dtype) {
        (from, to) if from == to => Ok(x.clone()),
        (DType::F32, DType::BF16) if fused(x) => made(rounding::to_bf16(&view(&x.contiguous()?)?), x.shape()),
        (DType::BF16, DType::F32) if fused(x) => {
            made(rounding::from_bf16(&view::<bf16>(&x.contiguous()?)?), x.shape())
        }
        _ => Ok(x.to_dtype(dtype)?),
    }
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
