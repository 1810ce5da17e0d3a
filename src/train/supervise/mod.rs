//! Supervision of a training process: it is started, and restarted after a kill, an out-of-memory error, or a transient error.

mod forward;
mod select;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, SystemTime},
};

pub use self::{
    forward::Signals,
    select::{Resume, RunSelection},
};
use super::{Error, Result, folder};
use crate::signals::EXIT_RESUMABLE;

/// The exit code of a training process after a transient error, and of its parent when no retries are left: EX_IOERR of sysexits.h.
pub const EXIT_TRANSIENT: u8 = 74;

/// The message if a signal arrives before the run starts or resumes.
const STOPPED_MESSAGE: &str = "stopped before the run started or resumed; run the same command to continue";
/// The message if the time limit leaves no time for a retry.
const OUT_OF_TIME: &str = "the time limit was reached; run the same command to resume";

/// Maximum halvings of the micro-batch after out-of-memory errors; further ones would not help.
const MAX_HALVINGS: u32 = 20;

/// The environment variable for the number of threads of a process.
const NUM_THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// The options of supervision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupervisorOptions {
    /// The time after which the run is stopped.
    pub max_time: Option<Duration>,
    /// Maximum retries without a new training state in between.
    pub max_retries: u32,
    /// Delay before the first retry; it doubles with each retry.
    pub retry_initial: Duration,
    /// Maximum delay before a retry.
    pub retry_max: Duration,
    /// Number of processes of the run, among which the cores are divided.
    pub processes: usize,
}

/// A training process to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker<'a> {
    /// The run's folder.
    pub folder: &'a Path,
    /// Number of times that the micro-batch is halved, after out-of-memory errors.
    pub halvings: u32,
    /// The time to stop at.
    pub deadline: Option<SystemTime>,
}

/// An event of supervision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The folder of the run: once it is chosen, and before each note about a process that trained in it.
    Folder(&'a Path),
    /// A message for the user.
    Note(&'a str),
    /// The error that ends the supervision.
    Failed(&'a str),
}

/// Trains in a process that `command` describes, and restarts it after errors that may be transient. Signals that stop a run are forwarded
/// to it. Returns the exit code: that of the process, [`EXIT_RESUMABLE`] if the run was stopped, or [`EXIT_TRANSIENT`] if no retries are
/// left.
///
/// # Errors
/// If there is nothing to resume from, or no process can be started.
pub fn supervise(
    run: &RunSelection,
    options: &SupervisorOptions,
    command: &dyn Fn(&Worker) -> Command,
    observe: &mut dyn FnMut(Event),
) -> Result<u8> {
    let signals = Signals::catch().map_err(|source| Error::File { path: "signals".into(), source })?;
    // A time that cannot be represented is no limit.
    let deadline = options.max_time.and_then(|time| SystemTime::now().checked_add(time));
    let Some((folder, _lock)) = run.acquire(options.retry_max, &signals, observe)? else {
        return Ok(if signals.stopped() { EXIT_RESUMABLE } else { EXIT_TRANSIENT });
    };
    if signals.stopped() {
        observe(Event::Note(STOPPED_MESSAGE));
        folder::remove_unstarted(&folder);
        return Ok(EXIT_RESUMABLE);
    }
    observe(Event::Folder(&folder));
    let start = |halvings: u32| {
        let kills = out_of_memory_kills();
        let mut command = command(&Worker { folder: &folder, halvings, deadline });
        if command.get_envs().all(|(name, _)| name != NUM_THREADS_VARIABLE) {
            command.envs(num_threads_variable(options.processes));
        }
        let program = PathBuf::from(command.get_program());
        let status = signals.run(command).map_err(|source| Error::File { path: program, source })?;
        Ok((ChildExit::from_status(status, out_of_memory_kills() > kills), states(&folder)))
    };
    let wait = |time| {
        let remaining =
            deadline.map(|deadline| deadline.duration_since(SystemTime::now()).unwrap_or_default());
        let is_in_time = remaining.is_none_or(|remaining| remaining > time);
        signals.sleep(remaining.map_or(time, |remaining| remaining.min(time))) && is_in_time
    };
    let print = |line: &str| {
        observe(Event::Folder(&folder));
        observe(Event::Note(line));
    };
    let code = Supervisor { options, start, wait, stopped: || signals.stopped(), print }.run();
    folder::remove_unstarted(&folder);
    code
}

/// Restarts a training process until it succeeds, fails permanently or is stopped.
struct Supervisor<'a, Start, Wait, Stopped, Print> {
    options: &'a SupervisorOptions,
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
    Start: FnMut(u32) -> Result<(ChildExit, State)>,
    Wait: FnMut(Duration) -> bool,
    Stopped: Fn() -> bool,
    Print: FnMut(&str),
    State: Default + PartialEq,
{
    /// Runs the training process to its end, with retries, and returns the exit code.
    fn run(&mut self) -> Result<u8> {
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
            let &SupervisorOptions { max_retries, retry_initial, retry_max, .. } = self.options;
            if retries == max_retries {
                (self.print)(&format!("{reason}; given up after {retries} retries"));
                return Ok(EXIT_TRANSIENT);
            }
            let time = backoff(retry_initial, retry_max, retries);
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

/// The environment variable and value that divide the cores among `processes`; `None` for one process, or if the user has set it.
fn num_threads_variable(processes: usize) -> Option<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let is_unset = processes > 1 && std::env::var_os(NUM_THREADS_VARIABLE).is_none();
    is_unset.then(|| (NUM_THREADS_VARIABLE, (cores / processes).max(1).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SupervisorOptions {
        let [retry_initial, retry_max] = [10, 300].map(Duration::from_secs);
        SupervisorOptions { max_time: None, max_retries: 3, retry_initial, retry_max, processes: 1 }
    }

    /// Supervises a run whose processes end as listed, each with the number of the state that it saved. Returns the exit code, the halvings
    /// of each process, and the waits in seconds.
    fn run_supervisor(options: SupervisorOptions, exits: Vec<(ChildExit, u64)>) -> (u8, Vec<u32>, Vec<f64>) {
        let (mut halvings_seen, mut waits, mut exits) = (Vec::new(), Vec::new(), exits.into_iter());
        let start = |halvings| {
            halvings_seen.push(halvings);
            Ok(exits.next().expect("no more starts than listed"))
        };
        let wait = |time: Duration| {
            waits.push(time.as_secs_f64());
            true
        };
        let code = Supervisor { options: &options, start, wait, stopped: || false, print: |_: &str| {} }
            .run()
            .unwrap();
        assert!(exits.next().is_none(), "as many starts as listed");
        (code, halvings_seen, waits)
    }

    #[test]
    fn transient_errors_are_retried_with_backoff_up_to_a_limit() {
        let transient = |state| (ChildExit::Transient, state);
        let (code, _, waits) = run_supervisor(
            SupervisorOptions { retry_max: Duration::from_secs(25), ..options() },
            vec![transient(0), transient(0), transient(0), transient(0)],
        );
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
        let (code, _, waits) = run_supervisor(options(), exits);
        assert_eq!((code, waits.len()), (0, 5));
        assert!(waits[2] <= 10.0 && waits[3] > 9.9, "{waits:?}");
        let killed = (ChildExit::Killed("killed (signal 9)".into()), 0);
        assert_eq!(
            run_supervisor(SupervisorOptions { max_retries: 0, ..options() }, vec![killed]).0,
            EXIT_TRANSIENT
        );
    }

    #[test]
    fn permanent_errors_are_not_retried_and_micro_batches_are_halved_at_once() {
        for code in [0, 1, 2, EXIT_RESUMABLE] {
            assert_eq!(run_supervisor(options(), vec![(ChildExit::Code(code), 0)]), (code, vec![0], vec![]));
        }
        let exits = vec![
            (ChildExit::OutOfMemory, 0),
            (ChildExit::OutOfMemory, 0),
            (ChildExit::Transient, 0),
            (ChildExit::Code(0), 1),
        ];
        let (code, halvings_seen, waits) = run_supervisor(options(), exits);
        assert_eq!((code, halvings_seen, waits.len()), (0, vec![0, 1, 2, 2], 1));
    }
}
