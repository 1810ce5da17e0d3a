//! Decoding of large images at half their width and height, so that they need a quarter of the memory.

use std::io::Cursor;

use image::{GrayImage, ImageDecoder, RgbImage, buffer::ConvertBuffer, codecs::webp::WebPDecoder};

use super::{FULL_SIZE_PIXELS, MAX_SIDE, blend_with_white, jpeg::Completeness};

/// Maximum number of coefficient blocks, of 128 bytes each, that a decoder may keep in memory.
const MAX_BLOCKS: u64 = 10 << 20;

/// Decodes a JPEG image. For a progressive image, the decoder keeps all coefficients in memory.
pub(super) fn jpeg(bytes: &[u8], completeness: Completeness) -> Result<RgbImage, String> {
    match completeness {
        Completeness::Complete(blocks) if blocks > MAX_BLOCKS => {
            return Err("too many coefficient blocks for an image of its size".to_string());
        }
        Completeness::Complete(_) => {}
        Completeness::Truncated | Completeness::Unknown => return Err("its data are damaged".to_string()),
    }
    let to_message = |e: jpeg_decoder::Error| e.to_string();
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().map_err(to_message)?;
    let size = decoder.info().ok_or("it has no header")?;
    let (width, height) =
        decoder.scale(size.width.div_ceil(2), size.height.div_ceil(2)).map_err(to_message)?;
    let pixels = decoder.decode().map_err(to_message)?;
    let (width, height) = (width.into(), height.into());
    let image = match decoder.info().ok_or("it has no header")?.pixel_format {
        jpeg_decoder::PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels),
        jpeg_decoder::PixelFormat::CMYK32 => RgbImage::from_raw(width, height, from_cmyk(pixels)),
        jpeg_decoder::PixelFormat::L8 => {
            GrayImage::from_raw(width, height, pixels).map(|gray| gray.convert())
        }
        jpeg_decoder::PixelFormat::L16 => return Err("its pixels have 16 bits".to_string()),
    };
    image.ok_or_else(|| "pixels are missing".to_string())
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
    let to_message = |e: png::DecodingError| e.to_string();
    let limits = png::Limits { bytes: 64 << 20 };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(to_message)?;
    if reader.info().interlaced {
        return Err(format!("expected no interlacing above {FULL_SIZE_PIXELS} pixels"));
    }
    let (width, height) = reader.info().size();
    let channels = reader.output_color_type().0.samples();
    let mut half = HalfSizeImage::new(width, height);
    for _ in 0..height {
        let row = reader.next_row().map_err(to_message)?.ok_or("rows are missing")?;
        half.add_row(row.data(), channels);
    }
    Ok(half.image)
}

/// Decodes a WebP image. The decoder supports full size only.
pub(super) fn webp(bytes: &[u8]) -> Result<RgbImage, String> {
    let to_message = |e: image::ImageError| e.to_string();
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(to_message)?;
    if decoder.has_animation() {
        return Err(format!("expected no animation above {FULL_SIZE_PIXELS} pixels"));
    }
    let (width, height) = decoder.dimensions();
    let channels = usize::from(decoder.color_type().channel_count());
    let mut pixels = vec![0; width as usize * height as usize * channels];
    decoder.read_image(&mut pixels).map_err(to_message)?;
    let mut half = HalfSizeImage::new(width, height);
    for row in pixels.chunks_exact(width as usize * channels) {
        half.add_row(row, channels);
    }
    Ok(half.image)
}

/// An image that is reduced row by row: each pixel is the mean of 2 × 2 pixels, or of fewer at the edges.
struct HalfSizeImage {
    image: RgbImage,
    /// Sums over two rows.
    sums: Vec<u16>,
    height: u32,
    /// Number of rows received.
    rows: u32,
}

impl HalfSizeImage {
    /// Creates an empty image for a large image of `width` × `height` pixels.
    fn new(width: u32, height: u32) -> Self {
        debug_assert!(width <= MAX_SIDE && height <= MAX_SIDE);
        let image = RgbImage::new(width.div_ceil(2), height.div_ceil(2));
        Self { sums: vec![0; image.width() as usize * 3], image, height, rows: 0 }
    }

    /// Adds the next row, of gray, gray and alpha, RGB, or RGBA.
    fn add_row(&mut self, row: &[u8], channels: usize) {
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
        let is_pair = self.rows.is_multiple_of(2);
        if is_pair || self.rows == self.height {
            let count = if is_pair { 4 } else { 2 };
            let stride = self.sums.len();
            let start = (self.rows as usize).div_ceil(2) * stride - stride;
            let output = &mut self.image.as_flat_samples_mut().samples[start..start + stride];
            for (value, sum) in output.iter_mut().zip(&mut self.sums) {
                *value = ((*sum + count / 2) / count) as u8;
                *sum = 0;
            }
        }
    }
}
