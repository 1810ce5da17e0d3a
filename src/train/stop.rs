//! Stops a run at a signal or a deadline.

use std::{
    io::Write,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use super::{Control, StoppedRun, folder};
use crate::signals::{self, EXIT_RESUMABLE};

/// The minimum time between a first and a second signal. Systemd and Slurm signal all processes of a run, so the same signal reaches this
/// process twice: directly, and from its parent.
const REPEAT_WINDOW: Duration = Duration::from_secs(1);

/// Stops the run of `control` at the first SIGINT, SIGTERM or SIGHUP, or at `deadline`. Discards the current step, saves the last finished
/// one, calls `finish` with a message for the user, and ends the process with [`EXIT_RESUMABLE`]. A second signal, at least one second later,
/// ends the process immediately. `folder` is that of the run.
///
/// # Errors
/// If signals cannot be caught.
pub fn watch(
    control: &Control,
    folder: &Path,
    deadline: Option<SystemTime>,
    finish: impl Fn(&str) + Clone + Send + 'static,
) -> std::io::Result<()> {
    if let Some(deadline) = deadline {
        let (control, folder, finish) = (control.clone(), folder.to_owned(), finish.clone());
        thread::spawn(move || {
            let remaining = deadline.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            thread::sleep(remaining);
            stop(&control, &folder, "time limit reached", &finish)
        });
    }
    #[cfg(unix)]
    {
        use signal_hook::{flag, iterator::Signals, low_level::signal_name};
        use std::sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        };
        let is_repeated = Arc::new(AtomicBool::new(false));
        let caught = signals::stop_signals();
        for &signal in &caught {
            flag::register_conditional_shutdown(signal, 128 + signal, is_repeated.clone())?;
        }
        let mut signals = Signals::new(caught)?;
        let (control, folder) = (control.clone(), folder.to_owned());
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                thread::spawn(move || {
                    thread::sleep(REPEAT_WINDOW);
                    is_repeated.store(true, Ordering::SeqCst);
                });
                stop(&control, &folder, signal_name(signal).unwrap_or("a signal"), &finish);
            }
        });
    }
    Ok(())
}

/// The message of a run that has stopped.
fn message(stopped: &StoppedRun, folder: &Path, reason: &str) -> String {
    let has_states = || folder::states(folder).is_ok_and(|states| !states.is_empty());
    match &stopped.at {
        Some((step, path)) => format!(
            "stopped at step {step} ({reason}), saved as {}; run the same command with --resume auto to resume",
            path.display()
        ),
        None if !stopped.has_started && !has_states() => {
            format!("stopped before the first step ({reason}); nothing is saved")
        }
        None => format!("stopped ({reason}); all finished steps are saved"),
    }
}

/// Saves the last finished step and ends the process, without waiting for other threads.
fn stop(control: &Control, folder: &Path, reason: &str, finish: &dyn Fn(&str)) {
    // Held until the end, so that the run does not change.
    let stopped = control.stop();
    let code = match &stopped {
        // Only the released files remain to be moved, which is quick. A second signal still ends the process.
        Ok(stopped) if stopped.was_finished => return,
        Ok(stopped) => {
            finish(&message(stopped, folder, reason));
            i32::from(EXIT_RESUMABLE)
        }
        Err(error) => {
            finish(&format!("stopped ({reason}); the last step could not be saved: {error}"));
            i32::from(EXIT_RESUMABLE)
        }
    };
    let _ = std::io::stdout().flush();
    // `exit` would run destructors, which wait for computing threads or free memory that they use.
    #[cfg(unix)]
    // SAFETY: this ends the process and accesses no memory.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::default();
        let stopped = control.stop().unwrap();
        let message = || message(&stopped, dir.path(), "SIGTERM");
        assert_eq!(message(), "stopped before the first step (SIGTERM); nothing is saved");
        // A resumed run: its folder has a training state.
        std::fs::write(dir.path().join("dit_step_00000003.safetensors"), "").unwrap();
        assert_eq!(message(), "stopped (SIGTERM); all finished steps are saved");
    }
}
