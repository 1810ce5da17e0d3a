//! `tiny-cats cloud train`: trains at Modal.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};

use super::{LimitArgs, find_app, print_command, requested_gpus, run_app, with_flags};
use crate::{
    cli::{
        common::print,
        plan::{GpuArgs, format_dollars, format_hours},
        train::{TrainArgs, flag_error},
    },
    cloud::{CloudSettings, CloudTraining, TrainingCost, gpu_names, volume_path},
    plan::Workload,
    recipes::{ClassifierSettings, DitSettings, Recipe, config},
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
    limits: LimitArgs,
}

/// Flags that the container sets, so that runs can be resumed.
const SET_BY_CONTAINER: [&str; 7] =
    ["runs-dir", "output", "max-time", "device", "cache", "no-cache", "log-file"];
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

/// A training to start.
struct Training<'a, R> {
    train: &'a TrainArgs<R>,
    settings: &'a R,
    data: String,
    gpu_args: &'a GpuArgs,
    limits: &'a LimitArgs,
}

impl<R: Recipe> Training<'_, R> {
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
        let max_retries: Option<u64> =
            self.train.is_given("max-retries").then(|| self.settings.run().max_retries.into());
        let limits = self.limits.to_limits(max_retries);
        limits.validate(&settings).map_err(with_flags)?;
        let prices = limits.prices(self.gpu_args.prices()?, &settings);
        let gpus = requested_gpus(self.gpu_args)?;
        let cost = TrainingCost::new(&gpus, workload, &limits, &settings, &prices).map_err(with_flags)?;
        let run = self.train.process.run_id.clone();
        let new_run = || folder::new_run_folder(std::path::Path::new(""), R::TASK).display().to_string();
        Ok(CloudTraining {
            task: R::TASK.to_owned(),
            may_exist: run.is_some(),
            run: run.unwrap_or_else(new_run),
            data: self.data.clone(),
            train_arguments,
            steps: workload.steps,
            cost,
            limits,
        })
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
