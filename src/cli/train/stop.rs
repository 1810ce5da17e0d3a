//! Stops a run at a signal or a deadline.

use std::{
    io::Write,
    thread,
    time::{Duration, SystemTime},
};

use crate::{
    cli::logging,
    signals::{self, EXIT_RESUMABLE},
    train::Control,
};

/// The minimum time between a first and a second signal. Systemd and Slurm signal all processes of a run, so the same signal reaches this
/// process twice: directly, and from its parent.
const REPEAT_WINDOW: Duration = Duration::from_secs(1);

/// Stops the run of `control` at the first SIGINT, SIGTERM or SIGHUP, or at `deadline`. Discards the current step, saves the last finished
/// one, calls `finish`, and ends the process with [`EXIT_RESUMABLE`]. A second signal, at least [`REPEAT_WINDOW`] later, ends the process
/// immediately.
///
/// # Errors
/// If signals cannot be caught.
pub fn watch(
    control: &Control,
    deadline: Option<SystemTime>,
    finish: impl Fn() + Clone + Send + 'static,
) -> std::io::Result<()> {
    if let Some(deadline) = deadline {
        let (control, finish) = (control.clone(), finish.clone());
        thread::spawn(move || {
            let remaining = deadline.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            thread::sleep(remaining);
            stop(&control, "time limit reached", &finish)
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
        let control = control.clone();
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                thread::spawn(move || {
                    thread::sleep(REPEAT_WINDOW);
                    is_repeated.store(true, Ordering::SeqCst);
                });
                stop(&control, signal_name(signal).unwrap_or("a signal"), &finish);
            }
        });
    }
    Ok(())
}

/// Saves the last finished step and ends the process, without waiting for other threads.
fn stop(control: &Control, reason: &str, finish: &dyn Fn()) {
    // Held until the end, so that the run does not change.
    let stopped = control.stop();
    let code = match &stopped {
        // Only the released files remain to be moved, which is quick. A second signal still ends the process.
        Ok(stopped) if stopped.was_finished => return,
        Ok(stopped) => {
            match &stopped.at {
                Some((step, path)) => logging::eprint_and_log(&format!(
                    "stopped at step {step} ({reason}), saved as {}; run the same command with --resume auto to resume",
                    path.display()
                )),
                None => logging::eprint_and_log(&format!("stopped ({reason}); all finished steps are saved")),
            }
            finish();
            i32::from(EXIT_RESUMABLE)
        }
        Err(error) => {
            logging::eprint_and_log(&format!(
                "stopped ({reason}); the last step could not be saved: {error}"
            ));
            finish();
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
