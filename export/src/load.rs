//! Opening a released model, whatever its format, for whatever runtime.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tiny_cats_models::{Array, TinyDitConfig, Weights};

use crate::{
    Error, INPUTS, META_KEY, ModelMeta, Network, PREDECESSOR_CLASSES, Result,
    onnx::{DEFAULT_OPSET, DataType, OnnxFile},
    runtime::{Input, RuntimeKind, Session},
    sample::Denoiser,
    to_onnx,
};

/// More than any model that we write, and less than what a machine chokes on.
const MAX_BYTES: u64 = i32::MAX as u64;

const PREDECESSOR_INPUTS: [&str; 3] = ["noise", "timestep", "breed"];

/// The contents of a model file, unless it is absurdly large.
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
    contents: Contents,
}

#[derive(Clone, Debug)]
enum Contents {
    Weights(Weights),
    /// A graph, and the names of its picture, time and label.
    Graph(OnnxFile, [&'static str; 3]),
}

impl Model {
    /// Reads `NAME.onnx` or `NAME.safetensors`; the contents decide which it is.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`from_bytes`](Self::from_bytes).
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(read(path)?, &path.display().to_string())
    }

    /// Reads a file in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// [`Error::File`] when it is no model, is damaged, or does not say how it is to be used.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        if bytes.starts_with(b"PK\x03\x04") {
            return Err(Error::file(
                name,
                "format",
                "expected .onnx or .safetensors, found a zip file such as .pt",
            ));
        }
        // A safetensors file has the length of its JSON in eight bytes, then the JSON.
        let (meta, contents) = if bytes.get(8) == Some(&b'{') {
            let (meta, weights) = safetensors(&bytes, name)?;
            (meta, Contents::Weights(weights))
        } else {
            graph(OnnxFile::from_bytes(bytes, name)?)?
        };
        Ok(Self { name: name.into(), meta, contents })
    }

    /// A model that is in memory already, as after training.
    pub fn from_weights(meta: ModelMeta, weights: Weights) -> Self {
        Self { name: "model".into(), meta, contents: Contents::Weights(weights) }
    }

    /// What the model says about itself.
    pub fn meta(&self) -> &ModelMeta {
        &self.meta
    }

    /// Loads it into a runtime. Weights alone are written down as a graph for those runtimes that compute graphs; of a graph, candle
    /// takes the weights.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the runtime is not there, and when weights do not fit the network.
    pub fn load(&self, kind: RuntimeKind) -> Result<Box<dyn Denoiser + Send>> {
        if !kind.runs_graphs() {
            return self.definition(kind);
        }
        match &self.contents {
            Contents::Graph(file, names) => Ok(Box::new(Graph { session: kind.load(file)?, names: *names })),
            Contents::Weights(weights) => {
                let file = OnnxFile::from_bytes(to_onnx(&self.meta, weights, DEFAULT_OPSET)?, &self.name)?;
                Ok(Box::new(Graph { session: kind.load(&file)?, names: INPUTS }))
            }
        }
    }

    /// The weights: of a graph, those that its definition asks for.
    ///
    /// # Errors
    /// As [`OnnxFile::weights`].
    pub fn weights(&self) -> Result<Weights> {
        match &self.contents {
            Contents::Weights(weights) => Ok(weights.clone()),
            Contents::Graph(file, _) => {
                let Network::TinyDit(config) = &self.meta.config;
                let mut all = file.weights()?;
                let specs = config.cost()?.params;
                Ok(specs.into_iter().filter_map(|spec| all.remove_entry(&spec.name)).collect())
            }
        }
    }

    #[cfg(feature = "candle")]
    fn definition(&self, _: RuntimeKind) -> Result<Box<dyn Denoiser + Send>> {
        Ok(Box::new(crate::runtime::candle::Definition::new(&self.meta, &self.weights()?)?))
    }

    #[cfg(not(feature = "candle"))]
    fn definition(&self, kind: RuntimeKind) -> Result<Box<dyn Denoiser + Send>> {
        Err(kind.absent())
    }
}

/// A graph as a denoiser.
struct Graph {
    session: Box<dyn Session>,
    names: [&'static str; 3],
}

impl Denoiser for Graph {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let t = Array::new([t.len()], t.to_vec())?;
        let [x_name, t_name, label_name] = self.names;
        let inputs =
            [(x_name, Input::Floats(x)), (t_name, Input::Floats(&t)), (label_name, Input::Labels(label))];
        self.session.run(&inputs)
    }
}

fn graph(file: OnnxFile) -> Result<(ModelMeta, Contents)> {
    let names: Vec<&str> = file.inputs().iter().map(|port| port.name.as_str()).collect();
    let ours = !PREDECESSOR_INPUTS.iter().all(|name| names.contains(name));
    let names = if ours { INPUTS } else { PREDECESSOR_INPUTS };
    let port = |name: &str| {
        let found = file.inputs().iter().find(|port| port.name == name);
        found.ok_or_else(|| Error::file(file.name(), "inputs", format!("expected one called {name}")))
    };
    let [x, t, label] = [port(names[0])?, port(names[1])?, port(names[2])?];
    let meta = match (file.metadata().get(META_KEY), &x.dims[..]) {
        (None, &[_, _, Some(size), _]) if !ours => predecessor(size),
        _ => file.meta()?,
    };
    let size = Some(meta.image_size);
    let fits = [x.dtype, t.dtype, label.dtype]
        == [Some(DataType::Float), Some(DataType::Float), Some(DataType::Int64)]
        && matches!(x.dims[..], [None, Some(3), h, w] if h == size && w == size)
        && t.dims.len() == 1
        && label.dims.len() == 1;
    if !fits {
        let message = format!(
            "expected {} [batch, 3, {s}, {s}], {}, {}",
            x.name,
            t.name,
            label.name,
            s = meta.image_size
        );
        return Err(Error::file(file.name(), "inputs", message));
    }
    Ok((meta, Contents::Graph(file, names)))
}

/// What a graph of tiny-cats-model would say about itself.
fn predecessor(image_size: usize) -> ModelMeta {
    let config = TinyDitConfig { image_size, ..TinyDitConfig::legacy() };
    ModelMeta::tiny_dit(&config, PREDECESSOR_CLASSES.map(String::from).to_vec())
}

fn safetensors(bytes: &[u8], name: &str) -> Result<(ModelMeta, Weights)> {
    let wrong = |e: safetensors::SafeTensorError| Error::file(name, "safetensors", e.to_string());
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let text = header.metadata().as_ref().and_then(|m| m.get(META_KEY));
    let text = text.ok_or_else(|| Error::file(name, META_KEY, "the file does not say what its model is"))?;
    let meta = ModelMeta::from_json(text, name)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let array = |(key, view): (&str, safetensors::tensor::TensorView)| {
        if view.dtype() != Dtype::F32 {
            return Err(Error::file(name, key, format!("expected F32, found {:?}", view.dtype())));
        }
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((key.to_owned(), Array::new(view.shape(), values)?))
    };
    let weights = tensors.iter().map(array).collect::<Result<_>>()?;
    Ok((meta, weights))
}
