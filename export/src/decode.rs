//! From the bytes of a file to a picture, trusting neither its name nor its header.

use std::{
    fs::File,
    io::{Cursor, Read},
    path::Path,
    sync::{Mutex, PoisonError},
};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage, metadata::Orientation};

use crate::resize::{Filter, resize};

/// Larger files are not read.
pub const MOST_BYTES: u64 = 64 << 20;
/// Pictures of more pixels are not decoded.
pub const MOST_PIXELS: u64 = 64_000_000;
/// Longer sides are not decoded.
pub const LONGEST_SIDE: u32 = 32_768;
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
    File::open(path).map_err(about)?.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(about)?;
    match bytes.len() as u64 {
        0 => Err("an empty file".to_string()),
        size if size > MOST_BYTES => Err(format!("more than {} MiB", MOST_BYTES >> 20)),
        _ => Ok(bytes),
    }
}

/// Opens `bytes` as what their content, not a name, says that they are, and checks the size that the header announces.
fn open(bytes: &[u8]) -> Result<impl ImageDecoder + '_, String> {
    let format = image::guess_format(bytes).map_err(|_| "not a picture".to_string())?;
    match format {
        ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP => {}
        other => return Err(format!("a {} picture; expected PNG, JPEG or WebP", name(other))),
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken(format, &e))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!("{width} x {height} pixels are too many; expected at most {MOST_PIXELS}"));
    }
    if width == 0 || height == 0 {
        return Err("a picture without pixels".to_string());
    }
    Ok(decoder)
}

fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("foreign")
}

/// One line about a picture that can't be decoded.
fn broken(format: ImageFormat, error: &image::ImageError) -> String {
    let reason = error.to_string();
    format!("a broken {} file: {}", name(format), reason.lines().next().unwrap_or_default())
}

/// Width and height of a picture, upright, if its header is sound and its end is there; a reason why not.
pub fn check(bytes: &[u8]) -> Result<[u32; 2], String> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    let format = image::guess_format(bytes).map_err(|_| "not a picture".to_string())?;
    let whole = match format {
        // Decoders fill the missing part of a JPEG file with grey: look for its end marker behind its last scan.
        ImageFormat::Jpeg => {
            let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
            last([0xff, 0xd9]) > last([0xff, 0xda])
        }
        ImageFormat::Png => bytes.windows(4).rev().take(1 << 16).any(|chunk| chunk == b"IEND"),
        _ => true,
    };
    if !whole {
        return Err(format!("a broken {} file: its end is missing", name(format)));
    }
    Ok(if turned(decoder.orientation().map_err(|e| broken(format, &e))?) {
        [height, width]
    } else {
        [width, height]
    })
}

/// Whether what is stored as a row is shown as a column.
fn turned(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

/// Decodes all of a picture, turns it upright, lays it on white where it is transparent, and hands it to `then`. Large ones are in memory
/// one at a time, so that many threads do not need many times the memory: `then` must not wait for other threads.
pub fn with_upright<T>(bytes: &[u8], then: impl FnOnce(RgbImage) -> T) -> Result<T, String> {
    static LARGE: Mutex<()> = Mutex::new(());
    let [width, height] = check(bytes)?;
    let large = u64::from(width) * u64::from(height) > LARGE_PIXELS;
    let _alone = large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let format = image::guess_format(bytes).map_err(|_| "not a picture".to_string())?;
    let mut decoder = open(bytes)?;
    let orientation = decoder.orientation().map_err(|e| broken(format, &e))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(format, &e))?;
    picture.apply_orientation(orientation);
    Ok(then(if picture.color().has_alpha() { on_white(picture) } else { picture.into_rgb8() }))
}

/// A picture, upright, on white where it is transparent.
pub fn upright(bytes: &[u8]) -> Result<RgbImage, String> {
    with_upright(bytes, |picture| picture)
}

/// The middle square of a picture, upright, on white where it is transparent, `size` × `size` pixels.
pub fn square(bytes: &[u8], size: u32) -> Result<RgbImage, String> {
    with_upright(bytes, |picture| {
        let side = picture.width().min(picture.height());
        let (x, y) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
        resized(&picture, [x, y, side, side], [size, size])
    })
}

/// The `part` of `picture`, x, y, width and height, resized (Lanczos) to `size`, a width and a height. What of the part is not in the
/// picture is left out.
pub fn resized(picture: &RgbImage, part: [u32; 4], size: [u32; 2]) -> RgbImage {
    resize(picture, part, size, Filter::Lanczos3)
}

fn on_white(picture: DynamicImage) -> RgbImage {
    let rgba = picture.into_rgba8();
    let over = |value: u8, alpha: u8| {
        ((u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
    };
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        image::Rgb([over(r, a), over(g, a), over(b, a)])
    })
}
