//! Contact sheets: many images in one, with labels.

use image::{Rgb, RgbImage, imageops};

use crate::font;

/// Space around each image, in pixels of the sheet.
const MARGIN: u32 = 6;
/// Minimum size of a displayed image, in pixels; smaller images are enlarged by an integer factor.
const MIN_DISPLAY_SIZE: u32 = 128;
const BACKGROUND: Rgb<u8> = Rgb([250, 249, 246]);
const TEXT_COLOR: Rgb<u8> = Rgb([40, 38, 36]);

/// Places `images` in rows of `columns`, each in a cell of the size of the largest. Small images are enlarged smoothly to at
/// least 128 px.
///
/// `labels`, one for each image (missing ones are empty), are drawn below the images; a label too long for its cell is cut. 0 columns
/// mean 1. Without images, the sheet has one empty cell.
pub fn grid(images: &[RgbImage], columns: usize, labels: Option<&[String]>) -> RgbImage {
    let columns = (columns.max(1)).min(images.len().max(1)) as u32;
    let rows = (images.len() as u32).div_ceil(columns);
    let largest = images.iter().map(|image| image.width().max(image.height())).max().unwrap_or(1).max(1);
    let cell = display_size(largest);
    let factor = cell / largest;
    let label = if labels.is_some() { font::HEIGHT + MARGIN / 2 } else { 0 };
    let (step_x, step_y) = (cell + MARGIN, cell + label + MARGIN);
    let mut sheet = RgbImage::from_pixel(MARGIN + columns * step_x, MARGIN + rows * step_y, BACKGROUND);
    for (i, image) in images.iter().enumerate() {
        let x = MARGIN + i as u32 % columns * step_x;
        let y = MARGIN + i as u32 / columns * step_y;
        let (w, h) = (image.width() * factor, image.height() * factor);
        let enlarged = imageops::resize(image, w, h, imageops::FilterType::CatmullRom);
        let (dx, dy) = ((cell - w) / 2, (cell - h) / 2);
        imageops::replace(&mut sheet, &enlarged, i64::from(x + dx), i64::from(y + dy));
        if let Some(text) = labels.and_then(|l| l.get(i)) {
            draw_label(&mut sheet, text, x - MARGIN / 2, y + cell + MARGIN / 2, cell + MARGIN);
        }
    }
    sheet
}

/// Returns the width and height at which [`grid`] shows squares of `size` pixels: a multiple of `size`, so that every pixel is
/// enlarged equally.
pub fn display_size(size: u32) -> u32 {
    let size = size.max(1);
    size * MIN_DISPLAY_SIZE.div_ceil(size)
}

/// Draws as much of `text` as fits, centered in the `width` pixels that begin at (`x`, `y`).
fn draw_label(sheet: &mut RgbImage, text: &str, x: u32, y: u32, width: u32) {
    let visible: String = text.chars().take((width / font::ADVANCE) as usize).collect();
    let start = x + (width - font::text_size(&visible, 1).0) / 2;
    font::draw_text(sheet, &visible, start, y, 1, TEXT_COLOR);
}

/// Converts `3 · size²` values in [−1, 1], in channel, row, column order, to an image of `size` × `size`. Values outside are
/// clamped; NaN and missing values are black.
pub fn to_rgb(values: &[f32], size: u32) -> RgbImage {
    let plane = size as usize * size as usize;
    RgbImage::from_fn(size, size, |x, y| {
        let index = y as usize * size as usize + x as usize;
        Rgb([0, 1, 2].map(|channel| {
            let value = values.get(channel * plane + index).copied().unwrap_or(-1.0);
            ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glyphs_are_distinct_and_leave_the_last_column_empty() {
        let bits = |c| (0..font::HEIGHT * 6).map(|i| font::is_set(c, i % 6, i / 6)).collect::<Vec<_>>();
        let glyphs: std::collections::HashSet<_> = (' '..='~').chain(['ü']).map(bits).collect();
        assert_eq!(glyphs.len(), 96);
        assert!(glyphs.iter().all(|g| g.iter().skip(5).step_by(6).all(|set| !set)), "a glyph fills the gap");
        assert_eq!(bits('ü'), bits('€'));
    }

    #[test]
    fn the_sheet_shows_every_image_and_labels_do_not_overlap_them() {
        // Left half dark, right half light: smooth enlargement changes neither far from the edge between them.
        let two_tone =
            |i: u8| RgbImage::from_fn(32, 32, move |x, _| Rgb([i * 30, if x < 16 { 20 } else { 200 }, 9]));
        let images: Vec<_> = (0..7).map(two_tone).collect();
        let labels: Vec<_> =
            (0..7).map(|i| format!("a label that is far too long for a cell, {i}")).collect();
        let sheet = grid(&images, 3, Some(&labels));
        let step = (128 + MARGIN, 128 + MARGIN + font::HEIGHT + MARGIN / 2);
        assert_eq!(sheet.dimensions(), (MARGIN + 3 * step.0, MARGIN + 3 * step.1));
        for (i, image) in (0u32..).zip(&images) {
            for (x, y, pixel) in image.enumerate_pixels().filter(|(x, ..)| !(12..20).contains(x)) {
                let position = (MARGIN + i % 3 * step.0 + x * 4 + 1, MARGIN + i / 3 * step.1 + y * 4 + 1);
                assert_eq!(sheet.get_pixel(position.0, position.1), pixel);
            }
        }
        let label_pixels = |sheet: &RgbImage| sheet.pixels().filter(|&&p| p == TEXT_COLOR).count();
        assert!(label_pixels(&sheet) > 7 * 50);
        assert_eq!(label_pixels(&grid(&images, 3, None)), 0);
    }

    #[test]
    fn unusual_inputs_give_a_sheet() {
        assert!(grid(&[], 0, None).width() > 0);
        let mixed = [RgbImage::new(0, 5), RgbImage::new(300, 20), RgbImage::new(1, 1)];
        assert!(grid(&mixed, 0, Some(&["one".into()])).height() > 900);
        assert_eq!(grid(&mixed, 50, None).width(), 3 * 306 + MARGIN);
    }

    #[test]
    fn values_are_rounded_to_bytes() {
        let values: Vec<f32> = (0..3 * 64).map(|i| i as f32 / 127.5 - 1.0).collect();
        let image = to_rgb(&values, 8);
        assert!(image.enumerate_pixels().all(|(x, y, p)| p.0 == [0, 64, 128].map(|c| (c + y * 8 + x) as u8)));
        assert_eq!(to_rgb(&[f32::NAN, 7.0, -7.0, 0.0], 2).as_raw()[..9], [0, 0, 0, 255, 0, 0, 0, 0, 0]);
    }
}
