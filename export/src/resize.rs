//! Resizing with a separable filter.
//!
//! The sums are those of `image::imageops::resize`, in f32 and in the same order, so the pixels are bitwise equal. They are
//! computed over entire rows, which is several times as fast.

use std::f32::consts::PI;

use image::RgbImage;

/// Number of values of a row that are summed at once: as many as fit in registers.
const LANES: usize = 32;

/// A filter: the weight of a pixel as a function of its distance, in pixels of the coarser of the two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// 1 − |x| up to 1: linear interpolation, with antialiasing when reducing.
    Triangle,
    /// sinc(x) · sinc(x/3) up to 3.
    Lanczos3,
}

impl Filter {
    /// Returns the radius beyond which the weight is 0.
    fn support(self) -> f32 {
        match self {
            Self::Triangle => 1.0,
            Self::Lanczos3 => 3.0,
        }
    }

    fn weight(self, x: f32) -> f32 {
        let sinc = |x: f32| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            _ if x.abs() >= self.support() => 0.0,
            Self::Triangle => 1.0 - x.abs(),
            Self::Lanczos3 => sinc(x) * sinc(x / 3.0),
        }
    }
}

/// The weighted sums of old pixels that give the new pixels along an axis.
struct Axis {
    /// The first old pixel of each new one, and the index of its weight. The weights of a new pixel end where those of the next
    /// begin.
    first: Vec<(usize, usize)>,
    weights: Vec<f32>,
}

impl Axis {
    /// Computes the weights from `old` to `new` pixels, neither of which is 0.
    fn new(filter: Filter, old: u32, new: u32) -> Self {
        let ratio = old as f32 / new as f32;
        let scale = ratio.max(1.0);
        let radius = filter.support() * scale;
        let (mut first, mut weights) = (Vec::with_capacity(new as usize), Vec::new());
        for i in 0..new {
            let center = (i as f32 + 0.5) * ratio;
            let left = ((center - radius).floor() as i64).clamp(0, i64::from(old) - 1);
            let right = ((center + radius).ceil() as i64).clamp(left + 1, i64::from(old));
            first.push((left as usize, weights.len()));
            // Pixel i has its center at i + 0.5.
            let pixel_weights = (left..right).map(|i| filter.weight((i as f32 - (center - 0.5)) / scale));
            weights.extend(pixel_weights);
            let pixel_weights = &mut weights[first[first.len() - 1].1..];
            let sum = pixel_weights.iter().fold(0.0, |sum, weight| sum + weight);
            pixel_weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        Self { first, weights }
    }

    /// Returns the first old pixel of each new one, and the weights from there.
    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let ends = self.first.iter().skip(1).map(|(_, at)| *at).chain([self.weights.len()]);
        self.first.iter().zip(ends).map(|(&(first, from), to)| (first, &self.weights[from..to]))
    }
}

/// Resizes a part of `image`, of `width` × `height` pixels from (`x`, `y`), to `new_width` × `new_height` pixels. The part is clipped
/// to the image. If a size is 0, the result is black.
pub(crate) fn resize(
    image: &RgbImage,
    [x, y, width, height]: [u32; 4],
    [new_width, new_height]: [u32; 2],
    filter: Filter,
) -> RgbImage {
    let (x, y) = (x.min(image.width()), y.min(image.height()));
    let (width, height) = (width.min(image.width() - x), height.min(image.height() - y));
    let mut output = RgbImage::new(new_width, new_height);
    if width == 0 || height == 0 || new_width == 0 || new_height == 0 {
        return output;
    }
    let (stride, len) = (image.width() as usize * 3, width as usize * 3);
    let part = &image.as_raw()[y as usize * stride + x as usize * 3..];
    let rows = output.chunks_exact_mut(new_width as usize * 3);
    if (width, height) == (new_width, new_height) {
        rows.zip(part.chunks(stride)).for_each(|(row, from)| row.copy_from_slice(&from[..len]));
        return output;
    }
    let (horizontal, vertical) = (Axis::new(filter, width, new_width), Axis::new(filter, height, new_height));
    // One extra value, so that four values can be read at each pixel.
    let mut column_sums = vec![0.0f32; len + 1];
    let mut sums = vec![0.0f32; new_width as usize * 3];
    for (row, (top, weights)) in rows.zip(vertical.iter()) {
        sum_rows(&part[top * stride..], stride, weights, &mut column_sums[..len]);
        for (sum, (left, weights)) in sums.chunks_exact_mut(3).zip(horizontal.iter()) {
            let mut pixel_sums = [0.0f32; 4];
            for (pixel, weight) in column_sums[left * 3..].windows(4).step_by(3).zip(weights) {
                for (sum, value) in pixel_sums.iter_mut().zip(pixel) {
                    *sum += value * weight;
                }
            }
            sum.copy_from_slice(&pixel_sums[..3]);
        }
        row.iter_mut().zip(&sums).for_each(|(value, &sum)| *value = round(sum));
    }
    output
}

/// Sums the first rows of `rows`, which are `stride` apart, each multiplied by its weight.
fn sum_rows(rows: &[u8], stride: usize, weights: &[f32], sums: &mut [f32]) {
    let aligned = sums.len() / LANES * LANES;
    for (block, sums) in sums[..aligned].chunks_exact_mut(LANES).enumerate() {
        let mut block_sums = [0.0f32; LANES];
        for (i, weight) in weights.iter().enumerate() {
            let from = &rows[i * stride + block * LANES..][..LANES];
            for (sum, &value) in block_sums.iter_mut().zip(from) {
                *sum += f32::from(value) * weight;
            }
        }
        sums.copy_from_slice(&block_sums);
    }
    for (column, sum) in sums.iter_mut().enumerate().skip(aligned) {
        *sum = 0.0;
        for (i, weight) in weights.iter().enumerate() {
            *sum += f32::from(rows[i * stride + column]) * weight;
        }
    }
}

/// Rounds to the nearest byte, ties up.
fn round(value: f32) -> u8 {
    let value = value.clamp(0.0, 255.0);
    let integer = value as i32;
    (integer + i32::from(value - integer as f32 >= 0.5)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{
        Rgb,
        imageops::{self, FilterType},
    };
    use tiny_cats_models::random::{Purpose, Stream};

    #[test]
    fn pixels_equal_those_of_the_image_crate() {
        let mut stream = Stream::new(1, Purpose::Synthetic, 0);
        let mut random = |n: u32| 1 + stream.uniform_int(n);
        for case in 0..200 {
            let [width, height, new_width, new_height] = [(); 4].map(|()| random(90));
            // Noise, and flat regions of black and white, where the Lanczos sums exceed the range.
            let image = RgbImage::from_fn(width, height, |x, y| {
                let value = (x / 7 * 31 + y / 5 * 17) % 3;
                Rgb([(random(256) - 1) as u8, (value * 127) as u8, if x > y { 255 } else { 0 }])
            });
            let [x, y] = [random(width) - 1, random(height) - 1];
            let part = [x, y, random(90), random(90)];
            let (new_width, new_height) = match case % 4 {
                0 => (part[2].min(width - x), part[3].min(height - y)),
                1 => (part[2].min(width - x), new_height),
                _ => (new_width, new_height),
            };
            let cropped = imageops::crop_imm(&image, part[0], part[1], part[2], part[3]);
            for (ours, theirs) in
                [(Filter::Triangle, FilterType::Triangle), (Filter::Lanczos3, FilterType::Lanczos3)]
            {
                let expected = imageops::resize(&*cropped, new_width, new_height, theirs);
                let found = resize(&image, part, [new_width, new_height], ours);
                assert!(found == expected, "{case}: {width}x{height} {part:?} to {new_width}x{new_height}");
            }
        }
    }

    #[test]
    fn constant_images_stay_constant() {
        for value in [0, 1, 127, 200, 255] {
            let image = RgbImage::from_pixel(61, 43, Rgb([value; 3]));
            for filter in [Filter::Triangle, Filter::Lanczos3] {
                for size in [[16, 9], [64, 64], [200, 3]] {
                    assert!(resize(&image, [0, 0, 61, 43], size, filter).iter().all(|&v| v == value));
                }
            }
        }
    }
}
