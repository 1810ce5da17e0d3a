//! 3×3 convolution at stride 1 by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308, whose names these are):
//! the weights become U, tiles of 6×6 inputs V, each with 36 places, at each of which convolution is a product of matrices, M = U·V; from
//! M comes a tile of 4×4 outputs. That is a quarter of the multiplications. The backward is the transpose of each step.

use std::array::from_fn;

use rayon::prelude::*;

use super::{
    Real,
    batch_norm::{by_channel, planes},
    conv::Conv,
    product::{Strides, product},
    simd::vectorised,
    window::Window,
};
use crate::tiling::{self, WINOGRAD_TILE};

/// Outputs along an edge of a tile.
const OUT: usize = WINOGRAD_TILE;
/// Inputs along an edge of a tile.
const IN: usize = 6;
/// Points of the space of U, V and M.
const POINTS: usize = IN * IN;
/// Values of V and M that are worked on together, so that they stay in cache.
const BLOCK: usize = 2 << 20;
/// Tiles that are transformed together, which becomes vector code.
const LANES: usize = 16;

/// Square tiles of `N`² values, the lanes innermost.
type Tile<F, const N: usize> = [[[F; LANES]; N]; N];

/// `G·w`: weights to U.
#[inline(always)]
fn weights<F: Real>([a, b, c]: [F; 3]) -> [F; IN] {
    let (sixth, twelfth, twenty_fourth) = (F::of(1.0 / 6.0), F::of(1.0 / 12.0), F::of(1.0 / 24.0));
    let (even, odd, even2, odd2) = (-(a + c) * sixth, b * sixth, a * twenty_fourth + c * sixth, b * twelfth);
    [a * F::of(0.25), even - odd, even + odd, even2 + odd2, even2 - odd2, c]
}

/// `Gᵀ·u`.
#[inline(always)]
fn weights_back<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; 3] {
    let (sixth, twelfth, twenty_fourth) = (F::of(1.0 / 6.0), F::of(1.0 / 12.0), F::of(1.0 / 24.0));
    let (even, odd, even2, odd2) = ((b + c) * sixth, (c - b) * sixth, d + e, (d - e) * twelfth);
    [a * F::of(0.25) - even + even2 * twenty_fourth, odd + odd2, even2 * sixth - even + f]
}

/// `Bᵀ·d`: inputs to V.
#[inline(always)]
fn inputs<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; IN] {
    let (two, four, five) = (F::of(2.0), F::of(4.0), F::of(5.0));
    let (even, odd, even2, odd2) = (e - c * four, d - b * four, e - c, (d - b) * two);
    [a * four - c * five + e, even + odd, even - odd, even2 + odd2, even2 - odd2, b * four - d * five + f]
}

/// `B·v`.
#[inline(always)]
fn inputs_back<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; IN] {
    let (two, four, five) = (F::of(2.0), F::of(4.0), F::of(5.0));
    let (even, odd, even2, odd2) = (b + c, b - c, d + e, (d - e) * two);
    [
        a * four,
        (f - odd) * four - odd2,
        -(a * five + even * four + even2),
        odd + odd2 - f * five,
        a + even + even2,
        f,
    ]
}

/// `Aᵀ·m`: M to outputs.
#[inline(always)]
fn outputs<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; OUT] {
    let (two, four) = (F::of(2.0), F::of(4.0));
    let (even, odd, even2, odd2) = (b + c, b - c, d + e, (d - e) * two);
    [a + even + even2, odd + odd2, even + even2 * four, odd + odd2 * four + f]
}

/// `A·y`.
#[inline(always)]
fn outputs_back<F: Real>([a, b, c, d]: [F; OUT]) -> [F; IN] {
    let (two, four) = (F::of(2.0), F::of(4.0));
    let (even, odd, even2, odd2) = (a + c, b + d, a + c * four, (b + d * four) * two);
    [a, even + odd, even - odd, even2 + odd2, even2 - odd2, d]
}

/// A transformation of rows, then of columns, of `x` into `out`.
#[inline(always)]
fn both_ways<F: Real, const N: usize, const M: usize>(
    f: impl Fn([F; N]) -> [F; M],
    x: &Tile<F, N>,
    out: &mut Tile<F, M>,
) {
    let mut rows = zeros::<F, M, N>();
    for (x, row) in x.iter().zip(&mut rows) {
        for l in 0..LANES {
            let y = f(from_fn(|j| x[j][l]));
            for j in 0..M {
                row[j][l] = y[j];
            }
        }
    }
    for j in 0..M {
        for l in 0..LANES {
            let y = f(from_fn(|i| rows[i][j][l]));
            for i in 0..M {
                out[i][j][l] = y[i];
            }
        }
    }
}

vectorised! {
    fn of_weights<F: Real>(x: &Tile<F, 3>, out: &mut Tile<F, IN>) {
        both_ways(weights, x, out);
    }
}

vectorised! {
    fn of_weights_back<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, 3>) {
        both_ways(weights_back, x, out);
    }
}

vectorised! {
    fn of_inputs<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, IN>) {
        both_ways(inputs, x, out);
    }
}

vectorised! {
    fn of_inputs_back<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, IN>) {
        both_ways(inputs_back, x, out);
    }
}

vectorised! {
    fn of_outputs<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, OUT>) {
        both_ways(outputs, x, out);
    }
}

vectorised! {
    fn of_outputs_back<F: Real>(x: &Tile<F, OUT>, out: &mut Tile<F, IN>) {
        both_ways(outputs_back, x, out);
    }
}

#[inline(always)]
fn zeros<F: Real, const M: usize, const N: usize>() -> [[[F; LANES]; M]; N] {
    [[[F::of(0.0); LANES]; M]; N]
}

/// A matrix at each point. Its rows are whole lanes, and it has one more and they are longer than need be, so that the points of a tile
/// do not compete for the same lines of the cache.
#[derive(Clone, Copy)]
struct Matrices {
    rows: usize,
    cols: usize,
}

impl Matrices {
    fn stride(self) -> usize {
        self.cols.next_multiple_of(LANES) + LANES
    }

    fn one(self) -> usize {
        (self.rows + 1) * self.stride()
    }

    fn len(self) -> usize {
        POINTS * self.one()
    }

    /// For each row, that row of each point's matrix.
    fn rows<F>(self, values: &mut [F]) -> Vec<Vec<&mut [F]>> {
        let mut rows = by_channel(values, self.rows + 1, self.stride());
        rows.pop();
        rows
    }

    /// The values from `at` on in a row of each point's matrix.
    #[inline(always)]
    fn load<F: Real>(self, values: &[F], row: usize, at: usize, tile: &mut Tile<F, IN>) {
        for (matrix, lanes) in values.chunks_exact(self.one()).zip(tile.as_flattened_mut()) {
            lanes.copy_from_slice(&matrix[row * self.stride() + at..][..LANES]);
        }
    }
}

/// Writes to the values from `at` on in a row of each point's matrix.
#[inline(always)]
fn store<F: Real>(tile: &Tile<F, IN>, row: &mut [&mut [F]], at: usize) {
    for (row, lanes) in row.iter_mut().zip(tile.as_flattened()) {
        row[at..at + LANES].copy_from_slice(lanes);
    }
}

/// Where a tile lies: in which item, and its first output's row and column.
#[derive(Clone, Copy)]
struct Corner {
    item: usize,
    top: usize,
    left: usize,
}

/// The tiles of a block of items.
struct Tiles {
    conv: Conv,
    corners: Vec<Corner>,
    /// Width and values of an input plane with the zeros that its tiles see around it.
    width: usize,
    plane: usize,
}

/// Tiles of one item.
fn tiles_per_item(window: Window) -> usize {
    tiling::winograd_tiles(window.rows, window.cols)
}

impl Tiles {
    fn new(conv: Conv, items: usize) -> Self {
        let (down, across) = (conv.window.rows.div_ceil(OUT), conv.window.cols.div_ceil(OUT));
        let corner =
            |i| Corner { item: i / (down * across), top: i / across % down * OUT, left: i % across * OUT };
        let (height, width) = (down * OUT + 2, across * OUT + 2);
        Self { conv, corners: (0..items * down * across).map(corner).collect(), width, plane: height * width }
    }

    fn items(&self) -> usize {
        self.corners.last().map_or(0, |corner| corner.item + 1)
    }

    /// The shape of V.
    fn v(&self) -> Matrices {
        Matrices { rows: self.conv.channels, cols: self.corners.len() }
    }

    /// The shape of M.
    fn m(&self) -> Matrices {
        Matrices { rows: self.conv.out, cols: self.corners.len() }
    }

    /// V of `x`.
    fn inputs<F: Real>(&self, x: &[F], v: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.channels);
        self.v().rows(v).into_par_iter().enumerate().for_each(|(channel, mut v)| {
            F::with_scratch(self.items() * self.plane, |padded| {
                padded.fill(F::of(0.0));
                for (padded, x) in
                    padded.chunks_exact_mut(self.plane).zip(planes(x, channel, channels, w.plane()))
                {
                    let rows = padded.chunks_exact_mut(self.width).skip(w.padding);
                    for (to, from) in rows.zip(x.chunks_exact(w.width)) {
                        to[w.padding..w.padding + w.width].copy_from_slice(from);
                    }
                }
                let (mut tile, mut lanes) = (zeros(), zeros());
                for (at, corners) in self.chunks() {
                    for (l, corner) in corners.iter().enumerate() {
                        let rows = padded[self.padded(corner)..].chunks(self.width);
                        for (tile, row) in tile.iter_mut().zip(rows) {
                            for (tile, &x) in tile.iter_mut().zip(&row[..IN]) {
                                tile[l] = x;
                            }
                        }
                    }
                    of_inputs(&tile, &mut lanes);
                    store(&lanes, &mut v, at);
                }
            });
        });
    }

    /// Gradient of `x` from that of V: the transpose of [`inputs`](Self::inputs).
    fn inputs_back<F: Real>(&self, v: &[F], x: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.channels);
        by_channel(x, channels, w.plane()).into_par_iter().enumerate().for_each(|(channel, x)| {
            F::with_scratch(self.items() * self.plane, |padded| {
                padded.fill(F::of(0.0));
                let (mut tile, mut lanes) = (zeros(), zeros());
                for (at, corners) in self.chunks() {
                    self.v().load(v, channel, at, &mut lanes);
                    of_inputs_back(&lanes, &mut tile);
                    for (l, corner) in corners.iter().enumerate() {
                        let rows = padded[self.padded(corner)..].chunks_mut(self.width);
                        for (tile, row) in tile.iter().zip(rows) {
                            for (x, tile) in row[..IN].iter_mut().zip(tile) {
                                *x += tile[l];
                            }
                        }
                    }
                }
                for (x, padded) in x.into_iter().zip(padded.chunks_exact(self.plane)) {
                    let rows = padded.chunks_exact(self.width).skip(w.padding);
                    for (to, from) in x.chunks_exact_mut(w.width).zip(rows) {
                        to.copy_from_slice(&from[w.padding..w.padding + w.width]);
                    }
                }
            });
        });
    }

    /// Outputs from M.
    fn outputs<F: Real>(&self, m: &[F], bias: Option<&[F]>, y: &mut [F]) {
        let w = self.conv.window;
        by_channel(y, self.conv.out, w.places()).into_par_iter().enumerate().for_each(|(out, mut y)| {
            let bias = bias.map_or(F::of(0.0), |b| b[out]);
            let (mut tile, mut lanes) = (zeros(), zeros());
            for (at, corners) in self.chunks() {
                self.m().load(m, out, at, &mut lanes);
                of_outputs(&lanes, &mut tile);
                for (l, &Corner { item, top, left }) in corners.iter().enumerate() {
                    let rows = y[item][top * w.cols..].chunks_exact_mut(w.cols);
                    for (row, tile) in rows.zip(&tile) {
                        for (y, tile) in row[left..].iter_mut().zip(tile) {
                            *y = tile[l] + bias;
                        }
                    }
                }
            }
        });
    }

    /// Gradient of M from that of the outputs: the transpose of [`outputs`](Self::outputs).
    fn outputs_back<F: Real>(&self, y: &[F], m: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.out);
        self.m().rows(m).into_par_iter().enumerate().for_each(|(out, mut m)| {
            let (mut tile, mut lanes) = (zeros(), zeros());
            for (at, corners) in self.chunks() {
                tile.as_flattened_mut().fill([F::of(0.0); LANES]);
                for (l, &Corner { item, top, left }) in corners.iter().enumerate() {
                    let plane = &y[(item * channels + out) * w.places()..][..w.places()];
                    for (tile, row) in tile.iter_mut().zip(plane[top * w.cols..].chunks_exact(w.cols)) {
                        for (tile, &y) in tile.iter_mut().zip(&row[left..]) {
                            tile[l] = y;
                        }
                    }
                }
                of_outputs_back(&tile, &mut lanes);
                store(&lanes, &mut m, at);
            }
        });
    }

    /// The number of the first of each run of tiles that are transformed together, and the run.
    fn chunks(&self) -> impl Iterator<Item = (usize, &[Corner])> {
        (0..).step_by(LANES).zip(self.corners.chunks(LANES))
    }

    /// Where a tile begins in padded planes.
    fn padded(&self, corner: &Corner) -> usize {
        corner.item * self.plane + corner.top * self.width + corner.left
    }
}

/// The shape of U.
fn u(conv: Conv) -> Matrices {
    Matrices { rows: conv.out, cols: conv.channels }
}

/// U of `weight`.
fn transform_weights<F: Real>(conv: Conv, weight: &[F], values: &mut [F]) {
    u(conv).rows(values).into_par_iter().zip(weight.par_chunks(conv.channels * 9)).for_each(
        |(mut u, weight)| {
            let (mut tile, mut lanes) = (zeros::<F, 3, 3>(), zeros());
            for (at, chunk) in (0..).step_by(LANES).zip(weight.chunks(9 * LANES)) {
                for (l, weight) in chunk.chunks_exact(9).enumerate() {
                    for (tile, &weight) in tile.as_flattened_mut().iter_mut().zip(weight) {
                        tile[l] = weight;
                    }
                }
                of_weights(&tile, &mut lanes);
                store(&lanes, &mut u, at);
            }
        },
    );
}

/// Gradient of the weights from that of U.
fn transform_weights_back<F: Real>(conv: Conv, values: &[F]) -> Vec<F> {
    let mut weight = vec![F::of(0.0); conv.out * conv.channels * 9];
    weight.par_chunks_mut(conv.channels * 9).enumerate().for_each(|(out, weight)| {
        let (mut tile, mut lanes) = (zeros::<F, 3, 3>(), zeros());
        for (at, chunk) in (0..).step_by(LANES).zip(weight.chunks_mut(9 * LANES)) {
            u(conv).load(values, out, at, &mut lanes);
            of_weights_back(&lanes, &mut tile);
            for (l, weight) in chunk.chunks_exact_mut(9).enumerate() {
                for (weight, tile) in weight.iter_mut().zip(tile.as_flattened()) {
                    *weight = tile[l];
                }
            }
        }
    });
    weight
}

/// Whether a convolution of `items` can go this way, and gains by it.
pub(super) fn pays(conv: Conv, items: usize) -> bool {
    let w = conv.window;
    tiling::uses_winograd([conv.out, conv.channels, w.kernel], w.stride, tiles_per_item(w), items)
}

/// Items of a block, and the room that V and M of a block take.
fn block(conv: Conv, items: usize) -> (usize, usize) {
    let one = POINTS * tiles_per_item(conv.window) * (conv.channels + conv.out);
    let block = (BLOCK / one).clamp(1, items.max(1));
    let tiles = Tiles::new(conv, block);
    (block, tiles.v().len() + tiles.m().len())
}

/// See [`conv::forward`](super::conv::forward).
pub(super) fn forward<F: Real>(conv: Conv, x: &[F], weight: &[F], bias: Option<&[F]>) -> Vec<F> {
    let items = x.len() / conv.input();
    let (block, room) = block(conv, items);
    let mut y = vec![F::of(0.0); items * conv.output()];
    F::with_scratch(u(conv).len() + room, |buffer| {
        let (weights, buffer) = buffer.split_at_mut(u(conv).len());
        transform_weights(conv, weight, weights);
        for (y, x) in y.chunks_mut(block * conv.output()).zip(x.chunks(block * conv.input())) {
            let tiles = Tiles::new(conv, x.len() / conv.input());
            let (u, v, m) = (u(conv), tiles.v(), tiles.m());
            let (inputs, outputs) = buffer[..v.len() + m.len()].split_at_mut(v.len());
            tiles.inputs(x, inputs);
            outputs
                .par_chunks_mut(m.one())
                .zip(weights.par_chunks(u.one()).zip(inputs.par_chunks(v.one())))
                .for_each(|(outputs, (weights, inputs))| {
                    let outputs = (outputs, m.stride());
                    let (weights, inputs) =
                        ((weights, Strides::rows(u.stride())), (inputs, Strides::rows(v.stride())));
                    product::<F>([m.rows, m.cols, v.rows], outputs, false, weights, inputs, false);
                });
            tiles.outputs(outputs, bias, y);
        }
    });
    y
}

/// See [`conv::backward`](super::conv::backward).
pub(super) fn backward<F: Real>(
    conv: Conv,
    x: &[F],
    weight: &[F],
    grad: &[F],
    need_x: bool,
) -> (Option<Vec<F>>, Vec<F>) {
    let items = x.len() / conv.input();
    let (block, room) = block(conv, items);
    let u = u(conv);
    let mut grad_x = vec![F::of(0.0); if need_x { x.len() } else { 0 }];
    let grad_weight = F::with_scratch(2 * u.len() + room, |buffer| {
        let (weights, buffer) = buffer.split_at_mut(u.len());
        let (grad_weights, buffer) = buffer.split_at_mut(u.len());
        if need_x {
            transform_weights(conv, weight, weights);
        }
        for (i, x) in x.chunks(block * conv.input()).enumerate() {
            let tiles = Tiles::new(conv, x.len() / conv.input());
            let (v, m) = (tiles.v(), tiles.m());
            let (inputs, grads) = buffer[..v.len() + m.len()].split_at_mut(v.len());
            tiles.inputs(x, inputs);
            tiles.outputs_back(&grad[i * block * conv.output()..], grads);
            grad_weights
                .par_chunks_mut(u.one())
                .zip(inputs.par_chunks_mut(v.one()))
                .zip(weights.par_chunks(u.one()).zip(grads.par_chunks(m.one())))
                .for_each(|((grad_weights, inputs), (weights, grads))| {
                    let grad_weights = (grad_weights, u.stride());
                    let (grads, width) = ((grads, Strides::rows(m.stride())), v.stride());
                    product::<F>(
                        [u.rows, u.cols, v.cols],
                        grad_weights,
                        i > 0,
                        grads,
                        (&*inputs, Strides::rows(width).t()),
                        false,
                    );
                    if need_x {
                        // The gradient of V takes the place of V, which nothing needs any more.
                        let weights = (weights, Strides::rows(u.stride()).t());
                        product::<F>([v.rows, v.cols, m.rows], (inputs, width), false, weights, grads, false);
                    }
                });
            if need_x {
                let start = i * block * conv.input();
                tiles.inputs_back(inputs, &mut grad_x[start..start + x.len()]);
            }
        }
        transform_weights_back(conv, grad_weights)
    });
    (need_x.then_some(grad_x), grad_weight)
}

#[cfg(test)]
mod tests {
    use super::{super::conv, *};
    use crate::random::{Purpose, Stream};

    fn values<F: Real>(stream: u64, n: usize) -> Vec<F> {
        let mut s = Stream::new(5, Purpose::Synthetic, stream);
        (0..n).map(|_| F::of(s.normal())).collect()
    }

    /// Of `items` together this way, and one by one by columns: outputs, gradients of inputs and of weights agree.
    fn agrees_with_columns<F: Real>(conv: Conv, items: usize, tolerance: f64) {
        let (x, grad) = (values::<F>(0, items * conv.input()), values::<F>(1, items * conv.output()));
        let (weight, bias) = (values::<F>(2, conv.out * conv.channels * 9), values::<F>(3, conv.out));
        let y = forward(conv, &x, &weight, Some(&bias));
        let (grad_x, grad_weight) = backward(conv, &x, &weight, &grad, true);
        let mut weights = vec![0f64; grad_weight.len()];
        let close = |what: &str, a: &[F], b: &[F]| {
            let largest = b.iter().fold(1.0, |m: f64, b| m.max((*b).into().abs()));
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                let (a, b): (f64, f64) = ((*a).into(), (*b).into());
                assert!((a - b).abs() <= tolerance * largest, "{what} {i}: {a} and {b}");
            }
        };
        for item in 0..items {
            let input = item * conv.input()..(item + 1) * conv.input();
            let output = item * conv.output()..(item + 1) * conv.output();
            let alone = conv::forward_by_columns::<F>(conv, &x[input.clone()], &weight, Some(&bias));
            close("output", &y[output.clone()], &alone);
            let (alone, of_item) =
                conv::backward_by_columns::<F>(conv, &x[input.clone()], &weight, &grad[output], true);
            close("input's gradient", &grad_x.as_ref().unwrap()[input], &alone.unwrap());
            weights.iter_mut().zip(of_item).for_each(|(w, g)| *w += g.into());
        }
        let weights: Vec<F> = weights.into_iter().map(F::of).collect();
        close("weight's gradient", &grad_weight, &weights);
        assert!(backward(conv, &x, &weight, &grad, false) == (None, grad_weight), "without x's gradient");
    }

    fn conv([channels, out]: [usize; 2], [height, width]: [usize; 2], padding: usize) -> Conv {
        let (rows, cols) = (height + 2 * padding - 2, width + 2 * padding - 2);
        Conv { channels, out, window: Window { height, width, kernel: 3, stride: 1, padding, rows, cols } }
    }

    #[test]
    fn whole_and_partial_tiles_give_what_columns_give() {
        if cfg!(miri) {
            // That is slow enough.
            return agrees_with_columns::<f64>(conv([1, 2], [5, 3], 1), 1, 1e-12);
        }
        for (size, padding) in [([8, 12], 1), ([5, 7], 1), ([1, 2], 1), ([9, 6], 0), ([4, 3], 2)] {
            agrees_with_columns::<f64>(conv([3, 5], size, padding), 3, 1e-12);
            agrees_with_columns::<f32>(conv([21, 18], size, padding), 3, 1e-5);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too large for Miri, and no unsafe code that the test above does not reach")]
    fn several_blocks_give_what_columns_give() {
        let conv = conv([17, 16], [16, 15], 1);
        assert!(block(conv, 130).0 < 130);
        agrees_with_columns::<f32>(conv, 130, 1e-5);
    }
}
