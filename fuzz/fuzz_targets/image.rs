//! Pictures: size and orientation, then the decoded picture.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiny_cats_export::decode;

fuzz_target!(init: tiny_cats_fuzz::init(), |bytes: &[u8]| {
    tiny_cats_fuzz::escaped(|| {
        let checked = decode::check(bytes);
        let decoded = decode::upright(bytes);
        for reason in [checked.as_ref().err(), decoded.as_ref().err()].into_iter().flatten() {
            tiny_cats_fuzz::message(reason);
        }
        if let Ok(picture) = &decoded {
            assert_eq!(checked.as_ref().ok(), Some(&[picture.width(), picture.height()]), "check and decoding disagree");
        }
    });
});
