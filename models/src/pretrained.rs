//! Released models that come with this crate; `pretrained/` holds their cards.

/// The generator, an ONNX file.
pub const TINYDIT: &[u8] = include_bytes!("../pretrained/tinydit.onnx");

/// The classifier, an ONNX file.
pub const CLASSIFIER: &[u8] = include_bytes!("../pretrained/resnet18-breeds.onnx");

/// All of them, by name.
pub const ALL: [(&str, &[u8]); 2] = [("tinydit", TINYDIT), ("resnet18-breeds", CLASSIFIER)];
