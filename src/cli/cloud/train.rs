//! `tiny-cats cloud train`: trains at Modal.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgMatches, CommandFactory, parser::ValueSource};
use serde_json::{Map, Value, json};

use super::{CostLimits, app, file, modal_run, require_data, require_idle, shell, start};
use crate::{
    cli::{
        Cli,
        common::print,
        plan::{GpuArgs, HEADS, PHOTOS, hours, money},
        train::{
            classifier,
            config::{ResolvedConfig, training},
            dit,
        },
    },
    cloud::{CloudRecord, CloudSettings, modal},
    plan::{Estimate, Feasibility, Prices, Workload, attempts, choose, estimate},
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
    #[command(flatten)]
    bounds: CostLimits,
}

/// Flags that the container sets, so that a run can be resumed.
const SET_BY_CONTAINER: [&str; 8] =
    ["runs_dir", "output", "resume", "max_time", "device", "cache", "no_cache", "log_file"];
/// Flags that the container receives in another form.
const PASSED_SEPARATELY: [&str; 3] = ["data", "max_retries", "gpus"];

/// Starts the training.
///
/// # Errors
/// If an argument is invalid, something is missing or the cost is too high, before anything is started; and if Modal reports an error.
pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (_, matches) = training(matches).context("the task's arguments")?;
    match &args.task {
        TaskCommand::Dit(of) => {
            of.train.validate()?;
            let data = volume_path(of.train.data())?;
            let pictures = of.gpu_args.pictures(of.train.data(), HEADS)?;
            Training { task: "dit", data, matches, gpu_args: &of.gpu_args, bounds: &of.bounds }
                .launch(&of.train.workload(&pictures.0)?, &pictures.1)
        }
        TaskCommand::Classifier(of) => {
            of.train.validate()?;
            let data = volume_path(of.train.data())?;
            let pictures = of.gpu_args.pictures(of.train.data(), PHOTOS)?;
            Training { task: "classifier", data, matches, gpu_args: &of.gpu_args, bounds: &of.bounds }
                .launch(&of.train.workload(&pictures.0)?, &pictures.1)
        }
    }
}

/// The path of a data folder in a container, where the volume with images is mounted as `data`.
///
/// # Errors
/// If the path is not below `data`.
pub fn volume_path(data: &std::path::Path) -> anyhow::Result<String> {
    let text = data.to_str().unwrap_or_default().trim_end_matches('/');
    let inside = text.strip_prefix("data/").is_some_and(|rest| {
        !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
    });
    if !inside {
        bail!(
            "{}: in the cloud, pictures are in a volume: expected data/NAME, such as data/cats",
            data.display()
        );
    }
    Ok(text.to_owned())
}

/// A training to start.
struct Training<'a> {
    task: &'static str,
    data: String,
    matches: &'a ArgMatches,
    gpu_args: &'a GpuArgs,
    bounds: &'a CostLimits,
}

impl Training<'_> {
    fn launch(&self, workload: &Workload, about: &str) -> anyhow::Result<ExitCode> {
        let settings = CloudSettings::default();
        let arguments = self.arguments()?;
        let said: Option<u64> = self
            .is_on_command_line("max_retries")
            .then(|| self.matches.get_one::<u32>("max_retries").copied().unwrap_or(0).into());
        self.bounds.validate(said.unwrap_or(0), &settings)?;
        let prices = self.bounds.prices(self.gpu_args)?;
        let chosen = choose_gpus(self.gpu_args, workload, &settings, &prices)?;
        let run = self.matches.get_one::<String>("run_id").cloned();
        let named = run.is_some();
        let run = run.unwrap_or_else(|| {
            folder::new_run_folder(std::path::Path::new(""), self.task).display().to_string()
        });
        let expected = ExpectedCost::of(&chosen);
        let timeout = self.bounds.timeout.map_or(expected.timeout_s, |time| time.as_secs());
        let retries = retries(&chosen, timeout, said, &settings)?;
        print(&format!(
            "run {run}: {}, {} expected on {} at {}, {} steps\n{} attempts of at most {}, preemptions apart\ndata {about}\n",
            hours(expected.hours),
            expected.dollars.map_or("an unknown price".into(), money),
            names(&chosen),
            expected.hourly.map_or("an unknown price".into(), |dollars| money(dollars) + " an hour"),
            workload.steps,
            retries + 1,
            humantime::format_duration(Duration::from_secs(timeout)),
        ))?;
        let app = app()?;
        let mut call = modal_run(&app, &run, self.bounds.detach);
        call.extend(["train", self.task, &self.data].map(str::to_owned));
        call.push(format!("--run-id={run}"));
        call.extend(bounds(&chosen, timeout, retries, self.bounds));
        call.extend(arguments);
        if self.bounds.dry_run {
            self.check_budget(&expected, None)?;
            print(&format!("{}\n", shell(&call)))?;
            return Ok(ExitCode::SUCCESS);
        }
        modal::version()?;
        modal::run_captured(&["token", "info"])?;
        let known = if named { find_existing_run(&run)? } else { None };
        if let Some(ExistingRun { record, .. }) = &known
            && record.status == Status::Finished
            && record.steps == workload.steps
        {
            bail!("{run}: is finished; tiny-cats cloud fetch {run} brings it");
        }
        let left = known.as_ref().map(|known| known.left(workload.steps));
        self.check_budget(&expected, left)?;
        if named {
            require_idle(&run)?;
        }
        if std::env::var_os("TINY_CATS_S3_BUCKET").is_none() {
            require_data(&settings.app.data_volume, &self.data)?;
        }
        print(&format!(
            "tiny-cats cloud status {run} says how it stands, tiny-cats cloud fetch {run} brings it\n"
        ))?;
        start(&app, &call)
    }

    fn is_on_command_line(&self, id: &str) -> bool {
        let known = self.matches.try_contains_id(id).is_ok();
        known && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// The flags for `train` in the container.
    fn arguments(&self) -> anyhow::Result<Vec<String>> {
        if let Some(id) = SET_BY_CONTAINER.into_iter().find(|id| self.is_on_command_line(id)) {
            let flag = id.replace('_', "-");
            bail!("--{flag}: is set in the cloud, so that the run can be gone on with");
        }
        if self.is_on_command_line("gpus") {
            bail!("--gpus: say it with the GPU, such as --gpu A100:4");
        }
        if let Ok(Some(init)) = self.matches.try_get_one::<std::path::PathBuf>("init") {
            volume_path(init).context("--init")?;
        }
        let command = Cli::command();
        let resolved = ResolvedConfig::new(self.task, &command, self.matches)?;
        Ok(resolved.arguments(&command, &[&SET_BY_CONTAINER[..], &PASSED_SEPARATELY[..]].concat()))
    }

    /// Checks that the expected cost is within the limit. `left` is the dollars spent already and the share of the steps that remains.
    fn check_budget(&self, expected: &ExpectedCost, left: Option<(f64, f64)>) -> anyhow::Result<()> {
        let Some(most) = self.bounds.max_cost else { return Ok(()) };
        let dollars =
            expected.dollars.context("--max-cost: these GPUs have no price; --prices FILE can give one")?;
        let (spent, share) = left.unwrap_or((0.0, 1.0));
        let dollars = spent + share * dollars;
        if dollars > most {
            let [dollars, most] = [dollars, most].map(money);
            bail!("--max-cost: {dollars} are expected to be spent, more than {most}: nothing was started");
        }
        Ok(())
    }
}

/// The number of retries: `said`, if the user set it; else as many as attempts of `timeout` seconds need, and some more.
///
/// # Errors
/// If the run would not finish within them.
pub fn retries(
    estimates: &[Estimate],
    timeout: u64,
    said: Option<u64>,
    settings: &CloudSettings,
) -> anyhow::Result<u64> {
    let needed = estimates.iter().map(|e| attempts(e.computing_s, timeout as f64, settings));
    let needed = needed.max().unwrap_or(1) - 1;
    let most = said.unwrap_or(settings.retries.most);
    if needed > most {
        let timeout = humantime::format_duration(Duration::from_secs(timeout));
        let flag = if said.is_some() { "--max-retries" } else { "--timeout" };
        bail!("{flag}: {} attempts of {timeout} are needed, there are {}", needed + 1, most + 1);
    }
    Ok(said.unwrap_or((needed + settings.retries.default).min(most)))
}

/// The expected cost on any of several GPUs: the maximum of each value.
pub struct ExpectedCost {
    pub hours: f64,
    pub dollars: Option<f64>,
    pub hourly: Option<f64>,
    pub timeout_s: u64,
}

impl ExpectedCost {
    pub fn of(estimates: &[Estimate]) -> Self {
        let most = |of: &dyn Fn(&Estimate) -> f64| estimates.iter().map(of).fold(0.0, f64::max);
        let priced = estimates.iter().all(|e| e.hourly.is_some());
        Self {
            hours: most(&|e| e.expected_hours),
            dollars: priced.then(|| most(&|e| e.expected_dollars().unwrap_or(0.0))),
            hourly: priced.then(|| most(&|e| e.hourly.unwrap_or(0.0))),
            timeout_s: estimates.iter().map(|e| e.timeout_s).max().unwrap_or(0),
        }
    }
}

/// Estimates for the requested GPUs, in their order, or for the one that is chosen; all can train the workload.
///
/// # Errors
/// If there is no such GPU, or one cannot train the workload.
pub fn choose_gpus(
    asked: &GpuArgs,
    workload: &Workload,
    settings: &CloudSettings,
    prices: &Prices,
) -> anyhow::Result<Vec<Estimate>> {
    let gpus = asked.gpus()?;
    let mut estimates: Vec<Estimate> =
        gpus.iter().map(|gpu| estimate(workload, gpu, settings, prices)).collect::<Result<_, _>>()?;
    if asked.gpu.is_empty() {
        let [.., chosen] =
            choose(&estimates).context("no GPU can train this; tiny-cats plan train says why")?;
        return Ok(vec![estimates.swap_remove(chosen)]);
    }
    for Estimate { gpu, verdict, largest_batch, .. } in &estimates {
        match verdict {
            Feasibility::Fits => {}
            Feasibility::TooLarge => {
                bail!("--gpu {gpu}: {}, at most {largest_batch} pictures", verdict.reason())
            }
            verdict => bail!("--gpu {gpu}: {}", verdict.reason()),
        }
    }
    if let Some(other) = estimates.iter().find(|e| e.gpu.count != estimates[0].gpu.count) {
        bail!("--gpu {}: expected as many as of the others, since a run is divided among them", other.gpu);
    }
    Ok(estimates)
}

fn names(estimates: &[Estimate]) -> String {
    estimates.iter().map(|e| e.gpu.to_string()).collect::<Vec<_>>().join(",")
}

/// The flags of the app itself.
pub fn bounds(estimates: &[Estimate], timeout: u64, retries: u64, bounds: &CostLimits) -> Vec<String> {
    let mut call = vec![
        format!("--gpu={}", names(estimates)),
        format!("--timeout={timeout}"),
        format!("--max-retries={retries}"),
    ];
    call.extend(bounds.max_cost.map(|dollars| format!("--max-cost={dollars}")));
    let row = |e: &Estimate| {
        Some((
            e.gpu.to_string(),
            json!({"hour": (e.hourly? * 1e4).round() / 1e4, "device": e.gpu.model.device}),
        ))
    };
    let hourly: Map<String, Value> = estimates.iter().filter_map(row).collect();
    if !hourly.is_empty() {
        call.push(format!("--price-per-hour={}", Value::Object(hourly)));
    }
    call.extend(bounds.region.as_ref().map(|region| format!("--region={region}")));
    call
}

/// The records of a run that exists in the volume.
struct ExistingRun {
    record: folder::RunRecord,
    /// Dollars spent so far.
    spent: f64,
}

impl ExistingRun {
    /// The dollars spent, and the share of `steps` that is left.
    fn left(&self, steps: u64) -> (f64, f64) {
        (self.spent, 1.0 - self.record.step.min(steps) as f64 / steps.max(1) as f64)
    }
}

fn find_existing_run(run: &str) -> anyhow::Result<Option<ExistingRun>> {
    let Some(record) = file(run, folder::RECORD)? else { return Ok(None) };
    let record = serde_json::from_slice(&record).with_context(|| format!("{run}/{}", folder::RECORD))?;
    let cloud =
        file(run, crate::cloud::RECORD)?.map(|text| CloudRecord::parse(run.as_ref(), &text)).transpose()?;
    Ok(Some(ExistingRun { record, spent: cloud.and_then(|cloud| cloud.dollars).unwrap_or(0.0) }))
}
