//! Confusion matrices of classifiers.

use std::fmt;

use image::{Rgb, RgbImage, imageops};
use serde::Serialize;
use tiny_cats_export::{draw_text, text_size};

use super::wilson_interval;

/// The number of images of each true class by predicted class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The names of the classes, in the order of their labels.
    pub classes: Vec<String>,
    /// One row for each true class, with the number of its images for each predicted class.
    pub counts: Vec<Vec<u32>>,
}

impl Confusion {
    /// Creates an empty matrix.
    pub fn new(classes: &[String]) -> Self {
        Self { classes: classes.to_vec(), counts: vec![vec![0; classes.len()]; classes.len()] }
    }

    /// Adds an image.
    ///
    /// # Panics
    /// If a label is not less than the number of classes.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        self.counts[truth][predicted] += 1;
    }

    /// The number of images.
    pub fn total(&self) -> u32 {
        self.counts.iter().flatten().sum()
    }

    /// The number of correctly classified images.
    pub fn correct(&self) -> u32 {
        (0..self.classes.len()).map(|i| self.counts[i][i]).sum()
    }

    /// The fraction of correctly classified images; 0 if there are none.
    pub fn accuracy(&self) -> f64 {
        share(self.correct(), self.total())
    }

    /// The 95 % interval of the accuracy (Wilson 1927), which also holds for few images.
    pub fn interval(&self) -> [f64; 2] {
        wilson_interval(self.correct(), self.total())
    }

    /// The fraction of a class's images that are predicted as that class; `None` if it has no images.
    pub fn recall(&self, class: usize) -> Option<f64> {
        let total = self.counts[class].iter().sum();
        (total > 0).then(|| share(self.counts[class][class], total))
    }

    /// The fraction of the images predicted as a class that are of that class; `None` if there are none.
    pub fn precision(&self, class: usize) -> Option<f64> {
        let total = self.counts.iter().map(|row| row[class]).sum();
        (total > 0).then(|| share(self.counts[class][class], total))
    }

    /// The mean of the classes' recalls, in which each class has the same weight.
    pub fn mean_recall(&self) -> f64 {
        let recalls: Vec<f64> = (0..self.classes.len()).filter_map(|i| self.recall(i)).collect();
        recalls.iter().sum::<f64>() / recalls.len().max(1) as f64
    }

    /// Renders the matrix: a row for each true class, darker for larger fractions of its images.
    pub fn to_image(&self) -> RgbImage {
        const CELL: u32 = 44;
        const SPACE: u32 = 10;
        const SCALE: u32 = 2;
        const BACKGROUND: [f32; 3] = [250.0, 249.0, 246.0];
        const FULL: [f32; 3] = [24.0, 66.0, 112.0];
        const TEXT_COLOR: Rgb<u8> = Rgb([40, 38, 36]);
        const LIGHT: Rgb<u8> = Rgb([250, 249, 246]);
        let names: Vec<String> = self.classes.iter().map(|name| name.replace('_', " ")).collect();
        let longest = names.iter().map(|name| text_size(name, SCALE).0).max().unwrap_or(0);
        let n = self.classes.len() as u32;
        let left = longest + 2 * SPACE;
        let side = left + n * CELL + SPACE;
        let mut sheet = RgbImage::from_pixel(side, side, Rgb(BACKGROUND.map(|v| v as u8)));
        let height = text_size("", SCALE).1;
        for (i, name) in names.iter().enumerate() {
            let middle = left + i as u32 * CELL + (CELL - height) / 2;
            draw_text(&mut sheet, name, left - SPACE - text_size(name, SCALE).0, middle, SCALE, TEXT_COLOR);
            let mut rotated = RgbImage::from_pixel(
                text_size(name, SCALE).0.max(1),
                height,
                Rgb(BACKGROUND.map(|v| v as u8)),
            );
            draw_text(&mut rotated, name, 0, 0, SCALE, TEXT_COLOR);
            let rotated = imageops::rotate270(&rotated);
            let top = left - SPACE - rotated.height().min(left - SPACE);
            imageops::replace(&mut sheet, &rotated, i64::from(middle), i64::from(top));
        }
        for (truth, row) in self.counts.iter().enumerate() {
            let total: u32 = row.iter().sum();
            for (predicted, &count) in row.iter().enumerate() {
                let fraction = share(count, total) as f32;
                let color = [0, 1, 2].map(|c| (BACKGROUND[c] + (FULL[c] - BACKGROUND[c]) * fraction) as u8);
                let (x, y) = (left + predicted as u32 * CELL, left + truth as u32 * CELL);
                for (dx, dy) in (0..CELL - 1).flat_map(|dx| (0..CELL - 1).map(move |dy| (dx, dy))) {
                    sheet.put_pixel(x + dx, y + dy, Rgb(color));
                }
                let text = if count > 0 { count.to_string() } else { String::new() };
                let (w, h) = text_size(&text, SCALE);
                let ink = if fraction > 0.5 { LIGHT } else { TEXT_COLOR };
                draw_text(
                    &mut sheet,
                    &text,
                    x + (CELL.saturating_sub(w)) / 2,
                    y + (CELL - h) / 2,
                    SCALE,
                    ink,
                );
            }
        }
        sheet
    }
}

fn share(count: u32, total: u32) -> f64 {
    f64::from(count) / f64::from(total.max(1))
}

impl fmt::Display for Confusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{:<width$}      images  recall  precision", "class")?;
        let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.1} %", 100.0 * s));
        for (i, name) in self.classes.iter().enumerate() {
            let total: u32 = self.counts[i].iter().sum();
            let (recall, precision) = (percent(self.recall(i)), percent(self.precision(i)));
            writeln!(f, "{name:<width$}  {total:>8}  {recall:>6}  {precision:>9}")?;
        }
        let [low, high] = self.interval();
        write!(
            f,
            "accuracy {:.1} % ({} of {}; 95 % interval {:.1} to {:.1} %), mean recall {:.1} %",
            100.0 * self.accuracy(),
            self.correct(),
            self.total(),
            100.0 * low,
            100.0 * high,
            100.0 * self.mean_recall()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Confusion {
        let mut confusion = Confusion::new(&["A", "B_c", "D"].map(String::from));
        for (truth, predicted, times) in [(0, 0, 8), (0, 1, 2), (1, 1, 3), (1, 0, 1)] {
            (0..times).for_each(|_| confusion.add(truth, predicted));
        }
        confusion
    }

    #[test]
    fn rates_match_the_counts() {
        let c = example();
        assert_eq!((c.total(), c.correct()), (14, 11));
        assert_eq!((c.recall(0), c.recall(1), c.recall(2)), (Some(0.8), Some(0.75), None));
        assert_eq!((c.precision(0), c.precision(1), c.precision(2)), (Some(8.0 / 9.0), Some(0.6), None));
        assert!((c.mean_recall() - 0.775).abs() < 1e-12);
        // From statsmodels: proportion_confint(11, 14, method="wilson").
        let [low, high] = c.interval();
        assert!((low - 0.524_127).abs() < 1e-4 && (high - 0.924_286).abs() < 1e-4, "{low} to {high}");
        let empty = Confusion::new(&["A".into()]);
        assert_eq!((empty.accuracy(), empty.interval()), (0.0, [0.0, 1.0]));
        assert!(c.to_string().contains("accuracy 78.6 % (11 of 14;"), "{c}");
    }

    #[test]
    fn larger_fractions_are_darker() {
        let image = example().to_image();
        let size = image.width();
        let at = |truth: u32, predicted: u32| {
            let cell = |i: u32| size - 10 - 3 * 44 + i * 44 + 2;
            image.get_pixel(cell(predicted), cell(truth)).0[0]
        };
        assert!(at(0, 0) < at(1, 1) && at(1, 1) < at(0, 1) && at(0, 1) < at(0, 2));
        // A class without images has an empty row, and every name is readable.
        assert_eq!(at(2, 2), at(0, 2));
    }
}
