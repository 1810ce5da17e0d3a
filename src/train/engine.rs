//! The training loop of every task.

use std::{path::PathBuf, time::Instant};

use candle_core::Device;
use serde_json::{Value, json};
use tiny_cats_models::{TapeOptions, candle::Params, tape::Tape};

use super::{
    AdamW, Control, Error, Event, Loader, ProcessGroup, Result, Schedule, Score, Step, StepGradients, Task,
    control::{ActiveRun, Phase},
    metrics::{LOSS, MEAN_LOSS},
    parallel::Start,
    preflight,
    run::RunFiles,
};
use crate::memory;

/// Settings of a training run.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The run's folder, which holds all its files. A run with training states in it resumes from the newest.
    pub folder: PathBuf,
    /// The training state that a run in a new folder starts from.
    ///
    /// Its settings must be the same except for the schedule, so a run may be made longer or shorter.
    pub from: Option<PathBuf>,
    /// The learning rate and the number of steps.
    pub schedule: Schedule,
    /// The optimizer's settings.
    pub optimizer: AdamW,
    /// Items in a micro-batch, of all processes together.
    pub batch: usize,
    /// Micro-batches in an optimizer step.
    pub accumulation: usize,
    /// Number of times that earlier attempts ran out of memory. The micro-batch is halved as many times.
    pub halvings: u32,
    /// The precision of gradients, and gradient checkpointing.
    pub tape: TapeOptions,
    /// Threads that prepare batches ahead; 0 prepares each batch when it is needed.
    pub workers: usize,
    /// Steps between training states, each of which is evaluated; 0 saves the last step only.
    pub save_interval: u64,
    /// Steps between sample grids; 0 for none.
    pub sample_interval: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_interval: u64,
    /// The condition for early stopping; `None` trains to the last step.
    pub early_stopping: Option<EarlyStopping>,
    /// Maximum number of consecutive steps that are skipped because the loss or a gradient is not finite.
    pub max_skipped_steps: u64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// The user's settings as TOML, kept in the run's folder and in every training state.
    pub configuration: String,
    /// The device that computes.
    pub device: Device,
    /// The handle by which other threads stop the run.
    pub control: Control,
}

impl TrainOptions {
    /// Items in an optimizer step.
    pub(super) fn per_step(&self) -> u64 {
        (self.batch * self.accumulation) as u64
    }
}

/// The condition that ends a run that no longer improves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// Number of evaluations without improvement after which the run ends.
    pub patience: u64,
    /// The improvement of a score that counts.
    pub min_delta: f64,
}

/// Micro-batches that are ready or in progress beside the one that is being trained on.
const PREFETCH: usize = 2;

/// Trains `task` with the settings `plan` and returns the paths of the released files, `.pt` and `.safetensors`.
///
/// Both are in the run's folder and hold a moving average of the weights. If training ends earlier, the completed work is saved. A run with
/// the same settings resumes from there. Its files are byte for byte the same (with the same program, CPU and number of threads).
///
/// # Errors
/// Returns the error that ended the run.
pub fn train(
    task: &mut dyn Task,
    plan: &TrainOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<[PathBuf; 2]> {
    train_distributed(task, plan, &mut ProcessGroup::single(), observe)
}

/// Trains as [`train()`] does, with the processes of `team`, of which this one is the first.
///
/// The files are the same bytes if the run is always resumed with the same number of processes. With another number they differ by
/// rounding.
///
/// # Errors
/// Returns the error that ended the run.
pub fn train_distributed(
    task: &mut dyn Task,
    plan: &TrainOptions,
    team: &mut ProcessGroup,
    observe: &mut dyn FnMut(Event),
) -> Result<[PathBuf; 2]> {
    if plan.accumulation == 0 {
        return Err(Error::setting("--gradient-accumulation-steps", "expected at least 1, found 0"));
    }
    let (smallest, processes) = (task.smallest_batch() * team.size(), team.size());
    if plan.batch < smallest {
        let message = format!("expected at least {smallest}, found {}", plan.batch);
        return Err(Error::setting("--batch-size", message));
    }
    if !plan.batch.is_multiple_of(processes) {
        let message = format!("expected a multiple of --gpus {processes}, found {}", plan.batch);
        return Err(Error::setting("--batch-size", message));
    }
    let ledger = task.cost()?;
    let mut run = RunFiles::open(task, plan, processes)?;
    let optimizer = match run.begin(task, plan, &ledger.params, observe) {
        Ok(optimizer) => optimizer,
        Err(error) => {
            run.record_refusal(&error)?;
            return Err(error);
        }
    };
    run.record_start(plan)?;
    observe(Event::Begin {
        folder: run.folder(),
        settings: run.settings(),
        step: run.progress.step,
        steps: plan.schedule.steps,
        parameters: ledger.parameters(),
    });
    plan.control.set(Phase::Training(Box::new(ActiveRun { optimizer, run, inconsistent: false })));
    let ended = train_loop(task, plan, team, observe).and_then(|()| {
        plan.control.finish(|active| active.run.publish(&active.optimizer, task.releases_best(), observe))
    });
    if let Err(error) = &ended {
        // The error that ended the run matters more than an error while saving it.
        plan.control.with(|active| {
            let saved = if active.run.progress.step > 0 && !active.run.is_saved() && !active.inconsistent {
                active.run.save(&active.optimizer).map(|_| ())
            } else {
                Ok(())
            };
            if let Err(also) = saved.and_then(|()| active.run.record_failure(error)) {
                observe(Event::Note(&format!("the run's state could not be saved: {also}")));
            }
        });
    }
    plan.control.set(Phase::Over);
    if let Ok(paths) = &ended {
        paths.iter().for_each(|path| observe(Event::Wrote(path)));
    }
    ended
}

/// Trains from the run's current step to its end.
fn train_loop(
    task: &mut dyn Task,
    plan: &TrainOptions,
    team: &mut ProcessGroup,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let (per_step, share) = (plan.per_step(), plan.batch / team.size());
    let steps = plan.schedule.steps;
    let control = &plan.control;
    let mut micro_batch = first_micro_batch(task, plan, share);
    if micro_batch < share {
        observe(Event::Note(&describe_split(task, micro_batch, per_step)));
    }
    let mut loader = loader(task, plan, micro_batch, team)?;
    let existing_bytes = control.with(|active| active.run.state_bytes());
    preflight::check(task, plan, micro_batch, existing_bytes, team.size())?;
    if let Some(describe) = team.describe(&plan.device) {
        observe(Event::Note(&describe));
    }
    let (saved, progress) = control.with(|active| (active.run.is_saved(), active.run.progress.clone()));
    team.begin(&Start { settings: task.settings(), saved, progress, micro_batch }, &plan.device)?;
    loop {
        let (step, scale) = control.with(|active| {
            let progress = &mut active.run.progress;
            progress.micro_batch = Some(micro_batch).filter(|&n| n < share);
            (progress.step, progress.scale(plan))
        });
        let stop = end_step(task, plan, step, observe)?;
        if step == steps || stop {
            return Ok(());
        }

        let start = Instant::now();
        let params = control.with(|active| active.optimizer.params())?;
        let learnt = forward_backward_all(task, plan, params, &mut loader, team, step, scale);
        let (loss, learnt) = match learnt {
            Err(error) if error.is_out_of_memory() => {
                micro_batch = halve_micro_batch(micro_batch, task.smallest_batch()).ok_or(error)?;
                observe(Event::Note(&format!(
                    "out of memory: {}",
                    describe_split(task, micro_batch, per_step)
                )));
                loader = self::loader(task, plan, micro_batch, team)?;
                continue;
            }
            learnt => learnt?,
        };
        if step == 0 && !loss.is_finite() {
            let files = task.batches().files(0, per_step as usize);
            return Err(Error::NotFinite { step: 1, loss, norm: 0.0, files });
        }
        let rate = plan.schedule.rate(step);
        let waited = loader.waited();
        let (taken, skipped_in_a_row) = control.with(|active| -> Result<_> {
            let ActiveRun { optimizer, run, inconsistent } = active;
            // An error in between leaves weights of two steps, which must not be saved.
            *inconsistent = true;
            let (norm, skipped) = run.progress.take(optimizer, loss, &learnt, rate)?;
            *inconsistent = false;
            let seconds = start.elapsed().as_secs_f64();
            let taken = Step {
                step: step + 1,
                loss,
                mean_loss: run.progress.mean_loss.unwrap_or(loss),
                rate,
                norm,
                skipped,
                items: per_step,
                seconds,
                waited: waited.as_secs_f64(),
            };
            if is_due(plan.log_interval.max(1), step + 1, steps) || skipped {
                run.log(&metrics_line(&taken, &plan.device))?;
            }
            Ok((taken, run.progress.skipped_in_a_row))
        })?;
        drop(learnt);
        observe(Event::Step(&taken));
        if skipped_in_a_row > 0 {
            let files = task.batches().files(step * per_step, per_step as usize);
            let skipped = Error::NotFinite { step: step + 1, loss, norm: taken.norm, files };
            if skipped_in_a_row >= plan.max_skipped_steps.max(1) {
                return Err(skipped);
            }
            observe(Event::Note(&format!("{skipped}; the step is skipped")));
        }
    }
}

/// Evaluates, saves and generates samples after `step`, where they are due. Returns true for early stopping.
///
/// A run that resumes from this step does what is not yet done.
fn end_step(
    task: &mut dyn Task,
    plan: &TrainOptions,
    step: u64,
    observe: &mut dyn FnMut(Event),
) -> Result<bool> {
    let (control, steps) = (&plan.control, plan.schedule.steps);
    let evaluated = control.with(|active| active.run.progress.evaluated);
    let save = step > 0 && is_due(plan.save_interval, step, steps);
    if save && evaluated < step {
        evaluate(task, plan, step, observe)?;
    }
    let (stale, best) = control.with(|active| (active.run.progress.stale, active.run.progress.best.clone()));
    let stop =
        plan.early_stopping.is_some_and(|early_stopping| best.is_some() && stale >= early_stopping.patience);
    if save && !control.with(|active| active.run.is_saved() && evaluated == step) {
        let path = control.with(|active| active.run.save(&active.optimizer))?;
        observe(Event::Wrote(&path));
    }
    if step > 0 && plan.sample_interval > 0 && (is_due(plan.sample_interval, step, steps) || stop) {
        // Failing to generate samples must not end a run.
        if let Err(error) = sample(task, plan, step, observe) {
            observe(Event::Note(&format!("no samples at step {step}: {error}")));
        }
    }
    if stop && let Some(best) = best {
        let (name, value, at) = (&best.name, best.value, best.step);
        let said = format!(
            "stopped early: {name} was best at step {at}, {value:.4}, and not better in {stale} evaluations"
        );
        observe(Event::Note(&said));
    }
    Ok(stop)
}

fn evaluate(
    task: &mut dyn Task,
    plan: &TrainOptions,
    step: u64,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let control = &plan.control;
    let averages = control.with(|active| active.optimizer.averages());
    let mut found = Vec::new();
    for average in 0..averages {
        let weights = control.with(|active| active.optimizer.ema(average))?;
        found.push(task.evaluate(&weights)?);
    }
    // Of two averages, the better one counts.
    let lead = |scores: &[Score]| {
        scores.first().map_or(f64::NEG_INFINITY, |s| if s.higher_is_better { s.value } else { -s.value })
    };
    let leading = usize::from(found.get(1).is_some_and(|second| lead(second) > lead(&found[0])));
    let scores = &found[leading];
    let min_delta = plan.early_stopping.map_or(0.0, |early_stopping| early_stopping.min_delta);
    let best = control.with(|active| -> Result<bool> {
        let run = &mut active.run;
        let better = scores.first().is_some_and(|first| run.update_best(first, leading, min_delta));
        if !scores.is_empty() {
            let mut line = json!({"step": step});
            if averages > 1 {
                // Text, which readers do not take for a score.
                line["weights"] = json!(["ema", "ema2"][leading]);
            }
            for score in scores {
                line[score.name] = json!(score.value);
            }
            run.log(&line)?;
        }
        let progress = &mut run.progress;
        (progress.evaluated, progress.leading) = (step, leading);
        progress.stale = if better { 0 } else { progress.stale + u64::from(!scores.is_empty()) };
        Ok(better)
    })?;
    if !scores.is_empty() {
        observe(Event::Evaluated { step, scores, best });
    }
    Ok(())
}

fn sample(task: &mut dyn Task, plan: &TrainOptions, step: u64, observe: &mut dyn FnMut(Event)) -> Result<()> {
    let weights = plan.control.with(|active| active.optimizer.ema(0))?;
    let Some(picture) = task.sample_grid(&weights)? else { return Ok(()) };
    let path = plan.control.with(|active| active.run.write_sample(&picture))?;
    observe(Event::Sampled { step, picture: &picture, path: &path });
    Ok(())
}

/// Computes the loss and the gradients of step `step` over all processes of `team`, each of which calls this.
///
/// # Errors
/// Returns the errors of [`ProcessGroup::all_reduce`].
pub(super) fn forward_backward_all(
    task: &mut dyn Task,
    plan: &TrainOptions,
    mut params: Params,
    loader: &mut Loader,
    team: &mut ProcessGroup,
    step: u64,
    scale: f64,
) -> Result<(f64, StepGradients)> {
    let per_step = plan.per_step();
    let accumulation = per_step as usize / (loader.size() * team.size());
    let own = forward_backward(task, plan.tape, &mut params, loader, accumulation, step * per_step, scale);
    drop(params);
    team.all_reduce(own)
}

/// Computes the mean loss and the gradients of `accumulation` micro-batches.
///
/// The micro-batches start at `position`, the number of items drawn before. The gradients are those of the loss times `scale`. A
/// [sharded](Loader::sharded) loader yields its share of both.
///
/// # Errors
/// Returns errors of the task.
pub fn forward_backward(
    task: &mut dyn Task,
    tape: TapeOptions,
    params: &mut Params,
    loader: &mut Loader,
    accumulation: usize,
    position: u64,
    scale: f64,
) -> Result<(f64, StepGradients)> {
    let share = 1.0 / (accumulation * loader.shards()) as f64;
    let (mut loss, mut learnt) = (0.0, StepGradients::default());
    for micro in 0..accumulation {
        let tape = Tape::with_options(tape);
        let batch = loader.load(position + loader.place(micro))?;
        let value = task.loss(&tape, params, &batch)?;
        loss += share * f64::from(value.value().to_scalar::<f32>()?);
        learnt.statistics.push(tape.take_statistics());
        for (name, gradient) in value.backward(share * scale)? {
            let total = match learnt.gradients.remove(&name) {
                Some(old) => (old + gradient)?,
                None => gradient,
            };
            learnt.gradients.insert(name, total);
        }
    }
    Ok((loss, learnt))
}

pub(super) fn loader(
    task: &dyn Task,
    plan: &TrainOptions,
    micro_batch: usize,
    team: &ProcessGroup,
) -> Result<Loader> {
    let loader = Loader::with_workers(task.batches(), micro_batch, plan.workers, PREFETCH)?;
    Ok(loader.sharded(team.rank(), team.size()))
}

/// True if work that is due every `interval` steps, and at the last of `steps`, is due at `step`.
fn is_due(interval: u64, step: u64, steps: u64) -> bool {
    step == steps || (interval > 0 && step.is_multiple_of(interval))
}

fn metrics_line(step: &Step, device: &Device) -> Value {
    let mut line = json!({
        "step": step.step,
        (LOSS): step.loss,
        (MEAN_LOSS): step.mean_loss,
        "lr": step.rate,
        "gradient_norm": step.norm,
        "items_per_second": step.items as f64 / step.seconds,
        "waited": step.waited / step.seconds,
    });
    if let Some(bytes) = memory::process() {
        line["memory_bytes"] = json!(bytes);
    }
    if let Some(gpu) = memory::device(device) {
        (line["gpu_allocated_bytes"], line["gpu_reserved_bytes"]) =
            (json!(gpu.allocated), json!(gpu.reserved));
    }
    if step.skipped {
        line["skipped"] = json!(true);
    }
    line
}

/// The micro-batch that a run starts or resumes with, where `whole` items were planned.
fn first_micro_batch(task: &dyn Task, plan: &TrainOptions, whole: usize) -> usize {
    let (before, smallest) =
        (plan.control.with(|active| active.run.progress.micro_batch), task.smallest_batch());
    let halved = (0..plan.halvings).try_fold(whole, |size, _| halve_micro_batch(size, smallest));
    let most = before.unwrap_or(whole).min(halved.unwrap_or(smallest)).min(whole);
    // A run with another number of processes may have had a size that does not divide this share.
    (smallest..=most).rev().find(|part| whole.is_multiple_of(*part)).unwrap_or(whole)
}

/// The largest divisor of `size` that is at most half of it; `None` if that is less than `smallest`.
pub(super) fn halve_micro_batch(size: usize, smallest: usize) -> Option<usize> {
    (smallest..=size / 2).rev().find(|part| size.is_multiple_of(*part))
}

/// Describes how a step is split after memory was too small for the planned micro-batches.
fn describe_split(task: &dyn Task, micro_batch: usize, per_step: u64) -> String {
    let accumulation = per_step as usize / micro_batch;
    let mut said = format!("going on with {accumulation} micro-batches of {micro_batch} a step");
    if task.smallest_batch() > 1 {
        said += "; batch normalisation now goes by the statistics of smaller batches";
    }
    said
}
