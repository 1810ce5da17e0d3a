//! Decoding of image files, whose names and headers are not trusted.
//!
//! Memory is bounded to 2 GB. An image of at most [`FULL_SIZE_PIXELS`] is decoded at full size, which takes up to 1.1 GB. A larger
//! one, up to [`MAX_PIXELS`], is decoded at half its width and height: JPEG by a smaller transform of its blocks, PNG row by row,
//! WebP at full size first. An image of 200 million pixels takes 0.3 GB as PNG or sequential JPEG (the format of phones), 0.9 to
//! 1.5 GB as progressive JPEG, and 1.4 GB as lossless WebP. Images of more than 8 million pixels are decoded one at
//! a time.

mod bits;
mod format;
mod huffman;
mod jpeg;
mod large;

use std::{
    borrow::Cow,
    fs::File,
    io::{Cursor, Read},
    path::Path,
    sync::{Mutex, PoisonError},
};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage, metadata::Orientation};

use crate::{
    excerpt, guard,
    resize::{Filter, resize},
};
use format::Format;
use jpeg::Completeness;

/// Maximum size of a file, in bytes.
pub const MAX_BYTES: u64 = 128 << 20;
/// Maximum number of pixels of an image. The largest phone cameras have 201 million.
pub const MAX_PIXELS: u64 = 210_000_000;
/// Maximum number of pixels of an image that is decoded at full size; larger ones are decoded at half their width and height.
pub const FULL_SIZE_PIXELS: u64 = 64_000_000;
/// Maximum width and height, in pixels.
pub const MAX_SIDE: u32 = 32_768;
/// Maximum number of pixels of images that are decoded concurrently; larger ones are decoded one at a time.
const LARGE_PIXELS: u64 = 8_000_000;

/// Reads the file `path`.
///
/// # Errors
/// The reason why the file cannot be used.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |e: std::io::Error| format!("not readable: {e}");
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("not a file".to_string());
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 {
        0 => Err("an empty file".to_string()),
        size if size > MAX_BYTES => Err(format!("more than {} MiB", MAX_BYTES >> 20)),
        _ => Ok(bytes),
    }
}

/// A decoded image.
#[derive(Clone, Debug)]
pub struct DecodedImage {
    /// Pixels, upright, with transparent ones blended with white.
    pub image: RgbImage,
    /// Width and height in the file, upright. They exceed those of `image` if it was [reduced](decoded_size).
    pub size: [u32; 2],
}

impl DecodedImage {
    /// Maps `part`, the x, y, width and height of a region in the file's image, to that region in [`image`](Self::image). `part` must
    /// lie inside the file's image.
    pub fn part(&self, part: [u32; 4]) -> [u32; 4] {
        let [x, y, width, height] = part;
        let scale_range = |from: u32, length: u32, old: u32, new: u32| {
            let scale =
                |n: u32| ((u64::from(n) * u64::from(new) + u64::from(old) / 2) / u64::from(old)) as u32;
            let start = scale(from).min(new - 1);
            [start, scale(from + length).clamp(start + 1, new) - start]
        };
        let [x, width] = scale_range(x, width, self.size[0], self.image.width());
        let [y, height] = scale_range(y, height, self.size[1], self.image.height());
        [x, y, width, height]
    }
}

/// Returns the width and height at which an image of `size` is decoded: half of it, rounded up, above
/// [`FULL_SIZE_PIXELS`].
pub fn decoded_size(size: [u32; 2]) -> [u32; 2] {
    if pixels(size) > FULL_SIZE_PIXELS { size.map(|side| side.div_ceil(2)) } else { size }
}

fn pixels([width, height]: [u32; 2]) -> u64 {
    u64::from(width) * u64::from(height)
}

/// An image with a valid header.
struct Header<'a> {
    format: Format,
    /// The bytes of the image; for a JPEG file, those of its first image.
    bytes: Cow<'a, [u8]>,
    /// Width and height as stored, before rotation.
    size: [u32; 2],
    orientation: Orientation,
    /// Completeness of the data, if it has been determined.
    completeness: Option<Completeness>,
}

impl<'a> Header<'a> {
    /// Detects the format of `bytes` and reads the header.
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let format = Format::detect(bytes)?;
        let truncated = || Err(format!("a broken {} file: its end is missing", format.name()));
        let (mut bytes, mut completeness) = (Cow::Borrowed(bytes), None);
        match format {
            Format::Png if !format::has_png_end(&bytes) => return truncated(),
            Format::Jpeg => {
                let extent = jpeg::extent(&bytes);
                let image = &bytes[..extent.end];
                if extent.has_end_marker {
                    bytes = match bytes {
                        Cow::Borrowed(file) => Cow::Borrowed(&file[..extent.end]),
                        owned => owned,
                    };
                } else {
                    completeness = Some(jpeg::completeness(image));
                    if !matches!(completeness, Some(Completeness::Complete(_))) {
                        return truncated();
                    }
                    // Decoders require the end marker.
                    bytes = Cow::Owned([image, &[0xff, 0xd9]].concat());
                }
            }
            Format::Png | Format::WebP => {}
        }
        let mut decoder = open(format, &bytes)?;
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().map_err(|e| decode_error(format, &e))?;
        drop(decoder);
        Ok(Self { format, bytes, size: [width, height], orientation, completeness })
    }

    /// Returns the width and height, upright.
    fn upright_size(&self) -> [u32; 2] {
        let [width, height] = self.size;
        if has_swapped_axes(self.orientation) { [height, width] } else { [width, height] }
    }

    fn decode(&self) -> Result<DecodedImage, String> {
        let completeness = match self.format {
            Format::Jpeg => self.completeness.unwrap_or_else(|| jpeg::completeness(&self.bytes)),
            Format::Png | Format::WebP => Completeness::Unknown,
        };
        if completeness == Completeness::Truncated {
            return Err("a broken JPEG file: its end is missing".to_string());
        }
        let mut image = if pixels(self.size) > FULL_SIZE_PIXELS {
            let half = match self.format {
                Format::Jpeg => large::jpeg(&self.bytes, completeness),
                Format::Png => large::png(&self.bytes),
                Format::WebP => large::webp(&self.bytes),
            };
            DynamicImage::from(half.map_err(|e| decode_error(self.format, &e))?)
        } else {
            DynamicImage::from_decoder(open(self.format, &self.bytes)?)
                .map_err(|e| decode_error(self.format, &e))?
        };
        image.apply_orientation(self.orientation);
        let image = if image.color().has_alpha() { flatten_alpha(image) } else { image.into_rgb8() };
        Ok(DecodedImage { image, size: self.upright_size() })
    }
}

/// Opens `bytes`, and checks the size in the header.
fn open(format: Format, bytes: &[u8]) -> Result<impl ImageDecoder + '_, String> {
    let kind = match format {
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::WebP => ImageFormat::WebP,
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), kind);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| decode_error(format, &e))?;
    let (width, height) = decoder.dimensions();
    if pixels([width, height]) > MAX_PIXELS {
        return Err(format!("{width} x {height} pixels are too many; expected at most {MAX_PIXELS}"));
    }
    if width == 0 || height == 0 {
        return Err("an image without pixels".to_string());
    }
    Ok(decoder)
}

/// Formats a decoder's error in one line.
fn decode_error(format: Format, error: &impl ToString) -> String {
    let reason = error.to_string();
    format!("a broken {} file: {}", format.name(), excerpt(reason.lines().next().unwrap_or_default()))
}

/// Calls a decoder of `bytes`, and converts a panic to an error.
fn catch_panic<T>(bytes: &[u8], decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    guard::catch(decode).unwrap_or_else(|panic| {
        Err(decode_error(Format::detect(bytes)?, &format!("its decoder failed: {panic}")))
    })
}

/// Checks that the header of an image is valid and that its end is present. Returns its width and height, upright. No pixels
/// are decoded: only decoding finds missing data before an end marker.
///
/// # Errors
/// The reason why the image cannot be used.
pub fn check(bytes: &[u8]) -> Result<[u32; 2], String> {
    catch_panic(bytes, || Header::read(bytes).map(|header| header.upright_size()))
}

/// True if a stored row is displayed as a column.
fn has_swapped_axes(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

/// Decodes an image, rotates it upright, blends transparent pixels with white, and passes it to `f`. An image of more than
/// [`FULL_SIZE_PIXELS`] is [reduced](decoded_size).
///
/// A lock is held for large images until `f` returns, so that only one is in memory at a time. `f` must not wait for other threads.
///
/// # Errors
/// The reason why the image cannot be decoded.
pub fn decode_with<T>(bytes: &[u8], f: impl FnOnce(DecodedImage) -> T) -> Result<T, String> {
    static LARGE: Mutex<()> = Mutex::new(());
    let header = catch_panic(bytes, || Header::read(bytes))?;
    let is_large = pixels(header.size) > LARGE_PIXELS;
    let _lock = is_large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let decoded = catch_panic(bytes, || header.decode())?;
    drop(header);
    Ok(f(decoded))
}

/// Decodes an image, upright, with transparent pixels blended with white, [reduced](decoded_size) if it is very large.
///
/// # Errors
/// As [`decode_with`].
pub fn upright(bytes: &[u8]) -> Result<RgbImage, String> {
    decode_with(bytes, |decoded| decoded.image)
}

/// Decodes the center square of an image, upright, with transparent pixels blended with white, and resizes it to `size` × `size`
/// pixels.
///
/// # Errors
/// As [`decode_with`].
pub fn decode_square(bytes: &[u8], size: u32) -> Result<RgbImage, String> {
    decode_with(bytes, |DecodedImage { image, .. }| {
        let side = image.width().min(image.height());
        let (x, y) = ((image.width() - side) / 2, (image.height() - side) / 2);
        resize_region(&image, [x, y, side, side], [size, size])
    })
}

/// Resizes the `part` of `image` (x, y, width, height) to `size` (width, height), with a Lanczos filter. The part is clipped to
/// the image.
pub fn resize_region(image: &RgbImage, part: [u32; 4], size: [u32; 2]) -> RgbImage {
    resize(image, part, size, Filter::Lanczos3)
}

fn flatten_alpha(image: DynamicImage) -> RgbImage {
    let rgba = image.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        image::Rgb([r, g, b].map(|value| blend_with_white(value, a)))
    })
}

fn blend_with_white(value: u8, alpha: u8) -> u8 {
    ((u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
}

#[cfg(test)]
mod tests;
