//! Released models that come with this crate; `pretrained/` holds their cards.

/// The generator, an ONNX file.
pub const TINYDIT: &[u8] = include_bytes!("../pretrained/tinydit.onnx");

/// All of them, by name.
pub const ALL: [(&str, &[u8]); 1] = [("tinydit", TINYDIT)];
