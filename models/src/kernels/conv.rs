//! 2-D convolution as matrix products: of the weights and the windows of a tile of outputs, laid out as columns that stay in cache.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Real,
    product::{Factor, Strides, product},
    sum_partials,
    window::Window,
    winograd,
};
use crate::tiling::{self, TILE};

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) channels: usize,
    pub(crate) out: usize,
    pub(crate) window: Window,
}

/// Outputs that are computed together: some rows of one item, or several whole items.
#[derive(Clone, Debug)]
struct Tile {
    items: Range<usize>,
    rows: Range<usize>,
}

impl Conv {
    /// Values of one column.
    fn column(self) -> usize {
        self.channels * self.window.kernel * self.window.kernel
    }

    pub(super) fn input(self) -> usize {
        self.channels * self.window.plane()
    }

    pub(super) fn output(self) -> usize {
        self.out * self.window.places()
    }

    /// Items that are worth a task.
    fn group(self) -> usize {
        tiling::items_per_task(self.window.places())
    }

    /// Outputs of a tile, for each channel.
    fn len(self, tile: &Tile) -> usize {
        tile.items.len() * tile.rows.len() * self.window.cols
    }

    fn tiles(self, items: usize) -> impl Iterator<Item = Tile> {
        let Window { rows, cols, .. } = self.window;
        let (group, step) = (self.group(), (TILE / cols).clamp(1, rows));
        (0..items).step_by(group).flat_map(move |item| {
            let items = item..(item + group).min(items);
            // Several items fit into a tile only when all their rows do.
            let step = if group > 1 { rows } else { step };
            (0..rows)
                .step_by(step)
                .map(move |row| Tile { items: items.clone(), rows: row..(row + step).min(rows) })
        })
    }

    /// A tile of `[items, channels, places]` as a matrix `[channels, len]`: as it lies, or gathered into `buffer`.
    fn gathered<'a, F: Real>(
        self,
        values: &'a [F],
        channels: usize,
        tile: &Tile,
        buffer: &'a mut [F],
    ) -> (&'a [F], Strides) {
        let places = self.window.places();
        if tile.items.len() == 1 {
            let start = tile.items.start * channels * places + tile.rows.start * self.window.cols;
            return (&values[start..], Strides::rows(places));
        }
        let n = self.len(tile);
        for (i, item) in tile.items.clone().enumerate() {
            let planes = values[item * channels * places..].chunks_exact(places);
            for (row, plane) in buffer.chunks_exact_mut(n).zip(planes).take(channels) {
                row[i * places..(i + 1) * places].copy_from_slice(plane);
            }
        }
        (buffer, Strides::rows(n))
    }

    /// The windows of a tile as a matrix `[column, len]`.
    fn columns<'a, F: Real>(self, x: &'a [F], tile: &Tile, buffer: &'a mut [F]) -> (&'a [F], Strides) {
        if self.window.is_pixel() {
            return self.gathered(x, self.channels, tile, buffer);
        }
        let n = self.len(tile);
        for (k, row) in buffer.chunks_exact_mut(n).take(self.column()).enumerate() {
            self.each_run(k, tile, |to, from| match from {
                Some((inside, first)) => {
                    let row = &mut row[to];
                    row[..inside.start].fill(F::of(0.0));
                    row[inside.end..].fill(F::of(0.0));
                    let row = &mut row[inside];
                    if self.window.stride == 1 {
                        row.copy_from_slice(&x[first..first + row.len()]);
                    } else {
                        let source = x[first..].iter().step_by(self.window.stride);
                        row.iter_mut().zip(source).for_each(|(to, &from)| *to = from);
                    }
                }
                None => row[to].fill(F::of(0.0)),
            });
        }
        (buffer, Strides::rows(n))
    }

    /// Adds each value of the columns to where it came from: the transpose of [`columns`](Self::columns).
    fn add_columns<F: Real>(self, columns: &[F], tile: &Tile, x: &mut [F]) {
        let n = self.len(tile);
        for (k, row) in columns.chunks_exact(n).take(self.column()).enumerate() {
            self.each_run(k, tile, |from, to| {
                let Some((inside, first)) = to else { return };
                let row = &row[from][inside];
                if self.window.stride == 1 {
                    x[first..first + row.len()].iter_mut().zip(row).for_each(|(to, &from)| *to += from);
                } else {
                    let target = x[first..].iter_mut().step_by(self.window.stride);
                    target.zip(row).for_each(|(to, &from)| *to += from);
                }
            });
        }
    }

    /// Calls `f` for each row of outputs of a tile, with its place in row `k` of the columns and, unless it is all padding, the part of
    /// it that is not and where in `x` that begins.
    #[inline(always)]
    fn each_run(self, k: usize, tile: &Tile, mut f: impl FnMut(Range<usize>, Option<(Range<usize>, usize)>)) {
        let w = self.window;
        let (channel, ky, kx) = (k / (w.kernel * w.kernel), k / w.kernel % w.kernel, k % w.kernel);
        let (inside, first) = w.inside(kx);
        let mut at = 0;
        for item in tile.items.clone() {
            let plane = (item * self.channels + channel) * w.plane();
            for y in tile.rows.clone() {
                let row = w.input_row(y, ky).filter(|_| !inside.is_empty());
                f(at..at + w.cols, row.map(|row| (inside.clone(), plane + row * w.width + first)));
                at += w.cols;
            }
        }
    }

    /// Room for the columns of a tile and for its outputs.
    fn with_buffers<F: Real, R>(self, f: impl FnOnce(&mut [F], &mut [F]) -> R) -> R {
        let first = Tile { items: 0..self.group(), rows: 0..self.window.rows };
        let most = self.len(&first).min(TILE.max(self.window.cols));
        let columns = self.column() * most;
        F::with_scratch(columns + self.out * most, |buffer| {
            let (columns, outputs) = buffer.split_at_mut(columns);
            f(columns, outputs)
        })
    }
}

/// `weight ⋆ x + bias`: `x` `[items, channels, height, width]`, `weight` `[out, channels, kernel, kernel]`. `training` takes the quickest
/// way, whose rounding errors are some ten times larger; by Winograd's method products are of the numbers as they are, however `P` rounds.
pub(crate) fn forward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    bias: Option<&[P::Number]>,
    training: bool,
) -> Vec<P::Number> {
    if training && winograd::pays(conv, x.len() / conv.input()) {
        return winograd::forward(conv, x, weight, bias);
    }
    forward_by_columns::<P>(conv, x, weight, bias)
}

pub(super) fn forward_by_columns<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    bias: Option<&[P::Number]>,
) -> Vec<P::Number> {
    let (group, places) = (conv.group(), conv.window.places());
    let mut y = vec![P::Number::of(0.0); x.len() / conv.input() * conv.output()];
    if let Some(bias) = bias {
        y.par_chunks_mut(places).enumerate().for_each(|(i, plane)| plane.fill(bias[i % conv.out]));
    }
    let parallel = x.len() < 2 * group * conv.input();
    y.par_chunks_mut(group * conv.output()).zip(x.par_chunks(group * conv.input())).for_each(|(y, x)| {
        conv.with_buffers(|columns, outputs| {
            for tile in conv.tiles(x.len() / conv.input()) {
                let n = conv.len(&tile);
                let columns = conv.columns(x, &tile, columns);
                let sizes = [conv.out, n, conv.column()];
                let weight = (weight, Strides::rows(conv.column()));
                if tile.items.len() == 1 {
                    let y = &mut y[tile.items.start * conv.output() + tile.rows.start * conv.window.cols..];
                    product::<P>(sizes, (y, places), bias.is_some(), weight, columns, parallel);
                    continue;
                }
                // As of an item alone: the bias is there first.
                if let Some(bias) = bias {
                    outputs.chunks_exact_mut(n).zip(bias).for_each(|(row, &bias)| row.fill(bias));
                }
                product::<P>(sizes, (outputs, n), bias.is_some(), weight, columns, parallel);
                for (o, row) in outputs.chunks_exact(n).take(conv.out).enumerate() {
                    for (item, row) in tile.items.clone().zip(row.chunks_exact(places)) {
                        y[(item * conv.out + o) * places..][..places].copy_from_slice(row);
                    }
                }
            }
        });
    });
    y
}

/// Gradients of `x`, where needed, and `weight`; that of the bias is [`sum_channels`](super::batch_norm::sum_channels).
pub(crate) fn backward<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    grad: &[P::Number],
    need_x: bool,
) -> (Option<Vec<P::Number>>, Vec<P::Number>) {
    if winograd::pays(conv, x.len() / conv.input()) {
        return winograd::backward(conv, x, weight, grad, need_x);
    }
    backward_by_columns::<P>(conv, x, weight, grad, need_x)
}

pub(super) fn backward_by_columns<P: Factor>(
    conv: Conv,
    x: &[P::Number],
    weight: &[P::Number],
    grad: &[P::Number],
    need_x: bool,
) -> (Option<Vec<P::Number>>, Vec<P::Number>) {
    let (column, items) = (conv.column(), x.len() / conv.input());
    let part = tiling::items_per_partial(items, conv.window.places());
    let mut grad_x = vec![P::Number::of(0.0); if need_x { x.len() } else { 0 }];
    let parts: Vec<&mut [P::Number]> = if need_x {
        grad_x.chunks_mut(part * conv.input()).collect()
    } else {
        (0..items.div_ceil(part)).map(|_| <&mut [P::Number]>::default()).collect()
    };
    let parallel = parts.len() < 2;
    let partials: Vec<Vec<P::Number>> = parts
        .into_par_iter()
        .zip(x.par_chunks(part * conv.input()).zip(grad.par_chunks(part * conv.output())))
        .map(|(grad_x, (x, grad))| {
            let mut grad_weight = vec![P::Number::of(0.0); weight.len()];
            conv.with_buffers(|buffer, outputs| {
                for tile in conv.tiles(x.len() / conv.input()) {
                    let n = conv.len(&tile);
                    let grad = conv.gathered(grad, conv.out, &tile, outputs);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::noise;

    /// With more inner indices than are summed up at a time, a bias, and planes so small that several items make a tile.
    #[test]
    fn an_item_is_the_same_alone_and_among_others() {
        let (kernel, padding, stride) = (3, 1, 1);
        let sizes = [(32, 4), (40, 7), (30, 16), (32, 20)];
        // With fewer items and sizes under Miri, which is slow.
        let (sizes, items) = if cfg!(miri) { (&[(5, 4)][..], 2) } else { (&sizes[..], 7) };
        for &(channels, side) in sizes {
            let window =
                Window { height: side, width: side, kernel, stride, padding, rows: side, cols: side };
            let conv = Conv { channels, out: 5, window };
            let (weight, bias) = (noise(1, 0, conv.out * conv.column()), noise(1, 1, conv.out));
            let x = noise(1, 2, items * conv.input());
            let together = forward::<f32>(conv, &x, &weight, Some(&bias), false);
            for (x, y) in x.chunks_exact(conv.input()).zip(together.chunks_exact(conv.output())) {
                assert!(forward::<f32>(conv, x, &weight, Some(&bias), false) == y, "{conv:?}");
            }
        }
    }
}
