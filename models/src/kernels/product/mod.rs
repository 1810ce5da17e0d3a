//! Matrix products on slices.
//!
//! Each element of a product is a sum of partial sums, each over [`Factor::DEPTH`] inner indices, first to last. The instructions for bf16
//! have their own order of sums. The result depends neither on the other rows and columns nor on tiles or threads: an item's result is the
//! same in every batch, bit for bit.
//!
//! The algorithm is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008). A block of `b` is packed into
//! [panels](pack). A [micro-kernel](tile) multiplies a few rows of `a` by one panel, and keeps the sums in registers.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod factor;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

#[cfg(any(feature = "candle", test))]
pub(crate) use factor::Bf16;
pub(crate) use factor::{Factor, PlainFactor};
#[cfg(feature = "candle")]
pub(crate) use factor::{RoundedToBf16, RoundedToF16, has_bf16};
use pack::{depth, pack, transpose};
use tile::{Isa, Tile};

use super::memory::{AlignedVec, build_vec};

/// Number of columns of a panel, and maximum number of rows of `a` that are packed together.
const PANEL: usize = 32;
/// Number of multiplications that justify another thread. Like other sizes it is smaller under Miri, which is slow and should reach all
/// code paths.
const MIN_MULTIPLICATIONS_PER_THREAD: usize = if cfg!(miri) { 1 << 6 } else { 1 << 18 };

/// The layout of a matrix in a slice: element (i, j) is at index `i·row + j·col`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Returns the strides of contiguous rows of `width` values.
    pub(crate) fn rows(width: usize) -> Self {
        Self { row: width, col: 1 }
    }

    /// Returns the strides of the transpose.
    pub(crate) fn t(self) -> Self {
        Self { row: self.col, col: self.row }
    }

    /// Returns the minimum length of a slice with a matrix of `m` rows and `n` columns.
    fn end(self, m: usize, n: usize) -> usize {
        if m == 0 || n == 0 { 0 } else { (m - 1) * self.row + (n - 1) * self.col + 1 }
    }
}

/// A matrix of `k` rows and `n` columns, packed for repeated use as the second factor of products.
#[derive(Debug)]
pub(crate) struct PackedMatrix<F: Factor> {
    n: usize,
    k: usize,
    panels: AlignedVec<F::Unit>,
}

impl<F: Factor> PackedMatrix<F> {
    /// Packs `b`.
    ///
    /// # Panics
    /// If `b` is too short for its sizes and strides.
    pub(crate) fn new([n, k]: [usize; 2], b: (&[F::Number], Strides)) -> Self {
        let mut panels = AlignedVec::new(n.div_ceil(PANEL) * PANEL * depth::<F>(k));
        pack_all::<F>(&mut panels, 0..n, 0..k, b, false);
        Self { n, k, panels }
    }

    /// Returns the number of rows, over which products sum.
    pub(crate) fn k(&self) -> usize {
        self.k
    }
}

/// Packs columns `n` and inner indices `k` of `b` into panels.
fn pack_all<F: Factor>(
    panels: &mut [F::Unit],
    n: Range<usize>,
    k: Range<usize>,
    (b, strides): (&[F::Number], Strides),
    parallel: bool,
) {
    assert!(b.len() >= strides.end(k.end, n.end), "the slice is too short for the matrix");
    let panels = panels.chunks_exact_mut((PANEL * depth::<F>(k.len())).max(1));
    let pack_panel = |(j, panel): (Range<usize>, &mut [F::Unit])| {
        let from = k.start * strides.row + j.start * strides.col;
        pack::<F>(panel, [j.len(), k.len()], &b[from..], strides);
    };
    let panels = Steps::new(n.start, n.len(), PANEL).zip(panels);
    if parallel {
        panels.collect::<Vec<_>>().into_par_iter().for_each(pack_panel);
    } else {
        panels.for_each(pack_panel);
    }
}

/// The value to which a product is added.
#[derive(Clone, Copy)]
enum InitialValue<'a, N> {
    /// Zero: the target may be uninitialized.
    Zero,
    /// The values in the target.
    Existing,
    /// This bias, in every row.
    Bias(&'a [N]),
}

/// Computes `c = a·b`, or `c += a·b` with `accumulate`. `a` is m×k, `b` is k×n, and `c` is m×n with rows `c_width` values apart. `parallel`
/// uses all threads of the pool.
///
/// # Panics
/// If a slice is too short for its sizes and strides, k is zero, or neither the rows nor the columns of a factor are contiguous.
pub(crate) fn product<F: Factor>(
    [m, n, k]: [usize; 3],
    (c, c_width): (&mut [F::Number], usize),
    accumulate: bool,
    a: (&[F::Number], Strides),
    b: (&[F::Number], Strides),
    parallel: bool,
) {
    let initial = if accumulate { InitialValue::Existing } else { InitialValue::Zero };
    // SAFETY: `F::isa` returns instructions of this CPU, and the slice is initialized.
    unsafe { compute::<F>(F::isa(), [m, n, k], Target::new(c, c_width, m, n), initial, a, b, parallel) };
}

/// Returns `a·b`, with `bias` added to each row. It uses all threads of the pool.
///
/// # Panics
/// As [`product`], and if `bias` does not have one value for each column.
pub(crate) fn product_with_bias<F: Factor>(
    [m, n, k]: [usize; 3],
    bias: Option<&[F::Number]>,
    a: (&[F::Number], Strides),
    b: (&[F::Number], Strides),
) -> Vec<F::Number> {
    // SAFETY: `F::isa` returns instructions of this CPU, and all elements are written.
    unsafe {
        build_vec(m * n, |c| {
            compute::<F>(
                F::isa(),
                [m, n, k],
                Target { pointer: c, width: n },
                initial_value(bias, n),
                a,
                b,
                true,
            )
        })
    }
}

fn initial_value<N>(bias: Option<&[N]>, n: usize) -> InitialValue<'_, N> {
    assert!(bias.is_none_or(|bias| bias.len() == n), "one bias value for each column");
    bias.map_or(InitialValue::Zero, InitialValue::Bias)
}

/// [`product_with_bias`] with a packed `b`. The rows of `a` must be contiguous and have `b.k()` values.
///
/// # Panics
/// As [`product_with_bias`].
pub(crate) fn product_packed<F: Factor>(
    m: usize,
    bias: Option<&[F::Number]>,
    a: &[F::Number],
    b: &PackedMatrix<F>,
) -> Vec<F::Number> {
    let strides = Strides::rows(b.k);
    assert!(b.k > 0 && a.len() >= strides.end(m, b.k), "the slice is too short for the matrix");
    let (initial, a) = (initial_value(bias, b.n), LeftFactor { values: a, strides });
    let (isa, depth) = (F::isa(), depth::<F>(b.k));
    // SAFETY: all elements are written: the parts are disjoint and cover the product, and so do the blocks of a part.
    unsafe {
        build_vec(m * b.n, |c| {
            let c = Target { pointer: c, width: b.n };
            for_each_part([m, b.n], F::COLUMNS, num_threads([m, b.n, b.k], true), |i, j| {
                for p in Steps::new(0, b.k, F::DEPTH) {
                    let panels = &b.panels[j.start * depth + p.start / F::UNIT_LEN * PANEL..];
                    let initial = if p.start > 0 { InitialValue::Existing } else { initial };
                    let block = Block { i: i.clone(), j: j.clone(), p };
                    compute_block::<F>(isa, block, c, initial, a, panels, depth);
                }
            });
        })
    }
}

/// Computes a product with the instructions of `isa`.
///
/// # Safety
/// The CPU must have these instructions. The target must have room for the product, and must be initialized for
/// [`InitialValue::Existing`].
unsafe fn compute<F: Factor>(
    isa: Isa,
    [m, n, k]: [usize; 3],
    c: Target<F::Number>,
    initial: InitialValue<F::Number>,
    (a, a_strides): (&[F::Number], Strides),
    (b, b_strides): (&[F::Number], Strides),
    parallel: bool,
) {
    assert!(
        k > 0 && a.len() >= a_strides.end(m, k) && b.len() >= b_strides.end(k, n),
        "the slices are too short for the matrices"
    );
    let a = LeftFactor { values: a, strides: a_strides };
    let threads = num_threads([m, n, k], parallel);
    // Packed once for all threads; the columns of each fit in its cache.
    let columns = (F::COLUMNS * threads).min(n.next_multiple_of(PANEL));
    F::with_panels(columns * depth::<F>(F::DEPTH.min(k)), |panels| {
        for j in Steps::new(0, n, columns) {
            for p in Steps::new(0, k, F::DEPTH) {
                let depth = depth::<F>(p.len());
                let panels = &mut panels[..j.len().next_multiple_of(PANEL) * depth];
                pack_all::<F>(panels, j.clone(), p.clone(), (b, b_strides), threads > 1);
                let panels = &*panels;
                let initial = if p.start > 0 { InitialValue::Existing } else { initial };
                for_each_part([m, j.len()], F::COLUMNS, threads, |i, n| {
                    let panels = &panels[n.start * depth..];
                    let n = j.start + n.start..j.start + n.end;
                    // SAFETY: parts are disjoint, and the blocks of a part are computed in order; the rest is passed on to the caller.
                    let block = Block { i, j: n, p: p.clone() };
                    unsafe { compute_block::<F>(isa, block, c, initial, a, panels, depth) };
                });
            }
        }
    });
}

/// An iterator over consecutive ranges of at most `step` indices, which cover `n` indices from `start` on.
#[derive(Clone)]
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
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.next..(self.next + self.step).min(self.end);
        self.next = range.end;
        (!range.is_empty()).then_some(range)
    }
}

/// Returns the number of threads that a product justifies.
fn num_threads([m, n, k]: [usize; 3], parallel: bool) -> usize {
    if parallel {
        rayon::current_num_threads().min(m * n * k / MIN_MULTIPLICATIONS_PER_THREAD).max(1)
    } else {
        1
    }
}

/// Calls `f` with the row and column ranges of parts that cover an m×n matrix. Each part begins at a panel, and has at most `max_columns`
/// columns.
fn for_each_part(
    [m, n]: [usize; 2],
    max_columns: usize,
    threads: usize,
    f: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    if threads < 2 {
        Steps::new(0, n, max_columns).for_each(|columns| f(0..m, columns));
        return;
    }
    // More parts than threads, so that no thread waits long for another. Rows are split first, because each part of columns packs the
    // rows of `a` again.
    let parts = 4 * threads;
    let row = m.div_ceil(parts).next_multiple_of(PANEL).max(4 * PANEL);
    let column =
        n.div_ceil(parts.div_ceil(m.div_ceil(row))).next_multiple_of(PANEL).clamp(2 * PANEL, max_columns);
    // Parts of the same columns are adjacent, so that a thread that takes several finds the panels in its cache.
    let parts: Vec<_> = Steps::new(0, n, column)
        .flat_map(|columns| Steps::new(0, m, row).map(move |rows| (rows, columns.clone())))
        .collect();
    parts.into_par_iter().for_each(|(rows, columns)| f(rows, columns));
}

/// The memory of a product, shared between threads that write different elements.
struct Target<F> {
    pointer: *mut F,
    /// Distance between rows, in values.
    width: usize,
}

impl<F> Clone for Target<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Target<F> {}

// SAFETY: it points into a slice of values that are `Send`. Each write through it has a safety comment that says why no other thread
// accesses the same element.
unsafe impl<F: Send> Send for Target<F> {}
// SAFETY: as above.
unsafe impl<F: Send> Sync for Target<F> {}

impl<F> Target<F> {
    fn new(c: &mut [F], width: usize, m: usize, n: usize) -> Self {
        assert!(
            n <= width && c.len() >= Strides::rows(width).end(m, n),
            "the slice is too short for the product"
        );
        Self { pointer: c.as_mut_ptr(), width }
    }
}

/// The first factor.
#[derive(Clone, Copy)]
struct LeftFactor<'a, F> {
    values: &'a [F],
    strides: Strides,
}

/// A block of a product: rows and columns of the result, and the inner indices that are summed over.
#[derive(Clone)]
struct Block {
    i: Range<usize>,
    j: Range<usize>,
    p: Range<usize>,
}

/// Adds the products of a block to `c`. `panels` hold its columns of `b`, `depth` units deep.
///
/// # Safety
/// As [`compute`]; and no other thread may access these elements of `c`.
unsafe fn compute_block<F: Factor>(
    isa: Isa,
    block: Block,
    c: Target<F::Number>,
    initial: InitialValue<F::Number>,
    a: LeftFactor<F::Number>,
    panels: &[F::Unit],
    depth: usize,
) {
    let Block { i, j, p } = block;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: the caller guarantees that the CPU has AMX.
    let _guard = (isa == Isa::Amx).then(|| unsafe { amx::TileGuard::new() });
    let (k, full) = (p.len(), isa.needs_full_tiles());
    let padded_depth = pack::depth::<F>(k);
    let units = if full { padded_depth } else { k.div_ceil(F::UNIT_LEN) };
    let add = !matches!(initial, InitialValue::Zero);
    // The result of a tile that is cut off by the edge of the matrix.
    let mut edge = [F::Number::default(); PANEL * PANEL];
    F::with_rows(2 * PANEL * padded_depth, |packed| {
        let (rows, columns) = packed.split_at_mut(PANEL * padded_depth);
        for i in Steps::new(i.start, i.len(), PANEL) {
            let from = &a.values[i.start * a.strides.row + p.start * a.strides.col..];
            assert!(from.len() >= a.strides.end(i.len(), k), "the slice is too short for the rows");
            let (at, strides) = match F::as_units(from) {
                Some(units) if a.strides.col == 1 => (units.as_ptr(), a.strides),
                _ if a.strides.col == 1 => {
                    if i.len() < PANEL || padded_depth * F::UNIT_LEN > k {
                        rows.fill(F::Unit::default());
                    }
                    for (r, row) in rows.chunks_exact_mut(padded_depth).enumerate().take(i.len()) {
                        pack::pack_units::<F>(&from[r * a.strides.row..][..k], row);
                    }
                    (rows.as_ptr(), Strides::rows(padded_depth))
                }
                _ => {
                    // A panel of the transpose, whose contiguous numbers belong to several rows.
                    pack::<F>(columns, [i.len(), k], from, a.strides.t());
                    if full {
                        let unit = |u: usize| columns[u * PANEL..].as_ptr();
                        // SAFETY: the panel has `padded_depth` lines of `PANEL` units.
                        unsafe { transpose(unit, [padded_depth, PANEL], rows, padded_depth) };
                        (rows.as_ptr(), Strides::rows(padded_depth))
                    } else {
                        (columns.as_ptr(), Strides::rows(PANEL).t())
                    }
                }
            };
            for tile in Steps::new(i.start, i.len(), isa.rows()) {
                for (j, panel) in Steps::new(j.start, j.len(), PANEL).zip(panels.chunks(PANEL * depth)) {
                    // SAFETY: the caller guarantees that the target has room for all rows and columns of the tile.
                    let to = |r: usize| unsafe { c.pointer.add((tile.start + r) * c.width + j.start) };
                    let complete = j.len() == PANEL && (tile.len() == isa.rows() || !full);
                    let (output, width) =
                        if complete { (to(0), c.width) } else { (edge.as_mut_ptr(), PANEL) };
                    for r in 0..tile.len() {
                        // SAFETY: as above; a row of the tile or of `edge` has room for `j.len()` values.
                        unsafe {
                            match initial {
                                InitialValue::Bias(bias) => {
                                    output
                                        .add(r * width)
                                        .copy_from_nonoverlapping(bias[j.clone()].as_ptr(), j.len());
                                }
                                InitialValue::Existing if !complete => {
                                    output.add(r * width).copy_from_nonoverlapping(to(r), j.len());
                                }
                                _ => {}
                            }
                        }
                    }
                    let computed = Tile {
                        rows: if full { isa.rows() } else { tile.len() },
                        a: at.wrapping_add((tile.start - i.start) * strides.row),
                        strides,
                        panel: &panel[..units * PANEL],
                        c: output,
                        width,
                        add,
                    };
                    // SAFETY: the assertion above keeps every element of `a` in its slice; the rest is passed on to the caller.
                    unsafe { F::run(isa, &computed) };
                    if !complete {
                        for r in 0..tile.len() {
                            // SAFETY: as above.
                            unsafe { to(r).copy_from_nonoverlapping(edge[r * PANEL..].as_ptr(), j.len()) };
                        }
                    }
                }
            }
        }
    });
}
