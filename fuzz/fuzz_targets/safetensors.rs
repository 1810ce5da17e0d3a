//! Safetensors files, as a checkpoint and as a model.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiny_cats_export::Model;

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::abort_on_panic(|| {
        tiny_cats_fuzz::check_checkpoint(bytes);
        match Model::from_bytes(bytes.to_vec(), "input") {
            Ok(model) => drop(model.weights()),
            Err(error) => tiny_cats_fuzz::check_message(&error.to_string()),
        }
    });
});
