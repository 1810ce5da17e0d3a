//! A runner of sweeps on this machine, one job after the other.

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

use super::{Error, Job, JobStatus, Outcome, Result, SWEEPS, Sweep, SweepState};
use crate::recipes::TaskKind;
use crate::train::{
    folder::{self, Lock, RunRecord, Status},
    metrics::{METRICS, Metrics},
};
use crate::{cloud, signals};

/// The file in a job's folder that holds its output.
pub const LOG: &str = "output.log";

/// The interval between checks that a job has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes at the end of a log that are searched for an error.
const TAIL_BYTES: u64 = 64 << 10;

/// The runner of a sweep's jobs.
#[derive(Clone, Debug)]
pub struct Runner {
    /// The program with the subcommand `train`.
    pub program: PathBuf,
    /// The folder of runs.
    pub runs: PathBuf,
    /// True to retry failed jobs.
    pub retry_failed: bool,
    /// The signal that stops the sweep.
    pub stop: StopSignal,
}

/// A request to stop. It is forwarded to the running job, and no other job starts.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    requested: Arc<AtomicBool>,
    /// True until the request is forwarded.
    not_forwarded: Arc<AtomicBool>,
}

impl StopSignal {
    /// Creates a request that the signals that stop a run trigger.
    ///
    /// # Errors
    /// Returns an error if the handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        for signal in signals::stop_signals() {
            // The order matters: when the request is forwarded, it must be visible to all other checks.
            signal_hook::flag::register(signal, stop.requested.clone())?;
            signal_hook::flag::register(signal, stop.not_forwarded.clone())?;
        }
        Ok(stop)
    }

    fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// An event of a sweep.
#[derive(Debug)]
pub enum SweepEvent<'a> {
    /// A job starts or resumes.
    Started(usize, &'a Job),
    /// The runner waits for a running job of an earlier process that was killed.
    Waiting(usize, &'a Job),
    /// A job has ended.
    Ended(usize, &'a Outcome),
}

/// The result of a sweep.
#[derive(Debug)]
pub struct SweepResult {
    /// The sweep's folder.
    pub folder: PathBuf,
    /// The state of the jobs.
    pub state: SweepState,
    /// True if the sweep was stopped with jobs left.
    pub stopped: bool,
}

impl Runner {
    /// The folder of a sweep.
    pub fn folder(&self, sweep: &Sweep) -> PathBuf {
        self.runs.join(SWEEPS).join(&sweep.name)
    }

    /// Runs the `jobs` of `sweep`. Finished jobs are skipped; stopped and killed ones are resumed.
    ///
    /// # Errors
    /// Returns an error if the folder is of another sweep, another process works in it, or a process cannot be started.
    ///
    /// A failed job is not an error.
    pub fn run(
        &self,
        sweep: &Sweep,
        jobs: &[Job],
        observe: &mut dyn FnMut(SweepEvent),
    ) -> Result<SweepResult> {
        let folder = self.folder(sweep);
        std::fs::create_dir_all(&folder).map_err(|e| Error::file(&folder, e))?;
        let sweep_lock = Lock::acquire(&folder)?;
        if sweep_lock.is_none() {
            return Err(Error::file(&folder, "another process works on this sweep"));
        }
        let mut state = SweepState::open(&folder, sweep, jobs)?;
        let mut stopped = false;
        for (i, job) in jobs.iter().enumerate() {
            let previous_status = state.jobs[i].status;
            if previous_status == JobStatus::Finished
                || (previous_status == JobStatus::Failed && !self.retry_failed)
            {
                continue;
            }
            let job_folder = folder.join(&job.name);
            std::fs::create_dir_all(&job_folder).map_err(|e| Error::file(&job_folder, e))?;
            let Some(lock) =
                self.lock_job_folder(&job_folder, &mut || observe(SweepEvent::Waiting(i, job)))?
            else {
                stopped = true;
                break;
            };
            let outcome = &mut state.jobs[i];
            let newest_run = newest_run(&job_folder)?;
            // The run finished, but the process that would have recorded it was killed.
            let is_finished = previous_status != JobStatus::Failed
                && newest_run.is_some_and(|run| run.1.status == Status::Finished);
            if is_finished {
                outcome.status = JobStatus::Finished;
            } else {
                (outcome.status, outcome.error) = (JobStatus::Running, None);
                state.save(&folder)?;
                observe(SweepEvent::Started(i, job));
                let start = Instant::now();
                let (status, error) = self.train(&sweep.task, job, &job_folder, lock)?;
                let outcome = &mut state.jobs[i];
                outcome.seconds += start.elapsed().as_secs_f64();
                (outcome.status, outcome.error) = (status, error);
            }
            update_outcome(&mut state.jobs[i], &folder, &job_folder, sweep)?;
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

    /// Records the results in the folders of the `jobs` of `sweep` without running any, for jobs that ran on other machines.
    ///
    /// # Errors
    /// Returns an error if the folder is missing or of another sweep, or another process works in it.
    pub fn collect(&self, sweep: &Sweep, jobs: &[Job]) -> Result<SweepResult> {
        let folder = self.folder(sweep);
        if !folder.is_dir() {
            return Err(Error::file(&folder, "this sweep does not exist"));
        }
        let lock = Lock::acquire(&folder)?;
        if lock.is_none() {
            return Err(Error::file(&folder, "another process works on this sweep"));
        }
        let mut state = SweepState::open(&folder, sweep, jobs)?;
        for (job, outcome) in jobs.iter().zip(&mut state.jobs) {
            let job_folder = folder.join(&job.name);
            let cloud = cloud_records(&job_folder)?.pop();
            if let Some(cloud) = &cloud {
                outcome.seconds = cloud.seconds;
            }
            // A failure before the run's folder existed is recorded only in `cloud.json`.
            let failed = cloud.filter(|cloud| cloud.status == "failed");
            (outcome.status, outcome.error) = match (newest_run(&job_folder)?.map(|run| run.1), failed) {
                (Some(RunRecord { status: Status::Finished, .. }), _) => (JobStatus::Finished, None),
                (_, Some(failed)) => (JobStatus::Failed, failed.error),
                (Some(RunRecord { status: Status::Failed, error, .. }), _) => (JobStatus::Failed, error),
                (Some(RunRecord { status: Status::Stopped, .. }), _) => (JobStatus::Stopped, None),
                (Some(_), _) => (JobStatus::Running, None),
                (None, None) => (outcome.status, outcome.error.take()),
            };
            update_outcome(outcome, &folder, &job_folder, sweep)?;
        }
        state.save(&folder)?;
        Ok(SweepResult { folder, state, stopped: false })
    }

    /// Locks the folder of a job for a new process; `None` after a request to stop.
    ///
    /// Waits while a process of an earlier call still works in the folder.
    fn lock_job_folder(&self, job_folder: &Path, on_wait: &mut dyn FnMut()) -> Result<Option<File>> {
        let path = job_folder.join("lock");
        let failed = |e| Error::file(&path, e);
        let file = File::options().create(true).append(true).read(true).open(&path).map_err(failed)?;
        let mut was_notified = false;
        while !self.stop.requested() {
            let is_free = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            };
            if is_free && !folder::list(job_folder)?.iter().any(|(run, _)| Lock::is_held(run)) {
                return Ok(Some(file));
            }
            if !was_notified {
                on_wait();
                was_notified = true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(None)
    }

    /// Runs the process of a job to its end.
    fn train(
        &self,
        task: &str,
        job: &Job,
        job_folder: &Path,
        lock: File,
    ) -> Result<(JobStatus, Option<String>)> {
        let path = job_folder.join(LOG);
        let log = File::options().create(true).append(true).open(&path).map_err(|e| Error::file(&path, e))?;
        let start = log.metadata().map_or(0, |metadata| metadata.len());
        let stderr_log = log.try_clone().map_err(|e| Error::file(&path, e))?;
        // The released files are next to the run, not in the default folder.
        let file = TaskKind::find(task).and_then(|task| task.released_file);
        let released = file.map_or_else(|| job_folder.to_owned(), |file| job_folder.join(file));
        let flag = |flag: &str, path: &Path| {
            let mut argument = OsString::from(flag);
            argument.push(path);
            argument
        };
        let mut command = Command::new(&self.program);
        command.args(&job.arguments).args([flag("--runs-dir=", job_folder), flag("--output=", &released)]);
        command.arg("--resume=auto");
        // The open file that holds the lock is the standard input of the job, which is empty. So the lock is released when the job
        // ends, even if this process has been killed.
        command.stdin(lock).stdout(log).stderr(stderr_log);
        // The job is in its own process group, since this process forwards Ctrl-C, and the job must not receive it twice.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|e| Error::file(&self.program, e))?;
        // Closes the copy of the file in this process, so that only the job holds the lock.
        drop(command);
        let mut is_stopping = false;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| Error::file(&self.program, e))? {
                break status;
            }
            if self.stop.not_forwarded.swap(false, Ordering::SeqCst) {
                is_stopping = true;
                terminate(&mut child);
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        Ok(match status.code() {
            Some(0) => (JobStatus::Finished, None),
            Some(code) if code == i32::from(signals::EXIT_RESUMABLE) => (JobStatus::Stopped, None),
            // The job ended by the forwarded signal, or with the exit code for it.
            None | Some(128..) if is_stopping => (JobStatus::Stopped, None),
            _ => (JobStatus::Failed, Some(failure_reason(&path, start, status))),
        })
    }
}

/// Sends SIGTERM, or kills the process on systems without it.
fn terminate(child: &mut Child) {
    let pid = Pid::from_u32(child.id());
    let mut system = System::new();
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
    let was_sent = system.process(pid).and_then(|process| process.kill_with(Signal::Term));
    if was_sent != Some(true) {
        // The process may have ended.
        let _ = child.kill();
    }
}

/// Reads the cloud records of the runs in the folder of a job, oldest first.
fn cloud_records(job_folder: &Path) -> Result<Vec<cloud::CloudRecord>> {
    let Ok(entries) = std::fs::read_dir(job_folder) else { return Ok(Vec::new()) };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let mut records = Vec::new();
    for folder in folders.filter(|path| !path.is_symlink()) {
        records.extend(cloud::CloudRecord::load(&folder)?);
    }
    let start_time =
        |record: &cloud::CloudRecord| record.attempts.first().map_or(0.0, |attempt| attempt.started);
    records.sort_by(|a, b| start_time(a).total_cmp(&start_time(b)));
    Ok(records)
}

/// The newest run in the folder of a job.
fn newest_run(job_folder: &Path) -> Result<Option<(PathBuf, RunRecord)>> {
    Ok(folder::list(job_folder)?.pop())
}

/// Updates a job's outcome from its run.
fn update_outcome(outcome: &mut Outcome, folder: &Path, job_folder: &Path, sweep: &Sweep) -> Result<()> {
    let Some((run, _)) = newest_run(job_folder)? else {
        if outcome.status == JobStatus::Finished {
            outcome.status = JobStatus::Failed;
            outcome.error = Some(format!("expected a run in {}, found none", job_folder.display()));
        }
        return Ok(());
    };
    let metrics = Metrics::read(&run.join(METRICS))?;
    outcome.metric = metrics.deciding_point(&sweep.metric, sweep.goal);
    outcome.run = Some(run.strip_prefix(folder).unwrap_or(&run).to_owned());
    Ok(())
}

/// The reason of a failure: the last error message in the log, or its last line, or the exit status.
fn failure_reason(log: &Path, start: u64, status: ExitStatus) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(start);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let error_line = text.lines().rfind(|line| line.starts_with("error: "));
    // The last line of a killed process is not a reason.
    let last_line = || text.lines().rfind(|line| !line.trim().is_empty()).filter(|_| status.code().is_some());
    let line = error_line.or_else(last_line).map(|line| line.trim_start_matches("error: ").trim());
    line.map_or_else(|| status.to_string(), |line| line.chars().take(300).collect())
}
