//! A handle for other threads that stops a run without waiting for the current step.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Optimizer, Result, run::RunFiles};

/// A handle to a run for other threads.
///
/// The weights change only between steps, briefly and under a lock. A thread that holds the lock therefore sees the last finished step. It
/// does not wait for the current step, which may take minutes.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Phase>>);

#[derive(Default)]
pub(super) enum Phase {
    /// The run has not started.
    #[default]
    NotStarted,
    /// The run is training.
    Training(Box<ActiveRun>),
    /// The run has finished or failed.
    Ended,
}

/// The state of a run that changes while it trains.
pub(super) struct ActiveRun {
    pub(super) optimizer: Optimizer,
    pub(super) run: RunFiles,
    /// True while a step changes the weights, and after an error in it: not all weights are then of one step.
    pub(super) inconsistent: bool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

/// A stopped run. It stays at its step while this value exists.
pub struct StoppedRun<'a> {
    /// The step that was saved, and its training state.
    ///
    /// `None` if nothing was saved: the run has not started, or a step failed midway. The run then resumes from the previous state.
    pub at: Option<(u64, PathBuf)>,
    /// True if the run had begun to train.
    pub has_started: bool,
    /// True if the run had already ended.
    pub was_finished: bool,
    _held: MutexGuard<'a, Phase>,
}

impl Control {
    /// Saves the last finished step and blocks the run there.
    ///
    /// # Errors
    /// Returns an error if the state cannot be written.
    pub fn stop(&self) -> Result<StoppedRun<'_>> {
        let mut held = self.lock();
        let has_started = !matches!(*held, Phase::NotStarted);
        let (at, was_finished) = match &mut *held {
            Phase::NotStarted => (None, false),
            // The previous training state is intact.
            Phase::Training(active) if active.inconsistent => (None, false),
            Phase::Training(active) => (Some(active.stop()?), false),
            Phase::Ended => (None, true),
        };
        Ok(StoppedRun { at, has_started, was_finished, _held: held })
    }

    pub(super) fn set(&self, phase: Phase) {
        *self.lock() = phase;
    }

    /// Calls `f` with the run, under the lock.
    ///
    /// # Panics
    /// Panics if the run has not started or has ended; only the run's own thread calls this, while it trains.
    pub(super) fn with_run<R>(&self, f: impl FnOnce(&mut ActiveRun) -> R) -> R {
        match &mut *self.lock() {
            Phase::Training(active) => f(active),
            _ => unreachable!("the run is training"),
        }
    }

    /// Calls `f` with the run and marks the run as ended if `f` succeeds.
    ///
    /// Both happen under one lock, so a thread that stops the run in the meantime finds it ended.
    ///
    /// # Errors
    /// Returns errors of `f`; the run's phase is then unchanged.
    ///
    /// # Panics
    /// Panics as [`with_run`](Self::with_run) does.
    pub(super) fn finish<R>(&self, f: impl FnOnce(&mut ActiveRun) -> Result<R>) -> Result<R> {
        let mut held = self.lock();
        let Phase::Training(active) = &mut *held else { unreachable!("the run is training") };
        let finished = f(active)?;
        *held = Phase::Ended;
        Ok(finished)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // A panic under the lock may have left a step unfinished. The run's own thread has then ended, and its saved state is intact.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveRun {
    fn stop(&mut self) -> Result<(u64, PathBuf)> {
        let path = self.run.save(&self.optimizer)?;
        self.run.record_stop()?;
        Ok((self.run.progress.step, path))
    }
}
