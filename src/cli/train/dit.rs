//! `tiny-cats train dit`: trains the generator.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use candle_core::Device;
use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{Network, Sizes, TinyDitConfig, tiny_dit::SIZES};

use super::{
    ImageCounts, TrainJob,
    common::{CommonArgs, MAX_STEPS},
    open_data,
    released::EXTENSIONS,
};
use crate::{
    checkpoint::InitFile,
    cli::{
        common::{interval, warn_skipped},
        logging,
    },
    data::{Dataset, Examples, ImageExamples, Images, Split},
    plan::Workload,
    plural::pluralize,
    train::{Flow, FlowMatching, FlowMatchingOptions, InitialWeightsSource, SAMPLE_ROWS, VALIDATION_DRAWS},
};

/// The arguments of `tiny-cats train dit`.
#[derive(clap::Args, Debug)]
#[command(
    args_override_self = true,
    mut_arg("batch_size", |arg| arg.default_value("256")),
    mut_arg("ema_beta", |arg| arg.default_value("0.9999")),
    mut_arg("weight_decay", |arg| arg.default_value("0")),
    mut_arg("log_interval", |arg| arg.default_value("100"))
)]
pub struct Args {
    /// Folder of class folders of images
    #[arg(default_value = "data/cats")]
    data: PathBuf,
    /// Number of optimizer steps
    #[arg(long, default_value_t = 200_000)]
    steps: u64,
    /// Height and width of the images [default: those of --init, 128]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Size of the network [default: that of --init, small]
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(SIZES.map(|s| s.0)))]
    size: Option<String>,
    /// Start from the weights of this file: a generator, whose images may be smaller. Classes that it has keep their embeddings; the
    /// others start from the mean of all
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Folder of the released files; the run's own folder is in --runs-dir
    #[arg(short, long, default_value = "checkpoints", value_name = "DIR")]
    output: PathBuf,
    /// Train on all images, including those for validation and test
    #[arg(long, help_heading = "Data")]
    no_validation: bool,
    /// Steps of the warm-up [default: the smaller of 10000 and 5 % of the run]
    #[arg(long, value_name = "STEPS", help_heading = "Method")]
    warmup_steps: Option<u64>,
    /// Share of labels that are dropped for classifier-free guidance
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Method")]
    label_dropout: f64,
    /// Steps between evaluations and saved training states; 0 saves only the last step
    #[arg(long, default_value_t = 10_000, value_name = "STEPS", help_heading = "Monitoring")]
    save_interval: u64,
    /// Steps between sample grids; 0 disables them
    #[arg(long, default_value_t = 5_000, value_name = "STEPS", help_heading = "Monitoring")]
    sample_interval: u64,
    /// Weight of guidance in the sample grids, also the recommended value in the released files
    #[arg(long, default_value_t = 2.0, value_name = "WEIGHT", help_heading = "Monitoring")]
    cfg_scale: f32,
    /// Interval of times with guidance in the sample grids, also the recommended value in the released files
    #[arg(long, default_value = "0.1,0.9", value_name = "FROM,TO", value_parser = interval, help_heading = "Monitoring")]
    cfg_interval: [f32; 2],
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// The base name of the released files.
const NAME: &str = "tinydit_final";
/// Decays of AdamW's moments.
const BETAS: [f64; 2] = [0.9, 0.95];
/// Forward passes per sample: 20 steps of Heun's two evaluations, each with two passes for guidance.
const SAMPLE_PASSES: f64 = 80.0;

impl Args {
    /// Checks the arguments.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.common.validate()?;
        if !(0.0..=1.0).contains(&self.label_dropout) {
            bail!("--label-dropout: expected 0 to 1, found {}", self.label_dropout);
        }
        if !self.cfg_scale.is_finite() {
            bail!("--cfg-scale: expected a number, found {}", self.cfg_scale);
        }
        if self.steps > MAX_STEPS {
            bail!("--steps: expected at most {MAX_STEPS}, found {}", self.steps);
        }
        // The batch size is not known yet, and the number of classes does not matter.
        self.common.schedule(self.steps, 1, self.warmup_steps, 10_000)?;
        self.network(1)?;
        Ok(())
    }

    /// The folder of the images.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The path of the released file with this extension.
    pub fn released_path(&self, extension: &str) -> PathBuf {
        self.output.join(format!("{NAME}.{extension}"))
    }

    /// The device to compute on.
    ///
    /// # Errors
    /// If it is not available.
    pub fn device(&self) -> anyhow::Result<Device> {
        self.common.device.device()
    }

    /// The network for a number of classes, from the flags or the file of `--init`.
    fn network(&self, classes: usize) -> anyhow::Result<TinyDitConfig> {
        let init_config = self.init.as_ref().map(|path| InitFile::open(path)?.tiny_dit()).transpose()?;
        let image_size =
            self.image_size.or(init_config.as_ref().map(|init_config| init_config.image_size)).unwrap_or(128);
        match (&self.size, init_config) {
            (None, Some(init_config)) => {
                // The number of patches stays the same, so larger images have larger patches.
                let patch_size = init_config.patch_size * (image_size / init_config.image_size).max(1);
                Ok(TinyDitConfig { image_size, patch_size, classes, ..init_config })
            }
            (size, _) => {
                let size = size.as_deref().unwrap_or("small");
                TinyDitConfig::named(size, image_size, classes)
                    .with_context(|| format!("--size {size} --image-size {image_size}"))
            }
        }
    }

    /// The workload of training on `images`.
    ///
    /// # Errors
    /// If the flags describe no valid network.
    pub fn workload(&self, images: &ImageCounts) -> anyhow::Result<Workload> {
        let network = self.network(images.classes)?;
        let ImageCounts { train, validation, test, .. } = images.with_limit(self.common.limit_files);
        let (train, validation) =
            if self.no_validation { (train + validation + test, 0) } else { (train, validation) };
        let averages = self.common.ema_beta.len();
        let moments = self.common.optimizer(BETAS).rule.moments();
        let count = |interval: u64| if interval == 0 { 0.0 } else { self.steps.div_ceil(interval) as f64 };
        let save_interval = if self.save_interval == 0 { self.steps } else { self.save_interval };
        let evaluations = count(save_interval) * VALIDATION_DRAWS as f64 * (validation * averages) as f64;
        let samples = count(self.sample_interval) * (SAMPLE_ROWS * network.classes) as f64 * SAMPLE_PASSES;
        let image_size = network.image_size;
        Ok(Workload {
            eval_flops: network.cost(&Sizes::new())?.flops() as f64 * (evaluations + samples),
            network: NetworkConfig::new(network)?,
            side: image_size,
            steps: self.steps,
            batch: self.common.batch_size.min(train),
            accumulation: self.common.gradient_accumulation_steps,
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
    let device = common.device()?;
    let data = open_data(&args.data)?;
    let network = args.network(data.classes.len())?;
    let load = |part: &Dataset| -> anyhow::Result<Arc<dyn Examples>> {
        let images = Images::load(part, network.image_size as u32, common.limit_files, &common.cache())?;
        warn_skipped(&images.skipped);
        images.notes.iter().for_each(|note| logging::eprint_and_log(note));
        Ok(Arc::new(ImageExamples::new(images, common.augmentation_level)))
    };
    let held_out = data.part(Split::Validation);
    let (train, validation) = if args.no_validation {
        (load(&data)?, None)
    } else {
        let validation = if held_out.files.is_empty() { None } else { Some(load(&held_out)?) };
        (load(&data.part(Split::Train))?, validation)
    };
    common.check_early_stopping(validation.as_ref().map_or(0, |images| images.count()))?;
    logging::print_and_log(&format!(
        "{}: {} in {} to train on, {} to validate",
        args.data.display(),
        pluralize(train.count(), "image"),
        pluralize(train.classes().len(), "class"),
        validation.as_ref().map_or(0, |images| images.count())
    ));
    let batch = common.batch(train.count());
    let items = batch * common.gradient_accumulation_steps;
    let schedule = common.schedule(args.steps, items, args.warmup_steps, 10_000)?;
    let intervals = [args.save_interval, args.sample_interval];
    let plan = common.train_options(job, schedule, batch, BETAS, intervals, device.clone());
    let init = args.init.clone().map(|path| {
        let (network, classes) = (network.clone(), data.classes.clone());
        InitialWeightsSource::new(path.clone(), move || InitFile::open(&path)?.generator(&network, &classes))
    });
    let options = FlowMatchingOptions {
        network,
        flow: Flow { label_dropout: args.label_dropout, ..Flow::default() },
        guidance: args.cfg_scale,
        guidance_interval: args.cfg_interval,
        best: common.early_stopping_patience.is_some(),
        seed: common.seed,
        kind: "dit",
        name: NAME.into(),
        init,
    };
    let mut task = FlowMatching::new(options, train, validation, device)?;
    super::run_training(&mut task, &plan, common, EXTENSIONS.map(|extension| args.released_path(extension)))?;
    Ok(())
}
