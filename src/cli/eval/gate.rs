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
    generated::{self, Sampling},
    image_features::{breed_confusion, extract, pictures, pixels, warn_weak_classifier},
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

/// The maximum of `--count`.
const MAX_COUNT: usize = 1000;
/// Images of each breed in the grid, or fewer if fewer are generated.
const SHOWN: usize = 3;

/// The arguments of `tiny-cats eval gate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of the images that the generator was trained on; generated images are compared with its validation and test
    /// images
    data: PathBuf,
    /// The generator, .onnx, .safetensors or .pt [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Classifier whose features compare images [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Classifier that should find the requested breed [default: that of --classifier]
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Number of images to generate of each breed
    #[arg(long, default_value_t = 20, value_name = "N")]
    count: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Random seed; the same seed gives the same images and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write all figures to this file, with the model and data that they were measured on
    #[arg(short, long, value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Write the labeled grid of the first images of each breed to this file
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Runtime that computes all networks [default: native]; the generator is compared on all
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; changes memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Evaluates the criteria. If any fails, the exit code is 1; each failure is one line on standard error.
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
    let of_features = OpenedModel::new(args.classifier.as_deref(), released)?;
    let mut extractor = FeatureExtractor::from_classifier(&of_features.model, &options)
        .model_context(of_features.path.as_deref())?;
    let judge = OpenedModel::new(args.judge.as_deref().or(args.classifier.as_deref()), released)?;
    let mut classifier =
        Classifier::from_model(&judge.model, &options).model_context(judge.path.as_deref())?;
    let opened = OpenedModel::new(args.model.as_deref(), (pretrained::TINYDIT, "tinydit.onnx"))?;
    let mut generator =
        Generator::from_model(&opened.model, &options).model_context(opened.path.as_deref())?;
    let request = args.sampling.request(args.seed);
    let settings = generator.settings(&request);

    let data = Dataset::open(&args.data)?;
    warn_skipped(&data.skipped);
    let classes = generator.meta().classes.clone();
    generated::class_labels(&args.data, &data, &classes)?;
    let known = labels(&data.classes, &classifier.meta().classes);
    if let Some(unknown) = known.iter().position(Option::is_none) {
        bail!("{}: the judge knows no class {:?}", judge.file, data.classes[unknown]);
    }
    let load = |splits: &[Split], what: &str| -> anyhow::Result<Images> {
        let part = data.parts(splits);
        if part.files.len() < 2 {
            let found = part.files.len();
            bail!("{}: expected at least 2 {what} pictures, found {found}", args.data.display());
        }
        let images = Images::load(&part, generator.meta().image_size as u32, None, &Cache::Default)?;
        warn_skipped(&images.skipped);
        Ok(images)
    };
    let real = load(&[Split::Validation, Split::Test], "validation and test")?;
    let learned = load(&[Split::Train], "training")?;
    let (held_out, training) = (pictures(&real)?, pictures(&learned)?);

    // One image of each breed in turn, in the order of `generate --breed all`.
    let all: Vec<usize> = (0..args.count * classes.len()).map(|i| i % classes.len()).collect();
    let mut drawn = Vec::with_capacity(all.len());
    generated::draw_each(&mut generator, &all, &request, |picture| drawn.push(picture))
        .model_context(opened.path.as_deref())?;
    let shown = &drawn[..SHOWN.min(args.count) * classes.len()];
    if let Some(path) = &args.sheet {
        write_png(path, &contact_sheet(shown)).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    let shown: Vec<RgbImage> = shown.iter().map(|picture| picture.image.clone()).collect();
    // Images of a class that the data lacks cannot be compared with the data.
    let back = labels(&classes, &data.classes);
    let (breeds, samples): (Vec<Option<usize>>, Vec<RgbImage>) = drawn
        .into_iter()
        .filter(|picture| back[picture.label].is_some())
        .map(|picture| (back[picture.label], picture.image))
        .unzip();

    let blurred: Vec<RgbImage> =
        training.par_iter().map(|picture| gate::blur(picture, gate::BLUR_SIGMA_PX)).collect();
    let mut features = |images: &[RgbImage], what: &str| {
        extract(&mut extractor, images, args.batch, what).model_context(of_features.path.as_deref())
    };
    let by_features = gate::kernel(
        &features(&held_out, "held-out pictures")?,
        &features(&samples, "drawn pictures")?,
        &features(&blurred, "blurred pictures")?,
        &features(&training, "training pictures")?,
        args.seed,
    )?;
    let mut found = |images: &[RgbImage], labels: &[Option<usize>]| {
        breed_confusion(&mut classifier, images, labels, &known, args.batch)
            .model_context(judge.path.as_deref())
    };
    let of_real: Vec<Option<usize>> = real.labels().iter().map(|&label| Some(label as usize)).collect();
    let (by_drawn, by_real) = (found(&samples, &breeds)?, found(&held_out, &of_real)?);
    let by_pixels = gate::nearest(
        &[&pixels(&training, false)?, &pixels(&training, true)?],
        &pixels(&samples, false)?,
        &pixels(&held_out, false)?,
        args.seed,
    )?;
    let criteria = [
        gate::compression(&shown, &held_out)?,
        gate::breeds(&by_drawn, &by_real),
        by_features,
        by_pixels,
        gate::runtimes(verified(&opened.model, &opened.file)),
    ];
    let passed = criteria.iter().all(|criterion| criterion.passed);

    println!(
        "{}: {} pictures of {} px, {} held-out and {} training photographs; features of {}, breeds by {}\n",
        opened.file,
        samples.len(),
        real.size(),
        held_out.len(),
        training.len(),
        of_features.file,
        judge.file
    );
    for criterion in &criteria {
        println!("{}  {criterion}", if criterion.passed { "passed" } else { "FAILED" });
    }
    warn_weak_classifier(&by_real, &judge.file);
    if let Some(path) = &args.output {
        let report = json!({
            "evaluation": "gate",
            "version": env!("CARGO_PKG_VERSION"),
            "model": opened.provenance(),
            "classifier": of_features.provenance(),
            "judge": judge.provenance(),
            "data": {
                "fingerprint": data.fingerprint,
                "held_out": held_out.len(),
                "training": training.len(),
                "skipped": skipped_json(&[&real.skipped[..], &learned.skipped].concat()),
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

/// Verifies a generator, including whole trajectories. The report names the file without its folders.
fn verified(model: &Model, name: &str) -> tiny_cats_export::Result<VerificationReport> {
    let file = OnnxFile::from_bytes(model.graph()?.bytes().to_vec(), name)?;
    verify(model.meta(), &model.weights()?, &file, true)
}
