//! Parsing of `metrics.jsonl`: the values that a run logged, by name.
//!
//! Each line is an object. An object with `loss` is a training step. One without `loss` is an evaluation, and its numbers are scores.
//! `null` stands for a value that is not finite, which JSON cannot express. The file may be of a killed run, of a run that is training, or
//! untrusted. Lines that cannot be parsed are counted and skipped.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, Result};

/// The name of the file in a run's folder.
pub const METRICS: &str = "metrics.jsonl";
/// The key of a training step's loss; a line that has it is a training step.
pub const LOSS: &str = "loss";
/// The key of the running mean of the loss: an exponential mean over about fifty steps.
pub const MEAN_LOSS: &str = "mean_loss";

/// More than two million lines. Only the end of a longer file is read.
const MAX_BYTES: u64 = 256 << 20;
/// A line of a run has some hundred bytes.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Maximum number of distinct names.
const MAX_NAMES: usize = 64;

/// The direction in which a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// Smaller is better.
    Min,
    /// Greater is better.
    Max,
}

impl Goal {
    /// Guesses the goal of a metric from the words of its name; `None` if they do not imply one.
    pub fn for_metric(name: &str) -> Option<Self> {
        name.split(['_', '-']).find_map(|word| match word {
            "loss" | "error" | "fid" | "kid" | "ece" | "distance" | "norm" | "seconds" => Some(Self::Min),
            "accuracy" | "recall" | "precision" | "f1" | "density" | "coverage" | "psnr" | "ssim"
            | "second" => Some(Self::Max),
            _ => None,
        })
    }

    /// True if `a` is better than `b`. A number is better than NaN.
    pub fn is_better(self, a: f64, b: f64) -> bool {
        match self {
            _ if a.is_nan() || b.is_nan() => !a.is_nan() && b.is_nan(),
            Self::Min => a < b,
            Self::Max => a > b,
        }
    }
}

/// A value at a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// The logged value; NaN for `null`.
    pub value: f64,
}

/// The metrics of a run: points by name, in the order of their steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    training: BTreeMap<String, Vec<Point>>,
    evaluations: BTreeMap<String, Vec<Point>>,
    /// Number of lines that are not metrics. The last line of a file may be cut off and does not count.
    pub unreadable: u64,
    /// Bytes at the start of the file that were not read because it is too long.
    pub omitted: u64,
}

impl Metrics {
    /// Reads a file, or the last 256 MiB of a longer one.
    ///
    /// A missing file is not an error: a run may end before its first line.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::tail(path, MAX_BYTES)
    }

    /// Reads the lines in the last `bytes` of a file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn tail(path: &Path, bytes: u64) -> Result<Self> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(failed(source)),
        };
        if !metadata.is_file() {
            return Err(failed(std::io::Error::other("expected a file")));
        }
        // A run that is training may append lines meanwhile.
        let file = File::open(path).map_err(failed)?;
        Self::parse(BufReader::new(file), metadata.len(), bytes).map_err(failed)
    }

    fn parse(mut file: impl BufRead + Seek, len: u64, bytes: u64) -> std::io::Result<Self> {
        let mut metrics = Self::default();
        if len > bytes {
            metrics.omitted = len - bytes;
            file.seek(SeekFrom::Start(len - bytes))?;
            file.skip_until(b'\n')?;
        }
        let mut file = file.take(bytes);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut file).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            let complete = line.ends_with(b"\n");
            if read == 0 {
                return Ok(metrics);
            }
            if !complete && read as u64 == MAX_LINE_BYTES {
                metrics.unreadable += 1;
                file.skip_until(b'\n')?;
                continue;
            }
            if metrics.add(&line).is_none() && complete && !line.trim_ascii().is_empty() {
                metrics.unreadable += 1;
            }
        }
    }

    /// Adds a line; `None` if it is not metrics.
    fn add(&mut self, line: &[u8]) -> Option<()> {
        let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let step = object.get("step")?.as_u64()?;
        let training = object.contains_key(LOSS);
        if training {
            self.rewind(step);
        }
        let series = if training { &mut self.training } else { &mut self.evaluations };
        for (name, value) in &object {
            let value = match value {
                Value::Number(number) => number.as_f64()?,
                Value::Null => f64::NAN,
                _ => continue,
            };
            if name == "step" || (series.len() >= MAX_NAMES && !series.contains_key(name)) {
                continue;
            }
            let points = series.entry(name.clone()).or_default();
            // If a step was evaluated twice, the last value counts.
            let index = points.partition_point(|point| point.step < step);
            match points.get_mut(index) {
                Some(point) if point.step == step => point.value = value,
                _ => points.insert(index, Point { step, value }),
            }
        }
        Some(())
    }

    /// Drops the points at `step` and later: a run that resumed from an earlier state logs these steps again.
    fn rewind(&mut self, step: u64) {
        let last = self.training.get(LOSS).and_then(|points| points.last());
        if last.is_some_and(|point| point.step >= step) {
            for points in self.training.values_mut().chain(self.evaluations.values_mut()) {
                points.truncate(points.partition_point(|point| point.step < step));
            }
        }
    }

    /// The points that training steps logged as `name`.
    pub fn training(&self, name: &str) -> &[Point] {
        self.training.get(name).map_or(&[], Vec::as_slice)
    }

    /// The points of the evaluations, by name.
    pub fn evaluations(&self) -> impl Iterator<Item = (&str, &[Point])> {
        let series_with_points = self.evaluations.iter().filter(|(_, points)| !points.is_empty());
        series_with_points.map(|(name, points)| (name.as_str(), points.as_slice()))
    }

    /// The point used to compare runs: the best evaluation of that name, the first of equals.
    ///
    /// For a metric of training steps, which fluctuates, it is the last one.
    pub fn deciding_point(&self, name: &str, goal: Goal) -> Option<Point> {
        match self.evaluations.get(name) {
            Some(points) => best(points, goal),
            None => self.training(name).iter().rfind(|point| point.value.is_finite()).copied(),
        }
    }
}

/// The best of `points`, the first of equals; `None` if none is finite.
pub fn best(points: &[Point], goal: Goal) -> Option<Point> {
    let finite = points.iter().filter(|point| point.value.is_finite());
    finite.copied().reduce(|best, point| if goal.is_better(point.value, best.value) { point } else { best })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read(text: &str) -> Metrics {
        Metrics::parse(Cursor::new(text), text.len() as u64, MAX_BYTES).unwrap()
    }

    fn losses(metrics: &Metrics) -> Vec<(u64, f64)> {
        metrics.training(LOSS).iter().map(|p| (p.step, p.value)).collect()
    }

    /// A run that resumed from earlier states any number of times has the metrics of an uninterrupted run.
    #[test]
    fn metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_run() {
        let line = |step: u64, branch: u64| {
            let mut lines = format!("{{\"step\":{step},\"loss\":{}.5}}\n", step * branch);
            if step.is_multiple_of(20) {
                lines += &format!("{{\"step\":{step},\"validation_loss\":{}.25}}\n", step * branch);
            }
            lines
        };
        let uninterrupted: String = (1..=12).map(|i| line(10 * i, 1)).collect();
        for from in 0..=11 {
            for to in from + 1..=12 {
                let mut text: String = (1..=from).map(|i| line(10 * i, 1)).collect();
                text.extend((from + 1..=to).map(|i| line(10 * i, 7)));
                text.extend((from + 1..=12).map(|i| line(10 * i, 1)));
                assert_eq!(read(&text), read(&uninterrupted), "from {from} to {to} and back");
            }
        }
    }

    #[test]
    fn invalid_lines_are_counted_and_skipped() {
        let long_line = format!("{{\"step\":3,\"x\":\"{}\"}}\n", "y".repeat(MAX_LINE_BYTES as usize));
        let nested = format!("{{\"step\":4,\"x\":{}}}\n", "[".repeat(10_000));
        let lines = [
            "{\"step\":1,\"loss\":2.0,\"note\":\"text\",\"skipped\":true}\n",
            "not json\n",
            "\n",
            "[1]\n",
            "{\"loss\":1}\n",
            "{\"step\":-1,\"loss\":1}\n",
            "{\"step\":2,\"loss\":1e999}\n",
            &long_line,
            &nested,
            "{\"step\":5,\"loss\":null}\n",
            "{\"step\":6,\"loss\":1.0}\n",
            "{\"step\":7,\"lo",
        ];
        let metrics = read(&lines.concat());
        assert_eq!(metrics.unreadable, 7);
        let found = losses(&metrics);
        assert_eq!((found.len(), found[0], found[2]), (3, (1, 2.0), (6, 1.0)));
        assert!(found[1].1.is_nan());
        assert!(metrics.training("note").is_empty() && metrics.training("step").is_empty());
        // Many names use no more memory than those of a run.
        let names: String = (0..10_000).map(|i| format!("{{\"step\":1,\"n{i}\":1}}\n")).collect();
        assert_eq!(read(&names).evaluations().count(), MAX_NAMES);
    }

    #[test]
    fn the_tail_of_a_long_file_starts_at_a_complete_line() {
        let text: String = (1..=1000).map(|i| format!("{{\"step\":{i},\"loss\":{i}}}\n")).collect();
        for bytes in [1, 19, 20, 21, 100, 1000] {
            let metrics = Metrics::parse(Cursor::new(&text), text.len() as u64, bytes).unwrap();
            let found = losses(&metrics);
            assert_eq!(metrics.unreadable, 0, "{bytes}");
            assert_eq!(found, losses(&read(&text))[1000 - found.len()..], "{bytes}");
            assert!(found.len() as u64 * 20 <= bytes + 20 && (bytes < 50 || !found.is_empty()), "{bytes}");
        }
    }

    #[test]
    fn best_returns_the_first_of_equals_and_never_nan() {
        let points = |values: &[f64]| -> Vec<Point> {
            values.iter().enumerate().map(|(i, &value)| Point { step: i as u64, value }).collect()
        };
        let points_with_nan = points(&[f64::NAN, 2.0, 1.0, 3.0, 1.0, 3.0, f64::NAN]);
        assert_eq!(best(&points_with_nan, Goal::Min), Some(Point { step: 2, value: 1.0 }));
        assert_eq!(best(&points_with_nan, Goal::Max), Some(Point { step: 3, value: 3.0 }));
        assert_eq!(best(&points(&[f64::NAN]), Goal::Min), None);
        for (name, goal) in [
            ("validation_loss", Some(Goal::Min)),
            ("fid", Some(Goal::Min)),
            ("test_accuracy", Some(Goal::Max)),
            ("items_per_second", Some(Goal::Max)),
            ("beauty", None),
        ] {
            assert_eq!(Goal::for_metric(name), goal, "{name}");
        }
    }
}
