//! From f32 to bf16.

use half::bf16;

/// The nearest bf16, of two the even one; NaN stays NaN. Without a branch, so that loops over it become vector code.
#[inline(always)]
pub(super) fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of numbers of every exponent, halfway cases, infinities and NaN.
    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and many numbers")]
    fn rounds_as_the_half_crate_does() {
        let bits = (0..=u32::from(u16::MAX))
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        for x in bits.map(f32::from_bits) {
            assert_eq!(rounded(x).to_bits(), bf16::from_f32(x).to_bits(), "{x} ({:#x})", x.to_bits());
        }
    }
}
