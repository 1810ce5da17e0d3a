//! Functions that run the programs, and fixtures that several tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

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

/// The environment variable that puts the cache of decoded images among the temporary files of tests.
pub const CACHE: (&str, &str) = ("TINY_CATS_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));

/// Runs `program` in `folder`.
pub fn run(program: &str, folder: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env(CACHE.0, CACHE.1).output().expect("the program starts")
}

/// The standard output of a program, followed by its standard error.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must succeed and returns its output.
#[track_caller]
pub fn succeeds(program: &str, folder: &Path, args: &[impl AsRef<OsStr> + Debug]) -> String {
    let output = run(program, folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// Runs a command that must fail with a one-line error, and returns its standard error.
#[track_caller]
pub fn fails(program: &str, folder: &Path, args: &[impl AsRef<OsStr> + Debug]) -> String {
    let output = run(program, folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}: {stderr}", output.status);
    let errors: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("skipped ")).collect();
    assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{stderr}");
    if output.status.code() == Some(1) {
        assert_eq!(errors.len(), 1, "{args:?}: expected one line, found:\n{stderr}");
    }
    stderr
}

/// Checks an export with f16 weights: the file must be smaller than 60 % of `full`, and verified on every available runtime. Returns
/// its report.
#[track_caller]
pub fn check_f16_export(folder: &Path, full: &str, half: &str) -> serde_json::Value {
    let size = |name: &str| folder.join(name).metadata().expect("the exported file").len() as f64;
    assert!(size(half) < 0.6 * size(full), "{} of {} bytes", size(half), size(full));
    let report = std::fs::read(report_path(&folder.join(half))).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert!(report["passed"] == true && report["rounding"]["passed"] == true, "{report}");
    let runtimes: Vec<&str> =
        report["runtimes"].as_array().unwrap().iter().flat_map(|r| r["runtime"].as_str()).collect();
    for (kind, version) in available() {
        let is_verified = kind != RuntimeKind::Candle && version.is_ok();
        assert_eq!(runtimes.contains(&kind.name()), is_verified, "{kind}: {report}");
    }
    report
}

/// A folder that `build` fills, once for all processes of this test program. It is replaced when the program is rebuilt. Tests only read
/// it.
pub fn shared_folder(name: &str, build: impl FnOnce(&Path)) -> PathBuf {
    let program = std::env::current_exe().and_then(|path| path.metadata()?.modified()).expect("this program");
    let build_time = program.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = root.join(format!("{name}-{build_time}"));
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
