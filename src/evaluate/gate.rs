//! The release gate: criteria for releasing a generator. Each criterion rejects one kind of failure: noise, chance, blur, copies of the
//! training data, or runtimes that compute different images.

use std::{fmt, io};

use image::RgbImage;
use serde::Serialize;
use tiny_cats_export::{MIN_PSNR, RuntimeReport, VerificationReport, display_size, grid, png};

use super::{
    Confusion, Features, Interval, Result,
    bootstrap::{quantile, resample},
    kernel_distance, memorization,
};
use crate::data::mirrored;

/// The largest PNG size of a grid, as a fraction of its uncompressed bytes. Noise with the variance of photographs exceeds it.
pub const MAX_COMPRESSED_SHARE: f64 = 0.8;
/// The smallest rate at which the requested breed is recognized in generated images, relative to the rate for real images.
pub const MIN_BREED_RATE: f64 = 0.5;
/// The standard deviation of the blur that generated images must surpass, in pixels of the generator.
pub const BLUR_SIGMA_PX: f64 = 2.0;
/// Resamples for the kernel distances' intervals.
const RESAMPLES: usize = 200;

/// The result of one criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Criterion {
    /// The name of the criterion.
    pub name: &'static str,
    /// The metric that is compared; `None` if it cannot be computed.
    pub value: Option<f64>,
    /// The bound that it is compared with.
    pub bound: f64,
    /// The side of the bound on which it must be.
    pub expected: BoundKind,
    /// True if it is on that side.
    pub passed: bool,
    /// The values that the metric is computed from.
    pub detail: Detail,
}

/// The side of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundKind {
    /// Below the bound.
    Less,
    /// At the bound or above.
    AtLeast,
}

/// The values that the metric of a criterion is computed from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Detail {
    /// PNG sizes of images, as fractions of their uncompressed bytes.
    Compression {
        /// Number of images in the grid.
        #[serde(rename = "pictures")]
        images: usize,
        /// The fraction for a grid of as many held-out photographs.
        held_out: f64,
    },
    /// Rates at which the breed is recognized.
    Breeds {
        /// The rate in generated images.
        #[serde(rename = "drawn")]
        generated: Rate,
        /// The rate in held-out photographs of as many pixels.
        held_out: Rate,
    },
    /// Kernel distances to the held-out photographs.
    Kernel {
        /// The distance of the generated images.
        #[serde(rename = "drawn")]
        generated: Distance,
        /// The distance of the training photographs, blurred.
        blurred: Distance,
        /// The distance of the training photographs, unchanged: about the best that can be expected.
        training: Distance,
        /// The blur's standard deviation, in pixels of the generator.
        sigma: f64,
    },
    /// Distances to the nearest training photograph, mirrored or not: root mean squares of differences of values in [−1, 1].
    Nearest {
        /// The distances of the generated images.
        #[serde(rename = "drawn")]
        generated: DistanceSummary,
        /// The distances of held-out photographs.
        held_out: DistanceSummary,
        /// Number of training photographs.
        training: usize,
    },
    /// Differences between the runtimes and the definition.
    Runtimes {
        /// The runtimes that the file was compared on.
        runtimes: Vec<RuntimeReport>,
        /// The runtimes that were skipped.
        skipped: Vec<String>,
        /// The failures, in one line; `None` if there are none.
        failures: Option<String>,
    },
}

/// A rate at which the breed is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Number of images in which it is recognized.
    pub correct: u32,
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: u32,
    /// The fraction of images in which it is recognized.
    pub share: f64,
    /// Its 95 % interval (Wilson 1927).
    pub interval: [f64; 2],
}

/// A [kernel distance](kernel_distance).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// The unbiased estimate from all images.
    pub distance: f64,
    /// Its interval; `None` if there are too few images.
    pub interval: Option<Interval>,
}

/// The distribution of some distances.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DistanceSummary {
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// The median distance.
    pub median: f64,
    /// Its 95 % interval, by the bootstrap.
    pub interval: [f64; 2],
    /// The 5 % quantile of the distances.
    pub percentile_5: f64,
}

impl Criterion {
    fn new(name: &'static str, value: Option<f64>, expected: BoundKind, bound: f64, detail: Detail) -> Self {
        let passed = value.is_some_and(|value| match expected {
            BoundKind::Less => value < bound,
            BoundKind::AtLeast => value >= bound,
        });
        Self { name, value, bound, expected, passed, detail }
    }
}

/// Checks that images are not noise, which does not compress: the PNG size of a [`grid`] of them without labels, as a fraction of its
/// uncompressed bytes. A grid of as many of `held_out` is measured for comparison.
///
/// # Errors
/// Returns errors of PNG encoding.
pub fn compression(generated: &[RgbImage], held_out: &[RgbImage]) -> io::Result<Criterion> {
    let share = |images: &[RgbImage]| -> io::Result<f64> {
        let columns = images.len().isqrt();
        let bytes =
            images.iter().map(|image| 3.0 * f64::from(display_size(image.width())).powi(2)).sum::<f64>();
        Ok(png(&grid(images, columns, None))?.len() as f64 / bytes)
    };
    // Evenly spaced, so that all breeds are included.
    let count = generated.len().min(held_out.len());
    let sample: Vec<RgbImage> = (0..count).map(|i| held_out[i * held_out.len() / count].clone()).collect();
    let detail = Detail::Compression { images: generated.len(), held_out: share(&sample)? };
    Ok(Criterion::new("compression", Some(share(generated)?), BoundKind::Less, MAX_COMPRESSED_SHARE, detail))
}

/// Checks that breeds are recognizable in generated images: the rate at which a classifier recognizes the requested breed, relative to its
/// rate for real images. If the classifier recognizes no breed in real images, the criterion fails.
pub fn breeds(generated: &Confusion, held_out: &Confusion) -> Criterion {
    let rate = |set: &Confusion| Rate {
        correct: set.correct(),
        images: set.total(),
        share: set.accuracy(),
        interval: set.interval(),
    };
    let value = (generated.total() > 0 && held_out.correct() > 0).then(|| generated.accuracy());
    let detail = Detail::Breeds { generated: rate(generated), held_out: rate(held_out) };
    Criterion::new("breed as asked", value, BoundKind::AtLeast, MIN_BREED_RATE * held_out.accuracy(), detail)
}

/// Checks that generated images are nearer to held-out photographs than blurred images are, by the [kernel distance](kernel_distance) of
/// features to those of `held_out`.
///
/// # Errors
/// [`TooFew`](super::Error::TooFew) if there are fewer than two images of a kind, [`Shape`](super::Error::Shape) if the features are of
/// different kinds.
pub fn kernel(
    held_out: &Features,
    generated: &Features,
    blurred: &Features,
    training: &Features,
    seed: u64,
) -> Result<Criterion> {
    // Subsets are not needed, so their number is minimal.
    let distance = |set: &Features| -> Result<Distance> {
        let found = kernel_distance(held_out, set, (1, 2), RESAMPLES, seed)?;
        Ok(Distance { distance: found.distance, interval: found.interval })
    };
    let (generated, blurred, training) = (distance(generated)?, distance(blurred)?, distance(training)?);
    let (value, bound) = (generated.distance, blurred.distance);
    let detail = Detail::Kernel { generated, blurred, training, sigma: BLUR_SIGMA_PX };
    Ok(Criterion::new("kernel distance", Some(value), BoundKind::Less, bound, detail))
}

/// Checks that images of the training data are not repeated: generated images must be as far from the nearest one as held-out photographs
/// are, in the median.
///
/// All features are pixels; `training` are the photographs and, optionally, their mirror images. The bootstrap intervals of the medians are
/// reported, but do not affect the result.
///
/// # Errors
/// As [`memorization()`].
pub fn nearest(
    training: &[&Features],
    generated: &Features,
    held_out: &Features,
    seed: u64,
) -> Result<Criterion> {
    let distances = |images: &Features| -> Result<DistanceSummary> {
        let found = memorization(training, images)?.nearest;
        let mut sorted: Vec<f64> = found.iter().map(|nearest| nearest.distance).collect();
        sorted.sort_by(f64::total_cmp);
        let scale = (images.dims() as f64).sqrt();
        let at = |share| quantile(&sorted, share) / scale;
        let medians = (0..RESAMPLES).map(|number| {
            let counts = resample(seed, number, 0, sorted.len()).into_iter().map(|count| count as usize);
            let resampled: Vec<f64> =
                counts.zip(&sorted).flat_map(|(n, &x)| std::iter::repeat_n(x, n)).collect();
            quantile(&resampled, 0.5) / scale
        });
        let median = at(0.5);
        let interval = Interval::new(median, medians.collect()).map_or([median; 2], |i| [i.low, i.high]);
        Ok(DistanceSummary { images: images.len(), median, interval, percentile_5: at(0.05) })
    };
    let (generated, held_out) = (distances(generated)?, distances(held_out)?);
    let training = training.first().map_or(0, |images| images.len());
    let detail = Detail::Nearest { generated, held_out, training };
    Ok(Criterion::new(
        "nearest training picture",
        Some(generated.median),
        BoundKind::AtLeast,
        held_out.median,
        detail,
    ))
}

/// Checks that the file generates the same images on every available runtime, by the result of verifying whole trajectories. The metric is
/// the lowest peak signal-to-noise ratio of a trajectory, in dB; all other requirements of verification must hold, too.
pub fn runtimes(found: tiny_cats_export::Result<VerificationReport>) -> Criterion {
    let (value, detail) = match found {
        Ok(report) => {
            let mut ratios = report.runtimes.iter().map(|runtime| runtime.trajectory_psnr);
            let min = ratios.try_fold(f64::INFINITY, |min, ratio| Some(min.min(ratio?)));
            let failures = (!report.passed).then(|| report.failures());
            let skipped = report.skipped.into_iter().map(|(name, _)| name).collect();
            (min, Detail::Runtimes { runtimes: report.runtimes, skipped, failures })
        }
        Err(error) => {
            let failures = Some(error.to_string());
            (None, Detail::Runtimes { runtimes: Vec::new(), skipped: Vec::new(), failures })
        }
    };
    let failed = matches!(&detail, Detail::Runtimes { failures: Some(_), .. });
    let criterion = Criterion::new("runtimes", value, BoundKind::AtLeast, MIN_PSNR, detail);
    Criterion { passed: criterion.passed && !failed, ..criterion }
}

/// Blurs `image` with a Gaussian of standard deviation `sigma` in pixels, more than 0, truncated at four of them. Beyond its borders the
/// image is mirrored, as in SciPy's `gaussian_filter` by default.
pub fn blur(image: &RgbImage, sigma: f64) -> RgbImage {
    let radius = (4.0 * sigma).round() as i32;
    let weights: Vec<f64> =
        (-radius..=radius).map(|i| (-0.5 * (f64::from(i) / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    // Blurs along an axis of `len` positions that are `stride` values apart.
    let blur_axis = |values: &[f64], len: usize, stride: usize| -> Vec<f64> {
        let value = |at: usize| {
            let position = at / stride % len;
            let first = at - position * stride;
            let tap = |(weight, offset): (&f64, i32)| {
                weight * values[first + stride * mirrored(position as i32 + offset, len)]
            };
            weights.iter().zip(-radius..=radius).map(tap).sum::<f64>() / sum
        };
        (0..values.len()).map(value).collect()
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values: Vec<f64> = image.as_raw().iter().copied().map(f64::from).collect();
    let values = blur_axis(&blur_axis(&values, width, 3), height, 3 * width);
    let mut blurred = image.clone();
    blurred.iter_mut().zip(values).for_each(|(byte, value)| *byte = value.round() as u8);
    blurred
}

impl fmt::Display for Criterion {
    /// Formats the found and the expected values in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.detail {
            Detail::Compression { images, held_out } => write!(
                f,
                "PNG takes {:.3} of the bytes of {images} generated images; expected less than {:.1} (photographs: {held_out:.3})",
                self.value.unwrap_or(f64::NAN),
                self.bound
            ),
            Detail::Breeds { generated, held_out } if self.value.is_none() => write!(
                f,
                "the classifier recognizes the breed in {} of {} photographs; expected at least one ({} of {} generated images)",
                held_out.correct, held_out.images, generated.correct, generated.images
            ),
            Detail::Breeds { generated, held_out } => write!(
                f,
                "{generated} generated images; expected at least {:.1} %, half the rate for photographs, {held_out}",
                100.0 * self.bound
            ),
            Detail::Kernel { generated, blurred, training, sigma } => write!(
                f,
                "{} × 1000; expected less than {} of photographs blurred by {sigma} px (not blurred: {:.2})",
                times_thousand(generated),
                times_thousand(blurred),
                1e3 * training.distance
            ),
            Detail::Nearest { generated, held_out, training } => write!(
                f,
                "median distance {generated} to {training} photographs and their mirror images; expected at least {:.4}, that of held-out \
                 photographs, {held_out}",
                self.bound
            ),
            Detail::Runtimes { runtimes, skipped, failures } => {
                let ratio = |r: &RuntimeReport| {
                    r.trajectory_psnr.map(|db| format!("{} {} {db:.1} dB", r.runtime, r.version))
                };
                let result = match failures {
                    Some(failures) => failures.clone(),
                    None => runtimes.iter().filter_map(ratio).collect::<Vec<_>>().join(", "),
                };
                let skipped_names = match &skipped[..] {
                    [] => String::new(),
                    names => format!(" (skipped: {})", names.join(", ")),
                };
                write!(
                    f,
                    "{result}; expected trajectories of at least {:.0} dB on each{skipped_names}",
                    self.bound
                )
            }
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [share, low, high] = [self.share, self.interval[0], self.interval[1]].map(|share| 100.0 * share);
        write!(f, "{share:.1} % ({low:.1} to {high:.1} %) of {}", self.images)
    }
}

impl fmt::Display for DistanceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([low, high], fifth) = (self.interval, self.percentile_5);
        write!(f, "{:.4} ({low:.4} to {high:.4}; 5th percentile {fifth:.4})", self.median)
    }
}

/// Formats a kernel distance × 1000, with its interval.
fn times_thousand(kernel: &Distance) -> String {
    let interval = |Interval { low, high, .. }: Interval| format!(" ({:.2} to {:.2})", 1e3 * low, 1e3 * high);
    format!("{:.2}{}", 1e3 * kernel.distance, kernel.interval.map_or_else(String::new, interval))
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tiny_cats_export::TOLERANCE;
    use tiny_cats_models::random::{Purpose, Stream};

    use super::*;
    use crate::evaluate::features::tests::normal;

    /// Images of 32 px of normal noise with this standard deviation around gray.
    fn noise(deviation: f32, count: usize) -> Vec<RgbImage> {
        let mut stream = Stream::new(1, Purpose::Evaluation, 0);
        let mut image = || {
            let mut values = stream.normals(3 * 32 * 32).into_iter();
            let mut next = || ((deviation * values.next().unwrap() + 1.0) * 127.5).clamp(0.0, 255.0) as u8;
            RgbImage::from_fn(32, 32, |_, _| Rgb([next(), next(), next()]))
        };
        (0..count).map(|_| image()).collect()
    }

    #[test]
    fn noise_fails_and_smooth_images_pass_the_compression_criterion() {
        let noise = noise(0.52, 24);
        let smooth: Vec<RgbImage> = noise.iter().map(|image| blur(image, 1.5)).collect();
        let [rough, smooth] = [(&noise, &smooth), (&smooth, &noise)].map(|(a, b)| compression(a, b).unwrap());
        assert!(!rough.passed && smooth.passed, "{rough}\n{smooth}");
        assert!(
            matches!(rough.detail, Detail::Compression { images: 24, held_out } if Some(held_out) == smooth.value)
        );
    }

    fn confusion(right: u32, wrong: u32) -> Confusion {
        Confusion { classes: vec!["A".into(), "B".into()], counts: vec![vec![right, wrong], vec![0, 0]] }
    }

    #[test]
    fn half_the_breed_rate_of_photographs_passes() {
        let criterion_of = |generated, real: (u32, u32)| breeds(&generated, &confusion(real.0, real.1));
        assert!(criterion_of(confusion(3, 7), (6, 4)).passed);
        let less = criterion_of(confusion(29, 71), (6, 4));
        assert!(!less.passed);
        assert_eq!((less.value, less.bound), (Some(0.29), 0.3));
        assert!(
            less.to_string().starts_with("breed as asked: 29.0 % (21.0 to 38.5 %) of 100 generated"),
            "{less}"
        );
        // A classifier that recognizes no breed would accept any images.
        for (generated, real) in [((0, 9), (0, 9)), ((9, 0), (0, 9)), ((0, 0), (9, 0))] {
            let none = criterion_of(confusion(generated.0, generated.1), real);
            assert!(!none.passed && none.value.is_none(), "{none}");
        }
    }

    #[test]
    fn images_nearer_than_blurred_photographs_pass() {
        let [held_out, near, far, training] =
            [(1, 0.0), (2, 0.3), (3, 0.9), (4, 0.0)].map(|(stream, shift)| normal(stream, 80, 4, shift));
        let criterion_of = |generated, blurred| kernel(&held_out, generated, blurred, &training, 0).unwrap();
        assert!(
            criterion_of(&near, &far).passed
                && !criterion_of(&far, &near).passed
                && !criterion_of(&near, &near).passed
        );
        assert_eq!(criterion_of(&near, &far).bound, criterion_of(&far, &near).value.unwrap());
        let Detail::Kernel { generated, .. } = criterion_of(&near, &far).detail else {
            panic!("another detail")
        };
        let interval = generated.interval.unwrap();
        assert!(interval.low < generated.distance && generated.distance < interval.high);
        assert!(kernel(&held_out, &normal(2, 1, 4, 0.0), &far, &training, 0).is_err());
    }

    #[test]
    fn copies_of_training_images_fail() {
        let [training, held_out, generated] = [1, 2, 3].map(|stream| normal(stream, 60, 16, 0.0));
        let copies = nearest(&[&training], &training, &held_out, 0).unwrap();
        assert!(!copies.passed && copies.value == Some(0.0), "{copies}");
        let farther = normal(3, 60, 16, 1.0);
        assert!(nearest(&[&training], &farther, &held_out, 0).unwrap().passed);
        // Held-out images are exactly as far away as themselves.
        assert!(nearest(&[&training], &held_out, &held_out, 0).unwrap().passed);
        let Detail::Nearest { generated, .. } =
            nearest(&[&training], &generated, &held_out, 0).unwrap().detail
        else {
            panic!("another detail")
        };
        // Root mean squares: two independent normal numbers differ by √2, and the nearest of 60 by less.
        assert!(
            (0.4..1.4).contains(&generated.median) && generated.percentile_5 < generated.median,
            "{generated:?}"
        );
    }

    #[test]
    fn differing_runtimes_fail_and_skipped_ones_are_listed() {
        let runtime = |name: &str, db: Option<f64>, passed| RuntimeReport {
            runtime: name.into(),
            version: "1".into(),
            max_absolute_error: 0.0,
            max_relative_error: 0.0,
            tolerance_used: 0.0,
            trajectory_psnr: db,
            same_class: None,
            error: None,
            diagnosis: None,
            passed,
        };
        let report = |runtimes: Vec<RuntimeReport>| VerificationReport {
            tiny_cats: String::new(),
            bytes: 0,
            opset: 17,
            parameters: 0,
            reference: "candle".into(),
            tolerance: TOLERANCE,
            inputs: 1,
            batches: vec![1],
            passed: runtimes.iter().all(|r| r.passed),
            rounding: None,
            runtimes,
            skipped: vec![("other".into(), "its library is missing".into())],
        };
        let [good, bad] = [(100.0, true), (30.0, false)].map(|(db, ok)| runtime("b", Some(db), ok));
        let criterion_of = |second| runtimes(Ok(report(vec![runtime("a", Some(120.0), true), second])));
        let passed = criterion_of(good);
        assert!(passed.passed && passed.value == Some(100.0), "{passed}");
        assert!(
            passed.to_string().contains("a 1 120.0 dB, b 1 100.0 dB") && passed.to_string().contains("other")
        );
        assert!(!criterion_of(bad).passed && !criterion_of(runtime("b", Some(100.0), false)).passed);
        assert!(!criterion_of(runtime("b", None, true)).passed);
        let broken = runtimes(Err(tiny_cats_export::Error::Verification("no numbers".into())));
        assert!(!broken.passed && broken.to_string().contains("no numbers"), "{broken}");
    }

    #[test]
    fn the_blur_has_the_requested_deviation_and_keeps_constant_images() {
        let constant = RgbImage::from_pixel(5, 9, Rgb([3, 100, 255]));
        assert_eq!(blur(&constant, BLUR_SIGMA_PX), constant);
        // The differences of a blurred edge are the Gaussian itself: their deviation is the blur's, along both axes.
        for horizontal in [true, false] {
            let edge = RgbImage::from_fn(40, 40, |x, y| {
                if (if horizontal { x } else { y }) < 20 { Rgb([0; 3]) } else { Rgb([255; 3]) }
            });
            let blurred = blur(&edge, BLUR_SIGMA_PX);
            let at = |i: u32| {
                f64::from(
                    blurred.get_pixel(if horizontal { i } else { 7 }, if horizontal { 7 } else { i })[1],
                )
            };
            let variance: f64 =
                (0..39).map(|i| (at(i + 1) - at(i)) / 255.0 * (f64::from(i) - 19.0).powi(2)).sum();
            assert!((variance - BLUR_SIGMA_PX * BLUR_SIGMA_PX).abs() < 0.1, "{variance}");
        }
        // Images are mirrored at the borders, so nothing gets darker there.
        let small = RgbImage::from_fn(4, 3, |x, _| Rgb([if x == 0 { 200 } else { 100 }; 3]));
        let mean = |p: &RgbImage| p.iter().map(|&v| f64::from(v)).sum::<f64>() / p.len() as f64;
        assert!((mean(&blur(&small, BLUR_SIGMA_PX)) - mean(&small)).abs() < 0.5);
    }
}
