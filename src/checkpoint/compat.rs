//! Checkpoints of the Python project tiny-cats-model: how they are recognized, and the values that they do not hold. The layouts of their
//! weights are among those of other programs.

use tiny_cats_export::PREDECESSOR_CLASSES;

use super::torch::Value;

/// The image size that the project's and torchvision's classifiers are trained on, in pixels.
pub(super) const CLASSIFIER_IMAGE_SIZE: usize = 224;
/// The default image size of the project's generators, in pixels.
pub(super) const GENERATOR_IMAGE_SIZE: usize = 128;
/// The default width of an attention head in the project's generators.
const HEAD: usize = 64;
/// A key, the width of the network, that only the project's trainer of generators writes into a configuration.
pub(super) const EMBED_DIM: &str = "embed_dim";

/// True if a PyTorch file with `model_state_dict` is from the project's trainer of classifiers.
pub(super) fn is_classifier(root: &Value) -> bool {
    ["epoch", "val_acc", "timestamp"].iter().all(|key| root.get(key).is_some())
}

/// Returns the default number of attention heads of a generator of this width.
pub(super) fn heads(width: usize) -> usize {
    if width.is_multiple_of(HEAD) { width / HEAD } else { 6 }
}

/// Returns the class names of a network with as many classes as the project's. Other networks have numbers as names.
pub(super) fn class_names(classes: usize) -> Option<Vec<String>> {
    (classes == PREDECESSOR_CLASSES.len()).then(|| PREDECESSOR_CLASSES.map(String::from).to_vec())
}
