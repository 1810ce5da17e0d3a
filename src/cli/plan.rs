//! `tiny-cats plan`: estimates what a training takes before it starts.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::{Value, json};
use tiny_cats_models::NetworkConfig;

use super::{
    common::{pretty_json, print},
    table::table,
    train::{ImageCounts, classifier, dit},
};
use crate::{
    cloud::CloudSettings,
    data::{BREEDS, Dataset},
    plan::{
        Bottleneck, Calibration, Estimate, Feasibility, Gpu, GpuModel, Memory, Prices, Requirements,
        SpeedSource, Workload, assumptions, calibrate, choose, estimate, gpu_models,
    },
};

/// The arguments of `tiny-cats plan`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Plans a training, with the flags of `tiny-cats train`.
    Train(Train),
    /// Prints the hourly prices.
    Prices {
        /// TOML price list to use instead of the built-in one
        #[arg(long, value_name = "FILE")]
        prices: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args, Debug)]
struct Train {
    #[command(subcommand)]
    task: TaskCommand,
}

#[derive(clap::Subcommand, Debug)]
enum TaskCommand {
    /// TinyDiT, the generator.
    Dit(Box<TaskArgs<dit::Args>>),
    /// A ResNet, the classifier.
    Classifier(Box<TaskArgs<classifier::Args>>),
}

#[derive(clap::Args, Debug)]
struct TaskArgs<T: clap::Args> {
    #[command(flatten)]
    train: T,
    #[command(flatten)]
    gpu_args: GpuArgs,
    /// Train for 20 steps on this machine, on synthetic cats, and print how long the whole run would take here
    #[arg(long, help_heading = "Plan")]
    calibrate: bool,
    /// Print JSON
    #[arg(long, help_heading = "Plan")]
    json: bool,
}

/// The GPUs, prices and data that a training is planned for.
#[derive(clap::Args, Clone, Debug)]
pub struct GpuArgs {
    /// GPUs by Modal's names, separated by commas, the preferred one first; several of a kind as A100:4 [default: all; of these, `cloud
    /// train` takes the cheapest that is done overnight]
    #[arg(long, value_delimiter = ',', value_name = "GPU", help_heading = "Plan")]
    pub gpu: Vec<String>,
    /// TOML price list to use instead of the built-in one
    #[arg(long, value_name = "FILE", help_heading = "Plan")]
    pub prices: Option<PathBuf>,
    /// Total number of images, if the data is not on this machine
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pub pictures: Option<usize>,
    /// Number of classes, if the data is not on this machine
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pub classes: Option<usize>,
}

/// Classes and images of the cat heads that `download` and `prepare` make of the Oxford-IIIT Pet Dataset, for the generator.
pub const HEADS: [usize; 2] = [BREEDS.len(), 1_082];
/// Classes and images of the whole photographs in the same data set, with dogs as another class, for the classifier.
pub const PHOTOS: [usize; 2] = [BREEDS.len() + 1, 2_403];

/// The maximum of `--pictures`; no data set is larger.
const MAX_IMAGES: usize = 1 << 32;

/// The number of steps that `--calibrate` measures.
const CALIBRATION_STEPS: u64 = 20;

/// Runs the subcommand.
///
/// # Errors
/// If a setting is invalid, or nothing can be planned.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Prices { prices, json } => print(&list(&load(prices.as_deref())?, *json)?),
        Command::Train(Train { task: TaskCommand::Dit(of) }) => {
            of.train.validate()?;
            let (pictures, about) = of.gpu_args.pictures(of.train.data(), HEADS)?;
            print(&plan(&of.train.workload(&pictures)?, about, of, || of.train.device())?)
        }
        Command::Train(Train { task: TaskCommand::Classifier(of) }) => {
            of.train.validate()?;
            let (pictures, about) = of.gpu_args.pictures(of.train.data(), PHOTOS)?;
            print(&plan(&of.train.workload(&pictures)?, about, of, || of.train.device())?)
        }
    }
}

fn load(prices: Option<&Path>) -> anyhow::Result<Prices> {
    Ok(prices.map_or_else(|| Ok(Prices::listed()), Prices::load)?)
}

impl GpuArgs {
    /// The requested GPUs, or one of each kind.
    ///
    /// # Errors
    /// If there is no such GPU.
    pub fn gpus(&self) -> anyhow::Result<Vec<Gpu>> {
        if self.gpu.is_empty() {
            return Ok(gpu_models().iter().map(Gpu::one).collect());
        }
        Ok(self.gpu.iter().map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
    }

    /// The price list.
    ///
    /// # Errors
    /// If the price list is invalid.
    pub fn prices(&self) -> anyhow::Result<Prices> {
        load(self.prices.as_deref())
    }

    /// The number of images, and a line that describes it: from the flags, or counted in `data`, or `usual` classes and images.
    ///
    /// # Errors
    /// If the data exists and cannot be read.
    pub fn pictures(&self, data: &Path, usual: [usize; 2]) -> anyhow::Result<(ImageCounts, String)> {
        let said = self.classes.is_some() || self.pictures.is_some();
        if !said && data.exists() {
            let pictures = ImageCounts::of(&Dataset::open(data)?);
            return Ok((pictures, format!("{}: {}", data.display(), describe_images(&pictures))));
        }
        let [classes, all] = [self.classes.unwrap_or(usual[0]), self.pictures.unwrap_or(usual[1])];
        if all > MAX_IMAGES {
            bail!("--pictures: expected at most {MAX_IMAGES}, found {all}");
        }
        if classes == 0 || all / 3 < classes {
            bail!("--pictures: expected at least three for each of {classes} classes, found {all}");
        }
        let (validation, test) = (all / 10, all / 10);
        let pictures = ImageCounts { classes, train: all - validation - test, validation, test };
        let why = if said {
            "as was said".to_owned()
        } else {
            format!("{} is not here: assumed, as of the Oxford-IIIT Pet Dataset", data.display())
        };
        Ok((pictures, format!("{why}: {}", describe_images(&pictures))))
    }
}

fn describe_images(pictures: &ImageCounts) -> String {
    let ImageCounts { classes, train, validation, test } = pictures;
    format!("{train} pictures of {classes} classes to train on, {validation} to validate, {test} to test")
}

fn plan<T: clap::Args>(
    workload: &Workload,
    about: String,
    of: &TaskArgs<T>,
    device: impl FnOnce() -> anyhow::Result<Device>,
) -> anyhow::Result<String> {
    let (settings, prices) = (CloudSettings::default(), of.gpu_args.prices()?);
    let gpus = of.gpu_args.gpus()?;
    let estimates: Vec<Estimate> =
        gpus.iter().map(|gpu| estimate(workload, gpu, &settings, &prices)).collect::<Result<_, _>>()?;
    let demand = workload.requirements(true)?;
    let other = Workload {
        tape: tiny_cats_models::TapeOptions { checkpoint: !workload.tape.checkpoint, ..workload.tape },
        ..workload.clone()
    };
    let other = other.requirements(true)?.memory;
    let here = if of.calibrate { Some(measure(workload, &device()?)?) } else { None };
    if of.json {
        return pretty_json(&report(workload, &demand, &estimates, here.as_ref(), &settings, &prices));
    }
    let mut out = String::new();
    describe(&mut out, workload, &about, &demand, &other)?;
    out.push('\n');
    out += &estimates_table(&estimates, workload);
    out.push('\n');
    match choose(&estimates) {
        None => writeln!(out, "none of these can train it as it is")?,
        Some([cheapest, fastest, chosen]) => {
            let name = |i: usize| {
                let dollars = estimates[i]
                    .expected_dollars()
                    .map_or(", no price".into(), |d| format!(", {}", money(d)));
                format!("{} ({}{dollars})", estimates[i].gpu, hours(estimates[i].expected_hours))
            };
            writeln!(out, "cheapest {}; fastest {}", name(cheapest), name(fastest))?;
            let (gpu, most) = (&estimates[chosen].gpu, assumptions::OVERNIGHT_H);
            writeln!(
                out,
                "chosen   {gpu}: the cheapest that takes no more than {most} h, or else the fastest"
            )?;
        }
    }
    if let Some(here) = &here {
        let seconds = here.step_seconds * workload.steps as f64;
        let more = workload.eval_flops / here.flops;
        writeln!(
            out,
            "here     {:.3} s a step of {} pictures, {}FLOP/s, measured in {} steps: {} in all; {:.1} ns a value to prepare",
            here.step_seconds,
            here.batch as u64 * workload.accumulation as u64,
            quantity(here.flops),
            here.steps,
            hours((seconds + more) / 3600.0),
            here.prepare_ns
        )?;
    }
    out.push('\n');
    out += &footnotes(&settings, &prices, &estimates);
    Ok(out)
}

fn measure(workload: &Workload, device: &Device) -> anyhow::Result<Calibration> {
    let bar = indicatif::ProgressBar::new(0);
    let measured = calibrate(workload, device, CALIBRATION_STEPS, &mut |step, steps| {
        bar.set_length(steps);
        bar.set_position(step);
    });
    bar.finish_and_clear();
    measured.context("--calibrate")
}

fn describe(
    out: &mut String,
    workload: &Workload,
    about: &str,
    demand: &Requirements,
    other: &Memory,
) -> std::fmt::Result {
    let Workload { network, side, steps, batch, tape, .. } = workload;
    let parameters = demand.parameters as f64 / 1e6;
    let name = match network {
        NetworkConfig::TinyDit(config) => {
            format!(
                "TinyDiT of width {}, depth {}, patches of {} px",
                config.width, config.depth, config.patch_size
            )
        }
        NetworkConfig::ResNet(config) => config.to_string(),
    };
    writeln!(out, "network  {name}, {side} px: {parameters:.1} million parameters")?;
    writeln!(out, "data     {about}")?;
    writeln!(
        out,
        "work     {steps} steps of {} pictures, {}FLOP each, in {}; {}FLOP in all, {:.0} % of it to evaluate and draw samples",
        workload.items(),
        quantity(demand.step_flops as f64),
        tape.precision,
        quantity(demand.run_flops),
        100.0 * workload.eval_flops / demand.run_flops
    )?;
    let Memory { weights, gradients, moments, averages, activations, workspace, batch: pictures } =
        demand.memory;
    let (with, without) = if tape.checkpoint { ("without", other) } else { ("with", other) };
    writeln!(
        out,
        "memory   weights {}, gradients {}, moments {}, averages {}, batch {}, activations {} ({} {with} --gradient-checkpointing), \
         or then workspace {}: {} for micro-batches of {batch}",
        bytes(weights),
        bytes(gradients),
        bytes(moments),
        bytes(averages),
        bytes(pictures),
        bytes(activations),
        bytes(without.activations),
        bytes(workspace),
        bytes(demand.memory.total())
    )
}

fn estimates_table(estimates: &[Estimate], workload: &Workload) -> String {
    let head = [
        "gpu",
        "memory",
        "largest batch",
        "steps/s",
        "held up by",
        "hours",
        "$",
        "hours expected",
        "$ expected",
        "timeout",
        "retries",
        "",
    ];
    let row = |e: &Estimate| {
        let GpuModel { memory_gib, .. } = e.gpu.model;
        let known = |text: String| if e.verdict == Feasibility::Fits { text } else { String::new() };
        let dollars = |d: Option<f64>| known(d.map_or_else(String::new, |d| format!("{d:.2}")));
        let limit = match (e.limit, &e.source) {
            (Bottleneck::Launches, _) => "launching kernels".to_owned(),
            (Bottleneck::Pictures, _) => "cores, preparing pictures".to_owned(),
            (Bottleneck::Arithmetic, SpeedSource::Assumed) => {
                let share = e.gpu.model.efficiency.of(workload.tape.precision);
                format!("GPU, assumed MFU {:.0} %", 100.0 * share)
            }
            (Bottleneck::Arithmetic, SpeedSource::Measured(how)) => format!("GPU, measured: {how}"),
        };
        vec![
            e.gpu.to_string(),
            bytes((memory_gib * f64::from(1 << 30)) as u64 * e.gpu.count as u64),
            e.largest_batch.to_string(),
            known(format!("{:.2}", e.steps_per_second)),
            known(limit),
            known(format!("{:.2}", e.hours)),
            dollars(e.dollars()),
            known(format!("{:.2}", e.expected_hours)),
            dollars(e.expected_dollars()),
            known(timeout(e.timeout_s)),
            known(e.retries.to_string()),
            e.verdict.reason().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = estimates.iter().map(row).collect();
    table(&head, &rows)
}

/// The rules behind the figures.
fn footnotes(settings: &CloudSettings, prices: &Prices, estimates: &[Estimate]) -> String {
    let mut out = String::new();
    let (container, most) = (settings.container, settings.time.longest_attempt_s / 3600.0);
    let memory = container.memory_mib / 1024.0;
    let _ = writeln!(
        out,
        "Prices: {}, {}, with {} cores and {memory} GiB of memory; others by --prices.\n\
         Expected: a preemption every {:.0} h (assumed), which costs a new start of {:.0} s and {:.0} s to save.\n\
         Timeout: {} times what is expected and {:.0} s to stop in, at most {most} h an attempt; {} retries, and one for each further attempt.",
        prices.source,
        prices.date,
        container.cpu,
        1.0 / assumptions::PREEMPTIONS_AN_HOUR,
        assumptions::START_S,
        assumptions::PREEMPTED_S,
        assumptions::TIMEOUT_MARGIN,
        settings.time.stop_before_s,
        settings.retries.default,
    );
    if estimates.iter().any(|e| e.source == SpeedSource::Assumed) {
        out +=
            "Assumed MFU: nobody has measured this program on that card; the share of its peak is a guess.\n";
    }
    out
}

fn report(
    workload: &Workload,
    demand: &Requirements,
    estimates: &[Estimate],
    here: Option<&Calibration>,
    settings: &CloudSettings,
    prices: &Prices,
) -> Value {
    let each = estimates.iter().map(|e| {
        let mut value = json!(e);
        value["dollars"] = json!(e.dollars());
        value["expected_dollars"] = json!(e.expected_dollars());
        value
    });
    let name = |i: usize| estimates[i].gpu.to_string();
    let choice = choose(estimates);
    json!({
        "network": workload.network,
        "steps": workload.steps,
        "items_per_step": workload.items(),
        "demand": demand,
        "memory_bytes": demand.memory.total(),
        "gpus": each.collect::<Vec<_>>(),
        "cheapest": choice.map(|c| name(c[0])),
        "fastest": choice.map(|c| name(c[1])),
        "chosen": choice.map(|c| name(c[2])),
        "here": here,
        "prices": prices,
        "rules": {
            "timeout_margin": assumptions::TIMEOUT_MARGIN,
            "start_s": assumptions::START_S,
            "preemptions_an_hour": assumptions::PREEMPTIONS_AN_HOUR,
            "preempted_s": assumptions::PREEMPTED_S,
            "overnight_h": assumptions::OVERNIGHT_H,
            "together": assumptions::MULTI_GPU_EFFICIENCY,
            "longest_attempt_s": settings.time.longest_attempt_s,
            "stop_before_s": settings.time.stop_before_s,
        },
    })
}

fn list(prices: &Prices, json: bool) -> anyhow::Result<String> {
    if json {
        let gpus: serde_json::Map<String, Value> = gpu_models()
            .iter()
            .filter_map(|model| {
                let hour = prices.gpus.get(&model.name)?;
                Some((
                    model.name.clone(),
                    json!({"hour": hour, "device": model.device, "aliases": model.aliases}),
                ))
            })
            .collect();
        let mut said = json!(prices);
        said["gpus"] = json!(gpus);
        return pretty_json(&said);
    }
    let settings = CloudSettings::default();
    let row = |model: &'static GpuModel| {
        let (gpu, price) = (Gpu::one(model), prices.gpus.get(&model.name));
        let text = |dollars: Option<f64>| dollars.map_or_else(|| "unknown".to_owned(), |d| format!("{d:.2}"));
        vec![model.name.clone(), text(price.copied()), text(prices.hourly_price(&gpu, &settings.container))]
    };
    let rows: Vec<Vec<String>> = gpu_models().iter().map(row).collect();
    let said = table(&["gpu", "$/h", "$/h of a container"], &rows);
    Ok(format!("{said}{}, {}\n", prices.source, prices.date))
}

/// A large number with three digits.
fn quantity(value: f64) -> String {
    let units = [(1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M")];
    let (size, unit) = units.into_iter().find(|(size, _)| value >= *size).unwrap_or((1.0, " "));
    let value = value / size;
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}{unit}")
}

fn bytes(bytes: u64) -> String {
    quantity((bytes as f64).max(1e6)) + "B"
}

/// Formats hours for people.
pub fn hours(hours: f64) -> String {
    if hours < 1.0 { format!("{:.0} min", (60.0 * hours).ceil()) } else { format!("{hours:.1} h") }
}

/// Formats dollars for people.
pub fn money(dollars: f64) -> String {
    format!("${dollars:.2}")
}

fn timeout(seconds: u64) -> String {
    format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60)
}
