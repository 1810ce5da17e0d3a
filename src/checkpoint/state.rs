//! The training state: one file with everything that is needed to resume a run exactly.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use serde_json::Value;
use tiny_cats_models::{Array, Weights};

use super::{
    ErrorKind, Result,
    safetensors::{self, SafetensorsFile, StoredTensor},
    tensor_data::TensorData,
    torch::is_torch,
};

/// The metadata key that marks a safetensors file as a training state.
pub(super) const KEY: &str = "tiny-cats-state";
/// The key of the model's metadata in the state's `meta`.
pub(super) const MODEL: &str = "model";
const VERSION: u64 = 1;
const GROUPS: [&str; 5] = ["weights.", "ema.", "ema2.", "adam.m.", "adam.v."];

/// Weights, their moving averages, the optimizer's moments, and everything else as JSON.
///
/// The file is a safetensors file. The tensors' names are prefixed by `weights.`, `ema.`, `ema2.`, `adam.m.` and `adam.v.`. Equal states
/// give equal bytes, and damage to any byte is detected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingState {
    /// The weights that the optimizer updates.
    pub weights: Weights,
    /// Their exponential moving average; may be empty.
    pub ema: Weights,
    /// A second such average, with another decay; may be empty.
    pub ema2: Weights,
    /// The first of the tensors that the optimizer keeps for each parameter, such as AdamW's first moments; may be empty.
    pub moment1: Weights,
    /// The second of them; may be empty.
    pub moment2: Weights,
    /// The trainer's values: step, random streams, position in the data, schedule, best metric, resolved configuration, provenance.
    ///
    /// Its key `model` holds a [`ModelMeta`](tiny_cats_export::ModelMeta), from which [`open`](super::open) gets the network.
    pub meta: Value,
}

impl TrainingState {
    /// Writes the file atomically.
    ///
    /// # Errors
    /// If it cannot be written; an older file of that name is then unchanged.
    pub fn save(&self, path: &Path) -> Result<()> {
        let groups = [&self.weights, &self.ema, &self.ema2, &self.moment1, &self.moment2];
        let tensors: Vec<(String, &Array)> = GROUPS
            .iter()
            .zip(groups)
            .flat_map(|(prefix, weights)| weights.iter().map(move |(name, a)| (format!("{prefix}{name}"), a)))
            .collect();
        let meta = serde_json::json!({"version": VERSION, "meta": self.meta}).to_string();
        safetensors::write(path, &BTreeMap::from([(KEY, meta)]), &[], &tensors)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, is not a training state, or was truncated or altered.
    pub fn load(path: &Path) -> Result<Self> {
        let read = || {
            let mut start = Vec::new();
            File::open(path)?.take(512).read_to_end(&mut start)?;
            if is_torch(&start) {
                return Err(ErrorKind::NotAState { found: "a PyTorch file" });
            }
            Self::read(SafetensorsFile::open(path)?, &GROUPS)
        };
        read().map_err(|p| p.with_path(path))
    }

    /// Reads the groups of tensors with the prefixes in `wanted`; the others stay empty.
    pub(super) fn read(file: SafetensorsFile, wanted: &[&str]) -> Result<Self, ErrorKind> {
        let is_wanted = |name: &str| wanted.iter().any(|group| name.starts_with(group));
        if let Some(entry) = file.entries.iter().find(|e| e.dtype.is_none() && is_wanted(&e.name)) {
            return Err(ErrorKind::Unsupported { name: entry.name.clone(), found: entry.kind.clone() });
        }
        let mut state = Self { meta: meta(&file)?, ..Self::default() };
        for StoredTensor { name, dims, numbers } in file.read(|e| is_wanted(&e.name))? {
            let groups =
                [&mut state.weights, &mut state.ema, &mut state.ema2, &mut state.moment1, &mut state.moment2];
            let group =
                GROUPS.iter().zip(groups).find_map(|(g, weights)| Some((name.strip_prefix(g)?, weights)));
            let (Some((key, weights)), TensorData::Floats(data)) = (group, numbers) else {
                let message =
                    format!("expected real numbers, under a name that begins with {}", GROUPS.join(" or "));
                return Err(ErrorKind::malformed(name, message));
            };
            let array = Array::new(dims, data).map_err(|e| ErrorKind::malformed(&name, e.to_string()))?;
            weights.insert(key.to_owned(), array);
        }
        Ok(state)
    }
}

fn meta(file: &SafetensorsFile) -> Result<Value, ErrorKind> {
    let text =
        file.metadata.get(KEY).ok_or(ErrorKind::NotAState { found: "a safetensors file of weights" })?;
    // Without a checksum, damage could go undetected.
    if !file.has_checksum() {
        return Err(ErrorKind::Checksum);
    }
    let mut contents: Value =
        serde_json::from_str(text).map_err(|e| ErrorKind::malformed(KEY, e.to_string()))?;
    match contents.get("version").and_then(Value::as_u64) {
        Some(VERSION) => Ok(contents.get_mut("meta").map(Value::take).unwrap_or_default()),
        found => {
            let found = found.map_or("none".to_owned(), |v| v.to_string());
            Err(ErrorKind::malformed(format!("{KEY}.version"), format!("expected {VERSION}, found {found}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tiny_cats_models::random::{Purpose, Stream};

    use super::*;

    fn state() -> TrainingState {
        let mut stream = Stream::new(5, Purpose::Training, 0);
        let mut weights = || -> Weights {
            let mut array = |dims: &[usize]| Array::new(dims, stream.normals(dims.iter().product())).unwrap();
            BTreeMap::from([("a.weight".to_owned(), array(&[3, 4])), ("b".to_owned(), array(&[]))])
        };
        TrainingState {
            weights: weights(),
            ema: weights(),
            ema2: weights(),
            moment1: weights(),
            moment2: weights(),
            meta: json!({"step": 12, "best": null, "streams": {"order": [1, 2]}, "text": "\"sha256\":\"0\" ä"}),
        }
    }

    #[test]
    fn states_round_trip_and_are_deterministic() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        state().save(&a).unwrap();
        let loaded = TrainingState::load(&a).unwrap();
        assert_eq!(loaded, state());
        loaded.save(&b).unwrap();
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    }

    #[test]
    fn any_altered_or_missing_byte_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        state().save(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        // A new file each time, because some file systems sync overwritten files.
        let is_rejected = |bytes: &[u8]| {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            TrainingState::load(&path).is_err()
        };
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1 << (i % 8);
            assert!(is_rejected(&bad), "byte {i} of {} altered", good.len());
            assert!(is_rejected(&good[..i]), "cut to {i} of {} bytes", good.len());
        }
    }
}
