//! Loading of model files, ONNX or safetensors, into any runtime.

use std::{borrow::Cow, path::Path};

use safetensors::{Dtype, SafeTensors};
use tiny_cats_models::{Array, Head, ResNetConfig, TinyDitConfig, Weights, resnet::NUM_BATCHES_TRACKED};

use crate::{
    CHECKSUM_MISMATCH, CLASSIFIER_INPUT, Checksum, ClassifierMeta, Classify, Error, GeneratorMeta, INPUTS,
    Integrity, META_KEY, ModelMeta, NetworkConfig, PREDECESSOR_CLASSES, Result, TaskMeta,
    meta::MAX_CLASSES,
    onnx::{DEFAULT_OPSET, DataType, OnnxFile, ValueInfo},
    runtime::{InputTensor, RuntimeKind, Session},
    sample::Denoiser,
    to_onnx,
};

#[cfg(feature = "candle")]
use crate::runtime::candle::CandleModel;
#[cfg(feature = "native")]
use crate::runtime::native::NativeModel;

/// Maximum size of a model file, in bytes: above any model that we write, and small enough to hold in memory.
const MAX_BYTES: u64 = i32::MAX as u64;

/// The names of [`INPUTS`] in files of tiny-cats-model; its classifiers use the same names as ours.
const PREDECESSOR_INPUTS: [&str; 3] = ["noise", "timestep", "breed"];

/// Reads a model file of at most [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if size > MAX_BYTES {
        let message = format!("expected at most {MAX_BYTES} bytes, found {size}");
        return Err(Error::file(path.display(), "size", message));
    }
    std::fs::read(path).map_err(Error::io(path))
}

/// A released model in memory.
#[derive(Clone, Debug)]
pub struct Model {
    name: String,
    meta: ModelMeta,
    contents: ModelData,
    integrity: Integrity,
}

#[derive(Clone, Debug)]
enum ModelData {
    Weights(Weights),
    Graph(OnnxFile),
}

impl Model {
    /// Reads `NAME.onnx` or `NAME.safetensors`; the content determines the format. An ONNX model may have external data in its
    /// folder.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`from_bytes`](Self::from_bytes).
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(read(path)?, &path.display().to_string(), path.parent())
    }

    /// Reads a model file in memory; errors call it `name`.
    ///
    /// # Errors
    /// [`Error::File`] if it is not a model, is damaged, does not match its digest, or lacks the metadata that is needed to use it.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::read(bytes, name, None)
    }

    fn read(bytes: Vec<u8>, name: &str, folder: Option<&Path>) -> Result<Self> {
        if bytes.starts_with(b"PK\x03\x04") {
            return Err(Error::file(
                name,
                "format",
                "expected .onnx or .safetensors, found a zip file such as .pt",
            ));
        }
        // A safetensors file begins with the length of its JSON in eight bytes, then the JSON.
        if bytes.get(8) == Some(&b'{') {
            let (meta, weights, integrity) = safetensors(&bytes, name)?;
            return Ok(Self { name: name.into(), meta, contents: ModelData::Weights(weights), integrity });
        }
        let file = OnnxFile::read(bytes, name, folder)?;
        let (meta, integrity) = (graph_meta(&file)?, file.integrity());
        Ok(Self { name: name.into(), meta, contents: ModelData::Graph(file), integrity })
    }

    /// Creates a model from weights in memory, as after training. It is [unchecked](Integrity::Unchecked) unless
    /// [`with_integrity`](Self::with_integrity) sets something else.
    pub fn from_weights(meta: ModelMeta, weights: Weights) -> Self {
        let integrity = Integrity::Unchecked;
        Self { name: "model".into(), meta, contents: ModelData::Weights(weights), integrity }
    }

    /// Sets the integrity, for a model whose file was read elsewhere.
    #[must_use]
    pub fn with_integrity(self, integrity: Integrity) -> Self {
        Self { integrity, ..self }
    }

    /// Sets the name that errors use.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Returns the name that errors use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the result of the check of the file's digest.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// True if this is a generator that applies classifier-free guidance itself. It is sampled with guidance 1.
    pub fn is_guided(&self) -> bool {
        self.meta.generator().is_some_and(|task| task.guided)
    }

    /// Returns the metadata of the model.
    pub fn meta(&self) -> &ModelMeta {
        &self.meta
    }

    /// Returns the metadata for generating.
    ///
    /// # Errors
    /// [`Error::File`] if the model is not a generator.
    pub fn generator(&self) -> Result<&GeneratorMeta> {
        self.meta.generator().ok_or_else(|| self.task_error("generator"))
    }

    /// Returns the metadata for classifying.
    ///
    /// # Errors
    /// [`Error::File`] if the model is not a classifier.
    pub fn classifier(&self) -> Result<&ClassifierMeta> {
        self.meta.classifier().ok_or_else(|| self.task_error("classifier"))
    }

    fn task_error(&self, expected: &str) -> Error {
        Error::file(&self.name, "task", format!("expected a {expected}, found {}", self.meta.describe()))
    }

    /// Loads a generator into a runtime. If the runtime runs graphs and the model has only weights, a graph is exported. If the
    /// runtime evaluates the definition and the model is a graph, the weights are read from the graph.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the runtime is not available, or evaluates the definition and the graph is [guided](Self::is_guided).
    /// Also if the weights do not fit the network, or the model is not a generator.
    #[cfg_attr(not(feature = "native"), allow(unused_variables))]
    pub fn load_generator(&self, kind: RuntimeKind) -> Result<Box<dyn Denoiser + Send>> {
        let NetworkConfig::TinyDit(config) = &self.meta.config else {
            return Err(self.task_error("generator"));
        };
        if self.is_guided() && !kind.can_run_graphs() {
            let message = "the graph applies guidance itself, but its definition does not; choose a runtime that runs graphs";
            return Err(kind.error(message));
        }
        match kind {
            #[cfg(feature = "native")]
            RuntimeKind::Native => return Ok(Box::new(NativeModel::tiny_dit(config, self.weights()?)?)),
            #[cfg(feature = "candle")]
            RuntimeKind::Candle => return Ok(Box::new(CandleModel::tiny_dit(config, &self.weights()?)?)),
            _ => {}
        }
        let (session, names) = self.session(kind)?;
        let names =
            if names.iter().any(|name| name == PREDECESSOR_INPUTS[0]) { PREDECESSOR_INPUTS } else { INPUTS };
        Ok(Box::new(GraphModel { session, names }))
    }

    /// Loads a classifier into a runtime, as [`load_generator`](Self::load_generator) does a generator.
    ///
    /// # Errors
    /// As [`load_generator`](Self::load_generator).
    #[cfg_attr(not(feature = "native"), allow(unused_variables))]
    pub fn load_classifier(&self, kind: RuntimeKind) -> Result<Box<dyn Classify + Send>> {
        let NetworkConfig::ResNet(config) = &self.meta.config else {
            return Err(self.task_error("classifier"));
        };
        match kind {
            #[cfg(feature = "native")]
            RuntimeKind::Native => return Ok(Box::new(NativeModel::resnet(config, self.weights()?)?)),
            #[cfg(feature = "candle")]
            RuntimeKind::Candle => return Ok(Box::new(CandleModel::resnet(config, &self.weights()?)?)),
            _ => {}
        }
        Ok(Box::new(GraphModel { session: self.session(kind)?.0, names: [CLASSIFIER_INPUT] }))
    }

    /// True if the definition in the metadata describes the model, so that runtimes can evaluate the definition. A graph from another
    /// program may compute anything.
    pub(crate) fn has_definition(&self) -> bool {
        match &self.contents {
            ModelData::Weights(_) => true,
            ModelData::Graph(file) => file.metadata().contains_key(META_KEY),
        }
    }

    /// Loads the graph into a runtime, and returns it with the names of its inputs.
    fn session(&self, kind: RuntimeKind) -> Result<(Box<dyn Session>, Vec<String>)> {
        let file = self.graph()?;
        Ok((kind.load(&file)?, file.inputs().iter().map(|port| port.name.clone()).collect()))
    }

    /// Returns the graph of the file, or exports the weights to one.
    ///
    /// # Errors
    /// If the weights do not fit the network.
    pub fn graph(&self) -> Result<Cow<'_, OnnxFile>> {
        match &self.contents {
            ModelData::Graph(file) => Ok(Cow::Borrowed(file)),
            ModelData::Weights(weights) => {
                let bytes = to_onnx(&self.meta, weights, DEFAULT_OPSET)?;
                Ok(Cow::Owned(OnnxFile::from_bytes(bytes, &self.name)?))
            }
        }
    }

    /// Returns the weights; for a graph, those that its definition needs.
    ///
    /// # Errors
    /// As [`OnnxFile::weights`].
    pub fn weights(&self) -> Result<Weights> {
        match &self.contents {
            ModelData::Weights(weights) => Ok(weights.clone()),
            ModelData::Graph(file) => {
                let mut weights = file.weights()?;
                let specs = self.meta.config.specs()?;
                Ok(specs.into_iter().filter_map(|spec| weights.remove_entry(&spec.name)).collect())
            }
        }
    }
}

/// A network that runs as a graph.
struct GraphModel<const N: usize> {
    session: Box<dyn Session>,
    names: [&'static str; N],
}

impl Denoiser for GraphModel<3> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let t = Array::new([t.len()], t.to_vec())?;
        let [x_name, t_name, label_name] = self.names;
        let inputs = [
            (x_name, InputTensor::Floats(x)),
            (t_name, InputTensor::Floats(&t)),
            (label_name, InputTensor::Labels(label)),
        ];
        self.session.run(&inputs)
    }
}

impl Classify for GraphModel<1> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        self.session.run(&[(self.names[0], InputTensor::Floats(x))])
    }
}

/// Returns the metadata of a graph. A graph of tiny-cats-model, which is recognized by its inputs, has none: its metadata
/// are derived from its structure.
fn graph_meta(file: &OnnxFile) -> Result<ModelMeta> {
    let invalid = |message| Err(Error::file(file.name(), "inputs", message));
    let find = |name: &str| file.inputs().iter().find(|port| port.name == name);
    let meta = match (find(PREDECESSOR_INPUTS[0]), find(CLASSIFIER_INPUT)) {
        _ if file.metadata().contains_key(META_KEY) => file.meta()?,
        (Some(ValueInfo { dims, .. }), _) if let [_, _, Some(size), _] = dims[..] => {
            predecessor_generator(file, size)?
        }
        (_, Some(ValueInfo { dims, .. })) if let [_, _, Some(size), _] = dims[..] => {
            predecessor_classifier(file, size)?
        }
        _ => file.meta()?,
    };
    let size = Some(meta.image_size);
    let is_image = |port: &ValueInfo| {
        let square = matches!(port.dims[..], [None, Some(3), h, w] if h == size && w == size);
        port.dtype == Some(DataType::Float) && square
    };
    let names: &[&str] = match meta.task {
        TaskMeta::Generator(_) if find(PREDECESSOR_INPUTS[0]).is_some() => &PREDECESSOR_INPUTS,
        TaskMeta::Generator(_) => &INPUTS,
        TaskMeta::Classifier(_) => &[CLASSIFIER_INPUT],
    };
    let mut ports = Vec::new();
    for name in names {
        match find(name) {
            Some(port) => ports.push(port),
            None => return invalid(format!("expected one called {name}")),
        }
    }
    let is_vector = |port: &ValueInfo, dtype| port.dtype == Some(dtype) && port.dims.len() == 1;
    let is_valid = match ports[..] {
        [x, t, label] => is_image(x) && is_vector(t, DataType::Float) && is_vector(label, DataType::Int64),
        [x] => is_image(x),
        _ => false,
    };
    if !is_valid {
        let s = meta.image_size;
        return invalid(format!(
            "expected {} [batch, 3, {s}, {s}]{}",
            names[0],
            names[1..].iter().map(|n| format!(", {n}")).collect::<String>()
        ));
    }
    Ok(meta)
}

/// Derives the metadata of a generator's graph of tiny-cats-model. It has no class for the unconditional pass: the last class takes
/// its place.
fn predecessor_generator(file: &OnnxFile, image_size: usize) -> Result<ModelMeta> {
    let [image, _, label] = PREDECESSOR_INPUTS;
    let invalid = |message: String| Error::file(file.name(), "graph", message);
    let Some(classes) = file.embedding_rows(label)? else {
        return Err(invalid(format!("expected a table indexed by {label}, found none")));
    };
    if !(1..=MAX_CLASSES).contains(&classes) {
        return Err(invalid(format!("expected 1 to {MAX_CLASSES} classes, found a table of {classes} rows")));
    }
    let config = TinyDitConfig { image_size, classes, ..TinyDitConfig::legacy() };
    let mut meta = ModelMeta::tiny_dit(&config, predecessor_classes(classes));
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
    Ok(ModelMeta::resnet(&config, image_size, predecessor_classes(config.classes)))
}

/// Returns the names of `n` classes for a file without class names.
pub fn predecessor_classes(n: usize) -> Vec<String> {
    if n == PREDECESSOR_CLASSES.len() {
        PREDECESSOR_CLASSES.map(String::from).to_vec()
    } else {
        (0..n).map(|i| i.to_string()).collect()
    }
}

fn safetensors(bytes: &[u8], name: &str) -> Result<(ModelMeta, Weights, Integrity)> {
    let invalid = |e: safetensors::SafeTensorError| Error::file(name, "safetensors", e.to_string());
    let (header_len, header) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
    let entry = |key| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
    let integrity = match entry(Checksum::KEY) {
        None => Integrity::Unchecked,
        Some(expected) => {
            let (header, data) = bytes[8..].split_at(header_len);
            let checksum = Checksum::begin(header).map(|mut checksum| {
                checksum.update(data);
                checksum.finish()
            });
            if checksum.as_ref() != Some(expected) {
                return Err(Error::file(name, Checksum::KEY, CHECKSUM_MISMATCH));
            }
            Integrity::Verified
        }
    };
    let text = entry(META_KEY);
    let text =
        text.ok_or_else(|| Error::file(name, META_KEY, "expected the metadata of the model, found none"))?;
    let meta = ModelMeta::from_json(text, name)?;
    let file = SafeTensors::deserialize(bytes).map_err(invalid)?;
    let array = |(key, view): (&str, safetensors::tensor::TensorView)| {
        if view.dtype() != Dtype::F32 {
            return Err(Error::file(name, key, format!("expected F32, found {:?}", view.dtype())));
        }
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((key.to_owned(), Array::new(view.shape(), values)?))
    };
    let tensors = file.iter().filter(|(key, _)| !key.ends_with(NUM_BATCHES_TRACKED));
    let weights = tensors.map(array).collect::<Result<_>>()?;
    Ok((meta, weights, integrity))
}
