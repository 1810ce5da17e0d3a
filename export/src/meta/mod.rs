//! The metadata of a model, which are stored in every model file.

mod classifier;
mod generator;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tiny_cats_models::{Role, Sizes};

pub use classifier::{ClassifierMeta, Preprocessing};
pub use generator::{GeneratorMeta, Sampler, SamplerDefaults};

use crate::{Error, LoadableNetwork, META_KEY, NetworkConfig, Result, closest, excerpt, onnx::OnnxFile};

/// The version of [`ModelMeta`] that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

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
    /// Side of the square images, in pixels; 0 if the network does not take RGB images.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_size: usize,
    /// Sizes of the input's other free axes.
    #[serde(skip_serializing_if = "Sizes::is_empty")]
    pub sizes: Sizes,
    /// Names of the classes; a label is an index into them. Empty if the network has no classes.
    pub classes: Vec<String>,
    /// Task of the model, with its own fields, which are stored among these.
    #[serde(flatten)]
    pub task: TaskMeta,
    /// Origin of the model: crate version, command, data fingerprint; no clock times.
    pub provenance: serde_json::Value,
}

/// The task of a model. The role of its network determines it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TaskMeta {
    /// A generator of images of a class.
    Generator(GeneratorMeta),
    /// A classifier of images.
    Classifier(ClassifierMeta),
    /// Any other network: programs pass it tensors.
    Other {},
    /// The unknown task of a network whose kind is not registered: its fields, so that a copy of the file keeps them.
    Unknown(BTreeMap<String, serde_json::Value>),
}

/// The free axis that is the side of square images, in pixels. [`ModelMeta::image_size`] holds its size.
pub const IMAGE_SIZE: &str = "image_size";

/// Returns the sizes of a network of square images whose free axes are [`IMAGE_SIZE`].
pub fn image_sizes(image_size: usize) -> Sizes {
    Sizes::from([(IMAGE_SIZE.to_owned(), image_size)])
}

fn is_zero(size: &usize) -> bool {
    *size == 0
}

/// Largest size of a free axis.
const MAX_SIZE: usize = 1 << 24;

/// Returns the side of the images that a network takes: its first input is `[3, side, side]`. `None` for other networks.
fn image_size(config: &NetworkConfig, sizes: &Sizes) -> Option<usize> {
    let inputs = config.network().ok()?.inputs();
    match inputs.first()?.dims(sizes).ok()?[..] {
        [3, height, width] if height == width => Some(height),
        _ => None,
    }
}

impl OnnxFile {
    /// Returns the metadata of the model.
    ///
    /// # Errors
    /// [`Error::File`] if it is missing or invalid.
    pub fn meta(&self) -> Result<ModelMeta> {
        match self.metadata().get(META_KEY) {
            Some(text) => ModelMeta::from_json(text, self.name()),
            None => Err(Error::file(self.name(), META_KEY, "expected the metadata of the model, found none")),
        }
    }
}

impl ModelMeta {
    /// Returns the metadata of a network whose free axes have these `sizes`.
    ///
    /// For a generator of RGB images, black is −1 and white 1. If it has no null class, its last class is used as one, as in training. For
    /// a classifier of RGB images, preprocessing is torchvision's: the shorter side is resized to 8/7 of the image size; mean and standard
    /// deviation are ImageNet's. All other networks are [`TaskMeta::Other`].
    pub fn new(config: NetworkConfig, sizes: Sizes, classes: Vec<String>) -> Self {
        let image_size = image_size(&config, &sizes);
        let task = match (config.role(), image_size) {
            (Role::Generator { null_label, prediction, .. }, Some(_)) => {
                TaskMeta::Generator(GeneratorMeta::new(null_label, prediction, classes.len()))
            }
            (Role::Classifier { .. }, Some(size)) => {
                TaskMeta::Classifier(ClassifierMeta { preprocessing: Preprocessing::imagenet(size) })
            }
            _ => TaskMeta::Other {},
        };
        let sizes = sizes.into_iter().filter(|(axis, _)| axis != IMAGE_SIZE).collect();
        let image_size = image_size.unwrap_or(0);
        let provenance = serde_json::Value::Null;
        Self { format_version: FORMAT_VERSION, config, image_size, sizes, classes, task, provenance }
    }

    /// Returns the metadata of `network`: see [`new`](Self::new).
    ///
    /// # Errors
    /// As [`NetworkConfig::new`].
    pub fn for_network<N: LoadableNetwork>(network: N, sizes: Sizes, classes: Vec<String>) -> Result<Self> {
        Ok(Self::new(NetworkConfig::new(network)?, sizes, classes))
    }

    /// Returns the sizes of the free axes.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = self.sizes.clone();
        if self.image_size > 0 {
            sizes.insert(IMAGE_SIZE.to_owned(), self.image_size);
        }
        sizes
    }

    /// Returns the metadata for generating, if the model is a generator.
    pub fn generator(&self) -> Option<&GeneratorMeta> {
        match &self.task {
            TaskMeta::Generator(task) => Some(task),
            _ => None,
        }
    }

    /// Returns the metadata for classifying, if the model is a classifier.
    pub fn classifier(&self) -> Option<&ClassifierMeta> {
        match &self.task {
            TaskMeta::Classifier(task) => Some(task),
            _ => None,
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
            TaskMeta::Other {} | TaskMeta::Unknown(_) => {
                return format!("a network of kind {}", excerpt(self.config.kind()));
            }
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
            #[serde(default)]
            image_size: Option<usize>,
            #[serde(default)]
            sizes: Sizes,
            #[serde(default)]
            classes: Vec<String>,
            #[serde(default)]
            provenance: serde_json::Value,
            #[serde(flatten)]
            task: BTreeMap<String, serde_json::Value>,
        }
        fill_defaults(&mut json).map_err(|e| ("", e.to_string()))?;
        let Common { format_version, config, image_size, sizes, classes, provenance, task } = parse(&json)?;
        if format_version == 0 || format_version > FORMAT_VERSION {
            let message = format!("expected 1 to {FORMAT_VERSION}, found {format_version}");
            return Err(("format_version", message));
        }
        let class_count = classes.len();
        if class_count > MAX_CLASSES {
            return Err(("classes", format!("expected at most {MAX_CLASSES} names, found {class_count}")));
        }
        if let Some(name) = classes.iter().find(|name| !is_class_name(name)) {
            return Err(("classes", format!("expected names that can begin a file's name, found {name:?}")));
        }
        if let Some(size) = sizes.values().chain(&image_size).find(|size| !(1..=MAX_SIZE).contains(*size)) {
            return Err(("image_size", format!("expected sizes from 1 to {MAX_SIZE}, found {size}")));
        }
        let mut meta = Self {
            format_version,
            config,
            image_size: image_size.unwrap_or(0),
            sizes,
            classes,
            task: if task.is_empty() { TaskMeta::Other {} } else { TaskMeta::Unknown(task) },
            provenance,
        };
        if meta.config.is_known() {
            meta.task = meta.read_task(&json)?;
        }
        Ok(meta)
    }

    /// Parses the fields of the task, and checks them and the sizes against the network.
    fn read_task(&self, json: &serde_json::Value) -> Result<TaskMeta, FieldError> {
        let network = self.config.network().map_err(|e| ("config", e.to_string()))?;
        network.validate().map_err(|e| ("config", e.to_string()))?;
        let class_count = self.classes.len();
        if let Some(expected) = network.role().classes().filter(|&n| n != class_count) {
            return Err(("classes", format!("expected the network's {expected}, found {class_count}")));
        }
        let size = image_size(&self.config, &self.sizes());
        if self.image_size != size.unwrap_or(0) {
            let expected = size.map_or("none".into(), |size| format!("the network's {size}"));
            return Err(("image_size", format!("expected {expected}, found {}", self.image_size)));
        }
        // The definition knows which sizes it takes.
        network.cost(&self.sizes()).map_err(|e| ("image_size", e.to_string()))?;
        match (network.role(), size) {
            (Role::Generator { prediction, .. }, Some(_)) => {
                let task: GeneratorMeta = parse(json)?;
                task.check(prediction, class_count)?;
                Ok(TaskMeta::Generator(task))
            }
            (Role::Classifier { .. }, Some(size)) => {
                let task: ClassifierMeta = parse(json)?;
                task.check(size)?;
                Ok(TaskMeta::Classifier(task))
            }
            _ => Ok(TaskMeta::Other {}),
        }
    }
}

fn parse<T: DeserializeOwned>(json: &serde_json::Value) -> Result<T, FieldError> {
    T::deserialize(json).map_err(|e| ("", e.to_string()))
}

/// True if a class may be called `name`. Names become part of file names and are printed. They must not be empty
/// or a relative path component, or contain a path separator of any system or a control character.
pub fn is_class_name(name: &str) -> bool {
    let is_allowed = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    !matches!(name, "" | "." | "..") && name.chars().all(is_allowed)
}

/// Fills in the fields that a file leaves out and that follow from a generator's network.
fn fill_defaults(json: &mut serde_json::Value) -> serde_json::Result<()> {
    let Some(fields) = json.as_object_mut() else { return Ok(()) };
    let config = fields.get("config").and_then(|config| NetworkConfig::deserialize(config).ok());
    // An invalid network is reported later; its inputs may be absurd.
    let config = config.filter(|config| config.network().is_ok_and(|network| network.validate().is_ok()));
    let fixed_size = config.as_ref().and_then(|config| image_size(config, &Sizes::new()));
    if let (Some(Role::Generator { null_label, prediction, .. }), Some(size)) =
        (config.as_ref().map(NetworkConfig::role), fixed_size)
    {
        let classes = fields.get("classes").and_then(|c| c.as_array()).map_or(0, Vec::len);
        let defaults = serde_json::to_value(GeneratorMeta::new(null_label, prediction, classes))?;
        fields.entry("image_size").or_insert(size.into());
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
    use tiny_cats_models::{ResNetConfig, TinyDitConfig};

    use super::*;

    fn meta() -> ModelMeta {
        let config = TinyDitConfig::named("nano", 32, 2).unwrap();
        ModelMeta::new(
            NetworkConfig::new(config).unwrap(),
            Sizes::new(),
            vec!["Abyssinian".into(), "Other".into()],
        )
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
        ModelMeta::new(
            NetworkConfig::new(config).unwrap(),
            image_sizes(224),
            vec!["Abyssinian".into(), "Other".into()],
        )
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
