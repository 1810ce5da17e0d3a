//! Rounding of f32 to half precision, without branches, so that loops over it are vectorized.

use half::bf16;

/// Rounds to the nearest bf16, ties to even. NaN stays NaN.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest } as u16)
}

/// Returns the f32 value of the nearest f16, ties to even. Numbers beyond the range of f16 become infinite, NaN stays NaN.
#[inline(always)]
pub(super) fn round_to_f16(x: f32) -> f32 {
    /// The smallest normal f16, 2⁻¹⁴. Smaller numbers are multiples of 2⁻²⁴.
    const MIN_NORMAL: f32 = 1.0 / 16384.0;
    const MAX: f32 = 65504.0;
    let magnitude = x.abs();
    let bits = magnitude.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // From 0.5 to 1, neighboring f32 numbers are 2⁻²⁴ apart: the sum is rounded to that.
    let subnormal = (magnitude + 0.5) - 0.5;
    let nearest = if magnitude < MIN_NORMAL { subnormal } else { normal };
    let bounded = if nearest > MAX { f32::INFINITY } else { nearest };
    let result = if magnitude.is_nan() { magnitude } else { bounded };
    result.copysign(x)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Numbers of every exponent, with ties, infinities and NaN.
    fn numbers() -> impl Iterator<Item = f32> {
        let low = [
            0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000,
            0xffff,
        ];
        (0..=u32::from(u16::MAX)).flat_map(move |high| low.map(|low| f32::from_bits(high << 16 | low)))
    }

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and many numbers")]
    fn rounding_to_bf16_agrees_with_the_half_crate() {
        for x in numbers() {
            assert_eq!(round_to_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{x} ({:#x})", x.to_bits());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and many numbers")]
    fn rounding_to_f16_agrees_with_the_half_crate() {
        for x in numbers() {
            let (found, expected) = (round_to_f16(x), f16::from_f32(x).to_f32());
            let agrees = if x.is_nan() { found.is_nan() } else { found.to_bits() == expected.to_bits() };
            assert!(agrees, "{x:e} ({:#x}): {found:e}, not {expected:e}", x.to_bits());
        }
    }
}
