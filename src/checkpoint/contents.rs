//! The contents of a checkpoint.

use std::{collections::BTreeMap, fmt};

use serde_json::Value as Json;
use tiny_cats_export::{Integrity, ModelMeta};
use tiny_cats_models::{Array, Weights};

use super::{ErrorKind, dictionary::WeightsLocation, tensor_data::TensorData};

/// A choice among a checkpoint's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightsSelection {
    /// The weights that the optimizer updates.
    Raw,
    /// Their exponential moving average.
    Ema,
    /// The weights of a released file, the averages of our own training, or the raw weights of the Python project. That project's averages
    /// of short runs are still near their initial values.
    #[default]
    Default,
}

/// The format of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `NAME.safetensors` of a released model.
    ReleasedSafetensors,
    /// `NAME.pt` of a released model.
    ReleasedTorch,
    /// A [`TrainingState`](super::TrainingState).
    TrainingState,
    /// A safetensors file written by another program.
    Safetensors,
    /// A PyTorch file `{model_state_dict, ema_shadow_params, config, ..}`.
    TorchTraining,
    /// A PyTorch file `{model, ema_params, step, config}`.
    TorchModel,
    /// A PyTorch file `{state_dict}`.
    TorchStateDict,
    /// A PyTorch file of averages only, such as `{shadow_params, step}`.
    TorchAverages,
    /// A PyTorch file with other keys, such as `{net}` or `{model: {state_dict}}`; [`Checkpoint::source`] has them.
    TorchNested,
    /// A PyTorch file that is only a dictionary of tensors.
    TorchBare,
}

impl Format {
    pub(super) fn is_released(self) -> bool {
        matches!(self, Self::ReleasedSafetensors | Self::ReleasedTorch)
    }
}

/// A value of an unsupported type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Its type of number or its class.
    pub kind: String,
    /// The sizes of its axes, if it is a tensor and they are known.
    pub dims: Vec<usize>,
}

/// The weights of a checkpoint, and the file's metadata.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file's format.
    pub format: Format,
    /// The result of comparing its checksums: SHA-256 in a safetensors file, CRC-32 in a PyTorch file. If a PyTorch file has none, only
    /// lengths are compared.
    pub integrity: Integrity,
    /// The location of the weights in the file.
    pub source: WeightsLocation,
    /// Real-valued tensors by name. Unless this program wrote the file, the prefixes `module.` and `_orig_mod.` of PyTorch's wrappers are
    /// removed, and so is that in [`source`](Self::source).
    pub weights: Weights,
    /// Integer and boolean tensors by name, such as batch normalization's `num_batches_tracked`.
    pub integers: BTreeMap<String, Vec<i64>>,
    /// Other entries by name, which have unsupported types. The network needs none of them.
    pub unsupported: BTreeMap<String, Unsupported>,
    /// Unknown classes and functions that a PyTorch file mentions; see [`TorchFile::opaque`](super::torch::TorchFile::opaque).
    pub opaque: Vec<String>,
    /// True if `weights` are averages.
    pub averaged: bool,
    /// The model's metadata, in our own files; [`Checkpoint::describe`] also handles other files.
    pub own_meta: Option<ModelMeta>,
    /// The configuration in files of other programs. In a safetensors file it is the metadata.
    ///
    /// In a PyTorch file it is the dictionary or the object's attributes under `config`, else `args`, `hparams`, `hyper_parameters` or
    /// `cfg`.
    pub config: Option<Json>,
    /// True if it is from the Python project's classifier training, which has one image size.
    pub is_predecessor: bool,
    /// The number of training steps, if the file has it.
    pub step: Option<u64>,
}

impl Checkpoint {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            integrity: Integrity::Verified,
            source: WeightsLocation::default(),
            weights: Weights::new(),
            integers: BTreeMap::new(),
            unsupported: BTreeMap::new(),
            opaque: Vec::new(),
            averaged: false,
            own_meta: None,
            config: None,
            is_predecessor: false,
            step: None,
        }
    }

    /// Selects from a file with one set of weights. A released file's provenance says if they are averages; weights of other files count as
    /// raw.
    pub(super) fn single_set(mut self, selection: WeightsSelection) -> Result<Self, ErrorKind> {
        let is_ema = |meta: &ModelMeta| meta.provenance["weights"] == "ema";
        self.averaged = self.format.is_released() && self.own_meta.as_ref().is_some_and(is_ema);
        match (selection, self.averaged) {
            (WeightsSelection::Raw, true) => Err(ErrorKind::NoSuchWeights { wanted: "raw", found: "EMA" }),
            (WeightsSelection::Ema, false) => Err(ErrorKind::NoSuchWeights { wanted: "EMA", found: "raw" }),
            _ => Ok(self),
        }
    }

    pub(super) fn insert(
        &mut self,
        name: &str,
        dims: Vec<usize>,
        numbers: TensorData,
    ) -> Result<(), ErrorKind> {
        let duplicate = || ErrorKind::malformed(name, "expected one tensor of this name, found two");
        match numbers {
            TensorData::Integers(values) => {
                self.integers.insert(name.to_owned(), values).map_or(Ok(()), |_| Err(duplicate()))
            }
            TensorData::Floats(data) => {
                let array = Array::new(dims, data).map_err(|e| ErrorKind::malformed(name, e.to_string()))?;
                self.weights.insert(name.to_owned(), array).map_or(Ok(()), |_| Err(duplicate()))
            }
        }
    }
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
            Format::TorchAverages => "PyTorch averages",
            Format::TorchNested => "PyTorch checkpoint",
            Format::TorchBare => "PyTorch state dict",
        })
    }
}
