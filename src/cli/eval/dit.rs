//! `tiny-cats eval dit`: measures how close generated images are to real ones.

use std::path::PathBuf;

use anyhow::Context;
use tiny_cats_export::{LoadOptions, write_png};

use super::{Printer, SamplingArgs, SplitArg, with_flags, with_flags_in_reasons, write_report};
use crate::{
    cli::{common::Runtime, writable::check_writable},
    evaluate::{FeatureOptions, GeneratedSource, GeneratorOptions, ImageSource, evaluate_generator},
};

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
    let mut printer = Printer::default();
    let mut report =
        evaluate_generator(&args.options(), &mut |event| printer.on_event(&event)).map_err(with_flags)?;
    println!("{report}");
    for warning in report.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(path) = &args.sheet {
        write_png(path, &report.nearest.sheet()).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if let GeneratedSource::Folder { skipped, .. } = &mut report.generated {
        *skipped = with_flags_in_reasons(skipped);
    }
    write_report(args.json.as_deref(), &report)
}

impl Args {
    fn options(&self) -> GeneratorOptions {
        let source = match &self.images {
            Some(path) => ImageSource::Folder { path: path.clone(), image_size: self.image_size },
            None => ImageSource::Model {
                path: self.model.clone(),
                samples: self.samples,
                request: self.sampling.to_request(self.seed),
            },
        };
        GeneratorOptions {
            data: self.data.clone(),
            source,
            split: self.split.to_split(),
            limit_files: self.limit_files,
            features: FeatureOptions {
                path: self.features.clone(),
                resize: self.features_resize,
                mean: self.features_mean,
                std: self.features_std,
            },
            classifier: self.classifier.clone(),
            resamples: self.bootstrap,
            seed: self.seed,
            load: LoadOptions { runtime: self.runtime.map(Into::into), batch: self.batch },
        }
    }
}
