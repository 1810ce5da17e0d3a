//! Running the programs as a user does.
#![allow(dead_code, reason = "each test uses some of it")]

pub mod trained;

use std::{
    path::Path,
    process::{Command, Output},
};

pub const CATS: &str = env!("CARGO_BIN_EXE_tiny-cats");
pub const VERIFY: &str = env!("CARGO_BIN_EXE_verify-checkpoint");

/// Where decoded pictures are kept: where the tests' other files are.
pub const CACHE: (&str, &str) = ("TINY_CATS_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));

/// Runs `program` in `folder`.
pub fn run(program: &str, folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env(CACHE.0, CACHE.1).output().expect("the program starts")
}

/// All that a program said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs what must succeed, and returns what it said.
#[track_caller]
pub fn succeeds(program: &str, folder: &Path, args: &[&str]) -> String {
    let output = run(program, folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// Runs what must fail, and returns its one line.
#[track_caller]
pub fn fails(program: &str, folder: &Path, args: &[&str]) -> String {
    let output = run(program, folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}: {said}", output.status);
    let errors: Vec<&str> = said.lines().filter(|l| !l.starts_with("skipped ")).collect();
    assert!(!said.contains("panicked"), "{said}");
    if output.status.code() == Some(1) {
        assert_eq!(errors.len(), 1, "{args:?}: one line, found:\n{said}");
    }
    said
}
