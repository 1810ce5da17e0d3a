//! Released models that come with this crate; `pretrained/` holds their cards. Statics, because a constant of this size would be in the
//! program once for every place that names it.

/// The generator, an ONNX file.
pub static TINYDIT: &[u8] = include_bytes!("../pretrained/tinydit.onnx");

/// The classifier, an ONNX file.
pub static CLASSIFIER: &[u8] = include_bytes!("../pretrained/resnet18-breeds.onnx");

/// All of them, by name.
pub static ALL: [(&str, &[u8]); 2] = [("tinydit", TINYDIT), ("resnet18-breeds", CLASSIFIER)];
