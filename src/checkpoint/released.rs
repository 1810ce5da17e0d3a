//! Released models: weights and the metadata that a program needs to use them.

use std::{collections::BTreeMap, path::Path};

use tiny_cats_export::{META_KEY, ModelMeta};
use tiny_cats_models::{Array, Weights, resnet::NUM_BATCHES_TRACKED};

use super::{ErrorKind, Result, safetensors, torch, torch::Item};

/// The key of the weights in the PyTorch dictionary.
pub(super) const STATE_DICT: &str = "model_state_dict";

/// Writes a released model as a safetensors file, atomically; [`open`](super::open) reads it. Equal models give equal bytes.
///
/// # Errors
/// If the file cannot be written; an older file of that name is then unchanged.
pub fn write_safetensors(path: &Path, weights: &Weights, meta: &ModelMeta) -> Result<()> {
    let tensors: Vec<(String, &Array)> = weights.iter().map(|(name, array)| (name.clone(), array)).collect();
    let metadata = BTreeMap::from([(META_KEY, meta.to_json())]);
    safetensors::write(path, &metadata, &batch_counts(weights, meta), &tensors)
}

/// Writes a released model for PyTorch, atomically. Equal models give equal bytes.
///
/// `torch.load(path, weights_only=True)` gives a dictionary of `model_state_dict`, `config` (the network's kind and sizes) and `classes`.
/// It has the whole [`ModelMeta`] as JSON text under [`META_KEY`]. [`open`](super::open) reads it too.
///
/// # Errors
/// If the file cannot be written; an older file of that name is then unchanged.
pub fn write_torch(path: &Path, weights: &Weights, meta: &ModelMeta) -> Result<()> {
    let tensors = weights.iter().map(|(name, array)| (name.clone(), Item::Tensor(array)));
    let counts = batch_counts(weights, meta).into_iter().map(|(name, n)| (name, Item::IntegerTensor(n)));
    let tensors = tensors.chain(counts).collect();
    let config = serde_json::to_value(&meta.config).map_err(std::io::Error::from).map_err(ErrorKind::Io);
    let root = Item::Dict(vec![
        (STATE_DICT.to_owned(), Item::Dict(tensors)),
        ("config".to_owned(), Item::from(&config.map_err(|p| p.with_path(path))?)),
        ("classes".to_owned(), Item::List(meta.classes.iter().cloned().map(Item::Str).collect())),
        (META_KEY.to_owned(), Item::Str(meta.to_json())),
    ]);
    torch::write(path, &root)
}

/// The number of batches that each batch normalization has processed, which PyTorch's strict loading requires. It is the number of training
/// steps, if the provenance has it, else 0.
fn batch_counts(weights: &Weights, meta: &ModelMeta) -> Vec<(String, i64)> {
    let (best, last) = (&meta.provenance["best"]["step"], &meta.provenance["schedule"]["steps"]);
    let steps = best.as_i64().or(last.as_i64()).unwrap_or(0);
    let norms = weights.keys().filter_map(|name| name.strip_suffix(".running_mean"));
    norms.map(|norm| (format!("{norm}.{NUM_BATCHES_TRACKED}"), steps)).collect()
}

/// Parses the output of [`ModelMeta::to_json`].
pub(super) fn parse_meta(text: &str) -> Result<ModelMeta, ErrorKind> {
    ModelMeta::from_json(text, "").map_err(|e| match e {
        tiny_cats_export::Error::File { field, message, .. } => ErrorKind::malformed(field, message),
        other => ErrorKind::malformed(META_KEY, other.to_string()),
    })
}
