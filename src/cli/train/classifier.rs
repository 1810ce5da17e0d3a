//! `tiny-cats train classifier`: trains the breed classifier.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::json;
use tiny_cats_export::{write_atomically, write_png};
use tiny_cats_models::{ResNetConfig, Weights};

use super::{batch, decay, drive, not_negative, open, tell_skipped};
use crate::{
    checkpoint::{self, WhichWeights},
    cli::common::DeviceKind,
    data::{Cache, Level, Photos, Split},
    train::{AdamW, Classifier, ClassifierOptions, Plan, Resume, Schedule},
};

/// What `tiny-cats train classifier` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of photographs
    #[arg(default_value = "data/cats")]
    data: PathBuf,
    /// How often all photographs are seen
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Photographs in a micro-batch; at most as many as there are
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Micro-batches in a step
    #[arg(long, default_value_t = 1, alias = "gradient-accumulation-steps")]
    grad_accum_steps: usize,
    /// Learning rate after the warm-up
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Learning rate at the end; unset, the smaller of 1e-6 and --lr
    #[arg(long)]
    min_lr: Option<f64>,
    /// Epochs of the warm-up; unset, the smaller of 2 and 5 % of the run
    #[arg(long)]
    warmup_epochs: Option<u64>,
    /// The network
    #[arg(long, default_value = "resnet18", value_parser = ["resnet18", "resnet34", "resnet50"])]
    backbone: String,
    /// Channels of its first stage; torchvision's networks have 64
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Begin from the weights of this file of PyTorch or safetensors, all but the head
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Begin from random weights, as is done without --init
    #[arg(long, conflicts_with = "init")]
    no_pretrained: bool,
    /// Not offered: this program trains in f32
    #[arg(long, hide = true)]
    mixed_precision: bool,
    /// Height and width of the pictures that the classifier is for
    #[arg(long, default_value_t = 128)]
    image_size: usize,
    /// Height and width of the pictures that it is trained on [default: --image-size]
    #[arg(long)]
    crop_size: Option<usize>,
    /// How much pictures are changed
    #[arg(long, value_enum, default_value_t = Level::Full)]
    augmentation_level: Level,
    /// Mixes pairs of pictures by shares of Beta(this, this), at most 1; 0 mixes none
    #[arg(long, default_value_t = 0.0)]
    mixup: f64,
    /// Share of the target that is spread over all classes
    #[arg(long, default_value_t = 0.1)]
    label_smoothing: f64,
    /// Decay of the weights' moving average
    #[arg(long, default_value_t = 0.999)]
    ema_beta: f64,
    /// The gradient's norm is cut to this; 0 cuts nothing
    #[arg(long, default_value_t = 1.0)]
    gradient_clip: f64,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Use that many photographs of each of training, validation and test only, spread over the classes
    #[arg(long)]
    limit_files: Option<usize>,
    /// Epochs between training states, each of which is evaluated; 0 saves the last alone
    #[arg(long, default_value_t = 1)]
    save_interval: u64,
    /// Steps between lines of metrics.jsonl
    #[arg(long, default_value_t = 20)]
    log_interval: u64,
    /// Append what is printed during the run to this file too
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Go on from this training state
    #[arg(long, value_name = "STATE")]
    resume: Option<PathBuf>,
    /// The released file; everything else is written beside it
    #[arg(short, long, default_value = "checkpoints/cats_model.pt", value_name = "FILE")]
    output: PathBuf,
    /// The same seed, data and processor give the same model
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Threads that prepare pictures and compute [default: one for each core]
    #[arg(long, value_name = "N")]
    num_workers: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto)]
    device: DeviceKind,
}

/// Runs it.
///
/// # Errors
/// When a setting makes no sense, the data cannot be read, or the run stops.
pub fn run(args: &Args) -> anyhow::Result<()> {
    decay("--ema-beta", args.ema_beta)?;
    not_negative(&[("--gradient-clip", args.gradient_clip), ("--weight-decay", args.weight_decay)])?;
    if args.mixed_precision {
        bail!("--mixed-precision: this program trains in f32 only; leave the flag out");
    }
    if args.epochs == 0 {
        bail!("--epochs: expected at least 1, found 0");
    }
    if let Some(warmup) = args.warmup_epochs.filter(|&warmup| warmup >= args.epochs) {
        bail!("--warmup-epochs: expected fewer than --epochs ({}), found {warmup}", args.epochs);
    }
    let (folder, name) = output(&args.output)?;
    if let Some(workers) = args.num_workers {
        rayon::ThreadPoolBuilder::new().num_threads(workers.max(1)).build_global()?;
    }
    let device = args.device.device()?;
    let data = open(&args.data)?;
    if data.classes.len() < 2 {
        bail!("{}: expected at least 2 class folders to tell apart, found 1", args.data.display());
    }
    let options = ClassifierOptions {
        network: ResNetConfig {
            width: args.width,
            ..ResNetConfig::named(&args.backbone, data.classes.len())?
        },
        image_size: args.image_size,
        crop_size: args.crop_size.unwrap_or(args.image_size),
        augmentation: args.augmentation_level,
        mixup: args.mixup,
        label_smoothing: args.label_smoothing,
        seed: args.seed,
        name: name.clone(),
        init: args.init.clone(),
    };
    options.validate()?;
    let load = |split: Split| -> anyhow::Result<Option<Photos>> {
        let part = data.part(split);
        if part.files.is_empty() {
            return Ok(None);
        }
        let photos = Photos::load(&part, options.short_side(), args.limit_files, &Cache::Default)?;
        tell_skipped(&photos.skipped);
        photos.notes.iter().for_each(|note| eprintln!("{note}"));
        Ok(Some(photos))
    };
    let train = load(Split::Train)?
        .with_context(|| format!("{}: no photograph is left to train on", args.data.display()))?;
    let validation = load(Split::Validation)?;
    let test = load(Split::Test)?;
    if validation.is_none() {
        eprintln!(
            "{}: too few photographs to keep any for validation: the last state is released",
            args.data.display()
        );
    }
    println!(
        "{}: {} photographs of {} classes to train on, {} to validate",
        args.data.display(),
        train.len(),
        train.classes.len(),
        validation.as_ref().map_or(0, |photos| photos.len())
    );
    let batch = batch(args.batch_size, train.len());
    let per_epoch = (train.len() as u64).div_ceil((batch * args.grad_accum_steps.max(1)) as u64);
    let epochs = |n: u64| n.saturating_mul(per_epoch);
    let min_lr = args.min_lr.unwrap_or(args.lr.min(1e-6));
    let schedule =
        Schedule::new(args.lr, min_lr, args.warmup_epochs.map(epochs), epochs(2), epochs(args.epochs))?;
    let plan = Plan {
        schedule,
        optimizer: AdamW {
            betas: [0.9, 0.999],
            weight_decay: args.weight_decay,
            clip: args.gradient_clip,
            ema: args.ema_beta,
            ..AdamW::default()
        },
        batch,
        accumulation: args.grad_accum_steps,
        save_interval: epochs(args.save_interval),
        sample_interval: 0,
        log_interval: args.log_interval,
        seed: args.seed,
        output: folder.clone(),
        resume: args.resume.clone().map_or(Resume::Never, Resume::From),
        device: device.clone(),
    };
    let mut task = Classifier::new(options, train, validation, device)?;
    let [_, released] = drive(&mut task, &plan, args.log_file.as_deref())?;
    let weights = checkpoint::open(&released, WhichWeights::Default)?.weights;
    for (photos, words) in [(task.validation(), "validation"), (test.as_ref(), "test")] {
        if let Some(photos) = photos {
            evaluate(&task, &weights, photos, words, &folder.join(format!("{name}_{words}")))?;
        }
    }
    Ok(())
}

/// Folder and name of the released file.
fn output(path: &Path) -> anyhow::Result<(PathBuf, String)> {
    let (stem, extension) =
        (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()));
    let (Some(stem), Some("pt" | "safetensors")) = (stem, extension) else {
        bail!("--output {}: expected the name of a .pt file", path.display());
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder.to_owned(), stem.to_owned()))
}

/// Prints what the classifier takes for what, and writes it as `PATH.png` and `PATH.json`.
fn evaluate(
    task: &Classifier,
    weights: &Weights,
    photos: &Photos,
    words: &str,
    path: &Path,
) -> anyhow::Result<()> {
    let confusion = task.confusion(weights, photos)?;
    println!("\n{words} photographs, none of which was trained on\n{confusion}");
    let [picture, numbers] = ["png", "json"].map(|extension| path.with_extension(extension));
    let report = json!({
        "photographs": words,
        "accuracy": confusion.accuracy(),
        "interval": confusion.interval(),
        "mean_recall": confusion.mean_recall(),
        "confusion": confusion,
    });
    write_png(&picture, &confusion.picture()).with_context(|| picture.display().to_string())?;
    let text = serde_json::to_vec_pretty(&report)?;
    write_atomically(&numbers, |w| w.write_all(&text)).with_context(|| numbers.display().to_string())?;
    println!("wrote {} and {}", picture.display(), numbers.display());
    Ok(())
}
