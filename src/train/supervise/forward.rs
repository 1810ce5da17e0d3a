//! Signals for a process that supervises another one.

use std::{
    process::{Command, ExitStatus},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::signals;

/// Forwards signals of this process to a training process, which is in its own process group and receives no signals from a terminal.
#[derive(Clone, Default)]
pub struct Signals {
    /// The ID of the training process; 0 while there is none.
    child: Arc<AtomicU32>,
    /// True if a signal to stop has arrived.
    stopped: Arc<AtomicBool>,
    /// The last such signal.
    last_signal: Arc<AtomicI32>,
}

impl Signals {
    /// Catches signals from the first call in this process on.
    ///
    /// # Errors
    /// If they cannot be caught.
    pub fn catch() -> std::io::Result<Self> {
        static SIGNALS: OnceLock<Signals> = OnceLock::new();
        if let Some(forwarder) = SIGNALS.get() {
            return Ok(forwarder.clone());
        }
        let forwarder = Self::default();
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGCONT, SIGTSTP};
            let caught = [signals::stop_signals(), vec![SIGTSTP, SIGCONT]].concat();
            let mut signals = signal_hook::iterator::Signals::new(caught)?;
            let forwarder = forwarder.clone();
            thread::spawn(move || {
                for signal in signals.forever() {
                    match signal {
                        SIGTSTP => {
                            forwarder.send(libc::SIGSTOP);
                            let _ = signal_hook::low_level::raise(libc::SIGSTOP);
                        }
                        SIGCONT => forwarder.send(SIGCONT),
                        signal => {
                            forwarder.stopped.store(true, Ordering::SeqCst);
                            forwarder.last_signal.store(signal, Ordering::SeqCst);
                            forwarder.send(signal);
                        }
                    }
                }
            });
        }
        Ok(SIGNALS.get_or_init(|| forwarder).clone())
    }

    #[cfg(unix)]
    fn send(&self, signal: i32) {
        let child = self.child.load(Ordering::SeqCst);
        if child != 0 {
            // SAFETY: this sends a signal to a child of this process, which is not reaped before `child` is set to 0.
            unsafe { libc::kill(child as i32, signal) };
        }
    }

    /// Runs a training process to its end.
    pub(super) fn run(&self, mut command: Command) -> std::io::Result<ExitStatus> {
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            command.process_group(0);
            // The child saves its state and ends if its parent dies.
            signals::signal_on_parent_exit(&mut command, libc::SIGTERM);
        }
        let mut child = command.spawn()?;
        self.child.store(child.id(), Ordering::SeqCst);
        #[cfg(unix)]
        if self.stopped() {
            // Forwards a signal that arrived before the process started.
            self.send(self.last_signal.load(Ordering::SeqCst));
        }
        let status = wait(&mut child, &self.child);
        self.child.store(0, Ordering::SeqCst);
        status
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Sleeps for `time`, or until a signal arrives. Returns false if one did.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let start = Instant::now();
        while let Some(remaining) = time.checked_sub(start.elapsed()).filter(|remaining| !remaining.is_zero())
            && !self.stopped()
        {
            thread::sleep(Duration::from_millis(50).min(remaining));
        }
        !self.stopped()
    }
}

/// Waits for `child`, and clears `id` before the child is reaped, so that no signal is sent to a reused process ID.
fn wait(child: &mut std::process::Child, id: &AtomicU32) -> std::io::Result<ExitStatus> {
    #[cfg(unix)]
    {
        // SAFETY: the call fills siginfo_t, for which zeros are valid; WNOWAIT leaves the child to be reaped below.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            while libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT) != 0
                && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
            {}
        }
        id.store(0, Ordering::SeqCst);
    }
    let _ = id;
    child.wait()
}
