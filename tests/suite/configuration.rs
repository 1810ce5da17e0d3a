//! What training is asked: by flags, by configurations, and what is refused.

use std::fs;

use crate::common::{CATS, fails, succeeds, trained};
use tempfile::TempDir;

/// A folder with synthetic pictures in `synth`.
fn pictures() -> TempDir {
    let dir = TempDir::new().unwrap();
    trained::synthetic(dir.path());
    dir
}

#[test]
fn training_refuses_what_makes_no_sense_in_one_line() {
    let place = pictures();
    let dir = place.path();
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
        (&["--steps", "5", "--ema-beta", "0.9,0.99,0.999"], "--ema-beta: expected 1 to 2 decays, found 3"),
        (&["--steps", "5", "--early-stopping-patience", "0"], "--early-stopping-patience"),
        (&["--resume", "nowhere.safetensors"], "--resume nowhere.safetensors: expected auto, never"),
        (&["--resume", "synth"], "synth/run.json"),
        (&["--max-time", "soon"], "--max-time"),
        (&["--no-validation", "--early-stopping-patience", "2"], "--early-stopping-patience: there are no"),
    ] {
        let arguments = [&trained::dit("x", &[])[..], more].concat();
        let said = fails(CATS, dir, &[&arguments[..], &["--runs-dir", "refused"]].concat());
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    assert!(!dir.join("x").exists() && !dir.join("refused").exists(), "nothing is left");
}

/// A configuration changes defaults, flags come first, and a run's own configuration begins the same run.
#[test]
fn a_configuration_is_what_the_flags_would_be() {
    let place = pictures();
    let dir = place.path();
    let said = succeeds(CATS, dir, &trained::dit("flags", &["--steps", "12", "--save-interval", "3"]));
    let config = trained::run_folder(dir, &said).join("config.toml");
    let config = config.to_string_lossy();
    let again = ["train", "dit", "--config", &config, "--output", "configured"];
    succeeds(CATS, dir, &again);
    for name in ["tinydit_final.pt", "tinydit_final.safetensors"] {
        let [a, b] = ["flags", "configured"].map(|output| fs::read(dir.join(output).join(name)).unwrap());
        assert!(a == b, "{name} is another file than by the flags");
    }
    let said = succeeds(CATS, dir, &[&again[..], &["--steps", "1", "--save-interval=0"]].concat());
    assert!(said.contains("steps 0 to 1"), "{said}");
    for (text, expected) in [
        ("[dit]\nbatchsize = 8", "dit.batchsize: unknown key; did you mean batch-size?"),
        ("[dti]\nsteps = 8", "[dti]: unknown table; expected [dit] or [classifier]"),
        ("[dit]\nsteps = \"many\"", "dit.steps: invalid value 'many' for '--steps <STEPS>'"),
        ("[dit]\nsteps = 8\nsteps = 9", "line 3"),
        ("[dit]\ngradient-checkpointing = 3", "dit.gradient-checkpointing: expected true or false, found 3"),
        ("[dit]\nresume = \"auto\"", "dit.resume: unknown key"),
        ("steps = 8", "[steps]"),
        ("[dit]\nlr = { a = 1 }", "dit.lr: expected a value"),
        ("[classifier]\nbackbone = \"vgg\"", "classifier.backbone: invalid value 'vgg'"),
    ] {
        fs::write(dir.join("bad.toml"), text).unwrap();
        let said = fails(CATS, dir, &["train", "dit", "synth", "--config", "bad.toml"]);
        assert!(said.contains("bad.toml") && said.contains(expected), "{text}: {said}");
    }
    let said = fails(CATS, dir, &["train", "dit", "synth", "--config", "smok"]);
    assert!(said.contains("--config smok") && said.contains("smoke, local"), "{said}");
}

/// A place that nothing can be written to, and a full disk, are seen before anything is trained; nothing is left there.
#[cfg(target_os = "linux")]
#[test]
fn a_place_for_no_file_is_refused_before_training() {
    let place = pictures();
    let dir = place.path();
    fs::write(dir.join("file"), "").unwrap();
    fs::create_dir_all(dir.join("taken/tinydit_final.pt")).unwrap();
    let steps = ["--steps", "1", "--runs-dir", "none"];
    // No user, not even root, can make a file in /proc.
    for (output, more, expected) in [
        ("file", &steps[..], "--output file: cannot write there: Not a directory"),
        ("file/a/b", &steps, "--output file/a/b: cannot write there: Not a directory"),
        ("/proc/x", &steps, "--output /proc/x: cannot write there: "),
        ("taken", &steps, "--output taken/tinydit_final.pt: a folder is in the file's place"),
        ("x", &["--runs-dir", "file/runs"], "file/runs: cannot write there: Not a directory"),
        ("x", &["--runs-dir", "/proc/runs"], "/proc/runs: cannot write there: "),
        ("x", &["--runs-dir", "file", "--run-id", "r"], "file: cannot write there: Not a directory"),
    ] {
        let said = fails(CATS, dir, &trained::dit(output, more));
        assert!(said.contains(expected) && !said.contains(".tmp"), "{output} {more:?}: {said}");
    }
    let said = fails(CATS, dir, &trained::train_args("file/m.pt", &steps[2..]));
    assert!(said.contains("--output file: cannot write there"), "{said}");
    // No file may grow: what a full disk does, without a disk.
    for (output, runs) in [("full", "none"), (".", "full/runs")] {
        let arguments = trained::dit(output, &["--runs-dir", runs]).join(" ");
        let script = format!("trap '' XFSZ; ulimit -f 0; exec {CATS} {arguments}");
        let ended = std::process::Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap();
        let said = crate::common::text(&ended);
        assert_eq!((ended.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("cannot write there: File too large"), "{said}");
    }
    let mut left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "synth", "taken"]);
}

/// An address with credentials is refused before it is written anywhere.
#[test]
fn credentials_are_not_told() {
    let place = pictures();
    let dir = place.path();
    let said = fails(CATS, dir, &trained::dit("x", &["--mlflow", "http://user:sekret@localhost"]));
    assert!(said.contains("--mlflow") && !said.contains("sekret"), "{said}");
    assert!(!dir.join("runs").exists());
}
