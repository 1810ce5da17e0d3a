//! The loss curve from `metrics.jsonl`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use image::{Rgb, RgbImage};
use serde_json::Value;
use tiny_cats_export::text_size;

use super::canvas::{Align, Canvas, SCALE, TEXT_COLOR};
use crate::{
    axis::{Range, label},
    train::metrics::LOSS,
};

/// The largest number of bins that are kept; if there are more, neighbors are merged.
const MAX_BINS: usize = 2048;
/// The largest number of metrics in a plot.
const MAX_SCORES: usize = 4;
/// The largest length of a line, in bytes; longer lines are not from this program.
const MAX_LINE_BYTES: u64 = 1 << 16;
/// The limit above which a value counts as infinite.
const LARGE: f64 = 1e300;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;
const RAW: Rgb<u8> = Rgb([178, 200, 222]);
const SMOOTH: Rgb<u8> = Rgb([24, 66, 112]);
const BROKEN: Rgb<u8> = Rgb([200, 40, 40]);
const SCORES: [Rgb<u8>; MAX_SCORES] =
    [Rgb([196, 98, 16]), Rgb([46, 125, 50]), Rgb([123, 31, 162]), Rgb([110, 90, 60])];

/// The losses of consecutive steps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bin {
    first: u64,
    last: u64,
    sum: f64,
    count: f64,
    min: f64,
    max: f64,
}

impl Bin {
    fn new(step: u64, loss: f64) -> Self {
        Self { first: step, last: step, sum: loss, count: 1.0, min: loss, max: loss }
    }

    fn merge(self, next: Self) -> Self {
        Self {
            first: self.first,
            last: next.last,
            sum: self.sum + next.sum,
            count: self.count + next.count,
            min: self.min.min(next.min),
            max: self.max.max(next.max),
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }

    fn step(&self) -> f64 {
        (self.first as f64 + self.last as f64) / 2.0
    }
}

/// The curves of a run's `metrics.jsonl`. Unlike [`Metrics`](crate::train::metrics::Metrics), it uses bounded memory for files of any
/// length.
///
/// Each read continues where the last one ended. Lines that this program did not write are skipped.
#[derive(Clone, Debug)]
pub struct LossCurve {
    path: PathBuf,
    /// Number of bytes that were read.
    offset: u64,
    bins: Vec<Bin>,
    /// Number of lines in a bin.
    per_bin: f64,
    /// Steps whose loss was not finite.
    broken: Vec<u64>,
    scores: BTreeMap<String, Vec<(u64, f64)>>,
}

impl LossCurve {
    /// Creates an empty curve for the file at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            offset: 0,
            bins: Vec::new(),
            per_bin: 1.0,
            broken: Vec::new(),
            scores: BTreeMap::new(),
        }
    }

    /// Reads the new lines of the file.
    ///
    /// # Errors
    /// Returns errors of reading; a missing file is not an error.
    pub fn read(&mut self) -> io::Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if file.metadata()?.len() < self.offset {
            *self = Self::new(&self.path);
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let (mut line, mut in_long_line) = (Vec::new(), false);
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? as u64;
            let is_complete = line.ends_with(b"\n");
            // The last line may be incomplete; it is read once it is complete.
            if read == 0 || (!is_complete && read < MAX_LINE_BYTES) {
                return Ok(());
            }
            self.offset += read;
            if is_complete && !in_long_line {
                self.line(&line);
            }
            in_long_line = !is_complete;
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(line) else { return };
        let Some(step) = fields.get("step").and_then(Value::as_u64) else { return };
        if let Some(loss) = fields.get(LOSS) {
            self.rewind(step);
            // A number that is not finite is written as null.
            match loss.as_f64().filter(|loss| loss.abs() < LARGE) {
                Some(loss) => self.add(Bin::new(step, loss)),
                None if self.broken.len() < MAX_BINS => self.broken.push(step),
                None => {}
            }
            return;
        }
        for (name, value) in &fields {
            let Some(value) = value.as_f64().filter(|value| name != "step" && value.abs() < LARGE) else {
                continue;
            };
            if self.scores.len() >= MAX_SCORES && !self.scores.contains_key(name) {
                continue;
            }
            let points = self.scores.entry(name.clone()).or_default();
            points.truncate(points.partition_point(|point| point.0 < step));
            points.push((step, value));
            if points.len() > MAX_BINS {
                let mut keep = false;
                points.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
        }
    }

    /// Removes the values of `step` and later ones, which are from before the run was resumed.
    fn rewind(&mut self, step: u64) {
        while self.bins.last().is_some_and(|bin| bin.first >= step) {
            self.bins.pop();
        }
        self.broken.truncate(self.broken.partition_point(|broken| *broken < step));
    }

    fn add(&mut self, new: Bin) {
        match self.bins.last_mut() {
            Some(last) if last.count < self.per_bin => *last = last.merge(new),
            _ => self.bins.push(new),
        }
        if self.bins.len() > MAX_BINS {
            self.bins = self
                .bins
                .chunks(2)
                .map(|pair| pair.iter().copied().reduce(Bin::merge).unwrap_or(pair[0]))
                .collect();
            self.per_bin *= 2.0;
        }
    }

    /// Draws the curve with its title; `None` if it is empty.
    pub fn render(&self, title: &str) -> Option<RgbImage> {
        let is_loss = |name: &str| name.contains(LOSS);
        let is_loss_name = |name: &&String| is_loss(name);
        let values = |scores: &[&String]| -> Vec<f64> {
            scores.iter().flat_map(|name| self.scores[*name].iter().map(|point| point.1)).collect()
        };
        let (losses, others): (Vec<&String>, Vec<&String>) = self.scores.keys().partition(is_loss_name);
        let smooth = self.smooth();
        let last_bin = self.bins.last().map(|bin| bin.last);
        let last = self.scores.values().filter_map(|points| points.last()).map(|point| point.0);
        let last = last.chain(last_bin).chain(self.broken.last().copied()).max()?;
        let steps = Range { min: 0.0, max: (last as f64).max(1.0), log: false };
        let left = Range::from_values(self.bins.iter().map(Bin::mean).chain(values(&losses)));
        let left = left.map(|range| range.with_margin(true));
        let right = Range::from_values(values(&others).into_iter()).map(|range| range.with_margin(false));
        let mut canvas = Canvas::new(WIDTH, HEIGHT, [100, 64, if right.is_some() { 100 } else { 24 }, 56]);
        canvas.draw_step_axis(&steps);
        let mut legend = Vec::new();
        if let Some(left) = &left {
            canvas.draw_value_axis(left, Align::Left, SMOOTH);
            if self.per_bin > 1.0 {
                for bin in &self.bins {
                    canvas.column(
                        steps.normalize(bin.step()),
                        [left.normalize(bin.min), left.normalize(bin.max)],
                        RAW,
                    );
                }
            }
            let point = |step: f64, value: f64| [steps.normalize(step), left.normalize(value)];
            let raw: Vec<_> = self.bins.iter().map(|bin| point(bin.step(), bin.mean())).collect();
            let line: Vec<_> = self.bins.iter().zip(&smooth).map(|(bin, v)| point(bin.step(), *v)).collect();
            canvas.line(&raw, 1.0, RAW);
            canvas.line(&line, 2.0, SMOOTH);
            let scale = if left.log { " (log)" } else { "" };
            if let Some(value) = smooth.last() {
                legend.push((format!("{LOSS}{scale} {}", label(*value)), SMOOTH));
            }
        }
        for (i, name) in losses.iter().chain(&others).enumerate() {
            let Some(range) = (if is_loss(name) { &left } else { &right }) else { continue };
            let points: Vec<_> = self.scores[*name]
                .iter()
                .map(|(step, value)| [steps.normalize(*step as f64), range.normalize(*value)])
                .collect();
            canvas.line(&points, 2.0, SCORES[i]);
            if points.len() <= 60 {
                canvas.dots(&points, 7.0, SCORES[i]);
            }
            let newest = self.scores[*name].last().map_or(f64::NAN, |point| point.1);
            let name: String = name.chars().take(32).collect();
            legend.push((format!("{} {}", name.replace('_', " "), label(newest)), SCORES[i]));
        }
        if let Some(right) = &right {
            canvas.draw_value_axis(right, Align::Right, SCORES[losses.len().min(MAX_SCORES - 1)]);
        }
        let broken: Vec<_> = self.broken.iter().map(|step| [steps.normalize(*step as f64), 0.0]).collect();
        canvas.dots(&broken, 7.0, BROKEN);
        if !broken.is_empty() {
            legend.push((format!("{} not finite", broken.len()), BROKEN));
        }
        let title: String = title.chars().take(70).collect();
        canvas.text(&title, 12.0, 10.0, Align::Left, TEXT_COLOR);
        let mut x = 12.0;
        for (text, color) in legend {
            canvas.text(&text, x, 36.0, Align::Left, color);
            x += f64::from(text_size(&text, SCALE).0) + 24.0;
        }
        Some(canvas.image)
    }

    /// The mean of each bin and its neighbors, about a thirtieth of the run in total.
    fn smooth(&self) -> Vec<f64> {
        let radius = self.bins.len() / 60;
        let sums = |f: fn(&Bin) -> f64| -> Vec<f64> {
            let sums = self.bins.iter().scan(0.0, |sum, bin| {
                *sum += f(bin);
                Some(*sum)
            });
            std::iter::once(0.0).chain(sums).collect()
        };
        let (values, counts) = (sums(|bin| bin.sum), sums(|bin| bin.count));
        let mean = |i: usize| {
            // Both ends are at the same distance, so that the curve does not lag.
            let radius = radius.min(i).min(self.bins.len() - 1 - i);
            let (from, to) = (i - radius, i + radius + 1);
            (values[to] - values[from]) / (counts[to] - counts[from])
        };
        (0..self.bins.len()).map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn lines(steps: impl Iterator<Item = u64>) -> String {
        steps
            .map(|step| format!("{{\"step\":{step},\"loss\":{},\"lr\":1e-3}}\n", 1.0 / step as f64))
            .collect()
    }

    fn assert_close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs(), "{a}, expected {b}");
    }

    /// Memory is bounded and no line is lost, for files of any length that are read in any number of pieces.
    #[test]
    fn long_runs_use_bounded_memory_and_include_every_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut curve = LossCurve::new(&path);
        curve.read().unwrap();
        assert!(curve.render("nothing").is_none());
        let text = lines(1..=20_000);
        let mut file = File::create(&path).unwrap();
        for piece in text.as_bytes().chunks(100_003) {
            file.write_all(piece).unwrap();
            curve.read().unwrap();
            assert!(curve.bins.len() <= MAX_BINS);
        }
        assert_close(
            curve.bins.iter().map(|bin| bin.sum).sum(),
            (1..=20_000).map(|step| 1.0 / f64::from(step)).sum(),
        );
        assert_eq!(curve.bins.iter().map(|bin| bin.count).sum::<f64>(), 20_000.0);
        assert!(curve.bins.windows(2).all(|pair| pair[0].last < pair[1].first));
        // Resumed: the file was truncated, and continues differently.
        fs::write(&path, lines(1..=100)).unwrap();
        curve.read().unwrap();
        assert_eq!((curve.bins.len(), curve.bins[99].last), (100, 100));
        // If it was not truncated, the later value is used.
        fs::write(&path, lines((1..=150).chain(101..=120))).unwrap();
        curve.read().unwrap();
        assert_eq!((curve.bins.len(), curve.bins[119].last), (120, 120));
        assert_eq!(curve.render("some").unwrap().dimensions(), (WIDTH, HEIGHT));
    }

    #[test]
    fn invalid_lines_are_skipped_and_incomplete_lines_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let long_line = format!("{{\"step\":7,\"loss\":1,\"x\":\"{}\"}}\n", "x".repeat(200_000));
        let nested = "[".repeat(100_000) + "\n";
        let invalid =
            "{\"step\":-1,\"loss\":3}\n{\"step\":\"a\",\"loss\":3}\nnull\n\n\u{0}\u{0}\n{\"loss\":1}\n";
        let scores = "{\"step\":2,\"validation_accuracy\":0.5,\"a\":\"b\"}\n{\"step\":3,\"loss\":null}\n{\"step\":4,\"loss\":1e308}\n";
        let incomplete = "{\"step\":5,\"lo";
        fs::write(&path, [&lines(1..=2), &long_line, &nested, invalid, scores, incomplete].concat()).unwrap();
        let mut curve = LossCurve::new(&path);
        curve.read().unwrap();
        assert_eq!((curve.bins.len(), &curve.broken[..]), (2, &[3, 4][..]));
        assert_eq!(curve.scores, [("validation_accuracy".to_owned(), vec![(2, 0.5)])].into());
        File::options().append(true).open(&path).unwrap().write_all(b"ss\":0.25}\n").unwrap();
        curve.read().unwrap();
        assert_eq!((curve.bins.len(), curve.bins[2].mean(), curve.bins[2].last), (3, 0.25, 5));
        assert!(curve.render("strange").is_some());
    }

    /// Any numbers give an image of one size, with a visible curve.
    #[test]
    fn any_values_give_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for losses in [
            vec![1.0],
            vec![0.0, 0.0],
            vec![-1e299, 1e299],
            vec![5e-324, 1e-300, 1e299],
            vec![f64::NAN, f64::INFINITY],
            (0..50).map(|i| 3.0 * 0.8f64.powi(i)).collect(),
        ] {
            let line = |(i, loss): (usize, &f64)| {
                format!("{}\n", serde_json::json!({"step": (i as u64 + 1) << 40, "loss": loss}))
            };
            let text: String = losses.iter().enumerate().map(line).collect();
            fs::write(&path, text + "{\"step\":1,\"validation_loss\":1e-200,\"validation_x\":-4}\n").unwrap();
            let mut curve = LossCurve::new(&path);
            curve.read().unwrap();
            let image = curve.render(&"a title that is long ".repeat(20)).unwrap();
            assert_eq!(image.dimensions(), (WIDTH, HEIGHT));
            let has_color = |color| image.enumerate_pixels().any(|(_, y, p)| y > 64 && *p == color);
            assert!(has_color(SMOOTH) || losses.iter().all(|loss| !loss.is_finite()), "{losses:?}");
            assert_eq!(has_color(BROKEN), losses.iter().any(|loss| !loss.is_finite()), "{losses:?}");
        }
    }
}
