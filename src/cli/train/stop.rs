//! Stopping a run from outside: by a signal, or because its time is up.

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

/// By how much a second signal comes after the first. What signals all processes of a run, as systemd and Slurm do, reaches this one twice: by
/// itself, and from its parent.
const REPEAT_WINDOW: Duration = Duration::from_secs(1);

/// Has `control`'s run stopped by the first SIGINT, SIGTERM or SIGHUP, and at `deadline`. The step at work is dropped, the last finished
/// one is saved, `finish` is called, and the process ends with [`EXIT_RESUMABLE`]; a second signal, [`REPEAT_WINDOW`] than that, ends it at once.
///
/// # Errors
/// When signals cannot be caught.
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

/// Saves the last finished step and ends the process, whatever its other threads are at.
fn stop(control: &Control, why: &str, finish: &dyn Fn()) {
    // Held until the end: nothing of the run changes any more.
    let stopped = control.stop();
    let code = match &stopped {
        // What is still done is quick, and worth its time: the released files are put at their place. A second signal ends it all the same.
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
    // Not `exit`, whose clean-up would wait for, or break under, threads that still compute.
    #[cfg(unix)]
    // SAFETY: it ends the process and touches no memory of ours.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}
