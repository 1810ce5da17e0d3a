//! Values computed from images to compare them: features, pixels, and the breed that a classifier finds.

use image::{RgbImage, imageops};
use tiny_cats_export::{Classifier, FeatureExtractor, decode, to_rgb};

use super::bar;
use crate::{
    data::{Images, View},
    evaluate::{Confusion, Features},
};

/// The width at which pixels are compared, or the generated images' own if that is smaller.
const COMPARED_SIZE: u32 = 32;
/// The minimum accuracy on real images of a classifier that evaluates generated ones.
const MIN_TRUSTED_ACCURACY: f64 = 0.5;

/// Computes the features of each image with `extractor`.
pub fn extract(
    extractor: &mut FeatureExtractor,
    images: &[RgbImage],
    batch: usize,
    what: &str,
) -> anyhow::Result<Features> {
    let progress = bar(images.len() as u64, what)?;
    let (mut dims, mut data) = (0, Vec::new());
    for part in images.chunks(batch) {
        let features = extractor.extract(part)?;
        dims = features.dims().last().copied().unwrap_or(0);
        data.extend(features.into_data());
        progress.inc(part.len() as u64);
    }
    progress.finish_and_clear();
    Ok(Features::new(dims, data)?)
}

/// The images of a data set as bytes.
///
/// # Errors
/// Those of [`Resident::fill`](crate::data::Resident::fill).
pub fn pictures(images: &Images) -> anyhow::Result<Vec<RgbImage>> {
    let mut values = vec![0.0; 3 * (images.size() * images.size()) as usize];
    let picture = |i| {
        let all = View::center(images.dimensions(i), images.size());
        images.fill(i, &all, images.size() as usize, &mut values)?;
        Ok(to_rgb(&values, images.size()))
    };
    (0..images.len()).map(picture).collect()
}

/// The pixels themselves as features, from −1 (black) to 1 (white), mirrored if `mirrored`.
pub fn pixels(images: &[RgbImage], mirrored: bool) -> anyhow::Result<Features> {
    let side = images.first().map_or(1, RgbImage::width).min(COMPARED_SIZE);
    let values = images.iter().flat_map(|image| {
        let (width, height) = image.dimensions();
        let mut small = match width == side {
            true => image.clone(),
            false => decode::resize_region(image, [0, 0, width, height], [side, side]),
        };
        if mirrored {
            imageops::flip_horizontal_in_place(&mut small);
        }
        small.into_raw().into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0)
    });
    Ok(Features::new(3 * (side * side) as usize, values.collect())?)
}

/// Classifies images of known classes, by the classifier's own labels.
pub fn breed_confusion(
    classifier: &mut Classifier,
    images: &[RgbImage],
    labels: &[Option<usize>],
    known: &[Option<usize>],
    batch: usize,
) -> anyhow::Result<Confusion> {
    let mut confusion = Confusion::new(&classifier.meta().classes);
    let progress = bar(images.len() as u64, "pictures classified")?;
    for (images, labels) in images.chunks(batch).zip(labels.chunks(batch)) {
        for (prediction, label) in classifier.classify(images)?.into_iter().zip(labels) {
            let truth = label.and_then(|label| known[label]);
            if let (Some(truth), Some(best)) = (truth, prediction.candidates.first()) {
                confusion.add(truth, best.label);
            }
        }
        progress.inc(images.len() as u64);
    }
    progress.finish_and_clear();
    Ok(confusion)
}

/// Warns if a classifier is too inaccurate on real images to evaluate generated ones.
pub fn warn_weak_classifier(real: &Confusion, judge: &str) {
    if real.total() > 0 && real.accuracy() < MIN_TRUSTED_ACCURACY {
        eprintln!(
            "warning: breed as asked: {judge} finds the breed of {:.1} % of the real pictures at this size, so it is no judge of drawn ones",
            100.0 * real.accuracy()
        );
    }
}
