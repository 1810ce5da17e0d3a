//! 3×3 convolution with stride 1 by Winograd's minimal filtering F(4×4, 3×3), with the names of Lavin and Gray (arXiv 1509.09308).
//!
//! The weights are transformed to U, and tiles of 6×6 inputs to V. Both have 36 points. At each point convolution is a matrix product,
//! M = U·V. M is transformed to tiles of 4×4 outputs. This takes a quarter of the multiplications. Backward is the transpose of each step.

use std::array::from_fn;

use rayon::prelude::*;

use super::{
    Real,
    batch_norm::{by_channel, planes},
    im2col::Conv,
    product::{PlainFactor, Strides, product},
    simd::vectorized,
    window::Window,
};
use crate::tiling::{self, WINOGRAD_TILE};

/// Outputs along an edge of a tile.
const OUT: usize = WINOGRAD_TILE;
/// Inputs along an edge of a tile.
const IN: usize = 6;
/// Number of points of U, V and M.
const POINTS: usize = IN * IN;
/// Number of values of V and M in a block of items, which stays in cache.
const BLOCK_LEN: usize = 2 << 20;
/// Number of tiles that are transformed together, which the compiler vectorizes.
const LANES: usize = 16;

/// Square tiles of `N`² values; the innermost axis is the lane.
type Tile<F, const N: usize> = [[[F; LANES]; N]; N];

/// Computes `G·w`: weights to U.
#[inline(always)]
fn weight_transform<F: Real>([a, b, c]: [F; 3]) -> [F; IN] {
    let (sixth, twelfth, twenty_fourth) =
        (F::from_f64(1.0 / 6.0), F::from_f64(1.0 / 12.0), F::from_f64(1.0 / 24.0));
    let (even, odd, even2, odd2) = (-(a + c) * sixth, b * sixth, a * twenty_fourth + c * sixth, b * twelfth);
    [a * F::from_f64(0.25), even - odd, even + odd, even2 + odd2, even2 - odd2, c]
}

/// Computes `Gᵀ·u`.
#[inline(always)]
fn weight_transform_backward<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; 3] {
    let (sixth, twelfth, twenty_fourth) =
        (F::from_f64(1.0 / 6.0), F::from_f64(1.0 / 12.0), F::from_f64(1.0 / 24.0));
    let (even, odd, even2, odd2) = ((b + c) * sixth, (c - b) * sixth, d + e, (d - e) * twelfth);
    [a * F::from_f64(0.25) - even + even2 * twenty_fourth, odd + odd2, even2 * sixth - even + f]
}

/// Computes `Bᵀ·d`: inputs to V.
#[inline(always)]
fn input_transform<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; IN] {
    let (two, four, five) = (F::from_f64(2.0), F::from_f64(4.0), F::from_f64(5.0));
    let (even, odd, even2, odd2) = (e - c * four, d - b * four, e - c, (d - b) * two);
    [a * four - c * five + e, even + odd, even - odd, even2 + odd2, even2 - odd2, b * four - d * five + f]
}

/// Computes `B·v`.
#[inline(always)]
fn input_transform_backward<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; IN] {
    let (two, four, five) = (F::from_f64(2.0), F::from_f64(4.0), F::from_f64(5.0));
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

/// Computes `Aᵀ·m`: M to outputs.
#[inline(always)]
fn output_transform<F: Real>([a, b, c, d, e, f]: [F; IN]) -> [F; OUT] {
    let (two, four) = (F::from_f64(2.0), F::from_f64(4.0));
    let (even, odd, even2, odd2) = (b + c, b - c, d + e, (d - e) * two);
    [a + even + even2, odd + odd2, even + even2 * four, odd + odd2 * four + f]
}

/// Computes `A·y`.
#[inline(always)]
fn output_transform_backward<F: Real>([a, b, c, d]: [F; OUT]) -> [F; IN] {
    let (two, four) = (F::from_f64(2.0), F::from_f64(4.0));
    let (even, odd, even2, odd2) = (a + c, b + d, a + c * four, (b + d * four) * two);
    [a, even + odd, even - odd, even2 + odd2, even2 - odd2, d]
}

/// Applies `f` to the rows of `x`, then to the columns, and writes the result to `out`.
#[inline(always)]
fn transform_2d<F: Real, const N: usize, const M: usize>(
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

vectorized! {
    fn transform_weight_tile<F: Real>(x: &Tile<F, 3>, out: &mut Tile<F, IN>) {
        transform_2d(weight_transform, x, out);
    }
}

vectorized! {
    fn transform_weight_tile_backward<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, 3>) {
        transform_2d(weight_transform_backward, x, out);
    }
}

vectorized! {
    fn transform_input_tile<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, IN>) {
        transform_2d(input_transform, x, out);
    }
}

vectorized! {
    fn transform_input_tile_backward<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, IN>) {
        transform_2d(input_transform_backward, x, out);
    }
}

vectorized! {
    fn transform_output_tile<F: Real>(x: &Tile<F, IN>, out: &mut Tile<F, OUT>) {
        transform_2d(output_transform, x, out);
    }
}

vectorized! {
    fn transform_output_tile_backward<F: Real>(x: &Tile<F, OUT>, out: &mut Tile<F, IN>) {
        transform_2d(output_transform_backward, x, out);
    }
}

#[inline(always)]
fn zeros<F: Real, const M: usize, const N: usize>() -> [[[F; LANES]; M]; N] {
    [[[F::from_f64(0.0); LANES]; M]; N]
}

/// The shape of the matrices, one at each point. Rows are padded to a multiple of [`LANES`] and by another [`LANES`], and there is an extra
/// row, so that the points of a tile do not compete for the same cache lines.
#[derive(Clone, Copy)]
struct Matrices {
    rows: usize,
    cols: usize,
}

impl Matrices {
    fn stride(self) -> usize {
        self.cols.next_multiple_of(LANES) + LANES
    }

    /// Returns the number of values of one matrix, with its padding.
    fn matrix_len(self) -> usize {
        (self.rows + 1) * self.stride()
    }

    fn len(self) -> usize {
        POINTS * self.matrix_len()
    }

    /// Returns, for each row, that row of the matrix at each point.
    fn rows<F>(self, values: &mut [F]) -> Vec<Vec<&mut [F]>> {
        let mut rows = by_channel(values, self.rows + 1, self.stride());
        rows.pop();
        rows
    }

    /// Reads [`LANES`] values, from `at` on, of `row` of the matrix at each point.
    #[inline(always)]
    fn load<F: Real>(self, values: &[F], row: usize, at: usize, tile: &mut Tile<F, IN>) {
        for (matrix, lanes) in values.chunks_exact(self.matrix_len()).zip(tile.as_flattened_mut()) {
            lanes.copy_from_slice(&matrix[row * self.stride() + at..][..LANES]);
        }
    }
}

/// Writes [`LANES`] values, from `at` on, to a row of the matrix at each point.
#[inline(always)]
fn store<F: Real>(tile: &Tile<F, IN>, row: &mut [&mut [F]], at: usize) {
    for (row, lanes) in row.iter_mut().zip(tile.as_flattened()) {
        row[at..at + LANES].copy_from_slice(lanes);
    }
}

/// The position of a tile: the item, and the row and column of the first output.
#[derive(Clone, Copy)]
struct TilePosition {
    item: usize,
    top: usize,
    left: usize,
}

/// The tiles of a block of items.
struct Tiles {
    conv: Conv,
    positions: Vec<TilePosition>,
    /// Width of a padded input plane.
    width: usize,
    /// Number of values of a padded input plane.
    plane_len: usize,
}

/// Returns the number of tiles of one item.
fn tiles_per_item(window: Window) -> usize {
    tiling::winograd_tiles(window.rows, window.cols)
}

impl Tiles {
    fn new(conv: Conv, items: usize) -> Self {
        let (down, across) = (conv.window.rows.div_ceil(OUT), conv.window.cols.div_ceil(OUT));
        let position = |i| TilePosition {
            item: i / (down * across),
            top: i / across % down * OUT,
            left: i % across * OUT,
        };
        let (height, width) = (down * OUT + 2, across * OUT + 2);
        let positions = (0..items * down * across).map(position).collect();
        Self { conv, positions, width, plane_len: height * width }
    }

    fn items(&self) -> usize {
        self.positions.last().map_or(0, |position| position.item + 1)
    }

    /// Returns the shape of V.
    fn v_shape(&self) -> Matrices {
        Matrices { rows: self.conv.channels, cols: self.positions.len() }
    }

    /// Returns the shape of M.
    fn m_shape(&self) -> Matrices {
        Matrices { rows: self.conv.out, cols: self.positions.len() }
    }

    /// Computes V from `x`.
    fn transform_inputs<F: Real>(&self, x: &[F], v: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.channels);
        self.v_shape().rows(v).into_par_iter().enumerate().for_each(|(channel, mut v)| {
            F::with_scratch(self.items() * self.plane_len, |padded| {
                padded.fill(F::from_f64(0.0));
                for (padded, x) in
                    padded.chunks_exact_mut(self.plane_len).zip(planes(x, channel, channels, w.input_len()))
                {
                    let rows = padded.chunks_exact_mut(self.width).skip(w.padding[0]);
                    for (to, from) in rows.zip(x.chunks_exact(w.width)) {
                        to[w.padding[1]..w.padding[1] + w.width].copy_from_slice(from);
                    }
                }
                let (mut tile, mut lanes) = (zeros(), zeros());
                for (at, positions) in self.chunks() {
                    for (l, position) in positions.iter().enumerate() {
                        let rows = padded[self.start(position)..].chunks(self.width);
                        for (tile, row) in tile.iter_mut().zip(rows) {
                            for (tile, &x) in tile.iter_mut().zip(&row[..IN]) {
                                tile[l] = x;
                            }
                        }
                    }
                    transform_input_tile(&tile, &mut lanes);
                    store(&lanes, &mut v, at);
                }
            });
        });
    }

    /// Computes the gradient of `x` from that of V: the transpose of [`transform_inputs`](Self::transform_inputs).
    fn transform_inputs_backward<F: Real>(&self, v: &[F], x: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.channels);
        by_channel(x, channels, w.input_len()).into_par_iter().enumerate().for_each(|(channel, x)| {
            F::with_scratch(self.items() * self.plane_len, |padded| {
                padded.fill(F::from_f64(0.0));
                let (mut tile, mut lanes) = (zeros(), zeros());
                for (at, positions) in self.chunks() {
                    self.v_shape().load(v, channel, at, &mut lanes);
                    transform_input_tile_backward(&lanes, &mut tile);
                    for (l, position) in positions.iter().enumerate() {
                        let rows = padded[self.start(position)..].chunks_mut(self.width);
                        for (tile, row) in tile.iter().zip(rows) {
                            for (x, tile) in row[..IN].iter_mut().zip(tile) {
                                *x += tile[l];
                            }
                        }
                    }
                }
                for (x, padded) in x.into_iter().zip(padded.chunks_exact(self.plane_len)) {
                    let rows = padded.chunks_exact(self.width).skip(w.padding[0]);
                    for (to, from) in x.chunks_exact_mut(w.width).zip(rows) {
                        to.copy_from_slice(&from[w.padding[1]..w.padding[1] + w.width]);
                    }
                }
            });
        });
    }

    /// Computes the outputs from M.
    fn transform_outputs<F: Real>(&self, m: &[F], bias: Option<&[F]>, y: &mut [F]) {
        let w = self.conv.window;
        by_channel(y, self.conv.out, w.output_len()).into_par_iter().enumerate().for_each(|(out, mut y)| {
            let bias = bias.map_or(F::from_f64(0.0), |b| b[out]);
            let (mut tile, mut lanes) = (zeros(), zeros());
            for (at, positions) in self.chunks() {
                self.m_shape().load(m, out, at, &mut lanes);
                transform_output_tile(&lanes, &mut tile);
                for (l, &TilePosition { item, top, left }) in positions.iter().enumerate() {
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

    /// Computes the gradient of M from that of the outputs: the transpose of [`transform_outputs`](Self::transform_outputs).
    fn transform_outputs_backward<F: Real>(&self, y: &[F], m: &mut [F]) {
        let (w, channels) = (self.conv.window, self.conv.out);
        self.m_shape().rows(m).into_par_iter().enumerate().for_each(|(out, mut m)| {
            let (mut tile, mut lanes) = (zeros(), zeros());
            for (at, positions) in self.chunks() {
                tile.as_flattened_mut().fill([F::from_f64(0.0); LANES]);
                for (l, &TilePosition { item, top, left }) in positions.iter().enumerate() {
                    let plane = &y[(item * channels + out) * w.output_len()..][..w.output_len()];
                    for (tile, row) in tile.iter_mut().zip(plane[top * w.cols..].chunks_exact(w.cols)) {
                        for (tile, &y) in tile.iter_mut().zip(&row[left..]) {
                            tile[l] = y;
                        }
                    }
                }
                transform_output_tile_backward(&tile, &mut lanes);
                store(&lanes, &mut m, at);
            }
        });
    }

    /// Returns the groups of tiles that are transformed together, each with the index of its first tile.
    fn chunks(&self) -> impl Iterator<Item = (usize, &[TilePosition])> {
        (0..).step_by(LANES).zip(self.positions.chunks(LANES))
    }

    /// Returns the index at which a tile begins in the padded planes.
    fn start(&self, position: &TilePosition) -> usize {
        position.item * self.plane_len + position.top * self.width + position.left
    }
}

/// Returns the shape of U.
fn u_shape(conv: Conv) -> Matrices {
    Matrices { rows: conv.out, cols: conv.channels }
}

/// Computes U from `weight`.
fn transform_weights<F: Real>(conv: Conv, weight: &[F], values: &mut [F]) {
    u_shape(conv).rows(values).into_par_iter().zip(weight.par_chunks(conv.channels * 9)).for_each(
        |(mut u, weight)| {
            let (mut tile, mut lanes) = (zeros::<F, 3, 3>(), zeros());
            for (at, chunk) in (0..).step_by(LANES).zip(weight.chunks(9 * LANES)) {
                for (l, weight) in chunk.chunks_exact(9).enumerate() {
                    for (tile, &weight) in tile.as_flattened_mut().iter_mut().zip(weight) {
                        tile[l] = weight;
                    }
                }
                transform_weight_tile(&tile, &mut lanes);
                store(&lanes, &mut u, at);
            }
        },
    );
}

/// Computes the gradient of the weights from that of U.
fn transform_weights_backward<F: Real>(conv: Conv, values: &[F]) -> Vec<F> {
    let mut weight = vec![F::from_f64(0.0); conv.out * conv.channels * 9];
    weight.par_chunks_mut(conv.channels * 9).enumerate().for_each(|(out, weight)| {
        let (mut tile, mut lanes) = (zeros::<F, 3, 3>(), zeros());
        for (at, chunk) in (0..).step_by(LANES).zip(weight.chunks_mut(9 * LANES)) {
            u_shape(conv).load(values, out, at, &mut lanes);
            transform_weight_tile_backward(&lanes, &mut tile);
            for (l, weight) in chunk.chunks_exact_mut(9).enumerate() {
                for (weight, tile) in weight.iter_mut().zip(tile.as_flattened()) {
                    *weight = tile[l];
                }
            }
        }
    });
    weight
}

/// True if a convolution of `items` can use this algorithm, and is faster with it.
pub(super) fn is_worthwhile(conv: Conv, items: usize) -> bool {
    let w = conv.window;
    let strides = [w.stride, w.dilation];
    tiling::uses_winograd([conv.out, conv.channels], w.kernel, strides, tiles_per_item(w), items)
}

/// Returns the number of items of a block, and the number of values of V and M for a block.
fn block_sizes(conv: Conv, items: usize) -> (usize, usize) {
    let item_len = POINTS * tiles_per_item(conv.window) * (conv.channels + conv.out);
    let block = (BLOCK_LEN / item_len).clamp(1, items.max(1));
    let tiles = Tiles::new(conv, block);
    (block, tiles.v_shape().len() + tiles.m_shape().len())
}

/// See [`conv::forward`](super::conv::forward).
pub(super) fn forward<F: PlainFactor>(conv: Conv, x: &[F], weight: &[F], bias: Option<&[F]>) -> Vec<F> {
    let items = x.len() / conv.input_len();
    let (block, scratch_len) = block_sizes(conv, items);
    let mut y = vec![F::from_f64(0.0); items * conv.output_len()];
    F::with_scratch(u_shape(conv).len() + scratch_len, |buffer| {
        let (weights, buffer) = buffer.split_at_mut(u_shape(conv).len());
        transform_weights(conv, weight, weights);
        for (y, x) in y.chunks_mut(block * conv.output_len()).zip(x.chunks(block * conv.input_len())) {
            let tiles = Tiles::new(conv, x.len() / conv.input_len());
            let (u, v, m) = (u_shape(conv), tiles.v_shape(), tiles.m_shape());
            let (inputs, outputs) = buffer[..v.len() + m.len()].split_at_mut(v.len());
            tiles.transform_inputs(x, inputs);
            outputs
                .par_chunks_mut(m.matrix_len())
                .zip(weights.par_chunks(u.matrix_len()).zip(inputs.par_chunks(v.matrix_len())))
                .for_each(|(outputs, (weights, inputs))| {
                    let outputs = (outputs, m.stride());
                    let (weights, inputs) =
                        ((weights, Strides::rows(u.stride())), (inputs, Strides::rows(v.stride())));
                    product::<F>([m.rows, m.cols, v.rows], outputs, false, weights, inputs, false);
                });
            tiles.transform_outputs(outputs, bias, y);
        }
    });
    y
}

/// See [`conv::backward`](super::conv::backward).
pub(super) fn backward<F: PlainFactor>(
    conv: Conv,
    x: &[F],
    weight: &[F],
    grad: &[F],
    need_x: bool,
) -> (Option<Vec<F>>, Vec<F>) {
    let items = x.len() / conv.input_len();
    let (block, scratch_len) = block_sizes(conv, items);
    let u = u_shape(conv);
    let mut grad_x = vec![F::from_f64(0.0); if need_x { x.len() } else { 0 }];
    let grad_weight = F::with_scratch(2 * u.len() + scratch_len, |buffer| {
        let (weights, buffer) = buffer.split_at_mut(u.len());
        let (grad_weights, buffer) = buffer.split_at_mut(u.len());
        if need_x {
            transform_weights(conv, weight, weights);
        }
        for (i, x) in x.chunks(block * conv.input_len()).enumerate() {
            let tiles = Tiles::new(conv, x.len() / conv.input_len());
            let (v, m) = (tiles.v_shape(), tiles.m_shape());
            let (inputs, grads) = buffer[..v.len() + m.len()].split_at_mut(v.len());
            tiles.transform_inputs(x, inputs);
            tiles.transform_outputs_backward(&grad[i * block * conv.output_len()..], grads);
            grad_weights
                .par_chunks_mut(u.matrix_len())
                .zip(inputs.par_chunks_mut(v.matrix_len()))
                .zip(weights.par_chunks(u.matrix_len()).zip(grads.par_chunks(m.matrix_len())))
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
                        // The gradient of V replaces V, which is no longer needed.
                        let weights = (weights, Strides::rows(u.stride()).t());
                        product::<F>([v.rows, v.cols, m.rows], (inputs, width), false, weights, grads, false);
                    }
                });
            if need_x {
                let start = i * block * conv.input_len();
                tiles.transform_inputs_backward(inputs, &mut grad_x[start..start + x.len()]);
            }
        }
        transform_weights_backward(conv, grad_weights)
    });
    (need_x.then_some(grad_x), grad_weight)
}

#[cfg(test)]
mod tests {
    use super::{super::im2col, *};
    use crate::{
        Conv2dOptions,
        random::{Purpose, Stream},
    };

    fn values<F: Real>(stream: u64, n: usize) -> Vec<F> {
        let mut s = Stream::new(5, Purpose::Synthetic, stream);
        (0..n).map(|_| F::from_f64(s.normal())).collect()
    }

    /// Compares a batch of `items` with im2col on one item at a time: outputs, and gradients of inputs and weights.
    fn compare_with_im2col<F: PlainFactor>(conv: Conv, items: usize, tolerance: f64) {
        let (x, grad) = (values::<F>(0, items * conv.input_len()), values::<F>(1, items * conv.output_len()));
        let (weight, bias) = (values::<F>(2, conv.out * conv.channels * 9), values::<F>(3, conv.out));
        let y = forward(conv, &x, &weight, Some(&bias));
        let (grad_x, grad_weight) = backward(conv, &x, &weight, &grad, true);
        let mut weights = vec![0f64; grad_weight.len()];
        let check = |name: &str, a: &[F], b: &[F]| {
            let largest = b.iter().fold(1.0, |m: f64, b| m.max((*b).into().abs()));
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                let (a, b): (f64, f64) = ((*a).into(), (*b).into());
                assert!((a - b).abs() <= tolerance * largest, "{name} {i}: {a} and {b}");
            }
        };
        for item in 0..items {
            let input = item * conv.input_len()..(item + 1) * conv.input_len();
            let output = item * conv.output_len()..(item + 1) * conv.output_len();
            let single = im2col::forward::<F>(conv, &x[input.clone()], &weight, Some(&bias));
            check("output", &y[output.clone()], &single);
            let (single, item_grad) =
                im2col::backward::<F>(conv, &x[input.clone()], &weight, &grad[output], true);
            check("gradient of the input", &grad_x.as_ref().unwrap()[input], &single.unwrap());
            weights.iter_mut().zip(item_grad).for_each(|(w, g)| *w += g.into());
        }
        let weights: Vec<F> = weights.into_iter().map(F::from_f64).collect();
        check("gradient of the weight", &grad_weight, &weights);
        assert!(
            backward(conv, &x, &weight, &grad, false) == (None, grad_weight),
            "without the gradient of x"
        );
    }

    fn conv([channels, out]: [usize; 2], [height, width]: [usize; 2], padding: usize) -> Conv {
        let options = Conv2dOptions::square(1, padding);
        Conv { channels, out, groups: 1, window: Window::new([height, width], [3; 2], options).unwrap() }
    }

    #[test]
    fn complete_and_partial_tiles_match_im2col() {
        if cfg!(miri) {
            // A small case, because Miri is slow.
            return compare_with_im2col::<f64>(conv([1, 2], [5, 3], 1), 1, 1e-12);
        }
        for (size, padding) in [([8, 12], 1), ([5, 7], 1), ([1, 2], 1), ([9, 6], 0), ([4, 3], 2)] {
            compare_with_im2col::<f64>(conv([3, 5], size, padding), 3, 1e-12);
            compare_with_im2col::<f32>(conv([21, 18], size, padding), 3, 1e-5);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow, and the test above reaches the same unsafe code")]
    fn several_blocks_match_im2col() {
        let conv = conv([17, 16], [16, 15], 1);
        assert!(block_sizes(conv, 130).0 < 130);
        compare_with_im2col::<f32>(conv, 130, 1e-5);
    }
}
