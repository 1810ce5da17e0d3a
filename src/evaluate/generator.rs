//! Comparison of generated images with real ones.

use std::path::{Path, PathBuf};

use image::RgbImage;
use tiny_cats_export::{
    Classifier, FeatureExtractor, Generator, LoadOptions, META_KEY, Preprocessing, Request, onnx::OnnxFile,
};

use super::{
    BreedReport, CompareOptions, Comparison, DataReport, Error, Event, Features, FeaturesReport,
    GeneratedSource, GeneratorReport, NearestPair, NearestReport, Provenance, Result, SamplingReport,
    compare,
    generated::{self, GeneratedSet},
    image_features::{breed_confusion, extract, pixels, to_rgb_images},
    memorization, proportional,
    source::{BUNDLED_CLASSIFIER, BUNDLED_GENERATOR, OpenedModel, file_name, labels, open_split, split_name},
    split_randomly,
};
use crate::{
    checkpoint::is_checkpoint,
    data::{Cache, Dataset, Images, Split},
};

/// The default maximum number of generated images.
const MAX_GENERATED: usize = 2048;
/// Maximum of `samples`.
const MAX_SAMPLES: usize = 100_000;
/// The default number of resamples for intervals.
const RESAMPLES: usize = 200;
/// Maximum features for a default interval of the Fréchet distance; with more, it would take hours.
const MAX_RESAMPLED_FEATURES: usize = 512;
/// Maximum pairs per distance on the sheet.
const PAIRS: usize = 12;

/// The options of [`evaluate_generator`].
#[derive(Clone, Debug)]
pub struct GeneratorOptions {
    /// The folder of class folders of the training data of the generator, or an index of one.
    pub data: PathBuf,
    /// The generated images.
    pub source: ImageSource,
    /// The part of the data; `None` for all of it.
    pub split: Option<Split>,
    /// Number of real images to use, spread over the classes, at least 2; `None` for all.
    pub limit_files: Option<usize>,
    /// The network that computes features.
    pub features: FeatureOptions,
    /// The classifier that predicts the breeds of images: .onnx, .safetensors or .pt; `None` for the bundled one.
    pub classifier: Option<PathBuf>,
    /// Number of bootstrap resamples for the intervals; `None` for 200, or 0 for the Fréchet distance with more than 512 features.
    pub resamples: Option<usize>,
    /// The random seed; equal seeds give equal images and intervals.
    pub seed: u64,
    /// The runtime of all networks, and the number of images that are computed at once.
    pub load: LoadOptions,
}

/// The generated images to evaluate.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// Images that a generator generates, with the class proportions of the real images.
    Model {
        /// The generator: .onnx, .safetensors or .pt; `None` for the bundled one.
        path: Option<PathBuf>,
        /// Number of images, from 2 to 100 000; `None` for the number of real images, at most 2048.
        samples: Option<usize>,
        /// The settings of the sampler. Breed, count and seed have no effect.
        request: Request,
    },
    /// The images in a folder and its subfolders. The class of an image is the name of its folder, or the start of its file name.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Height and width that all images are resized to, from 8 to 1024 px; `None` for their own, which must be the same for all.
        image_size: Option<u32>,
    },
}

/// The network that computes features.
#[derive(Clone, Debug, Default)]
pub struct FeatureOptions {
    /// A classifier of this program, used without its last layer, or any ONNX file with one input `[batch, 3, size, size]` and an output
    /// `[batch, features]`; `None` for the bundled classifier.
    pub path: Option<PathBuf>,
    /// Short side after resizing in pixels, for the ONNX file of another program; `None` for 8/7 of its input size.
    pub resize: Option<usize>,
    /// Mean of red, green and blue from 0 to 1, for the ONNX file of another program; `None` for that of ImageNet.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, for the ONNX file of another program; `None` for that of ImageNet.
    pub std: Option<[f32; 3]>,
}

/// The real images of an evaluation.
struct RealSet {
    images: Vec<RgbImage>,
    labels: Vec<Option<usize>>,
    /// The names of the files, without their folders.
    names: Vec<String>,
}

/// Compares generated images with real ones: by the distance of their features, by the nearest real images, and by the breeds that a
/// classifier recognizes.
///
/// # Errors
/// [`Error::Setting`] if an option is out of range. Other errors if a file cannot be used, or there are too few images to measure
/// anything.
pub fn evaluate_generator(
    options: &GeneratorOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<GeneratorReport> {
    options.validate()?;
    let (mut extractor, features) = open_extractor(&options.features, &options.load, observe)?;
    let judge = OpenedModel::open(options.classifier.as_deref(), BUNDLED_CLASSIFIER, observe)?;
    let mut classifier =
        Classifier::from_model(&judge.model, &options.load).map_err(|error| judge.error(error))?;
    let data = open_split(&options.data, options.split, observe)?;
    let (generated, loaded, source) = load_images(options, &data, observe)?;
    observe(Event::Skipped(&loaded.skipped));
    let real = RealSet::new(&loaded)?;

    let mut extract_features = |images: &[RgbImage], subject| {
        extract(&mut extractor, images, options.load.batch, subject, observe)
            .map_err(|error| error.with_model_file(options.features.path.as_deref()))
    };
    let real_features = extract_features(&real.images, "real images")?;
    let generated_features = extract_features(&generated.images, "generated images")?;
    let compare_options = options.compare_options(generated_features.dims());
    let results = compare(&real_features, &generated_features, &compare_options)?;
    let baseline = compare_halves(&real_features, &compare_options)?;
    let nearest = find_nearest(&real, &generated.images, &real_features, &generated_features)?;
    let classifier_labels = labels(&data.classes, &classifier.meta().classes);
    let mut confusion = |images: &[RgbImage], labels: &[Option<usize>]| {
        breed_confusion(&mut classifier, images, labels, &classifier_labels, options.load.batch, observe)
            .map_err(|error| judge.error(error))
    };
    let generated_breeds = confusion(&generated.images, &generated.labels)?;
    let real_breeds = confusion(&real.images, &real.labels)?;
    Ok(GeneratorReport {
        evaluation: "generator",
        version: env!("CARGO_PKG_VERSION"),
        generated: source,
        data: DataReport {
            fingerprint: data.fingerprint,
            split: split_name(options.split),
            images: loaded.len(),
            limit_files: options.limit_files,
            skipped: loaded.skipped.clone(),
        },
        image_size: loaded.size(),
        features,
        runtime: extractor.runtime().name(),
        compare_options,
        results,
        baseline,
        nearest,
        breeds: BreedReport { classifier: judge.provenance, generated: generated_breeds, real: real_breeds },
    })
}

impl GeneratorOptions {
    /// A comparison of `source` with all images in `data`, by the bundled classifier.
    pub fn new(data: impl Into<PathBuf>, source: ImageSource) -> Self {
        Self {
            data: data.into(),
            source,
            split: None,
            limit_files: None,
            features: FeatureOptions::default(),
            classifier: None,
            resamples: None,
            seed: 0,
            load: LoadOptions::default(),
        }
    }

    fn validate(&self) -> Result<()> {
        match &self.source {
            ImageSource::Model { samples: Some(n), .. } if !(2..=MAX_SAMPLES).contains(n) => {
                return Err(Error::setting("samples", format!("expected 2 to {MAX_SAMPLES}, found {n}")));
            }
            ImageSource::Folder { image_size: Some(size), .. }
                if !(8..=generated::MAX_SIZE).contains(size) =>
            {
                let message = format!("expected 8 to {}, found {size}", generated::MAX_SIZE);
                return Err(Error::setting("image_size", message));
            }
            _ => {}
        }
        if let Some(n) = self.limit_files.filter(|&n| n < 2) {
            return Err(Error::setting("limit_files", format!("expected at least 2, found {n}")));
        }
        Ok(())
    }

    fn compare_options(&self, features: usize) -> CompareOptions {
        CompareOptions {
            frechet_resamples: match self.resamples {
                None if features > MAX_RESAMPLED_FEATURES => 0,
                resamples => resamples.unwrap_or(RESAMPLES),
            },
            kernel_resamples: self.resamples.unwrap_or(RESAMPLES),
            seed: self.seed,
        }
    }
}

impl RealSet {
    fn new(images: &Images) -> Result<Self> {
        Ok(Self {
            images: to_rgb_images(images)?,
            labels: images.labels().iter().map(|&label| Some(label as usize)).collect(),
            names: (0..images.len()).map(|i| file_name(images.path(i))).collect(),
        })
    }
}

/// Generates or reads the generated images, and loads the real images in the same size.
fn load_images(
    options: &GeneratorOptions,
    data: &Dataset,
    observe: &mut dyn FnMut(Event),
) -> Result<(GeneratedSet, Images, GeneratedSource)> {
    let (folder, image_size) = match &options.source {
        ImageSource::Folder { path, image_size } => (path, *image_size),
        ImageSource::Model { path, samples, request } => {
            let request = Request { seed: options.seed, ..request.clone() };
            return generate(options, path.as_deref(), *samples, &request, data, observe);
        }
    };
    let mut generated = generated::read_folder(folder, image_size, &data.classes, observe)?;
    observe(Event::Skipped(&generated.skipped));
    let Some(first) = generated.images.first() else {
        return Err(Error::GeneratedImages { path: folder.clone(), message: "no usable image found".into() });
    };
    let real = Images::load(data, first.width(), options.limit_files, &Cache::Default)?;
    let source = GeneratedSource::Folder {
        fingerprint: generated.fingerprint.take(),
        skipped: std::mem::take(&mut generated.skipped),
    };
    Ok((generated, real, source))
}

/// Generates images with the class proportions of `data`. Also returns the real images.
fn generate(
    options: &GeneratorOptions,
    path: Option<&Path>,
    samples: Option<usize>,
    request: &Request,
    data: &Dataset,
    observe: &mut dyn FnMut(Event),
) -> Result<(GeneratedSet, Images, GeneratedSource)> {
    let opened = OpenedModel::open(path, BUNDLED_GENERATOR, observe)?;
    let mut generator =
        Generator::from_model(&opened.model, &options.load).map_err(|error| opened.error(error))?;
    let classes = generator.meta().classes.clone();
    let generator_labels = generated::class_labels(&options.data, data, &classes)?;
    let image_size = generator.meta().image_size as u32;
    let real = Images::load(data, image_size, options.limit_files, &Cache::Default)?;
    let mut counts = vec![0; classes.len()];
    for label in real.labels().iter().filter_map(|&label| generator_labels[label as usize]) {
        counts[label] += 1;
    }
    let samples = samples.unwrap_or(real.len().clamp(2, MAX_GENERATED));
    let counts = proportional(&counts, samples);
    let mut generated = generated::generate_set(&mut generator, &counts, request, observe)
        .map_err(|error| opened.error(error))?;
    // Converts the labels of the generator to those of the data.
    let data_labels = labels(&classes, &data.classes);
    generated.labels.iter_mut().for_each(|label| *label = label.and_then(|label| data_labels[label]));
    let sampling = SamplingReport::new(&generator.settings(request), generator.runtime());
    let source = GeneratedSource::Model { model: opened.provenance, samples, counts, classes, sampling };
    Ok((generated, real, source))
}

/// Opens the network that computes features.
fn open_extractor(
    options: &FeatureOptions,
    load: &LoadOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<(FeatureExtractor, FeaturesReport)> {
    let foreign_graph = match options.path.as_deref() {
        Some(path) if !is_checkpoint(path).map_err(Error::io(path))? => {
            let file = OnnxFile::open(path)?;
            (!file.metadata().contains_key(META_KEY)).then_some((path, file))
        }
        _ => None,
    };
    let (extractor, model, output) = match foreign_graph {
        Some((path, file)) => {
            let preprocessing = |size| {
                let default = Preprocessing::imagenet(size);
                Preprocessing {
                    resize: options.resize.unwrap_or(default.resize),
                    mean: options.mean.unwrap_or(default.mean),
                    std: options.std.unwrap_or(default.std),
                }
            };
            let extractor = FeatureExtractor::from_graph(&file, preprocessing, load)
                .map_err(|error| Error::from(error).with_model_file(Some(path)))?;
            (extractor, Provenance::from_file(path)?, "the first output")
        }
        None => {
            if options.resize.is_some() || options.mean.is_some() || options.std.is_some() {
                return Err(Error::setting("preprocessing", "the file has its own preprocessing".into()));
            }
            let opened = OpenedModel::open(options.path.as_deref(), BUNDLED_CLASSIFIER, observe)?;
            let extractor = FeatureExtractor::from_classifier(&opened.model, load)
                .map_err(|error| opened.error(error))?;
            (extractor, opened.provenance, "before the last layer")
        }
    };
    let (image_size, preprocessing) = (extractor.size(), extractor.preprocessing().clone());
    Ok((extractor, FeaturesReport { model, output, image_size, preprocessing }))
}

/// Compares two random halves of the real images; `None` if there are fewer than four, since each half needs at least two.
fn compare_halves(real: &Features, options: &CompareOptions) -> Result<Option<Comparison>> {
    if real.len() < 4 {
        return Ok(None);
    }
    let [a, b] = split_randomly(real, options.seed)?;
    let options = CompareOptions { frechet_resamples: 0, kernel_resamples: 0, ..*options };
    compare(&a, &b, &options).map(Some)
}

/// Finds the nearest real image of each generated one, by pixels and by features.
fn find_nearest(
    real: &RealSet,
    generated: &[RgbImage],
    real_features: &Features,
    generated_features: &Features,
) -> Result<NearestReport> {
    let real_pixels = pixels(&real.images, false)?;
    let mut report = NearestReport {
        pixels: memorization(&[&real_pixels, &pixels(&real.images, true)?], &pixels(generated, false)?)?,
        features: memorization(&[real_features], generated_features)?,
        pixel_values: real_pixels.dims(),
        pairs: Vec::new(),
    };
    let mut pairs = Vec::new();
    for (name, result) in [("pixels", &report.pixels), ("features", &report.features)] {
        for i in result.closest().into_iter().take(PAIRS) {
            let nearest = result.nearest[i];
            let distance =
                if name == "pixels" { report.root_mean_square(nearest.distance) } else { nearest.distance };
            pairs.push(NearestPair {
                images: [generated[i].clone(), real.images[nearest.index].clone()],
                captions: [format!("{i}, {name} {distance:.2}"), real.names[nearest.index].clone()],
            });
        }
    }
    report.pairs = pairs;
    Ok(report)
}
