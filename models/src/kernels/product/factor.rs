//! Numbers that products multiply.

use half::bf16;

use super::{
    super::{Real, memory::lent},
    tile::{self, Isa, Tile},
};

/// Numbers that products multiply.
pub(crate) trait Factor: Copy + Default + Send + Sync + 'static {
    /// What is multiplied at once: the number itself, or two that follow each other along the inner index.
    type Unit: Copy + Default + Send + Sync + 'static;
    /// What sums are taken in.
    type Sum: Real;
    /// Numbers in a unit.
    const EACH: usize;
    /// Inner indices that are summed up at a time: few enough that some rows of the first factor stay in the first-level cache, and that
    /// rounding errors of long sums stay small.
    const DEPTH: usize = 256;
    /// Columns of a block, which stays in the second-level cache.
    const COLUMNS: usize = 512;
    /// Units that a panel's depth is a multiple of; what is missing is zero.
    const GRAIN: usize = 1;

    /// A unit of numbers as they lie in memory; a second that is missing is zero.
    fn unit(first: Self, second: Option<Self>) -> Self::Unit;

    /// Units of rows of numbers, one below the other. The second row is looked at where a unit has two numbers and there is one.
    fn units(first: &[Self], second: Option<&[Self]>, to: &mut [Self::Unit]);

    /// `sum + a·b`; `FMA` where the processor rounds that once.
    fn add<const FMA: bool>(sum: Self::Sum, a: Self::Unit, b: Self::Unit) -> Self::Sum;

    /// Lends units of this thread's memory for a second factor, which is kept for the next time.
    fn with_panels<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// The same for some rows of a first factor.
    fn with_rows<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// The instructions to multiply these numbers by.
    fn isa() -> Isa {
        Isa::detect()
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// The processor must have these instructions; `a` and `c` of the tile must be readable, and `c` writable, at all its rows and columns.
    unsafe fn run(isa: Isa, tile: &Tile<Self>) {
        // SAFETY: passed on to the caller.
        unsafe { tile::run(isa, tile) }
    }
}

macro_rules! itself {
    ($type:ty $(, $special:path)?) => {
        impl Factor for $type {
            type Unit = $type;
            type Sum = $type;
            const EACH: usize = 1;

            #[inline(always)]
            fn unit(first: Self, _: Option<Self>) -> Self {
                first
            }

            #[inline(always)]
            fn units(first: &[Self], _: Option<&[Self]>, to: &mut [Self]) {
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

impl Factor for bf16 {
    /// Both as they lie in memory.
    type Unit = u32;
    type Sum = f32;
    const EACH: usize = 2;
    const DEPTH: usize = 512;
    const COLUMNS: usize = 1024;
    const GRAIN: usize = 16;

    #[inline(always)]
    fn unit(first: Self, second: Option<Self>) -> u32 {
        let [a, b] = first.to_ne_bytes();
        let [c, d] = second.unwrap_or_default().to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    #[inline(always)]
    fn units(first: &[Self], second: Option<&[Self]>, to: &mut [u32]) {
        match second {
            Some(second) => {
                let rows = first.iter().zip(second);
                to.iter_mut().zip(rows).for_each(|(to, (&a, &b))| *to = Self::unit(a, Some(b)));
            }
            None => to.iter_mut().zip(first).for_each(|(to, &a)| *to = Self::unit(a, None)),
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
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if super::amx::there() {
            return Isa::Amx;
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            return Isa::Avx512Bf16;
        }
        Isa::detect()
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
