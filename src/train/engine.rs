//! The loop that trains any task.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use candle_core::Device;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tiny_cats_export::{ModelMeta, write_atomically, write_png};
use tiny_cats_models::{
    ParamSpec, Weights,
    candle::Params,
    init,
    tape::{Tape, Var},
};

use super::{AdamW, Batch, Batches, Error, Event, Learnt, Loader, Optimizer, Result, Schedule, Score, Step};
use crate::checkpoint::{self, TrainingState};

/// What is trained. Whatever a task draws at random depends on its seed and the position in the data alone.
pub trait Task {
    /// What its training states are called: `NAME_step_00000100.safetensors`.
    fn name(&self) -> &str;

    /// What its released files are called: `NAME.pt`.
    fn released(&self) -> String;

    /// The network's parameters, in the order of its definition.
    ///
    /// # Errors
    /// When there is no such network.
    fn specs(&self) -> Result<Vec<ParamSpec>>;

    /// The weights that a run begins with.
    ///
    /// # Errors
    /// When they cannot be had.
    fn initial(&self, seed: u64) -> Result<Weights> {
        Ok(init(&self.specs()?, seed))
    }

    /// Items that a micro-batch must have: two or more where it is normalised by its own statistics.
    fn smallest_batch(&self) -> usize {
        1
    }

    /// What makes its batches; the workers share it.
    fn batches(&self) -> Arc<dyn Batches>;

    /// All settings and the data's fingerprint: a run goes on only with the same.
    fn settings(&self) -> Value;

    /// What a released file says about the model.
    fn meta(&self) -> ModelMeta;

    /// The mean loss of a micro-batch.
    ///
    /// # Errors
    /// Those of the network.
    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var>;

    /// How good the network is on data that it is not trained on; `None` where there is no measure for that.
    ///
    /// # Errors
    /// Those of the network.
    fn evaluate(&mut self, _weights: &Weights) -> Result<Option<Score>> {
        Ok(None)
    }

    /// What the network can do so far, to look at.
    ///
    /// # Errors
    /// Those of the network.
    fn samples(&mut self, weights: &Weights) -> Result<Option<RgbImage>>;
}

/// Where a run begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// At the beginning.
    #[default]
    Never,
    /// Where this training state stopped. The settings must be the same, but for the schedule: a run may be made longer or shorter.
    From(PathBuf),
}

/// How a task is trained.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The learning rate, and the number of steps.
    pub schedule: Schedule,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Items in a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// Steps between training states, each of which is evaluated; 0 for the last step alone.
    pub save_interval: u64,
    /// Steps between sample grids; 0 for none.
    pub sample_interval: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_interval: u64,
    /// Initial weights.
    pub seed: u64,
    /// Where everything is written.
    pub output: PathBuf,
    /// Where the run begins.
    pub resume: Resume,
    /// Where it computes.
    pub device: Device,
}

/// Training states that are kept.
const KEPT: usize = 3;

/// Trains `task` as `plan` says. At the end its released files, `.pt` and `.safetensors`, with the moving average of the weights, are in
/// the output folder; their paths are returned. They are of the step that was evaluated best, where the task can be evaluated (the first
/// of equals), and of the last step otherwise.
///
/// # Errors
/// Whatever stops a run; what was written before is whole.
pub fn train(task: &mut dyn Task, plan: &Plan, observe: &mut dyn FnMut(Event)) -> Result<[PathBuf; 2]> {
    if plan.accumulation == 0 {
        return Err(Error::setting("--gradient-accumulation-steps", "expected at least 1, found 0"));
    }
    if plan.batch < task.smallest_batch() {
        let message = format!("expected at least {}, found {}", task.smallest_batch(), plan.batch);
        return Err(Error::setting("--batch-size", message));
    }
    let specs = task.specs()?;
    let mut run = Run::new(task, plan)?;
    let (mut optimizer, first) = run.begin(task, &specs, observe)?;
    let parameters = specs.iter().map(|s| s.dims.iter().product::<usize>() as u64).sum();
    observe(Event::Begin {
        folder: &plan.output,
        settings: &run.settings,
        step: first,
        steps: plan.schedule.steps,
        parameters,
    });
    let mut loader = Loader::new(task.batches(), plan.batch);
    let per_step = (plan.batch * plan.accumulation) as u64;
    for step in first..plan.schedule.steps {
        let start = Instant::now();
        let (loss, learnt) = learn(task, &optimizer, &mut loader, plan.accumulation, step * per_step)?;
        let rate = plan.schedule.rate(step);
        let norm = if loss.is_finite() { optimizer.step(&learnt, rate, step)? } else { 0.0 };
        drop(learnt);
        for (what, value) in [("the loss", loss), ("the gradient's norm", norm)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { step: step + 1, what, value });
            }
        }
        let done = step + 1;
        tracing::debug!(step = done, loss, rate, norm, seconds = start.elapsed().as_secs_f64());
        let seconds = start.elapsed().as_secs_f64();
        let speed = per_step as f64 / seconds;
        observe(Event::Step(&Step {
            step: done,
            loss,
            rate,
            norm,
            skipped: false,
            items: per_step,
            seconds,
            waited: 0.0,
        }));
        let due = |interval: u64| interval > 0 && done.is_multiple_of(interval);
        if due(plan.log_interval.max(1)) || done == plan.schedule.steps {
            run.log(&json!({"step": done, "loss": loss, "lr": rate, "gradient_norm": norm, "items_per_second": speed}))?;
        }
        let last = done == plan.schedule.steps;
        if due(plan.save_interval) || last {
            run.evaluate(task, &optimizer, done, observe)?;
            run.save(&optimizer, done, observe)?;
        }
        if due(plan.sample_interval) || (last && plan.sample_interval > 0) {
            // Pictures to look at are not worth a run.
            if let Err(e) = run.samples(task, &optimizer, done, observe) {
                observe(Event::Note(&format!("no samples at step {done}: {e}")));
            }
        }
    }
    run.publish(&optimizer, observe)
}

/// Mean loss of one step of `accumulation` micro-batches from `position` on, the number of items drawn before, and what is learnt from it.
///
/// # Errors
/// Those of the task.
pub fn learn(
    task: &mut dyn Task,
    optimizer: &Optimizer,
    loader: &mut Loader,
    accumulation: usize,
    position: u64,
) -> Result<(f64, Learnt)> {
    let share = 1.0 / accumulation as f64;
    let (mut loss, mut learnt) = (0.0, Learnt::default());
    for micro in 0..accumulation {
        let tape = Tape::new();
        let mut params = optimizer.params()?;
        let batch = loader.load(position + (micro * loader.size()) as u64)?;
        let value = task.loss(&tape, &mut params, &batch)?;
        loss += share * f64::from(value.value().to_scalar::<f32>()?);
        learnt.statistics.push(tape.take_statistics());
        for (name, gradient) in value.backward(share)? {
            let total = match learnt.gradients.remove(&name) {
                Some(old) => (old + gradient)?,
                None => gradient,
            };
            learnt.gradients.insert(name, total);
        }
    }
    Ok((loss, learnt))
}

/// The state of a run that was evaluated best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    score: f64,
}

/// A run's files.
struct Run<'a> {
    plan: &'a Plan,
    name: String,
    released: String,
    meta: ModelMeta,
    settings: Value,
    /// The states that are this run's own, oldest first.
    states: Vec<PathBuf>,
    best: Option<Best>,
}

impl<'a> Run<'a> {
    fn new(task: &dyn Task, plan: &'a Plan) -> Result<Self> {
        let settings = as_read(&json!({
            "task": task.settings(),
            "optimizer": plan.optimizer,
            "batch": plan.batch,
            "accumulation": plan.accumulation,
            "seed": plan.seed,
        }));
        let mut meta = task.meta();
        meta.provenance = json!({
            "tiny-cats": env!("CARGO_PKG_VERSION"),
            "weights": "ema",
            "schedule": plan.schedule,
            "items_per_step": plan.batch * plan.accumulation,
            "items": task.batches().items(),
            "settings": settings,
        });
        std::fs::create_dir_all(&plan.output)
            .map_err(|source| Error::File { path: plan.output.clone(), source })?;
        let (name, released) = (task.name().to_owned(), task.released());
        let mut run = Self { plan, name, released, meta, settings, states: Vec::new(), best: None };
        run.states = run.states_in_folder()?;
        Ok(run)
    }

    fn states_in_folder(&self) -> Result<Vec<PathBuf>> {
        let failed = |source| Error::File { path: self.plan.output.clone(), source };
        let prefix = format!("{}_step_", self.name);
        let mut states = Vec::new();
        for entry in std::fs::read_dir(&self.plan.output).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".safetensors") {
                states.push(path);
            }
        }
        states.sort();
        Ok(states)
    }

    fn begin(
        &mut self,
        task: &dyn Task,
        specs: &[ParamSpec],
        observe: &mut dyn FnMut(Event),
    ) -> Result<(Optimizer, u64)> {
        let Resume::From(path) = &self.plan.resume else {
            if let Some(path) = self.states.pop() {
                let message = "is of an earlier run: go on from it with --resume, or choose another --output";
                return Err(Error::Resume { path, message: message.into() });
            }
            let weights = task.initial(self.plan.seed)?;
            return Ok((Optimizer::new(self.plan.optimizer.clone(), specs, &weights, &self.plan.device)?, 0));
        };
        let state = TrainingState::load(path)?;
        let fail = |message: String| Error::Resume { path: path.clone(), message };
        if let Some(field) = difference("settings", &state.meta["settings"], &self.settings) {
            return Err(fail(format!("was trained with other settings: {field}")));
        }
        let step = state.meta["step"].as_u64().ok_or_else(|| fail("step: expected a whole number".into()))?;
        if step > self.plan.schedule.steps {
            return Err(fail(format!("is at step {step}, beyond --steps {}", self.plan.schedule.steps)));
        }
        if let Some(field) =
            difference("schedule", &state.meta["schedule"], &as_read(&json!(self.plan.schedule)))
        {
            observe(Event::Note(&format!("from step {step} on the schedule is another: {field}")));
        }
        self.cut_log(step)?;
        // What lies beyond is of a branch that is not gone on with: it stays, and is not counted.
        let newest = self.state_path(step);
        self.states.retain(|state| *state <= newest);
        self.best = serde_json::from_value(state.meta["best"].clone())
            .map_err(|e| fail(format!("best: expected a step and its score: {e}")))?;
        self.bring_best(path, observe)?;
        Ok((Optimizer::restore(self.plan.optimizer.clone(), specs, &state, &self.plan.device)?, step))
    }

    /// Sees to it that the best state so far is among this run's own; it may lie beside the state `resumed`, in another folder.
    fn bring_best(&mut self, resumed: &Path, observe: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(best) = self.best else { return Ok(()) };
        let own = self.state_path(best.step);
        if self.states.contains(&own) {
            return Ok(());
        }
        let beside = own.file_name().map(|name| resumed.with_file_name(name)).filter(|path| path.is_file());
        if let Some(beside) = beside {
            TrainingState::load(&beside)?.save(&own)?;
            self.states.push(own);
            self.states.sort();
        } else {
            let (lost, score) = (own.display(), best.score);
            let said = format!("{lost} scored best, {score:.4}, and is gone: the best is sought anew");
            observe(Event::Note(&said));
            self.best = None;
        }
        Ok(())
    }

    fn state_path(&self, step: u64) -> PathBuf {
        self.plan.output.join(format!("{}_step_{step:08}.safetensors", self.name))
    }

    fn evaluate(
        &mut self,
        task: &mut dyn Task,
        optimizer: &Optimizer,
        step: u64,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let Some(mut score) = task.evaluate(&optimizer.ema()?)? else { return Ok(()) };
        // Six digits survive being written as text and read, so that a resumed run has the same.
        score.value = (score.value * 1e6).round() / 1e6;
        let best = self.best.is_none_or(|best| score.value > best.score);
        if best {
            self.best = Some(Best { step, score: score.value });
        }
        self.log(&json!({"step": step, score.name: score.value}))?;
        observe(Event::Evaluated { step, scores: &[score], best });
        Ok(())
    }

    fn save(&mut self, optimizer: &Optimizer, step: u64, observe: &mut dyn FnMut(Event)) -> Result<()> {
        let path = self.state_path(step);
        let meta = json!({
            "model": self.meta,
            "settings": self.settings,
            "schedule": self.plan.schedule,
            "step": step,
            "best": self.best,
        });
        optimizer.state(meta)?.save(&path)?;
        observe(Event::Wrote(&path));
        self.states.retain(|state| *state != path);
        self.states.push(path);
        let best = self.best.map(|best| self.state_path(best.step));
        let mut spare = self.states.len().saturating_sub(KEPT);
        for path in std::mem::take(&mut self.states) {
            if spare > 0 && Some(&path) != best.as_ref() {
                spare -= 1;
                std::fs::remove_file(&path).map_err(|source| Error::File { path, source })?;
            } else {
                self.states.push(path);
            }
        }
        Ok(())
    }

    fn samples(
        &self,
        task: &mut dyn Task,
        optimizer: &Optimizer,
        step: u64,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let Some(picture) = task.samples(&optimizer.ema()?)? else { return Ok(()) };
        let folder = self.plan.output.join("samples");
        let path = folder.join(format!("step_{step:08}.png"));
        let failed = |source| Error::File { path: path.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        write_png(&path, &picture).map_err(failed)?;
        observe(Event::Sampled { step, picture: &picture, path: &path });
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.plan.output.join("metrics.jsonl")
    }

    fn log(&self, line: &Value) -> Result<()> {
        let path = self.log_path();
        let write = || -> std::io::Result<()> {
            let mut file: File = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "{line}")
        };
        write().map_err(|source| Error::File { path: path.clone(), source })
    }

    /// Cuts `metrics.jsonl` back to the lines up to `step`.
    fn cut_log(&self, step: u64) -> Result<()> {
        let path = self.log_path();
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        let before = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|v| v["step"].as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = text.lines().filter(before).flat_map(|l| [l, "\n"]).collect();
        write_atomically(&path, |w| w.write_all(kept.as_bytes()))
            .map_err(|source| Error::File { path: path.clone(), source })
    }

    fn publish(&mut self, optimizer: &Optimizer, observe: &mut dyn FnMut(Event)) -> Result<[PathBuf; 2]> {
        let weights = match self.best {
            Some(best) if best.step < self.plan.schedule.steps => {
                TrainingState::load(&self.state_path(best.step))?.ema
            }
            _ => optimizer.ema()?,
        };
        if let Some(best) = self.best {
            self.meta.provenance["best"] = json!(best);
        }
        let paths =
            ["pt", "safetensors"].map(|ext| self.plan.output.join(format!("{}.{ext}", self.released)));
        checkpoint::write_torch(&paths[0], &weights, &self.meta)?;
        checkpoint::write_safetensors(&paths[1], &weights, &self.meta)?;
        paths.iter().for_each(|path| observe(Event::Wrote(path)));
        Ok(paths)
    }
}

/// `value` as it is after being written and read: a number may lose its last digit, and must not count as another for that.
fn as_read(value: &Value) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or(Value::Null)
}

/// The first field in which two settings differ, with both values.
fn difference(path: &str, old: &Value, new: &Value) -> Option<String> {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            keys.map(|k| (k, a.get(k).unwrap_or(&Value::Null), b.get(k).unwrap_or(&Value::Null)))
                .find_map(|(key, a, b)| difference(&format!("{path}.{key}"), a, b))
        }
        _ if old == new => None,
        _ => Some(format!("{path} was {old}, is {new}")),
    }
}
