//! Stops a run from outside: by a signal, or at the end of its time.

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

/// The minimum time between a first and a second signal. Systemd and Slurm signal all processes of a run, so one signal reaches this
/// process twice: directly, and from its parent.
const REPEAT_WINDOW: Duration = Duration::from_secs(1);

/// Stops `control`'s run at the first SIGINT, SIGTERM or SIGHUP, and at `deadline`. The current step is dropped, the last finished one is
/// saved, `finish` is called, and the process ends with [`EXIT_RESUMABLE`]. A second signal, at least [`REPEAT_WINDOW`] later, ends it at
/// once.
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
            let left = deadline.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            thread::sleep(left);
            stop(&control, "its time is up", &finish)
        });
    }
    #[cfg(unix)]
    {
        use signal_hook::{flag, iterator::Signals, low_level::signal_name};
        use std::sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        };
        let second = Arc::new(AtomicBool::new(false));
        let all = signals::stop_signals();
        for &signal in &all {
            flag::register_conditional_shutdown(signal, 128 + signal, second.clone())?;
        }
        let mut signals = Signals::new(all)?;
        let control = control.clone();
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                thread::spawn(move || {
                    thread::sleep(REPEAT_WINDOW);
                    second.store(true, Ordering::SeqCst);
                });
                stop(&control, signal_name(signal).unwrap_or("a signal"), &finish);
            }
        });
    }
    Ok(())
}

/// Saves the last finished step and ends the process, whatever its other threads are doing.
fn stop(control: &Control, why: &str, finish: &dyn Fn()) {
    // Held until the end, so that nothing of the run changes any more.
    let stopped = control.stop();
    let code = match &stopped {
        // The remaining work is short: the released files are moved into place. A second signal still ends it.
        Ok(stopped) if stopped.was_finished => return,
        Ok(stopped) => {
            match &stopped.at {
                Some((step, path)) => logging::eprint_and_log(&format!(
                    "stopped at step {step} ({why}), saved as {}: the same command with --resume auto goes on",
                    path.display()
                )),
                None => {
                    logging::eprint_and_log(&format!("stopped ({why}); there is no step that is not saved"))
                }
            }
            finish();
            i32::from(EXIT_RESUMABLE)
        }
        Err(error) => {
            logging::eprint_and_log(&format!("stopped ({why}); the last step could not be saved: {error}"));
            finish();
            i32::from(EXIT_RESUMABLE)
        }
    };
    let _ = std::io::stdout().flush();
    // `exit` would run clean-up that waits for threads that still compute, or breaks under them.
    #[cfg(unix)]
    // SAFETY: it ends the process and touches no memory of ours.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}
