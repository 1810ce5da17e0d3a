//! `tiny-cats cloud sweep`: trains with many settings at Modal.

use std::{
    path::{Component, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

use super::{LimitArgs, find_app, print_command, requested_gpus, run_app, with_flags};
use crate::{
    cli::{
        common::print,
        plan::{GpuArgs, format_dollars, format_hours},
        sweep::{load, print_outcome, train_args},
        train::{TrainArgs, Visit, flag_error},
    },
    cloud::{CloudSettings, CloudSweep, CostLimits, gpu_names, read_run_file, volume_path},
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
    limits: LimitArgs,
}

/// Starts the sweep, or prints its results.
///
/// # Errors
/// If an argument is invalid, a requirement is missing, the cost is too high, or Modal reports an error.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = CloudSettings::default();
    let limits = args.limits.to_limits(args.max_retries);
    limits.validate(&settings).map_err(with_flags)?;
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
    let planned = plan(args, &sweep, &jobs, limits, &settings)?;
    print(&summary(&planned))?;
    planned.limits.check_cost(planned.dollars()).map_err(with_flags)?;
    let attempts = planned.attempts(&settings).map_err(with_flags)?;
    let app = find_app()?;
    let arguments = planned.arguments(&app, attempts, args.limits.detach);
    if args.limits.dry_run {
        return print_command(&arguments);
    }
    planned.check(&app).map_err(with_flags)?;
    run_app(&app, &arguments)
}

/// Estimates all jobs.
fn plan(
    args: &Args,
    sweep: &Sweep,
    jobs: &[Job],
    limits: CostLimits,
    settings: &CloudSettings,
) -> anyhow::Result<CloudSweep> {
    let prices = limits.prices(args.gpu_args.prices()?, settings);
    let mut planned = CloudSweep {
        name: sweep.name.clone(),
        file: args.file.to_string_lossy().into_owned(),
        data: String::new(),
        parallel: args.parallel,
        retry_failed: args.retry_failed,
        limits,
        jobs: Vec::new(),
    };
    for job in jobs {
        let (path, workload) = train_args(sweep, job)?.visit(JobWorkload(&args.gpu_args))?;
        planned.data = volume_path(&path)?;
        let gpus = requested_gpus(&args.gpu_args)?;
        planned.add_job(&job.name, &gpus, &workload, settings, &prices).map_err(with_flags)?;
    }
    Ok(planned)
}

/// Formats the GPUs, the duration and the cost of a sweep.
fn summary(sweep: &CloudSweep) -> String {
    format!(
        "sweep {}: {} jobs, {} in parallel, on {}; {} of container time, about {} in total, {} expected\n",
        sweep.name,
        sweep.jobs.len(),
        sweep.parallel,
        sweep.jobs.first().map_or_else(String::new, |job| gpu_names(&job.estimates)),
        format_hours(sweep.container_hours()),
        format_hours(sweep.hours()),
        sweep.dollars().map_or("an unknown price".into(), format_dollars)
    )
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
    let text = read_run_file(&sweep_path, STATE_FILE)?
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
