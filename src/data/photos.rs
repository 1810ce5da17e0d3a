//! Photographs of any shape, decoded once and kept in memory, and the parts of them that a classifier is shown.

use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_export::resize_short_side;
use tiny_cats_models::random::{Purpose, Stream};

use super::{Colour, Dataset, Error, Level, Picture, Result, cache::spread, decode};

/// The pictures of a data set, each with its own shape.
pub struct Photos {
    pictures: Vec<RgbImage>,
    labels: Vec<u32>,
    paths: Vec<PathBuf>,
    /// The names of the classes, in the order of their labels.
    pub classes: Vec<String>,
    /// The fingerprint of the data set.
    pub fingerprint: String,
    /// What could not be decoded, from the data folder, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Which part of a photograph is shown, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Left and upper edge of the part, in pixels of the photograph.
    pub origin: [f32; 2],
    /// Width and height of the part, likewise.
    pub extent: [f32; 2],
    /// Whether it is mirrored.
    pub flip: bool,
    /// How its colours are changed.
    pub colour: Colour,
}

impl Photos {
    /// Decodes the pictures of `data`, turned upright, each resized (triangle filter, what PyTorch calls antialiased bilinear) so that
    /// its short side has `short` pixels. With a limit, that many of them, evenly spread. Pictures that break on the way are left out: see
    /// [`Photos::skipped`].
    ///
    /// # Errors
    /// When `short` is out of range (8 to 2048), or there is no picture that can be used.
    pub fn load(data: &Dataset, short: u32, limit: Option<usize>) -> Result<Self> {
        if !(8..=2048).contains(&short) {
            return Err(Error::OutOfRange { name: "short side", value: short.into(), low: 8, high: 2048 });
        }
        let chosen = spread(&data.files, limit);
        let decode = |file: &&Picture| {
            decode::with_upright(&data.read(file)?, |picture| resize_short_side(&picture, short))
        };
        let decoded: Vec<std::result::Result<RgbImage, String>> = chosen.par_iter().map(decode).collect();
        let (mut pictures, mut labels, mut paths, mut skipped) = Default::default();
        for (file, result) in chosen.into_iter().zip(decoded) {
            match result {
                Ok(picture) => {
                    Vec::push(&mut pictures, picture);
                    Vec::push(&mut labels, file.label);
                    Vec::push(&mut paths, file.path.clone());
                }
                Err(reason) => Vec::push(&mut skipped, (file.path.clone(), reason)),
            }
        }
        if pictures.is_empty() {
            return Err(Error::no_pictures(&data.root, &skipped));
        }
        let (classes, fingerprint) = (data.classes.clone(), data.fingerprint.clone());
        Ok(Self { pictures, labels, paths, classes, fingerprint, skipped })
    }

    /// How many photographs there are; never none.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The class of photograph `index`, which must be less than [`Photos::len`].
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// Where photograph `index` is, from the data folder.
    pub fn path(&self, index: usize) -> &Path {
        &self.paths[index]
    }

    /// Width and height of photograph `index`.
    pub fn dimensions(&self, index: usize) -> (u32, u32) {
        self.pictures[index].dimensions()
    }

    /// Writes what `view` shows of photograph `index` into the `3 · size²` values of `out`: channel, row, column, from −1 (black) to 1.
    /// Between pixels it is interpolated linearly.
    ///
    /// # Panics
    /// When there is no such photograph, or `out` has another length.
    pub fn fill(&self, index: usize, view: &View, size: usize, out: &mut [f32]) {
        assert_eq!(out.len(), 3 * size * size, "the place for a picture has the wrong size");
        let picture = &self.pictures[index];
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let columns = taps(view.origin[0], view.extent[0], size, width);
        let rows = taps(view.origin[1], view.extent[1], size, height);
        let pixels = picture.as_raw();
        for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
            for (line, &(top, bottom, down)) in plane.chunks_exact_mut(size).zip(&rows) {
                for (i, &(left, right, across)) in columns.iter().enumerate() {
                    let pixel = |x: usize, y: usize| f32::from(pixels[(y * width + x) * 3 + channel]);
                    let at = |y: usize| pixel(left, y) * (1.0 - across) + pixel(right, y) * across;
                    let value = at(top) * (1.0 - down) + at(bottom) * down;
                    line[if view.flip { size - 1 - i } else { i }] = value / 127.5 - 1.0;
                }
            }
        }
        view.colour.apply(out);
    }
}

/// For each of `size` places along a part of an axis of `len` pixels, the two pixels it is between and how near it is to the second.
fn taps(origin: f32, extent: f32, size: usize, len: usize) -> Vec<(usize, usize, f32)> {
    let last = len as f32 - 1.0;
    let place = |i: usize| (origin + (i as f32 + 0.5) * extent / size as f32 - 0.5).clamp(0.0, last);
    let tap = |place: f32| (place as usize, (place as usize + 1).min(len - 1), place.fract());
    (0..size).map(|i| tap(place(i))).collect()
}

impl View {
    /// The middle square of `side` pixels, unchanged, of a photograph of this width and height.
    pub fn middle((width, height): (u32, u32), side: u32) -> Self {
        let side = side.min(width).min(height);
        let origin = [width, height].map(|n| ((n - side) / 2) as f32);
        Self { origin, extent: [side as f32; 2], flip: false, colour: Colour::default() }
    }

    /// What is shown of a photograph of this width and height at `position` (of [`Order`](super::Order)); it depends on nothing else
    /// but the seed. [`Level::None`] shows the middle `side` pixels, [`Level::Basic`] mirrors half of them, [`Level::Medium`] shows
    /// instead a part of 30 to 100 % of the area with an aspect of 3:4 to 4:3 (arXiv 1409.4842), [`Level::Full`] changes its colours too.
    pub fn draw(level: Level, seed: u64, position: u64, (width, height): (u32, u32), side: u32) -> Self {
        const TRIES: usize = 10;
        let mut stream = Stream::new(seed, Purpose::Augment, position);
        let mut range = |low: f32, high: f32| low + (high - low) * stream.uniform() as f32;
        let mut view = Self::middle((width, height), side);
        if level == Level::None {
            return view;
        }
        view.flip = range(0.0, 1.0) <= 0.5;
        if level == Level::Basic {
            return view;
        }
        let (width, height) = (width as f32, height as f32);
        for _ in 0..TRIES {
            let area = width * height * range(0.3, 1.0);
            let aspect = range((0.75f32).ln(), (4.0f32 / 3.0).ln()).exp();
            let extent = [(area * aspect).sqrt(), (area / aspect).sqrt()];
            if extent[0] <= width && extent[1] <= height {
                view.origin = [range(0.0, width - extent[0]), range(0.0, height - extent[1])];
                view.extent = extent;
                break;
            }
        }
        if level == Level::Full {
            view.colour = Colour {
                brightness: range(-0.3, 0.3),
                contrast: range(0.7, 1.3),
                saturation: range(0.7, 1.3),
            };
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, imageops};

    fn photos(pictures: Vec<RgbImage>) -> Photos {
        let n = pictures.len();
        Photos {
            pictures,
            labels: vec![0; n],
            paths: vec![PathBuf::new(); n],
            classes: vec!["A".into()],
            fingerprint: String::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn the_middle_is_the_pixels_themselves() {
        let picture = RgbImage::from_fn(12, 8, |x, y| Rgb([(x * 20) as u8, (y * 30) as u8, 255]));
        let photos = photos(vec![picture.clone()]);
        let mut out = vec![0.0; 192];
        let view = View::middle((12, 8), 8);
        photos.fill(0, &view, 8, &mut out);
        let middle = imageops::crop_imm(&picture, 2, 0, 8, 8).to_image();
        assert_eq!(tiny_cats_export::to_rgb(&out, 8), middle);
        photos.fill(0, &View { flip: true, ..view }, 8, &mut out);
        assert_eq!(tiny_cats_export::to_rgb(&out, 8), imageops::flip_horizontal(&middle));
    }

    #[test]
    fn a_part_of_a_ramp_is_the_ramp_in_the_part() {
        let photos = photos(vec![RgbImage::from_fn(40, 20, |x, y| Rgb([(x * 6) as u8, (y * 12) as u8, 0]))]);
        let view = View { origin: [3.0, 2.0], extent: [30.0, 12.0], flip: false, colour: Colour::default() };
        let mut out = vec![0.0; 3 * 16 * 16];
        photos.fill(0, &view, 16, &mut out);
        for (i, value) in out[..256].iter().enumerate() {
            let place = 3.0 + ((i % 16) as f32 + 0.5) * 30.0 / 16.0 - 0.5;
            assert!((value - (place * 6.0 / 127.5 - 1.0)).abs() < 1e-5, "{i}");
        }
        for (i, value) in out[256..512].iter().enumerate() {
            let place = 2.0 + ((i / 16) as f32 + 0.5) * 12.0 / 16.0 - 0.5;
            assert!((value - (place * 12.0 / 127.5 - 1.0)).abs() < 1e-5, "{i}");
        }
    }

    #[test]
    fn a_view_lies_in_the_photograph_whatever_its_shape() {
        for (i, shape) in [(160, 240), (240, 160), (16, 1000), (1000, 16), (8, 8)].into_iter().enumerate() {
            let draw = |level, p| View::draw(level, i as u64, p, shape, 128);
            for position in 0..300 {
                let full = draw(Level::Full, position);
                assert_eq!(full, draw(Level::Full, position));
                for (axis, len) in [shape.0, shape.1].into_iter().enumerate() {
                    let end = full.origin[axis] + full.extent[axis];
                    assert!(full.origin[axis] >= 0.0 && end <= len as f32 + 1e-3 && full.extent[axis] > 0.0);
                }
                let medium = draw(Level::Medium, position);
                assert_eq!(View { colour: full.colour, ..medium }, full);
                assert_eq!(draw(Level::Basic, position).flip, full.flip);
                assert_eq!(draw(Level::None, position), View::middle(shape, 128));
            }
        }
    }
}
