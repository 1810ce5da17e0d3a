//! The metadata of a model, which are stored in every model file.

mod classifier;
mod generator;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tiny_cats_models::{NetworkConfig, ResNetConfig, TinyDitConfig};

pub use classifier::{ClassifierMeta, Preprocessing};
pub use generator::{GeneratorMeta, Sampler, SamplerDefaults};

use crate::{Error, Result, closest, excerpt};

/// The key of a [`ModelMeta`] as JSON: in safetensors' metadata, in a PyTorch file's dictionary, in ONNX's `metadata_props`.
pub const META_KEY: &str = "tiny-cats";

/// The version of [`ModelMeta`] that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The class names of the Python project tiny-cats-model, in the order of its labels; its files do not contain them.
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
/// Maximum number of classes of a model.
pub(crate) const MAX_CLASSES: usize = 4096;
/// Maximum number of classes that an error lists.
const MAX_LISTED: usize = 40;

/// An invalid field, and a message with the expected and found values.
type FieldError = (&'static str, String);

/// The metadata that a program needs to use a model's file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelMeta {
    /// Version of this structure, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The network's kind and sizes, which determine the definition.
    pub config: NetworkConfig,
    /// Side of the square images, in pixels.
    pub image_size: usize,
    /// Names of the classes; a label is an index here.
    pub classes: Vec<String>,
    /// Task of the model; serialized as fields of this structure.
    #[serde(flatten)]
    pub task: TaskMeta,
    /// Origin of the model: crate version, command, data fingerprint; no clock times.
    pub provenance: serde_json::Value,
}

/// The task of a model. The kind of its network determines it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TaskMeta {
    /// A generator of images of a class.
    Generator(GeneratorMeta),
    /// A classifier of images.
    Classifier(ClassifierMeta),
}

impl ModelMeta {
    /// Returns the metadata of this TinyDiT, with images in [−1, 1]. The legacy layout has no null class; its last class takes its
    /// place, as in training.
    pub fn tiny_dit(config: &TinyDitConfig, classes: Vec<String>) -> Self {
        let task = TaskMeta::Generator(GeneratorMeta::tiny_dit(config, classes.len()));
        Self::new(NetworkConfig::TinyDit(config.clone()), config.image_size, classes, task)
    }

    /// Returns the metadata of this ResNet, with torchvision's preprocessing for images of `image_size` pixels. The shorter side is
    /// resized to 8/7 of that; mean and standard deviation are ImageNet's.
    pub fn resnet(config: &ResNetConfig, image_size: usize, classes: Vec<String>) -> Self {
        let task =
            TaskMeta::Classifier(ClassifierMeta { preprocessing: Preprocessing::imagenet(image_size) });
        Self::new(NetworkConfig::ResNet(config.clone()), image_size, classes, task)
    }

    fn new(config: NetworkConfig, image_size: usize, classes: Vec<String>, task: TaskMeta) -> Self {
        let provenance = serde_json::Value::Null;
        Self { format_version: FORMAT_VERSION, config, image_size, classes, task, provenance }
    }

    /// Returns the metadata for generating, if the model is a generator.
    pub fn generator(&self) -> Option<&GeneratorMeta> {
        match &self.task {
            TaskMeta::Generator(task) => Some(task),
            TaskMeta::Classifier(_) => None,
        }
    }

    /// Returns the metadata for classifying, if the model is a classifier.
    pub fn classifier(&self) -> Option<&ClassifierMeta> {
        match &self.task {
            TaskMeta::Classifier(task) => Some(task),
            TaskMeta::Generator(_) => None,
        }
    }

    /// Returns the label of the class called `name`; case, spaces, `_` and `-` do not matter.
    ///
    /// # Errors
    /// [`Error::Request`] that suggests a similar class, or lists the classes if none is similar.
    pub fn label(&self, name: &str) -> Result<usize> {
        // A longer name matches no class, and is slow to compare.
        let name: String = name.chars().take(100).collect();
        let normalize = |s: &str| s.to_lowercase().replace([' ', '-'], "_");
        let normalized = normalize(&name);
        let classes = &self.classes;
        if let Some(label) = classes.iter().position(|class| normalize(class) == normalized) {
            return Ok(label);
        }
        let hint = match closest(&name, classes.iter().map(String::as_str)) {
            Some(class) => format!("did you mean {class}?"),
            None if classes.len() > MAX_LISTED => format!("there are {} classes", classes.len()),
            None => format!("expected one of {}", classes.join(", ")),
        };
        Err(Error::request("breed", excerpt(&format!("no class is called {name:?}; {hint}"))))
    }

    /// Returns a description for messages: "a generator of 13 classes".
    pub(crate) fn describe(&self) -> String {
        let task = match self.task {
            TaskMeta::Generator(_) => "generator",
            TaskMeta::Classifier(_) => "classifier",
        };
        let n = self.classes.len();
        format!("a {task} of {n} {}", if n == 1 { "class" } else { "classes" })
    }

    /// Returns the JSON text that is stored under [`META_KEY`]; equal contents give equal text.
    pub fn to_json(&self) -> String {
        // A struct of strings, numbers and JSON values cannot fail to serialize, although serde's signature allows errors.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses and validates the text stored under [`META_KEY`]; errors name `file`.
    ///
    /// # Errors
    /// [`Error::File`] if the text is too long, not JSON, of a newer format, or has invalid fields.
    pub fn from_json(text: &str, file: impl std::fmt::Display) -> Result<Self> {
        let invalid =
            |field: &str, message: String| Err(Error::file(&file, format!("{META_KEY}.{field}"), message));
        if text.len() > MAX_BYTES {
            return invalid("", format!("expected at most {MAX_BYTES} bytes, found {}", text.len()));
        }
        let json = serde_json::from_str(text).map_err(|e| ("", e.to_string()));
        json.and_then(Self::read).or_else(|(field, message)| invalid(field, message))
    }

    fn read(mut json: serde_json::Value) -> Result<Self, FieldError> {
        /// The fields that all files have.
        #[derive(Deserialize)]
        struct Common {
            format_version: u32,
            config: NetworkConfig,
            image_size: usize,
            classes: Vec<String>,
            #[serde(default)]
            provenance: serde_json::Value,
        }
        fill_defaults(&mut json).map_err(|e| ("", e.to_string()))?;
        let Common { format_version, config, image_size, classes, provenance } = parse(&json)?;
        if format_version == 0 || format_version > FORMAT_VERSION {
            let message = format!("expected 1 to {FORMAT_VERSION}, found {format_version}");
            return Err(("format_version", message));
        }
        let labels = classes.len();
        if !(1..=MAX_CLASSES).contains(&labels) {
            return Err(("classes", format!("expected 1 to {MAX_CLASSES} names, found {labels}")));
        }
        if let Some(name) = classes.iter().find(|name| !is_class_name(name)) {
            return Err(("classes", format!("expected names that can begin a file's name, found {name:?}")));
        }
        config.validate().map_err(|e| ("config", e.to_string()))?;
        if config.classes() != labels {
            let message = format!("expected the network's {}, found {labels}", config.classes());
            return Err(("classes", message));
        }
        let task = match &config {
            NetworkConfig::TinyDit(config) => {
                let task: GeneratorMeta = parse(&json)?;
                task.check(config, image_size, labels)?;
                TaskMeta::Generator(task)
            }
            NetworkConfig::ResNet(_) => {
                let task: ClassifierMeta = parse(&json)?;
                task.check(image_size)?;
                TaskMeta::Classifier(task)
            }
        };
        Ok(Self { format_version, config, image_size, classes, task, provenance })
    }
}

fn parse<T: DeserializeOwned>(json: &serde_json::Value) -> Result<T, FieldError> {
    T::deserialize(json).map_err(|e| ("", e.to_string()))
}

/// True if a class may be called `name`. Names become part of file names and are printed. They must not be empty
/// or relative folders, or contain a path separator of any system or a control character.
pub fn is_class_name(name: &str) -> bool {
    let is_allowed = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    !matches!(name, "" | "." | "..") && name.chars().all(is_allowed)
}

/// Fills in the fields that a file leaves out and that follow from a generator's network.
fn fill_defaults(json: &mut serde_json::Value) -> serde_json::Result<()> {
    let Some(fields) = json.as_object_mut() else { return Ok(()) };
    if let Some(NetworkConfig::TinyDit(config)) =
        fields.get("config").and_then(|c| NetworkConfig::deserialize(c).ok())
    {
        let classes = fields.get("classes").and_then(|c| c.as_array()).map_or(0, Vec::len);
        let defaults = serde_json::to_value(GeneratorMeta::tiny_dit(&config, classes))?;
        fields.entry("image_size").or_insert(config.image_size.into());
        for field in ["null_label", "prediction", "value_range"] {
            fields.entry(field).or_insert_with(|| defaults[field].clone());
        }
    }
    fields.retain(|_, value| !value.is_null());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta() -> ModelMeta {
        let config = TinyDitConfig::named("nano", 32, 2).unwrap();
        ModelMeta::tiny_dit(&config, vec!["Abyssinian".into(), "Other".into()])
    }

    #[test]
    fn metadata_survive_a_round_trip() {
        assert_eq!(ModelMeta::from_json(&meta().to_json(), "m").unwrap(), meta());
    }

    #[test]
    fn a_released_file_is_read_and_written_unchanged() {
        let bytes = include_bytes!("../../../models/pretrained/tinydit.onnx").to_vec();
        let file = crate::onnx::OnnxFile::from_bytes(bytes, "tinydit.onnx").unwrap();
        let meta = file.meta().unwrap();
        assert_eq!(meta.to_json(), file.metadata()[META_KEY]);
        assert!(meta.generator().is_some());
    }

    #[test]
    fn fields_that_follow_from_the_network_are_optional() {
        let mut json: serde_json::Value = serde_json::from_str(&meta().to_json()).unwrap();
        for field in ["image_size", "null_label", "prediction", "value_range", "provenance"] {
            json.as_object_mut().unwrap().remove(field);
        }
        json["sampler"] = serde_json::Value::Null;
        assert_eq!(ModelMeta::from_json(&json.to_string(), "m").unwrap(), meta());
    }

    #[test]
    fn only_guided_generators_store_the_guided_field() {
        let mut meta = meta();
        assert!(!meta.to_json().contains("guided"));
        let TaskMeta::Generator(task) = &mut meta.task else { panic!("a generator") };
        assert_eq!((task.guidance(None), task.guidance(Some(3.0))), (2.0, 3.0));
        task.guided = true;
        assert_eq!((task.guidance(None), task.guidance(Some(3.0))), (1.0, 1.0));
        assert_eq!(ModelMeta::from_json(&meta.to_json(), "m").unwrap(), meta);
    }

    fn resnet() -> ModelMeta {
        let config = ResNetConfig::named("resnet18", 2).unwrap();
        ModelMeta::resnet(&config, 224, vec!["Abyssinian".into(), "Other".into()])
    }

    #[test]
    fn a_classifier_stores_its_preprocessing() {
        let meta = resnet();
        assert_eq!(ModelMeta::from_json(&meta.to_json(), "m").unwrap(), meta);
        assert_eq!(meta.classifier().unwrap().preprocessing.resize, 256);
        assert!(meta.generator().is_none());
        let mut json: serde_json::Value = serde_json::from_str(&meta.to_json()).unwrap();
        json.as_object_mut().unwrap().remove("preprocessing");
        let error = ModelMeta::from_json(&json.to_string(), "m").unwrap_err().to_string();
        assert!(error.contains("missing field `preprocessing`"), "{error}");
    }

    #[test]
    fn errors_name_the_file_and_the_invalid_field() {
        type Change = fn(&mut serde_json::Value);
        let generator_changes: [(&str, Change); 9] = [
            ("format_version", |m| m["format_version"] = 9.into()),
            ("classes", |m| m["classes"] = json!([])),
            ("classes", |m| m["classes"] = json!(["Abyssinian"])),
            ("null_label", |m| m["null_label"] = 3.into()),
            ("image_size", |m| m["image_size"] = (1u64 << 40).into()),
            ("prediction", |m| m["prediction"] = "velocity".into()),
            ("config", |m| m["config"]["heads"] = 7.into()),
            ("value_range", |m| m["value_range"] = json!([1.0, -1.0])),
            ("sampler", |m| m["sampler"]["steps"] = 0.into()),
        ];
        let classifier_changes: [(&str, Change); 7] = [
            ("classes", |m| m["classes"] = json!(["Abyssinian"])),
            ("config", |m| m["config"]["depth"] = 19.into()),
            ("image_size", |m| m["image_size"] = 31.into()),
            ("image_size", |m| m["image_size"] = (1u64 << 40).into()),
            ("preprocessing.resize", |m| m["preprocessing"]["resize"] = 223.into()),
            ("preprocessing.resize", |m| m["preprocessing"]["resize"] = (1u64 << 40).into()),
            ("preprocessing", |m| m["preprocessing"]["std"][1] = 0.into()),
        ];
        let cases = generator_changes.iter().map(|change| (meta(), change));
        for (meta, (field, change)) in cases.chain(classifier_changes.iter().map(|change| (resnet(), change)))
        {
            let mut json = serde_json::from_str(&meta.to_json()).unwrap();
            change(&mut json);
            let error = ModelMeta::from_json(&json.to_string(), "cat.onnx").unwrap_err().to_string();
            assert!(error.starts_with(&format!("cat.onnx: tiny-cats.{field}: ")), "{error}");
        }
        assert!(ModelMeta::from_json(&"[".repeat(10_000), "m").is_err());
    }

    #[test]
    fn class_names_that_are_unsuitable_for_file_names_are_rejected() {
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
