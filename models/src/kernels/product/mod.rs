//! Matrix products on slices.
//!
//! An element of a product is summed up over every [`Factor::DEPTH`] inner indices, first to last, and these sums are added one after the
//! other. So it depends neither on the other rows and columns nor on tiles or threads: an item's result is the same in every batch, bit
//! for bit. The tiles are those of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): a block of `b` is
//! laid out as [panels](pack), of which a [kernel](tile) takes one with a few rows of `a` at a time, keeping their results in registers.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod factor;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use factor::Factor;
use pack::{depth, pack, transpose};
use tile::{Isa, Tile};

use super::memory::Aligned;

/// Columns of a panel, and the most rows of `a` that are laid out together.
const PANEL: usize = 32;
/// Multiplications that are worth another thread.
const WORTH: usize = 1 << 18;

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
#[derive(Debug)]
pub(crate) struct Packed<F: Factor> {
    n: usize,
    k: usize,
    panels: Aligned<F::Unit>,
}

impl<F: Factor> Packed<F> {
    /// # Panics
    /// When `b` is too short for its sizes and strides.
    pub(crate) fn new([n, k]: [usize; 2], b: (&[F], Strides)) -> Self {
        let mut panels = Aligned::new(n.div_ceil(PANEL) * PANEL * depth::<F>(k));
        pack_all(&mut panels, 0..n, 0..k, b, false);
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

/// Lays columns `n` and inner indices `k` of `b` out as panels.
fn pack_all<F: Factor>(
    panels: &mut [F::Unit],
    n: Range<usize>,
    k: Range<usize>,
    (b, strides): (&[F], Strides),
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

/// `c = a·b`, or `c += a·b` with `accumulate`: `a` is m×k, `b` k×n, and `c` m×n with `c_width` values from one row to the next. `parallel`
/// uses all threads of the pool.
///
/// # Panics
/// When a slice is too short for its sizes and strides, or k is zero.
pub(crate) fn product<F: Factor>(
    sizes: [usize; 3],
    c: (&mut [F::Sum], usize),
    accumulate: bool,
    a: (&[F], Strides),
    b: (&[F], Strides),
    parallel: bool,
) {
    product_by(F::isa(), sizes, c, accumulate, a, b, parallel);
}

fn product_by<F: Factor>(
    isa: Isa,
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
    let threads = threads([m, n, k], parallel);
    // Laid out once for all threads, each of which keeps its columns close.
    let columns = (F::COLUMNS * threads).min(n.next_multiple_of(PANEL));
    F::with_panels(columns * depth::<F>(F::DEPTH.min(k)), |panels| {
        for j in Steps::new(0, n, columns) {
            for p in Steps::new(0, k, F::DEPTH) {
                let depth = depth::<F>(p.len());
                let panels = &mut panels[..j.len().next_multiple_of(PANEL) * depth];
                pack_all(panels, j.clone(), p.clone(), (b, b_strides), threads > 1);
                let (panels, add) = (&*panels, accumulate || p.start > 0);
                each_part([m, j.len()], F::COLUMNS, threads, |i, n| {
                    let panels = &panels[n.start * depth..];
                    // SAFETY: parts are disjoint, and blocks come one after the other.
                    unsafe {
                        block(isa, i, [j.start + n.start, n.len()], p.clone(), c, add, a, panels, depth)
                    };
                });
            }
        }
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
    let (isa, depth) = (F::isa(), depth::<F>(b.k));
    each_part([m, b.n], F::COLUMNS, threads([m, b.n, b.k], parallel), |i, j| {
        for p in Steps::new(0, b.k, F::DEPTH) {
            let panels = &b.panels[j.start * depth + p.start / F::EACH * PANEL..];
            let add = accumulate || p.start > 0;
            // SAFETY: parts are disjoint, and so are the blocks of a part.
            unsafe { block(isa, i.clone(), [j.start, j.len()], p, c, add, a, panels, depth) };
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

/// Rows `i` of columns `[j, n]` of `c`, as far as inner indices `p` bring them. `panels` hold those of `b`, each `depth` units deep.
///
/// # Safety
/// The processor must have these instructions, and no other thread may look at these elements of `c`.
unsafe fn block<F: Factor>(
    isa: Isa,
    i: Range<usize>,
    [j, n]: [usize; 2],
    p: Range<usize>,
    c: Target<F::Sum>,
    add: bool,
    a: Rows<F>,
    panels: &[F::Unit],
    depth: usize,
) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: it was found to be there.
    let _ready = (isa == Isa::Amx).then(|| unsafe { amx::Ready::new() });
    let k = p.len();
    let whole = isa.whole();
    let units = if whole { pack::depth::<F>(k) } else { k.div_ceil(F::EACH) };
    // Units are numbers that follow each other, and lie as a kernel takes them.
    let lies = a.strides.col == 1 && a.strides.row.is_multiple_of(F::EACH) && units * F::EACH == k;
    // What is computed of rows and columns that are not all there.
    let mut edge = [F::Sum::default(); PANEL * PANEL];
    F::with_rows(2 * PANEL * pack::depth::<F>(k), |laid_out| {
        let (columns, rows) = laid_out.split_at_mut(PANEL * pack::depth::<F>(k));
        for i in Steps::new(i.start, i.len(), PANEL) {
            let from = &a.values[i.start * a.strides.row + p.start * a.strides.col..];
            assert!(from.len() >= a.strides.end(i.len(), k), "the slice holds the rows");
            let (at, strides) = if lies && !(whole && i.len() < PANEL) {
                (from.as_ptr().cast(), Strides::rows(a.strides.row / F::EACH))
            } else {
                // A panel of the transpose: numbers of several rows that follow each other are taken together, not a row at a time.
                pack(columns, [i.len(), k], from, a.strides.t());
                if whole {
                    let depth = columns.len() / PANEL;
                    let unit = |u: usize| columns[u * PANEL..].as_ptr();
                    // SAFETY: each unit of the inner index is there for a panel of rows.
                    unsafe { transpose(unit, [depth, PANEL], rows, depth) };
                    (rows.as_ptr(), Strides::rows(depth))
                } else {
                    (columns.as_ptr(), Strides::rows(PANEL).t())
                }
            };
            for tile in Steps::new(i.start, i.len(), isa.rows()) {
                let panels = Steps::new(j, n, PANEL).zip(panels.chunks(PANEL * depth));
                for (j, panel) in panels {
                    // SAFETY: `Target::new` has seen that this row and column are inside.
                    let to = unsafe { c.at.add(tile.start * c.width + j.start) };
                    let all = j.len() == PANEL && (tile.len() == isa.rows() || !whole);
                    let (c_at, width) = if all { (to, c.width) } else { (edge.as_mut_ptr(), PANEL) };
                    // SAFETY: as above; there are so many columns in each of these rows.
                    let row =
                        |r: usize| unsafe { std::slice::from_raw_parts_mut(to.add(r * c.width), j.len()) };
                    if !all && add {
                        let edge = edge.chunks_exact_mut(PANEL).take(tile.len());
                        edge.enumerate().for_each(|(r, edge)| edge[..j.len()].copy_from_slice(row(r)));
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
                    // SAFETY: the instruction set was detected; the assertions here and in `Target::new` keep every element inside its
                    // slice; the caller keeps others away from `c`.
                    unsafe { F::run(isa, &computed) };
                    if !all {
                        let edge = edge.chunks_exact(PANEL).take(tile.len());
                        edge.enumerate().for_each(|(r, edge)| row(r).copy_from_slice(&edge[..j.len()]));
                    }
                }
            }
        }
    });
}
