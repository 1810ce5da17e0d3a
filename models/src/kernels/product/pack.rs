//! Packing of factors into panels.

use super::{super::simd::vectorized, Factor, PANEL, Steps, Strides};

/// Returns the depth, in units, of a panel of `k` inner indices.
pub(super) fn depth<F: Factor>(k: usize) -> usize {
    k.div_ceil(F::UNIT_LEN).next_multiple_of(F::DEPTH_MULTIPLE)
}

/// Packs `k` rows and at most [`PANEL`] columns of `b` into a panel `[units][PANEL]`, padded with zeros.
///
/// # Panics
/// If neither the rows nor the columns of `b` are contiguous.
pub(super) fn pack<F: Factor>(
    panel: &mut [F::Unit],
    [columns, k]: [usize; 2],
    b: &[F::Number],
    strides: Strides,
) {
    if columns < PANEL || depth::<F>(k) * F::UNIT_LEN > k {
        panel.fill(F::Unit::default());
    }
    if strides.col == 1 {
        pack_rows::<F>(panel, [columns, k], b, strides.row);
        return;
    }
    assert!(strides.row == 1, "expected contiguous rows or columns");
    if let Some(units) = F::as_units(b) {
        assert!(b.len() >= strides.end(k, columns), "the slice is too short for the matrix");
        // SAFETY: column c has `k` units, as asserted.
        unsafe { transpose(|c| units.as_ptr().add(c * strides.col), [columns, k], panel, PANEL) };
        return;
    }
    // A few units of all columns at a time, so that the buffer stays in cache.
    let mut units = [F::Unit::default(); PANEL * BUFFER_UNITS];
    for p in Steps::new(0, k, BUFFER_UNITS * F::UNIT_LEN) {
        let n = p.len().div_ceil(F::UNIT_LEN);
        for (c, units) in units.chunks_exact_mut(BUFFER_UNITS).take(columns).enumerate() {
            pack_units::<F>(&b[c * strides.col..][p.clone()], &mut units[..n]);
        }
        let panel = &mut panel[p.start / F::UNIT_LEN * PANEL..];
        // SAFETY: the buffer has at least `n` units for each column.
        unsafe { transpose(|c| units[c * BUFFER_UNITS..].as_ptr(), [columns, n], panel, PANEL) };
    }
}

/// Number of units per column that are packed before they are transposed.
const BUFFER_UNITS: usize = if cfg!(miri) { 17 } else { 64 };

vectorized! {
    /// Packs a matrix whose rows are contiguous, `row` numbers apart.
    fn pack_rows<F: Factor>(panel: &mut [F::Unit], columns_and_k: [usize; 2], b: &[F::Number], row: usize) {
        let [columns, k] = columns_and_k;
        for (p, units) in (0..k).step_by(F::UNIT_LEN).zip(panel.chunks_exact_mut(PANEL)) {
            let second = (F::UNIT_LEN > 1 && p + 1 < k).then(|| &b[(p + 1) * row..][..columns]);
            F::pack_rows(&b[p * row..][..columns], second, &mut units[..columns]);
        }
    }
}

vectorized! {
    /// Converts contiguous numbers to units.
    pub(super) fn pack_units<F: Factor>(numbers: &[F::Number], units: &mut [F::Unit]) {
        F::pack_contiguous(numbers, units);
    }
}

/// Transposes: unit `j` of line `i` becomes `to[j·width + i]`.
///
/// # Safety
/// `line` must return a pointer to `n` readable units for each of `lines`. It need not be aligned.
pub(super) unsafe fn transpose<U: Copy>(
    line: impl Fn(usize) -> *const U,
    [lines, n]: [usize; 2],
    to: &mut [U],
    width: usize,
) {
    assert!(
        lines <= width && to.len() >= Strides::rows(width).end(n, lines),
        "the slice is too short for the transpose"
    );
    // The lines and units that are transposed as square blocks.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut done = [0; 2];
    #[cfg(target_arch = "x86_64")]
    if size_of::<U>() == 4 && is_x86_feature_detected!("avx512f") {
        done = [lines, n].map(|n| n / SQUARE * SQUARE);
        for i in (0..done[0]).step_by(SQUARE) {
            for j in (0..done[1]).step_by(SQUARE) {
                // SAFETY: the CPU has AVX-512; the caller guarantees the length of the lines, and the assertion that of `to`.
                unsafe {
                    let from = std::array::from_fn(|l| line(i + l).add(j).cast());
                    transpose_square(from, to.as_mut_ptr().add(j * width + i).cast(), width);
                }
            }
        }
    }
    // A few units of all lines at a time: entire cache lines are read, and the written ones stay in cache.
    for units in Steps::new(0, n, 8) {
        for i in 0..lines {
            let line = line(i);
            let first = if i < done[0] { done[1].max(units.start) } else { units.start };
            for j in first..units.end {
                // SAFETY: the caller guarantees `n` units for each line.
                to[j * width + i] = unsafe { line.add(j).read_unaligned() };
            }
        }
    }
}

/// Units along an edge of a square block, which is transposed in registers.
#[cfg(target_arch = "x86_64")]
const SQUARE: usize = 16;

/// Transposes 16 lines of 16 units of four bytes: interleaves pairs, then quads, then 128-bit lanes.
///
/// # Safety
/// The CPU must have AVX-512. There must be 16 readable units at each pointer of `from`, and 16 writable units at each of 16 positions
/// `width` units apart from `to` on.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_square(from: [*const u32; SQUARE], to: *mut u32, width: usize) {
    use std::{arch::x86_64::*, array::from_fn};
    // SAFETY: the caller guarantees that all lines are in bounds.
    unsafe {
        let lines: [__m512i; SQUARE] = from.map(|line| _mm512_loadu_si512(line.cast()));
        let pairs: [__m512i; SQUARE] = from_fn(|i| {
            let (a, b) = (lines[i & !1], lines[i | 1]);
            if i & 1 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
        });
        // Lane l of quads[4·g + c] is unit 4·l + c of lines 4·g to 4·g + 3.
        let quads: [__m512i; SQUARE] = from_fn(|i| {
            let (a, b) = (pairs[i & !3 | i >> 1 & 1], pairs[i & !3 | i >> 1 & 1 | 2]);
            if i & 1 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
        });
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        for c in 0..4 {
            let [even, odd] = [0, 8].map(|g| {
                let (a, b) = (quads[g + c], quads[g + 4 + c]);
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
