//! All available runtimes compute the same outputs.

use std::time::Instant;

use tiny_cats_export::{
    ModelMeta,
    onnx::{OPSETS, OnnxFile},
    runtime::{InputTensor, RuntimeKind, run_on_all},
    to_onnx,
};
use tiny_cats_models::{Array, Init, Network as _, Sizes, TinyDitConfig, init, random::noise};

fn generator(config: &TinyDitConfig, opset: u32) -> OnnxFile {
    let mut params = config.specs().unwrap();
    // Zero-initialized gates would hide the blocks.
    for spec in params.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.05);
    }
    let classes = (0..config.classes).map(|i| format!("class {i}")).collect();
    let meta = ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap();
    OnnxFile::from_bytes(to_onnx(&meta, &init(&params, 1), opset).unwrap(), "test").unwrap()
}

struct Batch {
    x: Array,
    t: Array,
    label: Vec<i64>,
}

impl Batch {
    fn new(config: &TinyDitConfig, items: std::ops::Range<usize>) -> Self {
        let [c, h, w] = config.image_dims();
        let n = items.len();
        let x = items.clone().flat_map(|i| noise(0, i as u64, c * h * w)).collect();
        let t = items.clone().map(|i| [0.0, 0.37, 0.95][i % 3]).collect();
        let label = items.map(|i| (i % config.classes) as i64).collect();
        Self { x: Array::new([n, c, h, w], x).unwrap(), t: Array::new([n], t).unwrap(), label }
    }

    fn inputs(&self) -> [(&str, InputTensor<'_>); 3] {
        let [x, t, label] = ["x", "t", "label"];
        [
            (x, InputTensor::Floats(&self.x)),
            (t, InputTensor::Floats(&self.t)),
            (label, InputTensor::Labels(&self.label)),
        ]
    }
}

/// Returns the maximum difference, relative to the maximum of `a`.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let max = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / max
}

fn assert_required(results: &[(RuntimeKind, tiny_cats_export::Result<Array>)], opset: u32) {
    assert!(!results.is_empty());
    for kind in crate::common::required_runtimes(opset) {
        assert!(results.iter().any(|(k, _)| *k == kind), "{kind} did not run: {:?}", kind.version());
    }
}

#[test]
fn generators_agree_on_all_runtimes_batches_and_operator_sets() {
    let modern = TinyDitConfig { depth: 2, ..TinyDitConfig::named("nano", 32, 13).unwrap() };
    let legacy = TinyDitConfig { width: 64, mlp_width: 96, depth: 2, heads: 4, ..TinyDitConfig::legacy() };
    for config in [modern, legacy] {
        let mut reference: Option<Array> = None;
        for opset in OPSETS {
            let file = generator(&config, opset);
            let batch = Batch::new(&config, 0..3);
            let start = Instant::now();
            let results = run_on_all(&file, &batch.inputs());
            assert_required(&results, opset);
            for (kind, result) in results {
                let result = result.unwrap();
                assert_eq!(result.dims(), batch.x.dims());
                let reference = reference.get_or_insert_with(|| result.clone());
                let error = difference(reference.data(), result.data());
                println!("{:?} opset {opset} {kind}: {error:e} {:?}", config.layout, start.elapsed());
                assert!(error < 1e-4, "opset {opset}, {kind}: {error}");
            }
        }
        let file = generator(&config, 17);
        let reference = reference.unwrap();
        for i in 0..3 {
            let one = Batch::new(&config, i..i + 1);
            let results = run_on_all(&file, &one.inputs());
            assert_required(&results, 17);
            for (kind, result) in results {
                let result = result.unwrap();
                let len = result.data().len();
                let error = difference(&reference.data()[i * len..(i + 1) * len], result.data());
                assert!(error < 1e-4, "item {i}, {kind}: {error}");
            }
        }
    }
}
