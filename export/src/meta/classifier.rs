//! What a file says about a classifier.

use serde::{Deserialize, Serialize};
use tiny_cats_models::resnet::{MAX_IMAGE_SIZE, MIN_IMAGE_SIZE};

use super::FieldError;
use crate::Result;

const MAX_RESIZE: usize = 2 * MAX_IMAGE_SIZE;

/// How a photograph becomes the network's input, as torchvision does it: the shorter side is resized, the other in proportion, by the
/// triangle filter that widens as it shrinks (torchvision's `bilinear` with antialiasing, Pillow's `BILINEAR`); a square of the
/// network's picture size is cut from the centre; values of 0 to 1 are normalised, channel by channel (red, green, blue), as
/// `(value − mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// The shorter side after resizing, in pixels.
    pub resize: usize,
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Each channel is divided by it.
    pub std: [f32; 3],
}

impl Preprocessing {
    /// torchvision's for pictures of `image_size` pixels (256 and 224), with ImageNet's mean and standard deviation.
    pub fn imagenet(image_size: usize) -> Self {
        let resize = (image_size as f64 * 8.0 / 7.0).round() as usize;
        Self { resize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

/// What a program must know to classify with a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierMeta {
    /// From photograph to input.
    pub preprocessing: Preprocessing,
}

impl ClassifierMeta {
    pub(super) fn check(&self, image_size: usize) -> Result<(), FieldError> {
        let Preprocessing { resize, mean, std } = &self.preprocessing;
        if !(MIN_IMAGE_SIZE..=MAX_IMAGE_SIZE).contains(&image_size) {
            let message = format!("expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}, found {image_size}");
            return Err(("image_size", message));
        }
        if !(image_size..=MAX_RESIZE).contains(resize) {
            let message = format!("expected {image_size} to {MAX_RESIZE}, found {resize}");
            return Err(("preprocessing.resize", message));
        }
        // The values that black and white become.
        let ends = mean.iter().zip(std).flat_map(|(mean, std)| [-mean / std, (1.0 - mean) / std]);
        if !(ends.into_iter().all(f32::is_finite) && std.iter().all(|&std| std > 0.0)) {
            let message =
                format!("expected finite means and positive deviations, found {mean:?} and {std:?}");
            return Err(("preprocessing", message));
        }
        Ok(())
    }
}
