//! All pictures of a data set, decoded once and kept in memory.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Augmentation, Dataset, Error, Picture, Result, decode};

/// The pictures of a data set as squares of one size.
pub struct Images {
    size: u32,
    /// Row, column, channel; one picture after the other.
    pixels: Vec<u8>,
    labels: Vec<u32>,
    paths: Vec<PathBuf>,
    /// The names of the classes, in the order of their labels.
    pub classes: Vec<String>,
    /// The fingerprint of the data set.
    pub fingerprint: String,
    /// What could not be decoded, from the data folder, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

impl Images {
    /// Decodes the pictures of `data`, turned upright, the middle square of each resized (Lanczos) to `size` × `size`, 8 to 1024.
    /// With a limit, that many of them, evenly spread. Pictures that break on the way are left out: see [`Images::skipped`].
    ///
    /// # Errors
    /// When `size` is out of range, memory is too small, or no picture is left.
    pub fn load(data: &Dataset, size: u32, limit: Option<usize>) -> Result<Self> {
        if !(8..=1024).contains(&size) {
            return Err(Error::OutOfRange { name: "image size", value: size.into(), low: 8, high: 1024 });
        }
        let chosen = spread(&data.files, limit);
        let count = chosen.len();
        let bytes = size as usize * size as usize * 3;
        let mut pixels: Vec<u8> = Vec::new();
        let memory = || Error::Memory { count, size };
        pixels.try_reserve_exact(count.checked_mul(bytes).ok_or_else(memory)?).map_err(|_| memory())?;
        pixels.resize(count * bytes, 0);

        let decoded: Vec<_> = (pixels.par_chunks_exact_mut(bytes).zip(&chosen))
            .map(|(place, picture)| {
                let square = decode::square(&data.read(picture)?, size)?;
                place.copy_from_slice(&square);
                Ok::<_, String>(())
            })
            .collect();

        let (mut labels, mut paths, mut skipped) = (Vec::with_capacity(count), Vec::new(), Vec::new());
        for (from, (picture, result)) in chosen.into_iter().zip(decoded).enumerate() {
            match result {
                Ok(()) => {
                    let to = labels.len();
                    pixels.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
                    labels.push(picture.label);
                    paths.push(picture.path.clone());
                }
                Err(reason) => skipped.push((picture.path.clone(), reason)),
            }
        }
        if labels.is_empty() {
            return Err(Error::no_pictures(&data.root, &skipped));
        }
        pixels.truncate(labels.len() * bytes);
        let (classes, fingerprint) = (data.classes.clone(), data.fingerprint.clone());
        Ok(Self { size, pixels, labels, paths, classes, fingerprint, skipped })
    }

    /// How many pictures there are; never none.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Width and height of each picture.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The class of picture `index`, which must be less than [`Images::len`].
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// Where picture `index` is, from the data folder.
    pub fn path(&self, index: usize) -> &Path {
        &self.paths[index]
    }

    /// The labels of all pictures.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The bytes of picture `index`, in row, column, channel order.
    fn bytes(&self, index: usize) -> &[u8] {
        let bytes = self.size as usize * self.size as usize * 3;
        &self.pixels[index * bytes..(index + 1) * bytes]
    }

    /// Writes picture `index`, mirrored if `flip`, into the `3 · size²` values of `out`: channel, row, column, from −1 (black) to 1.
    ///
    /// # Panics
    /// When there is no such picture, or `out` has another length.
    pub fn fill(&self, index: usize, flip: bool, out: &mut [f32]) {
        let (side, bytes) = (self.size as usize, self.bytes(index));
        assert_eq!(out.len(), bytes.len(), "the place for a picture has the wrong size");
        for (channel, plane) in out.chunks_exact_mut(side * side).enumerate() {
            for (row, line) in plane.chunks_exact_mut(side).enumerate() {
                let from = bytes[row * side * 3..(row + 1) * side * 3].iter().skip(channel).step_by(3);
                let values = from.map(|&byte| f32::from(byte) / 127.5 - 1.0);
                if flip {
                    line.iter_mut().rev().zip(values).for_each(|(place, value)| *place = value);
                } else {
                    line.iter_mut().zip(values).for_each(|(place, value)| *place = value);
                }
            }
        }
    }

    /// Like [`Images::fill`], with the picture changed by `augmentation`.
    ///
    /// # Panics
    /// When there is no such picture, or `out` has another length.
    pub fn fill_augmented(&self, index: usize, augmentation: &Augmentation, out: &mut [f32]) {
        self.fill(index, augmentation.flip, out);
        augmentation.apply(self.size as usize, out);
    }
}

/// All files, or as many as `limit` says, evenly spread; at least one where there is one.
pub(crate) fn spread(files: &[Picture], limit: Option<usize>) -> Vec<&Picture> {
    let all = files.len();
    let count = limit.map_or(all, |limit| limit.max(1).min(all));
    (0..count).map(|i| &files[i * all / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Level;
    use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, Rgba, RgbaImage, codecs::jpeg::JpegEncoder};

    fn folder(pictures: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Dataset) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("A")).unwrap();
        for (name, bytes) in pictures {
            std::fs::write(dir.path().join("A").join(name), bytes).unwrap();
        }
        let data = Dataset::open(dir.path()).unwrap();
        (dir, data)
    }

    fn png(picture: impl Into<image::DynamicImage>) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn values_are_those_of_the_pixels_in_channel_row_column_order() {
        let picture = RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 30) as u8, (y * 30) as u8, 255]));
        let (_dir, data) = folder(&[("a.png", png(picture.clone()))]);
        let images = Images::load(&data, 8, None).unwrap();
        let (mut plain, mut flipped) = (vec![0.0; 192], vec![0.0; 192]);
        images.fill(0, false, &mut plain);
        images.fill(0, true, &mut flipped);
        for (x, y, pixel) in picture.enumerate_pixels() {
            for channel in 0..3 {
                let at = |x: u32| channel * 64 + (y * 8 + x) as usize;
                assert_eq!(plain[at(x)], f32::from(pixel[channel]) / 127.5 - 1.0);
                assert_eq!(plain[at(x)], flipped[at(7 - x)]);
            }
        }
        assert_eq!(tiny_cats_export::to_rgb(&plain, 8), picture);
        let none = Augmentation::draw(Level::None, 0, 0);
        images.fill_augmented(0, &none, &mut flipped);
        assert_eq!(plain, flipped);
    }

    #[test]
    fn pictures_are_turned_upright_cropped_to_the_middle_and_laid_on_white() {
        // Stored lying: its top is red, and orientation 6 says that its left side is the top.
        let lying =
            RgbImage::from_fn(16, 32, |_, y| if y < 16 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) });
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 100);
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        encoder.set_exif_metadata(exif).unwrap();
        encoder.write_image(&lying, 16, 32, ExtendedColorType::Rgb8).unwrap();
        let clear = RgbaImage::from_fn(32, 8, |x, _| {
            if (12..20).contains(&x) { Rgba([10, 20, 30, 0]) } else { Rgba([0, 0, 0, 255]) }
        });
        let (_dir, data) = folder(&[("a.jpg", jpeg), ("b.png", png(clear))]);
        let images = Images::load(&data, 8, None).unwrap();
        let mut out = vec![0.0; 192];
        images.fill(0, false, &mut out);
        // Turned clockwise, what was at the top is at the right.
        assert!(out[..64].chunks(8).all(|row| row[0] < -0.9 && row[7] > 0.9), "{:?}", &out[..64]);
        images.fill(1, false, &mut out);
        assert!(out.iter().all(|&value| value == 1.0));
    }

    #[test]
    fn a_limit_takes_pictures_from_all_over() {
        let pictures: Vec<_> = (0..10u8).map(|i| RgbImage::from_pixel(8, 8, Rgb([i * 25; 3]))).collect();
        let named: Vec<_> = pictures.iter().map(|p| (p.get_pixel(0, 0)[0], png(p.clone()))).collect();
        let named: Vec<_> = named.iter().map(|(v, bytes)| (format!("{v:03}.png"), bytes.clone())).collect();
        let named: Vec<_> = named.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let (_dir, data) = folder(&named);
        for (limit, expected) in [(0, vec![0]), (2, vec![0, 125]), (5, vec![0, 50, 100, 150, 200])] {
            let images = Images::load(&data, 8, Some(limit)).unwrap();
            let first: Vec<u8> = (0..images.len()).map(|i| images.bytes(i)[0]).collect();
            assert_eq!(first, expected);
        }
        assert_eq!(Images::load(&data, 8, Some(99)).unwrap().len(), 10);
        assert!(Images::load(&data, 7, None).is_err());
    }
}
