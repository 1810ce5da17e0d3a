//! All metrics of the similarity of generated and real images.

use serde::Serialize;
use tiny_cats_models::random::{Purpose, Stream};

use super::{
    DENSITY_NEIGHBORS, DensityCoverage, Features, Interval, Kernel, PRECISION_NEIGHBORS, PrecisionRecall,
    Result, density_coverage, frechet_distance, frechet_interval, kernel_distance, precision_recall,
};

/// Images in a subset of the kernel distance, unless there are fewer.
const SUBSET: usize = 1000;
const SUBSETS: usize = 100;
/// The number of the random stream for halves, far from the streams for resamples and subsets.
const SPLIT_STREAM: u64 = 1 << 48;

/// The options of [`compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CompareOptions {
    /// Resamples for the Fréchet distance's interval. Their time grows with the cube of the number of features.
    pub frechet_resamples: usize,
    /// Resamples for the kernel distance's interval.
    pub kernel_resamples: usize,
    /// The seed of resamples and subsets.
    pub seed: u64,
}

/// The metrics of two sets of images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Number of real images.
    pub real: usize,
    /// Number of generated images.
    #[serde(rename = "drawn")]
    pub generated: usize,
    /// Number of features of each image.
    pub features: usize,
    /// The [Fréchet distance](frechet_distance).
    pub frechet: f64,
    /// Its interval; `None` without resamples.
    pub frechet_interval: Option<Interval>,
    /// The [kernel distance](kernel_distance).
    pub kernel: Kernel,
    /// Improved precision and recall; `None` if there are too few images.
    pub precision_recall: Option<PrecisionRecall>,
    /// Density and coverage; `None` if there are too few images.
    pub density_coverage: Option<DensityCoverage>,
    /// Warnings about the interpretation of these metrics, one line each.
    pub warnings: Vec<String>,
}

/// Compares two sets of images by their features.
///
/// # Errors
/// As [`frechet_distance`] and [`kernel_distance`]: fewer than two images on a side, features of different kinds or too many of them, too
/// many resamples.
pub fn compare(real: &Features, generated: &Features, options: &CompareOptions) -> Result<Comparison> {
    let smaller_count = real.len().min(generated.len());
    let frechet = frechet_distance(real, generated)?;
    let interval = match options.frechet_resamples {
        0 => None,
        resamples => frechet_interval(real, generated, resamples, options.seed)?,
    };
    let subsets = (SUBSETS, smaller_count.min(SUBSET));
    let kernel = kernel_distance(real, generated, subsets, options.kernel_resamples, options.seed)?;
    let mut warnings = Vec::new();
    if smaller_count <= real.dims() {
        warnings.push(format!(
            "Fréchet distance: {smaller_count} images are too few for {} features: the distance depends mainly on their number; expected \
             more images than features",
            real.dims()
        ));
    }
    let mut enough = |measure: &str, neighbors: usize| {
        if smaller_count <= neighbors {
            let expected = format!("expected more than {neighbors} on each side");
            warnings
                .push(format!("{measure}: skipped for too few images; {expected}, found {smaller_count}"));
        }
        smaller_count > neighbors
    };
    let precision = enough("precision and recall", PRECISION_NEIGHBORS)
        .then(|| precision_recall(real, generated, PRECISION_NEIGHBORS))
        .transpose()?;
    let density = enough("density and coverage", DENSITY_NEIGHBORS)
        .then(|| density_coverage(real, generated, DENSITY_NEIGHBORS))
        .transpose()?;
    Ok(Comparison {
        real: real.len(),
        generated: generated.len(),
        features: real.dims(),
        frechet,
        frechet_interval: interval,
        kernel,
        precision_recall: precision,
        density_coverage: density,
        warnings,
    })
}

/// Splits a set at random into two parts of half its size. Their distance is about the lowest that generated images can reach, for half
/// as many images.
///
/// # Errors
/// [`Shape`](super::Error::Shape) if there is only one image.
pub fn split_randomly(features: &Features, seed: u64) -> Result<[Features; 2]> {
    let order = Stream::new(seed, Purpose::Evaluation, SPLIT_STREAM).permutation(features.len());
    let order: Vec<usize> = order.into_iter().map(|index| index as usize).collect();
    let (a, b) = order.split_at(features.len() / 2);
    Ok([features.select(a)?, features.select(b)?])
}

/// The number of images to generate for each class, `total` in all, in proportion to `counts`. Uses the method of largest remainders; of
/// equal remainders, the earlier class comes first. All are 0 if all counts are 0.
pub fn proportional(counts: &[usize], total: usize) -> Vec<usize> {
    let sum: u128 = counts.iter().map(|&count| count as u128).sum();
    if sum == 0 {
        return vec![0; counts.len()];
    }
    let exact: Vec<u128> = counts.iter().map(|&count| count as u128 * total as u128).collect();
    let mut shares: Vec<usize> = exact.iter().map(|exact| (exact / sum) as usize).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(exact[i] % sum));
    let remaining = total - shares.iter().sum::<usize>();
    order.into_iter().take(remaining).for_each(|i| shares[i] += 1);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::features::tests::normal;

    #[test]
    fn proportional_counts_are_within_one_and_add_up() {
        assert_eq!(proportional(&[1, 1, 1], 2), [1, 1, 0]);
        assert_eq!(proportional(&[3, 0, 1], 8), [6, 0, 2]);
        assert_eq!(proportional(&[0, 0], 8), [0, 0]);
        let counts = [98, 100, 93, 81, 100, 92, 3, 0, 88, 100];
        for total in [0, 1, 2, 7, 100, 755, 2048] {
            let shares = proportional(&counts, total);
            assert_eq!(shares.iter().sum::<usize>(), total);
            for (&share, &count) in shares.iter().zip(&counts) {
                let exact = total as f64 * count as f64 / counts.iter().sum::<usize>() as f64;
                assert!((share as f64 - exact).abs() < 1.0, "{share} for {exact}");
                assert!(count > 0 || share == 0);
            }
        }
    }

    #[test]
    fn random_parts_contain_each_image_once() {
        let all = normal(1, 21, 2, 0.0);
        let parts = split_randomly(&all, 5).unwrap();
        assert_eq!([parts[0].len(), parts[1].len()], [10, 11]);
        let rows = |f: &Features| (0..f.len()).map(|i| f.row(i).to_vec()).collect::<Vec<_>>();
        let mut joined: Vec<Vec<f32>> = parts.iter().flat_map(rows).collect();
        let mut expected = rows(&all);
        joined.sort_by(|a, b| a[0].total_cmp(&b[0]));
        expected.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert_eq!(joined, expected);
    }

    #[test]
    fn too_few_images_give_warnings_or_errors() {
        let options = CompareOptions { frechet_resamples: 0, kernel_resamples: 0, seed: 0 };
        let compare_n = |n| compare(&normal(1, n, 4, 0.0), &normal(2, 40, 4, 0.0), &options);
        let warnings = |n| compare_n(n).unwrap().warnings;
        assert_eq!(warnings(6), Vec::<String>::new());
        assert!(warnings(5)[0].starts_with("density and coverage: skipped"));
        assert!(warnings(4)[0].contains("4 images are too few for 4 features"));
        let too_few = compare_n(3).unwrap();
        assert_eq!(
            (too_few.warnings.len(), too_few.precision_recall, too_few.density_coverage),
            (3, None, None)
        );
        assert!(compare_n(1).is_err());
    }
}
