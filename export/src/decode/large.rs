//! Decoding of large images at half their width and height, so that they need a quarter of the memory.

use std::io::Cursor;

use image::{GrayImage, ImageDecoder, RgbImage, buffer::ConvertBuffer, codecs::webp::WebPDecoder};

use super::{MAX_SIDE, blend_with_white, jpeg::Completeness};

/// Maximum number of blocks of coefficients, of 128 bytes each, that a decoder may keep.
const MAX_BLOCKS: u64 = 10 << 20;

/// Decodes a JPEG image. Decoders keep all coefficients of a progressive one.
pub(super) fn jpeg(bytes: &[u8], found: Completeness) -> Result<RgbImage, String> {
    match found {
        Completeness::Complete(blocks) if blocks > MAX_BLOCKS => {
            return Err("too many blocks of coefficients for a picture of its size".to_string());
        }
        Completeness::Complete(_) => {}
        Completeness::Cut | Completeness::Unknown => return Err("its data are damaged".to_string()),
    }
    let failed = |e: jpeg_decoder::Error| e.to_string();
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().map_err(failed)?;
    let size = decoder.info().ok_or("it has no header")?;
    let (width, height) = decoder.scale(size.width.div_ceil(2), size.height.div_ceil(2)).map_err(failed)?;
    let pixels = decoder.decode().map_err(failed)?;
    let (width, height) = (width.into(), height.into());
    let picture = match decoder.info().ok_or("it has no header")?.pixel_format {
        jpeg_decoder::PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels),
        jpeg_decoder::PixelFormat::CMYK32 => RgbImage::from_raw(width, height, from_cmyk(pixels)),
        jpeg_decoder::PixelFormat::L8 => {
            GrayImage::from_raw(width, height, pixels).map(|gray| gray.convert())
        }
        jpeg_decoder::PixelFormat::L16 => return Err("its pixels have 16 bits".to_string()),
    };
    picture.ok_or_else(|| "pixels are missing".to_string())
}

/// Converts CMYK to RGB.
fn from_cmyk(mut pixels: Vec<u8>) -> Vec<u8> {
    let count = pixels.len() / 4;
    for i in 0..count {
        let black = 255 - u32::from(pixels[4 * i + 3]);
        for channel in 0..3 {
            let value = (255 - u32::from(pixels[4 * i + channel])) * black;
            pixels[3 * i + channel] = ((value + 127) / 255) as u8;
        }
    }
    pixels.truncate(3 * count);
    pixels
}

/// Decodes a PNG image, row by row.
pub(super) fn png(bytes: &[u8]) -> Result<RgbImage, String> {
    let failed = |e: png::DecodingError| e.to_string();
    let limits = png::Limits { bytes: 64 << 20 };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(failed)?;
    if reader.info().interlaced {
        return Err("an interlaced picture of so many pixels".to_string());
    }
    let (width, height) = reader.info().size();
    let channels = reader.output_color_type().0.samples();
    let mut half = HalfSizeImage::new(width, height);
    for _ in 0..height {
        let row = reader.next_row().map_err(failed)?.ok_or("rows are missing")?;
        half.row(row.data(), channels);
    }
    Ok(half.picture)
}

/// Decodes a WebP image, which must be decoded at its full size.
pub(super) fn webp(bytes: &[u8]) -> Result<RgbImage, String> {
    let failed = |e: image::ImageError| e.to_string();
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    if decoder.has_animation() {
        return Err("an animated picture of so many pixels".to_string());
    }
    let (width, height) = decoder.dimensions();
    let channels = usize::from(decoder.color_type().channel_count());
    let mut pixels = vec![0; width as usize * height as usize * channels];
    decoder.read_image(&mut pixels).map_err(failed)?;
    let mut half = HalfSizeImage::new(width, height);
    for row in pixels.chunks_exact(width as usize * channels) {
        half.row(row, channels);
    }
    Ok(half.picture)
}

/// An image that is reduced while its rows arrive: each pixel is the mean of two by two, or of as many of them as exist.
struct HalfSizeImage {
    picture: RgbImage,
    /// Sums over two rows.
    sums: Vec<u16>,
    height: u32,
    /// Number of rows received.
    rows: u32,
}

impl HalfSizeImage {
    /// Creates an empty image; `width` and `height` are those of the large image.
    fn new(width: u32, height: u32) -> Self {
        debug_assert!(width <= MAX_SIDE && height <= MAX_SIDE);
        let picture = RgbImage::new(width.div_ceil(2), height.div_ceil(2));
        Self { sums: vec![0; picture.width() as usize * 3], picture, height, rows: 0 }
    }

    /// Adds the next row, of gray, gray and alpha, RGB, or RGBA.
    fn row(&mut self, row: &[u8], channels: usize) {
        let pairs = row.chunks(2 * channels);
        for (pair, sums) in pairs.zip(self.sums.chunks_exact_mut(3)) {
            let first = &pair[..channels];
            let second = pair.get(channels..).filter(|second| second.len() == channels).unwrap_or(first);
            for pixel in [first, second] {
                let rgb = match *pixel {
                    [gray] => [gray; 3],
                    [gray, alpha] => [blend_with_white(gray, alpha); 3],
                    [red, green, blue] => [red, green, blue],
                    [red, green, blue, alpha] => {
                        [red, green, blue].map(|value| blend_with_white(value, alpha))
                    }
                    _ => [0; 3],
                };
                sums.iter_mut().zip(rgb).for_each(|(sum, value)| *sum += u16::from(value));
            }
        }
        self.rows += 1;
        let pair = self.rows.is_multiple_of(2);
        if pair || self.rows == self.height {
            let count = if pair { 4 } else { 2 };
            let stride = self.sums.len();
            let start = (self.rows as usize).div_ceil(2) * stride - stride;
            let out = &mut self.picture.as_flat_samples_mut().samples[start..start + stride];
            for (value, sum) in out.iter_mut().zip(&mut self.sums) {
                *value = ((*sum + count / 2) / count) as u8;
                *sum = 0;
            }
        }
    }
}
