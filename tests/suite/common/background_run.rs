//! Training runs in the background, for tests that interrupt them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{CACHE, CATS, text};

/// A training run in the background.
pub struct BackgroundRun {
    pub child: Child,
    runs: PathBuf,
}

impl BackgroundRun {
    /// Starts the program with `arguments` in `folder`, with `runs` as its folder of runs, relative to `folder`.
    pub fn new(folder: &Path, arguments: &[String], runs: &str) -> Self {
        let child = with_default_signals(&mut Command::new(CATS))
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

    /// The files of training states in all runs.
    fn states(&self) -> Vec<PathBuf> {
        let runs = fs::read_dir(&self.runs).into_iter().flatten().flatten();
        let runs = runs.filter(|entry| !entry.path().is_symlink());
        let files = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
        files.map(|file| file.path()).filter(|path| path.to_string_lossy().contains("_step_")).collect()
    }

    /// Waits until `count` training states are saved or the program ends.
    pub fn wait_for_states(&mut self, count: usize) {
        let start = Instant::now();
        while self.states().len() < count && self.child.try_wait().expect("a child process").is_none() {
            assert!(start.elapsed() < Duration::from_secs(300), "no training state within five minutes");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The process ID of the worker, which trains.
    #[cfg(target_os = "linux")]
    pub fn worker(&self) -> Option<i32> {
        first_child(self.child.id() as i32)
    }

    /// Waits for the program to end. Returns its exit code and its output.
    pub fn wait(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().expect("a child process");
        (output.status.code(), text(&output))
    }
}

/// The ID of the first child process of `process`.
#[cfg(target_os = "linux")]
pub fn first_child(process: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Lets SIGINT and SIGHUP end a program. A shell makes programs in the background ignore SIGINT, and `nohup` SIGHUP; children inherit that.
pub fn with_default_signals(command: &mut Command) -> &mut Command {
    #[cfg(unix)]
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    command
}

/// Sends a signal to a process that this test started.
#[cfg(unix)]
pub fn signal(process: i32, signal: i32) {
    // SAFETY: `kill` sends a signal and accesses no memory of this process.
    unsafe { libc::kill(process, signal) };
}
