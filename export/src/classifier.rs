//! The classifier API: opens a model file and classifies images.

use std::path::Path;

use image::RgbImage;
use rayon::prelude::*;
use tiny_cats_models::Array;

use crate::{
    Classify, Error, LoadOptions, Model, ModelMeta, Prediction, Preprocessing, Result, decode,
    runtime::RuntimeKind,
};

const MAX_BATCH: usize = 1024;

/// A model that classifies images.
///
/// ```no_run
/// use tiny_cats_export::{Classifier, decode};
///
/// let mut breeds = Classifier::open("resnet18.onnx")?;
/// let image = decode::upright(&std::fs::read("cat.jpg")?)?;
/// for prediction in breeds.classify(&[image])? {
///     for candidate in prediction.top(3) {
///         println!("{} {:.1} %", candidate.class, 100.0 * candidate.probability);
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Classifier {
    meta: ModelMeta,
    preprocessing: Preprocessing,
    runtime: RuntimeKind,
    network: Box<dyn Classify + Send>,
    batch: usize,
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Classifier")
            .field("meta", &self.meta)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}

impl Classifier {
    /// Opens a model file, `.onnx` or `.safetensors`, with the default runtime.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or holds no classifier.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &LoadOptions::default())
    }

    /// Opens a model file with `options`.
    ///
    /// # Errors
    /// As [`open`](Self::open), if the runtime is not available, and if `options` are invalid.
    pub fn open_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::from_model(&Model::open(path.as_ref())?, options)
    }

    /// Opens a model file in memory.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_bytes(bytes: Vec<u8>, options: &LoadOptions) -> Result<Self> {
        Self::from_model(&Model::from_bytes(bytes, "model")?, options)
    }

    /// Loads a model that is in memory.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_model(model: &Model, options: &LoadOptions) -> Result<Self> {
        let (runtime, batch) = (options.runtime(model), options.batch);
        if !(1..=MAX_BATCH).contains(&batch) {
            return Err(Error::request("batch", format!("expected 1 to {MAX_BATCH}, found {batch}")));
        }
        let preprocessing = model.classifier()?.preprocessing.clone();
        let network = model.load_classifier(runtime)?;
        Ok(Self { meta: model.meta().clone(), preprocessing, runtime, network, batch })
    }

    /// Returns the metadata of the model.
    pub fn meta(&self) -> &ModelMeta {
        &self.meta
    }

    /// Returns the runtime that runs the network.
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// Classifies images. Each prediction is independent of the other images.
    ///
    /// # Errors
    /// [`Error::Request`] with the index of an image without pixels, and errors of the runtime.
    pub fn classify(&mut self, images: &[RgbImage]) -> Result<Vec<Prediction>> {
        if let Some(i) = images.iter().position(|image| image.is_empty()) {
            return Err(Error::request("images", format!("number {i} has no pixels")));
        }
        let mut predictions = Vec::with_capacity(images.len());
        for chunk in images.chunks(self.batch) {
            let (preprocessing, size) = (&self.preprocessing, self.meta.image_size);
            let inputs = chunk.par_iter().map(|image| preprocessing.apply(image, size)).collect();
            predictions.extend(self.predict(inputs)?);
        }
        Ok(predictions)
    }

    /// Classifies the images in files. Each thread reads, decodes and resizes one file at a time, so at most one full-size image
    /// per thread is in memory.
    ///
    /// # Errors
    /// Errors of the runtime. An error in one file is returned in place of its prediction, as [`Error::Image`]; the other files are
    /// still classified.
    pub fn classify_files(&mut self, paths: &[impl AsRef<Path> + Sync]) -> Result<Vec<Result<Prediction>>> {
        let mut results = Vec::with_capacity(paths.len());
        for chunk in paths.chunks(self.batch) {
            let (preprocessing, size) = (&self.preprocessing, self.meta.image_size);
            let decode_file = |path: &Path| {
                decode::decode_with(&decode::read(path)?, |decoded| preprocessing.apply(&decoded.image, size))
            };
            let load_input = |path: &Path| {
                decode_file(path).map_err(|reason: String| Error::Image { path: path.to_owned(), reason })
            };
            let loaded: Vec<Result<Vec<f32>>> =
                chunk.par_iter().map(|path| load_input(path.as_ref())).collect();
            let (mut inputs, mut errors) = (Vec::new(), Vec::new());
            for result in loaded {
                errors.push(result.map(|input| inputs.push(input)).err());
            }
            let mut predictions = self.predict(inputs)?.into_iter();
            let merged = errors.into_iter().filter_map(|error| match error {
                Some(error) => Some(Err(error)),
                None => predictions.next().map(Ok),
            });
            results.extend(merged);
        }
        Ok(results)
    }

    /// Classifies one batch of inputs from [`Preprocessing::apply`].
    ///
    /// # Errors
    /// Errors of the runtime, and an input that does not have the network's size.
    pub fn predict(&mut self, inputs: Vec<Vec<f32>>) -> Result<Vec<Prediction>> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let (n, size, classes) = (inputs.len(), self.meta.image_size, &self.meta.classes);
        let logits = self.network.logits(&Array::new([n, 3, size, size], inputs.concat())?)?;
        if logits.dims() != [n, classes.len()] {
            let (expected, found) = (format!("[{n}, {}]", classes.len()), format!("{:?}", logits.dims()));
            return Err(tiny_cats_models::Error::Shape { op: "logits", expected, found }.into());
        }
        if logits.data().iter().any(|logit| !logit.is_finite()) {
            let message = "the network returned a value that is not finite; its weights are damaged";
            return Err(self.runtime.error(message));
        }
        Ok(logits.data().chunks(classes.len()).map(|row| Prediction::new(row, classes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_sorted_softmax_probabilities() {
        let classes: Vec<String> = ["a", "b", "c", "d"].map(String::from).to_vec();
        let prediction = Prediction::new(&[1.0, 3.0, -1.0, 1.0], &classes);
        let labels: Vec<usize> = prediction.candidates.iter().map(|c| c.label).collect();
        assert_eq!(labels, [1, 0, 3, 2]);
        let sum = 1f64.exp() + 3f64.exp() + (-1f64).exp() + 1f64.exp();
        assert!((prediction.candidates[0].probability - 3f64.exp() / sum).abs() < 1e-15);
        assert_eq!(prediction.top(2)[1].class, "a");
        assert_eq!(prediction.top(9).len(), 4);
        // The exponentials of these logits would overflow.
        let prediction = Prediction::new(&[3e38, -3e38], &classes[..2]);
        assert_eq!(prediction.candidates[0].probability, 1.0);
    }
}
