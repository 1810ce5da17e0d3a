//! A run's folder: its configuration, record, locks and other files.
//!
//! ```text
//!     runs/latest -> 20261123-224501-dit-7f3a    the newest (a file with its name, if links are not supported)
//!     runs/20261123-224501-dit-7f3a/
//!         run.json          the record: see [`RunRecord`]
//!         config.toml       the resolved configuration, which `--config` takes
//!         lock              held while a process trains here
//!         parent.lock       held by the parent process, which starts such processes
//!         metrics.jsonl     one object for each logged step and each evaluation
//!         training.log      the printed messages, with times
//!         TASK_step_00001000.safetensors   training states
//!         samples/          sample grids
//!         NAME.pt, NAME.safetensors        the released files
//!         loss.png          the loss curve
//! ```

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tiny_cats_export::{excerpt, write_atomically};

use super::{Error, Result};

/// The default folder of runs.
pub const RUNS: &str = "runs";

/// The folder of all sweeps, inside the folder of runs.
pub const SWEEPS: &str = "sweeps";

/// The file in a run's folder that holds its resolved configuration.
pub const CONFIGURATION: &str = "config.toml";

/// The file in a run's folder that holds the printed messages.
pub const LOG: &str = "training.log";

/// The file in a run's folder that holds its [`RunRecord`].
pub const RECORD: &str = "run.json";
const LATEST: &str = "latest";
const LOCK: &str = "lock";
const PARENT_LOCK: &str = "parent.lock";
/// The lock in the folder of all runs, on systems that cannot lock a folder.
const RUNS_LOCK: &str = ".lock";
/// Maximum number of characters of a run's name.
const MAX_ID_CHARS: usize = 100;
/// A record is a page of text; this limit leaves ample room.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// The status of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A process trains. If it was killed, no process holds the lock.
    Running,
    /// The run was stopped and can be resumed.
    Stopped,
    /// The run ended with an error.
    Failed,
    /// The run's files are released.
    Finished,
}

/// The record of a run, `run.json`, which can be read without its training states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The name of the run's folder.
    pub id: String,
    /// `dit` or `classifier`.
    pub task: String,
    /// The status of the run.
    pub status: Status,
    /// Start time in seconds since 1970.
    #[serde(rename = "begun")]
    pub started: u64,
    /// Time of the last write in seconds since 1970.
    pub written: u64,
    /// Steps done.
    pub step: u64,
    /// Total steps.
    pub steps: u64,
    /// The best evaluation so far.
    pub best: Option<BestScore>,
    /// True for a finished run if all later work, such as its evaluation, is done too. Earlier versions did not write it.
    #[serde(default = "default_complete")]
    pub complete: bool,
    /// The error that ended the run.
    pub error: Option<String>,
    /// The newest sample grid, relative to the run's folder.
    pub sample: Option<PathBuf>,
    /// The command line.
    pub command: Vec<String>,
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestScore {
    /// Steps done at the evaluation.
    pub step: u64,
    /// The name of the metric.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The index of the moving average, from 0.
    pub average: usize,
}

impl RunRecord {
    /// The record of a new run.
    pub fn new(id: String, task: &str) -> Self {
        let command = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let started = now();
        let (status, task) = (Status::Running, task.to_owned());
        Self {
            id,
            task,
            status,
            started,
            written: started,
            step: 0,
            steps: 0,
            best: None,
            complete: false,
            error: None,
            sample: None,
            command,
        }
    }

    /// Reads `run.json` in a run's folder.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a record.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(RECORD);
        let text = read_bounded(&path)?;
        let broken = |e: serde_json::Error| Error::Resume {
            path,
            message: format!("expected the record of a run: {}", excerpt(&e.to_string())),
        };
        serde_json::from_slice(&text).map_err(broken)
    }

    /// Returns this record of `folder` if it is of a `task` run.
    ///
    /// # Errors
    /// Returns [`Error::Resume`] for a run of another task.
    pub fn check_task(self, folder: &Path, task: &str) -> Result<Self> {
        if self.task == task {
            return Ok(self);
        }
        let message = format!("is a run of `train {}`", self.task.escape_debug());
        Err(Error::Resume { path: folder.to_owned(), message })
    }

    /// Writes `run.json` atomically.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        self.written = now();
        let path = folder.join(RECORD);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::File { path: path.clone(), source: e.into() })?;
        text.push(b'\n');
        write_atomically(&path, |w| w.write_all(&text)).map_err(|source| Error::File { path, source })
    }
}

/// Reads a file of at most 1 MiB. Longer files, and paths that are not regular files, are rejected before reading.
///
/// # Errors
/// Returns an error if the file cannot be read or is too long.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_RECORD_BYTES {
        let found =
            format!("expected a file of at most {MAX_RECORD_BYTES} bytes, found {} bytes", metadata.len());
        let found = if metadata.is_file() { found } else { "expected a file".to_owned() };
        return Err(failed(std::io::Error::other(found)));
    }
    let (mut text, file) = (Vec::new(), File::open(path).map_err(failed)?);
    file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

/// True if `id` is valid as a run's name: every file system accepts it, and it is not a reserved name.
pub fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_+=.".contains(c);
    let reserved = [LATEST, SWEEPS].contains(&id);
    (1..=MAX_ID_CHARS).contains(&id.len())
        && !id.starts_with(['.', '-'])
        && id.chars().all(allowed)
        && !reserved
}

/// Returns the path in `root` for a new run, with an unused id. It creates nothing.
pub fn new_run_folder(root: &Path, task: &str) -> PathBuf {
    // 2026-11-23T22:45:01Z as 20261123-224501.
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time = time.replace(['-', ':', 'Z'], "").replace('T', "-");
    loop {
        let folder = root.join(format!("{time}-{task}-{:06x}", random_suffix() & 0xff_ffff));
        if !folder.exists() {
            return folder;
        }
    }
}

/// Starts or resumes a run in `folder`: creates the folder, acquires its lock and points `latest` to it.
///
/// An existing record is left unchanged. The last value is true if the run is new.
///
/// # Errors
/// Returns an error if the folder is not writable, another process trains there, or the run is of another task.
pub fn begin(folder: &Path, task: &str) -> Result<(Lock, RunRecord, bool)> {
    make(folder)?;
    let lock = Lock::acquire(folder)?.ok_or_else(|| Error::Busy { path: folder.to_owned() })?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy();
    let known = RunRecord::load(folder).ok().map(|record| record.check_task(folder, task)).transpose()?;
    // A run that was only prepared has no steps yet.
    let (prepared, new) = (known.is_some(), known.as_ref().is_none_or(|record| record.steps == 0));
    let mut record = known.unwrap_or_else(|| RunRecord::new(id.into(), task));
    if !prepared {
        record.save(folder)?;
    }
    if let Some(root) = folder.parent() {
        update_latest(root, folder);
    }
    Ok((lock, record, new))
}

/// Writes the record and the configuration of a new run to `folder`, unless the folder has a record.
///
/// # Errors
/// Returns an error if they cannot be written.
pub fn prepare(folder: &Path, task: &str, configuration: &str) -> Result<()> {
    if folder.join(RECORD).exists() {
        return Ok(());
    }
    let path = folder.join(CONFIGURATION);
    write_atomically(&path, |w| w.write_all(configuration.as_bytes()))
        .map_err(|source| Error::File { path, source })?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy();
    RunRecord::new(id.into(), task).save(folder)
}

/// Removes the folder of a run that was [prepared](prepare) and never started to train.
///
/// If the folder of all runs is then empty, it is removed too. Other folders stay.
pub fn remove_unstarted(folder: &Path) {
    let is_unstarted = RunRecord::load(folder).is_ok_and(|r| r.status == Status::Running && r.steps == 0);
    if !is_unstarted || states(folder).is_ok_and(|states| !states.is_empty()) {
        return;
    }
    for name in [RECORD, CONFIGURATION, LOCK, PARENT_LOCK] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    // A folder that is not empty is not removed.
    let _ = std::fs::remove_dir(folder);
    if let Some(root) = folder.parent() {
        let latest = root.join(LATEST);
        if latest.read_link().is_ok_and(|target| Some(target.as_os_str()) == folder.file_name()) {
            let _ = std::fs::remove_file(latest);
        }
        let _ = std::fs::remove_dir(root);
    }
}

/// Records that all work for the finished run in `folder` is done.
///
/// # Errors
/// Returns an error if the record cannot be read or written.
pub fn complete(folder: &Path) -> Result<()> {
    let mut record = RunRecord::load(folder)?;
    record.complete = true;
    record.save(folder)
}

/// Lists the training states in a run's folder, oldest first.
///
/// # Errors
/// Returns an error if the folder cannot be read.
pub fn states(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    let mut states = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("_step_") && name.ends_with(".safetensors") {
            states.push(path);
        }
    }
    states.sort();
    Ok(states)
}

/// Lists the runs in `root`, oldest first. Folders without a record are skipped.
///
/// # Errors
/// Returns an error if `root` cannot be read; a missing `root` yields an empty list.
pub fn list(root: &Path) -> Result<Vec<(PathBuf, RunRecord)>> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { path: root.to_owned(), source }),
    };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let folders = folders.filter(|path| path.is_dir() && !path.is_symlink());
    let mut runs: Vec<_> =
        folders.filter_map(|path| RunRecord::load(&path).ok().map(|record| (path, record))).collect();
    runs.sort_by(|a, b| (a.1.started, &a.1.id).cmp(&(b.1.started, &b.1.id)));
    Ok(runs)
}

/// Returns the name of the run that `latest` points to, if any.
pub fn latest(root: &Path) -> Option<String> {
    let path = root.join(LATEST);
    // A link, or a file on systems without links.
    let name = match std::fs::read_link(&path) {
        Ok(target) => target.file_name()?.to_str()?.to_owned(),
        Err(_) => String::from_utf8(read_bounded(&path).ok()?).ok()?.trim().to_owned(),
    };
    Some(name)
}

/// The lock of a run's folder. Only one process at a time can hold it and train in the folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl Lock {
    /// Acquires the lock; `None` if another process holds it.
    ///
    /// # Errors
    /// Returns an error if the file cannot be created or locked.
    pub fn acquire(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LOCK);
        let (file, locked) = try_lock(&path)?;
        if locked == LockResult::Unsupported {
            tracing::warn!(
                "{}: the file system does not support locks; run only one process in this folder",
                path.display()
            );
        }
        Ok((locked != LockResult::HeldElsewhere).then_some(Self(file)))
    }

    /// True if a process holds this lock or the [`ParentLock`].
    ///
    /// The check writes nothing and does not interfere with other checks.
    pub fn is_held(folder: &Path) -> bool {
        [LOCK, PARENT_LOCK].into_iter().any(|name| is_locked(&folder.join(name)))
    }
}

/// The lock of the parent process, which starts and restarts the process that trains in a run's folder.
#[derive(Debug)]
pub struct ParentLock(#[expect(dead_code, reason = "it is held, not used")] File);

impl ParentLock {
    /// Creates the folder and acquires the lock; `None` if another process holds the lock.
    ///
    /// # Errors
    /// Returns an error if the folder or the file cannot be created.
    pub fn acquire(folder: &Path) -> Result<Option<Self>> {
        make(folder)?;
        let (file, locked) = try_lock(&folder.join(PARENT_LOCK))?;
        Ok((locked != LockResult::HeldElsewhere).then_some(Self(file)))
    }

    /// Waits for the lock of the folder `root` of all runs. Processes hold it briefly while they choose a run's folder.
    ///
    /// # Errors
    /// Returns an error if the folder or the file cannot be created.
    pub fn for_runs(root: &Path) -> Result<Self> {
        make(root)?;
        let failed = |source| Error::File { path: root.to_owned(), source };
        // Locks the folder itself, so that no file is left. Windows can only lock files.
        let file = if cfg!(unix) { File::open(root) } else { lock_file(&root.join(RUNS_LOCK)) };
        let file = file.map_err(failed)?;
        match file.lock() {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(failed(e)),
            _ => Ok(Self(file)),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum LockResult {
    Acquired,
    HeldElsewhere,
    Unsupported,
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.to_owned(), source })
}

fn lock_file(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn try_lock(path: &Path) -> Result<(File, LockResult)> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let file = lock_file(path).map_err(failed)?;
    let locked = match file.try_lock() {
        Ok(()) => LockResult::Acquired,
        Err(TryLockError::WouldBlock) => LockResult::HeldElsewhere,
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => LockResult::Unsupported,
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    };
    Ok((file, locked))
}

fn is_locked(path: &Path) -> bool {
    // Opening a path that is no regular file might block forever.
    let file = if path.is_file() { File::open(path).ok() } else { None };
    file.is_some_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Points `latest` to `folder`: a link, or a file on systems without links. A failure is only a warning, so that training continues.
fn update_latest(root: &Path, folder: &Path) {
    let name = folder.file_name().unwrap_or_default();
    let latest = root.join(LATEST);
    #[cfg(unix)]
    let done = tempfile::Builder::new()
        .prefix(".latest-")
        .suffix(".tmp")
        .make_in(root, |new| std::os::unix::fs::symlink(name, new))
        .and_then(|new| new.into_temp_path().persist(&latest).map_err(|e| e.error));
    #[cfg(not(unix))]
    let done = write_atomically(&latest, |w| w.write_all(name.as_encoded_bytes()));
    if let Err(e) = done {
        tracing::warn!("{}: {e}", latest.display());
    }
}

fn default_complete() -> bool {
    true
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A number that differs from call to call.
fn random_suffix() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_distinct_folders_and_latest_is_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs");
        assert_eq!(list(&root).unwrap(), []);
        let folders: Vec<PathBuf> = std::thread::scope(|scope| {
            let begin = |_| {
                scope.spawn(|| {
                    let folder = new_run_folder(&root, "dit");
                    begin(&folder, "dit").unwrap();
                    folder
                })
            };
            let threads: Vec<_> = (0..20).map(begin).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let last = new_run_folder(&root, "classifier");
        let (lock, ..) = begin(&last, "classifier").unwrap();
        let runs = list(&root).unwrap();
        assert_eq!(runs.len(), 21);
        assert!(folders.iter().all(|folder| runs.iter().any(|run| run.0 == *folder)));
        #[cfg(unix)]
        assert_eq!(root.join("latest").canonicalize().unwrap(), last.canonicalize().unwrap());
        assert!(Lock::acquire(&last).unwrap().is_none() && Lock::is_held(&last));
        assert!(begin(&last, "classifier").is_err());
        drop(lock);
        assert!(begin(&last, "dit").unwrap_err().to_string().ends_with("is a run of `train classifier`"));
        assert!(["a", "20261124-x", "lr=1e-4_b.2", &"x".repeat(100)].into_iter().all(is_id));
        let bad = ["", ".", "..", "-a", "a/b", "a b", "ü", "latest", "sweeps", &"x".repeat(101)];
        assert!(!bad.into_iter().any(is_id));
        assert!(!Lock::is_held(&last) && !Lock::is_held(&root) && !root.join("lock").exists());
        assert!(Lock::acquire(&last).unwrap().is_some());
        std::fs::write(last.join("run.json"), "{}").unwrap();
        assert!(RunRecord::load(&last).unwrap_err().to_string().contains("run.json"));
        assert_eq!(list(&root).unwrap().len(), 20);
    }
}
