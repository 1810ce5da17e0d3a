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

/// Writes the f32 values of the nearest f16 numbers of `from` to `to`: see [`round_to_f16`]. Uses F16C instructions if the CPU has them.
#[inline(always)]
pub(super) fn round_all_to_f16(from: &[f32], to: &mut [f32]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has these instructions.
        unsafe { f16c(from, to) };
        return;
    }
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = round_to_f16(x));
}

/// # Safety
/// The CPU must have AVX and F16C.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx,f16c")]
unsafe fn f16c(from: &[f32], to: &mut [f32]) {
    use std::arch::x86_64::*;
    let n = from.len().min(to.len());
    let (from, to) = (&from[..n], &mut to[..n]);
    let mut to_chunks = to.chunks_exact_mut(8);
    let mut from_chunks = from.chunks_exact(8);
    for (to, from) in to_chunks.by_ref().zip(from_chunks.by_ref()) {
        // SAFETY: both chunks have eight numbers.
        unsafe {
            let half = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(_mm256_loadu_ps(from.as_ptr()));
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(half));
        }
    }
    let rest = to_chunks.into_remainder().iter_mut().zip(from_chunks.remainder());
    rest.for_each(|(to, &x)| *to = round_to_f16(x));
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
        let numbers: Vec<f32> = numbers().collect();
        let mut rounded = vec![0.0; numbers.len()];
        round_all_to_f16(&numbers, &mut rounded);
        for (&x, &found) in numbers.iter().zip(&rounded) {
            let expected = f16::from_f32(x).to_f32();
            let agrees =
                |found: f32| if x.is_nan() { found.is_nan() } else { found.to_bits() == expected.to_bits() };
            assert!(
                agrees(found) && agrees(round_to_f16(x)),
                "{x:e} ({:#x}): {found:e}, not {expected:e}",
                x.to_bits()
            );
        }
    }
}
