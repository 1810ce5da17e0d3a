//! Files with weights in half precision: half the size, the same model on every runtime, and a bounded effect of rounding.
#![cfg(feature = "candle")]

use std::{collections::BTreeSet, path::Path};

use half::f16;
use tiny_cats_export::{
    ExportOptions, MIN_ROUNDING_PSNR, Model, ModelMeta, NetworkConfig, TaskMeta, VerificationReport, export,
    image_sizes, measure_rounding,
    onnx::{OnnxFile, WeightStorage},
    runtime::RuntimeKind,
    to_onnx, verify,
};
use tiny_cats_models::{
    Array, Head, Init, Network as _, ResNetConfig, Sizes, TinyDitConfig, Weights, fold_batch_norm, init,
    random::noise,
};

const F16_EXPORT: ExportOptions =
    ExportOptions { opset: 17, trajectory: true, storage: WeightStorage::F16, cases: Vec::new() };

fn generator() -> (ModelMeta, Weights) {
    let config = TinyDitConfig { depth: 2, ..TinyDitConfig::named("nano", 32, 3).unwrap() };
    let mut params = config.specs().unwrap();
    for spec in params.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.05);
    }
    let classes = ["Bengal", "Birman", "Siamese"].map(String::from).to_vec();
    let mut meta = ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap();
    if let TaskMeta::Generator(task) = &mut meta.task {
        task.sampler.steps = 4;
    }
    (meta, init(&params, 1))
}

fn classifier() -> (ModelMeta, Weights) {
    let config = ResNetConfig { depth: 18, width: 8, classes: 5, head: Head::Plain, batch_norm: true };
    let mut weights = init(&config.specs().unwrap(), 1);
    for (i, array) in weights.values_mut().enumerate().filter(|(_, array)| array.dims().len() == 1) {
        let n = array.data().len();
        array.data_mut().iter_mut().zip(noise(2, i as u64, n)).for_each(|(v, e)| *v += 0.2 * e.abs());
    }
    (
        ModelMeta::for_network(
            config.clone(),
            image_sizes(40),
            (0..5).map(|i| format!("Breed_{i}")).collect(),
        )
        .unwrap(),
        weights,
    )
}

/// Returns the metadata and weights in the file: those of a classifier are folded, and weights with two or more axes are rounded.
fn stored(meta: &ModelMeta, weights: &Weights) -> (ModelMeta, Weights) {
    let (config, mut weights) = match meta.config.downcast::<ResNetConfig>() {
        Some(config) => {
            let (config, weights) = fold_batch_norm(config, weights).unwrap();
            (NetworkConfig::new(config).unwrap(), weights)
        }
        None => (meta.config.clone(), weights.clone()),
    };
    for array in weights.values_mut().filter(|array| array.dims().len() > 1) {
        array.data_mut().iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
    }
    (ModelMeta { config, ..meta.clone() }, weights)
}

/// Computes a batch of two on the native runtime.
fn outputs(model: &Model) -> Array {
    let size = model.meta().image_size;
    let x = Array::new([2, 3, size, size], noise(3, 0, 6 * size * size)).unwrap();
    if model.meta().classifier().is_some() {
        return model.load_classifier(RuntimeKind::Native).unwrap().logits(&x).unwrap();
    }
    let mut network = model.load_generator(RuntimeKind::Native).unwrap();
    network.predict(&x, &[0.3, 0.8], &[0, 2]).unwrap()
}

fn export_f16(meta: &ModelMeta, weights: &Weights, dir: &Path) -> (VerificationReport, OnnxFile) {
    let path = dir.join("cat.onnx");
    (export(meta, weights, &path, &F16_EXPORT).unwrap(), OnnxFile::open(&path).unwrap())
}

#[test]
fn f16_files_have_half_the_size_and_equal_the_rounded_model() {
    for (meta, weights) in [generator(), classifier()] {
        let dir = tempfile::tempdir().unwrap();
        let (report, file) = export_f16(&meta, &weights, dir.path());
        println!("{}", serde_json::to_string_pretty(&report).unwrap());
        for kind in crate::common::required_runtimes(report.opset) {
            let found = report.runtimes.iter().find(|r| r.runtime == kind.name());
            let found = found.unwrap_or_else(|| panic!("{kind} was not verified: {:?}", report.skipped));
            assert!(found.passed && found.tolerance_used < 1.0, "{found:?}");
        }
        let full = to_onnx(&meta, &weights, 17).unwrap();
        assert!((report.bytes as f64) < 0.6 * full.len() as f64, "{} of {}", report.bytes, full.len());
        let found = report.rounding.clone().expect("rounding changes these weights");
        assert!(found.passed && found.max_absolute_error > 0.0);
        match &meta.task {
            TaskMeta::Generator(_) => {
                assert!((MIN_ROUNDING_PSNR..100.0).contains(&found.trajectory_psnr.unwrap()), "{found:?}");
            }
            _ => assert_eq!(found.other_class, Some(0)),
        }
        assert_eq!(
            serde_json::from_str::<VerificationReport>(&serde_json::to_string(&report).unwrap()).unwrap(),
            report
        );

        let (stored_meta, stored) = stored(&meta, &weights);
        let large: BTreeSet<&String> =
            stored.iter().filter(|(_, array)| array.dims().len() > 1).map(|(name, _)| name).collect();
        assert!(file.f16_names().iter().eq(large));
        let model = Model::from_bytes(file.bytes().to_vec(), "cat.onnx").unwrap();
        assert!(model.weights().unwrap() == stored && *model.meta() == stored_meta);
        let definition = Model::from_weights(stored_meta, stored);
        assert_eq!(outputs(&model), outputs(&definition));
        assert_ne!(outputs(&model), outputs(&Model::from_weights(meta.clone(), weights.clone())));

        // Compared with its own weights, rounding changes nothing.
        let report = verify(model.meta(), &model.weights().unwrap(), &file, false).unwrap();
        assert!(report.passed && report.rounding.is_none());
        // The report on an f32 file has no rounding.
        let file = OnnxFile::from_bytes(full, "cat.onnx").unwrap();
        let report = verify(&meta, &weights, &file, false).unwrap();
        assert!(!serde_json::to_string(&report).unwrap().contains("rounding"));
        assert!(measure_rounding(&meta, &weights, &file).unwrap().is_none());
    }
}

#[test]
fn f16_files_with_other_weights_are_rejected() {
    let (meta, mut weights) = generator();
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = export_f16(&meta, &weights, dir.path());
    let name = "blocks.0.attn.qkv.weight";
    let array = weights.get_mut(name).expect("a weight of this name");
    array.data_mut()[7] += 0.01;
    let error = verify(&meta, &weights, &file, false).unwrap_err().to_string();
    assert!(error.ends_with(&format!("{name}: the values differ from the weights")), "{error}");
    assert_eq!(measure_rounding(&meta, &weights, &file).unwrap_err().to_string(), error);
}

fn change_weight(weights: &mut Weights, name: &str, f: fn(f32) -> f32) {
    let array = weights.get_mut(name).unwrap_or_else(|| panic!("a weight called {name}"));
    array.data_mut().iter_mut().for_each(|v| *v = f(*v));
}

#[track_caller]
fn export_error(meta: &ModelMeta, weights: &Weights) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = export(meta, weights, &dir.path().join("cat.onnx"), &F16_EXPORT).unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file remains");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn weights_beyond_the_range_of_f16_are_rejected() {
    let (meta, mut weights) = generator();
    weights.get_mut("final_layer.linear.weight").unwrap().data_mut()[5] = 70000.0;
    let expected = "weights: final_layer.linear.weight: expected values from -65504 to 65504, the range of f16, found 70000";
    assert_eq!(export_error(&meta, &weights), expected);
}

/// Values that underflow in f16 may matter to the network.
#[test]
fn rounding_that_changes_images_or_classes_is_rejected() {
    let (meta, mut weights) = generator();
    change_weight(&mut weights, "final_layer.linear.weight", |v| 1e-7 * v);
    change_weight(&mut weights, "final_layer.adaLN_modulation.1.bias", |v| v + 1e7);
    let error = export_error(&meta, &weights);
    assert!(error.contains("rounding weights to half precision changes outputs by up to"), "{error}");
    assert!(error.contains("trajectory") && error.contains("of at least 40 dB"), "{error}");

    let (meta, mut weights) = classifier();
    change_weight(&mut weights, "fc.weight", |v| 1e-7 * v);
    change_weight(&mut weights, "fc.bias", |_| 0.0);
    change_weight(&mut weights, "layer4.1.bn1.weight", |v| 1e4 * v);
    change_weight(&mut weights, "layer4.1.bn2.weight", |v| 1e4 * v);
    let error = export_error(&meta, &weights);
    assert!(error.contains("the class of "), "{error}");
}

#[test]
fn rounding_does_not_change_f16_weights() {
    let (meta, weights) = generator();
    let (meta, weights) = stored(&meta, &weights);
    let dir = tempfile::tempdir().unwrap();
    let (report, file) = export_f16(&meta, &weights, dir.path());
    assert!(report.rounding.is_none() && !file.f16_names().is_empty());
    assert!(file.weights().unwrap().iter().all(|(name, array)| weights.get(name).is_none_or(|w| w == array)));
    assert!(measure_rounding(&meta, &weights, &file).unwrap().is_none());
}
