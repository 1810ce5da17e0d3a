//! Evaluation of a classifier on labeled images.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tiny_cats_export::Prediction;

use super::{Calibration, Confusion, wilson_interval};

/// The k of the top-k accuracy.
const TOP: usize = 3;

/// Statistics of a classifier's predictions. Their size does not depend on the number of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassificationResults {
    /// The confusion matrix.
    pub confusion: Confusion,
    /// The calibration of the probabilities.
    pub calibration: Calibration,
    top_k_correct_count: u32,
}

impl ClassificationResults {
    /// Creates empty statistics.
    pub fn new(classes: &[String]) -> Self {
        Self {
            confusion: Confusion::new(classes),
            calibration: Calibration::default(),
            top_k_correct_count: 0,
        }
    }

    /// Adds the prediction for an image of class `truth`.
    ///
    /// # Panics
    /// If a label is not less than the number of classes.
    pub fn add(&mut self, truth: usize, prediction: &Prediction) {
        let Some(best) = prediction.candidates.first() else { return };
        self.confusion.add(truth, best.label);
        self.top_k_correct_count +=
            u32::from(prediction.top(TOP).iter().any(|candidate| candidate.label == truth));
        let true_probability = prediction.candidates.iter().find(|candidate| candidate.label == truth);
        let true_probability = true_probability.map_or(0.0, |candidate| candidate.probability);
        self.calibration.add(best.probability, best.label == truth, true_probability);
    }

    /// The number of images.
    pub fn total(&self) -> u32 {
        self.confusion.total()
    }

    /// The number of images whose class is among the three most probable.
    pub fn top_k_correct(&self) -> u32 {
        self.top_k_correct_count
    }

    /// All statistics as JSON.
    pub fn report(&self) -> Value {
        let Self { confusion, calibration, .. } = self;
        let share = |part| f64::from(part) / f64::from(self.total().max(1));
        let class = |(i, name): (usize, &String)| {
            let images: u32 = confusion.counts[i].iter().sum();
            json!({
                "class": name,
                "pictures": images,
                "recall": confusion.recall(i),
                "recall_interval": wilson_interval(confusion.counts[i][i], images),
                "precision": confusion.precision(i),
            })
        };
        let width = 1.0 / calibration.bins.len() as f64;
        let bin = |(i, bin): (usize, &super::Bin)| {
            json!({
                "from": i as f64 * width,
                "to": (i + 1) as f64 * width,
                "pictures": bin.images,
                "confidence": bin.confidence(),
                "accuracy": bin.accuracy(),
            })
        };
        json!({
            "pictures": self.total(),
            "top1": {"accuracy": confusion.accuracy(), "correct": confusion.correct(), "interval": confusion.interval()},
            "top3": {
                "accuracy": share(self.top_k_correct_count),
                "correct": self.top_k_correct_count,
                "interval": wilson_interval(self.top_k_correct_count, self.total()),
            },
            "mean_recall": confusion.mean_recall(),
            "per_class": confusion.classes.iter().enumerate().map(class).collect::<Vec<_>>(),
            "negative_log_likelihood": calibration.negative_log_likelihood(),
            "expected_calibration_error": calibration.expected_calibration_error(),
            "reliability": calibration.bins.iter().enumerate().map(bin).collect::<Vec<_>>(),
            "confusion": confusion,
        })
    }
}

impl Serialize for ClassificationResults {
    /// Serializes the [report](Self::report).
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.report().serialize(serializer)
    }
}

impl fmt::Display for ClassificationResults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        writeln!(f, "{}", self.confusion)?;
        let [low, high] = wilson_interval(self.top_k_correct_count, self.total());
        let share = f64::from(self.top_k_correct_count) / f64::from(self.total().max(1));
        writeln!(
            f,
            "correct class among the first {TOP}: {} ({} of {}; 95 % interval {:.1} to {:.1} %)\n",
            percent(share),
            self.top_k_correct_count,
            self.total(),
            100.0 * low,
            100.0 * high
        )?;
        writeln!(f, "confidence         images  mean confidence  accuracy")?;
        let bins = self.calibration.bins.iter().enumerate().filter(|(_, bin)| bin.images > 0);
        for (i, bin) in bins {
            let ends = [i, i + 1].map(|i| 100.0 * i as f64 / self.calibration.bins.len() as f64);
            let [confidence, accuracy] =
                [bin.confidence(), bin.accuracy()].map(|v| percent(v.unwrap_or(0.0)));
            let range = format!("{:.1} to {:.1} %", ends[0], ends[1]);
            writeln!(f, "{range:<16} {:>8}  {confidence:>15}  {accuracy:>8}", bin.images)?;
        }
        write!(
            f,
            "expected calibration error {} ({} bins), negative log-likelihood {:.4}",
            percent(self.calibration.expected_calibration_error()),
            self.calibration.bins.len(),
            self.calibration.negative_log_likelihood()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiny_cats_export::Candidate;

    #[test]
    fn each_image_is_counted_once() {
        let classes: Vec<String> = ["a", "b", "c", "d"].map(String::from).to_vec();
        let mut evaluation = ClassificationResults::new(&classes);
        // The most probable first: labels with probabilities 0.4, 0.3, 0.2, 0.1.
        for (truth, order) in [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (3, [2, 1, 0, 3]), (2, [3, 1, 2, 0])] {
            let candidate = |(label, probability): (usize, f64)| Candidate {
                label,
                class: classes[label].clone(),
                probability,
            };
            let candidates = order.into_iter().zip([0.4, 0.3, 0.2, 0.1]).map(candidate).collect();
            evaluation.add(truth, &Prediction { candidates });
        }
        assert_eq!(
            (evaluation.total(), evaluation.confusion.correct(), evaluation.top_k_correct()),
            (4, 1, 3)
        );
        assert_eq!(evaluation.calibration.total(), 4);
        let likelihood = -[0.4f64, 0.3, 0.1, 0.2].iter().map(|p| p.ln()).sum::<f64>() / 4.0;
        let report = evaluation.report();
        assert!((report["negative_log_likelihood"].as_f64().unwrap() - likelihood).abs() < 1e-12);
        assert!((report["expected_calibration_error"].as_f64().unwrap() - 0.15).abs() < 1e-12);
        assert_eq!(report["per_class"][2]["recall"], 0.0);
        assert!(evaluation.to_string().contains("among the first 3: 75.0 % (3 of 4;"), "{evaluation}");
    }
}
