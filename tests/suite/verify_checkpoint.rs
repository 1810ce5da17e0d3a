//! `verify-checkpoint`, and initial weights from checkpoints.

use std::{path::Path, process::Output};

use serde_json::{Value, json};
use tiny_cats::checkpoint::{
    self, InitFile, InitialWeights, ModelOverrides, TrainingState, WeightsSelection,
    torch::{Item, write},
};
use tiny_cats_export::{
    ExportOptions, ModelMeta, NetworkConfig, export, image_sizes,
    onnx::{OnnxFile, OnnxGraph, WeightStorage},
    to_onnx,
};
use tiny_cats_models::{
    Array, Head, Network as _, ResNet, ResNetConfig, Scope, Sizes, TinyDit, TinyDitConfig, Weights,
    fold_batch_norm, init, native, random::noise,
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

/// Asserts that the file is verified without problems. Returns the JSON report.
#[track_caller]
fn verify_ok(path: &Path, flags: &[&str]) -> Value {
    let shown = run(path, flags);
    assert!(shown.status.success() && text(&shown).ends_with("ok\n"), "{}", text(&shown));
    let output = run(path, &[flags, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["problems"], json!([]));
    assert_eq!(text(&shown).contains("untrained"), report["untrained"] == true);
    report
}

/// Asserts that the file is rejected with a line that contains `expected`.
#[track_caller]
fn assert_rejected(path: &Path, flags: &[&str], expected: &str) {
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

/// Weights like those of a trained network: no layer is zero.
fn trained(config: &TinyDitConfig) -> Weights {
    perturb(init(&NetworkConfig::new(config.clone()).unwrap().specs().unwrap(), 1))
}

fn perturb(mut weights: Weights) -> Weights {
    for (i, array) in weights.values_mut().enumerate() {
        let n = array.data().len();
        array.data_mut().iter_mut().zip(noise(2, i as u64, n)).for_each(|(x, noise)| *x += 0.1 * noise);
    }
    weights
}

fn resnet() -> ResNetConfig {
    ResNetConfig { depth: 18, width: 4, classes: 13, head: Head::Plain, batch_norm: true }
}

fn resnet_meta(config: &ResNetConfig) -> ModelMeta {
    ModelMeta::for_network(
        config.clone(),
        image_sizes(32),
        (0..config.classes).map(|i| format!("cat {i}")).collect(),
    )
    .unwrap()
}

fn meta(config: &TinyDitConfig) -> ModelMeta {
    ModelMeta::for_network(
        config.clone(),
        Sizes::new(),
        (0..config.classes).map(|i| format!("cat {i}")).collect(),
    )
    .unwrap()
}

#[test]
fn a_released_model_and_its_onnx_file_are_valid_until_either_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut weights) = (modern(), trained(&modern()));
    let path = dir.path().join("cat.safetensors");
    checkpoint::write_safetensors(&path, &weights, &meta(&config)).unwrap();
    assert_eq!(verify_ok(&path, &[])["onnx"], Value::Null);

    let onnx = dir.path().join("cat.onnx");
    std::fs::write(&onnx, to_onnx(&meta(&config), &weights, 17).unwrap()).unwrap();
    assert_rejected(&onnx, &[], "; pass its checkpoint, and the ONNX file with --onnx");
    let report = verify_ok(&path, &[]);
    assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    assert_eq!(report["parameters"], tiny_cats_models::num_parameters(&weights));

    let array = weights.get_mut("blocks.1.mlp.w3.weight").unwrap();
    array.data_mut().iter_mut().for_each(|x| *x *= 1.5);
    checkpoint::write_safetensors(&path, &weights, &meta(&config)).unwrap();
    assert_rejected(&path, &[], "output values differ");
    verify_ok(&path, &["--skip-onnx"]);
    let other = TinyDitConfig { heads: 4, ..config };
    std::fs::write(&onnx, to_onnx(&meta(&other), &trained(&other), 17).unwrap()).unwrap();
    assert_rejected(&path, &[], "expected the checkpoint's network, found another");
    assert_rejected(&path, &["--onnx", "nowhere.onnx"], "nowhere.onnx");
    std::fs::write(&onnx, "not a graph").unwrap();
    assert_rejected(&path, &[], "cat.onnx");

    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_rejected(&path, &["--skip-onnx"], "altered");
    std::fs::write(&path, &bytes[..middle]).unwrap();
    assert_rejected(&path, &["--skip-onnx"], "data");
}

#[test]
fn an_untrained_network_is_valid_and_reported_as_untrained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.pt");
    let weights = init(&NetworkConfig::new(modern()).unwrap().specs().unwrap(), 1);
    checkpoint::write_torch(&path, &weights, &meta(&modern())).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_verify-checkpoint"))
        .arg("--checkpoint")
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success() && text(&output).contains("untrained"), "{}", text(&output));
    assert_eq!(verify_ok(&path, &[])["untrained"], true);
}

#[test]
fn raw_and_ema_weights_of_a_training_state_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    let mut ema = trained(&modern());
    ema.get_mut("t_embedder.mlp.0.bias").unwrap().data_mut()[3] = f32::NAN;
    let model: Value = serde_json::from_str(&meta(&modern()).to_json()).unwrap();
    let mut state = TrainingState { weights: trained(&modern()), ema, ..TrainingState::default() };
    state.meta = json!({"step": 40, "model": model});
    state.save(&path).unwrap();
    assert_rejected(&path, &[], "t_embedder.mlp.0.bias: 1 of 32 numbers are not finite");
    let report = verify_ok(&path, &["--weights", "raw"]);
    assert_eq!((&report["step"], &report["averaged"]), (&json!(40), &json!(false)));
    state.ema = Weights::new();
    state.save(&path).unwrap();
    verify_ok(&path, &[]);
    assert_rejected(&path, &["--weights", "ema"], "expected EMA weights, found only raw");
}

/// In files of the Python project, shapes identify the network, and every mismatch is listed.
#[test]
fn a_legacy_generator_is_recognized_and_checked_strictly() {
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
    let report = verify_ok(&path, &[]);
    assert_eq!(report["network"]["layout"], "legacy");
    assert_eq!((&report["network"]["heads"], &report["step"]), (&json!(4), &json!(5)));
    assert_eq!(verify_ok(&path, &["--weights", "ema"])["averaged"], true);

    let mut invalid = weights.clone();
    invalid.remove("blocks.1.norm2.bias");
    invalid.insert("blocks.7.odd".into(), Array::new([1], vec![0.0]).unwrap());
    invalid.insert("final_layer.linear.bias".into(), Array::new([5], vec![0.0; 5]).unwrap());
    save(&invalid);
    assert_rejected(&path, &[], "blocks.1.norm2.bias: missing");
    assert_rejected(&path, &[], "blocks.7.odd: unexpected");
    assert_rejected(&path, &[], "final_layer.linear.bias: shape [5], expected [768]");
}

#[test]
fn a_classifier_is_valid_trained_and_untrained_with_its_onnx_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, onnx) = (dir.path().join("breeds.pt"), dir.path().join("breeds.onnx"));
    let (config, untrained) = (resnet(), init(&resnet().specs().unwrap(), 1));
    let meta = resnet_meta(&config);
    checkpoint::write_torch(&path, &untrained, &meta).unwrap();
    assert_eq!(verify_ok(&path, &[])["untrained"], true);

    let weights = perturb(untrained);
    checkpoint::write_torch(&path, &weights, &meta).unwrap();
    std::fs::write(&onnx, to_onnx(&meta, &weights, 17).unwrap()).unwrap();
    let report = verify_ok(&path, &[]);
    assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    assert_eq!((&report["untrained"], &report["network"]["kind"]), (&json!(false), &json!("resnet")));
    assert!(text(&run(&path, &[])).contains("ResNet-18, width 4, 13 classes"));

    let mut other = weights.clone();
    other.get_mut("layer3.0.downsample.1.running_mean").unwrap().data_mut()[2] += 1.0;
    std::fs::write(&onnx, to_onnx(&meta, &other, 17).unwrap()).unwrap();
    assert_rejected(&path, &[], "output values differ");
    let deeper = ResNetConfig { depth: 34, ..config };
    let bytes = to_onnx(&resnet_meta(&deeper), &init(&deeper.specs().unwrap(), 1), 17).unwrap();
    std::fs::write(&onnx, bytes).unwrap();
    assert_rejected(&path, &[], "expected the checkpoint's network, found another");
    std::fs::write(&onnx, to_onnx(&self::meta(&modern()), &trained(&modern()), 17).unwrap()).unwrap();
    assert_rejected(&path, &[], "expected the checkpoint's network, found another");

    let mut damaged = weights.clone();
    damaged.get_mut("layer1.0.bn1.running_var").unwrap().data_mut()[0] = f32::INFINITY;
    checkpoint::write_torch(&path, &damaged, &meta).unwrap();
    assert_rejected(&path, &["--skip-onnx"], "layer1.0.bn1.running_var: 1 of 4 numbers are not finite");
}

/// Shapes identify the Python project's classifier with any head. Its ONNX file has no metadata.
#[test]
fn a_legacy_classifier_is_recognized_and_checked_strictly() {
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
        let weights = perturb(init(&config.specs().unwrap(), 1));
        save(&weights);
        let network = serde_json::to_value(NetworkConfig::new(config.clone()).unwrap()).unwrap();
        assert_eq!(verify_ok(&path, &["--skip-onnx"])["network"], network);
        let loaded = checkpoint::open(&path, WeightsSelection::Default).unwrap();
        let meta = loaded.describe(&ModelOverrides::default()).unwrap().meta;
        assert_eq!((meta.image_size, meta.classes[6].as_str()), (224, "Maine_Coon"));
        assert_eq!(loaded.integers["bn1.num_batches_tracked"], [690]);

        // As PyTorch exports it: without metadata, with or without folded batch normalization.
        let (config, plain) =
            if folded { fold_batch_norm(&config, &weights).unwrap() } else { (config, weights.clone()) };
        let graph = OnnxGraph::new(17).unwrap();
        let input = graph.floats("input", &[3, 224, 224]).unwrap();
        let mut source = graph.source(&plain);
        let model = ResNet::new(&config, &mut Scope::root(&mut source)).unwrap();
        let logits = model.forward(&input).unwrap();
        std::fs::write(&onnx, graph.finish(&[("output", &logits)], &[]).unwrap()).unwrap();
        let report: Value = serde_json::from_slice(&run(&path, &["--json"]).stdout).unwrap();
        assert_eq!(report["problems"], json!([]));
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");

        let mut invalid = weights.clone();
        invalid.remove("layer2.0.bn1.bias");
        invalid.insert("layer2.0.odd".into(), Array::new([1], vec![0.0]).unwrap());
        invalid.insert("layer4.0.bn2.weight".into(), Array::new([5], vec![0.0; 5]).unwrap());
        save(&invalid);
        assert_rejected(&path, &[], "layer2.0.bn1.bias: missing");
        assert_rejected(&path, &[], "layer2.0.odd: unexpected");
        assert_rejected(&path, &[], "layer4.0.bn2.weight: shape [5], expected [32]");
        std::fs::remove_file(&onnx).unwrap();
    }
}

/// An ONNX file with f16 weights is accepted if it differs from the checkpoint by rounding only.
#[test]
fn an_f16_onnx_file_is_valid_if_it_holds_the_rounded_weights() {
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions { storage: WeightStorage::F16, ..ExportOptions::default() };
    for (meta, weights, metric) in [
        (meta(&modern()), trained(&modern()), "trajectory_psnr"),
        (resnet_meta(&resnet()), perturb(init(&resnet().specs().unwrap(), 1)), "other_class"),
    ] {
        let path = dir.path().join("cat.safetensors");
        checkpoint::write_safetensors(&path, &weights, &meta).unwrap();
        export(&meta, &weights, &dir.path().join("cat.onnx"), &options).unwrap();
        let report = verify_ok(&path, &[]);
        assert!(report["rounding"]["passed"] == true && report["rounding"][metric].is_number(), "{report}");
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
        assert!(
            text(&run(&path, &[])).contains("rounding weights to half precision changes outputs by up to")
        );

        // A weight that changes by more than rounding makes it another checkpoint.
        let mut other = weights;
        let (name, array) = other.iter_mut().find(|(_, array)| array.dims().len() > 1).unwrap();
        array.data_mut()[3] *= 1.01;
        let name = name.clone();
        checkpoint::write_safetensors(&path, &other, &meta).unwrap();
        assert_rejected(&path, &[], &format!("cat.onnx: {name}: the values differ from the weights"));
        verify_ok(&path, &["--skip-onnx"]);
    }
}

/// The initial weights of a ResNet `config` with `classes`, from a file.
fn initial_weights(
    path: &Path,
    config: &ResNetConfig,
    classes: &[&str],
) -> checkpoint::Result<InitialWeights> {
    let classes: Vec<String> = classes.iter().map(ToString::to_string).collect();
    InitFile::open(path)?.classifier(&ResNetConfig { classes: classes.len(), ..config.clone() }, &classes)
}

fn rename(weights: &Weights, name: impl Fn(&str) -> String) -> Weights {
    weights.iter().map(|(key, array)| (name(key), array.clone())).collect()
}

fn save_dictionary(path: &Path, weights: &Weights) {
    let items = weights.iter().map(|(name, array)| (name.clone(), Item::Tensor(array))).collect();
    write(path, &Item::Dict(items)).unwrap();
}

#[test]
fn a_classifier_starts_from_a_backbone_with_any_head_and_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resnet18.pt");
    let source_config = ResNetConfig { classes: 1000, ..resnet() };
    let weights = perturb(init(&source_config.specs().unwrap(), 1));
    let mut backbone = weights.clone();
    backbone.retain(|name, _| !name.starts_with("fc."));
    let target = ResNetConfig { head: Head::Dropout, ..resnet() };
    let notes = |weights: &Weights| {
        save_dictionary(&path, weights);
        let file = InitFile::open(&path).unwrap();
        let source = file.resnet().unwrap();
        assert_eq!((source.depth, source.width, file.image_size()), (18, 4, None));
        let found = initial_weights(&path, &target, &["x", "y"]).unwrap();
        assert!(found.weights == backbone);
        found.notes
    };
    // Tensors outside the backbone, such as a head with unknown classes, are skipped with one note.
    assert_eq!(notes(&weights), ["skipped 2 tensors that are not in the network: fc.bias, fc.weight"]);
    assert!(notes(&backbone).is_empty());
    let vector = |n| Array::new([n], vec![0.5; n]).unwrap();
    let mut mlp = backbone.clone();
    for i in 0..9 {
        mlp.insert(format!("fc.{i}.bias"), vector(3));
    }
    let [line] = &notes(&mlp)[..] else { panic!() };
    assert!(line.starts_with("skipped 9 tensors") && line.ends_with("fc.5.bias and 3 more"), "{line}");
    let mut large_head = weights.clone();
    large_head.insert("fc.weight".into(), Array::new([11_221, 32], vec![0.0; 11_221 * 32]).unwrap());
    large_head.insert("fc.bias".into(), vector(11_221));
    assert_eq!(notes(&large_head).len(), 1);
    for prefix in ["encoder.", "model.", "module.", "_orig_mod.", "module.encoder_q.", "net.backbone."] {
        assert_eq!(notes(&rename(&weights, |name| format!("{prefix}{name}"))).len(), 1, "{prefix}");
    }

    let assert_error = |expected: &str| {
        let line = initial_weights(&path, &target, &["x", "y"]).unwrap_err().to_string();
        assert_eq!(line, format!("{}: {expected}", path.display()));
    };
    let deeper = ResNetConfig { depth: 34, ..source_config.clone() };
    save_dictionary(&path, &init(&deeper.specs().unwrap(), 1));
    assert_error("expected a resnet18 of width 4, found a resnet34 of width 4");
    let (_, folded) = fold_batch_norm(&source_config, &weights).unwrap();
    save_dictionary(&path, &folded);
    assert_error("expected a resnet18 of width 4, found a resnet18 of width 4 without batch normalization");
    checkpoint::write_torch(&path, &trained(&modern()), &meta(&modern())).unwrap();
    assert_error(
        "network: expected a ResNet-18, 34 or 50, found TinyDiT of 16 px in patches of 2 px, width 32, depth 2, 2 heads, 3 classes",
    );
    let mut other = weights.clone();
    other.insert("layer1.0.conv1.weight".into(), Array::new([4, 2, 3, 3], vec![0.0; 72]).unwrap());
    save_dictionary(&path, &other);
    assert_error("layer1.0.conv1.weight: shape [4, 2, 3, 3], expected [4, 4, 3, 3]");
    other = weights.clone();
    other.remove("layer2.0.bn1.bias");
    save_dictionary(&path, &other);
    assert_error("layer2.0.bn1.bias: missing");
    other = weights.clone();
    other.insert("layer1.2.conv1.weight".into(), weights["layer1.0.conv2.weight"].clone());
    save_dictionary(&path, &other);
    assert_error("layers: expected the blocks of a ResNet-18, 34 or 50, found stages of [3, 2, 2, 2]");
    save_dictionary(&path, &Weights::from([("features.0.weight".into(), vector(1))]));
    assert_error(
        "network: expected a ResNet-18, 34 or 50, found no tensor whose name ends in layer4.0.conv1.weight",
    );
}

#[test]
fn classes_with_known_names_keep_their_rows_of_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("breeds.safetensors");
    let source_config = ResNetConfig { classes: 3, ..resnet() };
    let weights = perturb(init(&source_config.specs().unwrap(), 1));
    let names = ["Maine_Coon", "Siamese", "other"].map(String::from).to_vec();
    checkpoint::write_safetensors(
        &path,
        &weights,
        &ModelMeta::for_network(source_config.clone(), image_sizes(48), names).unwrap(),
    )
    .unwrap();
    assert_eq!(InitFile::open(&path).unwrap().image_size(), Some(48));
    let config = ResNetConfig { head: Head::Dropout, ..resnet() };
    let found = initial_weights(&path, &config, &["tabby", "siamese", "Maine Coon", "calico"]).unwrap();
    assert_eq!(found.notes, ["2 of 4 classes are in the file; new: tabby, calico"]);
    let (old, new) = (&weights["fc.weight"], &found.weights["fc.1.weight"]);
    let row = |array: &Array, i: usize| array.data()[i * 32..(i + 1) * 32].to_vec();
    let mean: Vec<f32> = (0..32)
        .map(|i| (0..3).map(|r| f64::from(old.data()[r * 32 + i]) / 3.0).sum::<f64>() as f32)
        .collect();
    assert_eq!(new.dims(), [4, 32]);
    for (i, expected) in [mean.clone(), row(old, 1), row(old, 0), mean].iter().enumerate() {
        assert!(row(new, i).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "row {i}");
    }
    assert_eq!(found.weights["fc.1.bias"].data()[1], weights["fc.bias"].data()[1]);
    // If no class is known, the head is initialized.
    let found = initial_weights(&path, &config, &["tabby", "calico"]).unwrap();
    assert!(!found.weights.keys().any(|name| name.starts_with("fc.")));
    assert_eq!(found.notes, ["skipped 2 tensors that are not in the network: fc.bias, fc.weight"]);
}

#[test]
fn a_generator_of_smaller_images_gives_enlarged_outputs_for_enlarged_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.safetensors");
    let nano = |side| TinyDitConfig::named("nano", side, 3).unwrap();
    let (small, large) = (nano(16), nano(48));
    let weights = trained(&small);
    checkpoint::write_safetensors(&path, &weights, &meta(&small)).unwrap();
    let classes = meta(&small).classes;
    let generator = |config: &TinyDitConfig, classes: &[String]| {
        InitFile::open(&path).unwrap().generator(config, classes)
    };
    assert_eq!(InitFile::open(&path).unwrap().tiny_dit().unwrap(), small);
    let same = generator(&small, &classes).unwrap();
    assert!(same.weights == weights && same.notes.is_empty());
    let large_weights = generator(&large, &classes).unwrap().weights;
    let enlarge = |x: &[f32]| -> Vec<f32> {
        (0..3 * 48 * 48).map(|i| x[(i / (48 * 48) * 16 + i / 48 % 48 / 3) * 16 + i % 48 / 3]).collect()
    };
    let predict = |config: &TinyDitConfig, weights: &Weights, x: Vec<f32>, label: f32| {
        let mut params = native::Params::new(weights.clone());
        let model = TinyDit::<native::Value>::new(config, &mut Scope::root(&mut params)).unwrap();
        let value = |dims: Vec<usize>, x| native::Value::new(Array::new(dims, x).unwrap()).unwrap();
        let x = value(vec![1, 3, config.image_size, config.image_size], x);
        model.forward(&x, &value(vec![1], vec![0.3]), &value(vec![1], vec![label])).unwrap().into_array()
    };
    let x = noise(1, 0, 3 * 16 * 16);
    let (expected, found) =
        (predict(&small, &weights, x.clone(), 2.0), predict(&large, &large_weights, enlarge(&x), 2.0));
    let expected = enlarge(expected.data());
    assert!(expected.iter().any(|v| v.abs() > 0.1));
    for (found, expected) in found.data().iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    }

    // With other classes, the outputs for classes of the same name and for the null class are unchanged.
    let others = ["new", "cat 2", "CAT-0", "newer", "newest"].map(String::from).to_vec();
    let config = TinyDitConfig { classes: 5, ..small.clone() };
    let found = generator(&config, &others).unwrap();
    assert_eq!(found.notes, ["2 of 5 classes are in the file; new: new, newer, newest"]);
    for (label, old_label) in [(1.0, 2.0), (2.0, 0.0), (5.0, 3.0)] {
        assert!(
            predict(&config, &found.weights, x.clone(), label)
                == predict(&small, &weights, x.clone(), old_label)
        );
    }
    let rows = |weights: &Weights| weights["breed_embedder.embedding.weight"].clone();
    assert_eq!(rows(&found.weights).dims(), [6, 128]);
    let mean = |i: usize| (0..3).map(|r| rows(&weights).data()[r * 128 + i]).sum::<f32>() / 3.0;
    assert!((0..128).all(|i| (rows(&found.weights).data()[3 * 128 + i] - mean(i)).abs() < 1e-6));

    for other in [
        nano(8),
        nano(40),
        TinyDitConfig::named("tiny", 16, 3).unwrap(),
        TinyDitConfig { patch_size: 2, ..nano(48) },
    ] {
        let line = generator(&other, &classes).unwrap_err().to_string();
        assert!(line.starts_with(&path.display().to_string()), "{line}");
        assert!(line.contains(", found a TinyDiT of 16 px in"), "{line}");
    }
}

#[test]
fn missing_settings_are_assumed_and_give_their_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare.pt");
    save_dictionary(&path, &trained(&legacy()));
    let output = run(&path, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    for expected in ["assumed    image size 128", "assumed    heads 1", "set it with --heads", "ok, if"] {
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    let report: Value = serde_json::from_slice(&run(&path, &["--json"]).stdout).unwrap();
    let fields: Vec<&Value> = report["assumed"].as_array().unwrap().iter().map(|a| &a["field"]).collect();
    assert_eq!(fields, ["image_size", "heads", "classes"]);
    let flags = ["--image-size", "32", "--heads", "4", "--classes", "a,b,c,d,e,f,g,h,i,j,k,l,m"];
    let report = verify_ok(&path, &flags);
    assert_eq!((&report["network"]["heads"], &report["network"]["image_size"]), (&json!(4), &json!(32)));
    assert_rejected(&path, &["--heads", "5"], "heads: expected a divisor of width 64, found 5");

    // An exported file stores the given settings, and is verified with them.
    let export = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tiny-cats"));
        command.arg("export").arg(&path).args(flags).output().unwrap()
    };
    assert_eq!(export(&[]).status.code(), Some(3));
    assert!(text(&export(&[])).contains("assumed heads 1, which the file lacks"), "{}", text(&export(&[])));
    assert_eq!(export(&flags).status.code(), Some(0));
    let meta = OnnxFile::open(&dir.path().join("bare.onnx")).unwrap().meta().unwrap();
    assert_eq!((meta.image_size, meta.classes[12].as_str()), (32, "m"));
    verify_ok(&path, &flags);
    assert_rejected(
        &path,
        &[&flags[..2], &["--heads", "2"], &flags[4..]].concat(),
        "expected the checkpoint's network, found another",
    );

    // As other programs write it: the metadata is read, and missing settings are assumed.
    let file = dir.path().join("hub.safetensors");
    let weights = trained(&legacy());
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .iter()
        .map(|(name, a)| {
            (name.clone(), a.dims().to_vec(), a.data().iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let view = |dims: &Vec<usize>, bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.clone(), bytes).unwrap()
    };
    for (heads, code) in [(None, 3), (Some("4"), 0)] {
        let mut metadata: std::collections::HashMap<String, String> =
            [("image_size", "32"), ("embed_dim", "64"), ("format", "pt")]
                .map(|(k, v)| (k.into(), v.into()))
                .into();
        metadata.extend(heads.map(|heads| ("num_heads".to_owned(), heads.to_owned())));
        let views = bytes.iter().map(|(name, dims, bytes)| (name, view(dims, bytes)));
        safetensors::serialize_to_file(views, Some(metadata), &file).unwrap();
        let output = run(&file, &[]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains("32 px"), "{}", text(&output));
    }
}

/// A single different weight may change outputs by less than rounding does.
#[test]
fn an_onnx_file_with_one_different_weight_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (path, onnx) = (dir.path().join("cat.safetensors"), dir.path().join("cat.onnx"));
    let weights = trained(&modern());
    checkpoint::write_safetensors(&path, &weights, &meta(&modern())).unwrap();
    let mut other = weights.clone();
    // In the row of a class that the inputs of the verification do not use.
    other.get_mut("breed_embedder.embedding.weight").unwrap().data_mut()[40] += 0.14;
    std::fs::write(&onnx, to_onnx(&meta(&modern()), &other, 17).unwrap()).unwrap();
    assert_rejected(&path, &[], "breed_embedder.embedding.weight: 1 of 128 values differ, by up to 1.40e-1");
    std::fs::write(&onnx, to_onnx(&meta(&modern()), &weights, 17).unwrap()).unwrap();
    let compared = &verify_ok(&path, &[])["weights_compared"];
    assert_eq!((&compared["found"], &compared["total"]), (&json!(weights.len()), &json!(weights.len())));
}

/// Rounding errors grow with the values that are summed.
#[test]
fn the_tolerance_scales_with_large_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let (path, onnx) = (dir.path().join("cat.safetensors"), dir.path().join("cat.onnx"));
    let mut weights = trained(&modern());
    for name in ["final_layer.linear.weight", "final_layer.linear.bias"] {
        weights.get_mut(name).unwrap().data_mut().iter_mut().for_each(|v| *v *= 20_000.0);
    }
    checkpoint::write_safetensors(&path, &weights, &meta(&modern())).unwrap();
    std::fs::write(&onnx, to_onnx(&meta(&modern()), &weights, 17).unwrap()).unwrap();
    let range = verify_ok(&path, &[])["output_range"].clone();
    assert!(range[1].as_f64().unwrap() > 2000.0, "{range}");
}

#[test]
fn invalid_checkpoints_give_one_line_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    assert_rejected(&path, &[], "x.pt");
    std::fs::write(&path, b"hello").unwrap();
    assert_rejected(&path, &[], "not a checkpoint");
    assert_eq!(text(&run(&path, &[])).lines().count(), 1);
    assert_eq!(run(&path, &["--weights", "best"]).status.code(), Some(2));
}

#[test]
fn the_released_models_match_their_onnx_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pretrained");
    for name in ["tinydit", "resnet18-breeds"] {
        let report = verify_ok(&folder.join(name).with_extension("safetensors"), &[]);
        assert_eq!(report["onnx"], json!(folder.join(name).with_extension("onnx")));
        assert!(report["runtimes"].as_array().unwrap().iter().any(|r| r["runtime"] == "tract"), "{report}");
    }
}
