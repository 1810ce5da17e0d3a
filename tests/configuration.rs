//! What training is asked: by flags, by configurations, and what is refused.

mod common;

use std::fs;

use common::{CATS, fails, succeeds, trained};
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

/// An address with credentials is refused before it is written anywhere.
#[test]
fn credentials_are_not_told() {
    let place = pictures();
    let dir = place.path();
    let said = fails(CATS, dir, &trained::dit("x", &["--mlflow", "http://user:sekret@localhost"]));
    assert!(said.contains("--mlflow") && !said.contains("sekret"), "{said}");
    assert!(!dir.join("runs").exists());
}
