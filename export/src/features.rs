//! Features of images from a network, for comparing sets of images.

use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_models::Array;

use crate::{
    Error, LoadOptions, Model, Preprocessing, Result,
    convert::export_form,
    onnx::{DEFAULT_OPSET, DataType, OnnxFile, OnnxGraph},
    runtime::{InputTensor, RuntimeKind},
};

const OUTPUT: &str = "features";
const MAX_BATCH: usize = 1024;
/// Maximum number of features of an image.
const MAX_FEATURES: usize = 1 << 16;
/// Maximum side of the input images, in pixels.
const MAX_PIXELS: usize = 2048;

type ComputeFn = Box<dyn FnMut(&Array) -> Result<Array> + Send>;

/// A network that computes features of images: a classifier without its last layer, or another ONNX file.
pub struct FeatureExtractor {
    size: usize,
    preprocessing: Preprocessing,
    runtime: RuntimeKind,
    batch: usize,
    compute: ComputeFn,
}

impl std::fmt::Debug for FeatureExtractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeatureExtractor")
            .field("size", &self.size)
            .field("preprocessing", &self.preprocessing)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}

impl FeatureExtractor {
    /// Creates an extractor from one of our classifiers. Its features are the inputs of the last layer: for a ResNet, the mean over
    /// all positions of its last channels. The preprocessing is that of the model's metadata.
    ///
    /// # Errors
    /// [`Error::File`] if the model is not a classifier, [`Error::Request`] for invalid options, and errors of the runtime.
    pub fn from_classifier(model: &Model, options: &LoadOptions) -> Result<Self> {
        let preprocessing = model.classifier()?.preprocessing.clone();
        let (runtime, meta) = (options.runtime(model), model.meta());
        let compute = match runtime.can_run_graphs() {
            true => {
                let file = OnnxFile::from_bytes(features_graph(model)?, "features")?;
                graph_fn(&file, runtime)?
            }
            false => definition_fn(model, runtime)?,
        };
        Self { size: meta.image_size, preprocessing, runtime, batch: options.batch, compute }.validate()
    }

    /// Creates an extractor from an ONNX file. The file has one input `[batch, 3, size, size]`, and its first output is
    /// `[batch, features]` or `[batch, features, 1, 1]`. `preprocessing` returns the preprocessing for a size, such as
    /// [`Preprocessing::imagenet`] for torchvision's networks.
    ///
    /// # Errors
    /// [`Error::File`] if the file has other inputs or outputs, [`Error::Request`] for invalid options, and errors of the runtime.
    pub fn from_graph(
        file: &OnnxFile,
        preprocessing: impl FnOnce(usize) -> Preprocessing,
        options: &LoadOptions,
    ) -> Result<Self> {
        let [input] = file.inputs() else {
            let found = file.inputs().len();
            return Err(input_error(file, format!("expected one image input, found {found} inputs")));
        };
        let (size, single) = match (input.dtype, &input.dims[..]) {
            (Some(DataType::Float), &[batch @ (None | Some(1)), Some(3), Some(height), Some(width)])
                if height == width && (1..=MAX_PIXELS).contains(&height) =>
            {
                (height, batch.is_some())
            }
            (_, dims) => {
                let found = dims.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string()));
                let found = found.collect::<Vec<_>>().join(", ");
                let expected =
                    format!("expected 32-bit floats [batch, 3, size, size] of size up to {MAX_PIXELS}");
                return Err(input_error(file, format!("{}: {expected}, found [{found}]", input.name)));
            }
        };
        let runtime = options.graph_runtime();
        let compute = graph_fn(file, runtime)?;
        let batch = if single { options.batch.min(1) } else { options.batch };
        Self { size, preprocessing: preprocessing(size), runtime, batch, compute }.validate()
    }

    fn validate(self) -> Result<Self> {
        let Preprocessing { resize, mean, std } = &self.preprocessing;
        if !(1..=MAX_BATCH).contains(&self.batch) {
            return Err(Error::request("batch", format!("expected 1 to {MAX_BATCH}, found {}", self.batch)));
        }
        if !(self.size..=2 * MAX_PIXELS).contains(resize) {
            let (min, max) = (self.size, 2 * MAX_PIXELS);
            return Err(Error::request("resize", format!("expected {min} to {max}, found {resize}")));
        }
        let extremes = mean.iter().zip(std).flat_map(|(mean, std)| [-mean / std, (1.0 - mean) / std]);
        if !(extremes.into_iter().all(f32::is_finite) && std.iter().all(|&std| std > 0.0)) {
            let message =
                format!("expected finite means and positive standard deviations, found {mean:?} and {std:?}");
            return Err(Error::request("preprocessing", message));
        }
        Ok(self)
    }

    /// Returns the preprocessing of images.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// Returns the height and width of the network's input, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the runtime that runs the network.
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// Computes the features of at least one image, `[images, features]`. The features of an image are independent of the other
    /// images.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no image, or with the number of an image without pixels; errors of the runtime; and
    /// [`Error::Runtime`] if the network does not return a row of finite numbers for each image.
    pub fn extract(&mut self, images: &[RgbImage]) -> Result<Array> {
        if images.is_empty() {
            return Err(Error::request("images", "expected at least one, found none"));
        }
        if let Some(i) = images.iter().position(|image| image.is_empty()) {
            return Err(Error::request("images", format!("number {i} has no pixels")));
        }
        let (mut features, mut data) = (None, Vec::new());
        for part in images.chunks(self.batch) {
            let (preprocessing, size) = (&self.preprocessing, self.size);
            let inputs: Vec<Vec<f32>> =
                part.par_iter().map(|image| preprocessing.apply(image, size)).collect();
            let output = (self.compute)(&Array::new([part.len(), 3, size, size], inputs.concat())?)?;
            let row = match *output.dims() {
                [n, row] | [n, row, 1, 1] if n == part.len() && (1..=MAX_FEATURES).contains(&row) => row,
                ref found => {
                    return Err(self.runtime.error(format!(
                        "expected a feature extractor with output [{}, features] and at most {MAX_FEATURES} features, found output \
                         {found:?}",
                        part.len()
                    )));
                }
            };
            if *features.get_or_insert(row) != row {
                return Err(self
                    .runtime
                    .error("the network returned different numbers of features for two batches"));
            }
            if output.data().iter().any(|value| !value.is_finite()) {
                let message = "the network returned features that are not finite; its weights are damaged";
                return Err(self.runtime.error(message));
            }
            data.extend(output.into_data());
        }
        Ok(Array::new([images.len(), features.unwrap_or(0)], data)?)
    }
}

fn input_error(file: &OnnxFile, message: String) -> Error {
    Error::file(file.name(), "inputs", message)
}

fn graph_fn(file: &OnnxFile, runtime: RuntimeKind) -> Result<ComputeFn> {
    let name = file.inputs().first().map(|port| port.name.clone()).unwrap_or_default();
    let mut session = runtime.load(file)?;
    Ok(Box::new(move |x| session.run(&[(&name, InputTensor::Floats(x))])))
}

/// Exports the graph of a classifier up to its features.
fn features_graph(model: &Model) -> Result<Vec<u8>> {
    let (meta, weights) = export_form(model.meta(), &model.weights()?)?;
    let graph = OnnxGraph::new(DEFAULT_OPSET)?;
    let mut source = graph.source(&weights);
    let outputs = meta.config.network()?.write_graph(&graph, &mut source, &meta.sizes())?;
    source.finish()?;
    let features = outputs.iter().find(|(name, _)| name == OUTPUT).ok_or_else(|| no_features(model))?;
    graph.finish(&[(OUTPUT, &features.1)], &[])
}

/// Returns a function that computes the features by the definition.
fn definition_fn(model: &Model, runtime: RuntimeKind) -> Result<ComputeFn> {
    let mut session = model.load(runtime)?;
    let network = model.meta().config.network()?;
    let input = network.inputs().into_iter().next().map(|input| input.name).unwrap_or_default();
    if !session.outputs().iter().any(|name| name == OUTPUT) {
        return Err(no_features(model));
    }
    Ok(Box::new(move |x| session.run_output(&[(&input, InputTensor::Floats(x))], OUTPUT)))
}

fn no_features(model: &Model) -> Error {
    let message = format!("expected a network with an output called {OUTPUT}");
    Error::file(model.name(), "config", message)
}
