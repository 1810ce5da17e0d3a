//! The files of a run: training states, metrics, the record and the released files.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tiny_cats_export::{ModelMeta, remove_abandoned, write_atomically};
use tiny_cats_models::{ParamSpec, Precision};

use super::{
    BestScore, Error, Event, LossScale, Optimizer, Result, Sample, Schedule, Score, StepGradients,
    StepOptions, Task, TrainOptions,
    control::Stoppable,
    difference::{difference, settings_mismatch},
    folder::{self, RunRecord, Status},
    metrics::{LOSS, METRICS},
};
use crate::checkpoint::{self, ErrorKind, TrainingState};

/// Number of training states that are kept, besides the best one.
pub(super) const MAX_STATES: usize = 5;

/// Suffix of a damaged training state that is set aside.
const DAMAGED_SUFFIX: &str = ".damaged";
/// Weight of a step's loss in the running mean of the loss.
const LOSS_EMA_WEIGHT: f64 = 0.02;

/// The progress of a run: with the weights and the optimizer's moments, everything that resuming needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RunProgress {
    /// Steps done.
    pub step: u64,
    /// Number of steps that were skipped because the loss or a gradient was not finite.
    pub skipped: u64,
    /// Number of consecutive skipped steps at the end.
    pub skipped_in_a_row: u64,
    /// The last step that was evaluated.
    pub evaluated: u64,
    /// The best evaluation.
    pub best: Option<BestScore>,
    /// The index of the moving average with the better last evaluation.
    pub leading: usize,
    /// Evaluations since the best one.
    pub stale: u64,
    /// Items in a micro-batch, if memory was too small for the planned number.
    pub micro_batch: Option<usize>,
    /// The loss scale in f16.
    pub loss_scale: Option<LossScale>,
    /// The running mean of the loss. States of earlier versions have none, and it restarts.
    #[serde(default)]
    pub mean_loss: Option<f64>,
}

impl RunProgress {
    /// Returns the loss scale of the next step.
    pub(super) fn scale(&mut self, options: &TrainOptions) -> f64 {
        let f16 = options.tape.precision == Precision::F16;
        if f16 { self.loss_scale.get_or_insert_default().value } else { 1.0 }
    }

    /// Takes the next optimizer step with `gradients`, unless the loss or a gradient is not finite.
    ///
    /// Returns the norm of the gradients, 0 if the loss was not finite, and true if the step was skipped.
    pub(super) fn apply_step(
        &mut self,
        optimizer: &mut Optimizer,
        loss: f64,
        gradients: &StepGradients,
        rate: f64,
    ) -> Result<(f64, bool)> {
        let previous = self.loss_scale;
        let scale = previous.map_or(1.0, |scale| scale.value);
        let step_options = StepOptions { rate, updates: self.step - self.skipped, scale };
        let norm = if loss.is_finite() { optimizer.step(gradients, step_options)? } else { 0.0 };
        let skipped = !(loss.is_finite() && norm.is_finite());
        if loss.is_finite() {
            self.mean_loss = Some(self.mean_loss.map_or(loss, |mean| mean + LOSS_EMA_WEIGHT * (loss - mean)));
        }
        self.step += 1;
        self.skipped += u64::from(skipped);
        self.loss_scale = previous.map(|scale| scale.after_step(!skipped));
        let is_searching_scale = previous.is_some_and(LossScale::is_calibrating) && loss.is_finite();
        self.skipped_in_a_row = if skipped && !is_searching_scale { self.skipped_in_a_row + 1 } else { 0 };
        Ok((norm, skipped))
    }
}

/// The state of a run that changes while it trains.
pub(super) struct ActiveRun {
    pub(super) optimizer: Optimizer,
    pub(super) run: RunFiles,
    /// True while a step changes the weights, and after an error in it: not all weights are then of one step.
    pub(super) inconsistent: bool,
}

impl Stoppable for ActiveRun {
    fn stop(&mut self) -> Result<Option<(u64, PathBuf)>> {
        if self.inconsistent {
            // The previous training state is intact.
            return Ok(None);
        }
        let path = self.run.save(&self.optimizer)?;
        self.run.record_stop()?;
        Ok(Some((self.run.progress.step, path)))
    }
}

/// The files of a run.
pub(super) struct RunFiles {
    folder: PathBuf,
    /// Keeps other processes from training here.
    _lock: folder::Lock,
    record: RunRecord,
    /// True if only this process has written to the run's folder.
    is_new: bool,
    released: String,
    meta: ModelMeta,
    settings: Value,
    schedule: Value,
    configuration: String,
    /// Number of processes that train together.
    processes: usize,
    /// The training states, oldest first.
    states: Vec<PathBuf>,
    pub(super) progress: RunProgress,
}

impl RunFiles {
    /// Opens the run's folder, to start or resume the run.
    pub(super) fn open(task: &dyn Task, options: &TrainOptions, processes: usize) -> Result<Self> {
        let settings = json!({
            "task": task.settings(),
            "optimizer": options.optimizer.settings()?,
            "batch": options.batch,
            "accumulation": options.accumulation,
            "precision": options.tape.precision,
            "seed": options.seed,
        });
        let mut meta = task.meta();
        meta.provenance = json!({
            "tiny-cats": env!("CARGO_PKG_VERSION"),
            "weights": "ema",
            "schedule": options.schedule,
            "items_per_step": options.batch * options.accumulation,
            "items": task.batches().items(),
            "settings": settings,
        });
        if processes > 1 {
            meta.provenance["processes"] = json!(processes);
        }
        let folder = options.folder.clone();
        let (lock, record, is_new) = folder::begin(&folder, task.kind())?;
        remove_abandoned(&folder);
        Ok(Self {
            states: folder::states(&folder)?,
            folder,
            _lock: lock,
            record,
            is_new,
            released: task.release_name(),
            meta,
            settings,
            schedule: json!(options.schedule),
            configuration: options.configuration.clone(),
            processes,
            progress: RunProgress::default(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn settings(&self) -> &Value {
        &self.settings
    }

    /// Creates the optimizer at the run's position.
    ///
    /// It starts from the newest intact state in the folder, else from [`TrainOptions::from`], else from the initial weights.
    pub(super) fn begin(
        &mut self,
        task: &dyn Task,
        options: &TrainOptions,
        specs: &[ParamSpec],
        observe: &mut dyn FnMut(Event),
    ) -> Result<Optimizer> {
        let Some((path, state)) = self.newest(options, observe)? else {
            // A process that was killed before its first state may have left metrics.
            self.truncate_metrics()?;
            let weights = task.initial_weights(options.seed)?;
            return Optimizer::new(options.optimizer.clone(), specs, &weights, &options.device);
        };
        let fail = |message: String| Error::Resume { path: path.clone(), message };
        if let Some(message) = settings_mismatch(&state.meta["settings"], &self.settings) {
            return Err(fail(message));
        }
        self.progress = serde_json::from_value(state.meta["progress"].clone())
            .map_err(|e| fail(format!("progress: expected the progress of a run: {e}")))?;
        let step = self.progress.step;
        if step > options.schedule.steps {
            return Err(fail(format!("is at step {step}, beyond --steps {}", options.schedule.steps)));
        }
        if let Some(difference) = difference("schedule", &state.meta["schedule"], &self.schedule) {
            let difference = difference.strip_prefix("schedule.").unwrap_or(&difference);
            let (field, change) = difference.split_once(' ').unwrap_or((difference, ""));
            observe(Event::ScheduleChanged { field, change });
            let previous: Option<Schedule> = serde_json::from_value(state.meta["schedule"].clone()).ok();
            if let Some(warning) = previous.and_then(|previous| options.schedule.change_note(&previous, step))
            {
                observe(Event::Note(&warning));
            }
        }
        let (old, new) = (state.meta["processes"].as_u64().unwrap_or(1), self.processes);
        if old != new as u64 {
            let message = format!("--gpus changed from {old} to {new}: sums are rounded differently");
            observe(Event::Note(&message));
        }
        let target = self.state_path(step);
        if path != target {
            self.copy_states(&path, &state, observe)?;
        }
        // Later states are of an abandoned branch: they stay on disk but are ignored.
        self.states.retain(|state| *state <= target);
        if let Some(best) = &self.progress.best
            && !self.states.contains(&self.state_path(best.step))
            && best.step != step
        {
            let (path, value) = (self.state_path(best.step), best.value);
            let message = format!(
                "{}: the best training state ({value:.4}) is missing; the best score is reset",
                path.display()
            );
            observe(Event::Note(&message));
            self.progress.best = None;
        }
        self.truncate_metrics()?;
        self.record.step = step;
        Optimizer::restore(options.optimizer.clone(), specs, &state, &options.device)
    }

    /// Records that the run is training, with its configuration and number of steps.
    pub(super) fn record_start(&mut self, options: &TrainOptions) -> Result<()> {
        let path = self.folder.join(folder::CONFIGURATION);
        write_atomically(&path, |w| w.write_all(self.configuration.as_bytes())).map_err(file_error(&path))?;
        (self.record.steps, self.is_new) = (options.schedule.steps, false);
        self.record_end(Status::Running, None)
    }

    /// Records that the run could not start, but only for a new run.
    pub(super) fn record_rejection(&mut self, error: &Error) -> Result<()> {
        if self.is_new { self.record_failure(error) } else { Ok(()) }
    }

    /// Returns the newest intact state and its path.
    fn newest(
        &mut self,
        options: &TrainOptions,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Option<(PathBuf, TrainingState)>> {
        let mut damaged: Vec<checkpoint::Error> = Vec::new();
        for path in self.states.iter().rev() {
            match TrainingState::load(path) {
                Ok(state) => {
                    for error in damaged {
                        observe(Event::Note(&format!("{error}; resuming from the previous state")));
                    }
                    let found = (path.clone(), state);
                    self.states.retain(|path| *path <= found.0);
                    return Ok(Some(found));
                }
                Err(error) => damaged.push(error),
            }
        }
        // An unreadable state may be intact, so it is an error. The run restarts only if all states are damaged.
        if let Some(at) = damaged.iter().position(|error| !is_damage(error)) {
            return Err(damaged.swap_remove(at).into());
        }
        if let Some(error) = damaged.first() {
            let message = format!(
                "{error}; no training state of this run is intact: the run restarts, and the damaged files are renamed to \
                 *{DAMAGED_SUFFIX}"
            );
            observe(Event::Note(&message));
            for path in std::mem::take(&mut self.states) {
                set_aside(&path)?;
            }
        }
        let Some(path) = &options.from else { return Ok(None) };
        Ok(Some((path.clone(), TrainingState::load(path)?)))
    }

    /// Copies the files that a run needs to resume in another folder: its start state, its best state, and the metrics.
    fn copy_states(
        &mut self,
        from: &Path,
        state: &TrainingState,
        observe: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let in_source_folder =
            |name: &std::ffi::OsStr| Some(from.with_file_name(name)).filter(|path| path.is_file());
        let target = self.state_path(self.progress.step);
        if let Some(best) = &self.progress.best
            && best.step != self.progress.step
            && let path = self.state_path(best.step)
            && let Some(source) = path.file_name().and_then(in_source_folder)
            && let Ok(best) = TrainingState::load(&source)
        {
            best.save(&path)?;
            self.states.push(path);
        }
        state.save(&target)?;
        self.states.push(target);
        let metrics = self.metrics();
        if let Some(path) = metrics.file_name().and_then(in_source_folder)
            && let Err(error) = std::fs::copy(&path, &metrics)
        {
            observe(Event::Note(&format!("{}: {error}: earlier metrics are omitted", path.display())));
        }
        Ok(())
    }

    fn state_path(&self, step: u64) -> PathBuf {
        state_path(&self.folder, &self.record.task, step)
    }

    /// Writes the training state; then deletes all but the newest states and the best.
    pub(super) fn save(&mut self, optimizer: &Optimizer) -> Result<PathBuf> {
        let path = self.state_path(self.progress.step);
        let mut meta = json!({
            "model": self.meta,
            "settings": self.settings,
            "schedule": self.schedule,
            "configuration": self.configuration,
            "progress": self.progress,
        });
        if self.processes > 1 {
            meta["processes"] = json!(self.processes);
        }
        optimizer.state(meta)?.save(&path)?;
        self.states.retain(|state| *state != path);
        self.states.push(path.clone());
        let best = self.progress.best.as_ref().map(|best| self.state_path(best.step));
        let others = self.states.iter().filter(|state| Some(*state) != best.as_ref()).count();
        let mut excess = others.saturating_sub(MAX_STATES);
        for path in std::mem::take(&mut self.states) {
            if excess > 0 && Some(&path) != best.as_ref() {
                excess -= 1;
                std::fs::remove_file(&path).map_err(file_error(&path))?;
            } else {
                self.states.push(path);
            }
        }
        (self.record.step, self.record.best) = (self.progress.step, self.progress.best.clone());
        self.record.save(&self.folder)?;
        Ok(path)
    }

    /// Bytes of the existing training states, which will be replaced.
    pub(super) fn state_bytes(&self) -> u64 {
        self.states.iter().filter_map(|state| Some(state.metadata().ok()?.len())).sum()
    }

    /// True if the newest state is of the last finished step.
    pub(super) fn is_saved(&self) -> bool {
        self.states.last().is_some_and(|path| *path == self.state_path(self.progress.step))
    }

    /// Records an evaluation of moving average `average`; returns true if it is the best so far by more than `min_delta`.
    pub(super) fn update_best(&mut self, score: &Score, average: usize, min_delta: f64) -> bool {
        let value = score.value;
        let gain =
            |best: &BestScore| if score.higher_is_better { value - best.value } else { best.value - value };
        let better =
            value.is_finite() && self.progress.best.as_ref().is_none_or(|best| gain(best) > min_delta);
        if better {
            let (step, name) = (self.progress.step, score.name.to_owned());
            self.progress.best = Some(BestScore { step, name, value, average });
        }
        better
    }

    /// Writes a sample and returns its path.
    pub(super) fn write_sample(&mut self, sample: &Sample) -> Result<PathBuf> {
        let name = format!("step_{:08}.{}", self.progress.step, sample.extension());
        let name = PathBuf::from("samples").join(name);
        let path = self.folder.join(&name);
        std::fs::create_dir_all(self.folder.join("samples")).map_err(file_error(&path))?;
        let bytes = sample.bytes().map_err(file_error(&path))?;
        write_atomically(&path, |file| file.write_all(&bytes)).map_err(file_error(&path))?;
        self.record.sample = Some(name);
        Ok(path)
    }

    fn metrics(&self) -> PathBuf {
        self.folder.join(METRICS)
    }

    /// Appends a line to `metrics.jsonl`.
    pub(super) fn log(&self, line: &Value) -> Result<()> {
        let path = self.metrics();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write for each line, so that a crash cuts off the last line only.
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).map_err(file_error(&path))
    }

    /// Truncates `metrics.jsonl` to the step and the evaluations of the state.
    fn truncate_metrics(&self) -> Result<()> {
        let path = self.metrics();
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(file_error(&path)(source)),
        };
        let RunProgress { step, evaluated, .. } = self.progress;
        let is_before = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.is_some_and(|value| {
                let last = if value.get(LOSS).is_some() { step } else { evaluated };
                value["step"].as_u64().is_some_and(|step| step <= last)
            })
        };
        let metrics: String = text.lines().filter(is_before).flat_map(|line| [line, "\n"]).collect();
        write_atomically(&path, |w| w.write_all(metrics.as_bytes())).map_err(file_error(&path))
    }

    /// Writes the released files: the best weights if `best` is true and their state is intact, else the last ones.
    pub(super) fn publish(
        &mut self,
        optimizer: &Optimizer,
        best: bool,
        observe: &mut dyn FnMut(Event),
    ) -> Result<[PathBuf; 2]> {
        let best_weights = match &self.progress.best {
            Some(best_score) if best && best_score.step < self.progress.step => {
                let (path, average) = (self.state_path(best_score.step), best_score.average);
                self.best_state(&path, observe)?
                    .map(|state| if average == 0 { state.ema } else { state.ema2 })
            }
            _ => None,
        };
        let best_selected = self.progress.best.as_ref().filter(|_| best);
        let weights = match (best_weights, best_selected) {
            (Some(weights), _) => weights,
            (None, Some(best)) => optimizer.ema(best.average.min(optimizer.averages() - 1))?,
            (None, None) => optimizer.ema(self.progress.leading.min(optimizer.averages() - 1))?,
        };
        if let Some(best) = best_selected {
            self.meta.provenance["best"] =
                json!({"step": best.step, "score": best.value, "average": best.average});
        }
        let paths = ["pt", "safetensors"].map(|ext| self.folder.join(format!("{}.{ext}", self.released)));
        checkpoint::write_torch(&paths[0], &weights, &self.meta)?;
        checkpoint::write_safetensors(&paths[1], &weights, &self.meta)?;
        self.record_end(Status::Finished, None)?;
        Ok(paths)
    }

    /// Loads the state at `path`, which scored best; sets it aside and drops the best score if it is damaged.
    fn best_state(&mut self, path: &Path, observe: &mut dyn FnMut(Event)) -> Result<Option<TrainingState>> {
        let error = match TrainingState::load(path) {
            Ok(state) => return Ok(Some(state)),
            Err(error) if is_damage(&error) => error,
            Err(error) => return Err(error.into()),
        };
        observe(Event::Note(&format!(
            "{error}; the best state is damaged and renamed to *{DAMAGED_SUFFIX}: releasing the last weights instead"
        )));
        set_aside(path)?;
        self.states.retain(|state| state != path);
        self.progress.best = None;
        Ok(None)
    }

    /// Records that the run was stopped.
    pub(super) fn record_stop(&mut self) -> Result<()> {
        self.record_end(Status::Stopped, None)
    }

    /// Records that the run failed.
    pub(super) fn record_failure(&mut self, error: &Error) -> Result<()> {
        self.record_end(Status::Failed, Some(error.to_string()))
    }

    fn record_end(&mut self, status: Status, error: Option<String>) -> Result<()> {
        (self.record.status, self.record.error, self.record.complete) = (status, error, false);
        (self.record.step, self.record.best) = (self.progress.step, self.progress.best.clone());
        self.record.save(&self.folder)
    }
}

/// True if a file was read but is not an intact training state.
fn is_damage(error: &checkpoint::Error) -> bool {
    match &error.kind {
        ErrorKind::Io(error) => {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
        }
        _ => true,
    }
}

/// The path of the training state of `step` for a run of `task` in `folder`.
pub(super) fn state_path(folder: &Path, task: &str, step: u64) -> PathBuf {
    folder.join(format!("{task}_step_{step:08}.safetensors"))
}

/// Renames a damaged training state so that it no longer counts as one.
fn set_aside(path: &Path) -> Result<()> {
    let mut aside = path.to_owned().into_os_string();
    aside.push(DAMAGED_SUFFIX);
    std::fs::rename(path, aside).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_without_mean_loss_are_read() {
        let mut old = json!(RunProgress { step: 7, mean_loss: Some(0.1), ..RunProgress::default() });
        assert_eq!(old["mean_loss"], 0.1);
        old.as_object_mut().unwrap().remove("mean_loss");
        let read: RunProgress = serde_json::from_value(old).unwrap();
        assert_eq!((read.step, read.mean_loss), (7, None));
    }
}
