//! `tiny-cats train dit`: trains the generator.

use std::path::PathBuf;

use anyhow::{Context, bail};
use tiny_cats_models::{TinyDitConfig, tiny_dit::SIZES};

use super::{batch, decay, drive, not_negative, open, tell_skipped};
use crate::{
    cli::common::DeviceKind,
    data::{Cache, Images, Level},
    train::{AdamW, Dit, DitOptions, Flow, Plan, Resume, Schedule},
};

/// What `tiny-cats train dit` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of class folders of pictures
    #[arg(default_value = "data/cats")]
    data: PathBuf,
    /// Optimizer steps
    #[arg(long, default_value_t = 200_000)]
    steps: u64,
    /// Pictures in a micro-batch; at most as many as there are pictures
    #[arg(long, default_value_t = 256)]
    batch_size: usize,
    /// Micro-batches in a step
    #[arg(long, default_value_t = 1)]
    gradient_accumulation_steps: usize,
    /// Learning rate after the warm-up
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Learning rate at the end; unset, the smaller of 1e-6 and --lr
    #[arg(long)]
    min_lr: Option<f64>,
    /// Steps of the warm-up; unset, the smaller of 10000 and 5 % of the run
    #[arg(long)]
    warmup_steps: Option<u64>,
    /// Height and width of the pictures
    #[arg(long, default_value_t = 128)]
    image_size: usize,
    /// Size of the network
    #[arg(long, default_value = "small", value_parser = clap::builder::PossibleValuesParser::new(SIZES.map(|s| s.0)))]
    size: String,
    /// Decay of the weights' moving average
    #[arg(long, default_value_t = 0.9999)]
    ema_beta: f64,
    /// The gradient's norm is cut to this; 0 cuts nothing
    #[arg(long, default_value_t = 1.0)]
    gradient_clip: f64,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// How often a label is dropped, for guidance
    #[arg(long, default_value_t = 0.1)]
    label_dropout: f64,
    /// How much pictures are changed
    #[arg(long, value_enum, default_value_t = Level::Full)]
    augmentation_level: Level,
    /// Use that many pictures only, spread over the classes
    #[arg(long)]
    limit_files: Option<usize>,
    /// Steps between training states; 0 saves the last step alone
    #[arg(long, default_value_t = 10_000)]
    save_interval: u64,
    /// Steps between sample grids; 0 for none
    #[arg(long, default_value_t = 5_000)]
    sample_interval: u64,
    /// Steps between lines of metrics.jsonl
    #[arg(long, default_value_t = 100)]
    log_interval: u64,
    /// Weight of guidance in the sample grids
    #[arg(long, default_value_t = 1.5)]
    cfg_scale: f32,
    /// Go on from this training state
    #[arg(long, value_name = "STATE")]
    resume: Option<PathBuf>,
    /// Where everything is written
    #[arg(short, long, default_value = "checkpoints", value_name = "DIR")]
    output: PathBuf,
    /// The same seed, data and processor give the same model
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto)]
    device: DeviceKind,
}

/// Runs it.
///
/// # Errors
/// When a setting makes no sense, the data cannot be read, or the run stops.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&args.label_dropout) {
        bail!("--label-dropout: expected 0 to 1, found {}", args.label_dropout);
    }
    decay("--ema-beta", args.ema_beta)?;
    not_negative(&[("--gradient-clip", args.gradient_clip), ("--weight-decay", args.weight_decay)])?;
    if !args.cfg_scale.is_finite() {
        bail!("--cfg-scale: expected a number, found {}", args.cfg_scale);
    }
    let min_lr = args.min_lr.unwrap_or(args.lr.min(1e-6));
    let schedule = Schedule::new(args.lr, min_lr, args.warmup_steps, 10_000, args.steps)?;
    let device = args.device.device()?;
    let data = open(&args.data)?;
    let network = TinyDitConfig::named(&args.size, args.image_size, data.classes.len())
        .with_context(|| format!("--size {} --image-size {}", args.size, args.image_size))?;
    let images = Images::load(&data, args.image_size as u32, args.limit_files, &Cache::Default)?;
    tell_skipped(&images.skipped);
    images.notes.iter().for_each(|note| eprintln!("{note}"));
    let batch = batch(args.batch_size, images.len());
    let plan = Plan {
        schedule,
        optimizer: AdamW {
            weight_decay: args.weight_decay,
            clip: args.gradient_clip,
            ema: args.ema_beta,
            ..AdamW::default()
        },
        batch,
        accumulation: args.gradient_accumulation_steps,
        save_interval: args.save_interval,
        sample_interval: args.sample_interval,
        log_interval: args.log_interval,
        seed: args.seed,
        output: args.output.clone(),
        resume: args.resume.clone().map_or(Resume::Never, Resume::From),
        device: device.clone(),
    };
    println!("{}: {} pictures in {} classes", args.data.display(), images.len(), images.classes.len());
    let options = DitOptions {
        network,
        flow: Flow { label_dropout: args.label_dropout, ..Flow::default() },
        augmentation: args.augmentation_level,
        guidance: args.cfg_scale,
        seed: args.seed,
    };
    drive(&mut Dit::new(options, images, device)?, &plan, None)?;
    Ok(())
}
