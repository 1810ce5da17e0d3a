//! The tile sizes of the CPU's convolutions. They are outside the kernels because the cost backend counts their memory without the
//! kernels.

/// Target number of outputs of a tile: enough for an efficient product, few enough that their columns stay in cache.
pub(crate) const TILE: usize = 512;
/// Number of parts of the batch, each with its own partial gradient of the weights.
const PARTIALS: usize = 16;
/// Outputs along an edge of a tile of Winograd's minimal filtering.
pub(crate) const WINOGRAD_TILE: usize = 4;
/// Minimum number of tiles; with fewer, transforming the weights costs more than it saves.
const MIN_TILES: usize = 32;
/// Minimum number of channels; with fewer, transforming the tiles costs more than it saves.
const MIN_CHANNELS: usize = 16;

/// Returns the number of Winograd tiles in an item of `rows` times `cols` outputs.
pub(crate) fn winograd_tiles(rows: usize, cols: usize) -> usize {
    rows.div_ceil(WINOGRAD_TILE) * cols.div_ceil(WINOGRAD_TILE)
}

/// True if a convolution of `items` in one group can use Winograd's minimal filtering, and is faster with it. `strides` are stride and
/// dilation.
pub(crate) fn uses_winograd(
    [out, channels]: [usize; 2],
    kernel: [usize; 2],
    strides: [[usize; 2]; 2],
    tiles_per_item: usize,
    items: usize,
) -> bool {
    let is_large = items.saturating_mul(tiles_per_item) >= MIN_TILES && channels.min(out) >= MIN_CHANNELS;
    (kernel, strides) == ([3; 2], [[1; 2]; 2]) && is_large
}

/// Returns the number of items, with `positions` outputs per channel, that justify a task.
pub(crate) fn items_per_task(positions: usize) -> usize {
    (TILE / positions.max(1)).max(1)
}

/// Returns the number of items in each part of the batch that has its own partial gradient of the weights. Winograd's minimal
/// filtering has no such parts.
pub(crate) fn items_per_partial(items: usize, positions: usize) -> usize {
    items.div_ceil(PARTIALS).max(1).next_multiple_of(items_per_task(positions))
}
