//! The results of comparing generated images with real ones.

use std::{fmt, path::PathBuf};

use image::RgbImage;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tiny_cats_export::{Preprocessing, grid};

use super::{
    COPY_NEIGHBORS, CompareOptions, Comparison, Confusion, DataReport, Interval, Memorization, Provenance,
    SamplingReport, image_features::weak_classifier_warning, source::serialize_skipped,
};

/// Columns of the sheet: three pairs.
const SHEET_COLUMNS: usize = 6;

/// The results of [`evaluate_generator`](super::evaluate_generator). [`Display`](fmt::Display) formats them as tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GeneratorReport {
    /// The kind of evaluation: `generator`.
    pub evaluation: &'static str,
    /// The version of this program.
    pub version: &'static str,
    /// The generated images.
    #[serde(rename = "drawn")]
    pub generated: GeneratedSource,
    /// The real images.
    pub data: DataReport,
    /// Height and width of all images, in pixels.
    pub image_size: u32,
    /// The network that computed the features.
    pub features: FeaturesReport,
    /// The runtime of that network.
    pub runtime: &'static str,
    /// The options of the comparison.
    #[serde(rename = "comparing")]
    pub compare_options: CompareOptions,
    /// The comparison of generated and real images.
    pub results: Comparison,
    /// The comparison of two random halves of the real images; `None` if there are fewer than four.
    #[serde(rename = "real_halves")]
    pub baseline: Option<Comparison>,
    /// The distances to the nearest real images.
    #[serde(rename = "nearest_training_picture")]
    pub nearest: NearestReport,
    /// The breeds that a classifier recognizes.
    #[serde(rename = "breed_as_asked")]
    pub breeds: BreedReport,
}

/// The origin of generated images.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum GeneratedSource {
    /// A generator.
    Model {
        /// The file of the generator.
        model: Provenance,
        /// Number of images.
        samples: usize,
        /// Number of images of each class.
        #[serde(rename = "of_each_class")]
        counts: Vec<usize>,
        /// The classes of the generator.
        classes: Vec<String>,
        /// The settings of the sampler.
        #[serde(flatten)]
        sampling: SamplingReport,
    },
    /// A folder of images.
    Folder {
        /// SHA-256 over the digests of the image files, in hexadecimal.
        fingerprint: Option<String>,
        /// Files that could not be used, and the reasons.
        #[serde(serialize_with = "serialize_skipped")]
        skipped: Vec<(PathBuf, String)>,
    },
}

/// A network that computes features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeaturesReport {
    /// The file of the network.
    #[serde(flatten)]
    pub model: Provenance,
    /// The output of the network: `before the last layer` or `the first output`.
    pub output: &'static str,
    /// Height and width of the network's input, in pixels.
    pub image_size: usize,
    /// The preprocessing of the images.
    pub preprocessing: Preprocessing,
}

/// The distances from generated images to the nearest real ones.
#[derive(Clone, Debug, PartialEq)]
pub struct NearestReport {
    /// By pixels from −1 to 1, mirrored or not. The distances are Euclidean; the JSON has root mean squares of differences.
    pub pixels: Memorization,
    /// By features.
    pub features: Memorization,
    /// The number of pixel values of a compared image.
    pub pixel_values: usize,
    /// The generated images that are nearest to real ones: first by pixels, then by features.
    pub pairs: Vec<NearestPair>,
}

/// A generated image and the nearest real one.
#[derive(Clone, Debug, PartialEq)]
pub struct NearestPair {
    /// Both images, the generated one first.
    pub images: [RgbImage; 2],
    /// The number of the generated image and the distance, and the name of the real image.
    pub captions: [String; 2],
}

/// The breeds that a classifier recognizes in images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreedReport {
    /// The file of the classifier.
    pub classifier: Provenance,
    /// The requested and the predicted breeds of generated images.
    #[serde(rename = "drawn", serialize_with = "serialize_confusion")]
    pub generated: Confusion,
    /// The true and the predicted breeds of real images.
    #[serde(serialize_with = "serialize_confusion")]
    pub real: Confusion,
}

impl GeneratorReport {
    /// Warnings about the interpretation of the results, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let BreedReport { classifier, generated, real } = &self.breeds;
        let weak = (generated.total() > 0).then(|| weak_classifier_warning(real, &classifier.file)).flatten();
        weak.into_iter().chain(self.results.warnings.iter().cloned()).collect()
    }
}

impl NearestReport {
    /// Converts a distance between pixels to the root mean square of their differences.
    pub(super) fn root_mean_square(&self, distance: f64) -> f64 {
        distance / (self.pixel_values as f64).sqrt()
    }

    /// Creates a grid of the generated images that are nearest by pixels, then by features, each with its nearest real image.
    pub fn sheet(&self) -> RgbImage {
        let images: Vec<RgbImage> = self.pairs.iter().flat_map(|pair| pair.images.clone()).collect();
        let captions: Vec<String> = self.pairs.iter().flat_map(|pair| pair.captions.clone()).collect();
        grid(&images, SHEET_COLUMNS, Some(&captions))
    }
}

impl Serialize for NearestReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Memorization { share, copied, threshold, median, training_median, .. } = &self.pixels;
        let report = json!({
            "pixels": {
                "share": share,
                "copied": copied,
                "threshold": self.root_mean_square(*threshold),
                "median": self.root_mean_square(*median),
                "training_median": self.root_mean_square(*training_median),
                "distance": "root mean square of differences of values in [-1, 1], mirrored or not",
            },
            "features": self.features,
        });
        report.serialize(serializer)
    }
}

fn serialize_confusion<S: Serializer>(confusion: &Confusion, serializer: S) -> Result<S::Ok, S::Error> {
    let class = |(i, name): (usize, &String)| {
        let count: u32 = confusion.counts[i].iter().sum();
        (count > 0).then(|| json!({"class": name, "pictures": count, "share": confusion.recall(i)}))
    };
    let report = json!({
        "pictures": confusion.total(),
        "share": confusion.accuracy(),
        "interval": confusion.interval(),
        "per_class": confusion.classes.iter().enumerate().filter_map(class).collect::<Vec<Value>>(),
        "confusion": confusion,
    });
    report.serialize(serializer)
}

impl fmt::Display for GeneratorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} generated and {} real images ({}) of {} px, compared by {} features of {}\n",
            self.results.generated,
            self.results.real,
            self.data.split,
            self.image_size,
            self.results.features,
            self.features.model.file
        )?;
        write_comparison(f, &self.results, self.baseline.as_ref())?;
        writeln!(f, "{}", self.nearest)?;
        write!(f, "{}", self.breeds)
    }
}

fn write_comparison(
    f: &mut fmt::Formatter<'_>,
    comparison: &Comparison,
    baseline: Option<&Comparison>,
) -> fmt::Result {
    let heading =
        baseline.map_or_else(String::new, |f| format!("real halves ({} and {})", f.real, f.generated));
    writeln!(f, "{:<30} {:>10}  {:<22} {heading:>26}", "", "generated", "95 % interval")?;
    let line = |name: &str, value: Option<f64>, interval: Option<Interval>, baseline: Option<f64>| {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let interval = interval.map_or_else(String::new, |i| format!("{:.4} to {:.4}", i.low, i.high));
        format!("{name:<30} {:>10}  {interval:<22} {:>26}", number(value), number(baseline))
    };
    let scale_1000 =
        |interval: Interval| Interval { low: 1e3 * interval.low, high: 1e3 * interval.high, ..interval };
    let Comparison { frechet, frechet_interval, kernel, .. } = comparison;
    let frechet_line =
        line("Fréchet distance", Some(*frechet), *frechet_interval, baseline.map(|f| f.frechet));
    writeln!(f, "{frechet_line}")?;
    let kernel_line = line(
        "kernel distance × 1000",
        Some(1e3 * kernel.distance),
        kernel.interval.map(scale_1000),
        baseline.map(|f| 1e3 * f.kernel.distance),
    );
    writeln!(f, "{kernel_line}")?;
    let name = format!("  of {} subsets of {}", kernel.subsets, kernel.subset_size);
    let (mean, deviation) = (1e3 * kernel.subset_mean, 1e3 * kernel.subset_deviation);
    writeln!(f, "{name:<30} {mean:>10.4}  ± {deviation:.4}")?;
    let metric = |field: fn(&Comparison) -> Option<f64>| (field(comparison), baseline.and_then(field));
    for (name, (value, baseline)) in [
        ("precision", metric(|c| Some(c.precision_recall?.precision))),
        ("recall", metric(|c| Some(c.precision_recall?.recall))),
        ("density", metric(|c| Some(c.density_coverage?.density))),
        ("coverage", metric(|c| Some(c.density_coverage?.coverage))),
    ] {
        writeln!(f, "{}", line(name, value, None, baseline))?;
    }
    Ok(())
}

impl fmt::Display for NearestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let median = "median distance (between real images)";
        writeln!(f, "\n{:<30} {:>10} {:>10}   {median}", "nearest real image", "near", "copied")?;
        let line = |name: &str, result: &Memorization, scale: &dyn Fn(f64) -> f64| {
            let [near_share, copied] =
                [result.share, result.copied].map(|share| format!("{:.1} %", 100.0 * share));
            let (median, real_median) = (scale(result.median), scale(result.training_median));
            format!("{name:<30} {near_share:>10} {copied:>10}   {median:.3} ({real_median:.3})")
        };
        let pixel_line =
            line("by pixels, mirrored or not", &self.pixels, &|distance| self.root_mean_square(distance));
        writeln!(f, "{pixel_line}")?;
        writeln!(f, "{}", line("by features", &self.features, &|distance| distance))?;
        writeln!(
            f,
            "near: closer than the nearest 5 % of real images are to each other, as smooth images often are;"
        )?;
        write!(
            f,
            "copied: at most half as far from the nearest real image as from the {COPY_NEIGHBORS} nearest on average"
        )
    }
}

impl fmt::Display for BreedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { classifier: Provenance { file, .. }, generated, real } = self;
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        if generated.total() == 0 {
            return write!(f, "\nrequested breed: no generated image has a breed that {file} knows");
        }
        writeln!(f, "\nrequested breed, by {file:<19} {:>10} {:>10}", "generated", "real")?;
        for (i, name) in generated.classes.iter().enumerate() {
            if generated.recall(i).is_some() || real.recall(i).is_some() {
                let name = name.replace('_', " ");
                let [generated, real] = [generated, real].map(|set| percent(set.recall(i)));
                writeln!(f, "{name:<39} {generated:>10} {real:>10}")?;
            }
        }
        let [low, high] = generated.interval();
        write!(
            f,
            "{:<39} {:>10} {:>10}  (generated: {} of {}, 95 % interval {:.1} to {:.1} %)",
            "all",
            percent(Some(generated.accuracy())),
            percent((real.total() > 0).then(|| real.accuracy())),
            generated.correct(),
            generated.total(),
            100.0 * low,
            100.0 * high
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breeds(generated: Confusion, real: Confusion) -> BreedReport {
        let classifier = Provenance { file: "judge.onnx".into(), sha256: String::new() };
        BreedReport { classifier, generated, real }
    }

    #[test]
    fn breeds_without_images_are_left_out_of_the_table_and_the_report() {
        let empty = Confusion::new(&["Maine_Coon".to_owned(), "Siamese".to_owned()]);
        let mut one = empty.clone();
        one.add(0, 0);
        let text = breeds(one.clone(), empty.clone()).to_string();
        assert!(text.contains("\nMaine Coon ") && !text.contains("Siamese"), "{text}");
        assert!(
            text.ends_with("100.0 %          -  (generated: 1 of 1, 95 % interval 20.7 to 100.0 %)"),
            "{text}"
        );
        let json = serde_json::to_value(breeds(one.clone(), empty.clone())).unwrap();
        assert_eq!(json["drawn"]["per_class"], json!([{"class": "Maine_Coon", "pictures": 1, "share": 1.0}]));
        assert_eq!(json["real"]["per_class"], json!([]));
        let none = breeds(empty, one).to_string();
        assert_eq!(none, "\nrequested breed: no generated image has a breed that judge.onnx knows");
    }
}
