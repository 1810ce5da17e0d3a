//! How the CPU's convolutions are cut up. Apart from the kernels, because the memory that this takes is counted without them.

/// Outputs that a tile aims at: enough for a good product, few enough that their columns stay in cache.
pub(crate) const TILE: usize = 512;
/// Pieces of the batch that have a gradient of the weights each.
const PARTIALS: usize = 16;
/// Outputs along an edge of a tile of Winograd's filtering.
pub(crate) const WINOGRAD_TILE: usize = 4;
/// Fewer tiles do not pay for transforming the weights.
const MIN_TILES: usize = 32;
/// Fewer channels do not pay for transforming the tiles.
const MIN_CHANNELS: usize = 16;

/// Tiles of Winograd's filtering in an item of `rows` times `cols` outputs.
pub(crate) fn winograd_tiles(rows: usize, cols: usize) -> usize {
    rows.div_ceil(WINOGRAD_TILE) * cols.div_ceil(WINOGRAD_TILE)
}

/// Whether a convolution of `items` can go Winograd's way, and gains by it: `weight` is `[out, in, kernel, kernel]`.
pub(crate) fn uses_winograd(weight: [usize; 3], stride: usize, tiles_per_item: usize, items: usize) -> bool {
    let [out, channels, kernel] = weight;
    let enough = items.saturating_mul(tiles_per_item) >= MIN_TILES && channels.min(out) >= MIN_CHANNELS;
    (kernel, stride) == (3, 1) && enough
}

/// Items that are worth a task, of `places` outputs a channel.
pub(crate) fn items_per_task(places: usize) -> usize {
    (TILE / places.max(1)).max(1)
}

/// Items in each piece of the batch that has a gradient of the weights of its own, where Winograd's way is not gone.
pub(crate) fn items_per_partial(items: usize, places: usize) -> usize {
    items.div_ceil(PARTIALS).max(1).next_multiple_of(items_per_task(places))
}
