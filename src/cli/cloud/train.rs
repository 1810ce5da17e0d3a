//! `tiny-cats cloud train`: trains at Modal.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::{CostLimits, check_data, check_idle, find_app, read_file, run_app, run_arguments, shell_command};
use crate::{
    cli::{
        common::print,
        plan::{GpuArgs, format_dollars, format_hours},
        train::{TrainArgs, flag_error},
    },
    cloud::{CloudRecord, CloudSettings, modal},
    plan::{Estimate, Feasibility, Prices, Workload, attempts, choose, estimate},
    recipes::{ClassifierSettings, DitSettings, Recipe, config},
    train::folder::{self, Status},
};

/// The arguments of `tiny-cats cloud train`.
#[derive(clap::Args, Debug)]
pub struct Args {
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
    #[command(flatten)]
    limits: CostLimits,
}

/// Flags that the container sets, so that runs can be resumed.
const SET_BY_CONTAINER: [&str; 8] =
    ["runs-dir", "output", "resume", "max-time", "device", "cache", "no-cache", "log-file"];
/// Flags that the container receives in another form.
const PASSED_SEPARATELY: [&str; 3] = ["data", "max-retries", "gpus"];

/// Starts the training.
///
/// # Errors
/// If an argument is invalid, a requirement is missing, the cost is too high, or Modal reports an error.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.task {
        TaskCommand::Dit(args) => run_task(args),
        TaskCommand::Classifier(args) => run_task(args),
    }
}

fn run_task<R: Recipe>(args: &TaskArgs<TrainArgs<R>>) -> anyhow::Result<ExitCode>
where
    TrainArgs<R>: clap::Args,
{
    let TaskArgs { train, gpu_args, limits } = args;
    let settings = train.valid_settings()?;
    let data = volume_path(settings.data())?;
    let images = gpu_args.image_counts(settings)?;
    let workload = settings.workload(&images.0).map_err(flag_error::<R>)?;
    Training { train, settings, data, gpu_args, limits }.launch(&workload, &images.1)
}

/// Checks and returns the path of a data folder in a container, where the volume with images is mounted as `data`.
///
/// # Errors
/// If the path is not in `data`.
pub fn volume_path(data: &std::path::Path) -> anyhow::Result<String> {
    let text = data.to_str().unwrap_or_default().trim_end_matches('/');
    let is_inside = text.strip_prefix("data/").is_some_and(|rest| {
        !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
    });
    if !is_inside {
        bail!(
            "{}: expected data/NAME, such as data/cats, since images are in a volume in the cloud",
            data.display()
        );
    }
    Ok(text.to_owned())
}

/// A training to start.
struct Training<'a, R> {
    train: &'a TrainArgs<R>,
    settings: &'a R,
    data: String,
    gpu_args: &'a GpuArgs,
    limits: &'a CostLimits,
}

impl<R: Recipe> Training<'_, R> {
    fn launch(&self, workload: &Workload, data_description: &str) -> anyhow::Result<ExitCode> {
        let settings = CloudSettings::default();
        let train_arguments = self.train_arguments()?;
        let max_retries: Option<u64> =
            self.train.is_given("max-retries").then(|| self.settings.run().max_retries.into());
        self.limits.validate(max_retries.unwrap_or(0), &settings)?;
        let prices = self.limits.prices(self.gpu_args)?;
        let chosen = choose_gpus(self.gpu_args, workload, &settings, &prices)?;
        let run = self.train.process.run_id.clone();
        let has_name = run.is_some();
        let run = run.unwrap_or_else(|| {
            folder::new_run_folder(std::path::Path::new(""), R::TASK).display().to_string()
        });
        let expected = ExpectedCost::from_estimates(&chosen);
        let timeout = self.limits.timeout.map_or(expected.timeout_s, |time| time.as_secs());
        let retries = choose_retries(&chosen, timeout, max_retries, &settings)?;
        print(&format!(
            "run {run}: {}, {} expected on {} at {}, {} steps\n{} attempts of at most {}, not counting preemptions\n\
             data {data_description}\n",
            format_hours(expected.hours),
            expected.dollars.map_or("an unknown price".into(), format_dollars),
            gpu_names(&chosen),
            expected.hourly.map_or("an unknown price".into(), |dollars| format_dollars(dollars) + " an hour"),
            workload.steps,
            retries + 1,
            humantime::format_duration(Duration::from_secs(timeout)),
        ))?;
        let app = find_app()?;
        let mut arguments = run_arguments(&app, &run, self.limits.detach);
        arguments.extend(["train", R::TASK, &self.data].map(str::to_owned));
        arguments.push(format!("--run-id={run}"));
        arguments.extend(limit_flags(&chosen, timeout, retries, self.limits));
        arguments.extend(train_arguments);
        if self.limits.dry_run {
            self.check_budget(&expected, None)?;
            print(&format!("{}\n", shell_command(&arguments)))?;
            return Ok(ExitCode::SUCCESS);
        }
        modal::version()?;
        modal::run_captured(&["token", "info"])?;
        let existing = if has_name { find_existing_run(&run)? } else { None };
        if let Some(ExistingRun { record, .. }) = &existing
            && record.status == Status::Finished
            && record.steps == workload.steps
        {
            bail!("{run}: the run is finished; download it with tiny-cats cloud fetch {run}");
        }
        let remaining = existing.as_ref().map(|existing| existing.spent_and_remaining(workload.steps));
        self.check_budget(&expected, remaining)?;
        if has_name {
            check_idle(&run)?;
        }
        if std::env::var_os("TINY_CATS_S3_BUCKET").is_none() {
            check_data(&settings.app.data_volume, &self.data)?;
        }
        print(&format!(
            "tiny-cats cloud status {run} shows the status, tiny-cats cloud fetch {run} downloads the files\n"
        ))?;
        run_app(&app, &arguments)
    }

    /// The flags of `train` in the container.
    fn train_arguments(&self) -> anyhow::Result<Vec<String>> {
        let resume = Some("resume").filter(|_| self.train.process.resume != "never");
        let given = SET_BY_CONTAINER.into_iter().find(|key| self.train.is_given(key));
        if let Some(flag) = given.or(resume) {
            bail!("--{flag}: is set in the cloud, so that the run can be resumed");
        }
        if self.train.is_given("gpus") {
            bail!("--gpus: set the number with the GPU, such as --gpu A100:4");
        }
        if let Some(init) = self.settings.initial_weights() {
            volume_path(init).context("--init")?;
        }
        let excluded = [&SET_BY_CONTAINER[..], &PASSED_SEPARATELY[..]].concat();
        config::to_flags(self.settings, &excluded).map_err(flag_error::<R>)
    }

    /// Checks that the expected cost is within the limit. `remaining` is the cost so far in dollars, and the share of remaining steps.
    fn check_budget(&self, expected: &ExpectedCost, remaining: Option<(f64, f64)>) -> anyhow::Result<()> {
        let Some(max) = self.limits.max_cost else { return Ok(()) };
        let dollars =
            expected.dollars.context("--max-cost: these GPUs have no price; set one with --prices FILE")?;
        let (spent, share) = remaining.unwrap_or((0.0, 1.0));
        let dollars = spent + share * dollars;
        if dollars > max {
            let [dollars, max] = [dollars, max].map(format_dollars);
            bail!("--max-cost: the expected cost of {dollars} exceeds {max}; nothing was started");
        }
        Ok(())
    }
}

/// The number of retries: `max_retries` if the user set it, or the number that attempts of `timeout` seconds need plus the default.
///
/// # Errors
/// If the run cannot finish within them.
pub fn choose_retries(
    estimates: &[Estimate],
    timeout: u64,
    max_retries: Option<u64>,
    settings: &CloudSettings,
) -> anyhow::Result<u64> {
    let needed = estimates.iter().map(|e| attempts(e.computing_s, timeout as f64, settings));
    let needed = needed.max().unwrap_or(1) - 1;
    let max = max_retries.unwrap_or(settings.retries.max);
    if needed > max {
        let timeout = humantime::format_duration(Duration::from_secs(timeout));
        let flag = if max_retries.is_some() { "--max-retries" } else { "--timeout" };
        bail!("{flag}: expected at least {} attempts of {timeout}, found {}", needed + 1, max + 1);
    }
    Ok(max_retries.unwrap_or((needed + settings.retries.default).min(max)))
}

/// The expected cost on any of several GPUs, as the maximum of each value.
pub struct ExpectedCost {
    /// Billed hours.
    pub hours: f64,
    /// Total cost in dollars; `None` if a GPU has no price.
    pub dollars: Option<f64>,
    /// Price in dollars per hour; `None` if a GPU has no price.
    pub hourly: Option<f64>,
    /// Timeout of an attempt in seconds.
    pub timeout_s: u64,
}

impl ExpectedCost {
    /// Combines the estimates for several GPUs.
    pub fn from_estimates(estimates: &[Estimate]) -> Self {
        let max_of = |value: &dyn Fn(&Estimate) -> f64| estimates.iter().map(value).fold(0.0, f64::max);
        let priced = estimates.iter().all(|e| e.hourly.is_some());
        Self {
            hours: max_of(&|e| e.expected_hours),
            dollars: priced.then(|| max_of(&|e| e.expected_dollars().unwrap_or(0.0))),
            hourly: priced.then(|| max_of(&|e| e.hourly.unwrap_or(0.0))),
            timeout_s: estimates.iter().map(|e| e.timeout_s).max().unwrap_or(0),
        }
    }
}

/// Estimates the workload on the requested GPUs, in their order, or on the recommended one.
///
/// # Errors
/// If a GPU is unknown or cannot train the workload.
pub fn choose_gpus(
    gpu_args: &GpuArgs,
    workload: &Workload,
    settings: &CloudSettings,
    prices: &Prices,
) -> anyhow::Result<Vec<Estimate>> {
    let gpus = gpu_args.gpus()?;
    let mut estimates: Vec<Estimate> =
        gpus.iter().map(|gpu| estimate(workload, gpu, settings, prices)).collect::<Result<_, _>>()?;
    if gpu_args.gpu.is_empty() {
        let [.., chosen] =
            choose(&estimates).context("no GPU can train this; tiny-cats plan train shows the reasons")?;
        return Ok(vec![estimates.swap_remove(chosen)]);
    }
    for Estimate { gpu, verdict, largest_batch, .. } in &estimates {
        match verdict {
            Feasibility::Fits => {}
            Feasibility::TooLarge => {
                bail!("--gpu {gpu}: {} (largest batch: {largest_batch} images)", verdict.reason())
            }
            verdict => bail!("--gpu {gpu}: {}", verdict.reason()),
        }
    }
    if let Some(other) = estimates.iter().find(|e| e.gpu.count != estimates[0].gpu.count) {
        bail!("--gpu {}: expected the same number of GPUs for all models", other.gpu);
    }
    Ok(estimates)
}

fn gpu_names(estimates: &[Estimate]) -> String {
    estimates.iter().map(|e| e.gpu.to_string()).collect::<Vec<_>>().join(",")
}

/// The flags of the app.
pub fn limit_flags(estimates: &[Estimate], timeout: u64, retries: u64, limits: &CostLimits) -> Vec<String> {
    let mut arguments = vec![
        format!("--gpu={}", gpu_names(estimates)),
        format!("--timeout={timeout}"),
        format!("--max-retries={retries}"),
    ];
    arguments.extend(limits.max_cost.map(|dollars| format!("--max-cost={dollars}")));
    let row = |e: &Estimate| {
        Some((
            e.gpu.to_string(),
            json!({"hour": (e.hourly? * 1e4).round() / 1e4, "device": e.gpu.model.device}),
        ))
    };
    let hourly: Map<String, Value> = estimates.iter().filter_map(row).collect();
    if !hourly.is_empty() {
        arguments.push(format!("--price-per-hour={}", Value::Object(hourly)));
    }
    arguments.extend(limits.region.as_ref().map(|region| format!("--region={region}")));
    arguments
}

/// The records of a run that exists in the volume.
struct ExistingRun {
    record: folder::RunRecord,
    /// Cost so far in dollars.
    spent: f64,
}

impl ExistingRun {
    /// Returns the cost so far in dollars, and the share of remaining steps.
    fn spent_and_remaining(&self, steps: u64) -> (f64, f64) {
        (self.spent, 1.0 - self.record.step.min(steps) as f64 / steps.max(1) as f64)
    }
}

fn find_existing_run(run: &str) -> anyhow::Result<Option<ExistingRun>> {
    let Some(record) = read_file(run, folder::RECORD)? else { return Ok(None) };
    let record = serde_json::from_slice(&record).with_context(|| format!("{run}/{}", folder::RECORD))?;
    let cloud = read_file(run, crate::cloud::RECORD)?
        .map(|text| CloudRecord::parse(run.as_ref(), &text))
        .transpose()?;
    Ok(Some(ExistingRun { record, spent: cloud.and_then(|cloud| cloud.dollars).unwrap_or(0.0) }))
}
