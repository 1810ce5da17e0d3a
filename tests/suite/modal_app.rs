//! The app at Modal, tested in Python with Modal's own client: what each function would ask for, and the container's code as processes here.
//! scripts/test sets up the client and names its folder.

use std::process::Command;

const CATS: &str = env!("CARGO_BIN_EXE_tiny-cats");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/modal/tests");
const CLIENT: &str = "TINY_CATS_MODAL";

#[track_caller]
fn python(pattern: &str) {
    let client = std::env::var_os(CLIENT);
    let client = client
        .unwrap_or_else(|| panic!("{CLIENT} names no folder with Modal's client: scripts/test sets it up"));
    let output = Command::new("python3")
        .args(["-m", "unittest", "discover", "-s", FOLDER, "-p", pattern])
        .env("PYTHONPATH", client)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TINY_CATS_BINARY_FOR_TESTS", CATS)
        .env("TINY_CATS_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // That none were found would be a success, too.
    let ran = said.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(ran > Some(5), "{said}");
}

#[test]
fn functions_ask_modal_for_what_they_need() {
    python("test_app.py");
}

#[cfg(target_os = "linux")]
#[test]
fn a_container_ends_its_run_in_the_same_bytes_whatever_interrupts_it() {
    python("test_run.py");
}
