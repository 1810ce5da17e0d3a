//! Opening whatever holds weights.

use std::{collections::BTreeMap, fmt, fs::File, io::Read, path::Path};

use serde_json::Value as Json;
use tiny_cats_export::{META_KEY, ModelMeta};
use tiny_cats_models::{Array, Weights, resnet::BATCH_COUNT};

use super::{
    Problem, Result, TrainingState,
    numbers::Numbers,
    released,
    safetensors::{SafeTensors, Stored},
    state,
    torch::{Tensor, TorchFile, Value},
};

/// Which of a checkpoint's weights are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhichWeights {
    /// Those that the optimizer stepped.
    Raw,
    /// Their exponential moving average.
    Ema,
    /// What a released file holds, our own training's averages, the Python project's raw ones (its averages of short runs are still
    /// near their beginning).
    #[default]
    Default,
}

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `NAME.safetensors` of a released model.
    ReleasedSafetensors,
    /// `NAME.pt` of a released model.
    ReleasedTorch,
    /// [`TrainingState`].
    TrainingState,
    /// safetensors written by others.
    Safetensors,
    /// `{model_state_dict, ema_shadow_params, config, ..}`.
    TorchTraining,
    /// `{model, ema_params, step, config}`.
    TorchModel,
    /// `{state_dict}`.
    TorchStateDict,
    /// `{shadow_params, step}`: averages alone.
    TorchAverages,
    /// A dictionary of tensors and nothing else.
    TorchBare,
}

impl Format {
    fn is_released(self) -> bool {
        matches!(self, Self::ReleasedSafetensors | Self::ReleasedTorch)
    }
}

/// The weights of a checkpoint, and what the file says about them.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What was opened.
    pub format: Format,
    /// Real-valued tensors by name, without the prefixes `module.` and `_orig_mod.` that PyTorch's wrappers add.
    pub weights: Weights,
    /// Integer and boolean tensors by name, such as batch normalisation's `num_batches_tracked`.
    pub integers: BTreeMap<String, Vec<i64>>,
    /// Whether `weights` are averages.
    pub averaged: bool,
    /// What our own files say about the model; [`Loaded::describe`] knows more files.
    pub own_meta: Option<ModelMeta>,
    /// What others' files say about it: what they call `config`, or safetensors' metadata.
    pub config: Option<Json>,
    /// Whether the trainer of the Python project's classifiers wrote it, which trains one kind of network on pictures of one size.
    pub by_predecessor: bool,
    /// How many steps it was trained, if the file says so.
    pub step: Option<u64>,
}

/// Opens a checkpoint: our released models and training states, the Python project's files in all their layouts, safetensors.
/// The content decides, not the name.
///
/// # Errors
/// When the file is of no format that is read, was truncated or altered, holds no tensors, or lacks the weights that are wanted.
pub fn open(path: &Path, which: WhichWeights) -> Result<Loaded> {
    read(path, which).map_err(|p| p.at(path))
}

fn read(path: &Path, which: WhichWeights) -> Result<Loaded, Problem> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let loaded = match &start[..] {
        [b'P', b'K', 3, 4, ..] => read_torch(path, which)?,
        [_, _, _, _, _, _, _, 0, b'{', ..] => read_safetensors(path, which)?,
        // What torch.save began with before 1.6: a pickle of this number, or a tar archive.
        [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, ..] => return Err(Problem::LegacyTorch),
        tar if tar.get(257..262) == Some(b"ustar") => return Err(Problem::LegacyTorch),
        other => return Err(Problem::Unrecognised { found: looks_like(other) }),
    };
    if loaded.weights.is_empty() { Err(Problem::NoTensors) } else { Ok(loaded) }
}

fn looks_like(start: &[u8]) -> &'static str {
    match start {
        [] => "the file is empty",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', ..] => {
            "a Git LFS pointer, whose file was not fetched"
        }
        [b'<', ..] => "a web page",
        [0x08, ..] => "it looks like an ONNX file",
        [0x80, ..] => "a Python pickle",
        _ => "the content is unknown",
    }
}

impl Loaded {
    pub(super) fn new(format: Format) -> Self {
        let (weights, integers) = Default::default();
        let (own_meta, config, step) = Default::default();
        Self { format, weights, integers, averaged: false, own_meta, config, by_predecessor: false, step }
    }

    /// A file with one set of weights: released ones say in their provenance whether they are averages, others' are taken as raw.
    fn alone(mut self, which: WhichWeights) -> Result<Self, Problem> {
        let says = |meta: &ModelMeta| meta.provenance["weights"] == "ema";
        self.averaged = self.format.is_released() && self.own_meta.as_ref().is_some_and(says);
        match (which, self.averaged) {
            (WhichWeights::Raw, true) => Err(Problem::NoSuchWeights { wanted: "raw", found: "EMA" }),
            (WhichWeights::Ema, false) => Err(Problem::NoSuchWeights { wanted: "EMA", found: "raw" }),
            _ => Ok(self),
        }
    }

    fn insert(&mut self, name: &str, dims: Vec<usize>, numbers: Numbers) -> Result<(), Problem> {
        let name = canonical(name);
        let twice = || Problem::malformed(name, "there are two tensors of this name");
        match numbers {
            Numbers::Integers(values) => {
                self.integers.insert(name.to_owned(), values).map_or(Ok(()), |_| Err(twice()))
            }
            Numbers::Floats(data) => {
                let array = Array::new(dims, data).map_err(|e| Problem::malformed(name, e.to_string()))?;
                self.weights.insert(name.to_owned(), array).map_or(Ok(()), |_| Err(twice()))
            }
        }
    }
}

/// The name without what `DataParallel` and `torch.compile` put before it.
fn canonical(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix("module.").or_else(|| name.strip_prefix("_orig_mod.")) {
        name = rest;
    }
    name
}

fn read_safetensors(path: &Path, which: WhichWeights) -> Result<Loaded, Problem> {
    let file = SafeTensors::open(path)?;
    if file.metadata.contains_key(state::KEY) {
        return read_state(file, which);
    }
    let mut loaded = Loaded::new(Format::Safetensors);
    if let Some(text) = file.metadata.get(META_KEY) {
        loaded.own_meta = Some(released::parse_meta(text)?);
        loaded.format = Format::ReleasedSafetensors;
    } else {
        // Texts that are JSON, as some write a whole configuration, are read as such.
        let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_str()));
        let said = file.metadata.iter().map(|(key, text)| (key.clone(), value(text)));
        loaded.config = Some(said.collect());
    }
    for Stored { name, dims, numbers } in file.read(|_| true)? {
        loaded.insert(&name, dims, numbers)?;
    }
    loaded.alone(which)
}

fn read_state(file: SafeTensors, which: WhichWeights) -> Result<Loaded, Problem> {
    let mut loaded = Loaded::new(Format::TrainingState);
    let has = |group: &str| file.entries.iter().any(|e| e.name.starts_with(group));
    loaded.averaged = match which {
        WhichWeights::Raw => false,
        WhichWeights::Ema if !has("ema.") => {
            return Err(Problem::NoSuchWeights { wanted: "EMA", found: "raw" });
        }
        _ => has("ema."),
    };
    let state = TrainingState::read(file, if loaded.averaged { &["ema."] } else { &["weights."] })?;
    loaded.weights = if loaded.averaged { state.ema } else { state.weights };
    loaded.step = state.meta.get("step").and_then(Json::as_u64);
    let meta = state.meta.get(state::MODEL);
    loaded.own_meta = meta.map(|json| released::parse_meta(&json.to_string())).transpose()?;
    Ok(loaded)
}

fn read_torch(path: &Path, which: WhichWeights) -> Result<Loaded, Problem> {
    let TorchFile { root, mut storages } = TorchFile::read_values(path)?;
    let dictionary = |key: &str| root.get(key).filter(|v| matches!(v, Value::Dict(_)));
    let own_meta = match root.get(META_KEY) {
        Some(Value::Str(text)) => Some(released::parse_meta(text)?),
        _ => None,
    };
    let training = if own_meta.is_some() { Format::ReleasedTorch } else { Format::TorchTraining };
    let layouts = [
        (released::STATE_DICT, "ema_shadow_params", training),
        ("model", "ema_params", Format::TorchModel),
        ("state_dict", "ema_params", Format::TorchStateDict),
    ];
    let known = layouts.iter().find_map(|&(raw, ema, format)| {
        Some((dictionary(raw), dictionary(ema), format)).filter(|l| l.0.is_some())
    });
    let (raw, ema, format) = known.unwrap_or_else(|| match dictionary("shadow_params") {
        Some(ema) => (None, Some(ema), Format::TorchAverages),
        None => (Some(&root), None, Format::TorchBare),
    });

    let mut loaded = Loaded { own_meta, ..Loaded::new(format) };
    loaded.step = match root.get("step") {
        Some(Value::Int(step)) => u64::try_from(*step).ok(),
        _ => None,
    };
    loaded.config = dictionary("config").map(Value::to_json);
    loaded.by_predecessor = format == Format::TorchTraining
        && ["epoch", "val_acc", "timestamp"].iter().all(|key| root.get(key).is_some());
    let ema_wanted = !format.is_released()
        && (which == WhichWeights::Ema || (which == WhichWeights::Default && raw.is_none()));
    let tensors = match (raw, ema) {
        (_, Some(ema)) if ema_wanted => {
            loaded.averaged = true;
            let averaged = ema.tensors();
            // Averages are kept of parameters; the running statistics are only among the raw tensors.
            let is_statistic =
                |name: &str| ["running_mean", "running_var", BATCH_COUNT].iter().any(|s| name.ends_with(s));
            let statistics = raw.map(Value::tensors).unwrap_or_default().into_iter().filter(|(name, _)| {
                is_statistic(name) && !averaged.iter().any(|(a, _)| canonical(a) == canonical(name))
            });
            averaged.iter().copied().chain(statistics).collect()
        }
        (Some(raw), _) if !ema_wanted => raw.tensors(),
        (Some(_), _) => return Err(Problem::NoSuchWeights { wanted: "EMA", found: "raw" }),
        (None, _) => return Err(Problem::NoSuchWeights { wanted: "raw", found: "EMA" }),
    };
    let tensors: Vec<(&str, &Tensor)> = tensors;
    for ((name, tensor), numbers) in tensors.iter().zip(storages.read(&tensors)?) {
        loaded.insert(name, tensor.dims.clone(), numbers)?;
    }
    if format.is_released() { loaded.alone(which) } else { Ok(loaded) }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::ReleasedSafetensors => "released model, safetensors",
            Format::ReleasedTorch => "released model, PyTorch",
            Format::TrainingState => "training state",
            Format::Safetensors => "safetensors",
            Format::TorchTraining => "PyTorch training checkpoint (model_state_dict)",
            Format::TorchModel => "PyTorch checkpoint (model)",
            Format::TorchStateDict => "PyTorch checkpoint (state_dict)",
            Format::TorchAverages => "PyTorch averages (shadow_params)",
            Format::TorchBare => "PyTorch state dict",
        })
    }
}
