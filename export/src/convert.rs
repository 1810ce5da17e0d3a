//! From weights to an ONNX file.

use tiny_cats_models::{Scope, TinyDit, Weights};

use crate::{META_KEY, ModelMeta, Network, Result, onnx::OnnxGraph};

/// Names of a generator's inputs, in the order of [`TinyDit::forward`]: the noisy picture, its time, its label.
pub const INPUTS: [&str; 3] = ["x", "t", "label"];
/// Name of a generator's output.
pub const OUTPUT: &str = "prediction";

/// The ONNX file of the network that `meta` describes: `x` `[batch, 3, size, size]`, `t` `[batch]`, `label` `[batch]` (int64) →
/// `prediction`. Guidance is the sampler's, not the file's. The file is not verified.
///
/// # Errors
/// When `weights` are not exactly those of the network, or the operator set is unknown.
pub fn to_onnx(meta: &ModelMeta, weights: &Weights, opset: u32) -> Result<Vec<u8>> {
    let Network::TinyDit(config) = &meta.config;
    let graph = OnnxGraph::new(opset)?;
    let [x, t, label] = INPUTS;
    let x = graph.floats(x, &config.picture())?;
    let t = graph.floats(t, &[])?;
    let label = graph.labels(label, &[])?;
    let mut source = graph.source(weights);
    let model = TinyDit::new(config, &mut Scope::root(&mut source))?;
    source.finish()?;
    let prediction = model.forward(&x, &t, &label)?;
    graph.finish(&[(OUTPUT, &prediction)], &[(META_KEY, meta.to_json())])
}
