//! `tiny-cats train`: trains a model.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_models::{TinyDitConfig, tiny_dit::SIZES};

use super::common::DeviceKind;
use crate::{
    data::{Dataset, Images, Level},
    train::{AdamW, Dit, DitOptions, Event, Flow, Plan, Resume, Schedule, Task, train},
};

/// What `tiny-cats train` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Trains TinyDiT, the generator, on a folder of pictures in class folders.
    Dit(Box<DitArgs>),
}

#[derive(clap::Args, Debug)]
struct DitArgs {
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
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Dit(args) => dit(&args),
    }
}

fn dit(args: &DitArgs) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&args.label_dropout) {
        bail!("--label-dropout: expected 0 to 1, found {}", args.label_dropout);
    }
    if !(0.0..1.0).contains(&args.ema_beta) {
        bail!("--ema-beta: expected 0 or more and less than 1, found {}", args.ema_beta);
    }
    for (flag, value) in [("--gradient-clip", args.gradient_clip), ("--weight-decay", args.weight_decay)] {
        if !(value >= 0.0 && value.is_finite()) {
            bail!("{flag}: expected 0 or a positive number, found {value}");
        }
    }
    if !args.cfg_scale.is_finite() {
        bail!("--cfg-scale: expected a number, found {}", args.cfg_scale);
    }
    let min_lr = args.min_lr.unwrap_or(args.lr.min(1e-6));
    let schedule = Schedule::new(args.lr, min_lr, args.warmup_steps, 10_000, args.steps)?;
    let device = args.device.device()?;
    let data = Dataset::open(&args.data)?;
    let network = TinyDitConfig::named(&args.size, args.image_size, data.classes.len())
        .with_context(|| format!("--size {} --image-size {}", args.size, args.image_size))?;
    let images = Images::load(&data, args.image_size as u32, args.limit_files)?;
    for (path, why) in &images.skipped {
        eprintln!("skipped {}: {why}", path.display());
    }
    let batch = args.batch_size.min(images.len());
    if batch < args.batch_size {
        eprintln!("--batch-size {}: there are only {batch} pictures, so that is the batch", args.batch_size);
    }
    let plan = Plan {
        schedule,
        optimizer: AdamW {
            weight_decay: args.weight_decay,
            clip: args.gradient_clip,
            ema: args.ema_beta,
            ..AdamW::default()
        },
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
        batch,
        guidance: args.cfg_scale,
        seed: args.seed,
    };
    drive(&mut Dit::new(options, images, device)?, &plan)
}

/// Tells glibc to keep freed memory for the next step instead of returning it to the system, which would clear every page anew: a
/// step of a small network takes a quarter less time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt changes a limit of the allocator and touches no memory of ours.
        unsafe { libc::mallopt(option, i32::MAX) };
    }
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TOP_PAD, 256 << 20) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Trains with a progress bar on a terminal, with a line every --log-interval steps elsewhere.
fn drive(task: &mut dyn Task, plan: &Plan) -> anyhow::Result<()> {
    let bar = ProgressBar::new(plan.schedule.steps).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left",
    )?);
    let terminal = std::io::stderr().is_terminal();
    if terminal {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    keep_freed_memory();
    let mut average = None;
    let published = train(task, plan, &mut |event| match event {
        Event::Begin { step, steps, parameters } => {
            println!("{parameters} parameters, steps {step} to {steps}");
            bar.set_position(step);
            bar.reset_eta();
        }
        Event::Step { step, loss, rate, norm, speed } => {
            let smooth = average.map_or(loss, |a| 0.98 * a + 0.02 * loss);
            average = Some(smooth);
            bar.set_position(step);
            bar.set_message(format!("loss {smooth:.4}  {speed:.1} pictures/s"));
            if !terminal && (step.is_multiple_of(plan.log_interval.max(1)) || step == plan.schedule.steps) {
                println!(
                    "step {step}  loss {smooth:.4}  lr {rate:.2e}  gradient {norm:.3}  {speed:.1} pictures/s"
                );
            }
        }
        Event::Evaluated { step, score, best } => bar.suspend(|| {
            println!(
                "step {step}  {} {:.4}{}",
                score.name,
                score.value,
                if best { ", the best so far" } else { "" }
            );
        }),
        Event::Note(text) => bar.suspend(|| eprintln!("{text}")),
        Event::Wrote(path) => bar.suspend(|| println!("wrote {}", path.display())),
    });
    bar.finish_and_clear();
    let [torch, safetensors] = published?;
    println!("finished: {} and {}", torch.display(), safetensors.display());
    Ok(())
}
