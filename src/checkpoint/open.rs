//! Opening files of weights, in every supported format.

use std::{collections::BTreeSet, fs::File, io::Read, path::Path};

use serde_json::Value as Json;
use tiny_cats_export::{Integrity, META_KEY};
use tiny_cats_models::{Array, resnet::NUM_BATCHES_TRACKED};

use super::{
    Checkpoint, ErrorKind, Format, ModelOverrides, Result, TrainingState, Unsupported, WeightsSelection,
    compat,
    dictionary::{self, Dictionary, MAX_LISTED, SIGNATURE_TENSORS, WeightsLocation},
    released,
    safetensors::{SafetensorsFile, StoredTensor},
    state,
    tensor_data::elements,
    torch::{Tensor, TorchFile, Value, is_torch},
};

/// Opens a checkpoint: a released model, a training state, a safetensors file, or a file of the Python project in any of its layouts. The
/// format is recognized by the content, not by the name.
///
/// # Errors
/// If the file is of no supported format, was truncated or altered, holds no tensors, or lacks the selected weights. Also if a tensor that
/// the network needs has an unsupported type.
pub fn open(path: &Path, selection: WeightsSelection) -> Result<Checkpoint> {
    read(path, selection).map_err(|p| p.with_path(path))
}

fn read(path: &Path, selection: WeightsSelection) -> Result<Checkpoint, ErrorKind> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let mut checkpoint = match &start[..] {
        [b'P', b'K', 3, 4, ..] => read_torch(path, selection)?,
        [_, _, _, _, _, _, _, 0, b'{', ..] => read_safetensors(path, selection)?,
        other if is_torch(other) => return Err(ErrorKind::LegacyTorch),
        other => return Err(ErrorKind::Unrecognized { found: guess_format(other) }),
    };
    checkpoint.check_unsupported()?;
    if checkpoint.weights.is_empty() {
        let found = match checkpoint.unsupported.first_key_value() {
            Some((name, found)) => format!(" of a supported type; {name} is {}", found.kind),
            None => String::new(),
        };
        return Err(ErrorKind::NoTensors { found });
    }
    Ok(checkpoint)
}

fn guess_format(start: &[u8]) -> &'static str {
    match start {
        [] => "an empty file",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', ..] => {
            "a Git LFS pointer, whose file was not fetched"
        }
        [b'<', ..] => "a web page",
        [0x08, ..] => "probably an ONNX file",
        [0x80, ..] => "a Python pickle",
        _ => "unknown content",
    }
}

impl Checkpoint {
    /// Rejects the file if a tensor that the network needs has an unsupported type. The network is inferred with zeros in its place.
    fn check_unsupported(&mut self) -> Result<(), ErrorKind> {
        let unsupported = self.unsupported.iter().filter(|(name, _)| !self.weights.contains_key(*name));
        let mut remaining = MAX_PLACEHOLDERS;
        let mut names = Vec::new();
        let mut placeholders: Vec<(String, Array)> = Vec::new();
        for (name, Unsupported { dims, .. }) in unsupported {
            let elements = elements(dims).filter(|&n| n <= remaining);
            remaining -= elements.unwrap_or(0);
            let dims = if elements.is_some() { dims.clone() } else { vec![0] };
            let array = Array::new(dims, vec![0.0; elements.unwrap_or(0)]);
            placeholders.push((name.clone(), array.map_err(|e| ErrorKind::malformed(name, e.to_string()))?));
            names.push(name.clone());
        }
        if names.is_empty() {
            return Ok(());
        }
        self.weights.extend(placeholders);
        let specs = self.describe(&ModelOverrides::default()).and_then(|described| {
            described.meta.config.specs().map_err(|e| ErrorKind::malformed("network", e.to_string()))
        });
        names.iter().for_each(|name| drop(self.weights.remove(name)));
        let needed = match specs {
            Ok(specs) => {
                specs.into_iter().map(|spec| spec.name).find(|name| self.unsupported.contains_key(name))
            }
            // The network is unknown, unless these tensors identify it.
            Err(_) => SIGNATURE_TENSORS
                .iter()
                .find(|first| self.unsupported.contains_key(**first))
                .map(|&first| first.to_owned()),
        };
        match needed.and_then(|name| self.unsupported.get(&name).map(|u| (name, u.kind.clone()))) {
            Some((name, found)) => Err(ErrorKind::Unsupported { name, found }),
            None => Ok(()),
        }
    }
}

/// The largest number of zeros that replace unsupported tensors.
const MAX_PLACEHOLDERS: usize = 1 << 26;

fn read_safetensors(path: &Path, selection: WeightsSelection) -> Result<Checkpoint, ErrorKind> {
    let file = SafetensorsFile::open(path)?;
    if file.metadata.contains_key(state::KEY) {
        return read_state(file, selection);
    }
    let mut checkpoint = Checkpoint::new(Format::Safetensors);
    if !file.has_checksum() {
        checkpoint.integrity = Integrity::Unchecked;
    }
    if let Some(text) = file.metadata.get(META_KEY) {
        checkpoint.own_meta = Some(released::parse_meta(text)?);
        checkpoint.format = Format::ReleasedSafetensors;
    } else {
        // Some programs write the configuration as JSON text.
        let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_str()));
        let config = file.metadata.iter().map(|(key, text)| (key.clone(), value(text)));
        checkpoint.config = Some(config.collect());
    }
    // The names in this program's files are those of the network, whose own may begin like those of a wrapper.
    let names = file.entries.iter().map(|entry| entry.name.as_str());
    let prefix = checkpoint.own_meta.is_none().then(|| dictionary::network_prefix(names).to_owned());
    for entry in &file.entries {
        let mut name = entry.name.as_str();
        match (dictionary::strip(&mut name, prefix.as_deref()), entry.dtype) {
            (Err(name), _) => checkpoint.source.left_out.push(name.to_owned()),
            (Ok(()), Some(_)) => {}
            (Ok(()), None) => {
                let found = Unsupported { kind: entry.kind.clone(), dims: entry.dims.clone() };
                checkpoint.unsupported.insert(name.to_owned(), found);
            }
        }
    }
    for StoredTensor { name, dims, numbers } in
        file.read(|entry| entry.name.starts_with(prefix.as_deref().unwrap_or_default()))?
    {
        let mut name = name.as_str();
        if dictionary::strip(&mut name, prefix.as_deref()).is_ok() {
            checkpoint.insert(name, dims, numbers)?;
        }
    }
    checkpoint.source.prefix = prefix.unwrap_or_default();
    checkpoint.single_set(selection)
}

fn read_state(file: SafetensorsFile, selection: WeightsSelection) -> Result<Checkpoint, ErrorKind> {
    let mut checkpoint = Checkpoint::new(Format::TrainingState);
    let has_group = |group: &str| file.entries.iter().any(|e| e.name.starts_with(group));
    checkpoint.averaged = match selection {
        WeightsSelection::Raw => false,
        WeightsSelection::Ema if !has_group("ema.") => {
            return Err(ErrorKind::NoSuchWeights { wanted: "EMA", found: "raw" });
        }
        _ => has_group("ema."),
    };
    let state = TrainingState::read(file, if checkpoint.averaged { &["ema."] } else { &["weights."] })?;
    checkpoint.weights = if checkpoint.averaged { state.ema } else { state.weights };
    checkpoint.step = state.meta.get("step").and_then(Json::as_u64);
    let meta = state.meta.get(state::MODEL);
    checkpoint.own_meta = meta.map(|json| released::parse_meta(&json.to_string())).transpose()?;
    Ok(checkpoint)
}

fn read_torch(path: &Path, selection: WeightsSelection) -> Result<Checkpoint, ErrorKind> {
    let TorchFile { root, opaque, integrity, mut storages } = TorchFile::read_values(path)?;
    let own_meta = match root.get(META_KEY) {
        Some(Value::Str(text)) => Some(released::parse_meta(text)?),
        _ => None,
    };
    // The names in this program's files are those of the network, whose own may begin like those of a wrapper.
    let dictionaries = dictionary::dictionaries(&root, own_meta.is_none());
    let raw = dictionaries.iter().find(|d| !d.averaged);
    let ema = dictionaries.iter().find(|d| d.averaged);
    let format = match raw.map(|d| d.path.as_str()) {
        Some(released::STATE_DICT) if own_meta.is_some() => Format::ReleasedTorch,
        Some(released::STATE_DICT) => Format::TorchTraining,
        Some("model") => Format::TorchModel,
        Some("state_dict") => Format::TorchStateDict,
        Some("") => Format::TorchBare,
        Some(_) => Format::TorchNested,
        None => Format::TorchAverages,
    };

    let mut checkpoint = Checkpoint { own_meta, opaque, integrity, ..Checkpoint::new(format) };
    checkpoint.step = match root.get("step") {
        Some(Value::Int(step)) => u64::try_from(*step).ok(),
        _ => None,
    };
    checkpoint.config = configuration(&root);
    checkpoint.is_predecessor = format == Format::TorchTraining && compat::is_classifier(&root);
    let use_ema = !format.is_released()
        && (selection == WeightsSelection::Ema || (selection == WeightsSelection::Default && raw.is_none()));
    let (used, statistics) = match (raw, ema) {
        (None, None) => {
            let found = format!("; the file holds {}", root.describe(MAX_LISTED));
            return Err(ErrorKind::NoTensors { found });
        }
        (raw, Some(ema)) if use_ema => (ema, statistics(raw, ema)),
        (Some(raw), _) if !use_ema => (raw, Vec::new()),
        (Some(_), _) => return Err(ErrorKind::NoSuchWeights { wanted: "EMA", found: "raw" }),
        (None, _) => return Err(ErrorKind::NoSuchWeights { wanted: "raw", found: "EMA" }),
    };
    checkpoint.averaged = used.averaged;
    checkpoint.source = WeightsLocation {
        path: used.path.clone(),
        prefix: used.prefix.to_owned(),
        others: dictionaries.iter().filter(|d| !std::ptr::eq(*d, used)).map(|d| d.path.clone()).collect(),
        left_out: used.left_out.iter().map(|&name| name.to_owned()).collect(),
    };
    for (name, value) in &used.unsupported {
        let dims = if let Value::Unsupported { dims, .. } = value { dims.clone() } else { Vec::new() };
        checkpoint.unsupported.insert((*name).to_owned(), Unsupported { kind: value.describe(0), dims });
    }
    let tensors: Vec<(&str, &Tensor)> = used.tensors.iter().copied().chain(statistics).collect();
    for ((name, tensor), numbers) in tensors.iter().zip(storages.read(&tensors)?) {
        checkpoint.insert(name, tensor.dims.clone(), numbers)?;
    }
    if format.is_released() { checkpoint.single_set(selection) } else { Ok(checkpoint) }
}

/// The running statistics of batch normalizations. They are only among the raw tensors, because they are not averaged.
fn statistics<'v>(raw: Option<&Dictionary<'v>>, ema: &Dictionary<'v>) -> Vec<(&'v str, &'v Tensor)> {
    let is_statistic =
        |name: &str| ["running_mean", "running_var", NUM_BATCHES_TRACKED].iter().any(|s| name.ends_with(s));
    let averaged: BTreeSet<&str> = ema.tensors.iter().map(|(name, _)| *name).collect();
    let tensors = raw.map(|raw| raw.tensors.iter()).unwrap_or_default().copied();
    tensors.filter(|(name, _)| is_statistic(name) && !averaged.contains(name)).collect()
}

/// The network's configuration in the file: a dictionary, or the attributes of an object such as `argparse.Namespace`.
fn configuration(root: &Value) -> Option<Json> {
    ["config", "args", "hparams", "hyper_parameters", "cfg"].iter().find_map(|key| match root.get(key)? {
        Value::Object { attributes, .. } if attributes.is_empty() => None,
        value @ (Value::Dict(_) | Value::Object { .. }) => Some(value.to_json()),
        _ => None,
    })
}
