//! The number types of matrix products.

use super::{
    super::{
        Real,
        memory::thread_scratch,
        rounding::{round_all_to_f16, round_to_bf16},
    },
    tile::{self, Isa, MultiplyAdd, Tile},
};

/// A number type of matrix products, and how its numbers are packed and multiplied.
pub(crate) trait Factor:
    MultiplyAdd<Number: Real, Unit: Default + Send + Sync + 'static> + Copy + Send + Sync + 'static
{
    /// Numbers in a unit.
    const UNIT_LEN: usize;
    /// Inner indices of a block: few enough that some rows of the first factor stay in the L1 cache, and that the rounding errors of long
    /// sums stay small.
    const DEPTH: usize = if cfg!(miri) { 20 } else { 256 };
    /// Columns of a block, which stays in the L2 cache.
    const COLUMNS: usize = if cfg!(miri) { 64 } else { 512 };
    /// A packed depth is padded with zeros to a multiple of this number of units.
    const DEPTH_MULTIPLE: usize = 1;

    /// Returns the numbers as units, if they have the same layout.
    fn as_units(numbers: &[Self::Number]) -> Option<&[Self::Unit]>;

    /// Packs consecutive numbers; the last unit is padded with zeros.
    fn pack_contiguous(numbers: &[Self::Number], to: &mut [Self::Unit]);

    /// Packs numbers of two consecutive rows, for types with two numbers in a unit. A missing second row is zero.
    fn pack_rows(first: &[Self::Number], second: Option<&[Self::Number]>, to: &mut [Self::Unit]);

    /// Calls `f` with a buffer of this thread for the second factor. The buffer is reused by later calls.
    fn with_panels<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// Calls `f` with a buffer of this thread for rows of the first factor. The buffer is reused by later calls.
    fn with_rows<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// Returns the instruction set to multiply with.
    fn isa() -> Isa {
        Isa::detect()
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// The CPU must have these instructions. `a` of the tile must be readable, and `c` writable, at all its rows and columns. If the tile
    /// adds to `c`, then `c` must be initialized.
    unsafe fn run(isa: Isa, tile: &Tile<Self::Unit, Self::Number>) {
        // SAFETY: the caller's conditions are the same.
        unsafe { tile::run::<Self>(isa, tile) }
    }
}

/// A number type that is multiplied as it is.
pub(crate) trait PlainFactor: Real + Factor<Number = Self, Unit = Self> {}

/// Implements [`PlainFactor`].
macro_rules! plain_factor {
    ($type:ty $(, $special:path)?) => {
        impl MultiplyAdd for $type {
            type Number = $type;
            type Unit = $type;

            #[inline(always)]
            fn multiply_add<const FMA: bool>(sum: Self, a: Self, b: Self) -> Self {
                if FMA { a.mul_add(b, sum) } else { a * b + sum }
            }
        }

        impl PlainFactor for $type {}

        impl Factor for $type {
            const UNIT_LEN: usize = 1;

            fn as_units(numbers: &[Self]) -> Option<&[Self]> {
                Some(numbers)
            }

            #[inline(always)]
            fn pack_contiguous(numbers: &[Self], to: &mut [Self]) {
                to.copy_from_slice(numbers);
            }

            #[inline(always)]
            fn pack_rows(first: &[Self], _: Option<&[Self]>, to: &mut [Self]) {
                to.copy_from_slice(first);
            }

            thread_scratch!(with_panels, $type);
            thread_scratch!(with_rows, $type);

            $(
                unsafe fn run(isa: Isa, tile: &Tile<Self, Self>) {
                    // SAFETY: the caller's conditions are the same.
                    unsafe {
                        match isa {
                            #[cfg(target_arch = "x86_64")]
                            Isa::Avx512 => $special(tile),
                            _ => tile::run::<Self>(isa, tile),
                        }
                    }
                }
            )?
        }
    };
}
plain_factor!(f32, tile::avx512_f32);
plain_factor!(f64);

/// f32 numbers, rounded to bf16 when they are packed. Sums are in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16;

impl MultiplyAdd for Bf16 {
    type Number = f32;
    /// The first in the low half.
    type Unit = u32;

    #[inline(always)]
    fn multiply_add<const FMA: bool>(sum: f32, a: u32, b: u32) -> f32 {
        let low = |unit: u32| f32::from_bits(unit << 16);
        let high = |unit: u32| f32::from_bits(unit & 0xffff_0000);
        f32::multiply_add::<FMA>(f32::multiply_add::<FMA>(sum, low(a), low(b)), high(a), high(b))
    }
}

impl Factor for Bf16 {
    const UNIT_LEN: usize = 2;
    const DEPTH: usize = if cfg!(miri) { 64 } else { 512 };
    const COLUMNS: usize = if cfg!(miri) { 64 } else { 1024 };
    const DEPTH_MULTIPLE: usize = 16;

    fn as_units(_: &[f32]) -> Option<&[u32]> {
        None
    }

    #[inline(always)]
    fn pack_contiguous(numbers: &[f32], to: &mut [u32]) {
        let pairs = numbers.chunks_exact(2);
        if let (&[last], Some(to)) = (pairs.remainder(), to.get_mut(numbers.len() / 2)) {
            *to = u32::from(round_to_bf16(last).to_bits());
        }
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = pair_of(pair[0], pair[1]);
        }
    }

    #[inline(always)]
    fn pack_rows(first: &[f32], second: Option<&[f32]>, to: &mut [u32]) {
        match second {
            Some(second) => {
                to.iter_mut().zip(first.iter().zip(second)).for_each(|(to, (&a, &b))| *to = pair_of(a, b));
            }
            None => to.iter_mut().zip(first).for_each(|(to, &a)| *to = pair_of(a, 0.0)),
        }
    }

    thread_scratch!(with_panels, u32);
    thread_scratch!(with_rows, u32);

    fn isa() -> Isa {
        bf16_isa().unwrap_or_else(Isa::detect)
    }

    unsafe fn run(isa: Isa, tile: &Tile<u32, f32>) {
        // SAFETY: the caller's conditions are the same.
        unsafe {
            match isa {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Isa::Amx => super::amx::run(tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => tile::avx512_bf16(tile),
                _ => tile::run::<Self>(isa, tile),
            }
        }
    }
}

/// Returns the instruction set that multiplies bf16, if the CPU has one.
fn bf16_isa() -> Option<Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::amx::is_available() {
        return Some(Isa::Amx);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        return Some(Isa::Avx512Bf16);
    }
    None
}

/// True if the CPU multiplies bf16 faster than f32. Otherwise use [`RoundedToBf16`], whose products differ only in the order of sums.
pub(crate) fn has_bf16() -> bool {
    bf16_isa().is_some()
}

/// Defines a factor type whose numbers are f32, rounded by `$round` (slice to slice) when they are packed and multiplied as f32. It is about
/// as fast as f32 on every CPU.
macro_rules! rounded_factor {
    ($(#[$doc:meta])* $name:ident, $round:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl MultiplyAdd for $name {
            type Number = f32;
            type Unit = f32;

            #[inline(always)]
            fn multiply_add<const FMA: bool>(sum: f32, a: f32, b: f32) -> f32 {
                f32::multiply_add::<FMA>(sum, a, b)
            }
        }

        impl Factor for $name {
            const UNIT_LEN: usize = 1;

            fn as_units(_: &[f32]) -> Option<&[f32]> {
                None
            }

            #[inline(always)]
            fn pack_contiguous(numbers: &[f32], to: &mut [f32]) {
                $round(numbers, to);
            }

            #[inline(always)]
            fn pack_rows(first: &[f32], _: Option<&[f32]>, to: &mut [f32]) {
                Self::pack_contiguous(first, to);
            }

            thread_scratch!(with_panels, f32);
            thread_scratch!(with_rows, f32);

            unsafe fn run(isa: Isa, tile: &Tile<f32, f32>) {
                // SAFETY: the caller's conditions are the same.
                unsafe { f32::run(isa, tile) }
            }
        }
    };
}
rounded_factor!(
    /// f32 numbers, rounded to bf16 when they are packed and multiplied as f32.
    RoundedToBf16,
    |from: &[f32], to: &mut [f32]| {
        let widen = |x| f32::from_bits(u32::from(round_to_bf16(x).to_bits()) << 16);
        to.iter_mut().zip(from).for_each(|(to, &x)| *to = widen(x));
    }
);
rounded_factor!(
    /// f32 numbers, rounded to f16 when they are packed and multiplied as f32. Numbers beyond the range of f16 become infinite.
    RoundedToF16,
    round_all_to_f16
);

#[inline(always)]
fn pair_of(first: f32, second: f32) -> u32 {
    u32::from(round_to_bf16(first).to_bits()) | u32::from(round_to_bf16(second).to_bits()) << 16
}
