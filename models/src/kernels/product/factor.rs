//! How numbers are multiplied.

use super::{
    super::{Real, memory::lent, rounding::rounded},
    tile::{self, Isa, Tile},
};

/// How the numbers of products are multiplied.
pub(crate) trait Factor: Copy + Send + Sync + 'static {
    /// What the slices hold, and sums are taken in.
    type Number: Real;
    /// What is multiplied at once: a number, or two that follow each other along the inner index.
    type Unit: Copy + Default + Send + Sync + 'static;
    /// Numbers in a unit.
    const EACH: usize;
    /// Inner indices that are summed up at a time: few enough that some rows of the first factor stay in the first-level cache, and that
    /// rounding errors of long sums stay small.
    const DEPTH: usize = if cfg!(miri) { 20 } else { 256 };
    /// Columns of a block, which stays in the second-level cache.
    const COLUMNS: usize = if cfg!(miri) { 64 } else { 512 };
    /// Units that a depth is a multiple of; what is missing is zero.
    const GRAIN: usize = 1;

    /// The numbers as units, where they lie in memory as such.
    fn as_units(numbers: &[Self::Number]) -> Option<&[Self::Unit]>;

    /// Units of numbers that follow each other; what is missing of the last is zero.
    fn along(numbers: &[Self::Number], to: &mut [Self::Unit]);

    /// Units of rows of numbers, one below the other, where each has two the second row too; without one it is zero.
    fn below(first: &[Self::Number], second: Option<&[Self::Number]>, to: &mut [Self::Unit]);

    /// `sum + a·b`; `FMA` where the processor rounds that once.
    fn add<const FMA: bool>(sum: Self::Number, a: Self::Unit, b: Self::Unit) -> Self::Number;

    /// Lends units of this thread's memory for a second factor, which is kept for the next time.
    fn with_panels<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// The same for some rows of a first factor.
    fn with_rows<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// The instructions to multiply by.
    fn isa() -> Isa {
        Isa::detect()
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// The processor must have these instructions; `a` of the tile must be readable, and `c` writable, at all its rows and columns, and
    /// `c` must hold numbers where the tile adds to them.
    unsafe fn run(isa: Isa, tile: &Tile<Self>) {
        // SAFETY: passed on to the caller.
        unsafe { tile::run(isa, tile) }
    }
}

macro_rules! itself {
    ($type:ty $(, $special:path)?) => {
        impl Factor for $type {
            type Number = $type;
            type Unit = $type;
            const EACH: usize = 1;

            fn as_units(numbers: &[Self]) -> Option<&[Self]> {
                Some(numbers)
            }

            #[inline(always)]
            fn along(numbers: &[Self], to: &mut [Self]) {
                to.copy_from_slice(numbers);
            }

            #[inline(always)]
            fn below(first: &[Self], _: Option<&[Self]>, to: &mut [Self]) {
                to.copy_from_slice(first);
            }

            #[inline(always)]
            fn add<const FMA: bool>(sum: Self, a: Self, b: Self) -> Self {
                if FMA { a.mul_add(b, sum) } else { a * b + sum }
            }

            lent!(with_panels, $type);
            lent!(with_rows, $type);

            $(
                unsafe fn run(isa: Isa, tile: &Tile<Self>) {
                    // SAFETY: passed on to the caller.
                    unsafe {
                        match isa {
                            #[cfg(target_arch = "x86_64")]
                            Isa::Avx512 => $special(tile),
                            _ => tile::run(isa, tile),
                        }
                    }
                }
            )?
        }
    };
}
itself!(f32, tile::avx512_f32);
itself!(f64);

/// Numbers are f32, rounded to bf16 when they are laid out; sums are taken in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16;

impl Factor for Bf16 {
    type Number = f32;
    /// The first in the low half.
    type Unit = u32;
    const EACH: usize = 2;
    const DEPTH: usize = if cfg!(miri) { 64 } else { 512 };
    const COLUMNS: usize = if cfg!(miri) { 64 } else { 1024 };
    const GRAIN: usize = 16;

    fn as_units(_: &[f32]) -> Option<&[u32]> {
        None
    }

    #[inline(always)]
    fn along(numbers: &[f32], to: &mut [u32]) {
        let pairs = numbers.chunks_exact(2);
        if let (&[last], Some(to)) = (pairs.remainder(), to.get_mut(numbers.len() / 2)) {
            *to = u32::from(rounded(last).to_bits());
        }
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = pair_of(pair[0], pair[1]);
        }
    }

    #[inline(always)]
    fn below(first: &[f32], second: Option<&[f32]>, to: &mut [u32]) {
        match second {
            Some(second) => {
                to.iter_mut().zip(first.iter().zip(second)).for_each(|(to, (&a, &b))| *to = pair_of(a, b));
            }
            None => to.iter_mut().zip(first).for_each(|(to, &a)| *to = pair_of(a, 0.0)),
        }
    }

    #[inline(always)]
    fn add<const FMA: bool>(sum: f32, a: u32, b: u32) -> f32 {
        let low = |unit: u32| f32::from_bits(unit << 16);
        let high = |unit: u32| f32::from_bits(unit & 0xffff_0000);
        f32::add::<FMA>(f32::add::<FMA>(sum, low(a), low(b)), high(a), high(b))
    }

    lent!(with_panels, u32);
    lent!(with_rows, u32);

    fn isa() -> Isa {
        bf16_isa().unwrap_or_else(Isa::detect)
    }

    unsafe fn run(isa: Isa, tile: &Tile<Self>) {
        // SAFETY: passed on to the caller.
        unsafe {
            match isa {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Isa::Amx => super::amx::run(tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => tile::avx512_bf16(tile),
                _ => tile::run(isa, tile),
            }
        }
    }
}

/// The instructions that multiply bf16, if the processor has some.
fn bf16_isa() -> Option<Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::amx::there() {
        return Some(Isa::Amx);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        return Some(Isa::Avx512Bf16);
    }
    None
}

/// Whether the processor multiplies bf16 faster than f32. Where it does not, [`Widened`] gives the same products but for the order of sums.
pub(crate) fn has_bf16() -> bool {
    bf16_isa().is_some()
}

/// Numbers are f32, rounded to bf16 when they are laid out, and multiplied as f32: as fast as f32 on every processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widened;

impl Factor for Widened {
    type Number = f32;
    type Unit = f32;
    const EACH: usize = 1;

    fn as_units(_: &[f32]) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    fn along(numbers: &[f32], to: &mut [f32]) {
        to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = widened(x));
    }

    #[inline(always)]
    fn below(first: &[f32], _: Option<&[f32]>, to: &mut [f32]) {
        Self::along(first, to);
    }

    #[inline(always)]
    fn add<const FMA: bool>(sum: f32, a: f32, b: f32) -> f32 {
        f32::add::<FMA>(sum, a, b)
    }

    lent!(with_panels, f32);
    lent!(with_rows, f32);

    unsafe fn run(isa: Isa, tile: &Tile<Self>) {
        let &Tile { rows, a, strides, panel, c, width, add } = tile;
        // SAFETY: passed on to the caller; units and numbers are those of f32.
        unsafe { f32::run(isa, &Tile { rows, a, strides, panel, c, width, add }) }
    }
}

#[inline(always)]
fn widened(x: f32) -> f32 {
    f32::from_bits(u32::from(rounded(x).to_bits()) << 16)
}

#[inline(always)]
fn pair_of(first: f32, second: f32) -> u32 {
    u32::from(rounded(first).to_bits()) | u32::from(rounded(second).to_bits()) << 16
}
