//! Evaluation of a classifier on a part of a data set.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tiny_cats_export::{Classifier, LoadOptions, Preprocessing};

use super::{
    ClassificationResults, DataReport, Error, Event, Provenance, Result,
    event::Progress,
    source::{BUNDLED_CLASSIFIER, OpenedModel, labels, open_split, split_name},
};
use crate::data::{Dataset, ImageFile, Split, evenly_spaced};

/// The options of [`evaluate_classifier`].
#[derive(Clone, Debug)]
pub struct ClassifierOptions {
    /// The folder of class folders of photographs, or an index of one.
    pub data: PathBuf,
    /// The classifier: .onnx, .safetensors or .pt; `None` for the bundled one.
    pub model: Option<PathBuf>,
    /// The part of the data; `None` for all of it.
    pub split: Option<Split>,
    /// Number of photographs to use, spread over the classes, at least 1; `None` for all.
    pub limit_files: Option<usize>,
    /// The runtime, and the number of photographs that are classified at once.
    pub load: LoadOptions,
}

impl ClassifierOptions {
    /// The bundled classifier on all test photographs in `data`.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            model: None,
            split: Some(Split::Test),
            limit_files: None,
            load: LoadOptions::default(),
        }
    }
}

/// The results of [`evaluate_classifier`]. [`Display`](fmt::Display) formats them as tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierReport {
    /// The kind of evaluation: `classifier`.
    pub evaluation: &'static str,
    /// The version of this program.
    pub version: &'static str,
    /// The file of the classifier.
    pub model: Provenance,
    /// The photographs.
    pub data: DataReport,
    /// The runtime of the classifier.
    pub runtime: &'static str,
    /// The preprocessing of the photographs.
    pub preprocessing: Option<Preprocessing>,
    /// Height and width of the network's input, in pixels.
    pub image_size: usize,
    /// Accuracy and calibration.
    pub results: ClassificationResults,
}

/// Measures the accuracy of a classifier and the calibration of its probabilities. A photograph that cannot be decoded is skipped.
///
/// # Errors
/// [`Error::Setting`] if an option is out of range. Other errors if the model or the data cannot be read, the model lacks a class of the
/// data, or no photograph can be decoded.
pub fn evaluate_classifier(
    options: &ClassifierOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<ClassifierReport> {
    if options.limit_files == Some(0) {
        return Err(Error::setting("limit_files", "expected at least 1, found 0".into()));
    }
    let opened = OpenedModel::open(options.model.as_deref(), BUNDLED_CLASSIFIER, observe)?;
    let mut classifier =
        Classifier::from_model(&opened.model, &options.load).map_err(|error| opened.error(error))?;
    let data = open_split(&options.data, options.split, observe)?;
    let model_labels = labels(&data.classes, &classifier.meta().classes);
    let files = evenly_spaced(&data.files, options.limit_files);
    check_classes(&options.data, &data, &files, &model_labels, &classifier.meta().classes)?;
    let (results, skipped) =
        classify_files(&mut classifier, &data.root, &files, &model_labels, options.load.batch, observe)
            .map_err(|error| error.with_model_file(opened.path.as_deref()))?;
    observe(Event::Skipped(&skipped));
    if results.total() == 0 {
        let message = format!("none of {} photographs could be decoded", files.len());
        return Err(Error::images(&options.data, message));
    }
    let meta = classifier.meta();
    Ok(ClassifierReport {
        evaluation: "classifier",
        version: env!("CARGO_PKG_VERSION"),
        model: opened.provenance,
        data: DataReport {
            fingerprint: data.fingerprint,
            split: split_name(options.split),
            images: files.len(),
            limit_files: options.limit_files,
            skipped,
        },
        runtime: classifier.runtime().name(),
        preprocessing: meta.classifier().map(|task| task.preprocessing.clone()),
        image_size: meta.image_size,
        results,
    })
}

/// Checks that the model has the class of each photograph.
fn check_classes(
    path: &Path,
    data: &Dataset,
    files: &[&ImageFile],
    model_labels: &[Option<usize>],
    model_classes: &[String],
) -> Result<()> {
    match files.iter().find(|file| model_labels[file.label as usize].is_none()) {
        None => Ok(()),
        Some(file) => {
            let (missing, classes) = (&data.classes[file.label as usize], model_classes.join(", "));
            let message = format!("the model has no class {missing:?}; its classes are {classes}");
            Err(Error::images(path, message))
        }
    }
}

/// Classifies the photographs. Also returns those that cannot be decoded.
fn classify_files(
    classifier: &mut Classifier,
    root: &Path,
    files: &[&ImageFile],
    model_labels: &[Option<usize>],
    batch: usize,
    observe: &mut dyn FnMut(Event),
) -> Result<(ClassificationResults, Vec<(PathBuf, String)>)> {
    let mut results = ClassificationResults::new(&classifier.meta().classes);
    let mut skipped = Vec::new();
    let mut progress = Progress::new(observe, "photographs", files.len());
    for chunk in files.chunks(batch) {
        let paths: Vec<PathBuf> = chunk.iter().map(|file| root.join(&file.path)).collect();
        for (file, prediction) in chunk.iter().zip(classifier.classify_files(&paths)?) {
            match (prediction, model_labels[file.label as usize]) {
                (Ok(prediction), Some(label)) => results.add(label, &prediction),
                (Err(tiny_cats_export::Error::Image { reason, .. }), _) => {
                    skipped.push((file.path.clone(), reason));
                }
                (Err(error), _) => return Err(error.into()),
                (Ok(_), None) => {}
            }
        }
        progress.add(chunk.len());
    }
    Ok((results, skipped))
}

impl fmt::Display for ClassifierReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, DataReport { split, .. }) = (self.results.total(), &self.data);
        writeln!(f, "{total} photographs ({split}), {} on {}\n", self.model.file, self.runtime)?;
        write!(f, "{}", self.results)
    }
}
