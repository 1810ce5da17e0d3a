//! Reaching into a run from outside: stopping it without waiting for the step at work.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Optimizer, Result, run::RunFiles};

/// A handle to a run, for other threads than its own.
///
/// The weights change only between steps, in a moment, under a lock. Whoever takes the lock has the last finished step before it, and the
/// step at work, which may take minutes, need not be waited for.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Phase>>);

#[derive(Default)]
pub(super) enum Phase {
    /// It has not begun.
    #[default]
    Before,
    /// It trains.
    Training(Box<ActiveRun>),
    /// Its files are released, or it failed.
    Over,
}

/// What changes in a run.
pub(super) struct ActiveRun {
    pub(super) optimizer: Optimizer,
    pub(super) run: RunFiles,
    /// Whether a step broke off, so that not all weights are of one step.
    pub(super) inconsistent: bool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

/// A run that was stopped: it stays at the step it was stopped at for as long as this is held.
pub struct StoppedRun<'a> {
    /// Where the run was stopped: its step, and the training state. `None` when nothing was saved: it has not begun to train, or a step broke
    /// off, so that what was saved before is what it goes on from.
    pub at: Option<(u64, PathBuf)>,
    /// Whether it was over already.
    pub was_finished: bool,
    _held: MutexGuard<'a, Phase>,
}

impl Control {
    /// Saves the last finished step and holds the run there.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn stop(&self) -> Result<StoppedRun<'_>> {
        let mut held = self.lock();
        let (at, was_finished) = match &mut *held {
            Phase::Before => (None, false),
            // What was saved before is whole.
            Phase::Training(active) if active.inconsistent => (None, false),
            Phase::Training(active) => (Some(active.stop()?), false),
            Phase::Over => (None, true),
        };
        Ok(StoppedRun { at, was_finished, _held: held })
    }

    pub(super) fn set(&self, phase: Phase) {
        *self.lock() = phase;
    }

    /// What `f` makes of the run.
    ///
    /// # Panics
    /// When the run has not begun or is over: only its own thread calls this, in between.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut ActiveRun) -> R) -> R {
        match &mut *self.lock() {
            Phase::Training(active) => f(active),
            _ => unreachable!("the engine reaches into the run that it trains"),
        }
    }

    /// What `f` makes of the run, which is over if it succeeds: whoever would stop it in between finds it over.
    ///
    /// # Errors
    /// Those of `f`; the run is then as it was.
    ///
    /// # Panics
    /// As [`with`](Self::with).
    pub(super) fn finish<R>(&self, f: impl FnOnce(&mut ActiveRun) -> Result<R>) -> Result<R> {
        let mut held = self.lock();
        let Phase::Training(active) = &mut *held else {
            unreachable!("the engine finishes the run that it trains")
        };
        let finished = f(active)?;
        *held = Phase::Over;
        Ok(finished)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // A panic while the lock was held may have left a step half done; the run's own thread is then gone, and what it saved is whole.
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
