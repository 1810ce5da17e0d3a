//! The micro-kernels: they compute a few rows of a panel's columns, and keep the sums in registers.
//!
//! One generic function is compiled and vectorized for each instruction set. The AVX-512 kernels for f32 and bf16 use intrinsics, because
//! the compiler does not use all registers or does not generate the instruction.

use std::ops::Add;

use super::{PANEL, Strides};

/// Number types that the micro-kernels multiply.
pub(crate) trait MultiplyAdd {
    /// The type of inputs, results and sums.
    type Number: Copy + Default + Add<Output = Self::Number>;
    /// The type that one instruction multiplies: a number, or two consecutive ones along the inner axis.
    type Unit: Copy;

    /// Computes `sum + a·b`, rounded once if `FMA` is true.
    fn multiply_add<const FMA: bool>(sum: Self::Number, a: Self::Unit, b: Self::Unit) -> Self::Number;
}

/// A tile of a product: a few rows, and all columns of a panel. Units and numbers are those of a [`MultiplyAdd`].
pub(crate) struct Tile<'a, Unit, Number> {
    pub(super) rows: usize,
    pub(super) a: *const Unit,
    /// Strides of `a`, in units.
    pub(super) strides: Strides,
    /// `[units][PANEL]`.
    pub(super) panel: &'a [Unit],
    pub(super) c: *mut Number,
    /// Distance between rows of `c`, in values.
    pub(super) width: usize,
    /// True if sums are added to `c`; false if they replace its values.
    pub(super) add: bool,
}

/// The instruction set of a micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Isa {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Number of rows of a tile with [`Isa::Amx`].
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) const AMX_ROWS: usize = 32;

/// True if every CPU of this target has fused multiply-add instructions. On others `mul_add` would be a function call.
pub(super) const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Isa {
    /// Returns the best instruction set of this CPU that works for all number types.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Returns the maximum number of rows of a tile whose sums stay in registers.
    pub(super) fn rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => AMX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => 8,
            _ => 4,
        }
    }

    /// True if every tile must have [`rows`](Self::rows) rows, and a depth that is a multiple of
    /// [`Factor::DEPTH_MULTIPLE`](super::Factor::DEPTH_MULTIPLE).
    pub(super) fn needs_full_tiles(self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return self == Self::Amx;
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        false
    }
}

/// Calls the instance of `$function` for the tile's number of rows, which is a constant in each so that the compiler unrolls its loops.
macro_rules! dispatch_rows {
    ($tile:expr, $function:ident $(, $type:ty)?) => {
        match $tile.rows {
            1 => $function::<$($type,)? 1>($tile),
            2 => $function::<$($type,)? 2>($tile),
            3 => $function::<$($type,)? 3>($tile),
            4 => $function::<$($type,)? 4>($tile),
            5 => $function::<$($type,)? 5>($tile),
            6 => $function::<$($type,)? 6>($tile),
            7 => $function::<$($type,)? 7>($tile),
            8 => $function::<$($type,)? 8>($tile),
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// Computes a tile of any number type.
///
/// # Safety
/// As [`Factor::run`](super::Factor::run).
pub(super) unsafe fn run<F: MultiplyAdd>(isa: Isa, tile: &Tile<F::Unit, F::Number>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match isa {
            Isa::Portable => dispatch_rows!(tile, portable, F),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => dispatch_rows!(tile, avx2, F),
            #[cfg(target_arch = "x86_64")]
            _ => dispatch_rows!(tile, avx512, F),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512<F: MultiplyAdd, const R: usize>(tile: &Tile<F::Unit, F::Number>) {
    // SAFETY: passed on to the caller.
    unsafe { kernel::<F, R, 16, true>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<F: MultiplyAdd, const R: usize>(tile: &Tile<F::Unit, F::Number>) {
    // SAFETY: passed on to the caller.
    unsafe { kernel::<F, R, 16, true>(tile) }
}

unsafe fn portable<F: MultiplyAdd, const R: usize>(tile: &Tile<F::Unit, F::Number>) {
    // SAFETY: passed on to the caller.
    unsafe { kernel::<F, R, 16, FUSED>(tile) }
}

/// Defines a kernel for all 32 columns of a panel, with two registers for each row. For 16 columns the compiler generates equally good
/// code from [`columns`], but not for 32.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($name:ident, $rows:ident, $unit:ty, $features:literal, $load:expr, $broadcast:expr, $add:expr) => {
        /// # Safety
        /// As [`Factor::run`](super::Factor::run), on a CPU with these instructions.
        pub(super) unsafe fn $name(tile: &Tile<$unit, f32>) {
            // SAFETY: passed on to the caller.
            unsafe { dispatch_rows!(tile, $rows) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $rows<const R: usize>(tile: &Tile<$unit, f32>) {
            use std::arch::x86_64::*;
            let Strides { row, col } = tile.strides;
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            // SAFETY: a panel's row is two registers wide. The caller guarantees that element (r, p) of `a` and row r of `c` are in bounds.
            unsafe {
                for (p, b) in tile.panel.chunks_exact(PANEL).enumerate() {
                    let b = [$load(b.as_ptr().cast()), $load(b.as_ptr().add(16).cast())];
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = $broadcast(tile.a.add(r * row + p * col).read_unaligned());
                        for (sum, &b) in sums.iter_mut().zip(&b) {
                            *sum = $add(*sum, a, b);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (&sum, at) in sums.iter().zip([0, 16]) {
                        let c = tile.c.add(r * tile.width + at);
                        _mm512_storeu_ps(
                            c,
                            if tile.add { _mm512_add_ps(sum, _mm512_loadu_ps(c)) } else { sum },
                        );
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
avx512!(avx512_f32, avx512_f32_rows, f32, "avx512f,fma", _mm512_loadu_ps, _mm512_set1_ps, |sum, a, b| {
    _mm512_fmadd_ps(a, b, sum)
});
#[cfg(target_arch = "x86_64")]
avx512!(
    avx512_bf16,
    avx512_bf16_rows,
    u32,
    "avx512f,avx512bf16",
    _mm512_loadu_si512,
    |pair: u32| _mm512_set1_epi32(pair as i32),
    |sum, a, b| {
        // Both types are the same 512-bit register.
        let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
    }
);

/// Computes `R` rows of a tile, `W` columns at a time.
///
/// # Safety
/// As [`Factor::run`](super::Factor::run).
#[inline(always)]
unsafe fn kernel<F: MultiplyAdd, const R: usize, const W: usize, const FMA: bool>(
    tile: &Tile<F::Unit, F::Number>,
) {
    let &Tile { a, strides, panel, c, width, add, .. } = tile;
    for part in 0..PANEL / W {
        // SAFETY: passed on to the caller; `W` divides the width of a panel.
        unsafe {
            let c = c.add(part * W);
            if add {
                columns::<F, R, W, FMA, true>(a, strides, panel, part * W, c, width);
            } else {
                columns::<F, R, W, FMA, false>(a, strides, panel, part * W, c, width);
            }
        }
    }
}

/// Computes `W` columns of `R` rows, from column `from` of the panel. It uses indices and small loops rather than iterators and slices,
/// because the compiler then unrolls early enough to keep the sums in registers.
///
/// # Safety
/// As [`Factor::run`](super::Factor::run).
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn columns<F: MultiplyAdd, const R: usize, const W: usize, const FMA: bool, const ADD: bool>(
    a: *const F::Unit,
    Strides { row, col }: Strides,
    panel: &[F::Unit],
    from: usize,
    c: *mut F::Number,
    width: usize,
) {
    let mut sums = [[F::Number::default(); W]; R];
    // SAFETY: the caller guarantees that row r, inner index p and column j are in bounds of `a`, the panel and `c`.
    unsafe {
        for (p, b) in panel.chunks_exact(PANEL).enumerate() {
            let b = b.as_ptr().add(from);
            for r in 0..R {
                let a = a.add(r * row + p * col).read_unaligned();
                for j in 0..W {
                    sums[r][j] = F::multiply_add::<FMA>(sums[r][j], a, *b.add(j));
                }
            }
        }
        for r in 0..R {
            for j in 0..W {
                let c = c.add(r * width + j);
                *c = if ADD { sums[r][j] + *c } else { sums[r][j] };
            }
        }
    }
}
