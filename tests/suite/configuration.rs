//! The flags and configuration files of training, and the errors for invalid ones.

use std::fs;

use crate::common::{CATS, fails, succeeds, trained};
use tempfile::TempDir;

/// A folder with synthetic images in `synth`.
fn work_folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    trained::write_synthetic_images(dir.path());
    dir
}

#[test]
fn invalid_arguments_give_one_line_errors() {
    let work = work_folder();
    let dir = work.path();
    fs::create_dir_all(dir.join("empty")).unwrap();
    let folder = |name: &str| fails(CATS, dir, &["train", "dit", name, "--steps", "1"]);
    assert!(folder("nowhere").contains("nowhere"));
    assert!(folder("empty").contains("empty"));
    assert!(fails(CATS, dir, &["train", "dit", "synth", "--image-size", "30"]).contains("30"));
    for (more, expected) in [
        (&["--steps", "0"][..], "--steps: expected at least 1"),
        (&["--steps", "5", "--warmup-steps", "5"], "--warmup-steps"),
        (&["--steps", "5", "--gradient-accumulation-steps", "0"], "--gradient-accumulation-steps"),
        (&["--steps", "5", "--ema-beta", "1.5"], "--ema-beta"),
        (&["--steps", "5", "--momentum", "0.9"], "--momentum: expected the optimizer sgd, found adamw"),
        (
            &["--steps", "5", "--optimizer", "sgd", "--momentum", "1"],
            "--momentum: expected 0 or more and less than 1, found 1",
        ),
        (&["--steps", "5", "--ema-beta", "0.9,0.99,0.999"], "--ema-beta: expected 1 to 2 decays, found 3"),
        (&["--steps", "5", "--early-stopping-patience", "0"], "--early-stopping-patience"),
        (
            &["--resume", "nowhere.safetensors"],
            "--resume: expected auto, never, a run's folder or a training state, found nowhere.safetensors",
        ),
        (&["--resume", "synth"], "synth/run.json"),
        (&["--max-time", "soon"], "--max-time"),
        (
            &["--no-validation", "--early-stopping-patience", "2"],
            "--early-stopping-patience: expected validation images",
        ),
    ] {
        let arguments = [&trained::dit_args("x", &[])[..], more].concat();
        let error = fails(CATS, dir, &[&arguments[..], &["--runs-dir", "refused"]].concat());
        assert!(error.contains(expected), "{more:?}: {error}");
    }
    assert!(!dir.join("x").exists() && !dir.join("refused").exists(), "no files remain");
}

/// A configuration changes defaults, flags override it, and the configuration that a run saves starts an identical run.
#[test]
fn a_configuration_is_equivalent_to_flags() {
    let work = work_folder();
    let dir = work.path();
    let output = succeeds(CATS, dir, &trained::dit_args("flags", &["--steps", "12", "--save-interval", "3"]));
    let config = trained::run_folder(dir, &output).join("config.toml");
    let config = config.to_string_lossy();
    let again = ["train", "dit", "--config", &config, "--output", "configured"];
    succeeds(CATS, dir, &again);
    for name in ["tinydit_final.pt", "tinydit_final.safetensors"] {
        let [a, b] = ["flags", "configured"].map(|output| fs::read(dir.join(output).join(name)).unwrap());
        assert!(a == b, "{name} differs from the file of the run with flags");
    }
    let output = succeeds(CATS, dir, &[&again[..], &["--steps", "1", "--save-interval=0"]].concat());
    assert!(output.contains("steps 0 to 1"), "{output}");
    for (text, expected) in [
        ("[dit]\nbatchsize = 8", "dit.batchsize: unknown key; did you mean batch-size?"),
        ("[dti]\nsteps = 8", "[dti]: unknown table; expected [dit] or [classifier]"),
        ("[dit]\nsteps = \"many\"", "dit.steps: expected an integer of 0 or more, found \"many\""),
        ("[dit]\nsteps = 8\nsteps = 9", "line 3"),
        ("[dit]\ngradient-checkpointing = 3", "dit.gradient-checkpointing: expected true or false, found 3"),
        ("[dit]\nresume = \"auto\"", "dit.resume: unknown key"),
        ("steps = 8", "[steps]"),
        ("[dit]\nlr = { a = 1 }", "dit.lr: expected a number, found { a = 1 }"),
        ("[classifier]\nlr-schedule = \"vgg\"", "classifier.lr-schedule: expected one of cosine, linear"),
    ] {
        fs::write(dir.join("bad.toml"), text).unwrap();
        let error = fails(CATS, dir, &["train", "dit", "synth", "--config", "bad.toml"]);
        assert!(error.contains("bad.toml") && error.contains(expected), "{text}: {error}");
    }
    let error = fails(CATS, dir, &["train", "dit", "synth", "--config", "smok"]);
    assert!(error.contains("--config smok") && error.contains("smoke, local"), "{error}");
}

/// Paths that cannot be written to and full disks are detected before training, and no files remain.
#[cfg(target_os = "linux")]
#[test]
fn unwritable_outputs_are_refused_before_training() {
    let work = work_folder();
    let dir = work.path();
    fs::write(dir.join("file"), "").unwrap();
    fs::create_dir_all(dir.join("taken/tinydit_final.pt")).unwrap();
    let steps = ["--steps", "1", "--runs-dir", "none"];
    // No user, not even root, can create a file in /proc.
    for (output, more, expected) in [
        ("file", &steps[..], "--output file: cannot write: Not a directory"),
        ("file/a/b", &steps, "--output file/a/b: cannot write: Not a directory"),
        ("/proc/x", &steps, "--output /proc/x: cannot write: "),
        ("taken", &steps, "--output: taken/tinydit_final.pt: expected a file, found a folder"),
        ("x", &["--runs-dir", "file/runs"], "file/runs: cannot write: Not a directory"),
        ("x", &["--runs-dir", "/proc/runs"], "/proc/runs: cannot write: "),
        ("x", &["--runs-dir", "file", "--run-id", "r"], "file: cannot write: Not a directory"),
    ] {
        let error = fails(CATS, dir, &trained::dit_args(output, more));
        assert!(error.contains(expected) && !error.contains(".tmp"), "{output} {more:?}: {error}");
    }
    let error = fails(CATS, dir, &trained::classifier_args("file/m.pt", &steps[2..]));
    assert!(error.contains("--output file: cannot write"), "{error}");
    // A file size limit of 0 simulates a full disk.
    for (output, runs) in [("full", "none"), (".", "full/runs")] {
        let arguments = trained::dit_args(output, &["--runs-dir", runs]).join(" ");
        let script = format!("trap '' XFSZ; ulimit -f 0; exec {CATS} {arguments}");
        let result =
            std::process::Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap();
        let error = crate::common::text(&result);
        assert_eq!((result.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains("cannot write: File too large"), "{error}");
    }
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "synth", "taken"]);
}

/// A URL with credentials is refused before it is written to any file.
#[test]
fn credentials_are_not_printed() {
    let work = work_folder();
    let dir = work.path();
    let error = fails(CATS, dir, &trained::dit_args("x", &["--mlflow", "http://user:sekret@localhost"]));
    assert!(error.contains("--mlflow") && !error.contains("sekret"), "{error}");
    assert!(!dir.join("runs").exists());
}
