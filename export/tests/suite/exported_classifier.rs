//! Tests of classifiers' export, verification and loading.
#![cfg(feature = "candle")]

use tiny_cats_export::{
    Error, ExportOptions, Generator, LoadOptions, META_KEY, Model, ModelMeta, NetworkConfig,
    PREDECESSOR_CLASSES, RuntimeReport, export, image_sizes,
    onnx::{OPSETS, OnnxFile, OnnxGraph},
    runtime::RuntimeKind,
    to_onnx, verify,
};
use tiny_cats_models::{
    Array, Head, Network as _, ResNet, ResNetConfig, Scope, Sizes, Tensor, TinyDitConfig, Weights,
    fold_batch_norm, init, random::noise,
};

const SIZE: usize = 40;

/// Returns a small network with nonzero scales and nontrivial statistics, as after training.
fn classifier(depth: usize) -> (ModelMeta, Weights) {
    let config = ResNetConfig { depth, width: 8, classes: 13, head: Head::Dropout, batch_norm: true };
    let mut weights = init(&config.specs().unwrap(), 1);
    for (i, array) in weights.values_mut().enumerate().filter(|(_, array)| array.dims().len() == 1) {
        let n = array.data().len();
        array.data_mut().iter_mut().zip(noise(2, i as u64, n)).for_each(|(v, e)| *v += 0.2 * e.abs());
    }
    let classes = (0..13).map(|i| format!("Breed_{i}")).collect();
    (ModelMeta::for_network(config.clone(), image_sizes(SIZE), classes).unwrap(), weights)
}

fn config(meta: &ModelMeta) -> &ResNetConfig {
    meta.config.downcast().unwrap()
}

fn available() -> impl Iterator<Item = RuntimeKind> {
    RuntimeKind::ALL.into_iter().filter(|kind| kind.version().is_ok())
}

fn images(n: usize) -> Array {
    Array::new([n, 3, SIZE, SIZE], noise(3, 0, n * 3 * SIZE * SIZE)).unwrap()
}

#[test]
fn exported_files_contain_folded_weights_and_are_verified() {
    for (depth, opset) in
        [(18, *OPSETS.start()), (50, *OPSETS.start()), (18, *OPSETS.end()), (50, *OPSETS.end())]
    {
        let (meta, weights) = classifier(depth);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cat.onnx");
        let options = ExportOptions { opset, ..ExportOptions::default() };
        let report = export(&meta, &weights, &path, &options).unwrap();
        assert!(report.passed && report.batches == [1, 3], "{report:?}");
        for kind in crate::common::required_runtimes(opset) {
            let mut found = report.runtimes.iter().filter(|r| r.runtime == kind.name());
            let found =
                found.next().unwrap_or_else(|| panic!("{kind} was not verified: {:?}", report.skipped));
            assert_eq!((found.same_class, found.trajectory_psnr), (Some(report.inputs), None));
        }
        let model = Model::open(&path).unwrap();
        let (folded, plain) = fold_batch_norm(config(&meta), &weights).unwrap();
        assert!(model.weights().unwrap() == plain);
        assert_eq!(*model.meta(), ModelMeta { config: NetworkConfig::new(folded).unwrap(), ..meta });
        assert!(model.classifier().is_ok());
    }
}

#[test]
fn weights_and_files_give_the_same_logits_on_all_runtimes() {
    let (meta, weights) = classifier(18);
    let file = Model::from_bytes(to_onnx(&meta, &weights, 17).unwrap(), "cat.onnx").unwrap();
    let model = Model::from_weights(meta, weights);
    let x = images(3);
    let expected = model.load_classifier(RuntimeKind::Candle).unwrap().logits(&x).unwrap();
    assert_eq!(expected.dims(), [3, 13]);
    for kind in available() {
        for model in [&model, &file] {
            let mut network = model.load_classifier(kind).unwrap();
            let mut found = network.logits(&x).unwrap().into_data();
            for one in x.data().chunks(3 * SIZE * SIZE) {
                let one = Array::new([1, 3, SIZE, SIZE], one.to_vec()).unwrap();
                found.extend(network.logits(&one).unwrap().data());
            }
            let both = expected.data().iter().chain(expected.data());
            assert!(found.iter().zip(both).all(|(a, b)| (a - b).abs() < 1e-4), "{kind}");
        }
    }
}

#[test]
fn verification_detects_other_weights_and_export_rejects_damaged_weights() {
    let (meta, weights) = classifier(18);
    let mut other = weights.clone();
    other.get_mut("layer4.1.bn2.running_mean").unwrap().data_mut()[5] += 0.5;
    let file = OnnxFile::from_bytes(to_onnx(&meta, &other, 17).unwrap(), "cat.onnx").unwrap();
    let error = verify(&meta, &weights, &file, false).unwrap_err().to_string();
    assert!(error.contains("layer4.1.conv2.bias"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cat.onnx");
    let export_error = |weights: &Weights| match export(&meta, weights, &path, &ExportOptions::default()) {
        Err(Error::Verification(message)) => message,
        other => panic!("{other:?}"),
    };
    // A negative variance is finite, but its square root is not.
    other.get_mut("bn1.running_var").unwrap().data_mut()[2] = -1.0;
    assert!(export_error(&other).contains("numbers are not finite"), "{}", export_error(&other));
    other.get_mut("bn1.running_var").unwrap().data_mut()[2] = f32::NAN;
    assert_eq!(export_error(&other), "bn1.running_var: 1 of 8 numbers are not finite");
    other.insert("fc.weight".into(), weights["fc.1.weight"].clone());
    let error = to_onnx(&meta, &other, 17).unwrap_err().to_string();
    assert_eq!(error, "weights: fc.weight: the network has no parameter of this name");
    other.remove("bn1.running_var");
    assert!(export(&meta, &other, &path, &ExportOptions::default()).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn verification_detects_a_different_graph() {
    let (meta, weights) = classifier(18);
    let bytes = crate::common::without_digest(to_onnx(&meta, &weights, 17).unwrap());
    // The same weights and metadata, but every ReLU rounds up instead.
    let mut changed = bytes.clone();
    for start in (0..bytes.len() - 4).filter(|&i| bytes[i..].starts_with(b"Relu")) {
        changed[start..start + 4].copy_from_slice(b"Ceil");
    }
    let file = OnnxFile::from_bytes(changed, "cat.onnx").unwrap();
    let report = verify(&meta, &weights, &file, false).unwrap();
    // The native runtime evaluates the definition, not the graph.
    let is_detected = |r: &RuntimeReport| r.passed == (r.runtime == "native");
    assert!(!report.passed && report.runtimes.iter().all(is_detected), "{report:?}");
}

#[test]
fn graphs_of_the_python_predecessor_are_recognized() {
    for (depth, head) in [(18, Head::Dropout), (34, Head::Plain), (50, Head::Plain)] {
        let config = ResNetConfig { depth, width: 8, classes: 13, head, batch_norm: false };
        let weights = init(&config.specs().unwrap(), 1);
        let graph = OnnxGraph::new(17).unwrap();
        let input = graph.floats("input", &[3, SIZE, SIZE]).unwrap();
        let mut source = graph.source(&weights);
        let model = ResNet::new(&config, &mut Scope::root(&mut source)).unwrap();
        let logits = model.forward(&input).unwrap();
        let bytes = graph.finish(&[("output", &logits)], &[]).unwrap();
        let model = Model::from_bytes(bytes, "old.onnx").unwrap();
        let expected = ModelMeta::for_network(
            config.clone(),
            image_sizes(SIZE),
            PREDECESSOR_CLASSES.map(String::from).to_vec(),
        )
        .unwrap();
        assert_eq!(*model.meta(), expected);
        let found = available().map(|kind| model.load_classifier(kind).unwrap().logits(&images(2)).unwrap());
        let found: Vec<Array> = found.collect();
        for other in &found[1..] {
            let pairs = found[0].data().iter().zip(other.data());
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }
    let graph = OnnxGraph::new(17).unwrap();
    let input = graph.floats("input", &[3, SIZE, SIZE]).unwrap();
    let bytes = graph.finish(&[("output", &input.relu().unwrap())], &[]).unwrap();
    let error = Model::from_bytes(bytes, "old.onnx").unwrap_err().to_string();
    assert!(error.starts_with("old.onnx: graph: expected tiny-cats in the metadata or"), "{error}");
}

#[test]
fn a_model_of_the_other_task_gives_a_one_line_error() {
    let (meta, weights) = classifier(18);
    let bytes = to_onnx(&meta, &weights, 17).unwrap();
    let classifier = Model::from_bytes(bytes, "breeds.onnx").unwrap();
    let error = Generator::from_model(&classifier, &LoadOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "breeds.onnx: task: expected a generator, found a classifier of 13 classes");

    let config = TinyDitConfig { depth: 1, ..TinyDitConfig::named("nano", 32, 1).unwrap() };
    let weights = init(&config.specs().unwrap(), 1);
    let meta = ModelMeta::for_network(config.clone(), Sizes::new(), vec!["Other".into()]).unwrap();
    let generator = Model::from_bytes(to_onnx(&meta, &weights, 17).unwrap(), "cat.onnx").unwrap();
    let error = generator.load_classifier(RuntimeKind::Tract).err().unwrap().to_string();
    assert_eq!(error, "cat.onnx: task: expected a classifier, found a generator of 1 class");

    // A graph whose metadata describe the other task.
    let graph = OnnxGraph::new(17).unwrap();
    let input = graph.floats("input", &[3, 32, 32]).unwrap();
    let output = input.relu().unwrap();
    let bytes = graph.finish(&[("output", &output)], &[(META_KEY, meta.to_json())]).unwrap();
    let error = Model::from_bytes(bytes, "cat.onnx").unwrap_err().to_string();
    assert_eq!(error, "cat.onnx: inputs: expected an input called x, found none");
}
