//! Smooth random fields.

use tiny_cats_models::random::Stream;

const SIDE: usize = 32;

/// A field of random numbers in [−1, 1] on a repeating grid, interpolated smoothly.
pub struct Noise {
    values: Vec<f32>,
}

impl Noise {
    /// Creates a field with random numbers from `stream`.
    pub fn new(stream: &mut Stream) -> Self {
        Self { values: (0..SIDE * SIDE).map(|_| stream.uniform() as f32 * 2.0 - 1.0).collect() }
    }

    /// Creates the field that is 0 everywhere.
    #[cfg(test)]
    pub fn flat() -> Self {
        Self { values: vec![0.0; SIDE * SIDE] }
    }

    /// The value at (`x`, `y`), in cells of the grid.
    pub fn value_at(&self, x: f32, y: f32) -> f32 {
        let (column, row) = (x.floor(), y.floor());
        let (fx, fy) = (x - column, y - row);
        let wrap = |v: f32, by: usize| (v as i32 as usize).wrapping_add(by) % SIDE;
        let (c0, c1) = (wrap(column, 0), wrap(column, 1));
        let (r0, r1) = (wrap(row, 0) * SIDE, wrap(row, 1) * SIDE);
        let v = &self.values;
        let upper = v[r0 + c0] + (v[r0 + c1] - v[r0 + c0]) * fx;
        let lower = v[r1 + c0] + (v[r1 + c1] - v[r1 + c0]) * fx;
        upper + (lower - upper) * fy
    }
}
