//! Between f32 and bf16.

use half::bf16;
use rayon::prelude::*;

use super::VALUES;

/// The nearest bf16, of two the even one; NaN stays NaN. Without a branch, so that loops over it become vector code.
#[inline(always)]
fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest } as u16)
}

/// Each value rounded.
pub(crate) fn to_bf16(x: &[f32]) -> Vec<bf16> {
    let mut y = vec![bf16::ZERO; x.len()];
    y.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = rounded(x));
    });
    y
}

/// Each value exactly.
pub(crate) fn from_bf16(x: &[bf16]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(VALUES).zip(x.par_chunks(VALUES)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = f32::from_bits(u32::from(x.to_bits()) << 16));
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of numbers of every exponent, halfway cases, infinities and NaN.
    #[test]
    fn rounds_as_the_half_crate_does() {
        let bits = (0..=u32::from(u16::MAX))
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        let x: Vec<f32> = bits.map(f32::from_bits).collect();
        for (&x, y) in x.iter().zip(to_bf16(&x)) {
            assert_eq!(y.to_bits(), bf16::from_f32(x).to_bits(), "{x} ({:#x})", x.to_bits());
        }
        let halves: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        for (&half, x) in halves.iter().zip(from_bf16(&halves)) {
            assert!(x.to_bits() == half.to_f32().to_bits() || x.is_nan() && half.is_nan(), "{half}");
        }
    }
}
