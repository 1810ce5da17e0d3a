//! A strip of a run's sample grids over time.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use image::{RgbImage, imageops};
use tiny_cats_export::{decode, text_size};

use super::canvas::{Align, Canvas, SCALE, TEXT_COLOR};
use crate::axis::steps_label;

/// The largest number of grids in a strip, not counting the newest.
const MAX_GRIDS: usize = 12;
/// The largest width of a row, in pixels.
const MAX_WIDTH: u32 = 1280;
const MAX_HEIGHT: u32 = 160;
const MARGIN: u32 = 6;
/// The largest file of a grid, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The first rows of a run's sample grids, one below the other; their number is bounded.
#[derive(Clone, Debug)]
pub struct Strip {
    folder: PathBuf,
    /// The rows in the strip, by their steps.
    rows: BTreeMap<u64, RgbImage>,
}

impl Strip {
    /// Creates a strip of the grids `step_00000100.png` in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), rows: BTreeMap::new() }
    }

    /// Renders the strip of all grids up to `step`; later grids are from before the run was resumed. `None` if there is none. Files that
    /// are not images are skipped.
    ///
    /// # Errors
    /// Returns errors of listing the folder; a missing folder is not an error.
    pub fn render(&mut self, step: u64) -> io::Result<Option<RgbImage>> {
        let mut steps = Vec::new();
        match fs::read_dir(&self.folder) {
            Ok(entries) => {
                for entry in entries {
                    steps.extend(step_of(&entry?.path()).filter(|s| *s <= step));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        steps.sort_unstable();
        let selected = select_steps(&steps);
        self.rows.retain(|step, _| selected.contains(step));
        for step in selected {
            if !self.rows.contains_key(&step)
                && let Some(row) = self.row(step)
            {
                self.rows.insert(step, row);
            }
        }
        let texts: Vec<String> = self.rows.keys().map(|step| steps_label(*step as f64)).collect();
        let Some(left) = texts.iter().map(|text| text_size(text, SCALE).0).max() else { return Ok(None) };
        let left = left + 3 * MARGIN;
        let width = self.rows.values().map(RgbImage::width).max().unwrap_or(0);
        let height: u32 = self.rows.values().map(|row| row.height() + MARGIN).sum();
        let mut canvas = Canvas::new(left + width + MARGIN, height + MARGIN, [0; 4]);
        let mut y = MARGIN;
        for (row, text) in self.rows.values().zip(&texts) {
            let middle =
                f64::from(y) + f64::from(row.height()) / 2.0 - f64::from(text_size(text, SCALE).1) / 2.0;
            canvas.text(text, f64::from(left - 2 * MARGIN), middle, Align::Right, TEXT_COLOR);
            imageops::replace(&mut canvas.image, row, i64::from(left), i64::from(y));
            y += row.height() + MARGIN;
        }
        Ok(Some(canvas.image))
    }

    /// Loads the first row of a grid, reduced to the largest size.
    fn row(&self, step: u64) -> Option<RgbImage> {
        let path = self.folder.join(format!("step_{step:08}.png"));
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let grid = decode::upright(&bytes).ok()?;
        let [top, height] = first_row(&grid)?;
        let scale =
            (f64::from(MAX_WIDTH) / f64::from(grid.width())).min(f64::from(MAX_HEIGHT) / f64::from(height));
        let size = |pixels: u32| ((f64::from(pixels) * scale.min(1.0)).round() as u32).max(1);
        Some(decode::resize_region(&grid, [0, top, grid.width(), height], [size(grid.width()), size(height)]))
    }
}

/// The step of a grid's file.
fn step_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix("step_")?.strip_suffix(".png")?;
    (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Selects every first, second, fourth or eighth … of sorted `steps`, to limit their number, and the last one. A selected step usually
/// stays selected as steps are added.
fn select_steps(steps: &[u64]) -> Vec<u64> {
    let mut stride = 1;
    while steps.len().div_ceil(stride) > MAX_GRIDS {
        stride *= 2;
    }
    let mut selected: Vec<u64> = steps.iter().copied().step_by(stride).collect();
    if selected.last() != steps.last() {
        selected.extend(steps.last());
    }
    selected
}

/// Top and height of the first row of images in a grid: the first lines that differ from the corner's color.
fn first_row(grid: &RgbImage) -> Option<[u32; 2]> {
    let background = *grid.get_pixel_checked(0, 0)?;
    let is_background = |y: &u32| (0..grid.width()).all(|x| *grid.get_pixel(x, *y) == background);
    let top = (0..grid.height()).find(|y| !is_background(y))?;
    let bottom = (top..grid.height()).find(is_background).unwrap_or(grid.height());
    Some([top, bottom - top])
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tiny_cats_export::{grid, write_png};

    use super::*;

    #[test]
    fn strips_have_bounded_size_and_include_the_first_and_last_grid() {
        let dir = tempfile::tempdir().unwrap();
        let mut strip = Strip::new(&dir.path().join("samples"));
        assert_eq!(strip.render(5).unwrap(), None);
        let selected_of = |n: u64| select_steps(&(1..=n).collect::<Vec<_>>());
        for n in 1..2000 {
            let selected = selected_of(n);
            assert!(selected.len() <= MAX_GRIDS + 1 && selected.len() >= (n as usize).min(MAX_GRIDS / 2));
            assert!(
                selected[0] == 1
                    && *selected.last().unwrap() == n
                    && selected.windows(2).all(|pair| pair[0] < pair[1])
            );
        }
        let mut strip = Strip::new(dir.path());
        let labels: Vec<String> = (0..3).map(|i| format!("class {i}")).collect();
        for step in 1..=30u8 {
            let images: Vec<_> =
                (0..6).map(|i| RgbImage::from_pixel(128, 128, Rgb([step, i * 20, 0]))).collect();
            let path = dir.path().join(format!("step_{:08}.png", u64::from(step) * 100));
            write_png(&path, &grid(&images, 3, Some(&labels))).unwrap();
        }
        for (name, text) in
            [("step_00000150.png", "not an image"), ("step_x.png", ""), ("step_00000160.png", "")]
        {
            fs::write(dir.path().join(name), text).unwrap();
        }
        // Step 3000 is from before the run was resumed.
        let image = strip.render(2900).unwrap().unwrap();
        let rows: Vec<u64> = strip.rows.keys().copied().collect();
        assert!(rows[0] == 100 && rows[rows.len() - 1] == 2900 && rows.len() <= MAX_GRIDS + 1, "{rows:?}");
        let mut y = MARGIN;
        for (step, row) in &strip.rows {
            assert_eq!(row.height(), 128, "the row of images without its labels");
            let at = image.get_pixel(image.width() - 2 * MARGIN - 20, y + 64);
            assert_eq!(at.0, [(step / 100) as u8, 40, 0]);
            y += row.height() + MARGIN;
        }
        assert!(image.width() < MAX_WIDTH + 200 && image.height() <= (MAX_HEIGHT + 2 * MARGIN) * 14);
    }
}
