//! Export of weights to an ONNX file.

use tiny_cats_models::Weights;

use crate::{
    Error, META_KEY, ModelMeta, NetworkConfig, Result,
    onnx::{OnnxGraph, WeightStorage, round_to_f16},
};

/// Exports the network that `meta` describes to an ONNX file, without verification.
///
/// A generator: `x` `[batch, 3, size, size]`, `t` `[batch]`, `label` `[batch]` (int64) → `prediction`. Guidance is part of the
/// sampler, not of the file. A classifier: `input` `[batch, 3, size, size]` → `output` `[batch, classes]`. Its batch normalizations
/// are folded, which the metadata records. Other networks: their inputs → their main output.
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
    let outputs = meta.config.network()?.write_graph(&graph, &mut source, &meta.sizes())?;
    source.finish()?;
    let [(name, output), ..] = &outputs[..] else {
        return Err(Error::file(meta.config.kind(), "outputs", "expected at least one output, found none"));
    };
    graph.finish(&[(name, output)], &[(META_KEY, meta.to_json())])
}

/// Returns the metadata and weights that an ONNX file of this model holds: those
/// [for inference](tiny_cats_models::Network::for_inference). A classifier's batch normalizations, for instance, are folded.
///
/// # Errors
/// If the network's kind is not registered, or weights are missing.
pub fn export_form(meta: &ModelMeta, weights: &Weights) -> Result<(ModelMeta, Weights)> {
    let (network, weights) = meta.config.network()?.for_inference(weights)?;
    let config = NetworkConfig::from_dyn(network)?;
    Ok((ModelMeta { config, ..meta.clone() }, weights))
}
