//! `tiny-cats eval dit`: measures how close generated images are to real ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use image::RgbImage;
use serde_json::{Value, json};
use tiny_cats_export::{
    Classifier, FeatureExtractor, Generator, LoadOptions, META_KEY, Preprocessing, grid, onnx::OnnxFile,
    write_png,
};
use tiny_cats_models::pretrained;

use super::{
    OpenedModel, SplitArg, file_name,
    generated::{self, GeneratedSet, SamplingArgs},
    image_features::{breed_confusion, extract, pixels, to_rgb_images, warn_weak_classifier},
    labels, sha256, skipped_json,
};
use crate::{
    checkpoint::is_checkpoint,
    cli::common::{ModelContext, Runtime, warn_skipped, write_json},
    cli::writable::check_writable,
    data::{Cache, Dataset, Images},
    evaluate::{
        COPY_NEIGHBORS, CompareOptions, Comparison, Confusion, Interval, Memorization, compare, memorization,
        proportional, split_randomly,
    },
};

/// The default maximum number of generated images.
const MAX_GENERATED: usize = 2048;
/// Maximum of `--samples`.
const MAX_SAMPLES: usize = 100_000;
/// The default number of resamples for intervals.
const RESAMPLES: usize = 200;
/// Maximum features for a default interval of the Fréchet distance; with more, it would take hours.
const MAX_RESAMPLED_FEATURES: usize = 512;
/// Maximum pairs per distance on the sheet.
const PAIRS: usize = 12;

/// The arguments of `tiny-cats eval dit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of the training data of the generator
    data: PathBuf,
    /// The generator, .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Compare the images in this folder instead of generating images
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "samples", "cfg", "steps", "sampler"])]
    images: Option<PathBuf>,
    /// Resize all images to this height and width [default: that of the generator, or of the images in --images]
    #[arg(long, value_name = "PIXELS", requires = "images")]
    image_size: Option<u32>,
    /// Real images to use
    #[arg(long, value_enum, default_value_t = SplitArg::All)]
    split: SplitArg,
    /// Use only N real images, spread over the classes
    #[arg(long, value_name = "N")]
    limit_files: Option<usize>,
    /// Number of images to generate, with the class proportions of the real images [default: the number of real images, at most 2048]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Random seed; the same seed gives the same images and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Network that computes features: a classifier of this program, without its last layer, or any ONNX file with one input
    /// [batch, 3, size, size] and an output [batch, features] [default: the bundled classifier]
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Short side after resizing, before the center is cropped, for the ONNX file of another program [default: 8/7 of its input size]
    #[arg(long, value_name = "PIXELS", requires = "features")]
    features_resize: Option<usize>,
    /// Mean of red, green and blue from 0 to 1, for the ONNX file of another program [default: that of ImageNet]
    #[arg(long, value_name = "R,G,B", value_parser = parse_triple, requires = "features")]
    features_mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, for the ONNX file of another program [default: that of ImageNet]
    #[arg(long, value_name = "R,G,B", value_parser = parse_triple, requires = "features")]
    features_std: Option<[f32; 3]>,
    /// Classifier that predicts the breeds of images [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Number of bootstrap resamples for the intervals [default: 200; 0 for the Fréchet distance with more than 512 features]
    #[arg(long, value_name = "N")]
    bootstrap: Option<usize>,
    /// Write all results to this JSON file, with the digests of the model and the data
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Write the generated images that are nearest to real ones, each next to its nearest
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Runtime of all networks [default: native; tract for the file of another program]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; affects memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Parses three numbers, separated by commas.
fn parse_triple(text: &str) -> Result<[f32; 3], String> {
    let numbers: Option<Vec<f32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "expected three numbers, such as 0.5,0.5,0.5".to_owned())
}

/// Compares generated images with real ones.
///
/// # Errors
/// If an argument is invalid, a file cannot be used, or there are too few images to measure anything.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        check_writable("--json", path, "json")?;
    }
    if let Some(path) = &args.sheet {
        check_writable("--sheet", path, "png")?;
    }
    if let Some(n) = args.samples.filter(|n| !(2..=MAX_SAMPLES).contains(n)) {
        bail!("--samples: expected 2 to {MAX_SAMPLES}, found {n}");
    }
    if let Some(size) = args.image_size.filter(|size| !(8..=generated::MAX_SIZE).contains(size)) {
        bail!("--image-size: expected 8 to {}, found {size}", generated::MAX_SIZE);
    }
    if let Some(n) = args.limit_files.filter(|&n| n < 2) {
        bail!("--limit-files: expected at least 2, found {n}");
    }
    let options = LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch };
    let (mut extractor, feature_meta) = extractor(args, &options)?;
    let classifier_model =
        OpenedModel::new(args.classifier.as_deref(), (pretrained::CLASSIFIER, "resnet18-breeds.onnx"))?;
    let mut classifier = Classifier::from_model(&classifier_model.model, &options)
        .model_context(classifier_model.path.as_deref())?;
    let data = args.split.open(&args.data)?;
    let (generated, real, source) = match &args.images {
        Some(folder) => {
            let generated = generated::read_folder(folder, args.image_size, &data.classes)?;
            warn_skipped(&generated.skipped);
            let Some(first) = generated.images.first() else {
                bail!("--images {}: no usable image found", folder.display());
            };
            let real = Images::load(&data, first.width(), args.limit_files, &Cache::Default)?;
            let source =
                json!({"fingerprint": generated.fingerprint, "skipped": skipped_json(&generated.skipped)});
            (generated, real, source)
        }
        None => generate(args, &options, &data)?,
    };
    warn_skipped(&real.skipped);
    let size = real.size();
    let real_labels: Vec<Option<usize>> = real.labels().iter().map(|&label| Some(label as usize)).collect();
    let paths: Vec<String> = (0..real.len()).map(|i| file_name(real.path(i))).collect();
    let real_images: Vec<RgbImage> = to_rgb_images(&real)?;

    let real_features = extract(&mut extractor, &real_images, args.batch, "real images")
        .model_context(args.features.as_deref())?;
    let features = extract(&mut extractor, &generated.images, args.batch, "generated images")
        .model_context(args.features.as_deref())?;
    let compare_options = CompareOptions {
        frechet_resamples: match args.bootstrap {
            None if features.dims() > MAX_RESAMPLED_FEATURES => 0,
            resamples => resamples.unwrap_or(RESAMPLES),
        },
        kernel_resamples: args.bootstrap.unwrap_or(RESAMPLES),
        seed: args.seed,
    };
    let comparison = compare(&real_features, &features, &compare_options)?;
    // Each half needs at least two images.
    let baseline = match real.len() {
        ..4 => None,
        _ => {
            let [a, b] = split_randomly(&real_features, args.seed)?;
            Some(compare(
                &a,
                &b,
                &CompareOptions { frechet_resamples: 0, kernel_resamples: 0, ..compare_options },
            )?)
        }
    };
    let real_pixels = pixels(&real_images, false)?;
    let nearest_report = NearestReport {
        pixels: memorization(
            &[&real_pixels, &pixels(&real_images, true)?],
            &pixels(&generated.images, false)?,
        )?,
        features: memorization(&[&real_features], &features)?,
        values: real_pixels.dims(),
    };
    let classifier_labels = labels(&data.classes, &classifier.meta().classes);
    let breeds =
        [(&generated.images, &generated.labels), (&real_images, &real_labels)].map(|(images, labels)| {
            breed_confusion(&mut classifier, images, labels, &classifier_labels, args.batch)
        });
    let [generated_breeds, real_breeds] = breeds;
    let (generated_breeds, real_breeds) = (
        generated_breeds.model_context(classifier_model.path.as_deref())?,
        real_breeds.model_context(classifier_model.path.as_deref())?,
    );

    println!(
        "{} generated and {} real images ({}) of {size} px, compared by {} features of {}\n",
        comparison.generated,
        comparison.real,
        args.split.name(),
        comparison.features,
        feature_meta["file"].as_str().unwrap_or_default()
    );
    print_comparison(&comparison, baseline.as_ref());
    nearest_report.print();
    print_breeds(&generated_breeds, &real_breeds, &classifier_model.file);
    for warning in &comparison.warnings {
        eprintln!("warning: {warning}");
    }
    if let Some(path) = &args.sheet {
        let sheet = nearest_report.sheet(&generated.images, &real_images, &paths);
        write_png(path, &sheet).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if let Some(path) = &args.json {
        let report = json!({
            "evaluation": "generator",
            "version": env!("CARGO_PKG_VERSION"),
            "drawn": source,
            "data": {
                "fingerprint": data.fingerprint,
                "split": args.split.name(),
                "pictures": real.len(),
                "limit_files": args.limit_files,
                "skipped": skipped_json(&real.skipped),
            },
            "image_size": size,
            "features": feature_meta,
            "runtime": extractor.runtime().name(),
            "comparing": compare_options,
            "results": comparison,
            "real_halves": baseline,
            "nearest_training_picture": nearest_report.report(),
            "breed_as_asked": {"classifier": classifier_model.provenance(), "drawn": breed_report(&generated_breeds), "real": breed_report(&real_breeds)},
        });
        write_json(path, &report)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Generates images with the class proportions of `data`. Also returns the real images, and the settings as JSON.
fn generate(
    args: &Args,
    options: &LoadOptions,
    data: &Dataset,
) -> anyhow::Result<(GeneratedSet, Images, Value)> {
    let opened = OpenedModel::new(args.model.as_deref(), (pretrained::TINYDIT, "tinydit.onnx"))?;
    let mut generator =
        Generator::from_model(&opened.model, options).model_context(opened.path.as_deref())?;
    let classes = generator.meta().classes.clone();
    let classifier_labels = generated::class_labels(&args.data, data, &classes)?;
    let real = Images::load(data, generator.meta().image_size as u32, args.limit_files, &Cache::Default)?;
    let mut counts = vec![0; classes.len()];
    for label in real.labels().iter().filter_map(|&label| classifier_labels[label as usize]) {
        counts[label] += 1;
    }
    let samples = args.samples.unwrap_or(real.len().clamp(2, MAX_GENERATED));
    let counts = proportional(&counts, samples);
    let request = args.sampling.to_request(args.seed);
    let settings = generator.settings(&request);
    let mut generated =
        generated::generate_set(&mut generator, &counts, &request).model_context(opened.path.as_deref())?;
    // Converts the labels of the generator to those of the data.
    let data_labels = labels(&classes, &data.classes);
    generated.labels.iter_mut().for_each(|label| *label = label.and_then(|label| data_labels[label]));
    let source = json!({
        "model": opened.provenance(),
        "samples": samples,
        "of_each_class": counts,
        "classes": classes,
        "steps": settings.steps,
        "sampler": settings.sampler,
        "guidance": settings.guidance,
        "guidance_interval": settings.guidance_interval,
        "seed": settings.seed,
        "runtime": generator.runtime().name(),
    });
    Ok((generated, real, source))
}

/// Opens the network that computes features, and describes it as JSON.
fn extractor(args: &Args, options: &LoadOptions) -> anyhow::Result<(FeatureExtractor, Value)> {
    let released = (pretrained::CLASSIFIER, "resnet18-breeds.onnx");
    let open_classifier = |path: Option<&Path>| -> anyhow::Result<_> {
        if args.features_resize.is_some() || args.features_mean.is_some() || args.features_std.is_some() {
            bail!("--features-resize, --features-mean, --features-std: the file has its own preprocessing");
        }
        let opened = OpenedModel::new(path, released)?;
        let extractor = FeatureExtractor::from_classifier(&opened.model, options).model_context(path)?;
        Ok((extractor, opened.provenance(), "before the last layer"))
    };
    let (extractor, mut feature_meta, output) = match args.features.as_deref() {
        None => open_classifier(None)?,
        Some(path) if is_checkpoint(path).with_context(|| path.display().to_string())? => {
            open_classifier(Some(path))?
        }
        Some(path) => {
            let file = OnnxFile::open(path)?;
            if file.metadata().contains_key(META_KEY) {
                open_classifier(Some(path))?
            } else {
                let preprocessing = |size| {
                    let default = Preprocessing::imagenet(size);
                    Preprocessing {
                        resize: args.features_resize.unwrap_or(default.resize),
                        mean: args.features_mean.unwrap_or(default.mean),
                        std: args.features_std.unwrap_or(default.std),
                    }
                };
                let extractor =
                    FeatureExtractor::from_graph(&file, preprocessing, options).model_context(Some(path))?;
                let sha256 = sha256(path).with_context(|| path.display().to_string())?;
                (extractor, json!({"file": file_name(path), "sha256": sha256}), "the first output")
            }
        }
    };
    feature_meta["output"] = output.into();
    feature_meta["image_size"] = extractor.size().into();
    feature_meta["preprocessing"] = serde_json::to_value(extractor.preprocessing())?;
    Ok((extractor, feature_meta))
}

fn breed_report(confusion: &Confusion) -> Value {
    let class = |(i, name): (usize, &String)| {
        let count: u32 = confusion.counts[i].iter().sum();
        (count > 0).then(|| json!({"class": name, "pictures": count, "share": confusion.recall(i)}))
    };
    json!({
        "pictures": confusion.total(),
        "share": confusion.accuracy(),
        "interval": confusion.interval(),
        "per_class": confusion.classes.iter().enumerate().filter_map(class).collect::<Vec<_>>(),
        "confusion": confusion,
    })
}

fn print_comparison(comparison: &Comparison, baseline: Option<&Comparison>) {
    let heading =
        baseline.map_or_else(String::new, |f| format!("real halves ({} and {})", f.real, f.generated));
    println!("{:<30} {:>10}  {:<22} {heading:>26}", "", "generated", "95 % interval");
    let line = |name: &str, value: Option<f64>, interval: Option<Interval>, baseline: Option<f64>| {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let interval = interval.map_or_else(String::new, |i| format!("{:.4} to {:.4}", i.low, i.high));
        println!("{name:<30} {:>10}  {interval:<22} {:>26}", number(value), number(baseline));
    };
    let scale_1000 =
        |interval: Interval| Interval { low: 1e3 * interval.low, high: 1e3 * interval.high, ..interval };
    let Comparison { frechet, frechet_interval, kernel, .. } = comparison;
    line("Fréchet distance", Some(*frechet), *frechet_interval, baseline.map(|f| f.frechet));
    line(
        "kernel distance × 1000",
        Some(1e3 * kernel.distance),
        kernel.interval.map(scale_1000),
        baseline.map(|f| 1e3 * f.kernel.distance),
    );
    let name = format!("  of {} subsets of {}", kernel.subsets, kernel.subset_size);
    let (mean, deviation) = (1e3 * kernel.subset_mean, 1e3 * kernel.subset_deviation);
    println!("{name:<30} {mean:>10.4}  ± {deviation:.4}");
    let metric = |field: fn(&Comparison) -> Option<f64>| (field(comparison), baseline.and_then(field));
    for (name, (value, baseline)) in [
        ("precision", metric(|c| Some(c.precision_recall?.precision))),
        ("recall", metric(|c| Some(c.precision_recall?.recall))),
        ("density", metric(|c| Some(c.density_coverage?.density))),
        ("coverage", metric(|c| Some(c.density_coverage?.coverage))),
    ] {
        line(name, value, None, baseline);
    }
}

fn print_breeds(generated: &Confusion, real: &Confusion, classifier_model: &str) {
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    if generated.total() == 0 {
        println!("\nrequested breed: no generated image has a breed that {classifier_model} knows");
        return;
    }
    println!("\nrequested breed, by {classifier_model:<19} {:>10} {:>10}", "generated", "real");
    for (i, name) in generated.classes.iter().enumerate() {
        if generated.recall(i).is_some() || real.recall(i).is_some() {
            let name = name.replace('_', " ");
            println!("{name:<39} {:>10} {:>10}", percent(generated.recall(i)), percent(real.recall(i)));
        }
    }
    warn_weak_classifier(real, classifier_model);
    let [low, high] = generated.interval();
    println!(
        "{:<39} {:>10} {:>10}  (generated: {} of {}, 95 % interval {:.1} to {:.1} %)",
        "all",
        percent(Some(generated.accuracy())),
        percent((real.total() > 0).then(|| real.accuracy())),
        generated.correct(),
        generated.total(),
        100.0 * low,
        100.0 * high
    );
}

/// The distances from generated images to the nearest real ones.
struct NearestReport {
    pixels: Memorization,
    features: Memorization,
    /// The number of pixel values of an image.
    values: usize,
}

impl NearestReport {
    /// Converts a distance between pixels to the root mean square of their differences.
    fn root_mean_square(&self, distance: f64) -> f64 {
        distance / (self.values as f64).sqrt()
    }

    fn print(&self) {
        let median = "median distance (between real images)";
        println!("\n{:<30} {:>10} {:>10}   {median}", "nearest real image", "near", "copied");
        let line = |name: &str, result: &Memorization, scale: &dyn Fn(f64) -> f64| {
            let [near_share, copied] =
                [result.share, result.copied].map(|share| format!("{:.1} %", 100.0 * share));
            let (median, real_median) = (scale(result.median), scale(result.training_median));
            println!("{name:<30} {near_share:>10} {copied:>10}   {median:.3} ({real_median:.3})");
        };
        line("by pixels, mirrored or not", &self.pixels, &|distance| self.root_mean_square(distance));
        line("by features", &self.features, &|distance| distance);
        println!(
            "near: closer than the nearest 5 % of real images are to each other, as smooth images often are;"
        );
        println!(
            "copied: at most half as far from the nearest real image as from the {COPY_NEIGHBORS} nearest on average"
        );
    }

    fn report(&self) -> Value {
        let Memorization { share, copied, threshold, median, training_median, .. } = &self.pixels;
        json!({
            "pixels": {
                "share": share,
                "copied": copied,
                "threshold": self.root_mean_square(*threshold),
                "median": self.root_mean_square(*median),
                "training_median": self.root_mean_square(*training_median),
                "distance": "root mean square of differences of values in [-1, 1], mirrored or not",
            },
            "features": self.features,
        })
    }

    /// Creates a grid of the generated images that are nearest by pixels, then by features, each with its nearest real image.
    fn sheet(&self, generated: &[RgbImage], real: &[RgbImage], paths: &[String]) -> RgbImage {
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for (name, result) in [("pixels", &self.pixels), ("features", &self.features)] {
            for i in result.closest().into_iter().take(PAIRS) {
                let nearest = result.nearest[i];
                let distance =
                    if name == "pixels" { self.root_mean_square(nearest.distance) } else { nearest.distance };
                images.extend([generated[i].clone(), real[nearest.index].clone()]);
                captions.extend([format!("{i}, {name} {distance:.2}"), paths[nearest.index].clone()]);
            }
        }
        grid(&images, 6, Some(&captions))
    }
}
