//! From weights to an ONNX file.

use std::borrow::Cow;

use tiny_cats_models::{ResNet, Scope, TinyDit, Weights, fold_batch_norm, resnet};

use crate::{
    META_KEY, ModelMeta, NetworkConfig, Result,
    onnx::{OnnxGraph, WeightStorage, round_to_f16},
};

/// Names of a generator's inputs, in the order of [`TinyDit::forward`]: the noisy picture, its time, its label.
pub const INPUTS: [&str; 3] = ["x", "t", "label"];
/// Name of a generator's output.
pub const OUTPUT: &str = "prediction";
/// Name of a classifier's input, the normalised picture.
pub const CLASSIFIER_INPUT: &str = "input";
/// Name of a classifier's output, the logits.
pub const CLASSIFIER_OUTPUT: &str = "output";

/// The ONNX file of the network that `meta` describes; it is not verified.
///
/// A generator: `x` `[batch, 3, size, size]`, `t` `[batch]`, `label` `[batch]` (int64) → `prediction`. Guidance is the sampler's, not the
/// file's. A classifier: `input` `[batch, 3, size, size]` → `output` `[batch, classes]`, with its batch normalisations
/// [folded](tiny_cats_models::fold), which its metadata says.
///
/// # Errors
/// When `weights` are not exactly those of the network, or the operator set is unknown.
pub fn to_onnx(meta: &ModelMeta, weights: &Weights, opset: u32) -> Result<Vec<u8>> {
    to_onnx_with_storage(meta, weights, opset, WeightStorage::F32)
}

/// As [`to_onnx`], with the weights that the file holds, folded ones if it is a classifier, stored as `storage` says.
///
/// # Errors
/// As [`to_onnx`], and when a weight cannot be stored so.
pub(crate) fn to_onnx_with_storage(
    meta: &ModelMeta,
    weights: &Weights,
    opset: u32,
    storage: WeightStorage,
) -> Result<Vec<u8>> {
    let (meta, weights) = export_form(meta, weights)?;
    let f16_names = storage.f16_names(&weights);
    let weights = round_to_f16(&weights, &f16_names)?;
    let graph = OnnxGraph::new(opset)?;
    let mut source = graph.source(&weights).with_f16_weights(f16_names);
    let (name, output) = match &meta.config {
        NetworkConfig::TinyDit(config) => {
            let [x, t, label] = INPUTS;
            let x = graph.floats(x, &config.image_dims())?;
            let t = graph.floats(t, &[])?;
            let label = graph.labels(label, &[])?;
            let model = TinyDit::new(config, &mut Scope::root(&mut source))?;
            (OUTPUT, model.forward(&x, &t, &label)?)
        }
        NetworkConfig::ResNet(config) => {
            let picture = [resnet::CHANNELS, meta.image_size, meta.image_size];
            let input = graph.floats(CLASSIFIER_INPUT, &picture)?;
            let model = ResNet::new(config, &mut Scope::root(&mut source))?;
            (CLASSIFIER_OUTPUT, model.forward(&input)?)
        }
    };
    source.finish()?;
    graph.finish(&[(name, &output)], &[(META_KEY, meta.to_json())])
}

/// The metadata and weights that an ONNX file of this model holds: a classifier's batch normalisations are
/// [folded](tiny_cats_models::fold), a generator is unchanged.
///
/// # Errors
/// When `weights` lack what is folded.
pub fn export_form<'a>(
    meta: &'a ModelMeta,
    weights: &'a Weights,
) -> Result<(Cow<'a, ModelMeta>, Cow<'a, Weights>)> {
    match &meta.config {
        NetworkConfig::TinyDit(_) => Ok((Cow::Borrowed(meta), Cow::Borrowed(weights))),
        NetworkConfig::ResNet(config) => {
            let (config, weights) = fold_batch_norm(config, weights)?;
            let meta = ModelMeta { config: NetworkConfig::ResNet(config), ..meta.clone() };
            Ok((Cow::Owned(meta), Cow::Owned(weights)))
        }
    }
}
