//! PyTorch files (`.pt`).

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::abort_on_panic(|| tiny_cats_fuzz::check_checkpoint(bytes));
});
