//! The training loop of every task.

use std::{path::PathBuf, time::Instant};

use candle_core::Device;
use serde_json::{Value, json};

use super::{
    Control, Error, Event, ProcessGroup, Result, Score, Step, Task, TrainOptions,
    control::Phase,
    gradients::halve_micro_batch,
    metrics::{LOSS, MEAN_LOSS},
    parallel::{
        Start,
        gradients::{forward_backward_all, loader},
    },
    preflight,
    run::{ActiveRun, RunFiles},
};
use crate::memory;

/// Trains `task` with the settings `options` and returns the paths of the released files, `.pt` and `.safetensors`.
///
/// Both are in the run's folder and hold a moving average of the weights. If training ends earlier, the completed work is saved. A run with
/// the same settings resumes from there. Its files are byte for byte the same (with the same program, CPU and number of threads).
///
/// # Errors
/// Returns the error that ended the run.
pub fn train(
    task: &mut dyn Task,
    options: &TrainOptions,
    observe: &mut dyn FnMut(Event),
) -> Result<[PathBuf; 2]> {
    train_distributed(task, options, &mut ProcessGroup::single(), observe)
}

/// Trains as [`train()`] does, in all processes of `group`; this is process 0.
///
/// The files are the same bytes if the run is always resumed with the same number of processes. With another number they differ by
/// rounding.
///
/// # Errors
/// Returns the error that ended the run.
pub fn train_distributed(
    task: &mut dyn Task,
    options: &TrainOptions,
    group: &mut ProcessGroup,
    observe: &mut dyn FnMut(Event),
) -> Result<[PathBuf; 2]> {
    if options.accumulation == 0 {
        return Err(Error::setting("gradient-accumulation-steps", "expected at least 1, found 0"));
    }
    let (smallest, processes) = (task.smallest_batch() * group.size(), group.size());
    if options.batch < smallest {
        let message = format!("expected at least {smallest}, found {}", options.batch);
        return Err(Error::setting("batch-size", message));
    }
    if !options.batch.is_multiple_of(processes) {
        let message = format!("expected a multiple of gpus ({processes}), found {}", options.batch);
        return Err(Error::setting("batch-size", message));
    }
    let cost = task.cost()?;
    let mut run = RunFiles::open(task, options, processes)?;
    let optimizer = match run.begin(task, options, &cost.params, observe) {
        Ok(optimizer) => optimizer,
        Err(error) => {
            run.record_rejection(&error)?;
            return Err(error);
        }
    };
    run.record_start(options)?;
    observe(Event::Begin {
        folder: run.folder(),
        settings: run.settings(),
        step: run.progress.step,
        steps: options.schedule.steps,
        parameters: cost.parameters(),
    });
    options.control.set(Phase::Training(Box::new(ActiveRun { optimizer, run, inconsistent: false })));
    let result = train_loop(task, options, group, observe).and_then(|()| {
        options.control.finish(|active: &mut ActiveRun| {
            active.run.publish(&active.optimizer, task.releases_best(), observe)
        })
    });
    if let Err(error) = &result {
        // An error while saving must not hide the error that ended the run.
        with_run(&options.control, |active| {
            let saved = if active.run.progress.step > 0 && !active.run.is_saved() && !active.inconsistent {
                active.run.save(&active.optimizer).map(|_| ())
            } else {
                Ok(())
            };
            if let Err(save_error) = saved.and_then(|()| active.run.record_failure(error)) {
                observe(Event::Note(&format!("the run's state could not be saved: {save_error}")));
            }
        });
    }
    options.control.set(Phase::Ended);
    if let Ok(paths) = &result {
        paths.iter().for_each(|path| observe(Event::Wrote(path)));
    }
    result
}

/// Calls `f` with the run, under the lock of `control`.
fn with_run<R>(control: &Control, f: impl FnOnce(&mut ActiveRun) -> R) -> R {
    control.with_run(f)
}

/// Trains from the run's current step to its end.
fn train_loop(
    task: &mut dyn Task,
    options: &TrainOptions,
    group: &mut ProcessGroup,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let (per_step, share) = (options.per_step(), options.batch / group.size());
    let steps = options.schedule.steps;
    let control = &options.control;
    let mut micro_batch = first_micro_batch(task, options, share);
    if micro_batch < share {
        observe(Event::Note(&describe_split(task, micro_batch, per_step)));
    }
    let mut loader = loader(task, options, micro_batch, group)?;
    let existing_bytes = with_run(control, |active| active.run.state_bytes());
    preflight::check(task, options, micro_batch, existing_bytes, group.size())?;
    if let Some(describe) = group.describe(&options.device) {
        observe(Event::Note(&describe));
    }
    let (saved, progress) = with_run(control, |active| (active.run.is_saved(), active.run.progress.clone()));
    group.begin(&Start { settings: task.settings(), saved, progress, micro_batch }, &options.device)?;
    loop {
        let (step, scale) = with_run(control, |active| {
            let progress = &mut active.run.progress;
            progress.micro_batch = Some(micro_batch).filter(|&n| n < share);
            (progress.step, progress.scale(options))
        });
        let stop = end_step(task, options, step, observe)?;
        if step == steps || stop {
            return Ok(());
        }

        let start = Instant::now();
        let params = with_run(control, |active| active.optimizer.params())?;
        let gradients = forward_backward_all(task, options, params, &mut loader, group, step, scale);
        let (loss, gradients) = match gradients {
            Err(error) if error.is_out_of_memory() => {
                micro_batch = halve_micro_batch(micro_batch, task.smallest_batch()).ok_or(error)?;
                observe(Event::Note(&format!(
                    "out of memory: {}",
                    describe_split(task, micro_batch, per_step)
                )));
                loader = self::loader(task, options, micro_batch, group)?;
                continue;
            }
            gradients => gradients?,
        };
        if step == 0 && !loss.is_finite() {
            let files = task.batches().files(0, per_step as usize);
            return Err(Error::NotFinite { step: 1, loss, norm: 0.0, files });
        }
        let rate = options.schedule.rate(step);
        let waited = loader.waited();
        let (finished, skipped_in_a_row) = with_run(control, |active| -> Result<_> {
            let ActiveRun { optimizer, run, inconsistent } = active;
            // An error in between leaves weights of two steps, which must not be saved.
            *inconsistent = true;
            let (norm, skipped) = run.progress.apply_step(optimizer, loss, &gradients, rate)?;
            *inconsistent = false;
            let seconds = start.elapsed().as_secs_f64();
            let finished = Step {
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
            if is_due(options.log_interval.max(1), step + 1, steps) || skipped {
                run.log(&metrics_line(&finished, &options.device))?;
            }
            Ok((finished, run.progress.skipped_in_a_row))
        })?;
        drop(gradients);
        observe(Event::Step(&finished));
        if skipped_in_a_row > 0 {
            let files = task.batches().files(step * per_step, per_step as usize);
            let skipped = Error::NotFinite { step: step + 1, loss, norm: finished.norm, files };
            if skipped_in_a_row >= options.max_skipped_steps.max(1) {
                return Err(skipped);
            }
            observe(Event::Note(&format!("{skipped}; the step is skipped")));
        }
    }
}

/// Evaluates, saves and generates samples after `step`, where they are due. Returns true for early stopping.
///
/// A run that resumes from this step does only the work that is not yet done.
fn end_step(
    task: &mut dyn Task,
    options: &TrainOptions,
    step: u64,
    observe: &mut dyn FnMut(Event),
) -> Result<bool> {
    let (control, steps) = (&options.control, options.schedule.steps);
    let evaluated = with_run(control, |active| active.run.progress.evaluated);
    let save = step > 0 && is_due(options.save_interval, step, steps);
    if save && evaluated < step {
        evaluate(task, options, step, observe)?;
    }
    let (stale, best) =
        with_run(control, |active| (active.run.progress.stale, active.run.progress.best.clone()));
    let stop = options
        .early_stopping
        .is_some_and(|early_stopping| best.is_some() && stale >= early_stopping.patience);
    if save && !with_run(control, |active| active.run.is_saved() && evaluated == step) {
        let path = with_run(control, |active| active.run.save(&active.optimizer))?;
        observe(Event::Wrote(&path));
    }
    if step > 0 && options.sample_interval > 0 && (is_due(options.sample_interval, step, steps) || stop) {
        // Failing to generate samples must not end a run.
        if let Err(error) = sample(task, options, step, observe) {
            observe(Event::Note(&format!("no samples at step {step}: {error}")));
        }
    }
    if stop && let Some(best) = best {
        let (name, value, at) = (&best.name, best.value, best.step);
        let message = format!(
            "early stopping: {name} did not improve in {stale} evaluations; best {value:.4} at step {at}"
        );
        observe(Event::Note(&message));
    }
    Ok(stop)
}

fn evaluate(
    task: &mut dyn Task,
    options: &TrainOptions,
    step: u64,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let control = &options.control;
    let averages = with_run(control, |active| active.optimizer.averages());
    let mut evaluations = Vec::new();
    for average in 0..averages {
        let weights = with_run(control, |active| active.optimizer.ema(average))?;
        evaluations.push(task.evaluate(&weights)?);
    }
    // Of two averages, the better one is used.
    let main_score = |scores: &[Score]| {
        scores.first().map_or(f64::NEG_INFINITY, |s| if s.higher_is_better { s.value } else { -s.value })
    };
    let leading = usize::from(
        evaluations.get(1).is_some_and(|second| main_score(second) > main_score(&evaluations[0])),
    );
    let scores = &evaluations[leading];
    let min_delta = options.early_stopping.map_or(0.0, |early_stopping| early_stopping.min_delta);
    let best = with_run(control, |active| -> Result<bool> {
        let run = &mut active.run;
        let better = scores.first().is_some_and(|first| run.update_best(first, leading, min_delta));
        if !scores.is_empty() {
            let mut line = json!({"step": step});
            if averages > 1 {
                // Text, so that readers do not count it as a score.
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

fn sample(
    task: &mut dyn Task,
    options: &TrainOptions,
    step: u64,
    observe: &mut dyn FnMut(Event),
) -> Result<()> {
    let weights = with_run(&options.control, |active| active.optimizer.ema(0))?;
    let Some(sample) = task.sample(&weights)? else { return Ok(()) };
    let path = with_run(&options.control, |active| active.run.write_sample(&sample))?;
    observe(Event::Sampled { step, sample: &sample, path: &path });
    Ok(())
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

/// The micro-batch that a run starts or resumes with; `planned` is the planned number of items.
fn first_micro_batch(task: &dyn Task, options: &TrainOptions, planned: usize) -> usize {
    let (previous, smallest) =
        (with_run(&options.control, |active| active.run.progress.micro_batch), task.smallest_batch());
    let halved = (0..options.halvings).try_fold(planned, |size, _| halve_micro_batch(size, smallest));
    let max = previous.unwrap_or(planned).min(halved.unwrap_or(smallest)).min(planned);
    // A run with another number of processes may have had a size that does not divide this share.
    (smallest..=max).rev().find(|part| planned.is_multiple_of(*part)).unwrap_or(planned)
}

/// Describes the split of a step after memory was too small for the planned micro-batches.
fn describe_split(task: &dyn Task, micro_batch: usize, per_step: u64) -> String {
    let accumulation = per_step as usize / micro_batch;
    let mut message = format!("continuing with {accumulation} micro-batches of {micro_batch} per step");
    if task.smallest_batch() > 1 {
        message += "; batch normalization now uses the statistics of smaller batches";
    }
    message
}
