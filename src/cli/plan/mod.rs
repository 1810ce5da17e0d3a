//! `tiny-cats plan`: estimates the memory, time and cost of a training before it starts.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::{Value, json};

use super::{
    common::{open_device, pretty_json, print},
    table::table,
    train::{TrainArgs, flag_error},
};
use crate::{
    cloud::CloudSettings,
    data::Dataset,
    plan::{
        Bottleneck, Calibration, Estimate, Feasibility, Gpu, GpuModel, Memory, Prices, Requirements,
        SpeedSource, Workload, assumptions, calibrate, choose, estimate, gpu_models,
    },
    recipes::{ClassifierSettings, DitSettings, ImageCounts, Recipe, calibration_task, describe_network},
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
    Train(PlanArgs),
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
struct PlanArgs {
    #[command(subcommand)]
    task: TaskCommand,
}

#[derive(clap::Subcommand, Debug)]
enum TaskCommand {
    /// TinyDiT, the generator.
    Dit(Box<TaskArgs<TrainArgs<DitSettings>>>),
    /// A ResNet, the classifier.
    Classifier(Box<TaskArgs<TrainArgs<ClassifierSettings>>>),
}

#[derive(clap::Args, Debug)]
struct TaskArgs<T: clap::Args> {
    #[command(flatten)]
    train: T,
    #[command(flatten)]
    gpu_args: GpuArgs,
    /// Train for 20 steps on this machine, on synthetic cats, and print the estimated time of the whole run on it
    #[arg(long, help_heading = "Plan")]
    calibrate: bool,
    /// Print JSON
    #[arg(long, help_heading = "Plan")]
    json: bool,
}

/// The GPUs, prices and data of an estimate.
#[derive(clap::Args, Clone, Debug)]
pub struct GpuArgs {
    /// Names of GPUs at Modal, separated by commas, the preferred one first; A100:4 stands for four [default: all; `cloud train` uses the
    /// cheapest that finishes overnight]
    #[arg(long, value_delimiter = ',', value_name = "GPU", help_heading = "Plan")]
    pub gpu: Vec<String>,
    /// TOML price list to use instead of the built-in one
    #[arg(long, value_name = "FILE", help_heading = "Plan")]
    pub prices: Option<PathBuf>,
    /// Total number of images, if the data is not on this machine
    #[arg(long = "pictures", value_name = "N", help_heading = "Plan")]
    pub images: Option<usize>,
    /// Number of classes, if the data is not on this machine
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pub classes: Option<usize>,
}

/// Maximum of `--images`, more than any data set has.
const MAX_IMAGES: usize = 1 << 32;

/// Number of steps that `--calibrate` measures.
const CALIBRATION_STEPS: u64 = 20;

/// Runs the subcommand.
///
/// # Errors
/// If a setting is invalid, or nothing can be planned.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Prices { prices, json } => print(&list_prices(&load_prices(prices.as_deref())?, *json)?),
        Command::Train(PlanArgs { task: TaskCommand::Dit(args) }) => print(&plan(args)?),
        Command::Train(PlanArgs { task: TaskCommand::Classifier(args) }) => print(&plan(args)?),
    }
}

fn load_prices(prices: Option<&Path>) -> anyhow::Result<Prices> {
    Ok(prices.map_or_else(|| Ok(Prices::embedded()), Prices::load)?)
}

impl GpuArgs {
    /// The requested GPUs, or one of each model.
    ///
    /// # Errors
    /// If a GPU is unknown.
    pub fn gpus(&self) -> anyhow::Result<Vec<Gpu>> {
        if self.gpu.is_empty() {
            return Ok(gpu_models().iter().map(Gpu::single).collect());
        }
        Ok(self.gpu.iter().map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
    }

    /// The price list.
    ///
    /// # Errors
    /// If the price list is invalid.
    pub fn prices(&self) -> anyhow::Result<Prices> {
        load_prices(self.prices.as_deref())
    }

    /// Returns the number of images and its description: from the flags, from the data of `recipe`, or its default.
    ///
    /// # Errors
    /// If the data exists but cannot be read.
    pub fn image_counts<R: Recipe>(&self, recipe: &R) -> anyhow::Result<(ImageCounts, String)> {
        let (data, default_counts) = (recipe.data(), R::default_counts());
        let is_set = self.classes.is_some() || self.images.is_some();
        if !is_set && data.exists() {
            let images = ImageCounts::from_dataset(&Dataset::open(data)?);
            return Ok((images, format!("{}: {}", data.display(), describe_images(&images))));
        }
        let [classes, total] =
            [self.classes.unwrap_or(default_counts[0]), self.images.unwrap_or(default_counts[1])];
        if total > MAX_IMAGES {
            bail!("--pictures: expected at most {MAX_IMAGES}, found {total}");
        }
        if classes == 0 || total / 3 < classes {
            bail!("--pictures: expected at least 3 for each of {classes} classes, found {total}");
        }
        let (validation, test) = (total / 10, total / 10);
        let images = ImageCounts { classes, train: total - validation - test, validation, test };
        let origin = if is_set {
            "from the flags".to_owned()
        } else {
            format!("{} does not exist; assuming the Oxford-IIIT Pet Dataset", data.display())
        };
        Ok((images, format!("{origin}: {}", describe_images(&images))))
    }
}

fn describe_images(images: &ImageCounts) -> String {
    let ImageCounts { classes, train, validation, test } = images;
    format!(
        "{train} images of {classes} classes for training, {validation} for validation, {test} for testing"
    )
}

fn plan<R: Recipe>(args: &TaskArgs<TrainArgs<R>>) -> anyhow::Result<String>
where
    TrainArgs<R>: clap::Args,
{
    let recipe = args.train.valid_settings()?;
    let (images, data_description) = args.gpu_args.image_counts(recipe)?;
    let workload = &recipe.workload(&images).map_err(flag_error::<R>)?;
    let (settings, prices) = (CloudSettings::default(), args.gpu_args.prices()?);
    let gpus = args.gpu_args.gpus()?;
    let estimates: Vec<Estimate> =
        gpus.iter().map(|gpu| estimate(workload, gpu, &settings, &prices)).collect::<Result<_, _>>()?;
    let requirements = workload.requirements(true)?;
    let alternative = Workload {
        tape: tiny_cats_models::TapeOptions { checkpoint: !workload.tape.checkpoint, ..workload.tape },
        ..workload.clone()
    };
    let alternative = alternative.requirements(true)?.memory;
    let calibration = if args.calibrate {
        // One process is measured, whatever their number.
        Some(calibrate_workload(workload, &open_device(recipe.run().device)?)?)
    } else {
        None
    };
    if args.json {
        return pretty_json(&report_json(
            workload,
            &requirements,
            &estimates,
            calibration.as_ref(),
            &settings,
            &prices,
        ));
    }
    let mut output = String::new();
    write_workload(&mut output, workload, &data_description, &requirements, &alternative)?;
    output.push('\n');
    output += &estimates_table(&estimates, workload);
    output.push('\n');
    write_choice(&mut output, &estimates)?;
    if let Some(calibration) = &calibration {
        write_calibration(&mut output, workload, calibration)?;
    }
    output.push('\n');
    output += &footnotes(&settings, &prices, &estimates);
    Ok(output)
}

/// Writes the cheapest, the fastest and the recommended GPU.
fn write_choice(output: &mut String, estimates: &[Estimate]) -> std::fmt::Result {
    let Some([cheapest, fastest, chosen]) = choose(estimates) else {
        return writeln!(output, "no GPU can train this with these settings");
    };
    let name = |i: usize| {
        let dollars = estimates[i]
            .expected_dollars()
            .map_or(", no price".into(), |d| format!(", {}", format_dollars(d)));
        format!("{} ({}{dollars})", estimates[i].gpu, format_hours(estimates[i].expected_hours))
    };
    writeln!(output, "cheapest {}; fastest {}", name(cheapest), name(fastest))?;
    let (gpu, max_hours) = (&estimates[chosen].gpu, assumptions::OVERNIGHT_H);
    writeln!(output, "chosen   {gpu}: the cheapest within {max_hours} h, or the fastest")
}

/// Writes the measured speed of this machine.
fn write_calibration(
    output: &mut String,
    workload: &Workload,
    calibration: &Calibration,
) -> std::fmt::Result {
    let seconds = calibration.step_seconds * workload.steps as f64;
    let evaluation_seconds = workload.eval_flops / calibration.flops;
    writeln!(
        output,
        "here     {:.3} s per step of {} images, {}FLOP/s, measured over {} steps; {} in total; {:.1} ns per value to prepare",
        calibration.step_seconds,
        calibration.batch as u64 * workload.accumulation as u64,
        format_quantity(calibration.flops),
        calibration.steps,
        format_hours((seconds + evaluation_seconds) / 3600.0),
        calibration.prepare_ns
    )
}

fn calibrate_workload(workload: &Workload, device: &Device) -> anyhow::Result<Calibration> {
    let bar = indicatif::ProgressBar::new(0);
    let run = || -> anyhow::Result<Calibration> {
        let folder = tempfile::tempdir().with_context(|| std::env::temp_dir().display().to_string())?;
        let mut task = calibration_task(workload, folder.path(), device)?;
        let observe = &mut |step, steps| {
            bar.set_length(steps);
            bar.set_position(step);
        };
        Ok(calibrate(&mut *task, workload, device, CALIBRATION_STEPS, observe)?)
    };
    let result = run();
    bar.finish_and_clear();
    result.context("--calibrate")
}

fn write_workload(
    output: &mut String,
    workload: &Workload,
    data_description: &str,
    requirements: &Requirements,
    alternative: &Memory,
) -> std::fmt::Result {
    let Workload { network, side, steps, batch, tape, .. } = workload;
    let parameters = requirements.parameters as f64 / 1e6;
    let name = describe_network(network);
    writeln!(output, "network  {name}, {side} px: {parameters:.1} million parameters")?;
    writeln!(output, "data     {data_description}")?;
    writeln!(
        output,
        "work     {steps} steps of {} images, {}FLOP each, in {}; {}FLOP in total, {:.0} % of it for evaluations and samples",
        workload.items(),
        format_quantity(requirements.step_flops as f64),
        tape.precision,
        format_quantity(requirements.run_flops),
        100.0 * workload.eval_flops / requirements.run_flops
    )?;
    let Memory { weights, gradients, moments, averages, activations, workspace, batch: images } =
        requirements.memory;
    let (with, without) = if tape.checkpoint { ("without", alternative) } else { ("with", alternative) };
    writeln!(
        output,
        "memory   weights {}, gradients {}, moments {}, averages {}, batch {}, activations {} ({} {with} --gradient-checkpointing), \
         then workspace {}; {} in total for micro-batches of {batch}",
        format_bytes(weights),
        format_bytes(gradients),
        format_bytes(moments),
        format_bytes(averages),
        format_bytes(images),
        format_bytes(activations),
        format_bytes(without.activations),
        format_bytes(workspace),
        format_bytes(requirements.memory.total())
    )
}

fn estimates_table(estimates: &[Estimate], workload: &Workload) -> String {
    let headings = [
        "gpu",
        "memory",
        "largest batch",
        "steps/s",
        "limited by",
        "hours",
        "$",
        "expected hours",
        "expected $",
        "timeout",
        "retries",
        "",
    ];
    let row = |e: &Estimate| {
        let GpuModel { memory_gib, .. } = e.gpu.model;
        let if_feasible = |text: String| if e.verdict == Feasibility::Fits { text } else { String::new() };
        let dollars = |d: Option<f64>| if_feasible(d.map_or_else(String::new, |d| format!("{d:.2}")));
        let limit = match (e.limit, &e.source) {
            (Bottleneck::Launches, _) => "kernel launches".to_owned(),
            (Bottleneck::ImagePreparation, _) => "CPU, preparing images".to_owned(),
            (Bottleneck::Arithmetic, SpeedSource::Assumed) => {
                let share = e.gpu.model.efficiency.value(workload.tape.precision);
                format!("GPU, assumed MFU {:.0} %", 100.0 * share)
            }
            (Bottleneck::Arithmetic, SpeedSource::Measured(method)) => format!("GPU, measured: {method}"),
        };
        vec![
            e.gpu.to_string(),
            format_bytes((memory_gib * f64::from(1 << 30)) as u64 * e.gpu.count as u64),
            e.largest_batch.to_string(),
            if_feasible(format!("{:.2}", e.steps_per_second)),
            if_feasible(limit),
            if_feasible(format!("{:.2}", e.hours)),
            dollars(e.dollars()),
            if_feasible(format!("{:.2}", e.expected_hours)),
            dollars(e.expected_dollars()),
            if_feasible(format_timeout(e.timeout_s)),
            if_feasible(e.retries.to_string()),
            e.verdict.reason().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = estimates.iter().map(row).collect();
    table(&headings, &rows)
}

/// Explains the assumptions of the estimates.
fn footnotes(settings: &CloudSettings, prices: &Prices, estimates: &[Estimate]) -> String {
    let mut output = String::new();
    let (container, max_attempt_h) = (settings.container, settings.time.longest_attempt_s / 3600.0);
    let memory = container.memory_mib / 1024.0;
    let _ = writeln!(
        output,
        "Prices: {}, {}, with {} cores and {memory} GiB of memory; --prices replaces them.\n\
         Expected: a preemption every {:.0} h (assumed), which costs {:.0} s for a new start and {:.0} s to save.\n\
         Timeout: {} times the expected time plus {:.0} s to stop, at most {max_attempt_h} h per attempt; {} retries, plus one per further attempt.",
        prices.source,
        prices.date,
        container.cpu,
        1.0 / assumptions::PREEMPTIONS_PER_HOUR,
        assumptions::START_S,
        assumptions::PREEMPTION_S,
        assumptions::TIMEOUT_MARGIN,
        settings.time.stop_before_s,
        settings.retries.default,
    );
    if estimates.iter().any(|e| e.source == SpeedSource::Assumed) {
        output += "Assumed MFU: this program has not been measured on that GPU; the share of its peak speed is an estimate.\n";
    }
    output
}

fn report_json(
    workload: &Workload,
    requirements: &Requirements,
    estimates: &[Estimate],
    calibration: Option<&Calibration>,
    settings: &CloudSettings,
    prices: &Prices,
) -> Value {
    let gpus = estimates.iter().map(|e| {
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
        "demand": requirements,
        "memory_bytes": requirements.memory.total(),
        "gpus": gpus.collect::<Vec<_>>(),
        "cheapest": choice.map(|c| name(c[0])),
        "fastest": choice.map(|c| name(c[1])),
        "chosen": choice.map(|c| name(c[2])),
        "here": calibration,
        "prices": prices,
        "rules": {
            "timeout_margin": assumptions::TIMEOUT_MARGIN,
            "start_s": assumptions::START_S,
            "preemptions_an_hour": assumptions::PREEMPTIONS_PER_HOUR,
            "preempted_s": assumptions::PREEMPTION_S,
            "overnight_h": assumptions::OVERNIGHT_H,
            "together": assumptions::MULTI_GPU_EFFICIENCY,
            "longest_attempt_s": settings.time.longest_attempt_s,
            "stop_before_s": settings.time.stop_before_s,
        },
    })
}

fn list_prices(prices: &Prices, json: bool) -> anyhow::Result<String> {
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
        let mut output = json!(prices);
        output["gpus"] = json!(gpus);
        return pretty_json(&output);
    }
    let settings = CloudSettings::default();
    let row = |model: &'static GpuModel| {
        let (gpu, price) = (Gpu::single(model), prices.gpus.get(&model.name));
        let text = |dollars: Option<f64>| dollars.map_or_else(|| "unknown".to_owned(), |d| format!("{d:.2}"));
        vec![model.name.clone(), text(price.copied()), text(prices.hourly_price(&gpu, &settings.container))]
    };
    let rows: Vec<Vec<String>> = gpu_models().iter().map(row).collect();
    let output = table(&["gpu", "$/h", "$/h per container"], &rows);
    Ok(format!("{output}{}, {}\n", prices.source, prices.date))
}

/// Formats a large number with three digits and an SI prefix.
fn format_quantity(value: f64) -> String {
    let units = [(1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M")];
    let (size, unit) = units.into_iter().find(|(size, _)| value >= *size).unwrap_or((1.0, " "));
    let value = value / size;
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}{unit}")
}

fn format_bytes(bytes: u64) -> String {
    format_quantity((bytes as f64).max(1e6)) + "B"
}

/// Formats a duration in hours or minutes.
pub fn format_hours(hours: f64) -> String {
    if hours < 1.0 { format!("{:.0} min", (60.0 * hours).ceil()) } else { format!("{hours:.1} h") }
}

/// Formats an amount in dollars.
pub fn format_dollars(dollars: f64) -> String {
    format!("${dollars:.2}")
}

fn format_timeout(seconds: u64) -> String {
    format!("{}:{:02} h", seconds / 3600, seconds % 3600 / 60)
}
