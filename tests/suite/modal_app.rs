//! Runs the Python tests of the Modal app, with Modal's own client: the resources that each function requests, and the container's code in
//! local processes. scripts/test installs the client and sets `TINY_CATS_MODAL` to its folder.

use std::process::Command;

const CATS: &str = env!("CARGO_BIN_EXE_tiny-cats");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/modal/tests");
const CLIENT: &str = "TINY_CATS_MODAL";

/// Runs the Python tests in the files that match `pattern`.
#[track_caller]
fn run_python_tests(pattern: &str) {
    let client = std::env::var_os(CLIENT);
    let client = client
        .unwrap_or_else(|| panic!("{CLIENT}: expected the folder of Modal's client; scripts/test sets it"));
    let output = Command::new("python3")
        .args(["-m", "unittest", "discover", "-s", FOLDER, "-p", pattern])
        .env("PYTHONPATH", client)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TINY_CATS_BINARY_FOR_TESTS", CATS)
        .env("TINY_CATS_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .output()
        .expect("python3 starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    // unittest also succeeds if it finds no tests.
    let count =
        stderr.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(count > Some(5), "{stderr}");
}

#[test]
fn functions_request_their_resources_from_modal() {
    run_python_tests("test_app.py");
}

#[cfg(target_os = "linux")]
#[test]
fn interrupted_containers_end_with_identical_results() {
    run_python_tests("test_run.py");
}
