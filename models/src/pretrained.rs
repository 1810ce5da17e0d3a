//! The released models; their model cards are in `pretrained/`. They are statics, because a constant of this size would be copied into
//! the program for each use.

/// The generator, as an ONNX file.
pub static TINYDIT: &[u8] = include_bytes!("../pretrained/tinydit.onnx");

/// The classifier, as an ONNX file.
pub static CLASSIFIER: &[u8] = include_bytes!("../pretrained/resnet18-breeds.onnx");

/// All released models, by name.
pub static ALL: [(&str, &[u8]); 2] = [("tinydit", TINYDIT), ("resnet18-breeds", CLASSIFIER)];
