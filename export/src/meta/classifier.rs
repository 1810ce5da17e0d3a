//! The metadata of a classifier.

use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::Result;

/// Maximum side of a resized image, in pixels.
const MAX_RESIZE: usize = 2048;

/// The preprocessing of a photograph for the network, as in torchvision.
///
/// The shorter side is resized, and the other in proportion, with a triangle filter (torchvision's `bilinear` with
/// antialiasing, Pillow's `BILINEAR`). A square of the network's image size is cropped from the center. Values from 0
/// to 1 are normalized, channel by channel (red, green, blue), as `(value − mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// The shorter side after resizing, in pixels.
    pub resize: usize,
    /// Mean of each channel, which is subtracted.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, which divides the difference.
    pub std: [f32; 3],
}

impl Preprocessing {
    /// Returns torchvision's preprocessing for images of `image_size` pixels (224, resized to 256), with ImageNet's mean and
    /// standard deviation.
    pub fn imagenet(image_size: usize) -> Self {
        let resize = (image_size as f64 * 8.0 / 7.0).round() as usize;
        Self { resize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

/// The metadata that a program needs to classify with a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierMeta {
    /// Conversion of a photograph to the network's input.
    pub preprocessing: Preprocessing,
}

impl ClassifierMeta {
    pub(super) fn check(&self, image_size: usize) -> Result<(), FieldError> {
        let Preprocessing { resize, mean, std } = &self.preprocessing;
        if !(image_size..=MAX_RESIZE).contains(resize) {
            let message = format!("expected {image_size} to {MAX_RESIZE}, found {resize}");
            return Err(("preprocessing.resize", message));
        }
        // The normalized values of black and white must be finite.
        let extremes = mean.iter().zip(std).flat_map(|(mean, std)| [-mean / std, (1.0 - mean) / std]);
        if !(extremes.into_iter().all(f32::is_finite) && std.iter().all(|&std| std > 0.0)) {
            let message =
                format!("expected finite means and positive standard deviations, found {mean:?} and {std:?}");
            return Err(("preprocessing", message));
        }
        Ok(())
    }
}
