//! `tiny-cats eval gate`: decides whether a generator may be released.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use image::RgbImage;
use rayon::prelude::*;
use serde_json::json;
use tiny_cats_export::{
    Classifier, FeatureExtractor, Generator, LoadOptions, Model, VerificationReport, contact_sheet,
    onnx::OnnxFile, verify, write_png,
};
use tiny_cats_models::pretrained;

use super::{
    OpenedModel,
    generated::{self, SamplingArgs},
    image_features::{breed_confusion, extract, pixels, to_rgb_images, warn_weak_classifier},
    labels, skipped_json,
};
use crate::{
    cli::writable::check_writable,
    cli::{
        common::{ModelContext, Runtime, warn_skipped, write_json},
        logging,
    },
    data::{Cache, Dataset, Images, Split},
    evaluate::gate,
};

/// Maximum of `--count`.
const MAX_COUNT: usize = 1000;
/// Maximum images per breed on the sheet.
const SHEET_IMAGES: usize = 3;

/// The arguments of `tiny-cats eval gate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of the training data of the generator; generated images are compared with its validation and test images
    data: PathBuf,
    /// The generator, .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Classifier whose features are compared [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Classifier that predicts the breeds of images [default: that of --classifier]
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Number of images to generate per breed
    #[arg(long, default_value_t = 20, value_name = "N")]
    count: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Random seed; the same seed gives the same images and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write all results to this JSON file, with the digests of the model and the data
    #[arg(short, long, value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Write a labeled grid of the first images of each breed to this file
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Runtime of all networks [default: native]; the generator is verified on all runtimes
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; affects memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Evaluates the criteria. If any fails, prints each failure as a line to standard error, with exit code 1.
///
/// # Errors
/// If an argument is invalid, a file cannot be used, or there are too few images to measure anything.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.output {
        check_writable("--output", path, "json")?;
    }
    if let Some(path) = &args.sheet {
        check_writable("--sheet", path, "png")?;
    }
    if !(1..=MAX_COUNT).contains(&args.count) {
        bail!("--count: expected 1 to {MAX_COUNT}, found {}", args.count);
    }
    let options = LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch };
    let released = (pretrained::CLASSIFIER, "resnet18-breeds.onnx");
    let feature_model = OpenedModel::new(args.classifier.as_deref(), released)?;
    let mut extractor = FeatureExtractor::from_classifier(&feature_model.model, &options)
        .model_context(feature_model.path.as_deref())?;
    let judge = OpenedModel::new(args.judge.as_deref().or(args.classifier.as_deref()), released)?;
    let mut classifier =
        Classifier::from_model(&judge.model, &options).model_context(judge.path.as_deref())?;
    let opened = OpenedModel::new(args.model.as_deref(), (pretrained::TINYDIT, "tinydit.onnx"))?;
    let mut generator =
        Generator::from_model(&opened.model, &options).model_context(opened.path.as_deref())?;
    let request = args.sampling.to_request(args.seed);
    let settings = generator.settings(&request);

    let data = Dataset::open(&args.data)?;
    warn_skipped(&data.skipped);
    let classes = generator.meta().classes.clone();
    generated::class_labels(&args.data, &data, &classes)?;
    let classifier_labels = labels(&data.classes, &classifier.meta().classes);
    if let Some(missing) = classifier_labels.iter().position(Option::is_none) {
        bail!("{}: this classifier has no class {:?}", judge.file, data.classes[missing]);
    }
    let load = |splits: &[Split], label: &str| -> anyhow::Result<Images> {
        let part = data.parts(splits);
        if part.files.len() < 2 {
            let count = part.files.len();
            bail!("{}: expected at least 2 {label} images, found {count}", args.data.display());
        }
        let images = Images::load(&part, generator.meta().image_size as u32, None, &Cache::Default)?;
        warn_skipped(&images.skipped);
        Ok(images)
    };
    let real = load(&[Split::Validation, Split::Test], "validation and test")?;
    let train_images = load(&[Split::Train], "training")?;
    let (held_out, training) = (to_rgb_images(&real)?, to_rgb_images(&train_images)?);

    // The breeds in turn, in the order of `generate --breed sample_labels`.
    let sample_labels: Vec<usize> = (0..args.count * classes.len()).map(|i| i % classes.len()).collect();
    let mut generated = Vec::with_capacity(sample_labels.len());
    generated::generate_each(&mut generator, &sample_labels, &request, |image| generated.push(image))
        .model_context(opened.path.as_deref())?;
    let sheet_images = &generated[..SHEET_IMAGES.min(args.count) * classes.len()];
    if let Some(path) = &args.sheet {
        write_png(path, &contact_sheet(sheet_images)).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    let sheet_images: Vec<RgbImage> = sheet_images.iter().map(|image| image.image.clone()).collect();
    // Images of classes that the data lacks cannot be compared.
    let data_labels = labels(&classes, &data.classes);
    let (breeds, samples): (Vec<Option<usize>>, Vec<RgbImage>) = generated
        .into_iter()
        .filter(|image| data_labels[image.label].is_some())
        .map(|image| (data_labels[image.label], image.image))
        .unzip();

    let blurred: Vec<RgbImage> =
        training.par_iter().map(|image| gate::blur(image, gate::BLUR_SIGMA_PX)).collect();
    let mut features = |images: &[RgbImage], label: &str| {
        extract(&mut extractor, images, args.batch, label).model_context(feature_model.path.as_deref())
    };
    let feature_criterion = gate::kernel(
        &features(&held_out, "held-out images")?,
        &features(&samples, "generated images")?,
        &features(&blurred, "blurred images")?,
        &features(&training, "training images")?,
        args.seed,
    )?;
    let mut confusion = |images: &[RgbImage], labels: &[Option<usize>]| {
        breed_confusion(&mut classifier, images, labels, &classifier_labels, args.batch)
            .model_context(judge.path.as_deref())
    };
    let real_labels: Vec<Option<usize>> = real.labels().iter().map(|&label| Some(label as usize)).collect();
    let (generated_breeds, real_breeds) =
        (confusion(&samples, &breeds)?, confusion(&held_out, &real_labels)?);
    let pixel_criterion = gate::nearest(
        &[&pixels(&training, false)?, &pixels(&training, true)?],
        &pixels(&samples, false)?,
        &pixels(&held_out, false)?,
        args.seed,
    )?;
    let criteria = [
        gate::compression(&sheet_images, &held_out)?,
        gate::breeds(&generated_breeds, &real_breeds),
        feature_criterion,
        pixel_criterion,
        gate::runtimes(verify_generator(&opened.model, &opened.file)),
    ];
    let passed = criteria.iter().all(|criterion| criterion.passed);

    println!(
        "{}: {} images of {} px, {} held-out and {} training photographs; features of {}, breeds by {}\n",
        opened.file,
        samples.len(),
        real.size(),
        held_out.len(),
        training.len(),
        feature_model.file,
        judge.file
    );
    for criterion in &criteria {
        println!("{}  {criterion}", if criterion.passed { "passed" } else { "FAILED" });
    }
    warn_weak_classifier(&real_breeds, &judge.file);
    if let Some(path) = &args.output {
        let report = json!({
            "evaluation": "gate",
            "version": env!("CARGO_PKG_VERSION"),
            "model": opened.provenance(),
            "classifier": feature_model.provenance(),
            "judge": judge.provenance(),
            "data": {
                "fingerprint": data.fingerprint,
                "held_out": held_out.len(),
                "training": training.len(),
                "skipped": skipped_json(&[&real.skipped[..], &train_images.skipped].concat()),
            },
            "image_size": real.size(),
            "count": args.count,
            "drawn": samples.len(),
            "steps": settings.steps,
            "sampler": settings.sampler,
            "guidance": settings.guidance,
            "guidance_interval": settings.guidance_interval,
            "seed": settings.seed,
            "runtime": generator.runtime().name(),
            "criteria": criteria,
            "passed": passed,
        });
        write_json(path, &report)?;
        println!("wrote {}", path.display());
    }
    for criterion in criteria.iter().filter(|criterion| !criterion.passed) {
        logging::log_fatal(&criterion.to_string());
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Verifies a generator, including complete trajectories. The report has the name of the file without its folders.
fn verify_generator(model: &Model, name: &str) -> tiny_cats_export::Result<VerificationReport> {
    let file = OnnxFile::from_bytes(model.graph()?.bytes().to_vec(), name)?;
    verify(model.meta(), &model.weights()?, &file, true)
}
