//! `tiny-cats cloud sweep`: trains with many settings at Modal.

use std::{
    path::{Component, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::{
    CostLimits, app, file, modal_run, require_data, require_idle, shell, start,
    train::{ExpectedCost, bounds, choose_gpus, retries, volume_path},
};
use crate::{
    cli::{
        common::print,
        plan::{GpuArgs, HEADS, PHOTOS, hours, money},
        sweep::{load, print_outcome, train_args},
    },
    cloud::{CloudSettings, modal},
    sweep::{Job, STATE_FILE, SWEEPS, Sweep, SweepResult, SweepState, TaskKind},
};

/// The arguments of `tiny-cats cloud sweep`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TOML file that states what to train and which settings to try: see `tiny-cats sweep --help`
    #[arg(value_name = "FILE.toml")]
    file: PathBuf,
    /// Jobs at once, each in its own container
    #[arg(long, default_value_t = 1, value_name = "N")]
    parallel: u64,
    /// Retries after a failed attempt [default: by the plan]
    #[arg(long, value_name = "N")]
    max_retries: Option<u64>,
    /// Run failed jobs again
    #[arg(long)]
    retry_failed: bool,
    /// Print the results so far, and start nothing
    #[arg(long, conflicts_with = "retry_failed")]
    results: bool,
    /// Print the results as JSON
    #[arg(long, requires = "results")]
    json: bool,
    #[command(flatten)]
    gpu_args: GpuArgs,
    #[command(flatten)]
    bounds: CostLimits,
}

/// Starts the sweep, or prints its results.
///
/// # Errors
/// If an argument is invalid, something is missing or the cost is too high, before anything is started; and if Modal reports an error.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = CloudSettings::default();
    args.bounds.validate(args.max_retries.unwrap_or(0), &settings)?;
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if !args.file.components().all(inside) {
        bail!("{}: expected a path below the working directory", args.file.display());
    }
    if args.parallel == 0 {
        bail!("--parallel: expected at least 1, found 0");
    }
    let (sweep, jobs) = load(&args.file)?;
    if args.results {
        return results(&sweep, &jobs, args.json);
    }
    let prices = args.bounds.prices(&args.gpu_args)?;
    let usual = if sweep.task == TaskKind::Dit { HEADS } else { PHOTOS };
    let (mut all, mut data, mut gpus) = (Vec::new(), String::new(), Vec::new());
    for job in &jobs {
        let job = train_args(&sweep, job)?;
        data = volume_path(job.data())?;
        let (pictures, _) = args.gpu_args.pictures(job.data(), usual)?;
        // All jobs use the same GPUs, so those of the first must fit the others.
        let asked = GpuArgs {
            gpu: if gpus.is_empty() { args.gpu_args.gpu.clone() } else { gpus.clone() },
            ..args.gpu_args.clone()
        };
        let estimates = choose_gpus(&asked, &job.workload(&pictures)?, &settings, &prices)?;
        gpus = estimates.iter().map(|e| e.gpu.to_string()).collect();
        all.push(estimates);
    }
    let expected: Vec<ExpectedCost> = all.iter().map(|estimates| ExpectedCost::of(estimates)).collect();
    let dollars: Option<f64> = expected.iter().map(|e| e.dollars).sum();
    let longest = expected.iter().map(|e| e.hours).fold(0.0, f64::max);
    let together: f64 = expected.iter().map(|e| e.hours).sum();
    print(&format!(
        "sweep {}: {} jobs, {} at once, on {}: {} of containers, done in about {}, {} expected\n",
        sweep.name,
        jobs.len(),
        args.parallel,
        gpus.join(","),
        hours(together),
        hours(longest.max(together / args.parallel as f64)),
        dollars.map_or("an unknown price".into(), money)
    ))?;
    match (args.bounds.max_cost, dollars) {
        (Some(_), None) => bail!("--max-cost: these GPUs have no price; --prices FILE can give one"),
        (Some(most), Some(dollars)) if dollars > most => {
            let [dollars, most] = [dollars, most].map(money);
            bail!("--max-cost: {dollars} are expected to be spent, more than {most}: nothing was started");
        }
        _ => {}
    }
    let timeout = expected.iter().map(|e| e.timeout_s).max().unwrap_or(0);
    let timeout = args.bounds.timeout.map_or(timeout, |time| time.as_secs());
    let retries = retries(&all.concat(), timeout, args.max_retries, &settings)?;
    let app = app()?;
    let mut call = modal_run(&app, &format!("sweep-{}", sweep.name), args.bounds.detach);
    call.extend(["sweep".to_owned(), args.file.to_string_lossy().into_owned()]);
    call.push(format!("--parallel={}", args.parallel));
    call.extend(bounds(&all[0], timeout, retries, &args.bounds));
    call.extend(args.retry_failed.then(|| "--retry-failed".to_owned()));
    if let Some((most, dollars)) = args.bounds.max_cost.zip(dollars) {
        // Each job gets a share of the maximum cost in proportion to its expected cost.
        let share =
            |e: &ExpectedCost| ((e.dollars.unwrap_or(0.0) * most / dollars * 1e4).floor() / 1e4).max(1e-4);
        let shares: Map<String, Value> =
            jobs.iter().zip(&expected).map(|(job, e)| (job.name.clone(), share(e).into())).collect();
        call.push(format!("--shares={}", Value::Object(shares)));
    }
    if args.bounds.dry_run {
        print(&format!("{}\n", shell(&call)))?;
        return Ok(ExitCode::SUCCESS);
    }
    modal::version()?;
    modal::run_captured(&["token", "info"])?;
    require_idle(&format!("sweep-{}", sweep.name))?;
    if std::env::var_os("TINY_CATS_S3_BUCKET").is_none() {
        require_data(&settings.app.data_volume, &data)?;
    }
    start(&app, &call)
}

/// Prints the results so far of the sweep's jobs in the volume.
fn results(sweep: &Sweep, jobs: &[Job], json: bool) -> anyhow::Result<ExitCode> {
    let there = format!("{SWEEPS}/{}", sweep.name);
    let text = file(&there, STATE_FILE)?
        .with_context(|| format!("{there}: no job of this sweep has ended in the volume"))?;
    let copy = tempfile::tempdir()?;
    std::fs::write(copy.path().join(STATE_FILE), text)?;
    let state = SweepState::open(copy.path(), sweep, jobs)?;
    print_outcome(sweep, &SweepResult { folder: format!("runs/{there}").into(), state, stopped: false }, json)
}
