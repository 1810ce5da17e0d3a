//! `tiny-cats train classifier`: trains the breed classifier.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::json;
use tiny_cats_export::{NetworkConfig, image_sizes, write_png};
use tiny_cats_models::{
    Network, ResNetConfig, Weights,
    resnet::{MAX_IMAGE_SIZE, MIN_IMAGE_SIZE},
};

use super::{
    ImageCounts, TrainJob,
    common::{CommonArgs, MAX_STEPS},
    open_data,
    released::EXTENSIONS,
    run_training,
};
use crate::{
    checkpoint::{self, InitFile, WeightsSelection},
    cli::{
        common::{warn_skipped, write_json},
        logging,
    },
    data::{Examples, PhotoExamples, PhotoOptions, Photos, Split},
    plan::Workload,
    plural::pluralize,
    train::{Classification, ClassificationOptions, InitialWeightsSource},
};

/// The arguments of `tiny-cats train classifier`.
#[derive(clap::Args, Debug)]
#[command(
    args_override_self = true,
    mut_arg("batch_size", |arg| arg.default_value("32")),
    mut_arg("ema_beta", |arg| arg.default_value("0.999")),
    mut_arg("weight_decay", |arg| arg.default_value("0.05")),
    mut_arg("log_interval", |arg| arg.default_value("20"))
)]
pub struct Args {
    /// Folder of class folders of photographs
    #[arg(default_value = "data/cats")]
    data: PathBuf,
    /// Number of passes over the training photographs
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Network [default: that of --init, resnet18]
    #[arg(long, value_parser = ["resnet18", "resnet34", "resnet50"])]
    backbone: Option<String>,
    /// Channels of the first stage; torchvision's networks have 64 [default: those of --init, 64]
    #[arg(long)]
    width: Option<usize>,
    /// Start from the weights of this PyTorch or safetensors file: a ResNet with any head or none. Classes that it has keep their
    /// rows of the head
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Start from random weights, as without --init
    #[arg(long, conflicts_with = "init")]
    no_pretrained: bool,
    /// Height and width of the images to classify [default: that of --init if it has one, 128]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Height and width of the training images [default: --image-size]
    #[arg(long, value_name = "PIXELS")]
    crop_size: Option<usize>,
    /// Released file; the run's own folder is in --runs-dir
    #[arg(short, long, default_value = "checkpoints/cats_model.pt", value_name = "FILE")]
    output: PathBuf,
    /// Epochs of the warm-up [default: the smaller of 2 and 5 % of the run]
    #[arg(long, value_name = "EPOCHS", help_heading = "Method")]
    warmup_epochs: Option<u64>,
    /// Mix pairs of images by shares from Beta(ALPHA, ALPHA), ALPHA at most 1; 0 disables mixing
    #[arg(long, default_value_t = 0.0, value_name = "ALPHA", help_heading = "Method")]
    mixup: f64,
    /// Share of the target distribution that is spread over all classes
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Method")]
    label_smoothing: f64,
    /// Epochs between evaluations and saved training states; 0 saves only the last epoch
    #[arg(long, default_value_t = 1, value_name = "EPOCHS", help_heading = "Monitoring")]
    save_interval: u64,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// Decays of AdamW's moments.
const BETAS: [f64; 2] = [0.9, 0.999];

/// The network and the sizes of its images.
struct Sizes {
    network: ResNetConfig,
    /// Height and width of the images to classify, in pixels.
    image_size: usize,
    /// Height and width of the training images, in pixels.
    crop_size: usize,
}

impl Args {
    /// Checks the arguments.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.common.validate()?;
        if self.epochs == 0 {
            bail!("--epochs: expected at least 1, found 0");
        }
        if self.epochs > MAX_STEPS {
            bail!("--epochs: expected at most {MAX_STEPS}, found {}", self.epochs);
        }
        if let Some(warmup) = self.warmup_epochs.filter(|&warmup| warmup >= self.epochs) {
            bail!("--warmup-epochs: expected fewer than --epochs ({}), found {warmup}", self.epochs);
        }
        split_output(&self.output)?;
        // The steps per epoch and the number of classes are not known yet.
        self.common.schedule(self.epochs, 1, None, 0)?;
        let Sizes { image_size, crop_size, .. } = self.sizes(2)?;
        check_sizes(image_size, crop_size)
    }

    /// The folder of the photographs.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The paths of the released files.
    ///
    /// # Errors
    /// If `--output` is not the name of a `.pt` file.
    pub fn released_paths(&self) -> anyhow::Result<[PathBuf; 2]> {
        let (folder, name) = split_output(&self.output)?;
        Ok(EXTENSIONS.map(|extension| folder.join(format!("{name}.{extension}"))))
    }

    /// The device to compute on.
    ///
    /// # Errors
    /// If it is not available.
    pub fn device(&self) -> anyhow::Result<Device> {
        self.common.device.device()
    }

    /// The network and its sizes for a number of classes, from the flags or the file of `--init`.
    fn sizes(&self, classes: usize) -> anyhow::Result<Sizes> {
        let file = self.init().map(|path| InitFile::open(path)).transpose()?;
        let init_config = file.as_ref().map(InitFile::resnet).transpose()?;
        let backbone = match (&self.backbone, &init_config) {
            (Some(name), _) => name.clone(),
            (None, Some(init_config)) => format!("resnet{}", init_config.depth),
            (None, None) => "resnet18".to_owned(),
        };
        let width = self.width.or(init_config.map(|init_config| init_config.width)).unwrap_or(64);
        let network = ResNetConfig { width, ..ResNetConfig::named(&backbone, classes)? };
        let image_size = self.image_size.or(file.and_then(|file| file.image_size())).unwrap_or(128);
        Ok(Sizes { network, image_size, crop_size: self.crop_size.unwrap_or(image_size) })
    }

    fn init(&self) -> Option<&PathBuf> {
        self.init.as_ref().filter(|_| !self.no_pretrained)
    }

    /// The workload of training on `images`.
    ///
    /// # Errors
    /// If the flags describe no valid network.
    pub fn workload(&self, images: &ImageCounts) -> anyhow::Result<Workload> {
        let Sizes { network, image_size, crop_size } = self.sizes(images.classes)?;
        let ImageCounts { train, validation, test, .. } = images.with_limit(self.common.limit_files);
        let averages = self.common.ema_beta.len();
        let moments = self.common.optimizer(BETAS).rule.moments();
        let batch = self.common.batch_size.min(train);
        let accumulation = self.common.gradient_accumulation_steps;
        let steps = self.epochs.saturating_mul(train.div_ceil(batch * accumulation) as u64);
        let evaluations = if self.save_interval == 0 { 1 } else { self.epochs.div_ceil(self.save_interval) };
        // At the end, the released weights are evaluated on validation and test images.
        let evaluated = evaluations as f64 * (validation * averages) as f64 + (validation + test) as f64;
        Ok(Workload {
            eval_flops: network.cost(&image_sizes(image_size))?.flops() as f64 * evaluated,
            network: NetworkConfig::new(network)?,
            side: crop_size,
            steps,
            batch,
            accumulation,
            tape: self.common.tape_options(),
            moments,
            averages,
            augmentation: self.common.augmentation_level,
        })
    }
}

/// Trains in this process.
///
/// # Errors
/// If a setting is invalid, the data cannot be read, or the run stops.
pub fn run(args: &Args, job: TrainJob) -> anyhow::Result<()> {
    let common = &args.common;
    let (folder, name) = split_output(&args.output)?;
    let device = common.device()?;
    let data = open_data(&args.data)?;
    if data.classes.len() < 2 {
        bail!("{}: expected at least 2 class folders, found 1", args.data.display());
    }
    let Sizes { network, image_size, crop_size } = args.sizes(data.classes.len())?;
    let init = args.init().cloned().map(|path| {
        let (network, classes) = (network.clone(), data.classes.clone());
        InitialWeightsSource::new(path.clone(), move || InitFile::open(&path)?.classifier(&network, &classes))
    });
    let options = ClassificationOptions {
        network,
        mixup: args.mixup,
        label_smoothing: args.label_smoothing,
        seed: common.seed,
        name: name.clone(),
        init,
    };
    options.validate()?;
    let photo_options = PhotoOptions { image_size, crop_size, augmentation: common.augmentation_level };
    let load = |split: Split| -> anyhow::Result<Option<Arc<dyn Examples>>> {
        let part = data.part(split);
        if part.files.is_empty() {
            return Ok(None);
        }
        let photos = Photos::load(&part, photo_options.short_side(), common.limit_files, &common.cache())?;
        warn_skipped(&photos.skipped);
        photos.notes.iter().for_each(|note| logging::eprint_and_log(note));
        Ok(Some(Arc::new(PhotoExamples::new(photos, photo_options)?)))
    };
    let train = load(Split::Train)?
        .with_context(|| format!("{}: expected photographs to train on, found none", args.data.display()))?;
    let validation = load(Split::Validation)?;
    let test = load(Split::Test)?;
    if validation.is_none() {
        let data = args.data.display();
        logging::eprint_and_log(&format!(
            "{data}: no photographs for validation; the last state is released"
        ));
    }
    common.check_early_stopping(validation.as_ref().map_or(0, |photos| photos.count()))?;
    logging::print_and_log(&format!(
        "{}: {} of {} to train on, {} to validate",
        args.data.display(),
        pluralize(train.count(), "photograph"),
        pluralize(train.classes().len(), "class"),
        validation.as_ref().map_or(0, |photos| photos.count())
    ));
    let batch = common.batch(train.count());
    let items = batch * common.gradient_accumulation_steps;
    let per_epoch = (train.count() as u64).div_ceil(items as u64);
    let epochs = |n: u64| n.saturating_mul(per_epoch);
    let schedule = common.schedule(epochs(args.epochs), items, args.warmup_epochs.map(epochs), epochs(2))?;
    let plan =
        common.train_options(job, schedule, batch, BETAS, [epochs(args.save_interval), 0], device.clone());
    let mut task = Classification::new(options, train, validation, device)?;
    let released = run_training(&mut task, &plan, common, args.released_paths()?)?;
    let Some(released) = released else { return Ok(()) };
    let weights = checkpoint::open(&released, WeightsSelection::Default)?.weights;
    for (photos, split) in [(task.validation(), "validation"), (test.as_deref(), "test")] {
        if let Some(photos) = photos {
            evaluate(&task, &weights, photos, split, &folder.join(format!("{name}_{split}")))?;
        }
    }
    Ok(())
}

/// Checks that the network takes images of these sizes, in pixels.
fn check_sizes(image_size: usize, crop_size: usize) -> anyhow::Result<()> {
    if !(MIN_IMAGE_SIZE..=MAX_IMAGE_SIZE).contains(&image_size) {
        bail!("--image-size: expected {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}, found {image_size}");
    }
    if !(MIN_IMAGE_SIZE..=image_size).contains(&crop_size) {
        bail!("--crop-size: expected {MIN_IMAGE_SIZE} to --image-size ({image_size}), found {crop_size}");
    }
    Ok(())
}

/// The folder and name of the released file.
fn split_output(path: &Path) -> anyhow::Result<(PathBuf, String)> {
    let (stem, extension) =
        (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()));
    let (Some(stem), Some("pt" | "safetensors")) = (stem, extension) else {
        bail!("--output {}: expected the name of a .pt file", path.display());
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder.to_owned(), stem.to_owned()))
}

/// Prints the confusion matrix, and writes it as `PATH.png` and `PATH.json`.
fn evaluate(
    task: &Classification<ResNetConfig>,
    weights: &Weights,
    photos: &dyn Examples,
    split: &str,
    path: &Path,
) -> anyhow::Result<()> {
    let evaluation = task.classify(weights, photos)?;
    logging::print_and_log(&format!("\n{split} photographs, not used for training\n{evaluation}"));
    let [image_path, report_path] = ["png", "json"].map(|extension| path.with_extension(extension));
    let mut report = evaluation.report();
    report["photographs"] = json!(split);
    write_png(&image_path, &evaluation.confusion.to_image())
        .with_context(|| image_path.display().to_string())?;
    write_json(&report_path, &report)?;
    logging::print_and_log(&format!("wrote {} and {}", image_path.display(), report_path.display()));
    Ok(())
}
