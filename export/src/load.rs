//! Loading of model files, ONNX or safetensors, into any runtime.

use std::{borrow::Cow, path::Path};

use safetensors::{Dtype, SafeTensors};
use tiny_cats_models::{Array, Weights, resnet::NUM_BATCHES_TRACKED};

use crate::{
    CHECKSUM_MISMATCH, Checksum, ClassifierMeta, Classify, DynNetwork, Error, GeneratorMeta, Integrity,
    META_KEY, ModelMeta, Result, compat,
    onnx::{DEFAULT_OPSET, DataType, OnnxFile},
    read::read_bounded,
    runtime::{InputTensor, RuntimeKind, Session},
    sample::Denoiser,
    to_onnx,
};

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
        Self::read(read_bounded(path)?, &path.display().to_string(), path.parent())
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
    pub fn load_generator(&self, kind: RuntimeKind) -> Result<Box<dyn Denoiser + Send>> {
        if self.meta.generator().is_none() {
            return Err(self.task_error("generator"));
        }
        let (session, names) = self.load_with_inputs(kind)?;
        let names = names.try_into().map_err(|_| self.task_error("generator"))?;
        Ok(Box::new(SessionModel::<3> { session, names }))
    }

    /// Loads a classifier into a runtime, as [`load_generator`](Self::load_generator) does a generator.
    ///
    /// # Errors
    /// As [`load_generator`](Self::load_generator).
    pub fn load_classifier(&self, kind: RuntimeKind) -> Result<Box<dyn Classify + Send>> {
        if self.meta.classifier().is_none() {
            return Err(self.task_error("classifier"));
        }
        let (session, names) = self.load_with_inputs(kind)?;
        let names = names.try_into().map_err(|_| self.task_error("classifier"))?;
        Ok(Box::new(SessionModel::<1> { session, names }))
    }

    /// Loads the network into a runtime: its definition if the runtime computes definitions, otherwise its graph, which is exported if the
    /// model is weights alone. A graph of any kind of network can run, even if the kind is not registered.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the runtime is not available. [`Error::UnknownKind`] if the definition is needed and its kind is not registered.
    /// Also if the weights do not fit the network.
    pub fn load(&self, kind: RuntimeKind) -> Result<Box<dyn Session>> {
        Ok(self.load_with_inputs(kind)?.0)
    }

    /// Loads the network, and returns the names of its inputs in the order of the definition.
    pub(crate) fn load_with_inputs(&self, kind: RuntimeKind) -> Result<(Box<dyn Session>, Vec<String>)> {
        if self.is_guided() && !kind.can_run_graphs() {
            let message = "the graph applies guidance itself, which its definition does not; choose a runtime of graphs";
            return Err(kind.error(message));
        }
        let network = || self.meta.config.network();
        let names = |network: &dyn DynNetwork| network.inputs().into_iter().map(|input| input.name).collect();
        match kind {
            RuntimeKind::Native => {
                kind.version()?;
                Ok((network()?.load_native(self.weights()?)?, names(network()?)))
            }
            RuntimeKind::Candle => {
                kind.version()?;
                Ok((network()?.load_candle(&self.weights()?)?, names(network()?)))
            }
            _ => {
                let file = self.graph()?;
                Ok((kind.load(&file)?, self.graph_inputs(&file)))
            }
        }
    }

    /// Returns the names of a graph's inputs in the order of the definition.
    fn graph_inputs(&self, file: &OnnxFile) -> Vec<String> {
        match self.meta.config.network() {
            Ok(network) => compat::graph_input_names(network, file),
            Err(_) => file.inputs().iter().map(|port| port.name.clone()).collect(),
        }
    }

    /// True if the definition in the metadata describes the model, so that runtimes can evaluate the definition. A graph from another
    /// program may compute anything.
    pub(crate) fn has_definition(&self) -> bool {
        match &self.contents {
            ModelData::Weights(_) => true,
            ModelData::Graph(file) => file.metadata().contains_key(META_KEY),
        }
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

/// A network of our tasks in a runtime.
struct SessionModel<const N: usize> {
    session: Box<dyn Session>,
    /// Names of the inputs, in the order of the definition.
    names: [String; N],
}

impl Denoiser for SessionModel<3> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let t = Array::new([t.len()], t.to_vec())?;
        let [x_name, t_name, label_name] = &self.names;
        let inputs = [
            (x_name.as_str(), InputTensor::Floats(x)),
            (t_name, InputTensor::Floats(&t)),
            (label_name, InputTensor::Labels(label)),
        ];
        self.session.run(&inputs)
    }
}

impl Classify for SessionModel<1> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        self.session.run(&[(&self.names[0], InputTensor::Floats(x))])
    }
}

/// Returns the metadata of a graph, and checks that its inputs are those of the network. Only graphs of the Python project tiny-cats-model
/// may lack metadata.
fn graph_meta(file: &OnnxFile) -> Result<ModelMeta> {
    let meta = match file.metadata().contains_key(META_KEY) {
        true => file.meta()?,
        false => compat::graph_meta(file)?.map_or_else(|| file.meta(), Ok)?,
    };
    let Ok(network) = meta.config.network() else { return Ok(meta) };
    for (input, name) in network.inputs().iter().zip(compat::graph_input_names(network, file)) {
        let invalid = |message| Err(Error::file(file.name(), "inputs", message));
        let Some(port) = file.inputs().iter().find(|port| port.name == name) else {
            return invalid(format!("expected an input called {name}, found none"));
        };
        let dims = input.dims(&meta.sizes())?;
        let dtype = if input.is_labels() { DataType::Int64 } else { DataType::Float };
        let expected = std::iter::once(None).chain(dims.iter().copied().map(Some));
        if port.dtype != Some(dtype) || !expected.eq(port.dims.iter().copied()) {
            let sizes = dims.iter().map(|size| format!(", {size}")).collect::<String>();
            let values = if input.is_labels() { "64-bit integers" } else { "32-bit floats" };
            return invalid(format!("expected {name} [batch{sizes}] of {values}"));
        }
    }
    Ok(meta)
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
