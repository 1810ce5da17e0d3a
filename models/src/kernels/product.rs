//! Matrix products on slices.
//!
//! An element of a product is summed up over every [`DEPTH`] inner indices, first to last, and these sums are added one after the other.
//! So it depends neither on the other rows and columns nor on tiles or threads: an item's result is the same in every batch, bit for
//! bit. The tiles are those of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008):
//! a block of `b` is laid out as panels, of which a kernel takes one with a few rows of `a` at a time, keeping their results in
//! registers. The kernel is one function that the compiler makes vector code of, for each instruction set; but for products of bf16, which
//! have an instruction that it does not know how to use.

use half::bf16;
use rayon::prelude::*;

use super::{Real, real::lent};

/// Columns of a panel.
const PANEL: usize = 32;
/// The most rows of `a` that a kernel takes.
const ROWS: usize = 8;
/// Inner indices that are summed up at a time: few enough that `ROWS` rows of `a` stay in the first-level cache, and that rounding errors
/// of long sums stay small.
const DEPTH: usize = 256;
/// Columns of a block, which stays in the second-level cache.
const COLUMNS: usize = 512;
/// Multiplications that are worth another thread.
const WORTH: usize = 1 << 18;

/// Calls `$function` for as many rows as the tile has. One function for each number, so that the compiler unrolls each.
macro_rules! by_rows {
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

/// Numbers that products multiply.
pub(crate) trait Factor: Copy + Default + Send + Sync + 'static {
    /// What is multiplied at once: the number itself, or two that follow each other along the inner index.
    type Unit: Copy + Default + Send + Sync + 'static;
    /// What sums are taken in.
    type Sum: Real;
    /// Numbers in a unit.
    const EACH: usize;

    /// A unit of its numbers; those that are missing at the end are zero.
    fn unit(numbers: impl Fn(usize) -> Self, n: usize) -> Self::Unit;

    /// `sum + a·b`; `FMA` where the processor rounds that once.
    fn add<const FMA: bool>(sum: Self::Sum, a: Self::Unit, b: Self::Unit) -> Self::Sum;

    /// Lends units of this thread's memory, which is kept for the next time.
    fn with_panels<R>(len: usize, f: impl FnOnce(&mut [Self::Unit]) -> R) -> R;

    /// Computes a tile by instructions for this type alone, if there are any on a processor with AVX-512, such as this.
    ///
    /// # Safety
    /// As [`Isa::run`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn special(_tile: &Tile<Self>) -> bool {
        false
    }
}

/// Units for so many inner indices.
fn units<F: Factor>(k: usize) -> usize {
    k.div_ceil(F::EACH)
}

macro_rules! itself {
    ($type:ty $(, $special:ident)?) => {
        impl Factor for $type {
            type Unit = $type;
            type Sum = $type;
            const EACH: usize = 1;

            #[inline(always)]
            fn unit(numbers: impl Fn(usize) -> Self, _: usize) -> Self {
                numbers(0)
            }

            #[inline(always)]
            fn add<const FMA: bool>(sum: Self, a: Self, b: Self) -> Self {
                if FMA { a.mul_add(b, sum) } else { a * b + sum }
            }

            lent!(with_panels, $type);

            $(
                #[cfg(target_arch = "x86_64")]
                unsafe fn special(tile: &Tile<Self>) -> bool {
                    // SAFETY: as the caller says.
                    unsafe { by_rows!(tile, $special) };
                    true
                }
            )?
        }
    };
}
itself!(f32, avx512_f32);
itself!(f64);

impl Factor for bf16 {
    /// The first in the low half.
    type Unit = u32;
    type Sum = f32;
    const EACH: usize = 2;

    #[inline(always)]
    fn unit(numbers: impl Fn(usize) -> Self, n: usize) -> u32 {
        let second = if n > 1 { numbers(1).to_bits() } else { 0 };
        u32::from(numbers(0).to_bits()) | u32::from(second) << 16
    }

    #[inline(always)]
    fn add<const FMA: bool>(sum: f32, a: u32, b: u32) -> f32 {
        let first = |unit: u32| f32::from_bits(unit << 16);
        let second = |unit: u32| f32::from_bits(unit & 0xffff_0000);
        f32::add::<FMA>(f32::add::<FMA>(sum, first(a), first(b)), second(a), second(b))
    }

    lent!(with_panels, u32);

    #[cfg(target_arch = "x86_64")]
    unsafe fn special(tile: &Tile<Self>) -> bool {
        let there = is_x86_feature_detected!("avx512bf16");
        if there {
            // SAFETY: the instructions are there; the rest as the caller says.
            unsafe { by_rows!(tile, avx512_bf16) };
        }
        there
    }
}

/// A matrix inside a slice: element (i, j) lies at `i·row + j·col`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Rows of `width` values, one after the other.
    pub(crate) fn rows(width: usize) -> Self {
        Self { row: width, col: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { row: self.col, col: self.row }
    }

    /// Values that a matrix of `m` rows and `n` columns reaches over.
    fn end(self, m: usize, n: usize) -> usize {
        if m == 0 || n == 0 { 0 } else { (m - 1) * self.row + (n - 1) * self.col + 1 }
    }
}

/// A matrix of `k` rows and `n` columns laid out for products in which it is the second factor again and again.
#[derive(Clone, Debug)]
pub(crate) struct Packed<F: Factor> {
    n: usize,
    k: usize,
    panels: Vec<F::Unit>,
}

impl<F: Factor> Packed<F> {
    /// # Panics
    /// When `b` is too short for its sizes and strides.
    pub(crate) fn new([n, k]: [usize; 2], (b, bs): (&[F], Strides)) -> Self {
        assert!(b.len() >= bs.end(k, n), "the slice holds the matrix");
        let mut panels = vec![F::Unit::default(); n.div_ceil(PANEL) * PANEL * units::<F>(k)];
        pack::<F>(&mut panels, [n, k], b, bs);
        Self { n, k, panels }
    }

    /// Columns.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Rows, over which products sum.
    pub(crate) fn k(&self) -> usize {
        self.k
    }
}

/// `c = a·b`, or `c += a·b` with `accumulate`: `a` is m×k, `b` k×n, and `c` m×n with `c_width` values from one row to the next. `parallel`
/// uses all threads of the pool.
///
/// # Panics
/// When a slice is too short for its sizes and strides, or k is zero.
pub(crate) fn product<F: Factor>(
    [m, n, k]: [usize; 3],
    (c, c_width): (&mut [F::Sum], usize),
    accumulate: bool,
    (a, a_strides): (&[F], Strides),
    (b, b_strides): (&[F], Strides),
    parallel: bool,
) {
    assert!(
        k > 0 && a.len() >= a_strides.end(m, k) && b.len() >= b_strides.end(k, n),
        "slices hold the matrices"
    );
    let c = Target::new(c, c_width, m, n);
    let a = Rows { values: a, strides: a_strides };
    each_part([m, n, k], a_strides.col != 1, parallel, |[i, m], [j, n]| {
        F::with_panels(COLUMNS.min(n.next_multiple_of(PANEL)) * units::<F>(DEPTH.min(k)), |panels| {
            for j in Steps::new(j, n, COLUMNS) {
                for p in Steps::new(0, k, DEPTH) {
                    let depth = units::<F>(p.len());
                    let panels = &mut panels[..j.len().next_multiple_of(PANEL) * depth];
                    let from = p.start * b_strides.row + j.start * b_strides.col;
                    pack::<F>(panels, [j.len(), p.len()], &b[from.min(b.len())..], b_strides);
                    let add = accumulate || p.start > 0;
                    // SAFETY: parts are disjoint, and so are the blocks of a part.
                    unsafe {
                        block([i, m], [j.start, j.len()], [p.start, p.len()], c, add, a, panels, depth)
                    };
                }
            }
        });
    });
}

/// [`product`] with a `b` that is laid out already; `a` has rows of `a_width` values.
///
/// # Panics
/// As [`product`].
pub(crate) fn product_packed<F: Factor>(
    m: usize,
    (c, c_width): (&mut [F::Sum], usize),
    accumulate: bool,
    (a, a_width): (&[F], usize),
    b: &Packed<F>,
    parallel: bool,
) {
    let strides = Strides::rows(a_width);
    assert!(a.len() >= strides.end(m, b.k), "the slice holds the matrix");
    let c = Target::new(c, c_width, m, b.n);
    let a = Rows { values: a, strides };
    each_part([m, b.n, b.k], false, parallel, |[i, m], [j, n]| {
        for j in Steps::new(j, n, COLUMNS) {
            let depth = units::<F>(b.k);
            let panels = &b.panels[j.start * depth..j.end.next_multiple_of(PANEL) * depth];
            for p in Steps::new(0, b.k, DEPTH) {
                let add = accumulate || p.start > 0;
                // SAFETY: parts are disjoint, and so are the blocks of a part.
                unsafe {
                    block(
                        [i, m],
                        [j.start, j.len()],
                        [p.start, p.len()],
                        c,
                        add,
                        a,
                        &panels[p.start / F::EACH * PANEL..],
                        depth,
                    )
                };
            }
        }
    });
}

/// Ranges of at most `step` that make up `n` places from `start` on.
struct Steps {
    next: usize,
    end: usize,
    step: usize,
}

impl Steps {
    fn new(start: usize, n: usize, step: usize) -> Self {
        Self { next: start, end: start + n, step }
    }
}

impl Iterator for Steps {
    type Item = std::ops::Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.next..(self.next + self.step).min(self.end);
        self.next = range.end;
        (!range.is_empty()).then_some(range)
    }
}

/// Calls `f` with rows (the first, and how many) and columns of `c`, which together make up all of it. Columns begin at panels; `by_rows`
/// leaves them together.
fn each_part(
    [m, n, k]: [usize; 3],
    by_rows: bool,
    parallel: bool,
    f: impl Fn([usize; 2], [usize; 2]) + Sync,
) {
    let threads = if parallel { rayon::current_num_threads().min(m * n * k / WORTH) } else { 1 };
    if threads < 2 {
        return f([0, m], [0, n]);
    }
    // More parts than threads, so that none waits long for another. Parts of rows each lay out all of b, and parts of columns all of a,
    // where it has to be.
    let parts = 4 * threads;
    let column = if by_rows { n } else { n.div_ceil(parts) };
    let column = column.next_multiple_of(PANEL).max(2 * PANEL);
    let columns = n.div_ceil(column);
    let row = m.div_ceil(parts.div_ceil(columns)).next_multiple_of(ROWS).max(8 * ROWS);
    let rows = m.div_ceil(row);
    (0..rows * columns).into_par_iter().for_each(|part| {
        let (i, j) = (part / columns * row, part % columns * column);
        f([i, row.min(m - i)], [j, column.min(n - j)]);
    });
}

/// Where a product goes: shared between threads that write to different elements.
struct Target<F> {
    at: *mut F,
    width: usize,
}

impl<F> Clone for Target<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Target<F> {}

// SAFETY: it is a pointer into a slice of values that can be sent; who writes through it says why no other does to the same place.
unsafe impl<F: Send> Send for Target<F> {}
// SAFETY: as above.
unsafe impl<F: Send> Sync for Target<F> {}

impl<F> Target<F> {
    fn new(c: &mut [F], width: usize, m: usize, n: usize) -> Self {
        assert!(n <= width && c.len() >= Strides::rows(width).end(m, n), "the slice holds the product");
        Self { at: c.as_mut_ptr(), width }
    }
}

/// The first factor.
#[derive(Clone, Copy)]
struct Rows<'a, F> {
    values: &'a [F],
    strides: Strides,
}

/// Some rows of it, as the kernel takes them.
struct Units<U> {
    /// Aligned as numbers are, not as pairs of them.
    at: *const U,
    strides: Strides,
}

/// Lays `k`×`n` values of `b` out as panels `[n/PANEL][units][PANEL]`; what is missing in the last is zero.
fn pack<F: Factor>(panels: &mut [F::Unit], [n, k]: [usize; 2], b: &[F], bs: Strides) {
    let depth = units::<F>(k);
    for (j, panel) in panels.chunks_exact_mut(PANEL * depth.max(1)).enumerate() {
        let from = j * PANEL;
        let columns = PANEL.min(n - from);
        if columns < PANEL {
            panel.fill(F::Unit::default());
        }
        if bs.col == 1 {
            for (p, row) in Steps::new(0, k, F::EACH).zip(panel.chunks_exact_mut(PANEL)) {
                let lines: [&[F]; 2] = [p.start, p.end - 1].map(|p| &b[p * bs.row + from..][..columns]);
                for (c, unit) in row[..columns].iter_mut().enumerate() {
                    *unit = F::unit(|q| lines[q][c], p.len());
                }
            }
            continue;
        }
        // Some inner indices of all columns at a time: whole lines are read, and what is written stays at hand.
        for p in Steps::new(0, k, 8 * F::EACH) {
            for column in 0..columns {
                let at = (from + column) * bs.col;
                let panel = panel[p.start / F::EACH * PANEL..].chunks_exact_mut(PANEL);
                for (p, row) in Steps::new(p.start, p.len(), F::EACH).zip(panel) {
                    row[column] = F::unit(|q| b[at + (p.start + q) * bs.row], p.len());
                }
            }
        }
    }
}

/// Rows `[i, m]` of columns `[j, n]` of `c`, as far as inner indices `[p, k]` bring them. `panels` hold those of `b`, `depth` units each.
///
/// # Safety
/// No other thread may look at these elements of `c`.
unsafe fn block<F: Factor>(
    [i, m]: [usize; 2],
    [j, n]: [usize; 2],
    [p, k]: [usize; 2],
    c: Target<F::Sum>,
    add: bool,
    a: Rows<F>,
    panels: &[F::Unit],
    depth: usize,
) {
    let isa = Isa::detect();
    let mut turned = [F::Unit::default(); ROWS * DEPTH];
    // What is computed of the last panel, which may have more columns than there are.
    let mut edge = [F::Sum::default(); ROWS * PANEL];
    for i in Steps::new(i, m, isa.rows()) {
        let from = &a.values[i.start * a.strides.row + p * a.strides.col..];
        assert!(from.len() >= a.strides.end(i.len(), k), "the slice holds the rows");
        let whole_units = k.is_multiple_of(F::EACH) && a.strides.row.is_multiple_of(F::EACH);
        let in_order = F::EACH == 1 || cfg!(target_endian = "little");
        let rows = if a.strides.col == 1 && whole_units && in_order {
            // Units are numbers that follow each other, and lie as the kernel takes them.
            Units { at: from.as_ptr().cast(), strides: Strides::rows(a.strides.row / F::EACH) }
        } else {
            // Laid out anew: transposed, every inner index would be another line, and soon another page, for every panel.
            for (q, to) in Steps::new(0, k, F::EACH).zip(turned.chunks_exact_mut(ROWS)) {
                for (r, to) in to[..i.len()].iter_mut().enumerate() {
                    let at = r * a.strides.row;
                    *to = F::unit(|s| from[at + (q.start + s) * a.strides.col], q.len());
                }
            }
            Units { at: turned.as_ptr(), strides: Strides { row: 1, col: ROWS } }
        };
        for (t, panel) in panels.chunks(PANEL * depth).take(n.div_ceil(PANEL)).enumerate() {
            let (column, columns) = (j + t * PANEL, PANEL.min(n - t * PANEL));
            // SAFETY: `Target::new` has seen that row i and this column are inside.
            let at = unsafe { c.at.add(i.start * c.width + column) };
            let whole = columns == PANEL;
            let (to, width) = if whole { (at, c.width) } else { (edge.as_mut_ptr(), PANEL) };
            let tile = Tile::<F> {
                rows: i.len(),
                a: rows.at,
                strides: rows.strides,
                panel: &panel[..units::<F>(k) * PANEL],
                c: to,
                width,
                add: add && whole,
            };
            // SAFETY: the instruction set was detected; the assertions here and in `Target::new` keep every element inside its slice; the
            // caller keeps others away from `c`.
            unsafe { isa.run(&tile) };
            if !whole {
                for (r, row) in edge.chunks_exact(PANEL).enumerate().take(i.len()) {
                    // SAFETY: as above; there are so many columns in this row.
                    let c = unsafe { std::slice::from_raw_parts_mut(at.add(r * c.width), columns) };
                    c.iter_mut().zip(row).for_each(|(c, &sum)| *c = if add { sum + *c } else { sum });
                }
            }
        }
    }
}

/// A few rows of a panel's columns, all of them.
pub(crate) struct Tile<'a, F: Factor> {
    rows: usize,
    a: *const F::Unit,
    strides: Strides,
    /// `[units][PANEL]`.
    panel: &'a [F::Unit],
    c: *mut F::Sum,
    width: usize,
    add: bool,
}

/// What the processor knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Whether every processor of this target multiplies and adds in one instruction; elsewhere that would be a call for each.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Isa {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Rows of a tile, as many as leave its results in registers.
    fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => ROWS,
            _ => 4,
        }
    }

    /// # Safety
    /// The processor must have these instructions; `a` and `c` of the tile must be readable, and `c` writable, at all its rows and columns.
    unsafe fn run<F: Factor>(self, tile: &Tile<F>) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 if F::special(tile) => {}
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => by_rows!(tile, avx512, F),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => by_rows!(tile, avx2, F),
                Self::Portable => by_rows!(tile, portable, F),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512<F: Factor, const R: usize>(tile: &Tile<F>) {
    // SAFETY: as the caller says.
    unsafe { kernel::<F, R, 16, true>(tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<F: Factor, const R: usize>(tile: &Tile<F>) {
    // SAFETY: as the caller says.
    unsafe { kernel::<F, R, 16, true>(tile) }
}

unsafe fn portable<F: Factor, const R: usize>(tile: &Tile<F>) {
    // SAFETY: as the caller says.
    unsafe { kernel::<F, R, 16, FUSED>(tile) }
}

/// The kernel for all columns of a panel, in two registers for each row. The compiler makes the same of [`columns`] for sixteen columns,
/// but not for as many as a panel has.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($name:ident, $type:ty, $features:literal, $load:expr, $broadcast:expr, $add:expr) => {
        /// # Safety
        /// As [`Isa::run`], on a processor with these instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(tile: &Tile<$type>) {
            use std::arch::x86_64::*;
            let Strides { row, col } = tile.strides;
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            // SAFETY: a panel's row is two registers wide; element (r, p) is inside `a`, and row r of `c`, as the caller says.
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
avx512!(avx512_f32, f32, "avx512f,fma", _mm512_loadu_ps, _mm512_set1_ps, |sum, a, b| _mm512_fmadd_ps(
    a, b, sum
));
#[cfg(target_arch = "x86_64")]
avx512!(
    avx512_bf16,
    bf16,
    "avx512f,avx512bf16",
    _mm512_loadu_si512,
    |pair: u32| _mm512_set1_epi32(pair as i32),
    |sum, a, b| {
        // The two types are the same register.
        let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
    }
);

/// `R` rows of a tile, `W` columns at a time.
///
/// # Safety
/// As [`Isa::run`].
#[inline(always)]
unsafe fn kernel<F: Factor, const R: usize, const W: usize, const FMA: bool>(tile: &Tile<F>) {
    let &Tile { a, strides, panel, c, width, add, .. } = tile;
    for part in 0..PANEL / W {
        // SAFETY: as the caller says; a panel is W columns several times.
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

/// `W` columns of `R` rows, from column `from` of the panel. Indices and little loops, not iterators and slices: what the compiler unrolls
/// early keeps the sums in registers.
///
/// # Safety
/// As [`Isa::run`].
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn columns<F: Factor, const R: usize, const W: usize, const FMA: bool, const ADD: bool>(
    a: *const F::Unit,
    Strides { row, col }: Strides,
    panel: &[F::Unit],
    from: usize,
    c: *mut F::Sum,
    width: usize,
) {
    let mut sums = [[F::Sum::default(); W]; R];
    // SAFETY: row r, inner index p and column j are inside `a`, the panel and `c`, as the caller says.
    unsafe {
        for (p, b) in panel.chunks_exact(PANEL).enumerate() {
            let b = b.as_ptr().add(from);
            for r in 0..R {
                let a = a.add(r * row + p * col).read_unaligned();
                for j in 0..W {
                    sums[r][j] = F::add::<FMA>(sums[r][j], a, *b.add(j));
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

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::random::{Purpose, Stream, noise};

    /// The sums that every element is, one by one; of the first, or of `c` and the first.
    fn expected<F: Real>(c: Option<F>, k: usize, a: impl Fn(usize) -> F, b: impl Fn(usize) -> F) -> F {
        let fused = Isa::detect() != Isa::Portable || FUSED;
        let add = |sum, p| {
            if fused {
                <F as Factor>::add::<true>(sum, a(p), b(p))
            } else {
                <F as Factor>::add::<false>(sum, a(p), b(p))
            }
        };
        let sums = Steps::new(0, k, DEPTH).map(|p| p.fold(F::of(0.0), add));
        c.into_iter().chain(sums).reduce(|c, sum| sum + c).expect("a sum of something")
    }

    fn values<F: Real>(stream: u64, n: usize) -> Vec<F> {
        noise(3, stream, n).into_iter().map(|x| F::of(f64::from(x))).collect()
    }

    /// Every element of every product is its sums, to the last bit: whatever the sizes, strides and threads, packed or not.
    fn is_its_sums<F: Real + std::fmt::Debug>(cases: u64) {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for case in 0..cases {
            let mut stream = Stream::new(11, Purpose::Noise, case);
            let mut below = |n: usize| (stream.uniform() * n as f64) as usize;
            // Now and then more than a block or a thread's part.
            let [m, n] = [(); 2].map(|()| if below(8) == 0 { 1 + below(300) } else { 1 + below(70) });
            let k = if below(8) == 0 { DEPTH - 3 + below(200) } else { 1 + below(80) };
            let [extra, turn_a, turn_b, accumulate, parallel] =
                [below(5), below(2), below(2), below(2), below(2)];
            let strides = |rows: usize, cols: usize, turn| {
                if turn == 1 { Strides::rows(rows + extra).t() } else { Strides::rows(cols + extra) }
            };
            let (a_strides, b_strides) = (strides(m, k, turn_a), strides(k, n, turn_b));
            let (a, b): (Vec<F>, Vec<F>) =
                (values(case, a_strides.end(m, k)), values(case + cases, b_strides.end(k, n)));
            let before: Vec<F> = values(case + 2 * cases, Strides::rows(n + extra).end(m, n));
            let what = format!("{m} x {n} x {k}, {a_strides:?} {b_strides:?} {accumulate} {parallel}");
            let mut results = Vec::new();
            let mut c = before.clone();
            pool.install(|| {
                product(
                    [m, n, k],
                    (&mut c, n + extra),
                    accumulate == 1,
                    (&a, a_strides),
                    (&b, b_strides),
                    parallel == 1,
                )
            });
            results.push(c);
            if a_strides.col == 1 {
                let mut c = before.clone();
                let packed = Packed::new([n, k], (&b, b_strides));
                pool.install(|| {
                    let a = (&a[..], a_strides.row);
                    product_packed(m, (&mut c, n + extra), accumulate == 1, a, &packed, parallel == 1)
                });
                results.push(c);
            }
            for c in results {
                for (at, (&found, &before)) in c.iter().zip(&before).enumerate() {
                    let (i, j) = (at / (n + extra), at % (n + extra));
                    let expected = if j >= n {
                        before
                    } else {
                        let begin = (accumulate == 1).then_some(before);
                        let a = |p: usize| a[i * a_strides.row + p * a_strides.col];
                        expected(begin, k, a, |p| b[p * b_strides.row + j * b_strides.col])
                    };
                    assert!(found == expected, "{what}: ({i}, {j}) is {found:?}, expected {expected:?}");
                }
            }
        }
    }

    #[test]
    fn products_are_their_sums() {
        is_its_sums::<f32>(300);
        is_its_sums::<f64>(100);
    }

    /// The product of bf16 is that of the same numbers in f32, but for the rounding of sums.
    #[test]
    fn products_of_bf16_are_those_of_f32() {
        for (case, [m, n, k]) in
            [[1, 1, 1], [7, 33, 5], [9, 64, 32], [20, 70, 301], [64, 96, 258]].into_iter().enumerate()
        {
            for turn in [false, true] {
                let half =
                    |stream, n| -> Vec<bf16> { values(stream, n).into_iter().map(bf16::from_f32).collect() };
                let (a, b) = (half(2 * case as u64, m * k), half(2 * case as u64 + 1, k * n));
                let wide = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
                let (a_strides, b_strides) = match turn {
                    false => (Strides::rows(k), Strides::rows(n)),
                    true => (Strides::rows(m).t(), Strides::rows(k).t()),
                };
                let (mut found, mut expected) = (vec![0.5; m * n], vec![0.5; m * n]);
                product([m, n, k], (&mut found, n), true, (&a, a_strides), (&b, b_strides), false);
                let (a, b) = (wide(&a), wide(&b));
                product([m, n, k], (&mut expected, n), true, (&a, a_strides), (&b, b_strides), false);
                let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * (1.0 + (k as f32).sqrt());
                assert!(!found.iter().zip(&expected).any(far), "{m} x {n} x {k}, {turn}");
            }
        }
    }

    /// What other processors compute with is right here too.
    #[test]
    fn kernels_agree() {
        let (m, n, k) = (7, 2 * PANEL, 33);
        let (a, b): (Vec<f32>, Vec<f32>) = (values(1, m * k), values(2, k * n));
        let mut panels = vec![0.0; 2 * PANEL * k];
        pack::<f32>(&mut panels, [n, k], &b, Strides::rows(n));
        let run = |isa: Isa| {
            let mut c = vec![0.0; m * n];
            for i in [0, 4] {
                for (t, panel) in panels.chunks_exact(PANEL * k).enumerate() {
                    let tile = Tile::<f32> {
                        rows: 4.min(m - i),
                        a: a[i * k..].as_ptr(),
                        strides: Strides::rows(k),
                        panel,
                        c: c[i * n + t * PANEL..].as_mut_ptr(),
                        width: n,
                        add: false,
                    };
                    // SAFETY: the instruction set is there, and the tile inside its slices.
                    unsafe { isa.run(&tile) };
                }
            }
            c
        };
        let portable = run(Isa::Portable);
        #[cfg(target_arch = "x86_64")]
        for (isa, there) in [
            (Isa::Avx512, is_x86_feature_detected!("avx512f")),
            (Isa::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ] {
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5;
            assert!(!there || !run(isa).iter().zip(&portable).any(far), "{isa:?}");
        }
        let expected = |at: usize| {
            (0..k).map(|p| f64::from(a[at / n * k + p]) * f64::from(b[p * n + at % n])).sum::<f64>()
        };
        assert!(portable.iter().enumerate().all(|(at, &c)| (f64::from(c) - expected(at)).abs() < 1e-4));
    }
}
