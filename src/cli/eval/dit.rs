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
    generated::{self, GeneratedSet, Sampling},
    image_features::{breed_confusion, extract, pictures, pixels, warn_weak_classifier},
    labels, sha256, skipped_json,
};
use crate::{
    checkpoint::is_checkpoint,
    cli::common::{ModelContext, Runtime, warn_skipped, write_json},
    cli::writable::check_writable,
    data::{Cache, Dataset, Images},
    evaluate::{
        COPY_NEIGHBORS, CompareOptions, Comparison, Confusion, Interval, Memorization, compare, memorization,
        proportional, random_halves,
    },
};

/// The default maximum of generated images.
const MAX_GENERATED: usize = 2048;
/// The maximum of `--samples`.
const MAX_SAMPLES: usize = 100_000;
/// The default number of resamples for intervals.
const RESAMPLES: usize = 200;
/// With more features, the interval of the Fréchet distance would take hours, so it is computed only on request.
const MAX_RESAMPLED_FEATURES: usize = 512;
/// Pairs of each kind on the sheet.
const PAIRS: usize = 12;

/// The arguments of `tiny-cats eval dit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of the images that the generator was trained on
    data: PathBuf,
    /// The generator, .onnx, .safetensors or .pt [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Compare the images in this folder instead of generating some
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "samples", "cfg", "steps", "sampler"])]
    images: Option<PathBuf>,
    /// Resize all images to this height and width first [default: the generator's, or that of the pictures in --images]
    #[arg(long, value_name = "PIXELS", requires = "images")]
    image_size: Option<u32>,
    /// Real images to use
    #[arg(long, value_enum, default_value_t = SplitArg::All)]
    split: SplitArg,
    /// Use only N real images, spread over the classes
    #[arg(long, value_name = "N")]
    limit_files: Option<usize>,
    /// Number of images to generate, of each class in proportion to the real ones [default: as many as there are real ones, at most 2048]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    #[command(flatten)]
    sampling: Sampling,
    /// Random seed; the same seed gives the same images and intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Network that computes features of images: a classifier of this program, without its last layer, or any ONNX file with one input
    /// [batch, 3, size, size] and an output [batch, features] [default: the classifier that comes with this program]
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Shorter side after resizing, before the center is cropped for another program's ONNX file [default: 8/7 of its input's size]
    #[arg(long, value_name = "PIXELS", requires = "features")]
    features_resize: Option<usize>,
    /// Mean of red, green and blue from 0 to 1, for another program's ONNX file [default: ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = parse_triple, requires = "features")]
    features_mean: Option<[f32; 3]>,
    /// Standard deviations of red, green and blue, for the same file [default: ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = parse_triple, requires = "features")]
    features_std: Option<[f32; 3]>,
    /// Classifier that should find the requested breed [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Resamples for the intervals [default: 200; for the Fréchet distance 0 with more than 512 features]
    #[arg(long, value_name = "N")]
    bootstrap: Option<usize>,
    /// Write all figures to this file, with the model and data that they were measured on
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Write the generated images that are nearest to a real one, each next to it
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Runtime that computes all networks [default: native; tract for another program's file]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; changes memory, not results
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

/// Parses three numbers, separated by commas.
fn parse_triple(text: &str) -> Result<[f32; 3], String> {
    let numbers: Option<Vec<f32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "expected three numbers like 0.5,0.5,0.5".to_owned())
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
    let (mut extractor, of_features) = extractor(args, &options)?;
    let judge =
        OpenedModel::new(args.classifier.as_deref(), (pretrained::CLASSIFIER, "resnet18-breeds.onnx"))?;
    let mut classifier =
        Classifier::from_model(&judge.model, &options).model_context(judge.path.as_deref())?;
    let data = args.split.open(&args.data)?;
    let (drawn, real, by) = match &args.images {
        Some(folder) => {
            let drawn = generated::from_folder(folder, args.image_size, &data.classes)?;
            warn_skipped(&drawn.skipped);
            let Some(first) = drawn.images.first() else {
                bail!("--images {}: there is no usable picture", folder.display());
            };
            let real = Images::load(&data, first.width(), args.limit_files, &Cache::Default)?;
            let by = json!({"fingerprint": drawn.fingerprint, "skipped": skipped_json(&drawn.skipped)});
            (drawn, real, by)
        }
        None => draw(args, &options, &data)?,
    };
    warn_skipped(&real.skipped);
    let size = real.size();
    let of_real: Vec<Option<usize>> = real.labels().iter().map(|&label| Some(label as usize)).collect();
    let paths: Vec<String> = (0..real.len()).map(|i| file_name(real.path(i))).collect();
    let real_images: Vec<RgbImage> = pictures(&real)?;

    let real_features = extract(&mut extractor, &real_images, args.batch, "real pictures")
        .model_context(args.features.as_deref())?;
    let features = extract(&mut extractor, &drawn.images, args.batch, "drawn pictures")
        .model_context(args.features.as_deref())?;
    let how = CompareOptions {
        frechet_resamples: match args.bootstrap {
            None if features.dims() > MAX_RESAMPLED_FEATURES => 0,
            asked => asked.unwrap_or(RESAMPLES),
        },
        kernel_resamples: args.bootstrap.unwrap_or(RESAMPLES),
        seed: args.seed,
    };
    let comparison = compare(&real_features, &features, &how)?;
    // Each half needs two images, so four are the minimum.
    let floor = match real.len() {
        ..4 => None,
        _ => {
            let [a, b] = random_halves(&real_features, args.seed)?;
            Some(compare(&a, &b, &CompareOptions { frechet_resamples: 0, kernel_resamples: 0, ..how })?)
        }
    };
    let plain = pixels(&real_images, false)?;
    let near = NearestReport {
        pixels: memorization(&[&plain, &pixels(&real_images, true)?], &pixels(&drawn.images, false)?)?,
        features: memorization(&[&real_features], &features)?,
        values: plain.dims(),
    };
    let known = labels(&data.classes, &classifier.meta().classes);
    let breeds = [(&drawn.images, &drawn.labels), (&real_images, &of_real)]
        .map(|(images, labels)| breed_confusion(&mut classifier, images, labels, &known, args.batch));
    let [by_drawn, by_real] = breeds;
    let (by_drawn, by_real) =
        (by_drawn.model_context(judge.path.as_deref())?, by_real.model_context(judge.path.as_deref())?);

    println!(
        "{} drawn and {} real pictures ({}) of {size} px, by {} features of {}\n",
        comparison.drawn,
        comparison.real,
        args.split.name(),
        comparison.features,
        of_features["file"].as_str().unwrap_or_default()
    );
    print_comparison(&comparison, floor.as_ref());
    near.print_comparison();
    print_breeds(&by_drawn, &by_real, &judge.file);
    for warning in &comparison.warnings {
        eprintln!("warning: {warning}");
    }
    if let Some(path) = &args.sheet {
        let sheet = near.sheet(&drawn.images, &real_images, &paths);
        write_png(path, &sheet).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if let Some(path) = &args.json {
        let report = json!({
            "evaluation": "generator",
            "version": env!("CARGO_PKG_VERSION"),
            "drawn": by,
            "data": {
                "fingerprint": data.fingerprint,
                "split": args.split.name(),
                "pictures": real.len(),
                "limit_files": args.limit_files,
                "skipped": skipped_json(&real.skipped),
            },
            "image_size": size,
            "features": of_features,
            "runtime": extractor.runtime().name(),
            "comparing": how,
            "results": comparison,
            "real_halves": floor,
            "nearest_training_picture": near.report(),
            "breed_as_asked": {"classifier": judge.provenance(), "drawn": breed_report(&by_drawn), "real": breed_report(&by_real)},
        });
        write_json(path, &report)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Generates images of the classes of `data` in their proportions. Also returns the real images, and the settings as JSON.
fn draw(args: &Args, options: &LoadOptions, data: &Dataset) -> anyhow::Result<(GeneratedSet, Images, Value)> {
    let opened = OpenedModel::new(args.model.as_deref(), (pretrained::TINYDIT, "tinydit.onnx"))?;
    let mut generator =
        Generator::from_model(&opened.model, options).model_context(opened.path.as_deref())?;
    let classes = generator.meta().classes.clone();
    let known = generated::class_labels(&args.data, data, &classes)?;
    let real = Images::load(data, generator.meta().image_size as u32, args.limit_files, &Cache::Default)?;
    let mut counts = vec![0; classes.len()];
    for label in real.labels().iter().filter_map(|&label| known[label as usize]) {
        counts[label] += 1;
    }
    let samples = args.samples.unwrap_or(real.len().clamp(2, MAX_GENERATED));
    let counts = proportional(&counts, samples);
    let request = args.sampling.request(args.seed);
    let settings = generator.settings(&request);
    let mut drawn =
        generated::draw(&mut generator, &counts, &request).model_context(opened.path.as_deref())?;
    // From the generator's labels to the data's.
    let back = labels(&classes, &data.classes);
    drawn.labels.iter_mut().for_each(|label| *label = label.and_then(|label| back[label]));
    let by = json!({
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
    Ok((drawn, real, by))
}

/// Opens the network that computes features of images, and describes its file.
fn extractor(args: &Args, options: &LoadOptions) -> anyhow::Result<(FeatureExtractor, Value)> {
    let released = (pretrained::CLASSIFIER, "resnet18-breeds.onnx");
    let classifier_cases = |path: Option<&Path>| -> anyhow::Result<_> {
        if args.features_resize.is_some() || args.features_mean.is_some() || args.features_std.is_some() {
            bail!(
                "--features-resize, --features-mean, --features-std: the file says itself how pictures are prepared"
            );
        }
        let opened = OpenedModel::new(path, released)?;
        let extractor = FeatureExtractor::from_classifier(&opened.model, options).model_context(path)?;
        Ok((extractor, opened.provenance(), "before the last layer"))
    };
    let (extractor, mut from, output) = match args.features.as_deref() {
        None => classifier_cases(None)?,
        Some(path) if is_checkpoint(path).with_context(|| path.display().to_string())? => {
            classifier_cases(Some(path))?
        }
        Some(path) => {
            let file = OnnxFile::open(path)?;
            if file.metadata().contains_key(META_KEY) {
                classifier_cases(Some(path))?
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
    from["output"] = output.into();
    from["image_size"] = extractor.size().into();
    from["preprocessing"] = serde_json::to_value(extractor.preprocessing())?;
    Ok((extractor, from))
}

fn breed_report(confusion: &Confusion) -> Value {
    let class = |(i, name): (usize, &String)| {
        let pictures: u32 = confusion.counts[i].iter().sum();
        (pictures > 0).then(|| json!({"class": name, "pictures": pictures, "share": confusion.recall(i)}))
    };
    json!({
        "pictures": confusion.total(),
        "share": confusion.accuracy(),
        "interval": confusion.interval(),
        "per_class": confusion.classes.iter().enumerate().filter_map(class).collect::<Vec<_>>(),
        "confusion": confusion,
    })
}

fn print_comparison(comparison: &Comparison, floor: Option<&Comparison>) {
    let half = floor.map_or_else(String::new, |f| format!("real halves ({} and {})", f.real, f.drawn));
    println!("{:<30} {:>10}  {:<22} {half:>26}", "", "drawn", "95 % interval");
    let line = |name: &str, value: Option<f64>, interval: Option<Interval>, floor: Option<f64>| {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let interval = interval.map_or_else(String::new, |i| format!("{:.4} to {:.4}", i.low, i.high));
        println!("{name:<30} {:>10}  {interval:<22} {:>26}", number(value), number(floor));
    };
    let thousand =
        |interval: Interval| Interval { low: 1e3 * interval.low, high: 1e3 * interval.high, ..interval };
    let Comparison { frechet, frechet_interval, kernel, .. } = comparison;
    line("Fréchet distance", Some(*frechet), *frechet_interval, floor.map(|f| f.frechet));
    line(
        "kernel distance × 1000",
        Some(1e3 * kernel.distance),
        kernel.interval.map(thousand),
        floor.map(|f| 1e3 * f.kernel.distance),
    );
    let of_subsets = format!("  of {} subsets of {}", kernel.subsets, kernel.subset_size);
    let (mean, deviation) = (1e3 * kernel.subset_mean, 1e3 * kernel.subset_deviation);
    println!("{of_subsets:<30} {mean:>10.4}  ± {deviation:.4}");
    let of = |pick: fn(&Comparison) -> Option<f64>| (pick(comparison), floor.and_then(pick));
    for (name, (value, floor)) in [
        ("precision", of(|c| Some(c.precision_recall?.precision))),
        ("recall", of(|c| Some(c.precision_recall?.recall))),
        ("density", of(|c| Some(c.density_coverage?.density))),
        ("coverage", of(|c| Some(c.density_coverage?.coverage))),
    ] {
        line(name, value, None, floor);
    }
}

fn print_breeds(drawn: &Confusion, real: &Confusion, judge: &str) {
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    if drawn.total() == 0 {
        println!("\nbreed as asked: of no drawn picture a breed is known that {judge} knows");
        return;
    }
    println!("\nbreed as asked, by {judge:<20} {:>10} {:>10}", "drawn", "real");
    for (i, name) in drawn.classes.iter().enumerate() {
        if drawn.recall(i).is_some() || real.recall(i).is_some() {
            let name = name.replace('_', " ");
            println!("{name:<39} {:>10} {:>10}", percent(drawn.recall(i)), percent(real.recall(i)));
        }
    }
    warn_weak_classifier(real, judge);
    let [low, high] = drawn.interval();
    println!(
        "{:<39} {:>10} {:>10}  (drawn: {} of {}, 95 % interval {:.1} to {:.1} %)",
        "all",
        percent(Some(drawn.accuracy())),
        percent((real.total() > 0).then(|| real.accuracy())),
        drawn.correct(),
        drawn.total(),
        100.0 * low,
        100.0 * high
    );
}

/// The distances from generated images to the nearest real ones.
struct NearestReport {
    pixels: Memorization,
    features: Memorization,
    /// The number of values of an image's pixels.
    values: usize,
}

impl NearestReport {
    /// Converts a distance between pixels to the root mean square of their differences.
    fn mean(&self, distance: f64) -> f64 {
        distance / (self.values as f64).sqrt()
    }

    fn print_comparison(&self) {
        let median = "median distance (of real ones to others)";
        println!("\n{:<30} {:>10} {:>10}   {median}", "nearest real picture", "near", "copied");
        let line = |name: &str, by: &Memorization, scale: &dyn Fn(f64) -> f64| {
            let [near, copied] = [by.share, by.copied].map(|share| format!("{:.1} %", 100.0 * share));
            let (median, own) = (scale(by.median), scale(by.training_median));
            println!("{name:<30} {near:>10} {copied:>10}   {median:.3} ({own:.3})");
        };
        line("by pixels, mirrored or not", &self.pixels, &|distance| self.mean(distance));
        line("by features", &self.features, &|distance| distance);
        println!(
            "near: as the nearest 5 % of real pictures are to each other, and smooth pictures easily are;"
        );
        println!(
            "copied: at most half as far from one real picture as from the {COPY_NEIGHBORS} nearest on average"
        );
    }

    fn report(&self) -> Value {
        let Memorization { share, copied, threshold, median, training_median, .. } = &self.pixels;
        json!({
            "pixels": {
                "share": share,
                "copied": copied,
                "threshold": self.mean(*threshold),
                "median": self.mean(*median),
                "training_median": self.mean(*training_median),
                "distance": "root mean square of differences of values in [-1, 1], mirrored or not",
            },
            "features": self.features,
        })
    }

    /// Draws the generated images that are nearest by pixels, then those that are nearest by features, each with its nearest real image.
    fn sheet(&self, drawn: &[RgbImage], real: &[RgbImage], paths: &[String]) -> RgbImage {
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for (name, by) in [("pixels", &self.pixels), ("features", &self.features)] {
            for i in by.closest().into_iter().take(PAIRS) {
                let nearest = by.nearest[i];
                let distance = if name == "pixels" { self.mean(nearest.distance) } else { nearest.distance };
                images.extend([drawn[i].clone(), real[nearest.index].clone()]);
                captions.extend([format!("{i}, {name} {distance:.2}"), paths[nearest.index].clone()]);
            }
        }
        grid(&images, 6, Some(&captions))
    }
}
