//! The models and data of an evaluation, and their identities in reports.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiny_cats_export::{Model, Sampler, runtime::RuntimeKind, sample::SamplingSettings};
use tiny_cats_models::pretrained;

use super::{Error, Event, Result};
use crate::{
    checkpoint,
    data::{Dataset, Split, hex},
};

/// The bytes of a bundled model, and the name of its file.
type Bundled = (&'static [u8], &'static str);

/// The bundled classifier.
pub(super) const BUNDLED_CLASSIFIER: Bundled = (pretrained::CLASSIFIER, "resnet18-breeds.onnx");
/// The bundled generator.
pub(super) const BUNDLED_GENERATOR: Bundled = (pretrained::TINYDIT, "tinydit.onnx");

/// The identity of the file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// The name of the file, without its folders.
    pub file: String,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

impl Provenance {
    pub(super) fn from_file(path: &Path) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut file = File::open(path).map_err(Error::io(path))?;
        io::copy(&mut file, &mut hash).map_err(Error::io(path))?;
        Ok(Self { file: file_name(path), sha256: hex(&hash.finalize()) })
    }
}

/// A model and its file.
pub(super) struct OpenedModel {
    pub model: Model,
    /// The path; `None` for the bundled model.
    pub path: Option<PathBuf>,
    pub provenance: Provenance,
}

impl OpenedModel {
    /// Opens the model in `path`, of any supported format; without a path, the bundled one in `bytes`.
    pub(super) fn open(
        path: Option<&Path>,
        (bytes, name): Bundled,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let Some(path) = path else {
            let model = Model::from_bytes(bytes.to_vec(), name)?;
            let provenance = Provenance { file: name.to_owned(), sha256: hex(&Sha256::digest(bytes)) };
            return Ok(Self { model, path: None, provenance });
        };
        let (model, assumptions) = checkpoint::open_model(path)?;
        if !assumptions.is_empty() {
            observe(Event::Assumed { path, assumptions: &assumptions });
        }
        Ok(Self { model, path: Some(path.to_owned()), provenance: Provenance::from_file(path)? })
    }

    /// Adds the path of the model to an error that names no file.
    pub(super) fn error(&self, error: impl Into<Error>) -> Error {
        error.into().with_model_file(self.path.as_deref())
    }
}

/// The settings that images were generated with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplingReport {
    /// Number of steps from noise to image.
    pub steps: usize,
    /// The method of each step.
    pub sampler: Sampler,
    /// Weight of classifier-free guidance; 1 means none.
    pub guidance: f32,
    /// Interval of times with guidance, from 0 (noise) to 1 (image), inclusive.
    pub guidance_interval: [f32; 2],
    /// The seed of the noise.
    pub seed: u64,
    /// The runtime of the generator.
    pub runtime: &'static str,
}

impl SamplingReport {
    pub(super) fn new(settings: &SamplingSettings, runtime: RuntimeKind) -> Self {
        let SamplingSettings { steps, sampler, guidance, guidance_interval, seed, .. } = *settings;
        Self { steps, sampler, guidance, guidance_interval, seed, runtime: runtime.name() }
    }
}

/// The data of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataReport {
    /// The [fingerprint](Dataset::fingerprint) of the part.
    pub fingerprint: String,
    /// The part of the data set: `test`, `validation`, `train` or `all`.
    pub split: &'static str,
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// The requested maximum number of images.
    pub limit_files: Option<usize>,
    /// The images that could not be used, and the reasons.
    #[serde(serialize_with = "serialize_skipped")]
    pub skipped: Vec<(PathBuf, String)>,
}

/// The name of a part of a data set in reports; `None` is all of it.
pub(super) fn split_name(split: Option<Split>) -> &'static str {
    match split {
        Some(Split::Test) => "test",
        Some(Split::Validation) => "validation",
        Some(Split::Train) => "train",
        None => "all",
    }
}

/// Opens a part of a data set, or all of it.
///
/// # Errors
/// If the data set cannot be read, or the part has no images.
pub(super) fn open_split(
    path: &Path,
    split: Option<Split>,
    observe: &mut dyn FnMut(Event),
) -> Result<Dataset> {
    let data = Dataset::open(path)?;
    observe(Event::Opened(&data));
    let part = match split {
        Some(split) => data.part(split),
        None => data,
    };
    if part.files.is_empty() {
        return Err(Error::EmptySplit { path: path.to_owned(), split: split_name(split) });
    }
    Ok(part)
}

/// For each class in `from`, the label of the class with that name in `to`. Case, spaces, `_` and `-` are ignored.
pub(super) fn labels(from: &[String], to: &[String]) -> Vec<Option<usize>> {
    let normalized = |name: &String| name.to_lowercase().replace([' ', '-'], "_");
    from.iter()
        .map(|name| to.iter().position(|candidate| normalized(candidate) == normalized(name)))
        .collect()
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Serializes skipped images as objects with `path` and `reason`.
pub(super) fn serialize_skipped<S: Serializer>(
    skipped: &[(PathBuf, String)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let to_json =
        |(path, reason): &(PathBuf, String)| json!({"path": path.to_string_lossy(), "reason": reason});
    skipped.iter().map(to_json).collect::<Value>().serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_matched_by_their_names_in_any_notation() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let found = labels(&names(&["Maine Coon", "other", "siamese"]), &names(&["Siamese", "maine-coon"]));
        assert_eq!(found, [Some(1), None, Some(0)]);
    }

    #[test]
    fn a_part_without_images_is_an_error_that_names_the_field_and_no_flag() {
        let error = Error::EmptySplit { path: "cats".into(), split: split_name(Some(Split::Validation)) };
        assert_eq!(error.to_string(), "cats: no validation images found");
    }
}
