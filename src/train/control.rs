//! A handle for other threads that stops a run without waiting for the current step.

use std::{
    any::Any,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Result;

/// A handle to a run for other threads.
///
/// The weights change only between steps, briefly and under a lock. A thread that holds the lock therefore sees the last finished step. It
/// does not wait for the current step, which may take minutes.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Phase>>);

/// A run that another thread can stop between steps.
pub(super) trait Stoppable: Any + Send {
    /// Saves the last finished step, and returns it with its training state. `None` if a step failed midway.
    ///
    /// # Errors
    /// Returns an error if the state cannot be written.
    fn stop(&mut self) -> Result<Option<(u64, PathBuf)>>;
}

#[derive(Default)]
pub(super) enum Phase {
    /// The run has not started.
    #[default]
    NotStarted,
    /// The run is training.
    Training(Box<dyn Stoppable>),
    /// The run has finished or failed.
    Ended,
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
            Phase::Training(active) => (active.stop()?, false),
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
    /// Panics if the run has not started or has ended, or is of another type; only the run's own thread calls this, while it trains.
    pub(super) fn with_run<T: Stoppable, R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(training(&mut self.lock()))
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
    pub(super) fn finish<T: Stoppable, R>(&self, f: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut held = self.lock();
        let finished = f(training(&mut held))?;
        *held = Phase::Ended;
        Ok(finished)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // A panic under the lock may have left a step unfinished. The run's own thread has then ended, and its saved state is intact.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the run that is training.
fn training<T: Stoppable>(phase: &mut Phase) -> &mut T {
    let Phase::Training(active) = phase else { unreachable!("the run is training") };
    let active: &mut dyn Any = &mut **active;
    active.downcast_mut().expect("the type of the run")
}
