//! Values for the comparison of images: features, pixels, and the breeds that a classifier predicts.

use image::{RgbImage, imageops};
use tiny_cats_export::{Classifier, FeatureExtractor, decode, to_rgb};

use super::progress_bar;
use crate::{
    data::{Images, View},
    evaluate::{Confusion, Features},
};

/// The width at which pixels are compared, or that of the generated images if it is smaller.
const COMPARED_SIZE: u32 = 32;
/// The minimum accuracy on real images of a classifier that evaluates generated images.
const MIN_TRUSTED_ACCURACY: f64 = 0.5;

/// Computes the features of each image with `extractor`.
pub fn extract(
    extractor: &mut FeatureExtractor,
    images: &[RgbImage],
    batch: usize,
    label: &str,
) -> anyhow::Result<Features> {
    let progress = progress_bar(images.len() as u64, label)?;
    let (mut dims, mut data) = (0, Vec::new());
    for chunk in images.chunks(batch) {
        let features = extractor.extract(chunk)?;
        dims = features.dims().last().copied().unwrap_or(0);
        data.extend(features.into_data());
        progress.inc(chunk.len() as u64);
    }
    progress.finish_and_clear();
    Ok(Features::new(dims, data)?)
}

/// Converts the images of a data set to 8-bit RGB.
///
/// # Errors
/// Those of [`Resident::fill`](crate::data::Resident::fill).
pub fn to_rgb_images(images: &Images) -> anyhow::Result<Vec<RgbImage>> {
    let mut values = vec![0.0; 3 * (images.size() * images.size()) as usize];
    let convert = |i| {
        let view = View::center(images.dimensions(i), images.size());
        images.fill(i, &view, images.size() as usize, &mut values)?;
        Ok(to_rgb(&values, images.size()))
    };
    (0..images.len()).map(convert).collect()
}

/// Converts the pixels of images to features from −1 (black) to 1 (white). Flips the images horizontally if `mirror` is true.
pub fn pixels(images: &[RgbImage], mirror: bool) -> anyhow::Result<Features> {
    let side = images.first().map_or(1, RgbImage::width).min(COMPARED_SIZE);
    let values = images.iter().flat_map(|image| {
        let (width, height) = image.dimensions();
        let mut resized = match width == side {
            true => image.clone(),
            false => decode::resize_region(image, [0, 0, width, height], [side, side]),
        };
        if mirror {
            imageops::flip_horizontal_in_place(&mut resized);
        }
        resized.into_raw().into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0)
    });
    Ok(Features::new(3 * (side * side) as usize, values.collect())?)
}

/// Classifies images, and counts the predictions per class. `classifier_labels` maps `labels` to those of the classifier.
pub fn breed_confusion(
    classifier: &mut Classifier,
    images: &[RgbImage],
    labels: &[Option<usize>],
    classifier_labels: &[Option<usize>],
    batch: usize,
) -> anyhow::Result<Confusion> {
    let mut confusion = Confusion::new(&classifier.meta().classes);
    let progress = progress_bar(images.len() as u64, "images classified")?;
    for (images, labels) in images.chunks(batch).zip(labels.chunks(batch)) {
        for (prediction, label) in classifier.classify(images)?.into_iter().zip(labels) {
            let expected = label.and_then(|label| classifier_labels[label]);
            if let (Some(expected), Some(best)) = (expected, prediction.candidates.first()) {
                confusion.add(expected, best.label);
            }
        }
        progress.inc(images.len() as u64);
    }
    progress.finish_and_clear();
    Ok(confusion)
}

/// Warns if a classifier is too inaccurate on real images to evaluate generated ones.
pub fn warn_weak_classifier(real: &Confusion, classifier_name: &str) {
    if real.total() > 0 && real.accuracy() < MIN_TRUSTED_ACCURACY {
        eprintln!(
            "warning: requested breed: {classifier_name} has an accuracy of {:.1} % on real images of this size, which is too low to evaluate generated images",
            100.0 * real.accuracy()
        );
    }
}
