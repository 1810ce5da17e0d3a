//! 2-D convolution as matrix products (im2col), and its sizes: the weights times the windows of a tile of outputs, which are copied to columns that stay
//! in cache.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Real,
    product::{Factor, Strides, product},
    sum_partials,
    window::Window,
};
use crate::tiling::{self, TILE};

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) channels: usize,
    pub(crate) out: usize,
    /// Number of groups of channels.
    pub(crate) groups: usize,
    pub(crate) window: Window,
}

/// Outputs that are computed together: some rows of one item, or all rows of several items.
#[derive(Clone, Debug)]
struct Tile {
    items: Range<usize>,
    rows: Range<usize>,
}

impl Conv {
    /// Returns the number of values of a column.
    fn column_len(self) -> usize {
        self.channels * self.window.kernel[0] * self.window.kernel[1]
    }

    /// Returns the number of input values of an item.
    pub(super) fn input_len(self) -> usize {
        self.channels * self.window.input_len()
    }

    /// Returns the number of output values of an item.
    pub(super) fn output_len(self) -> usize {
        self.out * self.window.output_len()
    }

    /// Returns the number of items per task.
    fn items_per_task(self) -> usize {
        tiling::items_per_task(self.window.output_len())
    }

    /// Returns the number of outputs of a tile in each channel.
    fn tile_len(self, tile: &Tile) -> usize {
        tile.items.len() * tile.rows.len() * self.window.cols
    }

    /// Returns the tiles that cover `items` items.
    fn tiles(self, items: usize) -> impl Iterator<Item = Tile> {
        let Window { rows, cols, .. } = self.window;
        let (group, step) = (self.items_per_task(), (TILE / cols).clamp(1, rows));
        (0..items).step_by(group).flat_map(move |item| {
            let items = item..(item + group).min(items);
            // Several items fit into a tile only if all their rows do.
            let step = if group > 1 { rows } else { step };
            (0..rows)
                .step_by(step)
                .map(move |row| Tile { items: items.clone(), rows: row..(row + step).min(rows) })
        })
    }

    /// Returns a tile of `[items, channels, positions]` as a matrix `[channels, tile_len]`: a view for one item, a copy in `buffer` for
    /// several.
    fn gather<'a, F: Real>(
        self,
        values: &'a [F],
        channels: usize,
        tile: &Tile,
        buffer: &'a mut [F],
    ) -> (&'a [F], Strides) {
        let positions = self.window.output_len();
        if tile.items.len() == 1 {
            let start = tile.items.start * channels * positions + tile.rows.start * self.window.cols;
            return (&values[start..], Strides::rows(positions));
        }
        let n = self.tile_len(tile);
        for (i, item) in tile.items.clone().enumerate() {
            let planes = values[item * channels * positions..].chunks_exact(positions);
            for (row, plane) in buffer.chunks_exact_mut(n).zip(planes).take(channels) {
                row[i * positions..(i + 1) * positions].copy_from_slice(plane);
            }
        }
        (buffer, Strides::rows(n))
    }

    /// Returns the windows of a tile as a matrix `[column_len, tile_len]`.
    fn columns<'a, F: Real>(self, x: &'a [F], tile: &Tile, buffer: &'a mut [F]) -> (&'a [F], Strides) {
        if self.window.is_pixel() {
            return self.gather(x, self.channels, tile, buffer);
        }
        let n = self.tile_len(tile);
        for (k, row) in buffer.chunks_exact_mut(n).take(self.column_len()).enumerate() {
            self.for_each_row(k, tile, |to, from| match from {
                Some((valid, first)) => {
                    let row = &mut row[to];
                    row[..valid.start].fill(F::from_f64(0.0));
                    row[valid.end..].fill(F::from_f64(0.0));
                    let row = &mut row[valid];
                    if self.window.stride[1] == 1 {
                        row.copy_from_slice(&x[first..first + row.len()]);
                    } else {
                        let source = x[first..].iter().step_by(self.window.stride[1]);
                        row.iter_mut().zip(source).for_each(|(to, &from)| *to = from);
                    }
                }
                None => row[to].fill(F::from_f64(0.0)),
            });
        }
        (buffer, Strides::rows(n))
    }

    /// Adds each value of the columns to the value of `x` that it was copied from: the transpose of [`columns`](Self::columns).
    fn add_columns<F: Real>(self, columns: &[F], tile: &Tile, x: &mut [F]) {
        let n = self.tile_len(tile);
        for (k, row) in columns.chunks_exact(n).take(self.column_len()).enumerate() {
            self.for_each_row(k, tile, |from, to| {
                let Some((valid, first)) = to else { return };
                let row = &row[from][valid];
                if self.window.stride[1] == 1 {
                    x[first..first + row.len()].iter_mut().zip(row).for_each(|(to, &from)| *to += from);
                } else {
                    let target = x[first..].iter_mut().step_by(self.window.stride[1]);
                    target.zip(row).for_each(|(to, &from)| *to += from);
                }
            });
        }
    }

    /// Calls `f` for each row of outputs of a tile. `f` receives the range of the row in row `k` of the columns. Unless all of it is padding,
    /// `f` also receives the part that is not padding, and the index in `x` of its first value.
    #[inline(always)]
    fn for_each_row(
        self,
        k: usize,
        tile: &Tile,
        mut f: impl FnMut(Range<usize>, Option<(Range<usize>, usize)>),
    ) {
        let w = self.window;
        let [height, width] = w.kernel;
        let (channel, ky, kx) = (k / (height * width), k / width % height, k % width);
        let (valid, first) = w.valid_columns(kx);
        let mut at = 0;
        for item in tile.items.clone() {
            let plane = (item * self.channels + channel) * w.input_len();
            for y in tile.rows.clone() {
                let row = w.input_row(y, ky).filter(|_| !valid.is_empty());
                f(at..at + w.cols, row.map(|row| (valid.clone(), plane + row * w.width + first)));
                at += w.cols;
            }
        }
    }

    /// Calls `f` with buffers for the columns of a tile and for its outputs.
    fn with_buffers<F: Real, R>(self, f: impl FnOnce(&mut [F], &mut [F]) -> R) -> R {
        let first = Tile { items: 0..self.items_per_task(), rows: 0..self.window.rows };
        let max_len = self.tile_len(&first).min(TILE.max(self.window.cols));
        let columns = self.column_len() * max_len;
        F::with_scratch(columns + self.out * max_len, |buffer| {
            let (columns, outputs) = buffer.split_at_mut(columns);
            f(columns, outputs)
        })
    }
}

/// Computes [`conv::forward`](super::conv::forward) for one group.
pub(super) fn forward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    bias: Option<&[P::Number]>,
) -> Vec<P::Number> {
    let (group, positions) = (conv.items_per_task(), conv.window.output_len());
    let mut y = vec![P::Number::from_f64(0.0); x.len() / conv.input_len() * conv.output_len()];
    if let Some(bias) = bias {
        y.par_chunks_mut(positions).enumerate().for_each(|(i, plane)| plane.fill(bias[i % conv.out]));
    }
    let parallel = x.len() < 2 * group * conv.input_len();
    y.par_chunks_mut(group * conv.output_len()).zip(x.par_chunks(group * conv.input_len())).for_each(
        |(y, x)| {
            conv.with_buffers(|columns, outputs| {
                for tile in conv.tiles(x.len() / conv.input_len()) {
                    let n = conv.tile_len(&tile);
                    let columns = conv.columns(x, &tile, columns);
                    let sizes = [conv.out, n, conv.column_len()];
                    let weight = (weight, Strides::rows(conv.column_len()));
                    if tile.items.len() == 1 {
                        let y = &mut y
                            [tile.items.start * conv.output_len() + tile.rows.start * conv.window.cols..];
                        product::<P>(sizes, (y, positions), bias.is_some(), weight, columns, parallel);
                        continue;
                    }
                    // The bias comes first, as for a single item, so that the sums have the same order.
                    if let Some(bias) = bias {
                        outputs.chunks_exact_mut(n).zip(bias).for_each(|(row, &bias)| row.fill(bias));
                    }
                    product::<P>(sizes, (outputs, n), bias.is_some(), weight, columns, parallel);
                    for (o, row) in outputs.chunks_exact(n).take(conv.out).enumerate() {
                        for (item, row) in tile.items.clone().zip(row.chunks_exact(positions)) {
                            y[(item * conv.out + o) * positions..][..positions].copy_from_slice(row);
                        }
                    }
                }
            });
        },
    );
    y
}

/// Computes [`conv::backward`](super::conv::backward) for one group.
pub(super) fn backward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    grad: &[P::Number],
    need_x: bool,
) -> (Option<Vec<P::Number>>, Vec<P::Number>) {
    let (column, items) = (conv.column_len(), x.len() / conv.input_len());
    let part = tiling::items_per_partial(items, conv.window.output_len());
    let mut grad_x = vec![P::Number::from_f64(0.0); if need_x { x.len() } else { 0 }];
    let parts: Vec<&mut [P::Number]> = if need_x {
        grad_x.chunks_mut(part * conv.input_len()).collect()
    } else {
        (0..items.div_ceil(part)).map(|_| <&mut [P::Number]>::default()).collect()
    };
    let parallel = parts.len() < 2;
    let partials: Vec<Vec<P::Number>> = parts
        .into_par_iter()
        .zip(x.par_chunks(part * conv.input_len()).zip(grad.par_chunks(part * conv.output_len())))
        .map(|(grad_x, (x, grad))| {
            let mut grad_weight = vec![P::Number::from_f64(0.0); weight.len()];
            conv.with_buffers(|buffer, outputs| {
                for tile in conv.tiles(x.len() / conv.input_len()) {
                    let n = conv.tile_len(&tile);
                    let grad = conv.gather(grad, conv.out, &tile, outputs);
                    let (columns, strides) = conv.columns(x, &tile, buffer);
                    let sum = (&mut grad_weight[..], column);
                    product::<P>([conv.out, column, n], sum, true, grad, (columns, strides.t()), parallel);
                    if need_x {
                        let weight = (weight, Strides::rows(column).t());
                        let columns = (&mut *buffer, n);
                        product::<P>([column, n, conv.out], columns, false, weight, grad, parallel);
                        conv.add_columns(buffer, &tile, grad_x);
                    }
                }
            });
            grad_weight
        })
        .collect();
    (need_x.then_some(grad_x), sum_partials(&partials))
}
