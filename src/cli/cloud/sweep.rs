//! `tiny-cats cloud sweep`: trains with many settings at Modal.

use std::{
    path::{Component, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::{
    CostLimits, check_data, check_idle, find_app, read_file, run_app, run_arguments, shell_command,
    train::{ExpectedCost, choose_gpus, choose_retries, limit_flags, volume_path},
};
use crate::{
    cli::{
        common::print,
        plan::{GpuArgs, format_dollars, format_hours},
        sweep::{load, print_outcome, train_args},
        train::{TrainArgs, Visit, flag_error},
    },
    cloud::{CloudSettings, modal},
    plan::Workload,
    recipes::Recipe,
    sweep::{Job, STATE_FILE, SWEEPS, Sweep, SweepResult, SweepState},
};

/// The arguments of `tiny-cats cloud sweep`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TOML file with the task and the settings to try; see `tiny-cats sweep --help`
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Number of parallel jobs, each in its own container
    #[arg(long, default_value_t = 1, value_name = "N")]
    parallel: u64,
    /// Maximum retries after failed attempts [default: from the plan]
    #[arg(long, value_name = "N")]
    max_retries: Option<u64>,
    /// Run failed jobs again
    #[arg(long)]
    retry_failed: bool,
    /// Print the results so far without starting jobs
    #[arg(long, conflicts_with = "retry_failed")]
    results: bool,
    /// Print the results as JSON
    #[arg(long, requires = "results")]
    json: bool,
    #[command(flatten)]
    gpu_args: GpuArgs,
    #[command(flatten)]
    limits: CostLimits,
}

/// Starts the sweep, or prints its results.
///
/// # Errors
/// If an argument is invalid, a requirement is missing, the cost is too high, or Modal reports an error.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = CloudSettings::default();
    args.limits.validate(args.max_retries.unwrap_or(0), &settings)?;
    let is_inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if !args.file.components().all(is_inside) {
        bail!("{}: expected a path below the working directory", args.file.display());
    }
    if args.parallel == 0 {
        bail!("--parallel: expected at least 1, found 0");
    }
    let (sweep, jobs) = load(&args.file)?;
    if args.results {
        return print_results(&sweep, &jobs, args.json);
    }
    let prices = args.limits.prices(&args.gpu_args)?;
    let (mut all_estimates, mut data, mut gpus) = (Vec::new(), String::new(), Vec::new());
    for job in &jobs {
        let (path, workload) = train_args(&sweep, job)?.visit(JobWorkload(&args.gpu_args))?;
        data = volume_path(&path)?;
        // All jobs use the same GPUs, so those of the first must fit the others.
        let gpu_args = GpuArgs {
            gpu: if gpus.is_empty() { args.gpu_args.gpu.clone() } else { gpus.clone() },
            ..args.gpu_args.clone()
        };
        let estimates = choose_gpus(&gpu_args, &workload, &settings, &prices)?;
        gpus = estimates.iter().map(|e| e.gpu.to_string()).collect();
        all_estimates.push(estimates);
    }
    let expected: Vec<ExpectedCost> =
        all_estimates.iter().map(|estimates| ExpectedCost::from_estimates(estimates)).collect();
    let dollars: Option<f64> = expected.iter().map(|e| e.dollars).sum();
    let longest_job = expected.iter().map(|e| e.hours).fold(0.0, f64::max);
    let total_hours: f64 = expected.iter().map(|e| e.hours).sum();
    print(&format!(
        "sweep {}: {} jobs, {} in parallel, on {}; {} of container time, about {} in total, {} expected\n",
        sweep.name,
        jobs.len(),
        args.parallel,
        gpus.join(","),
        format_hours(total_hours),
        format_hours(longest_job.max(total_hours / args.parallel as f64)),
        dollars.map_or("an unknown price".into(), format_dollars)
    ))?;
    match (args.limits.max_cost, dollars) {
        (Some(_), None) => bail!("--max-cost: these GPUs have no price; set one with --prices FILE"),
        (Some(max_cost), Some(dollars)) if dollars > max_cost => {
            let [dollars, max_cost] = [dollars, max_cost].map(format_dollars);
            bail!("--max-cost: the expected cost of {dollars} exceeds {max_cost}; nothing was started");
        }
        _ => {}
    }
    let timeout = expected.iter().map(|e| e.timeout_s).max().unwrap_or(0);
    let timeout = args.limits.timeout.map_or(timeout, |time| time.as_secs());
    let retries = choose_retries(&all_estimates.concat(), timeout, args.max_retries, &settings)?;
    let app = find_app()?;
    let mut arguments = run_arguments(&app, &format!("sweep-{}", sweep.name), args.limits.detach);
    arguments.extend(["sweep".to_owned(), args.file.to_string_lossy().into_owned()]);
    arguments.push(format!("--parallel={}", args.parallel));
    arguments.extend(limit_flags(&all_estimates[0], timeout, retries, &args.limits));
    arguments.extend(args.retry_failed.then(|| "--retry-failed".to_owned()));
    if let Some((max_cost, dollars)) = args.limits.max_cost.zip(dollars) {
        // Each job gets a share of the maximum cost in proportion to its expected cost.
        let share = |e: &ExpectedCost| {
            ((e.dollars.unwrap_or(0.0) * max_cost / dollars * 1e4).floor() / 1e4).max(1e-4)
        };
        let shares: Map<String, Value> =
            jobs.iter().zip(&expected).map(|(job, e)| (job.name.clone(), share(e).into())).collect();
        arguments.push(format!("--shares={}", Value::Object(shares)));
    }
    if args.limits.dry_run {
        print(&format!("{}\n", shell_command(&arguments)))?;
        return Ok(ExitCode::SUCCESS);
    }
    modal::version()?;
    modal::run_captured(&["token", "info"])?;
    check_idle(&format!("sweep-{}", sweep.name))?;
    if std::env::var_os("TINY_CATS_S3_BUCKET").is_none() {
        check_data(&settings.app.data_volume, &data)?;
    }
    run_app(&app, &arguments)
}

/// The folder of the data and the workload of a job.
struct JobWorkload<'a>(&'a GpuArgs);

impl Visit<(PathBuf, Workload)> for JobWorkload<'_> {
    fn visit<R: Recipe>(self, args: &TrainArgs<R>) -> anyhow::Result<(PathBuf, Workload)> {
        let settings = args.settings()?;
        let (images, _) = self.0.image_counts(settings)?;
        Ok((settings.data().to_owned(), settings.workload(&images).map_err(flag_error::<R>)?))
    }
}

/// Prints the results so far of the jobs in the volume.
fn print_results(sweep: &Sweep, jobs: &[Job], json: bool) -> anyhow::Result<ExitCode> {
    let sweep_path = format!("{SWEEPS}/{}", sweep.name);
    let text = read_file(&sweep_path, STATE_FILE)?
        .with_context(|| format!("{sweep_path}: no job of this sweep has ended in the volume"))?;
    let temp_folder = tempfile::tempdir()?;
    std::fs::write(temp_folder.path().join(STATE_FILE), text)?;
    let state = SweepState::open(temp_folder.path(), sweep, jobs)?;
    print_outcome(
        sweep,
        &SweepResult { folder: format!("runs/{sweep_path}").into(), state, stopped: false },
        json,
    )
}
