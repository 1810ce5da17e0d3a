//! Running a sweep here, one job after the other.

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sysinfo::{Pid, ProcessesToUpdate, Signal, System};

use super::{Error, Job, JobStatus, Outcome, Result, SWEEPS, Sweep, SweepState, TaskKind};
use crate::train::{
    folder::{self, Lock, RunRecord, Status},
    metrics::{METRICS, Metrics},
};
use crate::{cloud, signals};

/// What a job said, in its folder.
pub const LOG: &str = "output.log";

/// How often it is looked whether a job has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The end of a log in which the error is looked for.
const TAIL_BYTES: u64 = 64 << 10;

/// What runs the jobs.
#[derive(Clone, Debug)]
pub struct Runner {
    /// The program that has `train`.
    pub program: PathBuf,
    /// The folder of runs.
    pub runs: PathBuf,
    /// Whether jobs that failed are tried again.
    pub retry_failed: bool,
    /// What stops it.
    pub stop: StopSignal,
}

/// A request to stop: it is handed on to the job, and no other begins.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    requested: Arc<AtomicBool>,
    /// Whether it is still to be handed on.
    not_forwarded: Arc<AtomicBool>,
}

impl StopSignal {
    /// One that is made by the signals that ask a run to stop.
    ///
    /// # Errors
    /// When they cannot be caught.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        for signal in signals::stop_signals() {
            // In this order: who sees that there is something to be told knows that it is a stop.
            signal_hook::flag::register(signal, stop.requested.clone())?;
            signal_hook::flag::register(signal, stop.not_forwarded.clone())?;
        }
        Ok(stop)
    }

    fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// What happens, for those who watch.
#[derive(Debug)]
pub enum SweepEvent<'a> {
    /// A job begins or goes on.
    Begins(usize, &'a Job),
    /// A job still runs that an earlier process began, which was killed: it is waited for.
    Waits(usize, &'a Job),
    /// A job has ended.
    Ended(usize, &'a Outcome),
}

/// How a sweep ended.
#[derive(Debug)]
pub struct SweepResult {
    /// Its folder.
    pub folder: PathBuf,
    /// How the jobs stand.
    pub state: SweepState,
    /// Whether it was stopped, with jobs left.
    pub stopped: bool,
}

impl Runner {
    /// The folder of a sweep.
    pub fn folder(&self, sweep: &Sweep) -> PathBuf {
        self.runs.join(SWEEPS).join(&sweep.name)
    }

    /// Runs `jobs`, those of `sweep`. What is finished is passed over, what was stopped or killed goes on.
    ///
    /// # Errors
    /// When the folder is another sweep's or somebody works in it, or a process cannot be begun. That a job fails is no error.
    pub fn run(
        &self,
        sweep: &Sweep,
        jobs: &[Job],
        observe: &mut dyn FnMut(SweepEvent),
    ) -> Result<SweepResult> {
        let folder = self.folder(sweep);
        std::fs::create_dir_all(&folder).map_err(|e| Error::file(&folder, e))?;
        let lock = Lock::take(&folder)?;
        if lock.is_none() {
            return Err(Error::file(&folder, "another process works on this sweep"));
        }
        let mut state = SweepState::open(&folder, sweep, jobs)?;
        let mut stopped = false;
        for (i, job) in jobs.iter().enumerate() {
            let before = state.jobs[i].status;
            if before == JobStatus::Finished || (before == JobStatus::Failed && !self.retry_failed) {
                continue;
            }
            let own = folder.join(&job.name);
            std::fs::create_dir_all(&own).map_err(|e| Error::file(&own, e))?;
            let Some(claim) = self.claim(&own, &mut || observe(SweepEvent::Waits(i, job)))? else {
                stopped = true;
                break;
            };
            let outcome = &mut state.jobs[i];
            let newest = newest(&own)?;
            // It ended when nobody was there to note it.
            let done =
                before != JobStatus::Failed && newest.is_some_and(|run| run.1.status == Status::Finished);
            if done {
                outcome.status = JobStatus::Finished;
            } else {
                (outcome.status, outcome.error) = (JobStatus::Running, None);
                state.save(&folder)?;
                observe(SweepEvent::Begins(i, job));
                let start = Instant::now();
                let (status, error) = self.train(sweep.task, job, &own, claim)?;
                let outcome = &mut state.jobs[i];
                outcome.seconds += start.elapsed().as_secs_f64();
                (outcome.status, outcome.error) = (status, error);
            }
            update_outcome(&mut state.jobs[i], &folder, &own, sweep)?;
            state.save(&folder)?;
            observe(SweepEvent::Ended(i, &state.jobs[i]));
            stopped = state.jobs[i].status == JobStatus::Stopped;
            if stopped {
                break;
            }
        }
        state.save(&folder)?;
        Ok(SweepResult { folder, state, stopped })
    }

    /// Notes what the folders of `jobs`, those of `sweep`, hold; runs none. For jobs that are run elsewhere.
    ///
    /// # Errors
    /// When the folder is another sweep's or somebody works in it.
    pub fn collect(&self, sweep: &Sweep, jobs: &[Job]) -> Result<SweepResult> {
        let folder = self.folder(sweep);
        if !folder.is_dir() {
            return Err(Error::file(&folder, "there is no such sweep"));
        }
        let lock = Lock::take(&folder)?;
        if lock.is_none() {
            return Err(Error::file(&folder, "another process works on this sweep"));
        }
        let mut state = SweepState::open(&folder, sweep, jobs)?;
        for (job, outcome) in jobs.iter().zip(&mut state.jobs) {
            let own = folder.join(&job.name);
            let cloud = cloud_records(&own)?.pop();
            if let Some(cloud) = &cloud {
                outcome.seconds = cloud.seconds;
            }
            // What failed before it had a run is known where it was begun alone.
            let failed = cloud.filter(|cloud| cloud.status == "failed");
            (outcome.status, outcome.error) = match (newest(&own)?.map(|run| run.1), failed) {
                (Some(RunRecord { status: Status::Finished, .. }), _) => (JobStatus::Finished, None),
                (_, Some(failed)) => (JobStatus::Failed, failed.error),
                (Some(RunRecord { status: Status::Failed, error, .. }), _) => (JobStatus::Failed, error),
                (Some(RunRecord { status: Status::Stopped, .. }), _) => (JobStatus::Stopped, None),
                (Some(_), _) => (JobStatus::Running, None),
                (None, None) => (outcome.status, outcome.error.take()),
            };
            update_outcome(outcome, &folder, &own, sweep)?;
        }
        state.save(&folder)?;
        Ok(SweepResult { folder, state, stopped: false })
    }

    /// Takes a job's folder for a process to come, and waits while one of an earlier call still works there: two would get into each
    /// other's way. `None` when asked to stop.
    fn claim(&self, own: &Path, on_wait: &mut dyn FnMut()) -> Result<Option<File>> {
        let path = own.join("lock");
        let failed = |e| Error::file(&path, e);
        let file = File::options().create(true).append(true).read(true).open(&path).map_err(failed)?;
        let mut told = false;
        while !self.stop.requested() {
            let free = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            };
            if free && !folder::list(own)?.iter().any(|(run, _)| Lock::is_held(run)) {
                return Ok(Some(file));
            }
            if !told {
                on_wait();
                told = true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(None)
    }

    /// Runs a job's process to its end.
    fn train(
        &self,
        task: TaskKind,
        job: &Job,
        own: &Path,
        claim: File,
    ) -> Result<(JobStatus, Option<String>)> {
        let path = own.join(LOG);
        let log = File::options().create(true).append(true).open(&path).map_err(|e| Error::file(&path, e))?;
        let start = log.metadata().map_or(0, |about| about.len());
        let both = log.try_clone().map_err(|e| Error::file(&path, e))?;
        // Its released files are beside its run, not in everybody's place.
        let released = match task {
            TaskKind::Dit => own.to_owned(),
            TaskKind::Classifier => own.join("cats_model.pt"),
        };
        let flag = |flag: &str, path: &Path| {
            let mut argument = OsString::from(flag);
            argument.push(path);
            argument
        };
        let mut command = Command::new(&self.program);
        command.args(&job.arguments).args([flag("--runs-dir=", own), flag("--output=", &released)]);
        command.arg("--resume=auto");
        // The lock is the open file's, which the job has as its empty input: it is free when the job has ended, even without us.
        command.stdin(claim).stdout(log).stderr(both);
        // A terminal's Ctrl-C is for this process, which hands it on: the job must not get it twice.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|e| Error::file(&self.program, e))?;
        // The lock is the job's alone.
        drop(command);
        let mut told = false;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| Error::file(&self.program, e))? {
                break status;
            }
            if self.stop.not_forwarded.swap(false, Ordering::SeqCst) {
                told = true;
                terminate(&mut child);
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        Ok(match status.code() {
            Some(0) => (JobStatus::Finished, None),
            Some(code) if code == i32::from(signals::EXIT_RESUMABLE) => (JobStatus::Stopped, None),
            // It was told to end, and did so without further ado: by the signal, or saying which it was.
            None | Some(128..) if told => (JobStatus::Stopped, None),
            _ => (JobStatus::Failed, Some(reason(&path, start, status))),
        })
    }
}

/// Asks a process to end; where there is no asking, ends it.
fn terminate(child: &mut Child) {
    let pid = Pid::from_u32(child.id());
    let mut system = System::new();
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
    let requested = system.process(pid).and_then(|process| process.kill_with(Signal::Term));
    if requested != Some(true) {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
}

/// What runs in a job's folder left about the cloud.
fn cloud_records(own: &Path) -> Result<Vec<cloud::CloudRecord>> {
    let Ok(entries) = std::fs::read_dir(own) else { return Ok(Vec::new()) };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let mut records = Vec::new();
    for folder in folders.filter(|path| !path.is_symlink()) {
        records.extend(cloud::CloudRecord::load(&folder)?);
    }
    let begun = |record: &cloud::CloudRecord| record.attempts.first().map_or(0.0, |attempt| attempt.begun);
    records.sort_by(|a, b| begun(a).total_cmp(&begun(b)));
    Ok(records)
}

/// The run that began last in a job's folder.
fn newest(own: &Path) -> Result<Option<(PathBuf, RunRecord)>> {
    Ok(folder::list(own)?.pop())
}

/// Notes what a job's run has come to.
fn update_outcome(outcome: &mut Outcome, folder: &Path, own: &Path, sweep: &Sweep) -> Result<()> {
    let Some((run, _)) = newest(own)? else {
        if outcome.status == JobStatus::Finished {
            outcome.status = JobStatus::Failed;
            outcome.error = Some(format!("it left no run in {}", own.display()));
        }
        return Ok(());
    };
    let metrics = Metrics::read(&run.join(METRICS))?;
    outcome.metric = metrics.deciding_point(&sweep.metric, sweep.goal);
    outcome.run = Some(run.strip_prefix(folder).unwrap_or(&run).to_owned());
    Ok(())
}

/// Why a job failed: the error that it said last, or its last line, or how it ended.
fn reason(log: &Path, start: u64, status: ExitStatus) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(start);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let said = text.lines().rfind(|line| line.starts_with("error: "));
    // What is killed has no word about it.
    let last = || text.lines().rfind(|line| !line.trim().is_empty()).filter(|_| status.code().is_some());
    let line = said.or_else(last).map(|line| line.trim_start_matches("error: ").trim());
    line.map_or_else(|| status.to_string(), |line| line.chars().take(300).collect())
}
