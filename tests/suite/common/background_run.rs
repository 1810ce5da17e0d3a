//! Runs in the background, to be interrupted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{CACHE, CATS, text};

/// A run that was begun in the background.
pub struct BackgroundRun {
    pub child: Child,
    runs: PathBuf,
}

impl BackgroundRun {
    /// Begins it in `folder`, with its runs in `runs` there.
    pub fn new(folder: &Path, arguments: &[String], runs: &str) -> Self {
        let child = Command::new(CATS)
            .args(arguments)
            .args(["--runs-dir", runs])
            .current_dir(folder)
            .env(CACHE.0, CACHE.1)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        Self { child, runs: folder.join(runs) }
    }

    fn states(&self) -> Vec<PathBuf> {
        let runs = fs::read_dir(&self.runs).into_iter().flatten().flatten();
        let runs = runs.filter(|entry| !entry.path().is_symlink());
        let files = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
        files.map(|file| file.path()).filter(|path| path.to_string_lossy().contains("_step_")).collect()
    }

    /// Waits until there are `count` states, or it has ended.
    pub fn until(&mut self, count: usize) {
        let start = Instant::now();
        while self.states().len() < count && self.child.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < Duration::from_secs(300), "no state after five minutes");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The process that trains.
    #[cfg(target_os = "linux")]
    pub fn worker(&self) -> Option<i32> {
        child_of(self.child.id() as i32)
    }

    pub fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().expect("a child");
        (output.status.code(), text(&output))
    }
}

/// The first child of `process`.
#[cfg(target_os = "linux")]
pub fn child_of(process: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Sends a signal to a process that this test began.
#[cfg(unix)]
pub fn signal(process: i32, signal: i32) {
    // SAFETY: it sends a signal and touches no memory of ours.
    unsafe { libc::kill(process, signal) };
}
