//! Files that PyTorch wrote (`fixtures/torch/make.py`), and PyTorch files that this project writes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use tiny_cats::checkpoint::{
    self, ErrorKind, Format, ModelOverrides, TensorData, WeightsSelection,
    torch::{Item, TorchFile, Value, write},
};
use tiny_cats_export::{ModelMeta, NetworkConfig, TaskMeta, image_sizes};
use tiny_cats_models::{Array, Network as _, ResNetConfig, Sizes, TinyDitConfig, Weights};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// The `n` values of tensor number `k` of the fixtures.
fn ramp(k: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| k as f32 + i as f32 / 4.0).collect()
}

fn tensors(name: &str) -> BTreeMap<String, (Vec<usize>, TensorData)> {
    let mut file = TorchFile::open(&fixture(name)).unwrap();
    let root = file.root.clone();
    let tensors = root.tensors();
    let numbers = file.numbers(&tensors).unwrap();
    tensors.iter().zip(numbers).map(|((k, t), n)| ((*k).to_owned(), (t.dims.clone(), n))).collect()
}

fn open_error(path: &Path, selection: WeightsSelection) -> ErrorKind {
    checkpoint::open(path, selection).expect_err("the file must be rejected").kind
}

#[test]
fn a_training_checkpoint_from_a_gpu_has_raw_and_ema_weights() {
    let loaded = checkpoint::open(&fixture("training.pt"), WeightsSelection::Default).unwrap();
    assert_eq!(loaded.format, Format::TorchTraining);
    assert_eq!((loaded.averaged, loaded.step), (false, Some(7)));
    assert_eq!(loaded.config.unwrap()["embed_dim"], 384);
    let names: Vec<&str> = loaded.weights.keys().map(String::as_str).collect();
    assert_eq!(names, ["0.bias", "0.weight", "1.weight"], "the wrappers' prefixes are stripped");
    assert_eq!(loaded.weights["0.weight"], Array::new([2, 3], ramp(1, 6)).unwrap());
    assert_eq!(loaded.weights["1.weight"], Array::new([2, 2], ramp(3, 4)).unwrap());

    let averaged = checkpoint::open(&fixture("training.pt"), WeightsSelection::Ema).unwrap();
    assert!(averaged.averaged);
    assert_eq!(averaged.weights["0.bias"], Array::new([2], vec![102.0, 102.25]).unwrap());
}

#[test]
fn every_dtype_is_read() {
    let found = tensors("dtypes.pt");
    for (k, name) in ["float64", "float32", "float16", "bfloat16"].into_iter().enumerate() {
        assert_eq!(found[name], (vec![5], TensorData::Floats(ramp(k, 5))), "{name}");
    }
    for (k, name) in ["int64", "int32", "int16", "int8", "uint8"].into_iter().enumerate() {
        let integers = ramp(k + 4, 5).into_iter().map(|x| x as i64).collect();
        assert_eq!(found[name], (vec![5], TensorData::Integers(integers)), "{name}");
    }
    assert_eq!(found["bool"], (vec![5], TensorData::Integers(vec![1; 5])));
    let loaded = checkpoint::open(&fixture("dtypes.pt"), WeightsSelection::Default).unwrap();
    assert_eq!((loaded.format, loaded.weights.len(), loaded.integers.len()), (Format::TorchBare, 4, 6));
}

#[test]
fn views_of_one_storage_are_read_as_pytorch_reads_them() {
    let found = tensors("views.pt");
    let base = ramp(4, 24);
    let values_at = |indices: &[usize]| TensorData::Floats(indices.iter().map(|&i| base[i]).collect());
    let transposed: Vec<usize> = (0..6).flat_map(|c| (0..4).map(move |r| r * 6 + c)).collect();
    assert_eq!(found["base"], (vec![4, 6], TensorData::Floats(base.clone())));
    assert_eq!(found["transposed"], (vec![6, 4], values_at(&transposed)));
    assert_eq!(found["every_other"], (vec![2, 3], values_at(&[1, 3, 5, 13, 15, 17])));
    assert_eq!(found["row"], (vec![6], values_at(&[12, 13, 14, 15, 16, 17])));
    assert_eq!(found["expanded"], (vec![3, 2], values_at(&[8, 9, 8, 9, 8, 9])));
    assert_eq!(found["parameter"], (vec![2], values_at(&[18, 19])));
    assert_eq!(found["scalar"], (vec![], TensorData::Floats(vec![0.5])));
    assert_eq!(found["empty"], (vec![0, 3], TensorData::Floats(vec![])));
}

#[test]
fn plain_values_of_pickle_protocol_5_are_read() {
    let root = TorchFile::open(&fixture("values.pt")).unwrap().root;
    let values = json!([
        null,
        true,
        false,
        0,
        -1,
        300,
        -70000,
        1i64 << 40,
        -(1i64 << 62),
        1.5,
        "ä",
        [],
        [1],
        [1, 2, 3, 4],
        [],
        {}
    ]);
    assert_eq!(root.get("values").unwrap().to_json(), values);
    assert_eq!(root.get("numpy").unwrap().to_json(), json!([0.25, 0.5, -3]));
    assert_eq!(root.get("torch").unwrap().to_json(), json!(["torch.float32", [2, 3], "cuda:1"]));
    assert_eq!(root.get("by number").unwrap().to_json(), json!({"0": "zero", "1": {"deep": [[["end"]]]}}));
    let loaded = checkpoint::open(&fixture("values.pt"), WeightsSelection::Raw).unwrap();
    assert_eq!((loaded.format, loaded.weights.len()), (Format::TorchStateDict, 3));
}

#[test]
fn missing_raw_or_ema_weights_are_an_error() {
    let shadow = checkpoint::open(&fixture("shadow.pt"), WeightsSelection::Default).unwrap();
    assert_eq!((shadow.format, shadow.averaged, shadow.step), (Format::TorchAverages, true, Some(9)));
    assert!(matches!(
        open_error(&fixture("shadow.pt"), WeightsSelection::Raw),
        ErrorKind::NoSuchWeights { .. }
    ));
    let model = checkpoint::open(&fixture("model.pt"), WeightsSelection::Default).unwrap();
    assert_eq!((model.format, model.averaged), (Format::TorchModel, false));
    assert!(matches!(
        open_error(&fixture("model.pt"), WeightsSelection::Ema),
        ErrorKind::NoSuchWeights { .. }
    ));
}

#[test]
fn unreadable_files_give_one_line_errors() {
    let dir = tempfile::tempdir().unwrap();
    let write_file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, expected) in [
        (fixture("no-tensors.pt"), "no tensors found; the file holds note (text), model_state_dict (a dict"),
        (fixture("legacy.pt"), "before 1.6"),
        (fixture("missing.pt"), "missing.pt: "),
        (write_file("empty.pt", b""), "empty"),
        (write_file("page.pt", b"<!DOCTYPE html>"), "web page"),
        (write_file("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        (dir.path().to_owned(), "irectory"),
    ] {
        let message = checkpoint::open(&path, WeightsSelection::Default).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        assert!(message.starts_with(&*path.to_string_lossy()), "{message}");
    }
}

/// Alters every byte in turn and truncates the file at every length: the result is an error or the same weights, never a panic.
#[test]
fn damaged_files_are_rejected_or_give_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.pt");
    // A new file each time: some file systems sync a file that is overwritten.
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let opened = checkpoint::open(&path, WeightsSelection::Default);
        std::fs::remove_file(&path).unwrap();
        opened
    };
    for name in ["training.pt", "views.pt", "values.pt"] {
        let original = std::fs::read(fixture(name)).unwrap();
        let weights = checkpoint::open(&fixture(name), WeightsSelection::Default).unwrap().weights;
        let mut rejected = 0;
        for i in 0..original.len() {
            let mut damaged = original.clone();
            damaged[i] ^= [0x01, 0x04, 0x40, 0xff][i % 4];
            match open(&damaged) {
                Ok(loaded) => assert_eq!(loaded.weights, weights, "{name}, byte {i}"),
                Err(_) => rejected += 1,
            }
            assert!(open(&original[..i]).is_err(), "{name} truncated to {i} of {} bytes", original.len());
        }
        assert!(
            rejected > original.len() / 3,
            "{name}: only {rejected} of {} alterations rejected",
            original.len()
        );
    }
}

fn released_model() -> (Weights, ModelMeta) {
    let config = TinyDitConfig {
        image_size: 16,
        patch_size: 8,
        width: 16,
        depth: 1,
        heads: 2,
        mlp_width: 16,
        ..TinyDitConfig::named("nano", 32, 2).unwrap()
    };
    let weights = tiny_cats_models::init(&NetworkConfig::new(config.clone()).unwrap().specs().unwrap(), 3);
    let mut meta =
        ModelMeta::for_network(config.clone(), Sizes::new(), vec!["Bengal".into(), "Ägyptische Mau".into()])
            .unwrap();
    let TaskMeta::Generator(task) = &mut meta.task else { unreachable!("a TinyDiT is a generator") };
    task.sampler.guidance = 2.1;
    meta.provenance = json!({"seed": 1i64 << 50, "none": null});
    (weights, meta)
}

#[test]
fn a_released_model_round_trips_in_both_formats() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, meta) = released_model();
    for (name, format) in [("m.safetensors", Format::ReleasedSafetensors), ("m.pt", Format::ReleasedTorch)] {
        let save = |path: &Path| match format {
            Format::ReleasedTorch => checkpoint::write_torch(path, &weights, &meta),
            _ => checkpoint::write_safetensors(path, &weights, &meta),
        };
        let (path, again) = (dir.path().join(name), dir.path().join(format!("again-{name}")));
        save(&path).unwrap();
        save(&again).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&again).unwrap(),
            "equal models give equal files"
        );
        let loaded = checkpoint::open(&path, WeightsSelection::Default).unwrap();
        assert_eq!((loaded.format, loaded.averaged), (format, false));
        assert_eq!(loaded.weights, weights);
        assert_eq!(loaded.own_meta.as_ref(), Some(&meta));
        assert_eq!(loaded.describe(&ModelOverrides::default()).unwrap().meta, meta);

        // SHA-256 or CRC-32 covers every bit of the weights.
        let mut bytes = std::fs::read(&path).unwrap();
        let value = weights["t_embedder.mlp.0.weight"].data()[7].to_le_bytes();
        let offset = bytes.windows(4).position(|w| w == value).unwrap();
        bytes[offset] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(checkpoint::open(&path, WeightsSelection::Default).is_err());
    }
}

/// Each format gives the kind of weights that its provenance names, and rejects a request for the other kind.
#[test]
fn a_released_model_gives_only_the_kind_of_weights_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, mut meta) = released_model();
    for (kind, averaged) in [("ema", true), ("raw", false)] {
        meta.provenance = json!({"weights": kind});
        let paths = [dir.path().join(format!("{kind}.pt")), dir.path().join(format!("{kind}.safetensors"))];
        checkpoint::write_torch(&paths[0], &weights, &meta).unwrap();
        checkpoint::write_safetensors(&paths[1], &weights, &meta).unwrap();
        for path in paths {
            for selection in [WeightsSelection::Default, WeightsSelection::Raw, WeightsSelection::Ema] {
                let is_available = match selection {
                    WeightsSelection::Default => true,
                    WeightsSelection::Raw => !averaged,
                    WeightsSelection::Ema => averaged,
                };
                if is_available {
                    let loaded = checkpoint::open(&path, selection).unwrap();
                    assert!(
                        loaded.averaged == averaged && loaded.weights == weights,
                        "{path:?}, {selection:?}"
                    );
                } else {
                    let line = open_error(&path, selection).to_string();
                    let expected = if averaged {
                        "expected raw weights, found only EMA"
                    } else {
                        "expected EMA weights, found only raw"
                    };
                    assert!(
                        line.contains(expected) && !line.contains('\n'),
                        "{path:?}, {selection:?}: {line}"
                    );
                }
            }
        }
    }
}

#[test]
fn written_values_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    let arrays = [Array::new([2, 0, 3], vec![]).unwrap(), Array::new([], vec![2.5]).unwrap()];
    let json = json!({"a": [1, -1, i64::MIN, 1.5, null, true, "x\ny"], "b": {}, "c": [[]]});
    let root = Item::Dict(vec![
        ("empty".into(), Item::Tensor(&arrays[0])),
        ("scalar".into(), Item::Tensor(&arrays[1])),
        ("json".into(), Item::from(&json)),
    ]);
    write(&path, &root).unwrap();
    let mut file = TorchFile::open(&path).unwrap();
    assert_eq!(file.root.get("json").map(Value::to_json), Some(json));
    let root = file.root.clone();
    let numbers = file.numbers(&root.tensors()).unwrap();
    assert_eq!(numbers, [TensorData::Floats(vec![]), TensorData::Floats(vec![2.5])]);
}

/// If `TINY_CATS_PYTHON` names a Python with PyTorch, PyTorch opens the file. Otherwise the test checks the layout that PyTorch requires:
/// uncompressed entries in one folder, with data at multiples of 64 bytes.
#[test]
fn pytorch_opens_a_released_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    let (weights, meta) = released_model();
    checkpoint::write_torch(&path, &weights, &meta).unwrap();
    let sum: f64 = weights.values().flat_map(|a| a.data()).map(|&x| f64::from(x)).sum();

    let Some(python) = std::env::var_os("TINY_CATS_PYTHON") else {
        let mut zip = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(zip.len(), 4 + weights.len());
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).unwrap();
            assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
            assert_eq!(entry.data_start().unwrap() % 64, 0);
            assert!(entry.name().unwrap().starts_with("archive/"));
        }
        return;
    };
    let script = r#"
import json, sys, torch
for mmap in (False, True):
    file = torch.load(sys.argv[1], weights_only=True, mmap=mmap)
    weights = file["model_state_dict"]
    total = sum(w.double().sum().item() for w in weights.values())
    assert abs(total - float(sys.argv[2])) < 1e-6, total
    assert weights["blocks.0.attn.qkv.weight"].shape == (48, 16)
    assert all(w.is_contiguous() and w.dtype == torch.float32 for w in weights.values())
    assert file["config"]["kind"] == "tiny-dit" and file["config"]["width"] == 16
    assert file["classes"] == ["Bengal", "Ägyptische Mau"] and json.loads(file["tiny-cats"])["provenance"]["seed"] == 2**50
"#;
    let output = Command::new(python).args(["-c", script]).arg(&path).arg(sum.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// If `TINY_CATS_PYTHON` names a Python with PyTorch and torchvision, torchvision's network loads a released classifier with `strict=True`.
/// Otherwise the test checks the names and types that this requires.
#[test]
fn torchvision_loads_a_released_classifier_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let (torch, safetensors) = (dir.path().join("breeds.pt"), dir.path().join("breeds.safetensors"));
    let config = ResNetConfig::named("resnet18", 13).unwrap();
    let weights = tiny_cats_models::init(&config.specs().unwrap(), 3);
    let mut meta = ModelMeta::for_network(
        config.clone(),
        image_sizes(128),
        (0..13).map(|i| format!("cat {i}")).collect(),
    )
    .unwrap();
    meta.provenance = json!({"schedule": {"steps": 800}, "best": {"step": 690}});
    checkpoint::write_torch(&torch, &weights, &meta).unwrap();
    checkpoint::write_safetensors(&safetensors, &weights, &meta).unwrap();
    for path in [&torch, &safetensors] {
        let loaded = checkpoint::open(path, WeightsSelection::Default).unwrap();
        assert!(
            loaded.weights == weights && loaded.describe(&ModelOverrides::default()).unwrap().meta == meta
        );
        assert_eq!(loaded.integers.len(), 20);
        assert!(loaded.integers.values().all(|count| *count == [690]));
        assert!(loaded.integers.contains_key("layer4.0.downsample.1.num_batches_tracked"));
    }
    let model = tiny_cats_export::Model::open(&safetensors).unwrap();
    assert!(model.weights().unwrap() == weights);

    let Some(python) = std::env::var_os("TINY_CATS_PYTHON") else { return };
    let script = r#"
import sys, torch, torchvision
from safetensors.torch import load_file
files = torch.load(sys.argv[1], weights_only=True)["model_state_dict"], load_file(sys.argv[2])
for weights in files:
    model = torchvision.models.resnet18(num_classes=13)
    model.load_state_dict(weights, strict=True)
    assert model.bn1.num_batches_tracked.item() == 690 and model.bn1.num_batches_tracked.dtype == torch.int64
assert all(torch.equal(weight, files[1][name]) for name, weight in files[0].items())
"#;
    let output = Command::new(python).args(["-c", script]).args([&torch, &safetensors]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
