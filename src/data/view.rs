//! Views: the part of an image that a network sees, and its transform.

use super::ColorJitter;

/// A part of an image, optionally tilted, mirrored, and with changed colors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Left and upper edge of the part before it is tilted, in pixels of the image.
    pub origin: [f32; 2],
    /// Width and height of the part, in pixels of the image.
    pub extent: [f32; 2],
    /// The angle by which the part is tilted about its middle, in radians. The result appears tilted in the opposite direction.
    pub tilt: f32,
    /// True if the result is mirrored.
    pub flip: bool,
    /// The change of its colors.
    pub color: ColorJitter,
}

/// The number of subpixels per pixel, in which weights are integers. Sums of bytes with such weights are exact in 24 bits, hence in f32. So
/// a constant stays constant, no result leaves the range of its pixels, and the order of summation does not matter.
const SUBPIXELS: u32 = 256;

/// An image as bytes, row by row, three per pixel.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    pub bytes: &'a [u8],
    pub width: usize,
    pub height: usize,
}

/// Two neighboring pixels along an axis, and the weight of the second in [`SUBPIXELS`].
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weight: u32,
}

impl Tap {
    /// The pixels on both sides of `place` on an axis of `len` pixels. Pixel 0 is at 0.
    fn new(place: f32, len: usize) -> Self {
        let parts = to_subpixels(place);
        let pixel = parts.div_euclid(SUBPIXELS as i32);
        let (first, second) = (mirrored(pixel, len), mirrored(pixel.saturating_add(1), len));
        Self { first, second, weight: parts.rem_euclid(SUBPIXELS as i32) as u32 }
    }
}

/// Rounds `place` to the nearest [`SUBPIXELS`] of a pixel.
fn to_subpixels(place: f32) -> i32 {
    let parts = place * SUBPIXELS as f32 + 0.5;
    // Rounds down without `f32::floor`, which is a function call on the default target CPU.
    let floor = parts as i32;
    floor.saturating_sub(i32::from(floor as f32 > parts))
}

/// The index of the pixel at `pixel` if an axis of `len` pixels is mirrored repeatedly at its ends, which include the last pixels.
pub(crate) fn mirrored(pixel: i32, len: usize) -> usize {
    let place = i64::from(pixel).rem_euclid(2 * len as i64) as usize;
    if place < len { place } else { 2 * len - 1 - place }
}

impl View {
    /// The whole image of this width and height, unchanged.
    pub fn full_image((width, height): (u32, u32)) -> Self {
        let extent = [width as f32, height as f32];
        Self { origin: [0.0; 2], extent, tilt: 0.0, flip: false, color: ColorJitter::default() }
    }

    /// The middle square of `side` pixels, unchanged, of an image of this width and height.
    pub fn center((width, height): (u32, u32), side: u32) -> Self {
        let side = side.min(width).min(height);
        let origin = [width, height].map(|n| ((n - side) / 2) as f32);
        Self { origin, ..Self::full_image((side, side)) }
    }

    /// Writes the view of `image` into `out`, `[3, size, size]`, with values from −1 (black) to 1. Values between pixels are interpolated
    /// linearly; beyond its borders the image is mirrored.
    pub(super) fn fill(&self, image: Bytes, size: usize, out: &mut [f32]) {
        assert_eq!(out.len(), 3 * size * size, "the output has the wrong size");
        if self.tilt == 0.0 {
            match self.aligned_origin(image, size) {
                Some([left, top]) => self.copy(image, [left, top], size, out),
                None => self.fill_untilted(image, size, out),
            }
        } else {
            self.fill_tilted(image, size, out);
        }
        self.color.apply(out);
    }

    /// The left and upper edge if the view shows unscaled pixels.
    fn aligned_origin(&self, image: Bytes, size: usize) -> Option<[usize; 2]> {
        let [left, top] = self.origin.map(|edge| edge as usize);
        let is_aligned = self.extent == [size as f32; 2] && self.origin == [left as f32, top as f32];
        (is_aligned && left + size <= image.width && top + size <= image.height).then_some([left, top])
    }

    fn copy(&self, image: Bytes, [left, top]: [usize; 2], size: usize, out: &mut [f32]) {
        for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
            for (row, line) in plane.chunks_exact_mut(size).enumerate() {
                let from = &image.bytes[((top + row) * image.width + left) * 3..][..size * 3];
                let values = from.iter().skip(channel).step_by(3).map(|&byte| f32::from(byte) / 127.5 - 1.0);
                if self.flip {
                    line.iter_mut().rev().zip(values).for_each(|(place, value)| *place = value);
                } else {
                    line.iter_mut().zip(values).for_each(|(place, value)| *place = value);
                }
            }
        }
    }

    /// Renders a view without tilt: interpolates between rows first, for all columns at once, then between columns.
    fn fill_untilted(&self, image: Bytes, size: usize, out: &mut [f32]) {
        let taps = |axis: usize, len: usize| -> Vec<Tap> {
            let step = self.extent[axis] / size as f32;
            (0..size).map(|i| Tap::new(self.origin[axis] + (i as f32 + 0.5) * step - 0.5, len)).collect()
        };
        let (mut columns, rows) = (taps(0, image.width), taps(1, image.height));
        if self.flip {
            columns.reverse();
        }
        let (mut low, mut high) = (image.width, 0);
        for tap in &columns {
            (low, high) = (low.min(tap.first).min(tap.second), high.max(tap.first).max(tap.second));
        }
        for tap in &mut columns {
            (tap.first, tap.second) = ((tap.first - low) * 3, (tap.second - low) * 3);
        }
        // At most 255 · 256, which fits into 16 bits.
        let mut mixed = vec![0u16; (high + 1 - low) * 3];
        let (red, rest) = out.split_at_mut(size * size);
        let (green, blue) = rest.split_at_mut(size * size);
        for (i, row) in rows.iter().enumerate() {
            let line = |y: usize| &image.bytes[(y * image.width + low) * 3..][..mixed.len()];
            let (upper, lower) = (line(row.first), line(row.second));
            let weight = row.weight as u16;
            for (mixed, (&a, &b)) in mixed.iter_mut().zip(upper.iter().zip(lower)) {
                *mixed = (SUBPIXELS as u16 - weight) * u16::from(a) + weight * u16::from(b);
            }
            let line = i * size..(i + 1) * size;
            let places = red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
            for (tap, ((red, green), blue)) in columns.iter().zip(places) {
                let (a, b) = (&mixed[tap.first..tap.first + 3], &mixed[tap.second..tap.second + 3]);
                let of = |c: usize| (SUBPIXELS - tap.weight) * u32::from(a[c]) + tap.weight * u32::from(b[c]);
                (*red, *green, *blue) = (of(0) as f32, of(1) as f32, of(2) as f32);
            }
        }
        scale(out);
    }

    fn fill_tilted(&self, image: Bytes, size: usize, out: &mut [f32]) {
        let (sin, cos) = self.tilt.sin_cos();
        // Pixel 0 has its middle at 0.
        let middle = [0, 1].map(|axis| self.origin[axis] + self.extent[axis] / 2.0 - 0.5);
        let from_middle = |i: usize, axis: usize| ((i as f32 + 0.5) / size as f32 - 0.5) * self.extent[axis];
        let across = (0..size).map(|i| from_middle(if self.flip { size - 1 - i } else { i }, 0));
        let across: Vec<[f32; 2]> = across.map(|across| [across * cos, across * sin]).collect();
        let (red, rest) = out.split_at_mut(size * size);
        let (green, blue) = rest.split_at_mut(size * size);
        let mut places = vec![[0; 2]; size];
        for row in 0..size {
            let down = from_middle(row, 1);
            let start = [middle[0] - down * sin, middle[1] + down * cos];
            for (place, across) in places.iter_mut().zip(&across) {
                *place = [to_subpixels(start[0] + across[0]), to_subpixels(start[1] + across[1])];
            }
            let line = row * size..(row + 1) * size;
            let line = red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
            for (&place, ((red, green), blue)) in places.iter().zip(line) {
                [*red, *green, *blue] = image.interpolate(place);
            }
        }
        scale(out);
    }
}

impl Bytes<'_> {
    /// Interpolates at a point, across and down in [`SUBPIXELS`] of a pixel, that may be outside of the image. The result is in
    /// `1 / SUBPIXELS²`.
    #[inline]
    fn interpolate(&self, [x, y]: [i32; 2]) -> [f32; 3] {
        const BITS: u32 = SUBPIXELS.ilog2();
        let (left, top) = ((x >> BITS) as u32 as usize, (y >> BITS) as u32 as usize);
        let weights = [x, y].map(|parts| (parts as u32 % SUBPIXELS) as f32);
        if left < self.width - 1 && top < self.height - 1 {
            let from = (top * self.width + left) * 3;
            // Both pixels, both pixels below, and one byte more of each row if it exists.
            let (upper, lower) = (
                self.bytes.get(from..from + 7),
                self.bytes.get(from + self.width * 3..from + self.width * 3 + 7),
            );
            if let (Some(upper), Some(lower)) = (upper, lower) {
                return mix(
                    [
                        [first_four(upper, 0), first_four(upper, 3)],
                        [first_four(lower, 0), first_four(lower, 3)],
                    ],
                    weights,
                );
            }
        }
        let at = |x: i32, y: i32| {
            let from = (mirrored(y, self.height) * self.width + mirrored(x, self.width)) * 3;
            let pixel = &self.bytes[from..from + 3];
            [f32::from(pixel[0]), f32::from(pixel[1]), f32::from(pixel[2]), 0.0]
        };
        let (left, top) = (x >> BITS, y >> BITS);
        let (right, bottom) = (left.saturating_add(1), top.saturating_add(1));
        mix([[at(left, top), at(right, top)], [at(left, bottom), at(right, bottom)]], weights)
    }
}

#[inline]
fn first_four(bytes: &[u8], from: usize) -> [f32; 4] {
    let bytes: [u8; 4] = bytes[from..from + 4].try_into().expect("four bytes");
    bytes.map(f32::from)
}

/// Interpolates between two pixels and the two below them by `weights` in [`SUBPIXELS`], across and down. The result is in
/// `1 / SUBPIXELS²`.
#[inline]
fn mix([upper, lower]: [[[f32; 4]; 2]; 2], [across, down]: [f32; 2]) -> [f32; 3] {
    let along = |[a, b]: [[f32; 4]; 2], weight: f32| -> [f32; 4] {
        let rest = SUBPIXELS as f32 - weight;
        std::array::from_fn(|i| a[i] * rest + b[i] * weight)
    };
    let [r, g, b, _] = along([along(upper, across), along(lower, across)], down);
    [r, g, b]
}

/// Scales sums of bytes with weights of [`SUBPIXELS`] in two directions to a range from −1 (black) to 1 (white).
fn scale(values: &mut [f32]) {
    const ONE: f32 = 1.0 / (SUBPIXELS * SUBPIXELS) as f32;
    values.iter_mut().for_each(|value| *value = *value * ONE / 127.5 - 1.0);
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage, imageops};
    use tiny_cats_models::random::{Purpose, Stream};

    use super::*;
    use crate::data::AugmentLevel;

    const LEVELS: [AugmentLevel; 4] =
        [AugmentLevel::None, AugmentLevel::Basic, AugmentLevel::Medium, AugmentLevel::Full];

    fn fill(image: &RgbImage, view: &View, size: usize) -> Vec<f32> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let mut out = vec![0.0; 3 * size * size];
        view.fill(Bytes { bytes: image.as_raw(), width, height }, size, &mut out);
        out
    }

    #[test]
    fn center_views_copy_pixels() {
        let image = RgbImage::from_fn(12, 8, |x, y| Rgb([(x * 20) as u8, (y * 30) as u8, 255]));
        let view = View::center((12, 8), 8);
        let middle = imageops::crop_imm(&image, 2, 0, 8, 8).to_image();
        let plain = fill(&image, &view, 8);
        assert_eq!(tiny_cats_export::to_rgb(&plain, 8), middle);
        let flipped = fill(&image, &View { flip: true, ..view }, 8);
        assert_eq!(tiny_cats_export::to_rgb(&flipped, 8), imageops::flip_horizontal(&middle));
        // All three implementations must agree.
        let mut out = vec![0.0; 192];
        let bytes = Bytes { bytes: image.as_raw(), width: 12, height: 8 };
        for (view, expected) in [(view, &plain), (View { flip: true, ..view }, &flipped)] {
            view.fill_untilted(bytes, 8, &mut out);
            assert_eq!(&out, expected);
            view.fill_tilted(bytes, 8, &mut out);
            assert_eq!(&out, expected);
        }
    }

    #[test]
    fn views_of_a_ramp_are_exact_with_and_without_tilt() {
        let image = RgbImage::from_fn(40, 20, |x, y| Rgb([(x * 6) as u8, (y * 12) as u8, 0]));
        let view = View { origin: [7.0, 4.0], extent: [24.0, 10.0], ..View::full_image((40, 20)) };
        // The rounding error of half a subpixel in each direction, times the slope.
        let near = |a: f32, b: f32| (a - b).abs() <= 12.0 / 512.0 / 127.5 + 1e-5;
        for tilt in [0.0f32, 0.1, -0.2] {
            for flip in [false, true] {
                let out = fill(&image, &View { tilt, flip, ..view }, 16);
                for i in 0..256 {
                    let column = if flip { 15 - i % 16 } else { i % 16 };
                    let (x, y) = (column as f32 + 0.5 - 8.0, (i / 16) as f32 + 0.5 - 8.0);
                    let (x, y) = (x * 1.5, y * 10.0 / 16.0);
                    let across = 19.0 - 0.5 + x * tilt.cos() - y * tilt.sin();
                    let down = 9.0 - 0.5 + x * tilt.sin() + y * tilt.cos();
                    assert!(near(out[i], across * 6.0 / 127.5 - 1.0), "{tilt} {i}");
                    assert!(near(out[256 + i], down * 12.0 / 127.5 - 1.0), "{tilt} {i}");
                }
            }
        }
    }

    #[test]
    fn views_stay_within_the_value_range_of_the_image() {
        let mut stream = Stream::new(7, Purpose::Synthetic, 0);
        for position in 0..150 {
            let [width, height] = [(); 2].map(|()| 1 + stream.uniform_int(40));
            let (low, span) = (stream.uniform_int(200) as u8, 1 + stream.uniform_int(55));
            let image = RgbImage::from_fn(width, height, |_, _| {
                Rgb([(); 3].map(|()| low + stream.uniform_int(span) as u8))
            });
            let range = image.iter().fold((255, 0), |(a, b), &v| (a.min(v), b.max(v)));
            let constant = RgbImage::from_pixel(width, height, Rgb([low, 255 - low, 77]));
            let side = width.min(height);
            let mut views: Vec<View> = LEVELS
                .iter()
                .flat_map(|&level| {
                    let square = View::for_generator(level, 3, position, side);
                    [square, View::for_classifier(level, 3, position, (width, height), side)]
                })
                .collect();
            // Views far outside of the image and larger than it.
            let mut far = views[views.len() - 1];
            far.origin = [stream.normal() as f32 * 300.0, stream.normal() as f32 * 300.0];
            far.extent = [1.0 + stream.uniform_int(200) as f32; 2];
            views.extend([far, View { tilt: 0.0, ..far }, View { tilt: 3.0, ..far }]);
            for view in views {
                let view = View { color: ColorJitter::default(), ..view };
                let value = |byte: u8| f32::from(byte) / 127.5 - 1.0;
                let out = fill(&image, &view, 11);
                let inside = out.iter().all(|v| (value(range.0)..=value(range.1)).contains(v));
                assert!(inside, "{view:?} of {width}x{height}");
                let out = fill(&constant, &view, 11);
                for (plane, byte) in out.chunks(121).zip([low, 255 - low, 77]) {
                    assert!(plane.iter().all(|&v| v == value(byte)), "{view:?} of {width}x{height}");
                }
            }
        }
    }

    #[test]
    fn images_are_mirrored_at_the_border() {
        let image = RgbImage::from_fn(6, 6, |x, y| Rgb([(x * 40) as u8, (y * 40) as u8, (x * y * 7) as u8]));
        let view = |x: f32, y: f32| View { origin: [x, y], ..View::full_image((6, 6)) };
        let plain = tiny_cats_export::to_rgb(&fill(&image, &view(0.0, 0.0), 6), 6);
        let shown = |x, y| tiny_cats_export::to_rgb(&fill(&image, &view(x, y), 6), 6);
        assert_eq!(shown(6.0, 0.0), imageops::flip_horizontal(&plain));
        assert_eq!(shown(-6.0, 0.0), imageops::flip_horizontal(&plain));
        assert_eq!(shown(0.0, -6.0), imageops::flip_vertical(&plain));
        assert_eq!(shown(12.0, 24.0), plain);
        for pixel in -9..9 {
            assert_eq!(mirrored(pixel, 1), 0);
            assert_eq!(mirrored(pixel, 3), [0, 1, 2, 2, 1, 0][pixel.rem_euclid(6) as usize]);
        }
    }

    #[test]
    fn positions_are_rounded_to_the_nearest_subpixel() {
        for (position, subpixels) in
            [(0.0, 0), (1.0, 256), (-1.0, -256), (-0.5, -128), (0.75, 192), (-0.001, 0), (-0.003, -1)]
        {
            assert_eq!(to_subpixels(position), subpixels, "{position}");
        }
        assert_eq!(
            (to_subpixels(f32::MAX), to_subpixels(f32::MIN), to_subpixels(f32::NAN)),
            (i32::MAX, i32::MIN, 0)
        );
    }
}
