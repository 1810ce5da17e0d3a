//! Released models: weights and what a program needs to use them.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tiny_cats_models::{Array, Prediction, Weights};

use super::{Network, Problem, Result, safetensors, torch, torch::Item};

/// The metadata's key that makes a safetensors file a released model.
pub(super) const KEY: &str = "tiny-cats";
const VERSION_KEY: &str = "format_version";
const VERSION: u64 = 1;
/// The torch dictionary's key for the weights.
pub(super) const STATE_DICT: &str = "model_state_dict";

/// What a program needs to use a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The network's kind and sizes.
    pub config: Network,
    /// The names of the classes, by label.
    pub classes: Vec<String>,
    /// Pixel values of black and of white.
    pub value_range: [f64; 2],
    /// What the network's output means.
    pub prediction: Prediction,
    /// Defaults for sampling.
    #[serde(default)]
    pub sampler: Json,
    /// Where the model comes from: crate version, data, command, steps.
    #[serde(default)]
    pub provenance: Json,
}

impl ModelInfo {
    /// As an object with sorted keys and the format's version.
    pub fn to_json(&self) -> Json {
        json!({
            VERSION_KEY: VERSION,
            "config": self.config,
            "classes": self.classes,
            "value_range": self.value_range,
            "prediction": self.prediction,
            "sampler": self.sampler,
            "provenance": self.provenance,
        })
    }

    /// Reads what [`to_json`](Self::to_json) made.
    ///
    /// # Errors
    /// When a field is missing, or contradicts another.
    pub fn from_json(json: &Json) -> Result<Self, Problem> {
        match json.get(VERSION_KEY).and_then(Json::as_u64) {
            Some(VERSION) => {}
            found => {
                let found = found.map_or("none".to_owned(), |v| v.to_string());
                return Err(Problem::malformed(VERSION_KEY, format!("expected {VERSION}, found {found}")));
            }
        }
        let info: Self =
            Self::deserialize(json).map_err(|e| Problem::malformed("model information", e.to_string()))?;
        info.config.specs().map_err(|e| Problem::malformed("config", e.to_string()))?;
        if info.classes.len() != info.config.classes() {
            let message = format!("{} names, expected {}", info.classes.len(), info.config.classes());
            return Err(Problem::malformed("classes", message));
        }
        if info.prediction != info.config.prediction() {
            let message =
                format!("{:?}, but the network predicts {:?}", info.prediction, info.config.prediction());
            return Err(Problem::malformed("prediction", message));
        }
        let [low, high] = info.value_range;
        if !(low < high && low.is_finite() && high.is_finite()) {
            return Err(Problem::malformed(
                "value_range",
                format!("expected two rising numbers, found {low} and {high}"),
            ));
        }
        Ok(info)
    }
}

/// Writes a released model as a safetensors file, atomically; [`open`](super::open) reads it.
///
/// # Errors
/// When the file cannot be written; an older file of that name is then still there.
pub fn write_safetensors(path: &Path, weights: &Weights, info: &ModelInfo) -> Result<()> {
    let tensors: Vec<(String, &Array)> = weights.iter().map(|(name, array)| (name.clone(), array)).collect();
    safetensors::write(path, &BTreeMap::from([(KEY, info.to_json().to_string())]), &tensors)
}

/// Writes a released model for PyTorch, atomically: `torch.load(path, weights_only=True)` gives a dictionary of `model_state_dict`,
/// `config`, `classes` and the other fields of [`ModelInfo`]. [`open`](super::open) reads it too.
///
/// # Errors
/// When the file cannot be written; an older file of that name is then still there.
pub fn write_torch(path: &Path, weights: &Weights, info: &ModelInfo) -> Result<()> {
    let tensors = weights.iter().map(|(name, array)| (name.clone(), Item::Tensor(array))).collect();
    let mut root = vec![(STATE_DICT.to_owned(), Item::Dict(tensors))];
    if let Item::Dict(fields) = Item::from(&info.to_json()) {
        root.extend(fields);
    }
    torch::write(path, &Item::Dict(root))
}

/// The information in a PyTorch file that [`write_torch`] wrote; none in the files of others.
pub(super) fn torch_info(root: &torch::Value) -> Result<Option<ModelInfo>, Problem> {
    if root.get(VERSION_KEY).is_none() || root.get("config").and_then(|c| c.get("kind")).is_none() {
        return Ok(None);
    }
    ModelInfo::from_json(&root.to_json()).map(Some)
}
