//! Export of weights to an ONNX file.

use std::borrow::Cow;

use tiny_cats_models::{ResNet, Scope, TinyDit, Weights, fold_batch_norm, resnet};

use crate::{
    META_KEY, ModelMeta, NetworkConfig, Result,
    onnx::{OnnxGraph, WeightStorage, round_to_f16},
};

/// The names of a generator's inputs, in the order of [`TinyDit::forward`]: the noisy image, its time, its label.
pub const INPUTS: [&str; 3] = ["x", "t", "label"];
/// The name of a generator's output.
pub const OUTPUT: &str = "prediction";
/// The name of a classifier's input, the normalized image.
pub const CLASSIFIER_INPUT: &str = "input";
/// The name of a classifier's output, the logits.
pub const CLASSIFIER_OUTPUT: &str = "output";

/// Exports the network that `meta` describes to an ONNX file, without verification.
///
/// A generator: `x` `[batch, 3, size, size]`, `t` `[batch]`, `label` `[batch]` (int64) → `prediction`. Guidance is part of the
/// sampler, not of the file. A classifier: `input` `[batch, 3, size, size]` → `output` `[batch, classes]`. Its batch normalizations
/// are [folded](tiny_cats_models::fold_batch_norm), which the metadata records.
///
/// # Errors
/// If `weights` are not exactly those of the network, or the operator set is not supported.
pub fn to_onnx(meta: &ModelMeta, weights: &Weights, opset: u32) -> Result<Vec<u8>> {
    to_onnx_with_storage(meta, weights, opset, WeightStorage::F32)
}

/// Exports as [`to_onnx`] does, and stores the weights of the file as `storage` defines.
///
/// # Errors
/// As [`to_onnx`], and if a weight cannot be stored in that form.
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
            let dims = [resnet::CHANNELS, meta.image_size, meta.image_size];
            let input = graph.floats(CLASSIFIER_INPUT, &dims)?;
            let model = ResNet::new(config, &mut Scope::root(&mut source))?;
            (CLASSIFIER_OUTPUT, model.forward(&input)?)
        }
    };
    source.finish()?;
    graph.finish(&[(name, &output)], &[(META_KEY, meta.to_json())])
}

/// Returns the metadata and weights that an ONNX file of this model holds. A classifier's batch normalizations are
/// [folded](tiny_cats_models::fold_batch_norm); a generator is unchanged.
///
/// # Errors
/// If a weight of a batch normalization or its convolution is missing.
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
