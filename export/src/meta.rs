//! What a file says about the model in it.

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Network, Prediction, TinyDitConfig};

use crate::{Error, Result};

/// The key that holds a [`ModelMeta`] as JSON: in safetensors' metadata, in a torch file's dictionary, in ONNX's `metadata_props`.
pub const META_KEY: &str = "tiny-cats";

/// The version of [`ModelMeta`] that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The class names of the Python project tiny-cats-model, in the order of its labels; its files do not hold them.
pub const PREDECESSOR_CLASSES: [&str; 13] = [
    "Abyssinian",
    "Bengal",
    "Birman",
    "Bombay",
    "British_Shorthair",
    "Egyptian_Mau",
    "Maine_Coon",
    "Persian",
    "Ragdoll",
    "Russian_Blue",
    "Siamese",
    "Sphynx",
    "Other",
];

const MAX_BYTES: usize = 1 << 20;
const MAX_CLASSES: usize = 4096;

/// How the path from noise to picture is integrated; the grid is uniform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Euler's method, one evaluation a step.
    Euler,
    /// Heun's trapezoidal method, two evaluations a step.
    #[default]
    Heun,
    /// The midpoint method, two evaluations a step.
    Midpoint,
}

impl std::str::FromStr for Sampler {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "euler" => Ok(Self::Euler),
            "heun" => Ok(Self::Heun),
            "midpoint" => Ok(Self::Midpoint),
            _ => Err(Error::request("sampler", format!("expected euler, heun or midpoint, found {s:?}"))),
        }
    }
}

impl std::fmt::Display for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Midpoint => "midpoint",
        })
    }
}

/// How the model's authors advise to sample from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerDefaults {
    /// The method.
    pub sampler: Sampler,
    /// Steps of the uniform grid.
    pub steps: usize,
    /// Weight of classifier-free guidance (arXiv 2207.12598); 1 is none.
    pub guidance: f32,
    /// Guidance holds for times `t` in this interval (arXiv 2404.07724); t = 0 is noise, t = 1 the picture.
    pub guidance_interval: [f32; 2],
}

impl Default for SamplerDefaults {
    fn default() -> Self {
        Self { sampler: Sampler::Heun, steps: 20, guidance: 2.0, guidance_interval: [0.1, 0.9] }
    }
}

/// What a program must know to use a generator's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Version of this structure, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The network's kind and sizes, from which the definition can be built again.
    pub config: Network,
    /// Side of the square pictures, in pixels.
    pub image_size: usize,
    /// Names of the classes; a label is an index here.
    pub classes: Vec<String>,
    /// The label of the unconditional pass in guidance: `classes.len()` where it is a class of its own.
    pub null_label: usize,
    /// The values of black and white.
    pub value_range: [f32; 2],
    /// What the network's output means.
    pub prediction: Prediction,
    /// How to sample from it.
    #[serde(default)]
    pub sampler: SamplerDefaults,
    /// Where it is from: crate version, command, data fingerprint; no clock times.
    #[serde(default)]
    pub provenance: serde_json::Value,
}

impl ModelMeta {
    /// What a file of this TinyDiT says, with pictures in [−1, 1]. The legacy layout has no null class; its last class stands in,
    /// as it did in training.
    pub fn tiny_dit(config: &TinyDitConfig, classes: Vec<String>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            config: Network::TinyDit(config.clone()),
            image_size: config.image_size,
            null_label: config.null_label().unwrap_or(classes.len().saturating_sub(1)),
            classes,
            value_range: [-1.0, 1.0],
            prediction: config.prediction(),
            sampler: SamplerDefaults::default(),
            provenance: serde_json::Value::Null,
        }
    }

    /// The JSON text that stands under [`META_KEY`]: always the same for the same contents.
    pub fn to_json(&self) -> String {
        // A struct of strings, numbers and JSON values has no way to fail; serde's signature does not know that.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads and checks the text that stands under [`META_KEY`] in `file`, which is named in errors.
    ///
    /// # Errors
    /// [`Error::File`] when the text is too long, no JSON, of a newer format, or describes nothing that can be sampled from.
    pub fn from_json(text: &str, file: impl std::fmt::Display) -> Result<Self> {
        let wrong =
            |field: &str, message: String| Err(Error::file(&file, format!("{META_KEY}.{field}"), message));
        if text.len() > MAX_BYTES {
            return wrong("", format!("expected at most {MAX_BYTES} bytes, found {}", text.len()));
        }
        let meta: Self = match serde_json::from_str(text).and_then(complete).and_then(serde_json::from_value)
        {
            Ok(meta) => meta,
            Err(e) => return wrong("", e.to_string()),
        };
        let labels = meta.classes.len();
        let sampler = &meta.sampler;
        if meta.format_version == 0 || meta.format_version > FORMAT_VERSION {
            let found = meta.format_version;
            return wrong("format_version", format!("expected 1 to {FORMAT_VERSION}, found {found}"));
        }
        if !(1..=MAX_CLASSES).contains(&labels) {
            return wrong("classes", format!("expected 1 to {MAX_CLASSES} names, found {labels}"));
        }
        if let Some(name) = meta.classes.iter().find(|name| !is_class_name(name)) {
            return wrong("classes", format!("expected names that can begin a file's name, found {name:?}"));
        }
        if meta.null_label > labels {
            return wrong("null_label", format!("expected at most {labels}, found {}", meta.null_label));
        }
        let Network::TinyDit(config) = &meta.config;
        if let Err(e) = config.validate() {
            return wrong("config", e.to_string());
        }
        if config.classes != labels {
            return wrong("classes", format!("expected the network's {}, found {labels}", config.classes));
        }
        if config.image_size != meta.image_size {
            let (expected, found) = (config.image_size, meta.image_size);
            return wrong("image_size", format!("expected the network's {expected}, found {found}"));
        }
        if config.prediction() != meta.prediction {
            return wrong("prediction", format!("expected the network's {:?}", config.prediction()));
        }
        if !(meta.value_range.iter().all(|v| v.is_finite()) && meta.value_range[0] < meta.value_range[1]) {
            return wrong("value_range", format!("expected black below white, found {:?}", meta.value_range));
        }
        if sampler.steps == 0 || !sampler.guidance.is_finite() {
            return wrong("sampler", "expected at least one step and a finite guidance".into());
        }
        Ok(meta)
    }
}

/// Whether a class may be called `name`. Names become part of file names and are printed: none is empty or a folder, none holds a
/// separator of paths (on any system) or a control character.
pub fn is_class_name(name: &str) -> bool {
    let harmless = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    !matches!(name, "" | "." | "..") && name.chars().all(harmless)
}

/// Adds what follows from the network where a file leaves it out.
fn complete(mut json: serde_json::Value) -> serde_json::Result<serde_json::Value> {
    let Some(fields) = json.as_object_mut() else { return Ok(json) };
    if let Some(Network::TinyDit(config)) = fields.get("config").and_then(|c| Network::deserialize(c).ok()) {
        let classes = fields.get("classes").and_then(|c| c.as_array()).map_or(0, Vec::len);
        let implied = serde_json::to_value(ModelMeta::tiny_dit(
            &config,
            vec![String::new(); classes.min(MAX_CLASSES)],
        ))?;
        for field in ["image_size", "null_label", "prediction", "value_range"] {
            fields.entry(field).or_insert_with(|| implied[field].clone());
        }
    }
    fields.retain(|_, value| !value.is_null());
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> ModelMeta {
        let config = TinyDitConfig::named("nano", 32, 2).unwrap();
        ModelMeta::tiny_dit(&config, vec!["Abyssinian".into(), "Other".into()])
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(ModelMeta::from_json(&meta().to_json(), "m").unwrap(), meta());
    }

    #[test]
    fn what_follows_from_the_network_may_be_left_out() {
        let mut json: serde_json::Value = serde_json::from_str(&meta().to_json()).unwrap();
        for field in ["image_size", "null_label", "prediction", "value_range", "provenance"] {
            json.as_object_mut().unwrap().remove(field);
        }
        json["sampler"] = serde_json::Value::Null;
        assert_eq!(ModelMeta::from_json(&json.to_string(), "m").unwrap(), meta());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_file() {
        type Change = fn(&mut ModelMeta);
        let wrong: [(&str, Change); 8] = [
            ("format_version", |m| m.format_version = 9),
            ("classes", |m| m.classes.clear()),
            ("null_label", |m| m.null_label = 3),
            ("image_size", |m| m.image_size = 1 << 40),
            ("prediction", |m| m.prediction = Prediction::Velocity),
            ("config", |m| {
                let Network::TinyDit(config) = &mut m.config;
                config.heads = 7;
            }),
            ("value_range", |m| m.value_range = [1.0, -1.0]),
            ("sampler", |m| m.sampler.steps = 0),
        ];
        for (field, change) in wrong {
            let mut meta = meta();
            change(&mut meta);
            let error = ModelMeta::from_json(&meta.to_json(), "cat.onnx").unwrap_err().to_string();
            assert!(error.starts_with(&format!("cat.onnx: tiny-cats.{field}: ")), "{error}");
        }
        assert!(ModelMeta::from_json(&"[".repeat(10_000), "m").is_err());
    }

    #[test]
    fn a_class_whose_name_is_no_part_of_a_file_name_is_refused_in_one_line() {
        let read = |name: &str| {
            let mut meta = meta();
            meta.classes[0] = name.into();
            ModelMeta::from_json(&meta.to_json(), "cat.onnx")
        };
        for name in
            ["", ".", "..", "/etc/cat", "../cat", "..\\cat", "C:cat", "a\0b", "a\nb", "\u{1b}[2J", "\u{85}"]
        {
            let error = read(name).unwrap_err().to_string();
            assert!(error.starts_with("cat.onnx: tiny-cats.classes: "), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        for name in ["Ägyptische Mau", "...", "St. Bernard (not a cat)", "短毛猫"] {
            assert_eq!(read(name).unwrap().classes[0], name);
        }
    }
}
