//! `tiny-cats plan`.

use crate::common::{CATS, fails, succeeds, trained};
use serde_json::Value;
use tempfile::TempDir;

fn plan_train(dir: &TempDir, arguments: &[&str]) -> Value {
    let arguments = [&["plan", "train"], arguments, &["--json"]].concat();
    serde_json::from_str(&succeeds(CATS, dir.path(), &arguments)).unwrap()
}

#[test]
fn a_plan_describes_the_training_run() {
    let dir = TempDir::new().unwrap();
    trained::write_synthetic_images(dir.path());
    // Flags override the profile, and the data is read from the folder.
    let dit = ["dit", "synth", "--config", "a100", "--batch-size", "8", "--sample-interval", "0"];
    let plan = plan_train(&dir, &[&dit[..], &["--save-interval", "100", "--steps", "1000"]].concat());
    assert_eq!((&plan["steps"], &plan["items_per_step"]), (&1000.into(), &8.into()));
    assert_eq!((&plan["network"]["width"], &plan["network"]["classes"]), (&384.into(), &13.into()));
    let gpus: Vec<&str> =
        plan["gpus"].as_array().unwrap().iter().map(|g| g["gpu"].as_str().unwrap()).collect();
    assert!(gpus.len() >= 9 && gpus.contains(&plan["chosen"].as_str().unwrap()), "{gpus:?}");
    for gpu in plan["gpus"].as_array().unwrap() {
        assert_eq!(gpu["source"], "assumed");
        assert!(gpu["hours"].as_f64() < gpu["expected_hours"].as_f64());
    }
    let memory = plan["demand"]["memory"].as_object().unwrap();
    assert!(memory.values().all(|bytes| bytes.as_u64().unwrap() > 0));
    assert!(plan["memory_bytes"].as_u64() < memory.values().map(Value::as_u64).sum());
    // Twice the steps take twice as long, except for the startup time.
    let doubled = plan_train(&dir, &[&dit[..], &["--save-interval", "100", "--steps", "2000"]].concat());
    let compute_hours = |plan: &Value| plan["gpus"][3]["hours"].as_f64().unwrap() - 0.05;
    assert!((compute_hours(&doubled) / compute_hours(&plan) - 2.0).abs() < 0.05);
    // Four images of each of 13 classes, two of them for training.
    let plan = plan_train(&dir, &["classifier", "synth", "--epochs", "5", "--batch-size", "4"]);
    let images = 26;
    assert_eq!(plan["steps"], 5 * (images as u64).div_ceil(4));
    let plan =
        plan_train(&dir, &["classifier", "absent", "--pictures", "1000", "--classes", "2", "--epochs", "1"]);
    assert_eq!((&plan["steps"], &plan["network"]["classes"]), (&25.into(), &2.into()));
    let output =
        succeeds(CATS, dir.path(), &["plan", "train", "dit", "--config", "t4", "--gpu", "T4,A100:4"]);
    for word in
        ["data/cats does not exist; assuming", "assumed MFU", "A100:4", "cheapest", "2026-07", "1.2 times"]
    {
        assert!(output.contains(word), "{word}: {output}");
    }
}

#[test]
fn a_user_can_replace_the_price_table() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("mine.toml"), "date = \"today\"\n[gpu]\nT4 = 100\n").unwrap();
    let arguments = ["dit", "--config", "t4", "--gpu", "T4,L4"];
    let [default, custom] =
        [&[][..], &["--prices", "mine.toml"]].map(|more| plan_train(&dir, &[&arguments, more].concat()));
    let dollars = |plan: &Value, gpu: usize| plan["gpus"][gpu]["dollars"].as_f64().unwrap();
    assert!(dollars(&custom, 0) > 50.0 * dollars(&default, 0) && dollars(&custom, 1) == dollars(&default, 1));
    assert_eq!((&custom["chosen"], &custom["prices"]["date"]), (&"L4".into(), &"today".into()));
    let prices: Value =
        serde_json::from_str(&succeeds(CATS, dir.path(), &["plan", "prices", "--json"])).unwrap();
    assert_eq!(
        (&prices["gpus"]["A10"]["hour"], &prices["gpus"]["A10"]["device"]),
        (&1.10.into(), &"A10".into())
    );
    assert!(succeeds(CATS, dir.path(), &["plan", "prices"]).contains("RTX-PRO-6000  unknown"));
}

#[test]
fn invalid_plans_give_one_line_errors() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("broken.toml"), "[gpu]\nT4 = \"cheap\"\n").unwrap();
    for (arguments, expected) in [
        (&["dit", "--gpu", "H10"][..], "--gpu H10: unknown GPU; did you mean H100?"),
        (&["dit", "--gpu", "A10:99"], "expected 1 to 8 GPUs after the colon"),
        (
            &["dit", "--prices", "broken.toml"],
            "broken.toml: gpu.T4: expected dollars per hour, found \"cheap\"",
        ),
        (&["dit", "--prices", "absent.toml"], "absent.toml"),
        (&["dit", "--config", "absent"], "--config absent"),
        (&["dit", "--steps", "0"], "--steps"),
        (&["dit", "--image-size", "30"], "--image-size: expected a multiple of 8, found 30"),
        (&["dit", "--batch-size", "0"], "--batch-size: expected at least 1"),
        (&["classifier", "--epochs", "0"], "--epochs: expected at least 1"),
        (&["dit", "--gradient-accumulation-steps", "1000000000000000000"], "expected at most 16777216"),
        (&["dit", "--batch-size", "1000000000000000000"], "--batch-size: expected at most 16777216"),
        (&["dit", "--steps", "18446744073709551615"], "--steps: expected at most 1099511627776"),
        (&["classifier", "--epochs", "18446744073709551615"], "--epochs: expected at most 1099511627776"),
        (&["dit", "--pictures", "18446744073709551615"], "--pictures: expected at most 4294967296"),
        (&["dit", "--pictures", "9", "--classes", "18446744073709551615"], "--pictures: expected at least 3"),
        (&["classifier", "--pictures", "5"], "--pictures: expected at least 3 for each of 13 classes"),
    ] {
        let line = fails(CATS, dir.path(), &[&["plan", "train"], arguments].concat());
        assert!(line.contains(expected), "{arguments:?}: {line}");
    }
}

#[test]
fn calibration_measures_this_machine() {
    let dir = TempDir::new().unwrap();
    let arguments =
        ["dit", "--size", "nano", "--image-size", "16", "--batch-size", "4", "--steps", "100", "--calibrate"];
    let plan = plan_train(&dir, &arguments);
    let measured = &plan["here"];
    assert_eq!((&measured["steps"], &measured["batch"]), (&20.into(), &4.into()));
    let [seconds, flops] = ["step_seconds", "flops"].map(|field| measured[field].as_f64().unwrap());
    assert!((seconds * flops / plan["demand"]["step_flops"].as_f64().unwrap() - 1.0).abs() < 0.01);
    // Calibration leaves no files.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The largest accepted arguments overflow no number.
#[test]
fn the_largest_arguments_give_a_plan() {
    let dir = TempDir::new().unwrap();
    let max =
        ["--steps", "1099511627776", "--batch-size", "16777216", "--gradient-accumulation-steps", "16777216"];
    let more =
        ["--pictures", "4294967296", "--save-interval", "1", "--sample-interval", "1", "--gpu", "B200:8"];
    let plan = plan_train(&dir, &[&["dit", "--size", "base"], &max[..], &more].concat());
    assert_eq!(plan["gpus"][0]["verdict"], "too-large");
    let max =
        ["--epochs", "1099511627776", "--batch-size", "1", "--image-size", "1024", "--crop-size", "1024"];
    plan_train(&dir, &[&["classifier", "--backbone", "resnet50"], &max[..], &more[..4]].concat());
}
