//! Statistics and a contact sheet of a data set.

use std::collections::HashMap;

use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use tiny_cats_export::{decode, grid};

use super::{Dataset, Error, ImageFile, Result, scan::name};

/// Images of a class on a contact sheet.
const COLUMNS: usize = 8;
/// The largest number of classes on a contact sheet.
const MAX_ROWS: usize = 64;

/// The statistics of a data set.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The identity of the data.
    pub fingerprint: String,
    /// The classes, in the order of their labels.
    pub classes: Vec<ClassCount>,
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// Total size of all files, in bytes.
    pub bytes: u64,
    /// The images' shorter sides, in pixels.
    pub short_side: ValueRange,
    /// The images' aspect ratios, width divided by height.
    pub aspect: ValueRange,
    /// The mean of red, green and blue, from 0 (black) to 1. Each image has the same weight, regardless of its size.
    pub mean: [f64; 3],
    /// The standard deviation of red, green and blue, with the same weights.
    pub std: [f64; 3],
    /// Identical files in several classes. Those in one class are not counted as images, but are in `skipped`. An index by an earlier
    /// version may have them.
    pub duplicates: Vec<Vec<String>>,
    /// The skipped files, and the reasons.
    pub skipped: Vec<(String, String)>,
}

/// The number of a class's images in each part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The name of the class.
    pub name: String,
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    /// Test images.
    pub test: usize,
}

/// The minimum, median and maximum of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValueRange {
    /// The minimum.
    pub min: f64,
    /// The median; for an even number of values, the larger of the two in the middle.
    pub median: f64,
    /// The maximum.
    pub max: f64,
}

impl ValueRange {
    /// The range of `values`; `None` if there are none.
    fn from_values(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Some(Self { min: *values.first()?, median: values[values.len() / 2], max: *values.last()? })
    }
}

impl Dataset {
    /// The number of images of each class in each part, in the order of their labels.
    pub fn counts(&self) -> Vec<ClassCount> {
        let mut counts = vec![[0; 3]; self.classes.len()];
        for image in &self.files {
            counts[image.label as usize][image.split as usize] += 1;
        }
        let named = self.classes.iter().cloned().zip(counts);
        named.map(|(name, [train, val, test])| ClassCount { name, train, val, test }).collect()
    }

    /// Groups of images with identical files, in the order of the first of each.
    pub fn duplicates(&self) -> Vec<Vec<&ImageFile>> {
        let mut group_indexes: HashMap<[u8; 32], usize> = HashMap::new();
        let mut groups: Vec<Vec<&ImageFile>> = Vec::new();
        for image in &self.files {
            let group_index = *group_indexes.entry(image.sha256).or_insert(groups.len());
            if group_index == groups.len() {
                groups.push(Vec::new());
            }
            groups[group_index].push(image);
        }
        groups.retain(|group| group.len() > 1);
        groups
    }

    /// A line for each image with duplicates, which lists its files: in several classes or, by an index of an earlier version, in one.
    pub fn duplicate_lines(&self) -> Vec<String> {
        let line = |group: Vec<&ImageFile>| {
            let files: Vec<String> =
                group.iter().map(|image| format!("{} ({})", name(&image.path), image.split)).collect();
            let mut labels: Vec<u32> = group.iter().map(|image| image.label).collect();
            labels.dedup();
            let (location, hint) = match labels.len() {
                1 => ("twice in the index", "; run `tiny-cats data index` again"),
                2 => ("in two classes", ""),
                _ => ("in several classes", ""),
            };
            format!("the same image {location}: {}{hint}", files.join(", "))
        };
        self.duplicates().into_iter().map(line).collect()
    }

    /// Decodes all images and computes their statistics. Images that cannot be decoded are in [`Stats::skipped`] and are not counted.
    /// `progress` is called from several threads, after each image, with the total number of images.
    ///
    /// # Errors
    /// If no image can be decoded.
    pub fn stats(mut self, progress: impl Fn(u64) + Sync) -> Result<Stats> {
        let all = self.files.len() as u64;
        let moments: Vec<_> = (self.files.par_iter())
            .map(|image| {
                let moments = self
                    .read(image)
                    .and_then(|bytes| decode::decode_with(&bytes, |upright| moments(&upright.image)));
                progress(all);
                moments
            })
            .collect();
        let (mut files, mut decoded) = (Vec::new(), Vec::new());
        for (image, moments) in std::mem::take(&mut self.files).into_iter().zip(moments) {
            match moments {
                Ok(moments) => {
                    decoded.push(moments);
                    files.push(image);
                }
                Err(reason) => self.skipped.push((image.path, reason)),
            }
        }
        self.files = files;
        let average = |f: fn(&[[f64; 2]; 3]) -> [f64; 3]| {
            let sum =
                decoded.iter().map(f).fold([0.0; 3], |sum, image| std::array::from_fn(|c| sum[c] + image[c]));
            sum.map(|sum| sum / decoded.len() as f64)
        };
        let (mean, square) = (average(|m| m.map(|[mean, _]| mean)), average(|m| m.map(|[_, square]| square)));
        let sides = self.files.iter().map(|p| f64::from(p.size[0].min(p.size[1])));
        let aspects = self.files.iter().map(|p| f64::from(p.size[0]) / f64::from(p.size[1]));
        let (Some(short_side), Some(aspect)) =
            (ValueRange::from_values(sides), ValueRange::from_values(aspects))
        else {
            return Err(Error::no_images(&self.root, &self.skipped));
        };
        Ok(Stats {
            classes: self.counts(),
            images: self.files.len(),
            bytes: self.files.iter().map(|image| image.bytes).sum(),
            short_side,
            aspect,
            mean,
            std: std::array::from_fn(|c| (square[c] - mean[c] * mean[c]).max(0.0).sqrt()),
            duplicates: (self.duplicates().into_iter())
                .map(|group| group.into_iter().map(|image| name(&image.path)).collect())
                .collect(),
            skipped: self.skipped.iter().map(|(path, reason)| (name(path), reason.clone())).collect(),
            fingerprint: self.fingerprint,
        })
    }

    /// Makes a contact sheet: a row of evenly spaced images of each class, the middle square of each with `size` × `size` pixels. It shows
    /// at most 64 classes; images that cannot be decoded are left blank.
    pub fn sheet(&self, size: u32) -> RgbImage {
        let rows: Vec<&[ImageFile]> = self.files.chunk_by(|a, b| a.label == b.label).take(MAX_ROWS).collect();
        let selected: Vec<Option<&ImageFile>> = (rows.iter())
            .flat_map(|row| {
                let shown = row.len().min(COLUMNS);
                (0..COLUMNS).map(move |i| (i < shown).then(|| &row[i * row.len() / shown]))
            })
            .collect();
        let images: Vec<RgbImage> = (selected.par_iter())
            .map(|image| {
                image
                    .and_then(|image| decode::decode_square(&self.read(image).ok()?, size).ok())
                    .unwrap_or_default()
            })
            .collect();
        let label =
            |image: &Option<&ImageFile>| image.map_or("", |p| &self.classes[p.label as usize]).to_string();
        let labels: Vec<String> = selected.iter().map(label).collect();
        grid(&images, COLUMNS, Some(&labels))
    }
}

/// The mean of each channel's values, from 0 to 1, and of their squares.
fn moments(image: &RgbImage) -> [[f64; 2]; 3] {
    let mut sums = [[0u64; 2]; 3];
    for pixel in image.pixels() {
        for (sum, value) in sums.iter_mut().zip(pixel.0.map(u64::from)) {
            sum[0] += value;
            sum[1] += value * value;
        }
    }
    let pixels = image.width() as f64 * image.height() as f64;
    sums.map(|[sum, squares]| [sum as f64 / 255.0 / pixels, squares as f64 / (255.0 * 255.0) / pixels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use std::path::Path;

    fn put(root: &Path, name: &str, image: &RgbImage) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    }

    #[test]
    fn statistics_match_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let two_colors = RgbImage::from_fn(40, 20, |x, _| Rgb([if x < 20 { 0 } else { 255 }, 51, 0]));
        put(dir.path(), "A/1.png", &two_colors);
        put(dir.path(), "A/2.png", &RgbImage::from_pixel(10, 30, Rgb([255, 102, 0])));
        put(dir.path(), "A/3.png", &RgbImage::from_pixel(8, 8, Rgb([0, 153, 0])));
        put(dir.path(), "B/1.png", &two_colors);
        let mut broken = std::fs::read(dir.path().join("A/1.png")).unwrap();
        let middle = broken.len() / 2;
        broken[middle..middle + 8].fill(0);
        std::fs::write(dir.path().join("B/2.png"), broken).unwrap();
        let stats = Dataset::open(dir.path()).unwrap().stats(|all| assert_eq!(all, 5)).unwrap();
        assert_eq!((stats.images, stats.skipped.len()), (4, 1));
        assert_eq!(stats.classes[0], ClassCount { name: "A".into(), train: 1, val: 1, test: 1 });
        assert_eq!(stats.short_side, ValueRange { min: 8.0, median: 20.0, max: 20.0 });
        assert_eq!(stats.aspect, ValueRange { min: 1.0 / 3.0, median: 2.0, max: 2.0 });
        assert_eq!(stats.duplicates, [["A/1.png", "B/1.png"]]);
        let is_close = |a: [f64; 3], b: [f64; 3]| a.into_iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(is_close(stats.mean, [0.5, 0.35, 0.0]), "{:?}", stats.mean);
        assert!(
            is_close(
                stats.std,
                [0.5, f64::sqrt((0.2f64 * 0.2 * 2.0 + 0.4 * 0.4 + 0.6 * 0.6) / 4.0 - 0.35 * 0.35), 0.0]
            ),
            "{:?}",
            stats.std
        );
    }

    #[test]
    fn the_contact_sheet_has_one_row_per_class() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20u8 {
            put(
                dir.path(),
                &format!("A/{number:02}.png"),
                &RgbImage::from_pixel(8, 8, Rgb([number * 12, 0, 0])),
            );
        }
        put(dir.path(), "B/1.png", &RgbImage::from_pixel(8, 8, Rgb([0, 0, 255])));
        let sheet = Dataset::open(dir.path()).unwrap().sheet(16);
        let middles = |row: u32| -> Vec<Rgb<u8>> {
            let step = sheet.width() / COLUMNS as u32;
            (0..COLUMNS as u32)
                .map(|i| *sheet.get_pixel(i * step + step / 2, row * sheet.height() / 2 + step / 2))
                .collect()
        };
        let reds: Vec<u8> = middles(0).into_iter().map(|pixel| pixel[0]).collect();
        assert_eq!(reds, [0, 24, 60, 84, 120, 144, 180, 204]);
        let second = middles(1);
        assert_eq!(second[0], Rgb([0, 0, 255]));
        assert!(second[1..].iter().all(|pixel| *pixel == second[1] && pixel[0] > 200), "{second:?}");
    }
}
