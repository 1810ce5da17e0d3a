//! Running the programs as a user does.
#![allow(dead_code, reason = "each test uses some of it")]

pub mod background_run;
#[cfg(feature = "serve")]
pub mod http;
pub mod images;
pub mod trained;

use std::{
    ffi::OsStr,
    fmt::Debug,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tiny_cats_export::{
    report_path,
    runtime::{RuntimeKind, available},
};

pub const CATS: &str = env!("CARGO_BIN_EXE_tiny-cats");
pub const VERIFY: &str = env!("CARGO_BIN_EXE_verify-checkpoint");

/// Where decoded pictures are kept: where the tests' other files are.
pub const CACHE: (&str, &str) = ("TINY_CATS_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));

/// Runs `program` in `folder`.
pub fn run(program: &str, folder: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env(CACHE.0, CACHE.1).output().expect("the program starts")
}

/// All that a program said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs what must succeed, and returns what it said.
#[track_caller]
pub fn succeeds(program: &str, folder: &Path, args: &[impl AsRef<OsStr> + Debug]) -> String {
    let output = run(program, folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// Runs what must fail, and returns its one line.
#[track_caller]
pub fn fails(program: &str, folder: &Path, args: &[impl AsRef<OsStr> + Debug]) -> String {
    let output = run(program, folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}: {said}", output.status);
    let errors: Vec<&str> = said.lines().filter(|l| !l.starts_with("skipped ")).collect();
    assert!(!said.contains("panicked") && !said.contains("internal error"), "{said}");
    if output.status.code() == Some(1) {
        assert_eq!(errors.len(), 1, "{args:?}: one line, found:\n{said}");
    }
    said
}

/// The report on an export that stores weights as halves, which must be little more than half of the `full` one and verified on every
/// runtime that is present.
#[track_caller]
pub fn halves(folder: &Path, full: &str, halves: &str) -> serde_json::Value {
    let size = |name: &str| folder.join(name).metadata().expect("it was exported").len() as f64;
    assert!(size(halves) < 0.6 * size(full), "{} of {} bytes", size(halves), size(full));
    let report = std::fs::read(report_path(&folder.join(halves))).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert!(report["passed"] == true && report["rounding"]["passed"] == true, "{report}");
    let runtimes: Vec<&str> =
        report["runtimes"].as_array().unwrap().iter().flat_map(|r| r["runtime"].as_str()).collect();
    for (kind, version) in available() {
        let compared = kind != RuntimeKind::Candle && version.is_ok();
        assert_eq!(runtimes.contains(&kind.name()), compared, "{kind}: {report}");
    }
    report
}

/// A folder that `build` has filled, once for all processes of this test program, whatever their number; it stays until the program is
/// built anew. Nothing else is to be written there.
pub fn shared(name: &str, build: impl FnOnce(&Path)) -> PathBuf {
    let program = std::env::current_exe().and_then(|path| path.metadata()?.modified()).expect("this program");
    let age = program.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = root.join(format!("{name}-{age}"));
    let lock = std::fs::File::create(root.join(format!("{name}.lock"))).expect("a lock");
    lock.lock().expect("a lock");
    if !folder.join("done").exists() {
        for old in std::fs::read_dir(root).expect("a folder").flatten() {
            if old.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
                std::fs::remove_dir_all(old.path()).expect("an old folder is removed");
            }
        }
        std::fs::create_dir_all(&folder).expect("a folder");
        build(&folder);
        std::fs::write(folder.join("done"), "").expect("a file");
    }
    folder
}
