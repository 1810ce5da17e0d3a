//! The small parent of a training process: starts a run, and restarts it after a kill, exhausted memory, or a transient error.

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

/// The exit code of a training process that met a transient error, and of its parent when no retries are left: EX_IOERR of sysexits.h.
pub const EXIT_TRANSIENT: u8 = 74;

/// The longest wait for another process that trains in the run's folder; `--retry-max`, if shorter.
const SAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval at which its end is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The message when a signal arrived before the run started or resumed.
const STOPPED_MESSAGE: &str = "stopped before the run began or went on: the same command does so";
/// The message when `--max-time` leaves no time for a retry.
const OUT_OF_TIME: &str = "the time of --max-time is up: the same command goes on";

/// The maximum number of halvings after exhausted memory; further ones would not help.
const MAX_HALVINGS: u32 = 20;

/// Trains in a process of its own, and restarts it if that may help.
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
    // After `train` and the task, before anything that may end the flags.
    let place = arguments.iter().position(|argument| argument == task).map_or(arguments.len(), |at| at + 1);
    arguments.insert(place, join("--worker=", &folder));
    if let Some(deadline) = deadline {
        let seconds = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        arguments.insert(place, format!("--deadline={seconds}").into());
    }
    let begin = |halvings: u32| {
        let kills = out_of_memory_kills();
        let mut command = Command::new(&program);
        command
            .args(&arguments[..place])
            .arg(format!("--halvings={halvings}"))
            .args(&arguments[place..])
            .envs(process_group::threads(common));
        let status = signals.run(command).with_context(|| program.display().to_string())?;
        Ok((ChildExit::of(status, out_of_memory_kills() > kills), states(&folder)))
    };
    let wait = |time| {
        let left = deadline.map(|deadline| deadline.duration_since(SystemTime::now()).unwrap_or_default());
        let in_time = left.is_none_or(|left| left > time);
        signals.sleep(left.map_or(time, |left| left.min(time))) && in_time
    };
    if signals.stopped() {
        logging::eprint_and_log(STOPPED_MESSAGE);
        folder::remove_unstarted(&folder);
        return Ok(ExitCode::from(EXIT_RESUMABLE));
    }
    let mut supervisor = Supervisor {
        common,
        begin,
        wait,
        stopped: || signals.stopped(),
        say: |line: &str| say(common, &folder, line),
    };
    let code = supervisor.run();
    folder::remove_unstarted(&folder);
    Ok(ExitCode::from(code?))
}

/// Restarts a training process until it ends for good.
struct Supervisor<'a, Begin, Wait, Stopped, Say> {
    common: &'a CommonArgs,
    /// Trains, with micro-batches halved a number of times. Returns how the process ended, and its training states.
    begin: Begin,
    /// Waits before a retry; true if the full time passed without a signal or the deadline.
    wait: Wait,
    /// True if the user has asked the run to stop.
    stopped: Stopped,
    say: Say,
}

impl<Begin, Wait, Stopped, Say, State> Supervisor<'_, Begin, Wait, Stopped, Say>
where
    Begin: FnMut(u32) -> anyhow::Result<(ChildExit, State)>,
    Wait: FnMut(Duration) -> bool,
    Stopped: Fn() -> bool,
    Say: FnMut(&str),
    State: Default + PartialEq,
{
    /// Runs the training process to its end, with retries, and returns the exit code.
    fn run(&mut self) -> anyhow::Result<u8> {
        let (mut halvings, mut retries, mut newest) = (0, 0, State::default());
        loop {
            let (ended, state) = (self.begin)(halvings)?;
            if state != newest {
                (newest, retries) = (state, 0);
            }
            let what = match ended {
                ChildExit::Code(code) => return Ok(code),
                _ if (self.stopped)() => {
                    (self.say)(STOPPED_MESSAGE);
                    return Ok(EXIT_RESUMABLE);
                }
                ChildExit::OutOfMemory if halvings < MAX_HALVINGS => {
                    halvings += 1;
                    (self.say)(
                        "out of memory: micro-batches are halved, and there are twice as many in a step",
                    );
                    continue;
                }
                ChildExit::OutOfMemory => "out of memory".to_owned(),
                ChildExit::Transient => "the error may pass".to_owned(),
                ChildExit::Killed(how) => format!("the training process was {how}"),
            };
            let CommonArgs { max_retries, retry_initial, retry_max, .. } = self.common;
            if retries == *max_retries {
                (self.say)(&format!("{what}; given up after {retries} retries"));
                return Ok(EXIT_TRANSIENT);
            }
            let time = backoff(*retry_initial, *retry_max, retries);
            retries += 1;
            let seconds = time.as_secs_f64();
            (self.say)(&format!("{what}: going on in {seconds:.1} s (retry {retries} of {max_retries})"));
            if !(self.wait)(time) {
                (self.say)(if (self.stopped)() { STOPPED_MESSAGE } else { OUT_OF_TIME });
                return Ok(EXIT_RESUMABLE);
            }
        }
    }
}

/// Locks the run's folder as soon as no process trains in it: one whose parent was killed saves its state first. Prints a message and
/// returns `None` if it does not end in time, or a signal arrives.
fn acquire_run_folder(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
    signals: &Signals,
) -> anyhow::Result<Option<(PathBuf, ParentLock)>> {
    let patience = SAVE_TIMEOUT.min(common.retry_max);
    let end = Instant::now() + patience;
    let mut told = false;
    loop {
        // Repeated each time, since that process may finish the run.
        if let Some(found) = claim(common, task, configuration)? {
            return Ok(Some(found));
        }
        let folder = run_folder(common, task, configuration)?;
        let (name, seconds) = (folder.display(), patience.as_secs_f64());
        if !told {
            told = true;
            logging::eprint_and_log(&format!(
                "{name}: another process trains in this folder; waiting at most {seconds} s for it to end"
            ));
        }
        if Instant::now() >= end {
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

/// Locks the run's folder; `None` if another process trains in it. A new run gets its record and its configuration here, so that the same
/// command finds it, however early this process ends.
fn claim(
    common: &CommonArgs,
    task: &'static str,
    configuration: &ResolvedConfig,
) -> anyhow::Result<Option<(PathBuf, ParentLock)>> {
    let root = &common.runs_dir;
    check_can_write(root).with_context(|| format!("{}: cannot write there", root.display()))?;
    // One command at a time, so that two do not start the same run.
    let _claiming = ParentLock::of_runs(root)?;
    let folder = run_folder(common, task, configuration)?;
    check_can_write(&folder).with_context(|| format!("{}: cannot write there", folder.display()))?;
    if Lock::is_held(&folder) {
        return Ok(None);
    }
    let Some(lock) = ParentLock::take(&folder)? else { return Ok(None) };
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
    let fresh = || folder::new_run_folder(&common.runs_dir, task);
    match common.resume.as_str() {
        "never" => Ok(fresh()),
        "auto" => {
            let unfinished = |(path, record): &(PathBuf, RunRecord)| {
                record.task == task && record.status != Status::Finished && is_same(path, configuration)
            };
            let found = folder::list(&common.runs_dir)?.into_iter().rfind(unfinished).map(|(path, _)| path);
            let found =
                found.map_or_else(|| finished_run(common, task, configuration), |path| Ok(Some(path)))?;
            Ok(found.unwrap_or_else(fresh))
        }
        path => {
            let path = PathBuf::from(path);
            if path.is_dir() {
                RunRecord::load(&path)?.of(&path, task)?;
                // A link such as `latest` may point elsewhere tomorrow.
                let path = path.canonicalize().with_context(|| path.display().to_string())?;
                return Ok(path);
            }
            if !path.exists() {
                bail!(
                    "--resume {}: expected auto, never, a run's folder or a training state",
                    path.display()
                );
            }
            Ok(fresh())
        }
    }
}

/// How a training process ended.
enum ChildExit {
    /// By itself, with this exit code.
    Code(u8),
    /// With a transient error.
    Transient,
    /// Out of memory.
    OutOfMemory,
    /// By a signal or a panic, with a description.
    Killed(String),
}

impl ChildExit {
    fn of(status: ExitStatus, memory_was_short: bool) -> Self {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            // A failed allocation aborts a Rust program. On Linux allocation more often succeeds, and the process is killed when it uses
            // the memory.
            return match signal {
                libc::SIGABRT => Self::OutOfMemory,
                libc::SIGKILL if memory_was_short => Self::OutOfMemory,
                _ => Self::Killed(format!("killed (signal {signal})")),
            };
        }
        let _ = memory_was_short;
        match status.code() {
            Some(code) if code == i32::from(EXIT_TRANSIENT) => Self::Transient,
            // A panic, whose message was printed already.
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

/// The training states of a run: a process that has written one has made progress. Times are only compared for equality, since clocks jump.
fn states(folder: &Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let states = folder::states(folder).unwrap_or_default().into_iter();
    let modified = |state: &Path| state.metadata().and_then(|about| about.modified()).ok();
    states.map(|state| (state.clone(), modified(&state))).collect()
}

/// Exponential backoff, with random jitter so that many processes do not retry at once.
fn backoff(initial: Duration, most: Duration, retries: u32) -> Duration {
    let whole = initial.saturating_mul(1 << retries.min(20)).min(most);
    let mut chance = RandomState::new().build_hasher();
    chance.write_u32(retries);
    whole.mul_f64(0.5 + 0.5 * (chance.finish() >> 11) as f64 / (1u64 << 53) as f64)
}

/// Prints a line, and logs it in the run's log, if that exists.
fn say(common: &CommonArgs, folder: &Path, line: &str) {
    let log = folder.join(LOG);
    if log.is_file() {
        logging::add_run_file(&log, common.log_format);
    }
    logging::eprint_and_log(line);
}

fn join(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

/// Forwards signals of this process to the training process. That is in a group of its own, so signals from a terminal arrive only here.
#[derive(Clone, Default)]
pub struct Signals {
    /// The ID of the training process; 0 while there is none.
    child: Arc<AtomicU32>,
    stopped: Arc<AtomicBool>,
    last: Arc<AtomicI32>,
}

impl Signals {
    /// Catches the signals, from the first call in this process on.
    ///
    /// # Errors
    /// If they cannot be caught.
    pub fn catch() -> std::io::Result<Self> {
        static CAUGHT: OnceLock<Signals> = OnceLock::new();
        if let Some(caught) = CAUGHT.get() {
            return Ok(caught.clone());
        }
        let caught = Self::default();
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGCONT, SIGTSTP};
            let heard = [signals::stop_signals(), vec![SIGTSTP, SIGCONT]].concat();
            let mut signals = signal_hook::iterator::Signals::new(heard)?;
            let caught = caught.clone();
            thread::spawn(move || {
                for signal in signals.forever() {
                    match signal {
                        SIGTSTP => {
                            caught.send(libc::SIGSTOP);
                            let _ = signal_hook::low_level::raise(libc::SIGSTOP);
                        }
                        SIGCONT => caught.send(SIGCONT),
                        signal => {
                            caught.stopped.store(true, Ordering::SeqCst);
                            caught.last.store(signal, Ordering::SeqCst);
                            caught.send(signal);
                        }
                    }
                }
            });
        }
        Ok(CAUGHT.get_or_init(|| caught).clone())
    }

    #[cfg(unix)]
    fn send(&self, signal: i32) {
        let child = self.child.load(Ordering::SeqCst);
        if child != 0 {
            // SAFETY: it sends a signal to our own child, which is not reaped before `child` is set to 0.
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
            // A signal that arrived before there was a process to forward it to.
            self.send(self.last.load(Ordering::SeqCst));
        }
        let status = wait(&mut child, &self.child);
        self.child.store(0, Ordering::SeqCst);
        status
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Sleeps for `time`; false if a signal arrived.
    fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.stopped() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50).min(end - Instant::now()));
        }
        !self.stopped()
    }
}

/// Waits for `child`, which gets no more signals once it has ended.
fn wait(child: &mut std::process::Child, id: &AtomicU32) -> std::io::Result<ExitStatus> {
    #[cfg(unix)]
    {
        // Its process ID is not reused until it is reaped below.
        // SAFETY: siginfo_t is plain memory that the call fills; WNOWAIT leaves the child to be reaped.
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
    struct Line {
        #[command(flatten)]
        common: CommonArgs,
    }

    /// Supervises a run whose processes end as listed, each with the number of the state that it saved. Returns the exit code, the halvings
    /// of micro-batches for each process, and the waits in seconds.
    fn kept(flags: &str, ends: Vec<(ChildExit, u64)>) -> (u8, Vec<u32>, Vec<f64>) {
        let needed = "train --batch-size 8 --ema-beta 0.9 --weight-decay 0 --log-interval 1";
        let common = Line::parse_from(needed.split(' ').chain(flags.split_whitespace())).common;
        let (mut halved, mut waits, mut ends) = (Vec::new(), Vec::new(), ends.into_iter());
        let begin = |halvings| {
            halved.push(halvings);
            Ok(ends.next().expect("it is begun no more often than that"))
        };
        let wait = |time: Duration| {
            waits.push(time.as_secs_f64());
            true
        };
        let code =
            Supervisor { common: &common, begin, wait, stopped: || false, say: |_: &str| {} }.run().unwrap();
        assert!(ends.next().is_none(), "it is begun as often as that");
        (code, halved, waits)
    }

    #[test]
    fn what_may_pass_is_tried_again_after_ever_longer_waits_until_it_is_given_up() {
        let transient = |state| (ChildExit::Transient, state);
        let (code, _, waits) =
            kept("--retry-max 25s", vec![transient(0), transient(0), transient(0), transient(0)]);
        assert_eq!(code, EXIT_TRANSIENT);
        for (wait, whole) in waits.iter().zip([10.0, 20.0, 25.0]) {
            assert!((whole / 2.0..=whole).contains(wait), "{waits:?}");
        }
        // A new state resets the retries.
        let ends = vec![
            transient(0),
            transient(0),
            transient(1),
            transient(1),
            transient(1),
            (ChildExit::Code(0), 2),
        ];
        let (code, _, waits) = kept("", ends);
        assert_eq!((code, waits.len()), (0, 5));
        assert!(waits[2] <= 10.0 && waits[3] > 9.9, "{waits:?}");
        let killed = (ChildExit::Killed("killed (signal 9)".into()), 0);
        assert_eq!(kept("--max-retries 0", vec![killed]).0, EXIT_TRANSIENT);
    }

    #[test]
    fn what_stays_is_not_tried_again_and_memory_is_halved_at_once() {
        for code in [0, 1, 2, EXIT_RESUMABLE] {
            assert_eq!(kept("", vec![(ChildExit::Code(code), 0)]), (code, vec![0], vec![]));
        }
        let ends = vec![
            (ChildExit::OutOfMemory, 0),
            (ChildExit::OutOfMemory, 0),
            (ChildExit::Transient, 0),
            (ChildExit::Code(0), 1),
        ];
        let (code, halved, waits) = kept("", ends);
        assert_eq!((code, halved, waits.len()), (0, vec![0, 1, 2, 2], 1));
    }
}
