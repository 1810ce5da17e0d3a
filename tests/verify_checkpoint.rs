//! `verify-checkpoint` from outside.

use std::{path::Path, process::Output};

use serde_json::{Value, json};
use tiny_cats::checkpoint::{
    self, TrainingState,
    torch::{Item, write},
};
use tiny_cats_export::{ModelMeta, Network, to_onnx};
use tiny_cats_models::{Array, TinyDitConfig, Weights, init, random::noise};

fn run(path: &Path, flags: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_verify-checkpoint"))
        .arg(path)
        .args(flags)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The report of a file in which all is well.
#[track_caller]
fn well(path: &Path, flags: &[&str]) -> Value {
    let shown = run(path, flags);
    assert!(shown.status.success() && text(&shown).ends_with("ok\n"), "{}", text(&shown));
    let output = run(path, &[flags, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["problems"], json!([]));
    assert_eq!(text(&shown).contains("untrained"), report["untrained"] == true);
    report
}

/// Asserts that the file is refused with a line that contains `expected`.
#[track_caller]
fn ill(path: &Path, flags: &[&str], expected: &str) {
    let output = run(path, flags);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).lines().any(|line| line.contains(expected)),
        "{}expected: {expected}",
        text(&output)
    );
    let json = run(path, &[flags, &["--json"]].concat());
    assert_eq!(json.status.code(), Some(1));
    assert_ne!(serde_json::from_slice::<Value>(&json.stdout).unwrap()["problems"], json!([]));
}

fn modern() -> TinyDitConfig {
    let nano = TinyDitConfig::named("nano", 16, 3).unwrap();
    TinyDitConfig { width: 32, depth: 2, heads: 2, mlp_width: 48, ..nano }
}

fn legacy() -> TinyDitConfig {
    TinyDitConfig {
        image_size: 32,
        width: 64,
        depth: 2,
        heads: 4,
        mlp_width: 96,
        classes: 13,
        ..TinyDitConfig::legacy()
    }
}

/// Weights as of a trained network: no layer is zero.
fn trained(config: &TinyDitConfig) -> Weights {
    let mut weights = init(&Network::TinyDit(config.clone()).specs().unwrap(), 1);
    for (i, array) in weights.values_mut().enumerate() {
        let n = array.data().len();
        array.data_mut().iter_mut().zip(noise(2, i as u64, n)).for_each(|(x, e)| *x += 0.1 * e);
    }
    weights
}

fn meta(config: &TinyDitConfig) -> ModelMeta {
    ModelMeta::tiny_dit(config, (0..config.classes).map(|i| format!("cat {i}")).collect())
}

#[test]
fn a_released_model_and_its_onnx_file_are_well_until_either_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut weights) = (modern(), trained(&modern()));
    let path = dir.path().join("cat.safetensors");
    checkpoint::write_safetensors(&path, &weights, &meta(&config)).unwrap();
    assert_eq!(well(&path, &[])["onnx"], Value::Null);

    let onnx = dir.path().join("cat.onnx");
    std::fs::write(&onnx, to_onnx(&meta(&config), &weights, 17).unwrap()).unwrap();
    let report = well(&path, &[]);
    assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    assert_eq!(report["parameters"], tiny_cats_models::count(&weights));

    let array = weights.get_mut("blocks.1.mlp.w3.weight").unwrap();
    array.data_mut().iter_mut().for_each(|x| *x *= 1.5);
    checkpoint::write_safetensors(&path, &weights, &meta(&config)).unwrap();
    ill(&path, &[], "output values differ");
    well(&path, &["--skip-onnx"]);
    let other = TinyDitConfig { heads: 4, ..config };
    std::fs::write(&onnx, to_onnx(&meta(&other), &trained(&other), 17).unwrap()).unwrap();
    ill(&path, &[], "another network");
    ill(&path, &["--onnx", "nowhere.onnx"], "nowhere.onnx");
    std::fs::write(&onnx, "not a graph").unwrap();
    ill(&path, &[], "cat.onnx");

    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    ill(&path, &["--skip-onnx"], "altered");
    std::fs::write(&path, &bytes[..middle]).unwrap();
    ill(&path, &["--skip-onnx"], "data");
}

#[test]
fn a_network_that_was_never_trained_is_well_and_called_untrained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.pt");
    let weights = init(&Network::TinyDit(modern()).specs().unwrap(), 1);
    checkpoint::write_torch(&path, &weights, &meta(&modern())).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_verify-checkpoint"))
        .arg("--checkpoint")
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success() && text(&output).contains("untrained"), "{}", text(&output));
    assert_eq!(well(&path, &[])["untrained"], true);
}

#[test]
fn a_training_state_is_verified_in_both_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    let mut ema = trained(&modern());
    ema.get_mut("t_embedder.mlp.0.bias").unwrap().data_mut()[3] = f32::NAN;
    let model: Value = serde_json::from_str(&meta(&modern()).to_json()).unwrap();
    let mut state = TrainingState { weights: trained(&modern()), ema, ..TrainingState::default() };
    state.meta = json!({"step": 40, "model": model});
    state.save(&path).unwrap();
    ill(&path, &[], "t_embedder.mlp.0.bias: 1 of 32 numbers are not finite");
    let report = well(&path, &["--weights", "raw"]);
    assert_eq!((&report["step"], &report["averaged"]), (&json!(40), &json!(false)));
    state.ema = Weights::new();
    state.save(&path).unwrap();
    well(&path, &[]);
    ill(&path, &["--weights", "ema"], "no EMA weights");
}

/// Files of the Python project: what is in them is known by shapes, and whatever does not fit is listed.
#[test]
fn a_predecessors_checkpoint_is_recognised_and_checked_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.pt");
    let weights = trained(&legacy());
    let save = |weights: &Weights| {
        let tensors = |prefix: &str| {
            Item::Dict(
                weights
                    .iter()
                    .map(|(name, array)| (format!("{prefix}{name}"), Item::Tensor(array)))
                    .collect(),
            )
        };
        let config = json!({"image_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4});
        let root = Item::Dict(vec![
            ("step".into(), Item::Int(5)),
            ("model_state_dict".into(), tensors("module.")),
            ("ema_shadow_params".into(), tensors("")),
            ("loss".into(), Item::Float(f64::INFINITY)),
            ("config".into(), Item::from(&config)),
        ]);
        write(&path, &root).unwrap();
    };
    save(&weights);
    let report = well(&path, &[]);
    assert_eq!(report["network"]["layout"], "legacy");
    assert_eq!((&report["network"]["heads"], &report["step"]), (&json!(4), &json!(5)));
    assert_eq!(well(&path, &["--weights", "ema"])["averaged"], true);

    let mut wrong = weights.clone();
    wrong.remove("blocks.1.norm2.bias");
    wrong.insert("blocks.7.odd".into(), Array::new([1], vec![0.0]).unwrap());
    wrong.insert("final_layer.linear.bias".into(), Array::new([5], vec![0.0; 5]).unwrap());
    save(&wrong);
    ill(&path, &[], "blocks.1.norm2.bias: missing");
    ill(&path, &[], "blocks.7.odd: unexpected");
    ill(&path, &[], "final_layer.linear.bias: shape [5], expected [768]");
}

#[test]
fn what_is_no_checkpoint_gets_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    ill(&path, &[], "x.pt");
    std::fs::write(&path, b"hello").unwrap();
    ill(&path, &[], "not a checkpoint");
    assert_eq!(text(&run(&path, &[])).lines().count(), 1);
    assert_eq!(run(&path, &["--weights", "best"]).status.code(), Some(2));
}
