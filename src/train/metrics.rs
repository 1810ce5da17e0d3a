//! Reading `metrics.jsonl`: what a run logged, by name.
//!
//! An object a line. One with `loss` is of a training step; one without is an evaluation, whose other numbers are its scores. `null` stands
//! for what is not finite, as JSON has no word for it. The file may be of a run that was killed, that trains right now, or of nobody's:
//! what cannot be read is counted and left out.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, Result};

/// What the file is called, in the folder of a run.
pub const METRICS: &str = "metrics.jsonl";
/// What the loss of a training step is called; a line that has it is of a training step.
pub const LOSS: &str = "loss";
/// What the running mean of the loss is called, beside that of a single step: an exponential mean over some fifty steps.
pub const MEAN_LOSS: &str = "mean_loss";

/// Two million lines and more. Of what is longer, the end is read.
const MAX_BYTES: u64 = 256 << 20;
/// Lines of a run have some hundred bytes.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Names that are told apart.
const MAX_NAMES: usize = 64;

/// Which of two values is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// The smaller.
    Min,
    /// The greater.
    Max,
}

impl Goal {
    /// That of a metric, by the words of its name; `None` where they do not say it.
    pub fn of(name: &str) -> Option<Self> {
        name.split(['_', '-']).find_map(|word| match word {
            "loss" | "error" | "fid" | "kid" | "ece" | "distance" | "norm" | "seconds" => Some(Self::Min),
            "accuracy" | "recall" | "precision" | "f1" | "density" | "coverage" | "psnr" | "ssim"
            | "second" => Some(Self::Max),
            _ => None,
        })
    }

    /// Whether `a` is better than `b`. A number is better than none.
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
    /// What was logged; NaN for `null`.
    pub value: f64,
}

/// What a run logged: points by name, in the order of their steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    training: BTreeMap<String, Vec<Point>>,
    evaluations: BTreeMap<String, Vec<Point>>,
    /// Lines that are no metrics. The last one of a file may be cut off, and does not count.
    pub unreadable: u64,
    /// Bytes at the beginning of the file that were not read, because it is too long.
    pub omitted: u64,
}

impl Metrics {
    /// Reads a whole file, of one over 256 MiB the end. That there is none is no error: a run may end before its first line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::tail(path, MAX_BYTES)
    }

    /// Reads the lines in the last `bytes` of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn tail(path: &Path, bytes: u64) -> Result<Self> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let about = match std::fs::metadata(path) {
            Ok(about) => about,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(failed(source)),
        };
        if !about.is_file() {
            return Err(failed(std::io::Error::other("expected a file")));
        }
        // A run that trains may add lines meanwhile.
        let file = File::open(path).map_err(failed)?;
        Self::parse(BufReader::new(file), about.len(), bytes).map_err(failed)
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
            let whole = line.ends_with(b"\n");
            if read == 0 {
                return Ok(metrics);
            }
            if !whole && read as u64 == MAX_LINE_BYTES {
                metrics.unreadable += 1;
                file.skip_until(b'\n')?;
                continue;
            }
            if metrics.add(&line).is_none() && whole && !line.trim_ascii().is_empty() {
                metrics.unreadable += 1;
            }
        }
    }

    /// Takes in a line; `None` where it is no metrics.
    fn add(&mut self, line: &[u8]) -> Option<()> {
        let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let step = object.get("step")?.as_u64()?;
        let training = object.contains_key(LOSS);
        if training {
            self.rewind(step);
        }
        let of = if training { &mut self.training } else { &mut self.evaluations };
        for (name, value) in &object {
            let value = match value {
                Value::Number(number) => number.as_f64()?,
                Value::Null => f64::NAN,
                _ => continue,
            };
            if name == "step" || (of.len() >= MAX_NAMES && !of.contains_key(name)) {
                continue;
            }
            let points = of.entry(name.clone()).or_default();
            // Evaluated again, it counts as it was found last.
            let at = points.partition_point(|point| point.step < step);
            match points.get_mut(at) {
                Some(point) if point.step == step => point.value = value,
                _ => points.insert(at, Point { step, value }),
            }
        }
        Some(())
    }

    /// A run that went on from an earlier state logs steps again: what is of `step` and later was of the branch that is given up.
    fn rewind(&mut self, step: u64) {
        let last = self.training.get(LOSS).and_then(|points| points.last());
        if last.is_some_and(|point| point.step >= step) {
            for points in self.training.values_mut().chain(self.evaluations.values_mut()) {
                points.truncate(points.partition_point(|point| point.step < step));
            }
        }
    }

    /// What was logged of training steps under `name`.
    pub fn training(&self, name: &str) -> &[Point] {
        self.training.get(name).map_or(&[], Vec::as_slice)
    }

    /// What evaluations found, by name.
    pub fn evaluations(&self) -> impl Iterator<Item = (&str, &[Point])> {
        let some = self.evaluations.iter().filter(|(_, points)| !points.is_empty());
        some.map(|(name, points)| (name.as_str(), points.as_slice()))
    }

    /// What decides between runs: the best evaluation of that name, the first of equals; where it is logged of training steps, which
    /// scatter, the last.
    pub fn deciding_point(&self, name: &str, goal: Goal) -> Option<Point> {
        match self.evaluations.get(name) {
            Some(points) => best(points, goal),
            None => self.training(name).iter().rfind(|point| point.value.is_finite()).copied(),
        }
    }
}

/// The best of `points`, the first of equals; `None` where none is a number.
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

    /// However often a run went on from an earlier state, what is read is what an uninterrupted run would have logged.
    #[test]
    fn a_run_that_went_on_reads_like_one_that_was_never_interrupted() {
        let line = |step: u64, branch: u64| {
            let mut lines = format!("{{\"step\":{step},\"loss\":{}.5}}\n", step * branch);
            if step.is_multiple_of(20) {
                lines += &format!("{{\"step\":{step},\"validation_loss\":{}.25}}\n", step * branch);
            }
            lines
        };
        let straight: String = (1..=12).map(|i| line(10 * i, 1)).collect();
        for from in 0..=11 {
            for to in from + 1..=12 {
                let mut text: String = (1..=from).map(|i| line(10 * i, 1)).collect();
                text.extend((from + 1..=to).map(|i| line(10 * i, 7)));
                text.extend((from + 1..=12).map(|i| line(10 * i, 1)));
                assert_eq!(read(&text), read(&straight), "from {from} to {to} and back");
            }
        }
    }

    #[test]
    fn what_is_no_line_of_metrics_is_counted_and_the_others_are_read() {
        let long = format!("{{\"step\":3,\"x\":\"{}\"}}\n", "y".repeat(MAX_LINE_BYTES as usize));
        let deep = format!("{{\"step\":4,\"x\":{}}}\n", "[".repeat(10_000));
        let lines = [
            "{\"step\":1,\"loss\":2.0,\"note\":\"text\",\"skipped\":true}\n",
            "not json\n",
            "\n",
            "[1]\n",
            "{\"loss\":1}\n",
            "{\"step\":-1,\"loss\":1}\n",
            "{\"step\":2,\"loss\":1e999}\n",
            &long,
            &deep,
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
        // As many names as anybody likes take no more room than those of a run.
        let names: String = (0..10_000).map(|i| format!("{{\"step\":1,\"n{i}\":1}}\n")).collect();
        assert_eq!(read(&names).evaluations().count(), MAX_NAMES);
    }

    #[test]
    fn the_end_of_a_long_file_begins_with_a_whole_line() {
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
    fn the_best_is_the_first_of_equals_and_never_nan() {
        let points = |values: &[f64]| -> Vec<Point> {
            values.iter().enumerate().map(|(i, &value)| Point { step: i as u64, value }).collect()
        };
        let some = points(&[f64::NAN, 2.0, 1.0, 3.0, 1.0, 3.0, f64::NAN]);
        assert_eq!(best(&some, Goal::Min), Some(Point { step: 2, value: 1.0 }));
        assert_eq!(best(&some, Goal::Max), Some(Point { step: 3, value: 3.0 }));
        assert_eq!(best(&points(&[f64::NAN]), Goal::Min), None);
        for (name, goal) in [
            ("validation_loss", Some(Goal::Min)),
            ("fid", Some(Goal::Min)),
            ("test_accuracy", Some(Goal::Max)),
            ("items_per_second", Some(Goal::Max)),
            ("beauty", None),
        ] {
            assert_eq!(Goal::of(name), goal, "{name}");
        }
    }
}
