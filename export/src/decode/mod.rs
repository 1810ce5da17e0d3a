//! Decoding of image files, whose names and headers are not trusted.
//!
//! Memory is bounded to 2 GB. An image of at most [`FULL_SIZE_PIXELS`] is decoded at full size, which takes up to 1.1 GB. A larger
//! one, up to [`MAX_PIXELS`], is decoded at half its width and height: JPEG by a smaller transform of its blocks, PNG row by row,
//! WebP at its full size first. For 200 million pixels that takes 0.3 GB for PNG and for sequential JPEG, as phones write it. It
//! takes 0.9 to 1.5 GB for progressive JPEG, and 1.4 GB for lossless WebP. Images of more than 8 million pixels are decoded one at
//! a time.

mod bits;
mod format;
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
    let about = |e: std::io::Error| format!("not readable: {e}");
    let metadata = std::fs::metadata(path).map_err(about)?;
    if !metadata.is_file() {
        return Err("not a file".to_string());
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(about)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(about)?;
    match bytes.len() as u64 {
        0 => Err("an empty file".to_string()),
        size if size > MAX_BYTES => Err(format!("more than {} MiB", MAX_BYTES >> 20)),
        _ => Ok(bytes),
    }
}

/// A decoded image.
#[derive(Clone, Debug)]
pub struct DecodedImage {
    /// Pixels, upright, with white behind transparent ones.
    pub picture: RgbImage,
    /// Width and height in the file, upright. They exceed those of the pixels for an image that was [reduced](decoded_size).
    pub size: [u32; 2],
}

impl DecodedImage {
    /// Returns the part of [`picture`](Self::picture) that shows `part`, given as x, y, width and height in the file's image.
    /// `part` must lie inside that image.
    pub fn part(&self, part: [u32; 4]) -> [u32; 4] {
        let [x, y, width, height] = part;
        let along = |from: u32, length: u32, whole: u32, here: u32| {
            let at =
                |n: u32| ((u64::from(n) * u64::from(here) + u64::from(whole) / 2) / u64::from(whole)) as u32;
            let start = at(from).min(here - 1);
            [start, at(from + length).clamp(start + 1, here) - start]
        };
        let [x, width] = along(x, width, self.size[0], self.picture.width());
        let [y, height] = along(y, height, self.size[1], self.picture.height());
        [x, y, width, height]
    }
}

/// Returns the width and height at which an image of `size` is decoded: above [`FULL_SIZE_PIXELS`] half of it, rounded up.
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
    /// Width and height as stored, without rotation.
    size: [u32; 2],
    orientation: Orientation,
    /// Completeness of the data, if it is known already.
    completeness: Option<Completeness>,
}

impl<'a> Header<'a> {
    /// Reads the header of the format that the content of `bytes` has.
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let format = Format::of(bytes)?;
        let missing = || Err(format!("a broken {} file: its end is missing", format.name()));
        let (mut bytes, mut found) = (Cow::Borrowed(bytes), None);
        match format {
            Format::Png if !format::png_ends(&bytes) => return missing(),
            Format::Jpeg => {
                let extent = jpeg::extent(&bytes);
                let image = &bytes[..extent.end];
                if extent.has_end_marker {
                    bytes = match bytes {
                        Cow::Borrowed(all) => Cow::Borrowed(&all[..extent.end]),
                        owned => owned,
                    };
                } else {
                    found = Some(jpeg::walk(image));
                    if !matches!(found, Some(Completeness::Complete(_))) {
                        return missing();
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
        Ok(Self { format, bytes, size: [width, height], orientation, completeness: found })
    }

    /// Returns width and height, upright.
    fn upright(&self) -> [u32; 2] {
        let [width, height] = self.size;
        if swaps_axes(self.orientation) { [height, width] } else { [width, height] }
    }

    fn decode(&self) -> Result<DecodedImage, String> {
        let found = match self.format {
            Format::Jpeg => self.completeness.unwrap_or_else(|| jpeg::walk(&self.bytes)),
            Format::Png | Format::WebP => Completeness::Unknown,
        };
        if found == Completeness::Cut {
            return Err("a broken JPEG file: its end is missing".to_string());
        }
        let mut picture = if pixels(self.size) > FULL_SIZE_PIXELS {
            let half = match self.format {
                Format::Jpeg => large::jpeg(&self.bytes, found),
                Format::Png => large::png(&self.bytes),
                Format::WebP => large::webp(&self.bytes),
            };
            DynamicImage::from(half.map_err(|e| decode_error(self.format, &e))?)
        } else {
            DynamicImage::from_decoder(open(self.format, &self.bytes)?)
                .map_err(|e| decode_error(self.format, &e))?
        };
        picture.apply_orientation(self.orientation);
        let picture = if picture.color().has_alpha() { flatten_alpha(picture) } else { picture.into_rgb8() };
        Ok(DecodedImage { picture, size: self.upright() })
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
        return Err("a picture without pixels".to_string());
    }
    Ok(decoder)
}

/// Formats a decoder's error in one line.
fn decode_error(format: Format, error: &impl ToString) -> String {
    let reason = error.to_string();
    format!("a broken {} file: {}", format.name(), excerpt(reason.lines().next().unwrap_or_default()))
}

/// Calls a decoder on `bytes`, and turns a panic into an error.
fn catch_panic<T>(bytes: &[u8], decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    guard::catch(decode).unwrap_or_else(|panic| {
        Err(decode_error(Format::of(bytes)?, &format!("its decoder failed: {panic}")))
    })
}

/// Checks that the header of an image is valid and that its end is present. Returns its width and height, upright. No pixel is
/// decoded: missing data before an end marker are found by decoding alone.
///
/// # Errors
/// The reason why the image cannot be used.
pub fn check(bytes: &[u8]) -> Result<[u32; 2], String> {
    catch_panic(bytes, || Header::read(bytes).map(|header| header.upright()))
}

/// True if a stored row is displayed as a column.
fn swaps_axes(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

/// Decodes an image, turns it upright, puts white behind transparent pixels, and passes it to `then`. An image of more than
/// [`FULL_SIZE_PIXELS`] is [reduced](decoded_size).
///
/// Large images are in memory one at a time, so that many threads do not need many times the memory: `then` must not wait for other
/// threads.
///
/// # Errors
/// The reason why the image cannot be decoded.
pub fn decode_with<T>(bytes: &[u8], then: impl FnOnce(DecodedImage) -> T) -> Result<T, String> {
    static LARGE: Mutex<()> = Mutex::new(());
    let header = catch_panic(bytes, || Header::read(bytes))?;
    let large = pixels(header.size) > LARGE_PIXELS;
    let _alone = large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let upright = catch_panic(bytes, || header.decode())?;
    drop(header);
    Ok(then(upright))
}

/// Decodes an image, upright, with white behind transparent pixels, [reduced](decoded_size) if it is very large.
///
/// # Errors
/// As [`decode_with`].
pub fn upright(bytes: &[u8]) -> Result<RgbImage, String> {
    decode_with(bytes, |upright| upright.picture)
}

/// Decodes the center square of an image, upright, with white behind transparent pixels, and resizes it to `size` × `size` pixels.
///
/// # Errors
/// As [`decode_with`].
pub fn decode_square(bytes: &[u8], size: u32) -> Result<RgbImage, String> {
    decode_with(bytes, |DecodedImage { picture, .. }| {
        let side = picture.width().min(picture.height());
        let (x, y) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
        resize_region(&picture, [x, y, side, side], [size, size])
    })
}

/// Resizes the `part` of `picture` (x, y, width, height) to `size` (width, height), with a Lanczos filter. The part is clipped to
/// the image.
pub fn resize_region(picture: &RgbImage, part: [u32; 4], size: [u32; 2]) -> RgbImage {
    resize(picture, part, size, Filter::Lanczos3)
}

fn flatten_alpha(picture: DynamicImage) -> RgbImage {
    let rgba = picture.into_rgba8();
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
