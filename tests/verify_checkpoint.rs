//! `verify-checkpoint` from outside.

use std::{path::Path, process::Output};

use serde_json::{Value, json};
use tiny_cats::checkpoint::{
    self, TrainingState, WhichWeights,
    torch::{Item, write},
};
use tiny_cats_export::{
    ExportOptions, ModelMeta, Network, export,
    onnx::{OnnxGraph, Storage},
    to_onnx,
};
use tiny_cats_models::{
    Array, Head, ResNet, ResNetConfig, Scope, TinyDit, TinyDitConfig, Weights, fold, init, native,
    random::noise,
};

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
    moved(init(&Network::TinyDit(config.clone()).specs().unwrap(), 1))
}

fn moved(mut weights: Weights) -> Weights {
    for (i, array) in weights.values_mut().enumerate() {
        let n = array.data().len();
        array.data_mut().iter_mut().zip(noise(2, i as u64, n)).for_each(|(x, e)| *x += 0.1 * e);
    }
    weights
}

fn resnet() -> ResNetConfig {
    ResNetConfig { depth: 18, width: 4, classes: 13, head: Head::Plain, batch_norm: true }
}

fn resnet_meta(config: &ResNetConfig) -> ModelMeta {
    ModelMeta::resnet(config, 32, (0..config.classes).map(|i| format!("cat {i}")).collect())
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
fn a_classifier_its_onnx_file_and_its_untrained_beginning_are_well() {
    let dir = tempfile::tempdir().unwrap();
    let (path, onnx) = (dir.path().join("breeds.pt"), dir.path().join("breeds.onnx"));
    let (config, begun) = (resnet(), init(&resnet().specs().unwrap(), 1));
    let meta = resnet_meta(&config);
    checkpoint::write_torch(&path, &begun, &meta).unwrap();
    assert_eq!(well(&path, &[])["untrained"], true);

    let weights = moved(begun);
    checkpoint::write_torch(&path, &weights, &meta).unwrap();
    std::fs::write(&onnx, to_onnx(&meta, &weights, 17).unwrap()).unwrap();
    let report = well(&path, &[]);
    assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    assert_eq!((&report["untrained"], &report["network"]["kind"]), (&json!(false), &json!("resnet")));
    assert!(text(&run(&path, &[])).contains("ResNet-18, width 4, 13 classes"));

    let mut other = weights.clone();
    other.get_mut("layer3.0.downsample.1.running_mean").unwrap().data_mut()[2] += 1.0;
    std::fs::write(&onnx, to_onnx(&meta, &other, 17).unwrap()).unwrap();
    ill(&path, &[], "output values differ");
    let deeper = ResNetConfig { depth: 34, ..config };
    let bytes = to_onnx(&resnet_meta(&deeper), &init(&deeper.specs().unwrap(), 1), 17).unwrap();
    std::fs::write(&onnx, bytes).unwrap();
    ill(&path, &[], "another network");
    std::fs::write(&onnx, to_onnx(&self::meta(&modern()), &trained(&modern()), 17).unwrap()).unwrap();
    ill(&path, &[], "another network");

    let mut damaged = weights.clone();
    damaged.get_mut("layer1.0.bn1.running_var").unwrap().data_mut()[0] = f32::INFINITY;
    checkpoint::write_torch(&path, &damaged, &meta).unwrap();
    ill(&path, &["--skip-onnx"], "layer1.0.bn1.running_var: 1 of 4 numbers are not finite");
}

/// The Python project's classifier is known by its shapes, whichever head it has, and its ONNX file says nothing about itself.
#[test]
fn a_predecessors_classifier_is_recognised_and_checked_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let (path, onnx) = (dir.path().join("cats_model.pt"), dir.path().join("cats_model.onnx"));
    let save = |weights: &Weights| {
        let tensors = weights.iter().map(|(name, array)| (name.clone(), Item::Tensor(array)));
        let norms = weights.keys().filter_map(|name| name.strip_suffix("running_mean"));
        let counts = norms.map(|norm| (format!("{norm}num_batches_tracked"), Item::IntegerTensor(690)));
        let root = Item::Dict(vec![
            ("epoch".into(), Item::Int(9)),
            ("model_state_dict".into(), Item::Dict(tensors.chain(counts).collect())),
            ("optimizer_state_dict".into(), Item::Dict(Vec::new())),
            ("val_acc".into(), Item::Float(0.93)),
            ("timestamp".into(), Item::Str("2025-01-01T00:00:00".into())),
        ]);
        write(&path, &root).unwrap();
    };
    for (depth, head, folded) in
        [(18, Head::Dropout, true), (34, Head::Plain, true), (50, Head::Plain, false)]
    {
        let config = ResNetConfig { depth, head, ..resnet() };
        let weights = moved(init(&config.specs().unwrap(), 1));
        save(&weights);
        let network = serde_json::to_value(Network::ResNet(config.clone())).unwrap();
        assert_eq!(well(&path, &["--skip-onnx"])["network"], network);
        let loaded = checkpoint::open(&path, WhichWeights::Default).unwrap();
        let meta = loaded.meta().unwrap();
        assert_eq!((meta.image_size, meta.classes[6].as_str()), (224, "Maine_Coon"));
        assert_eq!(loaded.integers["bn1.num_batches_tracked"], [690]);

        // As PyTorch exports it: no metadata, and normalisations folded or not.
        let (config, plain) =
            if folded { fold(&config, &weights).unwrap() } else { (config, weights.clone()) };
        let graph = OnnxGraph::new(17).unwrap();
        let input = graph.floats("input", &[3, 224, 224]).unwrap();
        let mut source = graph.source(&plain);
        let model = ResNet::new(&config, &mut Scope::root(&mut source)).unwrap();
        let logits = model.forward(&input).unwrap();
        std::fs::write(&onnx, graph.finish(&[("output", &logits)], &[]).unwrap()).unwrap();
        let report: Value = serde_json::from_slice(&run(&path, &["--json"]).stdout).unwrap();
        assert_eq!(report["problems"], json!([]));
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");

        let mut wrong = weights.clone();
        wrong.remove("layer2.0.bn1.bias");
        wrong.insert("layer2.0.odd".into(), Array::new([1], vec![0.0]).unwrap());
        wrong.insert("layer4.0.bn2.weight".into(), Array::new([5], vec![0.0; 5]).unwrap());
        save(&wrong);
        ill(&path, &[], "layer2.0.bn1.bias: missing");
        ill(&path, &[], "layer2.0.odd: unexpected");
        ill(&path, &[], "layer4.0.bn2.weight: shape [5], expected [32]");
        std::fs::remove_file(&onnx).unwrap();
    }
}

/// A file that stores weights as halves is another model than the checkpoint's, by as much as rounding may make it.
#[test]
fn a_file_of_halves_is_well_if_they_are_these_weights_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions { storage: Storage::F16, ..ExportOptions::default() };
    for (meta, begun, found) in [
        (meta(&modern()), trained(&modern()), "trajectory_psnr"),
        (resnet_meta(&resnet()), moved(init(&resnet().specs().unwrap(), 1)), "other_class"),
    ] {
        let path = dir.path().join("cat.safetensors");
        checkpoint::write_safetensors(&path, &begun, &meta).unwrap();
        export(&meta, &begun, &dir.path().join("cat.onnx"), &options).unwrap();
        let report = well(&path, &[]);
        assert!(report["rounding"]["passed"] == true && report["rounding"][found].is_number(), "{report}");
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
        assert!(text(&run(&path, &[])).contains("rounding weights to halves changes outputs by up to"));

        // As much as rounding changes, and it is another checkpoint.
        let mut other = begun;
        let (name, array) = other.iter_mut().find(|(_, array)| array.dims().len() > 1).unwrap();
        array.data_mut()[3] *= 1.01;
        let name = name.clone();
        checkpoint::write_safetensors(&path, &other, &meta).unwrap();
        ill(&path, &[], &format!("cat.onnx holds another {name}"));
        well(&path, &["--skip-onnx"]);
    }
}

#[test]
fn a_backbone_is_all_but_the_head_of_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resnet18.safetensors");
    let theirs = ResNetConfig { classes: 1000, ..resnet() };
    let weights = moved(init(&theirs.specs().unwrap(), 1));
    let save = |weights: &Weights| {
        let items = weights.iter().map(|(name, array)| (name.clone(), Item::Tensor(array))).collect();
        write(&path, &Item::Dict(items)).unwrap();
    };
    let wanted = ResNetConfig { head: Head::Dropout, ..resnet() };
    let refused = |expected: &str| {
        let line = checkpoint::backbone(&path, &wanted).unwrap_err().to_string();
        assert_eq!(line, format!("{}: {expected}", path.display()));
    };
    save(&weights);
    let mut expected = weights.clone();
    expected.retain(|name, _| !name.starts_with("fc."));
    assert!(checkpoint::backbone(&path, &wanted).unwrap() == expected);
    checkpoint::write_safetensors(&path, &weights, &resnet_meta(&theirs)).unwrap();
    assert!(checkpoint::backbone(&path, &wanted).unwrap() == expected);

    let deeper = ResNetConfig { depth: 34, ..theirs.clone() };
    save(&init(&deeper.specs().unwrap(), 1));
    refused("holds a resnet34 of width 4; expected a resnet18 of width 4");
    let (_, folded) = fold(&theirs, &weights).unwrap();
    save(&folded);
    refused(
        "holds a resnet18 of width 4 without batch normalisation; expected a resnet18 of width 4 with batch normalisation",
    );
    checkpoint::write_torch(&path, &trained(&modern()), &meta(&modern())).unwrap();
    refused("holds a TinyDiT; expected a resnet18 of width 4");
    let mut other = weights.clone();
    other.insert("layer1.0.conv1.weight".into(), Array::new([4, 2, 3, 3], vec![0.0; 72]).unwrap());
    save(&other);
    refused("layer1.0.conv1.weight: shape [4, 2, 3, 3], expected [4, 4, 3, 3]");
    other.insert("layer1.0.conv1.weight".into(), weights["layer1.0.conv2.weight"].clone());
    other.insert("layer1.2.conv1.weight".into(), weights["layer1.0.conv2.weight"].clone());
    save(&other);
    refused("layers: expected the blocks of a ResNet-18, 34 or 50, found stages of [3, 2, 2, 2]");
    save(&Weights::from([("features.0.weight".into(), Array::new([1], vec![0.0]).unwrap())]));
    let line = checkpoint::backbone(&path, &wanted).unwrap_err().to_string();
    assert!(line.contains("neither a TinyDiT's nor a ResNet's"), "{line}");
}

#[test]
fn a_generator_of_smaller_pictures_makes_of_enlarged_ones_what_it_made_enlarged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.safetensors");
    let named = |side| TinyDitConfig::named("nano", side, 3).unwrap();
    let (small, large) = (named(16), named(48));
    let weights = trained(&small);
    checkpoint::write_safetensors(&path, &weights, &meta(&small)).unwrap();
    assert!(checkpoint::generator(&path, &small).unwrap() == weights);
    let grown = checkpoint::generator(&path, &large).unwrap();
    let enlarged = |x: &[f32]| -> Vec<f32> {
        (0..3 * 48 * 48).map(|i| x[(i / (48 * 48) * 16 + i / 48 % 48 / 3) * 16 + i % 48 / 3]).collect()
    };
    let predict = |config: &TinyDitConfig, weights: &Weights, x: Vec<f32>| {
        let mut params = native::Params::new(weights.clone());
        let model = TinyDit::<native::Value>::new(config, &mut Scope::root(&mut params)).unwrap();
        let value = |dims: Vec<usize>, x| native::Value::new(Array::new(dims, x).unwrap()).unwrap();
        let x = value(vec![1, 3, config.image_size, config.image_size], x);
        model.forward(&x, &value(vec![1], vec![0.3]), &value(vec![1], vec![2.0])).unwrap().into_array()
    };
    let x = noise(1, 0, 3 * 16 * 16);
    let (expected, found) = (predict(&small, &weights, x.clone()), predict(&large, &grown, enlarged(&x)));
    let expected = enlarged(expected.data());
    assert!(expected.iter().any(|v| v.abs() > 0.1));
    for (found, expected) in found.data().iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    }
    for other in [
        named(8),
        named(40),
        TinyDitConfig::named("tiny", 16, 3).unwrap(),
        TinyDitConfig { classes: 4, ..named(16) },
        TinyDitConfig { patch_size: 2, ..named(48) },
    ] {
        let line = checkpoint::generator(&path, &other).unwrap_err().to_string();
        assert!(line.starts_with(&format!("{}: holds a TinyDiT of 16 px in", path.display())), "{line}");
    }
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

#[test]
fn the_released_models_are_whole_and_their_onnx_files_compute_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pretrained");
    for name in ["tinydit", "resnet18-breeds"] {
        let report = well(&folder.join(name).with_extension("safetensors"), &[]);
        assert_eq!(report["onnx"], json!(folder.join(name).with_extension("onnx")));
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    }
}
