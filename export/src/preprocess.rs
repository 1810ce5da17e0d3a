//! Preprocessing of photographs for a classifier: the same functions for training, evaluation and inference.

use image::RgbImage;

use crate::{
    Preprocessing,
    resize::{Filter, resize},
};

/// Maximum ratio of the sides; longer images are cropped to their center.
const MAX_ASPECT_RATIO: u32 = 4;

/// Resizes `image` to a short side of `short` pixels, with an antialiasing triangle filter (PyTorch's antialiased
/// bilinear). An image longer than four times its short side is cropped to its center. The resulting size is [`short_side_size`].
///
/// # Panics
/// If `image` has no pixels.
pub fn resize_short_side(image: &RgbImage, short: u32) -> RgbImage {
    let [width, height] = [image.width(), image.height()];
    let [w, h] = center_region([width, height]);
    let size = short_side_size([width, height], short);
    resize(image, [(width - w) / 2, (height - h) / 2, w, h], size, Filter::Triangle)
}

/// Returns the width and height of the result of [`resize_short_side`] for an image of this width and height.
///
/// # Panics
/// If one of them is 0.
pub fn short_side_size([width, height]: [u32; 2], short: u32) -> [u32; 2] {
    let side = width.min(height);
    assert!(side > 0, "expected an image with pixels, found {width} x {height}");
    let half = u64::from(side) / 2;
    center_region([width, height])
        .map(|n| ((u64::from(n) * u64::from(short) + half) / u64::from(side)) as u32)
}

/// Returns the width and height of the part that is used.
fn center_region([width, height]: [u32; 2]) -> [u32; 2] {
    let max_side = MAX_ASPECT_RATIO.saturating_mul(width.min(height));
    [width.min(max_side), height.min(max_side)]
}

impl Preprocessing {
    /// Converts `image` to the network's input `[3, size, size]`: resized, cropped to the center `size` × `size` pixels,
    /// normalized.
    ///
    /// # Panics
    /// If `image` has no pixels, or `size` is more than [`resize`](Self::resize).
    pub fn apply(&self, image: &RgbImage, size: usize) -> Vec<f32> {
        let image = resize_short_side(image, self.resize as u32);
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (left, top) = ((width - size) / 2, (height - size) / 2);
        let mut output = vec![0.0; 3 * size * size];
        for (channel, plane) in output.chunks_exact_mut(size * size).enumerate() {
            for (y, line) in plane.chunks_exact_mut(size).enumerate() {
                let row = &image.as_raw()[((top + y) * width + left) * 3..][..size * 3];
                for (value, pixel) in line.iter_mut().zip(row.chunks_exact(3)) {
                    *value = f32::from(pixel[channel]) / 127.5 - 1.0;
                }
            }
        }
        self.normalize(&mut output);
        output
    }

    /// Normalizes an image in place, for the network. `values` has shape `[3, height, width]` and ranges from −1 (black) to 1 (white).
    pub fn normalize(&self, values: &mut [f32]) {
        let plane = values.len() / 3;
        for (values, (mean, std)) in values.chunks_mut(plane.max(1)).zip(self.mean.into_iter().zip(self.std))
        {
            let (scale, offset) = (0.5 / std, (0.5 - mean) / std);
            values.iter_mut().for_each(|v| *v = *v * scale + offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn the_short_side_has_the_requested_size() {
        for (width, height) in [(100, 80), (80, 100), (3, 500), (146, 146), (1, 1)] {
            let (w, h) = resize_short_side(&RgbImage::new(width, height), 146).dimensions();
            assert_eq!(w.min(h), 146);
            let aspect = (f64::from(width) / f64::from(height)).clamp(0.25, 4.0);
            assert!((f64::from(w) / f64::from(h) / aspect - 1.0).abs() < 0.01);
        }
    }

    #[test]
    fn the_center_is_cropped_and_normalized_per_channel() {
        let pixel = |x: u32, y: u32| Rgb([(x * 4) as u8, (y * 6) as u8, 255]);
        let image = RgbImage::from_fn(60, 40, pixel);
        let preprocessing = Preprocessing { resize: 40, mean: [0.5, 0.25, 0.0], std: [0.25, 0.5, 2.0] };
        let output = preprocessing.apply(&image, 32);
        assert_eq!(output.len(), 3 * 32 * 32);
        for (channel, (mean, std)) in preprocessing.mean.into_iter().zip(preprocessing.std).enumerate() {
            for (x, y) in [(0, 0), (31, 0), (7, 30), (31, 31)] {
                let exact = (f32::from(pixel(x + 14, y + 4).0[channel]) / 255.0 - mean) / std;
                let value = output[(channel * 32 + y as usize) * 32 + x as usize];
                assert!((value - exact).abs() < 1e-5, "{channel} {x} {y}: {value} for {exact}");
            }
        }
    }
}
