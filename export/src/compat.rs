//! Files of the Python project tiny-cats-model, which carry no metadata.

use tiny_cats_models::{Array, Head, Network, ResNetConfig, Sizes, TinyDitConfig};

use crate::{Error, META_KEY, ModelMeta, Result, TaskMeta, image_sizes, meta::MAX_CLASSES, onnx::OnnxFile};

/// The class names of the project, in the order of its labels; its files do not hold them.
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

/// The names of a generator's inputs in the project's files: the noisy image, its time, its label.
const INPUTS: [&str; 3] = ["noise", "timestep", "breed"];
/// The name of a classifier's input in the project's files.
const CLASSIFIER_INPUT: &str = "input";

/// Returns the names that the inputs of `network` have in a graph, in the order of the definition. Generators of the Python project
/// tiny-cats-model have other names than the definition.
pub fn graph_input_names(network: &dyn crate::DynNetwork, file: &OnnxFile) -> Vec<String> {
    match file.inputs().iter().any(|port| port.name == INPUTS[0]) {
        true => INPUTS.map(str::to_owned).to_vec(),
        false => network.inputs().into_iter().map(|input| input.name).collect(),
    }
}

/// Derives the metadata of a graph from its structure; `None` if it is not a graph of the project.
pub fn graph_meta(file: &OnnxFile) -> Result<Option<ModelMeta>> {
    let size = |name: &str| {
        let port = file.inputs().iter().find(|port| port.name == name)?;
        if let [_, _, Some(size), _] = port.dims[..] { Some(size) } else { None }
    };
    match (size(INPUTS[0]), size(CLASSIFIER_INPUT)) {
        (Some(size), _) => predecessor_generator(file, size).map(Some),
        (_, Some(size)) => predecessor_classifier(file, size).map(Some),
        _ => Ok(None),
    }
}

/// Derives the metadata of a generator's graph of tiny-cats-model. It has no null class, so the last class is used
/// as one.
fn predecessor_generator(file: &OnnxFile, image_size: usize) -> Result<ModelMeta> {
    let [image, _, label] = INPUTS;
    let invalid = |message: String| Error::file(file.name(), "graph", message);
    let Some(classes) = file.embedding_rows(label)? else {
        return Err(invalid(format!("expected a table indexed by {label}, found none")));
    };
    if !(1..=MAX_CLASSES).contains(&classes) {
        return Err(invalid(format!("expected 1 to {MAX_CLASSES} classes, found a table of {classes} rows")));
    }
    let config = TinyDitConfig { image_size, classes, ..TinyDitConfig::legacy() };
    let mut meta = ModelMeta::for_network(config, Sizes::new(), predecessor_classes(classes))?;
    if let TaskMeta::Generator(task) = &mut meta.task {
        task.guided = file.is_guided(image, label)?;
    }
    Ok(meta)
}

/// Derives the metadata of a classifier's graph of tiny-cats-model. PyTorch's exporter folds batch normalizations and may rename
/// the folded weights. The network is therefore recognized by its convolutions and its head.
fn predecessor_classifier(file: &OnnxFile, image_size: usize) -> Result<ModelMeta> {
    let invalid = |message: String| Error::file(file.name(), "graph", message);
    let weights = file.weights()?;
    let convolutions: Vec<&Array> = weights.values().filter(|array| array.dims().len() == 4).collect();
    let depth = match convolutions.len() {
        20 => 18,
        36 => 34,
        53 => 50,
        n => {
            let expected = "the 20, 36 or 53 convolutions of a ResNet-18, 34 or 50";
            return Err(invalid(format!("expected {META_KEY} in the metadata or {expected}, found {n}")));
        }
    };
    let narrowest = convolutions.iter().filter_map(|array| array.dims().first());
    let (head, rows) = match (weights.get("fc.weight"), weights.get("fc.1.weight")) {
        (Some(array), _) => (Head::Plain, array.dims().first()),
        (_, Some(array)) => (Head::Dropout, array.dims().first()),
        _ => return Err(invalid("expected a weight called fc.weight or fc.1.weight".into())),
    };
    let config = ResNetConfig {
        depth,
        width: narrowest.min().copied().unwrap_or(0),
        classes: rows.copied().unwrap_or(0),
        head,
        batch_norm: weights.contains_key("bn1.running_mean"),
    };
    config.validate().map_err(|e| invalid(e.to_string()))?;
    let classes = predecessor_classes(config.classes);
    ModelMeta::for_network(config, image_sizes(image_size), classes)
}

/// Returns the names of `n` classes for a file without class names.
pub fn predecessor_classes(n: usize) -> Vec<String> {
    if n == PREDECESSOR_CLASSES.len() {
        PREDECESSOR_CLASSES.map(String::from).to_vec()
    } else {
        (0..n).map(|i| i.to_string()).collect()
    }
}
