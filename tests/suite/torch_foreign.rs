//! PyTorch files of other projects: objects beside the weights, no checksums, and weights in any dictionary under any prefix.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use tempfile::TempDir;
use tiny_cats::checkpoint::{
    self, Checkpoint, ErrorKind, Format, ModelOverrides, TrainingState, WeightsSelection,
    torch::{Item, TorchFile, write},
};
use tiny_cats_export::Integrity;
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{Array, Network as _, ResNetConfig, TinyDitConfig, Weights, init};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

fn open(path: &Path) -> Checkpoint {
    checkpoint::open(path, WeightsSelection::Default).unwrap()
}

fn open_error(path: &Path) -> String {
    let line =
        checkpoint::open(path, WeightsSelection::Default).expect_err("the file must be rejected").to_string();
    assert!(!line.contains('\n') && line.len() < 1000, "{line}");
    line
}

fn resnet() -> Weights {
    init(&ResNetConfig { width: 4, ..ResNetConfig::named("resnet18", 3).unwrap() }.specs().unwrap(), 1)
}

fn dit() -> (NetworkConfig, Weights) {
    let config =
        TinyDitConfig { depth: 2, width: 64, heads: 1, mlp_width: 64, classes: 3, ..TinyDitConfig::legacy() };
    let network = NetworkConfig::new(config).unwrap();
    let weights = init(&network.specs().unwrap(), 2);
    (network, weights)
}

/// A dictionary of `weights`, with `prefix` before every name.
fn dictionary<'a>(weights: &'a Weights, prefix: &str) -> Vec<(String, Item<'a>)> {
    weights.iter().map(|(name, array)| (format!("{prefix}{name}"), Item::Tensor(array))).collect()
}

fn nested<'a>(keys: &[&str], inner: Item<'a>) -> Item<'a> {
    keys.iter().rev().fold(inner, |inner, key| Item::Dict(vec![((*key).to_owned(), inner)]))
}

fn write_file(dir: &TempDir, root: &Item) -> PathBuf {
    let path = dir.path().join("x.pt");
    write(&path, root).unwrap();
    path
}

/// The archive with its entries changed by `change`, in the layout of Python's `zipfile`.
fn rewrite(path: &Path, change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut old = ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut new = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for i in 0..old.len() {
        let mut entry = old.by_index(i).unwrap();
        let (name, mut bytes) = (entry.name().unwrap().into_owned(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        new.start_file(&*name, options).unwrap();
        new.write_all(&change(&name, bytes)).unwrap();
    }
    new.finish().unwrap().into_inner()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|w| w == from).expect("`from` in `bytes`");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn weights_load_beside_objects_of_any_class() {
    let weights_only = open(&fixture("model.pt"));
    for protocol in [2, 5] {
        let path = fixture(&format!("objects-{protocol}.pt"));
        let loaded = open(&path);
        assert_eq!((loaded.format, loaded.averaged, loaded.step), (Format::TorchModel, false, Some(5)));
        assert_eq!(loaded.integrity, Integrity::Verified);
        for (name, array) in &weights_only.weights {
            assert_eq!(loaded.weights[name], *array, "{name}");
        }
        assert_eq!(loaded.weights["parameter"].data(), [4.0, 4.25]);
        assert_eq!(loaded.weights["with attributes"].data(), [5.0, 5.25]);
        assert_eq!(loaded.weights.len(), weights_only.weights.len() + 2);
        let unsupported: BTreeMap<&str, (&str, &[usize])> =
            loaded.unsupported.iter().map(|(name, u)| (&**name, (&*u.kind, &*u.dims))).collect();
        let expected: BTreeMap<&str, (&str, &[usize])> = BTreeMap::from([
            ("float8", ("a tensor of type torch.float8_e4m3fn", &[4][..])),
            ("complex", ("a tensor of type torch.ComplexFloatStorage", &[2])),
            ("sparse", ("a tensor of type sparse", &[])),
            ("quantised", ("a tensor of type quantized", &[2, 3])),
            ("subclass", ("a tensor of type __main__.Subclass", &[])),
            ("meta", ("a tensor of type meta", &[])),
            ("many axes", ("a tensor of type more than 8 axes", &[])),
        ]);
        assert_eq!(unsupported, expected, "protocol {protocol}");
        assert_eq!(
            loaded.config,
            Some(
                json!({"depth": 12, "rate": 1e-4, "name": "ä", "sizes": [1, 2], "out": null, "device": "cpu"})
            )
        );
        for class in ["argparse.Namespace", "datetime.datetime", "torch.float8_e4m3fn", "__main__.Settings"] {
            assert!(loaded.opaque.iter().any(|name| name == class), "{class} is not in {:?}", loaded.opaque);
        }

        let root = TorchFile::open(&path).unwrap().root;
        let json = |key: &str| root.get(key).unwrap().to_json();
        assert_eq!(json("numpy").as_array().unwrap()[5..7], [json!(1.5), json!(true)]);
        assert_eq!(
            json("dictionaries").as_array().unwrap()[..4],
            [json!({"a": [1]}), json!(null), json!({"b": 2}), json!({"c": 3})]
        );
        assert_eq!(json("dataclass"), json!({"depth": 2, "inner": null}));
        assert_eq!(json("circle"), json!({"parent": null}));
        assert_eq!(json("torch").as_array().unwrap()[..2], [json!([1, 2]), json!("cuda:1")]);
        assert_eq!(json("complex"), json!(null));
    }
}

/// The function is reported and never called.
#[test]
fn calls_in_a_pickle_are_not_executed() {
    let loaded = open(&fixture("call.pt"));
    assert_eq!(
        (loaded.weights.len(), loaded.config, loaded.opaque),
        (1, None, vec!["__builtin__.print".into()])
    );
}

#[test]
fn a_file_without_checksums_is_read_as_unchecked() {
    let path = fixture("unchecked.pt");
    let loaded = open(&path);
    assert_eq!(
        (loaded.integrity, loaded.format, &*loaded.source.path),
        (Integrity::Unchecked, Format::TorchNested, "net")
    );
    assert_eq!(loaded.weights["w"].data(), [1.0, 1.25, 1.5]);
    TorchFile::open(&path).unwrap().check(&path).unwrap();
    // Lengths are checked all the same.
    let dir = tempfile::tempdir().unwrap();
    let original = std::fs::read(&path).unwrap();
    let truncated = dir.path().join("cut.pt");
    for n in 0..original.len() {
        std::fs::write(&truncated, &original[..n]).unwrap();
        assert!(
            checkpoint::open(&truncated, WeightsSelection::Default).is_err(),
            "truncated to {n} of {} bytes",
            original.len()
        );
    }
}

/// Changes the two bytes at `offset` in every entry of the archive's directory. `also_local` is the offset of the same field in the local
/// headers, which are then changed too.
fn with_fields(
    original: &[u8],
    offset: usize,
    also_local: Option<usize>,
    change: impl Fn([u8; 2]) -> [u8; 2],
) -> Vec<u8> {
    let mut bytes = original.to_vec();
    let entries: Vec<usize> =
        (0..original.len()).filter(|&i| original[i..].starts_with(b"PK\x01\x02")).collect();
    assert!(!entries.is_empty());
    let mut set = |at: usize| {
        let field = [bytes[at], bytes[at + 1]];
        bytes[at..at + 2].copy_from_slice(&change(field));
    };
    for entry in entries {
        set(entry + offset);
        let header = u32::from_le_bytes(original[entry + 42..entry + 46].try_into().unwrap()) as usize;
        also_local.into_iter().for_each(|offset| set(header + offset));
    }
    bytes
}

#[test]
fn archives_that_pytorch_rejects_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let array = Array::new([3], vec![1.0, 2.0, 3.0]).unwrap();
    let path = write_file(&dir, &Item::Dict(vec![("w".into(), Item::Tensor(&array))]));
    let original = std::fs::read(&path).unwrap();
    let flag =
        |bit: u32| with_fields(&original, 8, Some(6), |f| (u16::from_le_bytes(f) | 1 << bit).to_le_bytes());
    let zero = |bytes: &[u8], also_local: bool| {
        let upper = with_fields(bytes, 16, also_local.then_some(14), |_| [0; 2]);
        with_fields(&upper, 18, also_local.then_some(16), |_| [0; 2])
    };
    let write_other = |bytes: Vec<u8>| {
        let path = dir.path().join("other.pt");
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (bytes, expected) in [
        (flag(0), "encrypted"),
        (flag(5), "an encrypted one or a patch"),
        (flag(6), "encrypted"),
        (flag(13), "encrypted"),
        (with_fields(&original, 34, None, |_| [2, 0]), "disk"),
        (with_fields(&original, 34, None, |_| [0xff; 2]), "disk"),
        (zero(&original, false), "archive"),
        // PyTorch's own archives repeat the checksum after the content.
        (zero(&std::fs::read(fixture("model.pt")).unwrap(), false), "two checksums"),
        (
            rewrite(&path, |name, bytes| if name.ends_with("data/0") { bytes[..8].to_vec() } else { bytes }),
            "expected 12 bytes as in the pickle, found 8",
        ),
        (
            rewrite(
                &path,
                |name, bytes| if name.ends_with("data/0") { [bytes, vec![0; 4]].concat() } else { bytes },
            ),
            "expected 12 bytes as in the pickle, found 16",
        ),
        (
            rewrite(&path, |name, bytes| if name.ends_with("byteorder") { b"big".to_vec() } else { bytes }),
            "little-endian",
        ),
    ] {
        let line = open_error(&write_other(bytes));
        assert!(line.contains(expected), "{line}, expected {expected}");
    }
    for (bytes, integrity) in [
        (with_fields(&original, 34, None, |_| [1, 0]), Integrity::Verified),
        (rewrite(&path, |_, bytes| bytes), Integrity::Verified),
        (zero(&original, true), Integrity::Unchecked),
    ] {
        let loaded = open(&write_other(bytes));
        assert_eq!((loaded.integrity, &loaded.weights["w"]), (integrity, &array));
    }
}

/// Alters every bit in turn and truncates the file at every length: the result is an error or the same weights.
#[test]
fn an_altered_bit_of_a_file_with_checksums_never_changes_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let arrays = [Array::new([2], vec![0.5, -1.0]).unwrap(), Array::new([], vec![3.0]).unwrap()];
    let root =
        Item::Dict(vec![("a".into(), Item::Tensor(&arrays[0])), ("b".into(), Item::Tensor(&arrays[1]))]);
    let path = dir.path().join("altered.pt");
    for file in [write_file(&dir, &root), fixture("shadow.pt")] {
        let original = std::fs::read(&file).unwrap();
        let weights = open(&file).weights;
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let opened = checkpoint::open(&path, WeightsSelection::Default);
            std::fs::remove_file(&path).unwrap();
            opened
        };
        for byte in 0..original.len() {
            assert!(open(&original[..byte]).is_err(), "truncated to {byte} of {} bytes", original.len());
            for bit in 0..8 {
                let mut damaged = original.clone();
                damaged[byte] ^= 1 << bit;
                if let Ok(loaded) = open(&damaged) {
                    assert_eq!(loaded.weights, weights, "bit {bit} of byte {byte}");
                }
            }
        }
    }
}

#[test]
fn weights_are_found_in_any_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let weights = resnet();
    for (keys, format, averaged) in [
        (&[][..], Format::TorchBare, false),
        (&["net"], Format::TorchNested, false),
        (&["anything at all"], Format::TorchNested, false),
        (&["model", "state_dict"], Format::TorchNested, false),
        (&["a", "b", "c", "d"], Format::TorchNested, false),
        (&["model_state_dict"], Format::TorchTraining, false),
        (&["ema"], Format::TorchAverages, true),
        (&["ema_params"], Format::TorchAverages, true),
        (&["params_ema"], Format::TorchAverages, true),
        (&["ema", "module"], Format::TorchAverages, true),
    ] {
        let loaded = open(&write_file(&dir, &nested(keys, Item::Dict(dictionary(&weights, "")))));
        assert_eq!(
            (loaded.format, loaded.averaged, &loaded.weights),
            (format, averaged, &weights),
            "{keys:?}"
        );
        assert_eq!((loaded.source.path, loaded.source.others), (keys.join("."), Vec::<String>::new()));
    }
}

#[test]
fn one_of_several_dictionaries_is_used_and_the_others_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, other) = (resnet(), Weights::from([("x".to_owned(), Array::new([1], vec![7.0]).unwrap())]));
    let (network, averages) = (Item::Dict(dictionary(&weights, "")), Item::Dict(dictionary(&other, "")));
    let root = Item::Dict(vec![
        ("optimizer".into(), averages.clone()),
        ("step".into(), Item::IntegerTensor(3)),
        ("ema".into(), averages.clone()),
        ("model".into(), averages.clone()),
        ("found".into(), nested(&["here"], network)),
    ]);
    let path = write_file(&dir, &root);
    let loaded = open(&path);
    assert_eq!(
        (&loaded.weights, &*loaded.source.path),
        (&weights, "found.here"),
        "a known network comes first"
    );
    assert_eq!(loaded.source.others, ["model", "ema", ""]);
    assert_eq!(loaded.source.to_string(), "found.here; not used: model, ema, the top level");
    let averaged = checkpoint::open(&path, WeightsSelection::Ema).unwrap();
    assert_eq!((&averaged.source.path[..], averaged.weights["x"].data()), ("ema", &[7.0][..]));

    // Among dictionaries of unknown networks, the most likely name is used.
    let root = Item::Dict(vec![
        ("a".into(), averages.clone()),
        ("net".into(), averages.clone()),
        ("state_dict".into(), averages),
    ]);
    let loaded = open(&write_file(&dir, &root));
    assert_eq!(
        (&*loaded.source.path, &loaded.source.others[..]),
        ("state_dict", &["net".to_owned(), "a".into()][..])
    );
}

#[test]
fn the_error_for_a_file_without_weights_lists_its_contents() {
    let dir = tempfile::tempdir().unwrap();
    let root = Item::Dict(vec![
        ("note".into(), Item::Str("x".into())),
        ("loss\n".into(), Item::Float(0.5)),
        ("model".into(), Item::Dict(Vec::new())),
    ]);
    let line = open_error(&write_file(&dir, &root));
    let expected = r"no tensors found; the file holds note (text), loss\n (a real number), model (a dictionary of 0 values)";
    assert!(line.ends_with(expected), "{line}");
    let entries = (0..100).map(|i| (format!("key {i}"), Item::None)).collect();
    assert!(open_error(&write_file(&dir, &Item::Dict(entries))).ends_with("key 11 (None), 88 more"));
}

#[test]
fn a_common_prefix_of_a_network_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (network, dit) = dit();
    for (weights, prefix) in [
        (&dit, "model."),
        (&dit, "net."),
        (&resnet(), "encoder."),
        (&resnet(), "module._orig_mod.backbone."),
        (&resnet(), "network."),
    ] {
        let mut tensors = dictionary(weights, prefix);
        let safetensors = dir.path().join("x.safetensors");
        let views = weights.iter().map(|(name, array)| {
            let bytes: Vec<u8> = array.data().iter().flat_map(|x| x.to_le_bytes()).collect();
            (format!("{prefix}{name}"), (array.dims().to_vec(), bytes))
        });
        let mut views: BTreeMap<String, (Vec<usize>, Vec<u8>)> = views.collect();
        views.insert("criterion.weight".into(), (vec![1], vec![0; 4]));
        let views = views.iter().map(|(name, (dims, bytes))| {
            (
                name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.clone(), bytes).unwrap(),
            )
        });
        safetensors::serialize_to_file(views, None, &safetensors).unwrap();
        let extra = Array::new([1], vec![0.0]).unwrap();
        tensors.push(("criterion.weight".into(), Item::Tensor(&extra)));
        let torch = write_file(&dir, &nested(&["state_dict"], Item::Dict(tensors)));
        for path in [&torch, &safetensors] {
            let loaded = open(path);
            assert_eq!((&loaded.weights, &*loaded.source.prefix), (weights, prefix), "{path:?}");
            assert_eq!(loaded.source.left_out, ["criterion.weight"]);
            assert!(
                loaded.source.to_string().ends_with(&format!("prefix {prefix}; not used: criterion.weight"))
            );
            assert!(loaded.describe(&ModelOverrides::default()).is_ok());
        }
        assert_eq!(open(&safetensors).integrity, Integrity::Unchecked);
    }
    assert_eq!(
        open(&write_file(&dir, &Item::Dict(dictionary(&dit, ""))))
            .describe(&ModelOverrides::default())
            .unwrap()
            .meta
            .config,
        network
    );
    // Names of unknown networks keep their prefix.
    let other = Weights::from([("model.x".to_owned(), Array::new([1], vec![7.0]).unwrap())]);
    assert_eq!(open(&write_file(&dir, &Item::Dict(dictionary(&other, "")))).weights, other);
    // EMA weights without the prefix get the running statistics of the raw weights that have it.
    let weights = resnet();
    let parameters: Weights =
        weights.clone().into_iter().filter(|(name, _)| !name.contains("running_")).collect();
    let root = vec![
        ("model".into(), Item::Dict(dictionary(&weights, "model."))),
        ("ema".into(), Item::Dict(dictionary(&parameters, ""))),
    ];
    let averaged = checkpoint::open(&write_file(&dir, &Item::Dict(root)), WeightsSelection::Ema).unwrap();
    assert_eq!(averaged.weights, weights);
}

#[test]
fn a_tensor_of_an_unsupported_type_is_an_error_only_if_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, weights) = dit();
    let array = &weights["patch_embed.proj.weight"];
    for (name, needed) in
        [("blocks.1.attn.qkv.weight", true), ("patch_embed.proj.weight", true), ("optimizer.scale", false)]
    {
        let mut tensors: BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> = weights
            .iter()
            .map(|(name, array)| {
                let bytes = array.data().iter().flat_map(|x| x.to_le_bytes()).collect();
                (name.clone(), (safetensors::Dtype::F32, array.dims().to_vec(), bytes))
            })
            .collect();
        let dims = weights.get(name).unwrap_or(array).dims().to_vec();
        let bytes = vec![0; dims.iter().product()];
        tensors.insert(name.into(), (safetensors::Dtype::F8_E4M3, dims.clone(), bytes));
        let path = dir.path().join("x.safetensors");
        let views = tensors.iter().map(|(name, (dtype, dims, bytes))| {
            (name, safetensors::tensor::TensorView::new(*dtype, dims.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();

        // In the PyTorch file, numbers take 8 bytes in both the pickle and the archive.
        let mut items = dictionary(&weights, "");
        items.retain(|(other, _)| other != name);
        let doubled = Array::new([2 * array.data().len()], array.data().repeat(2)).unwrap();
        items.insert(0, (name.into(), Item::Tensor(&doubled)));
        let torch = write_file(&dir, &Item::Dict(items));
        let complex = rewrite(&torch, |entry, bytes| match entry.ends_with("data.pkl") {
            true => replace(&bytes, b"ctorch\nFloatStorage\n", b"ctorch\nComplexFloatStorage\n"),
            false => bytes,
        });
        std::fs::write(&torch, complex).unwrap();
        for (path, kind) in [(&path, "F8_E4M3"), (&torch, "a tensor of type torch.ComplexFloatStorage")] {
            if needed {
                let line = open_error(path);
                assert!(
                    line.contains(&format!(
                        "{name}: expected numbers of type F64, F32, F16 or BF16, found {kind}"
                    )),
                    "{line}"
                );
            } else {
                let loaded = open(path);
                assert_eq!((&loaded.weights, &*loaded.unsupported[name].kind), (&weights, kind));
            }
        }
    }
}

#[test]
fn weight_files_are_not_accepted_as_training_states() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![1], &[7]).unwrap();
    safetensors::serialize_to_file([("x", view)], None, &path).unwrap();
    for (path, kind) in [
        (&fixture("model.pt"), "a PyTorch file"),
        (&fixture("legacy.pt"), "a PyTorch file"),
        (&path, "a safetensors file of weights"),
    ] {
        let error = TrainingState::load(path).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::NotAState { .. }));
        let line = error.to_string();
        assert!(
            line.ends_with(&format!(
                "expected a training state, found {kind}; pass --init to start a run with its weights"
            )),
            "{line}"
        );
    }
}
