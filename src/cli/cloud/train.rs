//! `tiny-cats cloud train`: trains at Modal.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgMatches, CommandFactory, parser::ValueSource};

use super::{LimitArgs, find_app, print_command, requested_gpus, run_app, with_flags};
use crate::{
    cli::{
        Cli,
        common::print,
        plan::{CAT_HEADS, GpuArgs, PHOTOS, format_dollars, format_hours},
        train::{
            classifier,
            config::{ResolvedConfig, training},
            dit,
        },
    },
    cloud::{CloudSettings, CloudTraining, TrainingCost, gpu_names, volume_path},
    plan::Workload,
    train::folder,
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
    limits: LimitArgs,
}

/// Flags that the container sets, so that runs can be resumed.
const SET_BY_CONTAINER: [&str; 8] =
    ["runs_dir", "output", "resume", "max_time", "device", "cache", "no_cache", "log_file"];
/// Flags that the container receives in another form.
const PASSED_SEPARATELY: [&str; 3] = ["data", "max_retries", "gpus"];

/// Starts the training.
///
/// # Errors
/// If an argument is invalid, a requirement is missing, the cost is too high, or Modal reports an error.
pub fn run(args: &Args, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (_, matches) = training(matches).context("the task's arguments")?;
    match &args.task {
        TaskCommand::Dit(args) => {
            args.train.validate()?;
            let data = volume_path(args.train.data())?;
            let images = args.gpu_args.image_counts(args.train.data(), CAT_HEADS)?;
            Training { task: "dit", data, matches, gpu_args: &args.gpu_args, limits: &args.limits }
                .launch(&args.train.workload(&images.0)?, &images.1)
        }
        TaskCommand::Classifier(args) => {
            args.train.validate()?;
            let data = volume_path(args.train.data())?;
            let images = args.gpu_args.image_counts(args.train.data(), PHOTOS)?;
            Training { task: "classifier", data, matches, gpu_args: &args.gpu_args, limits: &args.limits }
                .launch(&args.train.workload(&images.0)?, &images.1)
        }
    }
}

/// A training to start.
struct Training<'a> {
    task: &'static str,
    data: String,
    matches: &'a ArgMatches,
    gpu_args: &'a GpuArgs,
    limits: &'a LimitArgs,
}

impl Training<'_> {
    fn launch(&self, workload: &Workload, data_description: &str) -> anyhow::Result<ExitCode> {
        let training = self.plan(workload)?;
        print(&summary(&training, data_description))?;
        let app = find_app()?;
        let arguments = training.arguments(&app, self.limits.detach);
        if self.limits.dry_run {
            training.check_cost().map_err(with_flags)?;
            return print_command(&arguments);
        }
        training.check(&app).map_err(with_flags)?;
        let run = &training.run;
        print(&format!(
            "tiny-cats cloud status {run} shows the status, tiny-cats cloud fetch {run} downloads the files\n"
        ))?;
        run_app(&app, &arguments)
    }

    /// Chooses the GPUs and the name of the run.
    fn plan(&self, workload: &Workload) -> anyhow::Result<CloudTraining> {
        let settings = CloudSettings::default();
        let train_arguments = self.train_arguments()?;
        let max_retries: Option<u64> = self
            .is_on_command_line("max_retries")
            .then(|| self.matches.get_one::<u32>("max_retries").copied().unwrap_or(0).into());
        let limits = self.limits.to_limits(max_retries);
        limits.validate(&settings).map_err(with_flags)?;
        let prices = limits.prices(self.gpu_args.prices()?, &settings);
        let gpus = requested_gpus(self.gpu_args)?;
        let cost = TrainingCost::new(&gpus, workload, &limits, &settings, &prices).map_err(with_flags)?;
        let run = self.matches.get_one::<String>("run_id").cloned();
        let new_run = || folder::new_run_folder(std::path::Path::new(""), self.task).display().to_string();
        Ok(CloudTraining {
            task: self.task.to_owned(),
            may_exist: run.is_some(),
            run: run.unwrap_or_else(new_run),
            data: self.data.clone(),
            train_arguments,
            steps: workload.steps,
            cost,
            limits,
        })
    }

    fn is_on_command_line(&self, id: &str) -> bool {
        let existing = self.matches.try_contains_id(id).is_ok();
        existing && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// The flags of `train` in the container.
    fn train_arguments(&self) -> anyhow::Result<Vec<String>> {
        if let Some(id) = SET_BY_CONTAINER.into_iter().find(|id| self.is_on_command_line(id)) {
            let flag = id.replace('_', "-");
            bail!("--{flag}: is set in the cloud, so that the run can be resumed");
        }
        if self.is_on_command_line("gpus") {
            bail!("--gpus: set the number with the GPU, such as --gpu A100:4");
        }
        if let Ok(Some(init)) = self.matches.try_get_one::<std::path::PathBuf>("init") {
            volume_path(init).context("--init")?;
        }
        let command = Cli::command();
        let resolved = ResolvedConfig::new(self.task, &command, self.matches)?;
        Ok(resolved.to_arguments(&command, &[&SET_BY_CONTAINER[..], &PASSED_SEPARATELY[..]].concat()))
    }
}

/// Formats the GPUs, the cost and the data of a training.
fn summary(training: &CloudTraining, data_description: &str) -> String {
    let TrainingCost { estimates, expected, attempts } = &training.cost;
    format!(
        "run {}: {}, {} expected on {} at {}, {} steps\n{} attempts of at most {}, not counting preemptions\n\
         data {data_description}\n",
        training.run,
        format_hours(expected.hours),
        expected.dollars.map_or("an unknown price".into(), format_dollars),
        gpu_names(estimates),
        expected.hourly.map_or("an unknown price".into(), |dollars| format_dollars(dollars) + " an hour"),
        training.steps,
        attempts.retries + 1,
        humantime::format_duration(Duration::from_secs(attempts.timeout_s)),
    )
}
