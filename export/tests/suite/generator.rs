//! Tests of export, verification and the generator API.
#![cfg(feature = "candle")]

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use tiny_cats_export::{
    Breed, CHECKSUM_MISMATCH, Checksum, Error, ExportOptions, Generator, Integrity, LoadOptions, META_KEY,
    Model, ModelMeta, Request, RuntimeReport, Sampler, SamplerDefaults, TaskMeta, export, image_sizes,
    onnx::{OnnxFile, OnnxGraph, Value},
    psnr, report_path,
    runtime::RuntimeKind,
    to_onnx, verify,
};
use tiny_cats_models::{Array, Init, Network as _, Scope, Sizes, Tensor, TinyDitConfig, Weights, init};

fn generator() -> (ModelMeta, Weights) {
    let config = TinyDitConfig { depth: 2, ..TinyDitConfig::named("nano", 32, 13).unwrap() };
    let mut params = config.specs().unwrap();
    for spec in params.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.05);
    }
    let mut classes: Vec<String> = (0..12).map(|i| format!("Breed_{i}")).collect();
    classes.push("Maine_Coon".into());
    (ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap(), init(&params, 1))
}

/// Returns the model as a safetensors file.
fn to_safetensors(meta: &ModelMeta, weights: &Weights) -> Vec<u8> {
    serialized(weights, [(META_KEY.to_owned(), meta.to_json())].into())
}

fn serialized(weights: &Weights, metadata: HashMap<String, String>) -> Vec<u8> {
    let bytes = |array: &Array| -> Vec<u8> { array.data().iter().flat_map(|v| v.to_le_bytes()).collect() };
    let data: Vec<_> =
        weights.iter().map(|(name, array)| (name, array.dims().to_vec(), bytes(array))).collect();
    let views = data.iter().map(|(n, dims, b)| (n, TensorView::new(Dtype::F32, dims.clone(), b).unwrap()));
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// Returns the model as a safetensors file with a checksum.
fn with_checksum(meta: &ModelMeta, weights: &Weights) -> Vec<u8> {
    let metadata =
        [(META_KEY.to_owned(), meta.to_json()), (Checksum::KEY.into(), Checksum::PLACEHOLDER.into())];
    let mut bytes = serialized(weights, metadata.into());
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    let mut sum = Checksum::begin(header).unwrap();
    sum.update(data);
    let (start, digits) = (8 + Checksum::digits_offset(header).unwrap(), sum.finish());
    bytes[start..start + digits.len()].copy_from_slice(digits.as_bytes());
    bytes
}

fn available() -> impl Iterator<Item = RuntimeKind> {
    RuntimeKind::ALL.into_iter().filter(|kind| kind.version().is_ok())
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn exported_files_are_verified_and_agree_on_all_runtimes_and_batches() {
    let (meta, weights) = generator();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cat.onnx");
    let report =
        export(&meta, &weights, &path, &ExportOptions { trajectory: true, ..ExportOptions::default() })
            .unwrap();
    assert!(report.passed && report.runtimes.iter().all(|r| r.trajectory_psnr.unwrap() >= 50.0));
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    for kind in crate::common::required_runtimes(report.opset) {
        let is_verified = report.runtimes.iter().any(|r| r.runtime == kind.name());
        assert!(is_verified, "{kind} was not verified: {:?}", report.skipped);
    }
    assert_eq!(files(dir.path()), ["cat.onnx", "cat.report.json"]);
    assert_eq!(report_path(&path), dir.path().join("cat.report.json"));

    let request = Request { count: 5, steps: Some(4), seed: 7, ..Request::default() };
    let mut reference = None;
    for runtime in available().filter(|kind| *kind != RuntimeKind::CandleOnnx) {
        for batch in [1, 5] {
            let options = LoadOptions { runtime: Some(runtime), batch };
            let images = Generator::open_with(&path, &options).unwrap().generate(&request).unwrap();
            assert_eq!(images.iter().map(|p| p.label).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
            let reference = reference.get_or_insert_with(|| images.clone());
            for (a, b) in reference.iter().zip(&images) {
                let ratio = psnr(&a.values, &b.values, meta.generator().unwrap().value_range);
                assert!(ratio >= 50.0, "{runtime}, batch {batch}, image {}: {ratio} dB", a.index);
            }
        }
    }
}

#[test]
fn requests_default_to_the_settings_in_the_file() {
    let (mut meta, weights) = generator();
    let TaskMeta::Generator(task) = &mut meta.task else { panic!("a generator") };
    task.sampler =
        SamplerDefaults { sampler: Sampler::Euler, steps: 3, guidance: 4.0, guidance_interval: [0.2, 0.7] };
    let model = Model::from_weights(meta, weights);
    let mut cats = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    let explicit = Request {
        steps: Some(3),
        sampler: Some(Sampler::Euler),
        guidance: Some(4.0),
        guidance_interval: Some([0.2, 0.7]),
        ..Request::default()
    };
    let mut generate = |request: &Request| cats.generate(request).unwrap().remove(0).values;
    let default = generate(&Request::default());
    assert!(default == generate(&explicit));
    // Each setting affects the image.
    let others = [
        Request { steps: Some(4), ..Request::default() },
        Request { sampler: Some(Sampler::Heun), ..Request::default() },
        Request { guidance: Some(2.0), ..Request::default() },
        Request { guidance_interval: Some([0.0, 1.0]), ..Request::default() },
    ];
    for other in others {
        assert!(default != generate(&other), "{other:?}");
    }
}

#[test]
fn weights_and_files_generate_the_same_images() {
    let (meta, weights) = generator();
    let model = Model::from_weights(meta.clone(), weights.clone());
    let bytes = to_onnx(&meta, &weights, 17).unwrap();
    assert_eq!(bytes, to_onnx(&meta, &weights, 17).unwrap());
    let file = Model::from_bytes(bytes, "cat.onnx").unwrap();
    let stored = Model::from_bytes(to_safetensors(&meta, &weights), "cat.safetensors").unwrap();
    assert!(file.weights().unwrap() == weights && stored.weights().unwrap() == weights);
    let request = Request {
        steps: Some(2),
        sampler: Some(Sampler::Euler),
        breed: "maine coon".into(),
        ..Request::default()
    };
    for runtime in available().filter(|kind| *kind != RuntimeKind::CandleOnnx) {
        let options = LoadOptions { runtime: Some(runtime), batch: 2 };
        let [a, b, c] = [&model, &file, &stored]
            .map(|m| Generator::from_model(m, &options).unwrap().generate(&request).unwrap());
        assert!(a == b && a == c);
        assert_eq!((a[0].label, a[0].class.as_str()), (12, "Maine_Coon"));
    }
}

#[test]
fn verification_detects_other_weights_and_export_rejects_damaged_weights() {
    let (meta, weights) = generator();
    let mut other = weights.clone();
    other.get_mut("final_layer.linear.weight").unwrap().data_mut()[5] += 0.5;
    let file = OnnxFile::from_bytes(to_onnx(&meta, &other, 17).unwrap(), "cat.onnx").unwrap();
    let error = verify(&meta, &weights, &file, false).unwrap_err().to_string();
    assert!(error.contains("final_layer.linear.weight"), "{error}");

    // In a tensor that is not the first, to test that the error names the right one.
    let damaged = other.get_mut("final_layer.linear.weight").unwrap().data_mut();
    damaged[5] = f32::NAN;
    damaged[7] = f32::INFINITY;
    let all = damaged.len();
    let expected = format!("final_layer.linear.weight: 2 of {all} numbers are not finite");
    let dir = tempfile::tempdir().unwrap();
    let result = export(&meta, &other, &dir.path().join("cat.onnx"), &ExportOptions::default());
    assert!(matches!(result, Err(Error::Verification(ref message)) if *message == expected), "{result:?}");
    other.remove("final_layer.linear.weight");
    assert!(export(&meta, &other, &dir.path().join("cat.onnx"), &ExportOptions::default()).is_err());
    let unsupported = ExportOptions { opset: 16, ..ExportOptions::default() };
    assert!(export(&meta, &weights, &dir.path().join("cat.onnx"), &unsupported).is_err());
    assert!(files(dir.path()).is_empty());
}

/// After any failure, the older files are unchanged.
#[test]
fn a_failed_export_keeps_the_older_file_and_its_report() {
    let (meta, weights) = generator();
    let mut damaged = weights.clone();
    damaged.get_mut("final_layer.linear.weight").unwrap().data_mut()[5] = f32::NAN;
    for obstacle in ["damaged weights", "cat.report.json", "cat.onnx"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cat.onnx", "cat.report.json"] {
            let path = dir.path().join(name);
            // A file cannot replace a folder.
            if name == obstacle {
                std::fs::create_dir(path).unwrap();
            } else {
                std::fs::write(path, "older").unwrap();
            }
        }
        let weights = if obstacle == "damaged weights" { &damaged } else { &weights };
        let result = export(&meta, weights, &dir.path().join("cat.onnx"), &ExportOptions::default());
        let line = result.unwrap_err().to_string();
        assert!(!line.contains('\n') && (!obstacle.starts_with("cat") || line.contains(obstacle)), "{line}");
        assert_eq!(files(dir.path()), ["cat.onnx", "cat.report.json"], "{obstacle}");
        for name in files(dir.path()).into_iter().filter(|name| name != obstacle) {
            assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"older", "{obstacle}");
        }
    }
}

#[test]
fn the_psnr_of_nan_is_zero() {
    let image = |value| Array::new([2], vec![0.5, value]).unwrap();
    let ratio = |a, b| psnr(&image(a), &image(b), [-1.0, 1.0]);
    assert_eq!((ratio(f32::NAN, 0.5), ratio(0.5, f32::NAN), ratio(f32::NAN, f32::NAN)), (0.0, 0.0, 0.0));
    // Half of the values differ by a tenth of the range: a mean square of 0.02, compared with 4.
    assert!((ratio(0.5, 0.3) - 10.0 * (4f64 / 0.02).log10()).abs() < 1e-4);
    assert_eq!(ratio(0.5, 0.5), 200.0);
}

#[test]
fn verification_detects_a_different_graph() {
    let (meta, weights) = generator();
    let bytes = crate::common::without_digest(to_onnx(&meta, &weights, 17).unwrap());
    // The same weights and metadata, but every cosine of the time embedding is a sine.
    let mut changed = bytes.clone();
    let start = bytes.windows(5).position(|w| w == b"\x22\x03Cos").expect("a node of type Cos");
    changed[start + 2..start + 5].copy_from_slice(b"Sin");
    let report = verify(&meta, &weights, &OnnxFile::from_bytes(changed, "cat.onnx").unwrap(), false).unwrap();
    // The native runtime evaluates the definition, not the graph.
    let is_detected = |r: &RuntimeReport| (r.tolerance_used > 1.0) == (r.runtime != "native");
    assert!(!report.passed && report.runtimes.iter().all(is_detected), "{report:?}");
}

#[test]
fn invalid_requests_give_one_line_errors_with_the_field() {
    let (meta, weights) = generator();
    let model = Model::from_weights(meta, weights);
    let mut cats = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    let valid = Request { steps: Some(1), ..Request::default() };
    let invalid = [
        ("steps", Request { steps: Some(0), ..valid.clone() }),
        ("count", Request { count: 0, ..valid.clone() }),
        ("guidance", Request { guidance: Some(f32::INFINITY), ..valid.clone() }),
        ("breed", Request { breed: "mainecon".into(), ..valid.clone() }),
    ];
    for (field, request) in invalid {
        let error = cats.generate(&request).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}: ")) && !error.contains('\n'), "{error}");
        assert!(field != "breed" || error.contains("Maine_Coon"), "{error}");
    }
    assert_eq!(Breed::from("all"), Breed::All);
}

#[test]
fn graphs_of_the_python_predecessor_generate_images() {
    let graph = OnnxGraph::new(17).unwrap();
    let noise = graph.floats("noise", &[3, 32, 32]).unwrap();
    graph.floats("timestep", &[]).unwrap();
    // An embedding without effect.
    let weights = Weights::from([("table".into(), Array::new([13, 3], vec![0.0; 39]).unwrap())]);
    let table = Scope::root(&mut graph.source(&weights)).param("table", [13, 3], Init::Zeros).unwrap();
    let class = graph.labels("breed", &[]).unwrap().embedding(&table).unwrap().mean(0).unwrap();
    let class = class.reshape(&[1, 1, 1]).unwrap();
    let class = Value::concat(&vec![class; 32], 2).unwrap();
    let class = Value::concat(&vec![class; 32], 1).unwrap();
    let class = Value::concat(&vec![class; 3], 0).unwrap();
    let velocity = noise.affine(-1.0, 0.5).unwrap().add(&class).unwrap();
    let model =
        Model::from_bytes(graph.finish(&[("velocity", &velocity)], &[]).unwrap(), "old.onnx").unwrap();
    assert_eq!((model.meta().classes[6].as_str(), model.generator().unwrap().null_label), ("Maine_Coon", 12));
    let request =
        Request { breed: "Siamese".into(), guidance: Some(1.0), steps: Some(400), ..Request::default() };
    for runtime in available().filter(|kind| kind.can_run_graphs()) {
        let options = LoadOptions { runtime: Some(runtime), batch: 1 };
        let images = Generator::from_model(&model, &options).unwrap().generate(&request).unwrap();
        let start = tiny_cats_models::random::noise(0, 0, 3 * 32 * 32);
        // x' = 0.5 − x from x₀ ends, at t = 1, at 0.5 + (x₀ − 0.5)/e.
        let exact = start.iter().map(|x| 0.5 + (x - 0.5) * (-1f32).exp());
        assert!(images[0].values.data().iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn files_of_other_formats_are_rejected() {
    for bytes in [&b""[..], b"PK\x03\x04 a torch file", b"cats", &[0xff; 64], &[8, 0, 0, 0, 0, 0, 0, 0, b'{']]
    {
        let error = Model::from_bytes(bytes.to_vec(), "cat.onnx").unwrap_err().to_string();
        assert!(error.starts_with("cat.onnx: ") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn damaged_files_are_rejected_and_files_without_a_digest_are_unchecked() {
    let (meta, weights) = generator();
    let exported = to_onnx(&meta, &weights, 17).unwrap();
    for (name, bytes) in [("cat.safetensors", with_checksum(&meta, &weights)), ("cat.onnx", exported)] {
        let model = Model::from_bytes(bytes.clone(), name).unwrap();
        assert_eq!((model.integrity(), model.weights().unwrap()), (Integrity::Verified, weights.clone()));
        // The middle of the file is weights. Zeros are typical of disk errors.
        let middle = bytes.len() / 2;
        for damage in [&mut |bytes: &mut Vec<u8>| bytes[middle] ^= 1, &mut |bytes: &mut Vec<u8>| {
            bytes[middle..middle + 4096].fill(0);
        }] as [&mut dyn FnMut(&mut Vec<u8>); 2]
        {
            let mut damaged = bytes.clone();
            damage(&mut damaged);
            let error = Model::from_bytes(damaged, name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && error.ends_with(CHECKSUM_MISMATCH), "{error}");
        }
        for end in (0..bytes.len()).step_by(9973) {
            let error = Model::from_bytes(bytes[..end].to_vec(), name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && !error.contains('\n'), "{error}");
        }
    }
    let unchecked = Model::from_bytes(to_safetensors(&meta, &weights), "cat.safetensors").unwrap();
    assert_eq!(unchecked.integrity(), Integrity::Unchecked);
    let loaded = Model::from_weights(meta, weights);
    assert_eq!(loaded.integrity(), Integrity::Unchecked);
    assert_eq!(loaded.with_integrity(Integrity::Verified).integrity(), Integrity::Verified);
}

#[test]
fn safetensors_files_with_one_changed_bit_are_rejected_or_equivalent() {
    let (meta, _) = generator();
    let config = tiny_cats_models::ResNetConfig {
        width: 1,
        ..tiny_cats_models::ResNetConfig::named("resnet18", 2).unwrap()
    };
    let small = ModelMeta::for_network(config.clone(), image_sizes(32), meta.classes[..2].to_vec()).unwrap();
    let weights = init(&config.specs().unwrap(), 1);
    let bytes = with_checksum(&small, &weights);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // Some bytes of the header and of the values.
    for byte in (0..header).step_by(3).chain((header..bytes.len()).step_by(1009)) {
        let mut changed = bytes.clone();
        changed[byte] ^= 1 << (byte % 8);
        match Model::from_bytes(changed, "cat.safetensors") {
            Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
            Ok(model) => {
                assert_eq!(
                    (model.meta(), model.weights().unwrap()),
                    (&small, weights.clone()),
                    "byte {byte}"
                );
            }
        }
    }
}
