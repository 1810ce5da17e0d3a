//! ONNX files: graph, weights and metadata.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiny_cats_export::{Model, onnx::OnnxFile};

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::abort_on_panic(|| {
        match OnnxFile::from_bytes(bytes.to_vec(), "input") {
            Ok(file) => {
                for error in [file.meta().err(), file.weights().err()].into_iter().flatten() {
                    tiny_cats_fuzz::check_message(&error.to_string());
                }
            }
            Err(error) => tiny_cats_fuzz::check_message(&error.to_string()),
        }
        match Model::from_bytes(bytes.to_vec(), "input") {
            Ok(model) => drop(model.weights()),
            Err(error) => tiny_cats_fuzz::check_message(&error.to_string()),
        }
    });
});
