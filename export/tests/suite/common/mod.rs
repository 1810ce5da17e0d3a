//! Helpers for the tests of runtimes.

use tiny_cats_export::{DIGEST_KEY, runtime::RuntimeKind};

/// Returns the runtimes that a test of a graph of this operator set must cover. ONNX Runtime is required if `ORT_DYLIB_PATH` is set,
/// even if the library does not load.
pub fn required_runtimes(opset: u32) -> Vec<RuntimeKind> {
    let library = std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty());
    let required_runtimes = |kind: &RuntimeKind| match kind {
        RuntimeKind::Tract => cfg!(feature = "tract"),
        RuntimeKind::Ort => cfg!(feature = "ort") && library,
        RuntimeKind::CandleOnnx => cfg!(feature = "candle-onnx") && opset <= 17,
        _ => false,
    };
    RuntimeKind::ALL.into_iter().filter(required_runtimes).collect()
}

/// Returns one of our ONNX files with its digest disabled, by a meaningless key, so that a test can change the file.
#[allow(dead_code)]
pub fn without_digest(mut bytes: Vec<u8>) -> Vec<u8> {
    let key = DIGEST_KEY.as_bytes();
    let start = bytes.windows(key.len()).position(|w| w == key).expect("a digest");
    bytes[start..start + key.len()].fill(b'-');
    bytes
}
