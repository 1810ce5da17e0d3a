//! Signals that stop a run, and the exit code of a stopped run.

/// The exit code of a run that was stopped and can be resumed: EX_TEMPFAIL of sysexits.h.
pub const EXIT_RESUMABLE: u8 = 75;

/// The signals that stop a run: SIGINT, SIGTERM and, on Unix, SIGHUP.
///
/// SIGHUP is excluded if the parent process has set it to be ignored, as nohup does.
pub fn stop_signals() -> Vec<i32> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !is_ignored_signal(libc::SIGHUP) {
        signals.push(libc::SIGHUP);
    }
    signals
}

#[cfg(unix)]
fn is_ignored_signal(signal: i32) -> bool {
    // SAFETY: with a null action, sigaction changes nothing and only fills `current`, which is plain memory.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut current) == 0 && current.sa_sigaction == libc::SIG_IGN
    }
}

/// Makes the process that `command` starts receive `signal` when this process ends for any reason.
///
/// This works on Linux only; elsewhere nothing happens.
#[cfg(unix)]
pub fn signal_on_parent_exit(command: &mut std::process::Command, signal: i32) {
    #[cfg(target_os = "linux")]
    // SAFETY: signal, prctl and getppid are async-signal-safe.
    unsafe {
        use std::os::unix::process::CommandExt;
        let parent = std::process::id();
        command.pre_exec(move || {
            // Until exec, the handlers of the parent would swallow the signal.
            libc::signal(signal, libc::SIG_DFL);
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // A parent that ended before the call sends no signal.
            let has_parent = libc::getppid() as u32 == parent;
            if has_parent { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
    let _ = (command, signal);
}
