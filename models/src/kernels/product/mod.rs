//! Matrix products on slices.
//!
//! An element of a product is summed up over every [`Factor::DEPTH`] inner indices, first to last, and these sums are added one after the
//! other; where processors have instructions for bf16, in the order that those have. So it depends neither on the other rows and columns
//! nor on tiles or threads: an item's result is the same in every batch, bit for bit. The tiles are those of Goto and van de Geijn, "Anatomy
//! of high-performance matrix multiplication" (2008): a block of `b` is laid out as [panels](pack), of which a [kernel](tile) takes one with
//! a few rows of `a` at a time, keeping their results in registers.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod factor;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use factor::{Bf16, Factor};
#[cfg(feature = "candle")]
pub(crate) use factor::{Widened, has_bf16};
use pack::{depth, pack, transpose};
use tile::{Isa, Tile};

use super::memory::{Aligned, written};

/// Columns of a panel, and the most rows of `a` that are laid out together.
const PANEL: usize = 32;
/// Multiplications that are worth another thread. Like other sizes it is small under Miri, which is slow and has to see all that is done.
const WORTH: usize = if cfg!(miri) { 1 << 6 } else { 1 << 18 };

/// A matrix inside a slice: element (i, j) lies at `i·row + j·col`.
#[derive(Clone, Copy, Debug, PartialEq)]
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
#[derive(Debug)]
pub(crate) struct Packed<F: Factor> {
    n: usize,
    k: usize,
    panels: Aligned<F::Unit>,
}

impl<F: Factor> Packed<F> {
    /// # Panics
    /// When `b` is too short for its sizes and strides.
    pub(crate) fn new([n, k]: [usize; 2], b: (&[F::Number], Strides)) -> Self {
        let mut panels = Aligned::new(n.div_ceil(PANEL) * PANEL * depth::<F>(k));
        pack_all::<F>(&mut panels, 0..n, 0..k, b, false);
        Self { n, k, panels }
    }

    /// Rows, over which products sum.
    pub(crate) fn k(&self) -> usize {
        self.k
    }
}

/// Lays columns `n` and inner indices `k` of `b` out as panels.
fn pack_all<F: Factor>(
    panels: &mut [F::Unit],
    n: Range<usize>,
    k: Range<usize>,
    (b, strides): (&[F::Number], Strides),
    parallel: bool,
) {
    assert!(b.len() >= strides.end(k.end, n.end), "the slice holds the matrix");
    let panels = panels.chunks_exact_mut((PANEL * depth::<F>(k.len())).max(1));
    let one = |(j, panel): (Range<usize>, &mut [F::Unit])| {
        let from = k.start * strides.row + j.start * strides.col;
        pack::<F>(panel, [j.len(), k.len()], &b[from..], strides);
    };
    let panels = Steps::new(n.start, n.len(), PANEL).zip(panels);
    if parallel {
        panels.collect::<Vec<_>>().into_par_iter().for_each(one);
    } else {
        panels.for_each(one);
    }
}

/// What there is before a product is added to it.
#[derive(Clone, Copy)]
enum Begin<'a, N> {
    /// Nothing; nor need there be numbers.
    Nothing,
    /// The numbers that are there.
    There,
    /// This in every row.
    Row(&'a [N]),
}

/// `c = a·b`, or `c += a·b` with `accumulate`: `a` is m×k, `b` k×n, and `c` m×n with `c_width` values from one row to the next. `parallel`
/// uses all threads of the pool.
///
/// # Panics
/// When a slice is too short for its sizes and strides, k is zero, or neither the rows nor the columns of a factor are numbers that follow
/// each other.
pub(crate) fn product<F: Factor>(
    [m, n, k]: [usize; 3],
    (c, c_width): (&mut [F::Number], usize),
    accumulate: bool,
    a: (&[F::Number], Strides),
    b: (&[F::Number], Strides),
    parallel: bool,
) {
    let begin = if accumulate { Begin::There } else { Begin::Nothing };
    // SAFETY: the processor has its own instructions, and the slice holds numbers.
    unsafe { compute::<F>(F::isa(), [m, n, k], Target::new(c, c_width, m, n), begin, a, b, parallel) };
}

/// `a·b` in memory of its own, with `bias` added to each row, by all threads of the pool.
///
/// # Panics
/// As [`product`], and when there is not a bias for each column.
pub(crate) fn product_with_bias<F: Factor>(
    [m, n, k]: [usize; 3],
    bias: Option<&[F::Number]>,
    a: (&[F::Number], Strides),
    b: (&[F::Number], Strides),
) -> Vec<F::Number> {
    // SAFETY: the processor has its own instructions, and all is written to.
    unsafe {
        written(m * n, |c| {
            compute::<F>(F::isa(), [m, n, k], Target { at: c, width: n }, start(bias, n), a, b, true)
        })
    }
}

fn start<N>(bias: Option<&[N]>, n: usize) -> Begin<'_, N> {
    assert!(bias.is_none_or(|bias| bias.len() == n), "there is a bias for each column");
    bias.map_or(Begin::Nothing, Begin::Row)
}

/// [`product_with_bias`] with a `b` that is laid out already; `a` has rows of as many values as there are inner indices.
///
/// # Panics
/// As [`product_with_bias`].
pub(crate) fn product_packed<F: Factor>(
    m: usize,
    bias: Option<&[F::Number]>,
    a: &[F::Number],
    b: &Packed<F>,
) -> Vec<F::Number> {
    let strides = Strides::rows(b.k);
    assert!(b.k > 0 && a.len() >= strides.end(m, b.k), "the slice holds the matrix");
    let (begin, a) = (start(bias, b.n), Rows { values: a, strides });
    let (isa, depth) = (F::isa(), depth::<F>(b.k));
    // SAFETY: all of it is written to: parts are disjoint and make up all, and so are the blocks of a part.
    unsafe {
        written(m * b.n, |c| {
            let c = Target { at: c, width: b.n };
            each_part([m, b.n], F::COLUMNS, threads([m, b.n, b.k], true), |i, j| {
                for p in Steps::new(0, b.k, F::DEPTH) {
                    let panels = &b.panels[j.start * depth + p.start / F::EACH * PANEL..];
                    let begin = if p.start > 0 { Begin::There } else { begin };
                    block::<F>(isa, i.clone(), j.clone(), p, c, begin, a, panels, depth);
                }
            });
        })
    }
}

/// [`product`] by these instructions.
///
/// # Safety
/// The processor must have them; there must be room at the target, and numbers where they are there before.
unsafe fn compute<F: Factor>(
    isa: Isa,
    [m, n, k]: [usize; 3],
    c: Target<F::Number>,
    begin: Begin<F::Number>,
    (a, a_strides): (&[F::Number], Strides),
    (b, b_strides): (&[F::Number], Strides),
    parallel: bool,
) {
    assert!(
        k > 0 && a.len() >= a_strides.end(m, k) && b.len() >= b_strides.end(k, n),
        "slices hold the matrices"
    );
    let a = Rows { values: a, strides: a_strides };
    let threads = threads([m, n, k], parallel);
    // Laid out once for all threads, each of which keeps its columns close.
    let columns = (F::COLUMNS * threads).min(n.next_multiple_of(PANEL));
    F::with_panels(columns * depth::<F>(F::DEPTH.min(k)), |panels| {
        for j in Steps::new(0, n, columns) {
            for p in Steps::new(0, k, F::DEPTH) {
                let depth = depth::<F>(p.len());
                let panels = &mut panels[..j.len().next_multiple_of(PANEL) * depth];
                pack_all::<F>(panels, j.clone(), p.clone(), (b, b_strides), threads > 1);
                let panels = &*panels;
                let begin = if p.start > 0 { Begin::There } else { begin };
                each_part([m, j.len()], F::COLUMNS, threads, |i, n| {
                    let panels = &panels[n.start * depth..];
                    let n = j.start + n.start..j.start + n.end;
                    // SAFETY: parts are disjoint, and blocks come one after the other; the rest as the caller says.
                    unsafe { block::<F>(isa, i, n, p.clone(), c, begin, a, panels, depth) };
                });
            }
        }
    });
}

/// Ranges of at most `step` that make up `n` places from `start` on.
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

/// Threads that a product is worth.
fn threads([m, n, k]: [usize; 3], parallel: bool) -> usize {
    if parallel { rayon::current_num_threads().min(m * n * k / WORTH).max(1) } else { 1 }
}

/// Calls `f` with rows and columns of an m×n matrix, which together make up all of it. They begin at panels, and are at most `most` columns.
fn each_part([m, n]: [usize; 2], most: usize, threads: usize, f: impl Fn(Range<usize>, Range<usize>) + Sync) {
    if threads < 2 {
        Steps::new(0, n, most).for_each(|columns| f(0..m, columns));
        return;
    }
    // More parts than threads, so that none waits long for another; of rows where there are enough, since what a kernel takes of `a` is
    // laid out anew for each part of columns.
    let parts = 4 * threads;
    let row = m.div_ceil(parts).next_multiple_of(PANEL).max(4 * PANEL);
    let column = n.div_ceil(parts.div_ceil(m.div_ceil(row))).next_multiple_of(PANEL).clamp(2 * PANEL, most);
    // Of the same columns one after the other: a thread that takes several finds the panels in its cache.
    let parts: Vec<_> = Steps::new(0, n, column)
        .flat_map(|columns| Steps::new(0, m, row).map(move |rows| (rows, columns.clone())))
        .collect();
    parts.into_par_iter().for_each(|(rows, columns)| f(rows, columns));
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

/// Rows `i` of columns `j` of `c`, as far as inner indices `p` bring them. `panels` hold those of `b`, each `depth` units deep.
///
/// # Safety
/// The processor must have these instructions, no other thread may look at these elements of `c`, and the rest is as in [`compute`].
unsafe fn block<F: Factor>(
    isa: Isa,
    i: Range<usize>,
    j: Range<usize>,
    p: Range<usize>,
    c: Target<F::Number>,
    begin: Begin<F::Number>,
    a: Rows<F::Number>,
    panels: &[F::Unit],
    depth: usize,
) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: the instruction is there, as the caller says.
    let _ready = (isa == Isa::Amx).then(|| unsafe { amx::Ready::new() });
    let (k, whole) = (p.len(), isa.whole());
    let most = pack::depth::<F>(k);
    let units = if whole { most } else { k.div_ceil(F::EACH) };
    let add = !matches!(begin, Begin::Nothing);
    // What is computed of rows and columns that are not all there.
    let mut edge = [F::Number::default(); PANEL * PANEL];
    F::with_rows(2 * PANEL * most, |laid_out| {
        let (rows, columns) = laid_out.split_at_mut(PANEL * most);
        for i in Steps::new(i.start, i.len(), PANEL) {
            let from = &a.values[i.start * a.strides.row + p.start * a.strides.col..];
            assert!(from.len() >= a.strides.end(i.len(), k), "the slice holds the rows");
            let (at, strides) = match F::as_units(from) {
                Some(units) if a.strides.col == 1 => (units.as_ptr(), a.strides),
                _ if a.strides.col == 1 => {
                    if i.len() < PANEL || most * F::EACH > k {
                        rows.fill(F::Unit::default());
                    }
                    for (r, row) in rows.chunks_exact_mut(most).enumerate().take(i.len()) {
                        pack::along::<F>(&from[r * a.strides.row..][..k], row);
                    }
                    (rows.as_ptr(), Strides::rows(most))
                }
                _ => {
                    // A panel of the transpose: numbers of several rows that follow each other are taken together.
                    pack::<F>(columns, [i.len(), k], from, a.strides.t());
                    if whole {
                        let unit = |u: usize| columns[u * PANEL..].as_ptr();
                        // SAFETY: each unit of the inner index is there for a panel of rows.
                        unsafe { transpose(unit, [most, PANEL], rows, most) };
                        (rows.as_ptr(), Strides::rows(most))
                    } else {
                        (columns.as_ptr(), Strides::rows(PANEL).t())
                    }
                }
            };
            for tile in Steps::new(i.start, i.len(), isa.rows()) {
                for (j, panel) in Steps::new(j.start, j.len(), PANEL).zip(panels.chunks(PANEL * depth)) {
                    // SAFETY: the target has room at this row and column, as the caller says, and at those of the tile from here on.
                    let to = |r: usize| unsafe { c.at.add((tile.start + r) * c.width + j.start) };
                    let all = j.len() == PANEL && (tile.len() == isa.rows() || !whole);
                    let (c_at, width) = if all { (to(0), c.width) } else { (edge.as_mut_ptr(), PANEL) };
                    for r in 0..tile.len() {
                        // SAFETY: as above; a row of the tile, or of what is computed instead, is as long as there are columns.
                        unsafe {
                            match begin {
                                Begin::Row(bias) => {
                                    c_at.add(r * width)
                                        .copy_from_nonoverlapping(bias[j.clone()].as_ptr(), j.len());
                                }
                                Begin::There if !all => {
                                    c_at.add(r * width).copy_from_nonoverlapping(to(r), j.len());
                                }
                                _ => {}
                            }
                        }
                    }
                    let computed = Tile::<F> {
                        rows: if whole { isa.rows() } else { tile.len() },
                        a: at.wrapping_add((tile.start - i.start) * strides.row),
                        strides,
                        panel: &panel[..units * PANEL],
                        c: c_at,
                        width,
                        add,
                    };
                    // SAFETY: the instructions are there; the assertions here keep every element of `a` inside its slice; the rest as the
                    // caller says.
                    unsafe { F::run(isa, &computed) };
                    if !all {
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
