//! Laying factors out as panels.

use super::{super::simd::vectorised, Factor, PANEL, Steps, Strides};

/// Units that a panel of so many inner indices is deep.
pub(super) fn depth<F: Factor>(k: usize) -> usize {
    k.div_ceil(F::EACH).next_multiple_of(F::GRAIN)
}

/// Lays `k` rows and at most [`PANEL`] columns of `b` out as a panel `[units][PANEL]`; what is missing is zero.
pub(super) fn pack<F: Factor>(
    panel: &mut [F::Unit],
    [columns, k]: [usize; 2],
    b: &[F::Number],
    strides: Strides,
) {
    if columns < PANEL || depth::<F>(k) * F::EACH > k {
        panel.fill(F::Unit::default());
    }
    if strides.col == 1 {
        below::<F>(panel, [columns, k], b, strides.row);
        return;
    }
    assert!(strides.row == 1, "the numbers of a row or of a column follow each other");
    if let Some(units) = F::as_units(b) {
        assert!(b.len() >= strides.end(k, columns), "the slice holds the matrix");
        // SAFETY: column c has `k` units from its first number on.
        unsafe { transpose(|c| units.as_ptr().add(c * strides.col), [columns, k], panel, PANEL) };
        return;
    }
    // Some units of all columns at a time, which stay close.
    let mut units = [F::Unit::default(); PANEL * SOME];
    for p in Steps::new(0, k, SOME * F::EACH) {
        let n = p.len().div_ceil(F::EACH);
        for (c, units) in units.chunks_exact_mut(SOME).take(columns).enumerate() {
            along::<F>(&b[c * strides.col..][p.clone()], &mut units[..n]);
        }
        let panel = &mut panel[p.start / F::EACH * PANEL..];
        // SAFETY: there are so many units for each column.
        unsafe { transpose(|c| units[c * SOME..].as_ptr(), [columns, n], panel, PANEL) };
    }
}

/// Units that are made before they are put in their places.
const SOME: usize = if cfg!(miri) { 17 } else { 64 };

vectorised! {
    fn below<F: Factor>(panel: &mut [F::Unit], columns_and_k: [usize; 2], b: &[F::Number], row: usize) {
        let [columns, k] = columns_and_k;
        for (p, units) in (0..k).step_by(F::EACH).zip(panel.chunks_exact_mut(PANEL)) {
            let second = (F::EACH > 1 && p + 1 < k).then(|| &b[(p + 1) * row..][..columns]);
            F::below(&b[p * row..][..columns], second, &mut units[..columns]);
        }
    }
}

vectorised! {
    /// Units of numbers that follow each other.
    pub(super) fn along<F: Factor>(numbers: &[F::Number], units: &mut [F::Unit]) {
        F::along(numbers, units);
    }
}

/// `to[j·width + i]` is unit `j` of line `i`.
///
/// # Safety
/// `line` must point at `n` units for each of `lines`, aligned or not.
pub(super) unsafe fn transpose<U: Copy>(
    line: impl Fn(usize) -> *const U,
    [lines, n]: [usize; 2],
    to: &mut [U],
    width: usize,
) {
    assert!(lines <= width && to.len() >= Strides::rows(width).end(n, lines), "there is room for the units");
    // What is done by squares.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut done = [0; 2];
    #[cfg(target_arch = "x86_64")]
    if size_of::<U>() == 4 && is_x86_feature_detected!("avx512f") {
        done = [lines, n].map(|n| n / SQUARE * SQUARE);
        for i in (0..done[0]).step_by(SQUARE) {
            for j in (0..done[1]).step_by(SQUARE) {
                // SAFETY: the instructions are there; lines and `to` reach so far, as was asserted and as the caller says.
                unsafe {
                    let from = std::array::from_fn(|l| line(i + l).add(j).cast());
                    square(from, to.as_mut_ptr().add(j * width + i).cast(), width);
                }
            }
        }
    }
    // Some units of all lines at a time: whole cache lines are read, and what is written stays at hand.
    for units in Steps::new(0, n, 8) {
        for i in 0..lines {
            let line = line(i);
            let first = if i < done[0] { done[1].max(units.start) } else { units.start };
            for j in first..units.end {
                // SAFETY: as the caller says.
                to[j * width + i] = unsafe { line.add(j).read_unaligned() };
            }
        }
    }
}

/// Units along an edge of what is transposed at once.
#[cfg(target_arch = "x86_64")]
const SQUARE: usize = 16;

/// Transposes 16 lines of 16 units of four bytes: pairs, then fours, then lanes change places.
///
/// # Safety
/// The processor must have AVX-512, there must be 16 units at each of `from`, and at 16 places `width` units apart in `to`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn square(from: [*const u32; SQUARE], to: *mut u32, width: usize) {
    use std::{arch::x86_64::*, array::from_fn};
    // SAFETY: as the caller says.
    unsafe {
        let lines: [__m512i; SQUARE] = from.map(|line| _mm512_loadu_si512(line.cast()));
        let pairs: [__m512i; SQUARE] = from_fn(|i| {
            let (a, b) = (lines[i & !1], lines[i | 1]);
            if i & 1 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
        });
        // Lane l of fours[4·g + c] is unit 4·l + c of lines 4·g to 4·g + 3.
        let fours: [__m512i; SQUARE] = from_fn(|i| {
            let (a, b) = (pairs[i & !3 | i >> 1 & 1], pairs[i & !3 | i >> 1 & 1 | 2]);
            if i & 1 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
        });
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        for c in 0..4 {
            let [even, odd] = [0, 8].map(|g| {
                let (a, b) = (fours[g + c], fours[g + 4 + c]);
                (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b))
            });
            let units = [
                _mm512_shuffle_i32x4::<EVEN>(even.0, odd.0),
                _mm512_shuffle_i32x4::<EVEN>(even.1, odd.1),
                _mm512_shuffle_i32x4::<ODD>(even.0, odd.0),
                _mm512_shuffle_i32x4::<ODD>(even.1, odd.1),
            ];
            for (l, units) in units.into_iter().enumerate() {
                _mm512_storeu_si512(to.add((4 * l + c) * width).cast(), units);
            }
        }
    }
}
