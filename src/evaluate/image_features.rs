//! Values for the comparison of images: features, pixels, and the breeds that a classifier predicts.

use image::{RgbImage, imageops};
use tiny_cats_export::{Classifier, FeatureExtractor, decode, to_rgb};

use super::{Confusion, Event, Features, Result, event::Progress};
use crate::data::{Images, View};

/// The width at which pixels are compared, or that of the generated images if it is smaller.
const COMPARED_SIZE: u32 = 32;
/// The minimum accuracy on real images of a classifier that evaluates generated images.
const MIN_TRUSTED_ACCURACY: f64 = 0.5;

/// Computes the features of each image with `extractor`.
///
/// # Errors
/// Those of the extractor, and if there is no image or a feature is not finite.
pub(super) fn extract(
    extractor: &mut FeatureExtractor,
    images: &[RgbImage],
    batch: usize,
    subject: &'static str,
    observe: &mut dyn FnMut(Event),
) -> Result<Features> {
    let mut progress = Progress::new(observe, subject, images.len());
    let (mut dims, mut data) = (0, Vec::new());
    for chunk in images.chunks(batch) {
        let features = extractor.extract(chunk)?;
        dims = features.dims().last().copied().unwrap_or(0);
        data.extend(features.into_data());
        progress.add(chunk.len());
    }
    Features::new(dims, data)
}

/// Converts the images of a data set to 8-bit RGB.
///
/// # Errors
/// Those of [`Resident::fill`](crate::data::Resident::fill).
pub(super) fn to_rgb_images(images: &Images) -> Result<Vec<RgbImage>> {
    let mut values = vec![0.0; 3 * (images.size() * images.size()) as usize];
    let convert = |i| {
        let view = View::center(images.dimensions(i), images.size());
        images.fill(i, &view, images.size() as usize, &mut values)?;
        Ok(to_rgb(&values, images.size()))
    };
    (0..images.len()).map(convert).collect()
}

/// Converts the pixels of images to features from −1 (black) to 1 (white). Flips the images horizontally if `mirror` is true.
pub(super) fn pixels(images: &[RgbImage], mirror: bool) -> Result<Features> {
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
    Features::new(3 * (side * side) as usize, values.collect())
}

/// Classifies images, and counts the predictions per class. `classifier_labels` maps `labels` to those of the classifier.
///
/// # Errors
/// Those of the classifier.
pub(super) fn breed_confusion(
    classifier: &mut Classifier,
    images: &[RgbImage],
    labels: &[Option<usize>],
    classifier_labels: &[Option<usize>],
    batch: usize,
    observe: &mut dyn FnMut(Event),
) -> Result<Confusion> {
    let mut confusion = Confusion::new(&classifier.meta().classes);
    let mut progress = Progress::new(observe, "images classified", images.len());
    for (images, labels) in images.chunks(batch).zip(labels.chunks(batch)) {
        for (prediction, label) in classifier.classify(images)?.into_iter().zip(labels) {
            let expected = label.and_then(|label| classifier_labels[label]);
            if let (Some(expected), Some(best)) = (expected, prediction.candidates.first()) {
                confusion.add(expected, best.label);
            }
        }
        progress.add(images.len());
    }
    Ok(confusion)
}

/// The warning for a classifier that is too inaccurate on real images to evaluate generated ones.
pub(super) fn weak_classifier_warning(real: &Confusion, classifier_name: &str) -> Option<String> {
    (real.total() > 0 && real.accuracy() < MIN_TRUSTED_ACCURACY).then(|| {
        format!(
            "requested breed: {classifier_name} has an accuracy of {:.1} % on real images of this size, which is too low to evaluate generated images",
            100.0 * real.accuracy()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_resized_and_mirrored() {
        let images = [RgbImage::from_fn(64, 64, |x, _| image::Rgb([if x < 32 { 0 } else { 255 }; 3]))];
        let [plain, mirrored] = [false, true].map(|mirror| pixels(&images, mirror).unwrap());
        assert_eq!(plain.dims(), 3 * 32 * 32);
        assert_eq!((plain.row(0)[0], mirrored.row(0)[0]), (-1.0, 1.0));
    }

    #[test]
    fn only_a_classifier_with_low_accuracy_gives_a_warning() {
        let mut confusion = Confusion::new(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(weak_classifier_warning(&confusion, "x"), None);
        confusion.add(0, 1);
        assert!(
            weak_classifier_warning(&confusion, "x")
                .is_some_and(|text| text.contains("x has an accuracy of 0.0 %"))
        );
        confusion.add(1, 1);
        assert_eq!(weak_classifier_warning(&confusion, "x"), None);
    }
}
