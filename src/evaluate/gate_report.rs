//! Evaluation of all criteria of the release gate.

use std::{fmt, path::PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use tiny_cats_export::{
    Classifier, FeatureExtractor, GeneratedImage, Generator, LoadOptions, Model, Request, VerificationReport,
    onnx::OnnxFile, verify,
};

use super::{
    Error, Event, Provenance, Result, SamplingReport,
    gate::{self, Criterion},
    generated,
    image_features::{breed_confusion, extract, pixels, to_rgb_images, weak_classifier_warning},
    source::{BUNDLED_CLASSIFIER, BUNDLED_GENERATOR, OpenedModel, labels, serialize_skipped},
};
use crate::data::{Cache, Dataset, Images, Split};

/// The default number of images per breed.
const COUNT: usize = 20;
/// Maximum of `count`.
const MAX_COUNT: usize = 1000;
/// Images per breed whose compression is measured, and which the sheet shows.
pub const SHEET_IMAGES: usize = 3;

/// The options of [`evaluate_gate`].
#[derive(Clone, Debug)]
pub struct GateOptions {
    /// The folder of class folders of the training data of the generator, or an index of one. Generated images are compared with its
    /// validation and test images.
    pub data: PathBuf,
    /// The generator: .onnx, .safetensors or .pt; `None` for the bundled one.
    pub model: Option<PathBuf>,
    /// The classifier whose features are compared; `None` for the bundled one.
    pub classifier: Option<PathBuf>,
    /// The classifier that predicts the breeds of images; `None` for `classifier`.
    pub judge: Option<PathBuf>,
    /// Number of images to generate per breed, from 1 to 1000.
    pub count: usize,
    /// The settings of the sampler. Breed and count have no effect. Equal seeds give equal images and intervals.
    pub request: Request,
    /// The runtime of all networks, and the number of images that are computed at once. The generator is verified on all runtimes.
    pub load: LoadOptions,
}

impl GateOptions {
    /// The gate for the bundled generator and the data that it was trained on.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            model: None,
            classifier: None,
            judge: None,
            count: COUNT,
            request: Request::default(),
            load: LoadOptions::default(),
        }
    }
}

/// The results of [`evaluate_gate`]. [`Display`](fmt::Display) formats them in one line per criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateReport {
    /// The kind of evaluation: `gate`.
    pub evaluation: &'static str,
    /// The version of this program.
    pub version: &'static str,
    /// The file of the generator.
    pub model: Provenance,
    /// The file of the classifier whose features are compared.
    pub classifier: Provenance,
    /// The file of the classifier that predicts breeds.
    pub judge: Provenance,
    /// The real images.
    pub data: GateData,
    /// Height and width of all images, in pixels.
    pub image_size: u32,
    /// The requested number of images per breed.
    pub count: usize,
    /// The number of generated images that are compared.
    #[serde(rename = "drawn")]
    pub generated: usize,
    /// The settings of the sampler.
    #[serde(flatten)]
    pub sampling: SamplingReport,
    /// The criteria.
    pub criteria: Vec<Criterion>,
    /// True if all criteria passed, so that the generator may be released.
    pub passed: bool,
    /// Warnings about the interpretation of the results, one line each.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// The real images of the gate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateData {
    /// The [fingerprint](Dataset::fingerprint) of the data set.
    pub fingerprint: String,
    /// Number of validation and test images.
    pub held_out: usize,
    /// Number of training images.
    pub training: usize,
    /// The images that could not be used, and the reasons.
    #[serde(serialize_with = "serialize_skipped")]
    pub skipped: Vec<(PathBuf, String)>,
}

impl GateReport {
    /// The criteria that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Criterion> {
        self.criteria.iter().filter(|criterion| !criterion.passed)
    }
}

impl fmt::Display for GateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} images of {} px, {} held-out and {} training photographs; features of {}, breeds by {}",
            self.model.file,
            self.generated,
            self.image_size,
            self.data.held_out,
            self.data.training,
            self.classifier.file,
            self.judge.file
        )?;
        for criterion in &self.criteria {
            write!(f, "\n{}  {criterion}", if criterion.passed { "passed" } else { "FAILED" })?;
        }
        Ok(())
    }
}

/// The networks of the gate and their files.
struct Networks {
    feature_model: OpenedModel,
    extractor: FeatureExtractor,
    judge: OpenedModel,
    classifier: Classifier,
    opened: OpenedModel,
    generator: Generator,
}

/// The real images of the gate.
struct RealImages {
    data: Dataset,
    held_out: Vec<RgbImage>,
    held_out_labels: Vec<Option<usize>>,
    training: Vec<RgbImage>,
    skipped: Vec<(PathBuf, String)>,
}

/// Generates images, and evaluates the criteria of the [gate](super::gate) on them. Reports the generated images as an
/// [event](Event::Generated) before the criteria are computed.
///
/// # Errors
/// [`Error::Setting`] if an option is out of range. Other errors if a file cannot be used, or there are too few images to measure
/// anything. A criterion that is not met is no error.
pub fn evaluate_gate(options: &GateOptions, observe: &mut dyn FnMut(Event)) -> Result<GateReport> {
    if !(1..=MAX_COUNT).contains(&options.count) {
        let message = format!("expected 1 to {MAX_COUNT}, found {}", options.count);
        return Err(Error::setting("count", message));
    }
    let mut networks = Networks::open(options, observe)?;
    let settings = networks.generator.settings(&options.request);
    let classes = networks.generator.meta().classes.clone();
    let image_size = networks.generator.meta().image_size as u32;
    let real = RealImages::load(options, &networks, &classes, image_size, observe)?;

    // The breeds in turn, in the order of `generate --breed all`.
    let sample_labels: Vec<usize> = (0..options.count * classes.len()).map(|i| i % classes.len()).collect();
    let mut generated = Vec::with_capacity(sample_labels.len());
    let keep = |image| generated.push(image);
    generated::generate_each(&mut networks.generator, &sample_labels, &options.request, observe, keep)
        .map_err(|error| networks.opened.error(error))?;
    observe(Event::Generated(&generated));
    let (criteria, samples, warning) = networks.evaluate(options, &real, &classes, generated, observe)?;
    let passed = criteria.iter().all(|criterion| criterion.passed);
    Ok(GateReport {
        evaluation: "gate",
        version: env!("CARGO_PKG_VERSION"),
        model: networks.opened.provenance,
        classifier: networks.feature_model.provenance,
        judge: networks.judge.provenance,
        data: GateData {
            fingerprint: real.data.fingerprint,
            held_out: real.held_out.len(),
            training: real.training.len(),
            skipped: real.skipped,
        },
        image_size,
        count: options.count,
        generated: samples,
        sampling: SamplingReport::new(&settings, networks.generator.runtime()),
        criteria,
        passed,
        warnings: warning.into_iter().collect(),
    })
}

impl Networks {
    fn open(options: &GateOptions, observe: &mut dyn FnMut(Event)) -> Result<Self> {
        let feature_model = OpenedModel::open(options.classifier.as_deref(), BUNDLED_CLASSIFIER, observe)?;
        let extractor = FeatureExtractor::from_classifier(&feature_model.model, &options.load)
            .map_err(|error| feature_model.error(error))?;
        let judge_path = options.judge.as_deref().or(options.classifier.as_deref());
        let judge = OpenedModel::open(judge_path, BUNDLED_CLASSIFIER, observe)?;
        let classifier =
            Classifier::from_model(&judge.model, &options.load).map_err(|error| judge.error(error))?;
        let opened = OpenedModel::open(options.model.as_deref(), BUNDLED_GENERATOR, observe)?;
        let generator =
            Generator::from_model(&opened.model, &options.load).map_err(|error| opened.error(error))?;
        Ok(Self { feature_model, extractor, judge, classifier, opened, generator })
    }

    /// Evaluates the criteria. Also returns the number of compared images, and a warning about the judge.
    fn evaluate(
        &mut self,
        options: &GateOptions,
        real: &RealImages,
        classes: &[String],
        generated: Vec<GeneratedImage>,
        observe: &mut dyn FnMut(Event),
    ) -> Result<(Vec<Criterion>, usize, Option<String>)> {
        let RealImages { data, held_out, held_out_labels, training, .. } = real;
        let first_count = SHEET_IMAGES.min(options.count) * classes.len();
        let first_images: Vec<RgbImage> =
            generated[..first_count].iter().map(|image| image.image.clone()).collect();
        // Images of classes that the data lacks cannot be compared.
        let data_labels = labels(classes, &data.classes);
        let (breeds, samples): (Vec<Option<usize>>, Vec<RgbImage>) = generated
            .into_iter()
            .filter(|image| data_labels[image.label].is_some())
            .map(|image| (data_labels[image.label], image.image))
            .unzip();
        let feature_criterion = self.compare_features(options, real, &samples, observe)?;
        let classifier_labels = labels(&data.classes, &self.classifier.meta().classes);
        let mut confusion = |images: &[RgbImage], labels: &[Option<usize>]| {
            let batch = options.load.batch;
            breed_confusion(&mut self.classifier, images, labels, &classifier_labels, batch, observe)
                .map_err(|error| self.judge.error(error))
        };
        let (generated_breeds, real_breeds) =
            (confusion(&samples, &breeds)?, confusion(held_out, held_out_labels)?);
        let pixel_criterion = gate::nearest(
            &[&pixels(training, false)?, &pixels(training, true)?],
            &pixels(&samples, false)?,
            &pixels(held_out, false)?,
            options.request.seed,
        )?;
        let criteria = vec![
            gate::compression(&first_images, held_out).map_err(Error::Png)?,
            gate::breeds(&generated_breeds, &real_breeds),
            feature_criterion,
            pixel_criterion,
            gate::runtimes(verify_generator(&self.opened.model, &self.opened.provenance.file)),
        ];
        let warning = weak_classifier_warning(&real_breeds, &self.judge.provenance.file);
        Ok((criteria, samples.len(), warning))
    }

    /// Evaluates the criterion of the features of generated, blurred and real images.
    fn compare_features(
        &mut self,
        options: &GateOptions,
        real: &RealImages,
        samples: &[RgbImage],
        observe: &mut dyn FnMut(Event),
    ) -> Result<Criterion> {
        let blurred: Vec<RgbImage> =
            real.training.par_iter().map(|image| gate::blur(image, gate::BLUR_SIGMA_PX)).collect();
        let mut features = |images: &[RgbImage], subject| {
            extract(&mut self.extractor, images, options.load.batch, subject, observe)
                .map_err(|error| self.feature_model.error(error))
        };
        gate::kernel(
            &features(&real.held_out, "held-out images")?,
            &features(samples, "generated images")?,
            &features(&blurred, "blurred images")?,
            &features(&real.training, "training images")?,
            options.request.seed,
        )
    }
}

impl RealImages {
    fn load(
        options: &GateOptions,
        networks: &Networks,
        classes: &[String],
        image_size: u32,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let data = Dataset::open(&options.data)?;
        observe(Event::Opened(&data));
        generated::class_labels(&options.data, &data, classes)?;
        let classifier_labels = labels(&data.classes, &networks.classifier.meta().classes);
        if let Some(missing) = classifier_labels.iter().position(Option::is_none) {
            let message = format!("this classifier has no class {:?}", data.classes[missing]);
            return Err(Error::images(networks.judge.provenance.file.as_ref(), message));
        }
        let mut load = |splits: &[Split], name: &str| -> Result<Images> {
            let part = data.parts(splits);
            if part.files.len() < 2 {
                let message = format!("expected at least 2 {name} images, found {}", part.files.len());
                return Err(Error::images(&options.data, message));
            }
            let images = Images::load(&part, image_size, None, &Cache::Default)?;
            observe(Event::Skipped(&images.skipped));
            Ok(images)
        };
        let held_out = load(&[Split::Validation, Split::Test], "validation and test")?;
        let training = load(&[Split::Train], "training")?;
        Ok(Self {
            held_out_labels: held_out.labels().iter().map(|&label| Some(label as usize)).collect(),
            skipped: [&held_out.skipped[..], &training.skipped].concat(),
            held_out: to_rgb_images(&held_out)?,
            training: to_rgb_images(&training)?,
            data,
        })
    }
}

/// Verifies a generator, including complete trajectories. The report has the name of the file without its folders.
fn verify_generator(model: &Model, name: &str) -> tiny_cats_export::Result<VerificationReport> {
    let file = OnnxFile::from_bytes(model.graph()?.bytes().to_vec(), name)?;
    verify(model.meta(), &model.weights()?, &file, true)
}
