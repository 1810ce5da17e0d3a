//! From the bytes of a file to a picture, trusting neither its name nor its header.
//!
//! Memory is bounded to 2 GB. A picture of at most [`FULL_SIZE_PIXELS`] is decoded as it is, which takes up to 1.1 GB. A larger one, up to
//! [`MAX_PIXELS`], is decoded at half its width and height: a JPEG picture by a smaller transform of its blocks, a PNG picture row by row,
//! a WebP picture at its full size first. For 200 million pixels that takes 0.3 GB for sequential JPEG, as telephones write it, and PNG,
//! 0.9 to 1.5 GB for progressive JPEG, and 1.4 GB for lossless WebP. Pictures of more than 8 million pixels are decoded one at a time.

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

/// Larger files are not read.
pub const MAX_BYTES: u64 = 128 << 20;
/// Pictures of more pixels are not decoded. The largest cameras of telephones have 201 million.
pub const MAX_PIXELS: u64 = 210_000_000;
/// Pictures of more pixels are decoded at half their width and height.
pub const FULL_SIZE_PIXELS: u64 = 64_000_000;
/// Longer sides are not decoded.
pub const MAX_SIDE: u32 = 32_768;
/// Pictures of more pixels are decoded one at a time.
const LARGE_PIXELS: u64 = 8_000_000;

/// The bytes of the file `path`, or why they can't be had.
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

/// A picture in memory.
#[derive(Clone, Debug)]
pub struct DecodedImage {
    /// Its pixels: upright, on white where it is transparent.
    pub picture: RgbImage,
    /// The width and height that it has in the file, upright. More than the picture's where that was [`reduced`].
    pub size: [u32; 2],
}

impl DecodedImage {
    /// The part of [`picture`](Self::picture) that shows the `part`, x, y, width and height, of the picture in the file. `part` must
    /// lie in it.
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

/// The width and height with which a picture of `size` is decoded: half of it, rounded up, above [`FULL_SIZE_PIXELS`].
pub fn decoded_size(size: [u32; 2]) -> [u32; 2] {
    if pixels(size) > FULL_SIZE_PIXELS { size.map(|side| side.div_ceil(2)) } else { size }
}

fn pixels([width, height]: [u32; 2]) -> u64 {
    u64::from(width) * u64::from(height)
}

/// A picture whose header is sound.
struct Header<'a> {
    format: Format,
    /// Of a JPEG file, its first image.
    bytes: Cow<'a, [u8]>,
    /// Width and height as they are stored.
    size: [u32; 2],
    orientation: Orientation,
    /// Whether all data are there, where that is known already.
    completeness: Option<Completeness>,
}

impl<'a> Header<'a> {
    /// Reads the header of what the content of `bytes`, not a name, says that they are.
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
                    // Decoders want it.
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

    /// Width and height, upright.
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

/// Opens `bytes`, and checks the size that the header announces.
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

/// One line about a picture that can't be decoded.
fn decode_error(format: Format, error: &impl ToString) -> String {
    let reason = error.to_string();
    format!("a broken {} file: {}", format.name(), excerpt(reason.lines().next().unwrap_or_default()))
}

/// Runs a decoder on `bytes`. A file on which it panics is broken.
fn catch_panic<T>(bytes: &[u8], decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    guard::catch(decode).unwrap_or_else(|panic| {
        Err(decode_error(Format::of(bytes)?, &format!("its decoder failed: {panic}")))
    })
}

/// Width and height of a picture, upright, if its header is sound and its end is there; a reason why not. No pixel is decoded: data that
/// end early before an end marker are found when they are.
pub fn check(bytes: &[u8]) -> Result<[u32; 2], String> {
    catch_panic(bytes, || Header::read(bytes).map(|header| header.upright()))
}

/// Whether what is stored as a row is shown as a column.
fn swaps_axes(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

/// Decodes all of a picture, turns it upright, lays it on white where it is transparent, and hands it to `then`. One of more than
/// [`FULL_SIZE_PIXELS`] is [`reduced`]. Large ones are in memory one at a time, so that many threads do not need many times the memory: `then`
/// must not wait for other threads.
pub fn decode_with<T>(bytes: &[u8], then: impl FnOnce(DecodedImage) -> T) -> Result<T, String> {
    static LARGE: Mutex<()> = Mutex::new(());
    let header = catch_panic(bytes, || Header::read(bytes))?;
    let large = pixels(header.size) > LARGE_PIXELS;
    let _alone = large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let upright = catch_panic(bytes, || header.decode())?;
    drop(header);
    Ok(then(upright))
}

/// A picture, upright, on white where it is transparent, [`reduced`] if it is very large.
pub fn upright(bytes: &[u8]) -> Result<RgbImage, String> {
    decode_with(bytes, |upright| upright.picture)
}

/// The middle square of a picture, upright, on white where it is transparent, `size` × `size` pixels.
pub fn decode_square(bytes: &[u8], size: u32) -> Result<RgbImage, String> {
    decode_with(bytes, |DecodedImage { picture, .. }| {
        let side = picture.width().min(picture.height());
        let (x, y) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
        resize_region(&picture, [x, y, side, side], [size, size])
    })
}

/// The `part` of `picture`, x, y, width and height, resized (Lanczos) to `size`, a width and a height. What of the part is not in the
/// picture is left out.
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
