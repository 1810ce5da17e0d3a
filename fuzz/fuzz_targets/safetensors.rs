//! Safetensors files: as a checkpoint, and as a model to run.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiny_cats_export::Model;

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::escaped(|| {
        tiny_cats_fuzz::checkpoint(bytes);
        match Model::from_bytes(bytes.to_vec(), "input") {
            Ok(model) => drop(model.weights()),
            Err(error) => tiny_cats_fuzz::message(&error.to_string()),
        }
    });
});
