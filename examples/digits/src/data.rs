//! Drawn digits: a bitmap font, scaled, moved, and with noise.

use tiny_cats_models::random::{Purpose, Stream};

use crate::network::SIDE;

/// Seven rows of five pixels for each digit, the leftmost pixel in the highest bit.
const FONT: [[u8; 7]; 10] = [
    [0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e],
    [0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e],
    [0x0e, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1f],
    [0x1f, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0e],
    [0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02],
    [0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e],
    [0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e],
    [0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
    [0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e],
    [0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c],
];

/// Draws item `index` of the data with this seed. Returns its digit, and writes its pixels, from about 0 to 1, to `image`. The same seed and
/// index always give the same image, which is what makes a resumed run end in the same bytes.
pub fn draw(seed: u64, index: u64, image: &mut [f32]) -> usize {
    let mut stream = Stream::new(seed, Purpose::Training, index);
    let digit = stream.uniform_int(10) as usize;
    let (scale, left, top) = (1.5 + 0.6 * stream.uniform(), 5.0 * stream.uniform(), 2.0 * stream.uniform());
    for (at, value) in image.iter_mut().enumerate() {
        let (x, y) = ((at % SIDE) as f64 - left, (at / SIDE) as f64 - top);
        let (column, row) = ((x / scale).floor(), (y / scale).floor());
        let inside = (0.0..5.0).contains(&column) && (0.0..7.0).contains(&row);
        let is_set = inside && FONT[digit][row as usize] >> (4 - column as u32) & 1 == 1;
        *value = (f64::from(u8::from(is_set)) + 0.25 * stream.normal()) as f32;
    }
    digit
}
