//! What the tests of runtimes share.

use tiny_cats_export::{DIGEST_KEY, runtime::RuntimeKind};

/// The runtimes that must have taken part in a test of a graph of this operator set. A library that is named and does not load is no
/// reason to test less.
pub fn demanded(opset: u32) -> Vec<RuntimeKind> {
    let library = std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty());
    let demanded = |kind: &RuntimeKind| match kind {
        RuntimeKind::Tract => cfg!(feature = "tract"),
        RuntimeKind::Ort => cfg!(feature = "ort") && library,
        RuntimeKind::CandleOnnx => cfg!(feature = "candle-onnx") && opset <= 17,
        _ => false,
    };
    RuntimeKind::ALL.into_iter().filter(demanded).collect()
}

/// An ONNX file of ours as another program might have written it: its digest has a name that means nothing, so the file can be changed.
#[allow(dead_code)]
pub fn without_digest(mut bytes: Vec<u8>) -> Vec<u8> {
    let key = DIGEST_KEY.as_bytes();
    let place = bytes.windows(key.len()).position(|w| w == key).expect("a digest");
    bytes[place..place + key.len()].fill(b'-');
    bytes
}
