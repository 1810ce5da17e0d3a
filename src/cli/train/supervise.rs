//! The parent of a training process: starts it, and restarts it after a kill, an out-of-memory error, or a transient error.

use std::{
    ffi::OsString,
    hash::{BuildHasher, Hasher, RandomState},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};

use super::{common::CommonArgs, config::ResolvedConfig, process_group};
use crate::cli::writable::check_can_write;
use crate::{
    cli::logging,
    signals::{self, EXIT_RESUMABLE},
    train::folder::{self, LOG, Lock, ParentLock, RunRecord, Status},
};

/// The exit code of a training process after a transient error, and of its parent when no retries are left: EX_IOERR of sysexits.h.
pub const EXIT_TRANSIENT: u8 = 74;

/// The timeout for another process that trains in the run's folder to end; `--retry-max`, if shorter.
const SAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between checks that this process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The message if a signal arrives before the run starts or resumes.
const STOPPED_MESSAGE: &str = "stopped before the run started or resumed; run the same command to continue";
/// The message if `--max-time` leaves no time for a retry.
const OUT_OF_TIME: &str = "the time limit of --max-time was reached; run the same command to resume";

/// Maximum halvings of the micro-batch after out-of-memory errors; further ones would not help.
const MAX_HALVINGS: u32 = 20;

/// Trains in a child process, and restarts it after errors that may be transient.
///
/// # Errors
/// If there is nothing to resume from, or no process can be started.
pub fn supervise(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::catch().context("catching signals")?;
    let deadline = common.max_time.map(|time| SystemTime::now() + time);
    let Some((folder, _lock)) = acquire_run_folder(common, task, configuration, &signals)? else {
        return Ok(ExitCode::from(if signals.stopped() { EXIT_RESUMABLE } else { EXIT_TRANSIENT }));
    };
    let program = std::env::current_exe().context("finding this program")?;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Inserted after `train` and the task, before a `--` that would end the flags.
    let position =
        arguments.iter().position(|argument| argument == task).map_or(arguments.len(), |at| at + 1);
    arguments.insert(position, path_flag("--worker=", &folder));
    if let Some(deadline) = deadline {
        let seconds = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        arguments.insert(position, format!("--deadline={seconds}").into());
    }
    let start = |halvings: u32| {
        let kills = out_of_memory_kills();
        let mut command = Command::new(&program);
        command
            .args(&arguments[..position])
            .arg(format!("--halvings={halvings}"))
            .args(&arguments[position..])
            .envs(process_group::num_threads_variable(common));
        let status = signals.run(command).with_context(|| program.display().to_string())?;
        Ok((ChildExit::from_status(status, out_of_memory_kills() > kills), states(&folder)))
    };
    let wait = |time| {
        let remaining =
            deadline.map(|deadline| deadline.duration_since(SystemTime::now()).unwrap_or_default());
        let is_in_time = remaining.is_none_or(|remaining| remaining > time);
        signals.sleep(remaining.map_or(time, |remaining| remaining.min(time))) && is_in_time
    };
    if signals.stopped() {
        logging::eprint_and_log(STOPPED_MESSAGE);
        folder::remove_unstarted(&folder);
        return Ok(ExitCode::from(EXIT_RESUMABLE));
    }
    let mut supervisor = Supervisor {
        common,
        start,
        wait,
        stopped: || signals.stopped(),
        print: |line: &str| print_and_log(common, &folder, line),
    };
    let code = supervisor.run();
    folder::remove_unstarted(&folder);
    Ok(ExitCode::from(code?))
}

/// Restarts a training process until it succeeds, fails permanently or is stopped.
struct Supervisor<'a, Start, Wait, Stopped, Print> {
    common: &'a CommonArgs,
    /// Runs a training process with the given number of halvings. Returns its exit and its training states.
    start: Start,
    /// Waits before a retry. Returns true if the full time passed before a signal or the deadline.
    wait: Wait,
    /// True if a signal to stop has arrived.
    stopped: Stopped,
    /// Prints a line.
    print: Print,
}

impl<Start, Wait, Stopped, Print, State> Supervisor<'_, Start, Wait, Stopped, Print>
where
    Start: FnMut(u32) -> anyhow::Result<(ChildExit, State)>,
    Wait: FnMut(Duration) -> bool,
    Stopped: Fn() -> bool,
    Print: FnMut(&str),
    State: Default + PartialEq,
{
    /// Runs the training process to its end, with retries, and returns the exit code.
    fn run(&mut self) -> anyhow::Result<u8> {
        let (mut halvings, mut retries, mut latest_states) = (0, 0, State::default());
        loop {
            let (child_exit, states) = (self.start)(halvings)?;
            if states != latest_states {
                (latest_states, retries) = (states, 0);
            }
            let reason = match child_exit {
                ChildExit::Code(code) => return Ok(code),
                _ if (self.stopped)() => {
                    (self.print)(STOPPED_MESSAGE);
                    return Ok(EXIT_RESUMABLE);
                }
                ChildExit::OutOfMemory if halvings < MAX_HALVINGS => {
                    halvings += 1;
                    (self.print)(
                        "out of memory: halving the micro-batches and doubling their number per step",
                    );
                    continue;
                }
                ChildExit::OutOfMemory => "out of memory".to_owned(),
                ChildExit::Transient => "transient error".to_owned(),
                ChildExit::Killed(description) => format!("the training process was {description}"),
            };
            let CommonArgs { max_retries, retry_initial, retry_max, .. } = self.common;
            if retries == *max_retries {
                (self.print)(&format!("{reason}; given up after {retries} retries"));
                return Ok(EXIT_TRANSIENT);
            }
            let time = backoff(*retry_initial, *retry_max, retries);
            retries += 1;
            let seconds = time.as_secs_f64();
            (self.print)(&format!("{reason}: resuming in {seconds:.1} s (retry {retries} of {max_retries})"));
            if !(self.wait)(time) {
                (self.print)(if (self.stopped)() { STOPPED_MESSAGE } else { OUT_OF_TIME });
                return Ok(EXIT_RESUMABLE);
            }
        }
    }
}

/// Locks the run's folder as soon as no process trains in it, since a process whose parent was killed saves its state first. Prints a
/// message and returns `None` at the timeout, or if a signal arrives.
fn acquire_run_folder(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
    signals: &Signals,
) -> anyhow::Result<Option<(PathBuf, ParentLock)>> {
    let timeout = SAVE_TIMEOUT.min(common.retry_max);
    let deadline = Instant::now() + timeout;
    let mut was_reported = false;
    loop {
        // Repeated in every iteration, since the other process may finish the run.
        if let Some(found) = lock_run_folder(common, task, configuration)? {
            return Ok(Some(found));
        }
        let folder = run_folder(common, task, configuration)?;
        let (name, seconds) = (folder.display(), timeout.as_secs_f64());
        if !was_reported {
            was_reported = true;
            logging::eprint_and_log(&format!(
                "{name}: another process trains in this folder; waiting at most {seconds} s for it to end"
            ));
        }
        if Instant::now() >= deadline {
            logging::log_fatal(&format!(
                "{name}: another process trains in this folder; given up after {seconds} s"
            ));
            return Ok(None);
        }
        if !signals.sleep(POLL_INTERVAL) {
            logging::eprint_and_log(STOPPED_MESSAGE);
            return Ok(None);
        }
    }
}

/// Locks the run's folder; `None` if another process trains in it. Writes the record and the configuration of a new run, so that the same
/// command finds the run even if this process ends early.
fn lock_run_folder(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
) -> anyhow::Result<Option<(PathBuf, ParentLock)>> {
    let root = &common.runs_dir;
    check_can_write(root).with_context(|| format!("{}: cannot write", root.display()))?;
    // Locked, so that two commands do not start the same run.
    let _runs_lock = ParentLock::for_runs(root)?;
    let folder = run_folder(common, task, configuration)?;
    check_can_write(&folder).with_context(|| format!("{}: cannot write", folder.display()))?;
    if Lock::is_held(&folder) {
        return Ok(None);
    }
    let Some(lock) = ParentLock::acquire(&folder)? else { return Ok(None) };
    folder::prepare(&folder, task, &configuration.to_toml())?;
    Ok(Some((folder, lock)))
}

/// True if the run in `folder` has this configuration.
fn is_same(folder: &Path, configuration: &ResolvedConfig) -> bool {
    let text = folder::read_bounded(&folder.join(folder::CONFIGURATION)).unwrap_or_default();
    configuration.is_same(&String::from_utf8_lossy(&text))
}

/// Finds the newest finished run of this configuration, which `--resume auto` uses if there is no unfinished one.
///
/// # Errors
/// If the runs' folder cannot be read.
pub fn finished_run(
    common: &CommonArgs,
    task: &str,
    configuration: &ResolvedConfig,
) -> anyhow::Result<Option<PathBuf>> {
    if common.run_id.is_some() || common.resume != "auto" {
        return Ok(None);
    }
    let mut runs = folder::list(&common.runs_dir)?;
    runs.retain(|(path, record)| record.task == task && is_same(path, configuration));
    let all_finished = runs.iter().all(|(_, record)| record.status == Status::Finished);
    Ok(runs.pop().filter(|_| all_finished).map(|(path, _)| path))
}

/// The folder of the run to resume or start.
fn run_folder(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
) -> anyhow::Result<PathBuf> {
    if let Some(id) = &common.run_id {
        return Ok(common.runs_dir.join(id));
    }
    let new_folder = || folder::new_run_folder(&common.runs_dir, task);
    match common.resume.as_str() {
        "never" => Ok(new_folder()),
        "auto" => {
            let unfinished = |(path, record): &(PathBuf, RunRecord)| {
                record.task == task && record.status != Status::Finished && is_same(path, configuration)
            };
            let found = folder::list(&common.runs_dir)?.into_iter().rfind(unfinished).map(|(path, _)| path);
            let found =
                found.map_or_else(|| finished_run(common, task, configuration), |path| Ok(Some(path)))?;
            Ok(found.unwrap_or_else(new_folder))
        }
        path => {
            let path = PathBuf::from(path);
            if path.is_dir() {
                RunRecord::load(&path)?.check_task(&path, task)?;
                // A link such as `latest` may change its target.
                let path = path.canonicalize().with_context(|| path.display().to_string())?;
                return Ok(path);
            }
            if !path.exists() {
                bail!(
                    "--resume {}: expected auto, never, a run's folder or a training state",
                    path.display()
                );
            }
            Ok(new_folder())
        }
    }
}

/// The end of a training process.
enum ChildExit {
    /// Ended with this exit code.
    Code(u8),
    /// Ended with a transient error.
    Transient,
    /// Ran out of memory.
    OutOfMemory,
    /// Ended by a signal or a panic, with a description.
    Killed(String),
}

impl ChildExit {
    fn from_status(status: ExitStatus, was_out_of_memory: bool) -> Self {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            // A failed allocation aborts a Rust program. On Linux, allocation usually succeeds, and the kernel kills the process when it
            // uses the memory.
            return match signal {
                libc::SIGABRT => Self::OutOfMemory,
                libc::SIGKILL if was_out_of_memory => Self::OutOfMemory,
                _ => Self::Killed(format!("killed (signal {signal})")),
            };
        }
        let _ = was_out_of_memory;
        match status.code() {
            Some(code) if code == i32::from(EXIT_TRANSIENT) => Self::Transient,
            // A panic, whose message has been printed.
            Some(101) => Self::Killed("ended by a panic".to_owned()),
            Some(code) => Self::Code(u8::try_from(code).unwrap_or(1)),
            None => Self::Code(1),
        }
    }
}

/// The number of processes that the kernel has killed because memory ran out.
fn out_of_memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The training states of a run with their modification times, whose change means progress. Times are only compared for equality, since
/// clocks may be adjusted.
fn states(folder: &Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let states = folder::states(folder).unwrap_or_default().into_iter();
    let modified = |state: &Path| state.metadata().and_then(|metadata| metadata.modified()).ok();
    states.map(|state| (state.clone(), modified(&state))).collect()
}

/// The delay of exponential backoff, with random jitter so that many processes do not retry at once.
fn backoff(initial: Duration, max: Duration, retries: u32) -> Duration {
    let delay = initial.saturating_mul(1 << retries.min(20)).min(max);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(retries);
    delay.mul_f64(0.5 + 0.5 * (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64)
}

/// Prints a line, and appends it to the log of the run if that exists.
fn print_and_log(common: &CommonArgs, folder: &Path, line: &str) {
    let log = folder.join(LOG);
    if log.is_file() {
        logging::add_run_file(&log, common.log_format);
    }
    logging::eprint_and_log(line);
}

fn path_flag(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

/// Forwards signals of this process to the training process, which is in its own process group and receives no signals from a terminal.
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
    fn run(&self, mut command: Command) -> std::io::Result<ExitStatus> {
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

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Sleeps for `time`, or until a signal arrives. Returns false if one did.
    fn sleep(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while !self.stopped() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50).min(deadline - Instant::now()));
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct TestCli {
        #[command(flatten)]
        common: CommonArgs,
    }

    /// Supervises a run whose processes end as listed, each with the number of the state that it saved. Returns the exit code, the halvings
    /// of each process, and the waits in seconds.
    fn run_supervisor(flags: &str, exits: Vec<(ChildExit, u64)>) -> (u8, Vec<u32>, Vec<f64>) {
        let required_flags = "train --batch-size 8 --ema-beta 0.9 --weight-decay 0 --log-interval 1";
        let common = TestCli::parse_from(required_flags.split(' ').chain(flags.split_whitespace())).common;
        let (mut halvings_seen, mut waits, mut exits) = (Vec::new(), Vec::new(), exits.into_iter());
        let start = |halvings| {
            halvings_seen.push(halvings);
            Ok(exits.next().expect("no more starts than listed"))
        };
        let wait = |time: Duration| {
            waits.push(time.as_secs_f64());
            true
        };
        let code = Supervisor { common: &common, start, wait, stopped: || false, print: |_: &str| {} }
            .run()
            .unwrap();
        assert!(exits.next().is_none(), "as many starts as listed");
        (code, halvings_seen, waits)
    }

    #[test]
    fn transient_errors_are_retried_with_backoff_up_to_a_limit() {
        let transient = |state| (ChildExit::Transient, state);
        let (code, _, waits) =
            run_supervisor("--retry-max 25s", vec![transient(0), transient(0), transient(0), transient(0)]);
        assert_eq!(code, EXIT_TRANSIENT);
        for (wait, max) in waits.iter().zip([10.0, 20.0, 25.0]) {
            assert!((max / 2.0..=max).contains(wait), "{waits:?}");
        }
        // A new state resets the retries.
        let exits = vec![
            transient(0),
            transient(0),
            transient(1),
            transient(1),
            transient(1),
            (ChildExit::Code(0), 2),
        ];
        let (code, _, waits) = run_supervisor("", exits);
        assert_eq!((code, waits.len()), (0, 5));
        assert!(waits[2] <= 10.0 && waits[3] > 9.9, "{waits:?}");
        let killed = (ChildExit::Killed("killed (signal 9)".into()), 0);
        assert_eq!(run_supervisor("--max-retries 0", vec![killed]).0, EXIT_TRANSIENT);
    }

    #[test]
    fn permanent_errors_are_not_retried_and_micro_batches_are_halved_at_once() {
        for code in [0, 1, 2, EXIT_RESUMABLE] {
            assert_eq!(run_supervisor("", vec![(ChildExit::Code(code), 0)]), (code, vec![0], vec![]));
        }
        let exits = vec![
            (ChildExit::OutOfMemory, 0),
            (ChildExit::OutOfMemory, 0),
            (ChildExit::Transient, 0),
            (ChildExit::Code(0), 1),
        ];
        let (code, halvings_seen, waits) = run_supervisor("", exits);
        assert_eq!((code, halvings_seen, waits.len()), (0, vec![0, 1, 2, 2], 1));
    }
}
