//! Image files: header and pixels.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiny_cats_export::decode;

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::abort_on_panic(|| {
        let checked = decode::check(bytes);
        let decoded = decode::upright(bytes);
        for reason in [checked.as_ref().err(), decoded.as_ref().err()].into_iter().flatten() {
            tiny_cats_fuzz::check_message(reason);
        }
        if let Ok(image) = &decoded {
            assert_eq!(checked.as_ref().ok(), Some(&[image.width(), image.height()]), "check and decoding disagree");
        }
    });
});
