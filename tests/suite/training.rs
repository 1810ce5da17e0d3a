//! `tiny-cats train`: interrupted runs resume and release the same files as uninterrupted ones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

#[cfg(unix)]
use crate::common::background_run::signal;
use crate::common::{
    CACHE, CATS, background_run::BackgroundRun, fails, run, shared_folder, succeeds, text, trained,
};
use tempfile::TempDir;
use tiny_cats::{
    checkpoint::TrainingState,
    train::{folder::list, metrics::Metrics},
};

const STEPS: [&str; 4] = ["--steps", "12", "--save-interval", "3"];
/// Shortens the delay before a retry.
const FAST_RETRIES: [&str; 2] = ["--retry-initial", "10ms"];

/// A folder with synthetic images in `synth` and the files that uninterrupted training releases: `dit` and `classifier`.
static REFERENCE: LazyLock<PathBuf> = LazyLock::new(|| {
    shared_folder("training", |dir| {
        trained::write_synthetic_images(dir);
        for task in Task::ALL {
            succeeds(CATS, dir, &task.arguments(task.name(), &[]));
        }
        std::fs::remove_dir_all(dir.join("runs")).unwrap();
    })
});

/// A folder for one test, with the same images in `synth`.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let images = REFERENCE.join("synth");
        for class in fs::read_dir(&images).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            let copy = dir.path().join("synth").join(class.file_name());
            fs::create_dir_all(&copy).unwrap();
            for image in fs::read_dir(class.path()).unwrap().flatten() {
                fs::copy(image.path(), copy.join(image.file_name())).unwrap();
            }
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Asserts that the files released to `output` equal those of an uninterrupted run.
    #[track_caller]
    fn assert_same_files(&self, task: Task, output: &str) {
        for name in task.released() {
            let [a, b] = [REFERENCE.join(task.name()), self.path().join(output)]
                .map(|folder| fs::read(folder.join(name)).unwrap());
            assert!(a == b, "{output}/{name} differs from that of an uninterrupted run");
        }
    }

    fn start(&self, arguments: &[String], runs: &str) -> BackgroundRun {
        BackgroundRun::new(self.path(), arguments, runs)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Dit,
    Classifier,
}

impl Task {
    const ALL: [Self; 2] = [Self::Dit, Self::Classifier];

    fn name(self) -> &'static str {
        match self {
            Self::Dit => "dit",
            Self::Classifier => "classifier",
        }
    }

    fn arguments(self, output: &str, more: &[&str]) -> Vec<String> {
        let file = format!("{output}/m.pt");
        let fixed = match self {
            Self::Dit => trained::dit_args(output, &STEPS),
            Self::Classifier => trained::classifier_args(&file, &["--epochs", "3"]),
        };
        fixed.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    }

    fn released(self) -> [&'static str; 2] {
        match self {
            Self::Dit => ["tinydit_final.pt", "tinydit_final.safetensors"],
            Self::Classifier => ["m.pt", "m.safetensors"],
        }
    }
}

#[test]
fn a_run_from_a_training_state_releases_the_same_files() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    for (task, state) in [(Task::Dit, "dit_step_00000003"), (Task::Classifier, "classifier_step_00000002")] {
        let output = format!("from-{}", task.name());
        let log = succeeds(CATS, dir, &task.arguments(&format!("{output}-0"), &["--runs-dir", &output]));
        let first = trained::run_folder(dir, &log);
        let state = first.join(format!("{state}.safetensors"));
        let before = files(&first);
        assert!(state.exists(), "{before:?}");
        let state = state.to_string_lossy();
        let log = succeeds(CATS, dir, &task.arguments(&output, &["--runs-dir", &output, "--resume", &state]));
        assert!(log.contains("steps 3 to ") || log.contains("steps 2 to "), "{log}");
        test_dir.assert_same_files(task, &output);
        let second = trained::run_folder(dir, &log);
        assert!(second != first && files(&first) == before, "the first run is unchanged");
        // The mean loss equals that of an uninterrupted run, and `runs show` reports the same value as the console.
        let means = [&first, &second].map(|run| mean_loss(run));
        assert!(means[0].is_some() && means[0] == means[1], "{task:?}: {means:?}");
        let id = second.file_name().unwrap().to_string_lossy();
        let shown = succeeds(CATS, dir, &["runs", "show", &id, "--runs-dir", &output]);
        let shown = shown.lines().find_map(|line| line.strip_prefix("mean loss ")).unwrap();
        let (mean, _) = shown.split_once(" at ").unwrap();
        assert!(log.contains(&format!("  mean loss {mean}  lr ")), "{mean}: {log}");
    }
    // A run may be made longer, with a message. All other settings must be unchanged.
    let state = state_path(&dir.join("from-dit"), "dit_step_00000003.safetensors");
    let resume = ["--runs-dir", "longer", "--resume", &state];
    let log = succeeds(CATS, dir, &trained::dit_args("longer", &[&resume[..], &["--steps", "13"]].concat()));
    assert!(log.contains("the schedule changed: --steps changed from 12 to 13"), "{log}");
    // A finished run can continue at the floor of its learning rate, or at a rate that rises again.
    let last = state_path(&dir.join("from-dit"), "dit_step_00000012.safetensors");
    let extend = |steps| {
        let more = ["--runs-dir", "after", "--resume", &last, "--steps", steps];
        succeeds(CATS, dir, &trained::dit_args("after", &more))
    };
    let log = extend("13");
    assert!(log.contains("at or near its floor, for all 1 remaining steps"), "{log}");
    let log = extend("24");
    assert!(log.contains("rises from"), "{log}");
    let other = [&STEPS[..], &resume, &["--weight-decay", "0.1"]].concat();
    let message = fails(CATS, dir, &trained::dit_args("x", &other));
    assert!(message.contains("optimizer.weight_decay changed from 0.0 to 0.1"), "{message}");
    let sgd = [&STEPS[..], &resume, &["--optimizer", "sgd"]].concat();
    let message = fails(CATS, dir, &trained::dit_args("x", &sgd));
    assert!(message.contains("optimizer.name changed from adamw to sgd"), "{message}");
    let message = fails(CATS, dir, &trained::dit_args("x", &[&resume[..], &["--steps", "1"]].concat()));
    assert!(message.contains("beyond --steps 1"), "{message}");
    // Other images are an error.
    let fewer = [&STEPS[..], &resume, &["--limit-files", "20"]].concat();
    let message = fails(CATS, dir, &trained::dit_args("x", &fewer));
    assert!(
        message.contains("uses another part of the same data") && message.contains("found 20 training"),
        "{message}"
    );
    let message =
        fails(CATS, dir, &trained::dit_args("x", &["--resume", "longer/tinydit_final.safetensors"]));
    assert!(message.contains("expected a training state"), "{message}");
    // Another seed gives different weights.
    succeeds(CATS, dir, &trained::dit_args("other", &[&STEPS[..], &["--seed", "1"]].concat()));
    let [a, b] = [REFERENCE.join("dit"), dir.join("other")]
        .map(|folder| fs::read(folder.join("tinydit_final.safetensors")).unwrap());
    assert!(a != b);
    // Changed data is reported.
    let removed = files(&files(&dir.join("synth")).into_iter().find(|path| path.is_dir()).unwrap()).remove(0);
    fs::remove_file(&removed).unwrap();
    let message = fails(CATS, dir, &trained::dit_args("x", &[&STEPS[..], &resume].concat()));
    assert!(message.contains("the data changed since the run started: expected"), "{message}");
}

/// The running mean of the loss after the last step of the run in `folder`. Asserts that its metrics and its training state agree.
fn mean_loss(folder: &Path) -> Option<f64> {
    let metrics = Metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let logged = metrics.training("mean_loss").last()?;
    let state = files(folder).into_iter().rfind(|path| path.to_string_lossy().contains("_step_"))?;
    assert_eq!(TrainingState::load(&state).unwrap().meta["progress"]["mean_loss"], logged.value);
    Some(logged.value)
}

/// The path of the training state `name` in the oldest run in `runs` that has it.
fn state_path(runs: &Path, name: &str) -> String {
    let mut found: Vec<PathBuf> = files(runs).into_iter().filter(|path| !path.is_symlink()).collect();
    found.sort();
    found.iter().map(|run| run.join(name)).find(|path| path.exists()).unwrap().to_string_lossy().into_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// The worker is killed, and its parent starts another one.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_run_resumes() {
    let test_dir = TestDir::new();
    for task in Task::ALL {
        let output = format!("killed-{}", task.name());
        let mut run = test_dir.start(&task.arguments(&output, &FAST_RETRIES), &output);
        run.wait_for_states(1);
        signal(run.worker().unwrap(), libc::SIGKILL);
        let (code, log) = run.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("killed (signal 9): resuming in"), "{log}");
        test_dir.assert_same_files(task, &output);
    }
}

/// The worker is killed three times, at random moments.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes minutes; scripts/test-slow runs it"]
fn a_run_killed_repeatedly_releases_the_same_files() {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let test_dir = TestDir::new();
    for (task, round) in Task::ALL.into_iter().flat_map(|task| [(task, 0), (task, 1), (task, 2)]) {
        let output = format!("again-{}-{round}", task.name());
        let flags = [&FAST_RETRIES[..], &["--max-retries", "5"]].concat();
        let start = Instant::now();
        let run = test_dir.start(&task.arguments(&output, &flags), &output);
        let mut kill_times = Vec::new();
        for _ in 0..3 {
            let wait_ms = RandomState::new().build_hasher().finish() % 3000;
            std::thread::sleep(Duration::from_millis(wait_ms));
            if let Some(worker) = run.worker() {
                signal(worker, libc::SIGKILL);
                kill_times.push(start.elapsed());
            }
        }
        let (code, log) = run.wait();
        println!("{task:?}: killed after {kill_times:?}\n{log}");
        assert_eq!(code, Some(0), "{log}");
        test_dir.assert_same_files(task, &output);
    }
}

/// A signal stops the run within 20 s, even during a long step on a busy machine.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "keeps the machine busy; scripts/test-slow runs it"]
fn a_signal_stops_a_run_in_time_under_load() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let test_dir = TestDir::new();
    static STOP: AtomicBool = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().unwrap().get();
    for _ in 0..2 * cores {
        std::thread::spawn(|| {
            while !STOP.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
    // A step of 64 micro-batches takes minutes.
    let more =
        ["--size", "base", "--image-size", "64", "--batch-size", "26", "--gradient-accumulation-steps", "64"];
    let arguments = Task::Dit.arguments("busy", &[&more[..], &["--resume", "auto"]].concat());
    let run = test_dir.start(&arguments, "busy");
    while !files_of_runs(&test_dir.path().join("busy")).iter().any(|path| path.ends_with("training.log")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(20));
    signal(run.child.id() as i32, libc::SIGTERM);
    let signaled = Instant::now();
    let (code, log) = run.wait();
    STOP.store(true, Ordering::Relaxed);
    println!("stopped after {:?}: {log}", signaled.elapsed());
    assert_eq!(code, Some(75), "{log}");
    assert!(signaled.elapsed() < Duration::from_secs(20), "{:?}", signaled.elapsed());
}

fn files_of_runs(folder: &Path) -> Vec<PathBuf> {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten())
        .map(|file| file.path())
        .collect()
}

/// Parent and worker are killed at the same moment, as in a power failure. The same command resumes the run.
#[cfg(target_os = "linux")]
#[test]
fn a_run_resumes_after_a_power_failure() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    for task in Task::ALL {
        let output = format!("power-{}", task.name());
        let arguments = task.arguments(&output, &["--resume", "auto"]);
        let mut run = test_dir.start(&arguments, &output);
        run.wait_for_states(1);
        let worker = run.worker().unwrap();
        signal(worker, libc::SIGSTOP);
        signal(run.child.id() as i32, libc::SIGKILL);
        signal(worker, libc::SIGKILL);
        run.wait();
        let (code, log) = test_dir.start(&arguments, &output).wait();
        assert_eq!(code, Some(0), "{log}");
        test_dir.assert_same_files(task, &output);
        let runs = files(&dir.join(&output)).into_iter().filter(|path| path.is_dir() && !path.is_symlink());
        assert_eq!(runs.count(), 1, "the run resumes in its own folder");
    }
}

/// Waits for `event`, and panics if it does not happen for five minutes.
#[cfg(target_os = "linux")]
fn wait_until(event: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(300), "{event}: not within five minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// True if `signal_number` has reached a stopped process: it is pending, or a thread blocks it while its handler runs.
#[cfg(target_os = "linux")]
fn has_received(process: i32, signal_number: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let has_signal = |line: &str| {
        let mask = ["SigPnd:", "ShdPnd:", "SigBlk:"].iter().find_map(|name| line.strip_prefix(name))?;
        Some(u64::from_str_radix(mask.trim(), 16).ok()? >> (signal_number - 1) & 1 == 1)
    };
    statuses.into_iter().any(|status| status.lines().filter_map(has_signal).any(|received| received))
}

/// A signal to the program saves the last finished step, even in the middle of another one, and gives its own exit code. So does a signal
/// to all processes, as from systemd, which reaches the worker twice.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_run_reports_it_and_resumes() {
    let test_dir = TestDir::new();
    for (task, signal_number, all) in [
        (Task::Dit, libc::SIGTERM, true),
        (Task::Classifier, libc::SIGINT, false),
        (Task::Classifier, libc::SIGTERM, true),
        (Task::Dit, libc::SIGHUP, false),
        (Task::Dit, libc::SIGINT, true),
    ] {
        let output = format!("stopped-{}-{signal_number}", task.name());
        let arguments = task.arguments(&output, &["--resume", "auto"]);
        // A run that ends before it stands still is repeated: a busy machine may delay this process for as long as a run takes.
        let mut attempts = std::iter::repeat_with(|| {
            let _ = fs::remove_dir_all(test_dir.path().join(&output));
            let mut run = test_dir.start(&arguments, &output);
            run.wait_for_states(1);
            if let Some(worker) = run.worker() {
                // Training continues only when the signal has arrived.
                signal(worker, libc::SIGSTOP);
                signal(run.child.id() as i32, signal_number);
                if all {
                    signal(worker, signal_number);
                }
                wait_until("the signal arrives", || {
                    has_received(worker, signal_number) || run.worker().is_none()
                });
                signal(worker, libc::SIGCONT);
            }
            run.wait()
        });
        let (code, log) =
            attempts.by_ref().take(20).find(|(code, _)| *code != Some(0)).expect("a stopped run");
        assert_eq!(code, Some(75), "{log}");
        assert!(log.contains("stopped at step") && log.contains("--resume auto to resume"), "{log}");
        let (code, log) = test_dir.start(&arguments, &output).wait();
        assert_eq!(code, Some(0), "{log}");
        test_dir.assert_same_files(task, &output);
    }
    // A time limit has the same effect.
    let arguments = Task::Dit.arguments("timed", &["--resume", "auto", "--max-time", "1ms"]);
    let (code, log) = test_dir.start(&arguments, "timed").wait();
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("time limit reached"), "{log}");
    let (code, log) = test_dir.start(&Task::Dit.arguments("timed", &["--resume", "auto"]), "timed").wait();
    assert_eq!(code, Some(0), "{log}");
    test_dir.assert_same_files(Task::Dit, "timed");
}

/// The program is killed without its worker. The same command waits for the worker to save and resumes from its training state.
#[cfg(target_os = "linux")]
#[test]
fn a_command_waits_for_an_orphaned_worker_and_resumes() {
    use std::io::{BufRead, BufReader, Read};
    let test_dir = TestDir::new();
    for (round, flags) in [["--resume", "auto"], ["--run-id", "mine"]].into_iter().enumerate() {
        let output = format!("orphan-{round}");
        let arguments = Task::Dit.arguments(&output, &flags);
        let mut run = test_dir.start(&arguments, &output);
        run.wait_for_states(1);
        let worker = run.worker().unwrap();
        signal(worker, libc::SIGSTOP);
        signal(run.child.id() as i32, libc::SIGKILL);
        // Without reading its output, which the stopped worker holds open.
        run.child.wait().unwrap();
        let mut second_run = test_dir.start(&arguments, &output);
        let mut stderr = BufReader::new(second_run.child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("another process trains in this folder; waiting at most 30 s"), "{line}");
        signal(worker, libc::SIGCONT);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let (code, _) = second_run.wait();
        assert_eq!(code, Some(0), "{rest}");
        test_dir.assert_same_files(Task::Dit, &output);
        assert_eq!(
            list(&test_dir.path().join(&output)).unwrap().len(),
            1,
            "the run resumes in its own folder"
        );
    }
}

/// A signal before training starts, as soon as the program handles signals, gives the same exit code as later.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_before_training_gives_the_same_exit_code() {
    let test_dir = TestDir::new();
    for signal_number in [libc::SIGTERM, libc::SIGINT] {
        let mut run = test_dir.start(&Task::Dit.arguments("early", &["--resume", "auto"]), "early");
        let process = run.child.id() as i32;
        let handles_signal = || {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let mask =
                status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
            u64::from_str_radix(&mask, 16).unwrap() & (1 << (signal_number - 1)) != 0
        };
        while !handles_signal() {
            assert!(run.child.try_wait().unwrap().is_none(), "the program ended before it handled signals");
            std::thread::yield_now();
        }
        signal(process, signal_number);
        let (code, log) = run.wait();
        assert_eq!(code, Some(75), "{log}");
    }
    let (code, log) = test_dir.start(&Task::Dit.arguments("early", &["--resume", "auto"]), "early").wait();
    assert_eq!(code, Some(0), "{log}");
    test_dir.assert_same_files(Task::Dit, "early");
}

/// A damaged training state is detected, and the run resumes from the one before it.
#[test]
fn a_run_resumes_from_the_state_before_a_damaged_one() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let log = succeeds(CATS, dir, &Task::Dit.arguments("damaged-0", &["--runs-dir", "damaged"]));
    let run_folder = trained::run_folder(dir, &log);
    let newest = run_folder.join("dit_step_00000012.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    let resume = run_folder.to_string_lossy();
    let log = succeeds(CATS, dir, &Task::Dit.arguments("damaged-1", &["--resume", &resume]));
    assert!(log.contains("dit_step_00000012.safetensors: the checksum does not match"), "{log}");
    assert!(log.contains("resuming from the previous state") && log.contains("steps 9 to 12"), "{log}");
    test_dir.assert_same_files(Task::Dit, "damaged-1");
    for state in fs::read_dir(&run_folder)
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().contains("_step_"))
    {
        fs::write(state.path(), &bytes[..bytes.len() / 3]).unwrap();
    }
    // If all training states are damaged, the run starts again and keeps the files.
    let log = succeeds(CATS, dir, &Task::Dit.arguments("damaged-2", &["--resume", &resume]));
    assert!(log.contains("no training state of this run is intact: the run restarts"), "{log}");
    assert!(log.contains("steps 0 to 12"), "{log}");
    test_dir.assert_same_files(Task::Dit, "damaged-2");
    let renamed = run_folder.join("dit_step_00000012.safetensors.damaged");
    assert_eq!(fs::read(renamed).unwrap().len(), bytes.len() / 3);
}

/// A limit on the file size stands in for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_gives_a_one_line_error_and_loses_nothing() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let arguments = Task::Dit.arguments("full", &["--runs-dir", "full-runs", "--resume", "auto"]).join(" ");
    let script = format!("trap '' XFSZ; ulimit -f 10000; exec {CATS} {arguments}");
    let output =
        Command::new("sh").args(["-c", &script]).current_dir(dir).env(CACHE.0, CACHE.1).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("dit_step_00000003.safetensors"), "{errors}");
    assert_eq!(errors.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{errors}");
    let leftover_files: Vec<String> = files(&dir.join("full-runs/latest"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name.contains("_step_") || name.contains("tmp"))
        .collect();
    assert!(leftover_files.is_empty(), "{leftover_files:?}");
    let output = Command::new("sh")
        .args(["-c", &format!("exec {CATS} {arguments}")])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    test_dir.assert_same_files(Task::Dit, "full");
}

/// Options for speed, memory and monitoring do not change a bit of the weights.
#[test]
fn memory_threads_and_trackers_do_not_change_the_weights() {
    let test_dir = TestDir::new();
    for (i, more) in [
        &["--gradient-checkpointing", "--num-workers", "3", "--cache", "cache", "--tensorboard"][..],
        &[
            "--num-workers",
            "0",
            "--no-cache",
            "--log-format",
            "json",
            "--log-file",
            "log",
            "--log-interval",
            "1",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        for task in Task::ALL {
            let output = format!("same-{}-{i}", task.name());
            succeeds(CATS, test_dir.path(), &task.arguments(&output, more));
            test_dir.assert_same_files(task, &output);
        }
    }
}

/// A worker that cannot allocate memory aborts. The run resumes with smaller micro-batches.
#[cfg(target_os = "linux")]
#[test]
fn a_run_out_of_memory_resumes_with_smaller_micro_batches() {
    let test_dir = TestDir::new();
    for task in Task::ALL {
        let output = format!("memory-{}", task.name());
        let mut run = test_dir.start(&task.arguments(&output, &[]), &output);
        run.wait_for_states(1);
        let micro_batch = if task == Task::Dit { 8 } else { 16 };
        signal(run.worker().unwrap(), libc::SIGABRT);
        let (code, log) = run.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("out of memory: halving the micro-batches"), "{log}");
        assert!(log.contains(&format!("micro-batches of {} per step", micro_batch / 2)), "{log}");
        assert_eq!(log.contains("batch normalization"), task == Task::Classifier, "{log}");
        let run_folder =
            files(&test_dir.path().join(&output)).into_iter().find(|path| path.join("run.json").exists());
        let states =
            files(&run_folder.unwrap()).into_iter().filter(|path| path.to_string_lossy().contains("_step_"));
        let last = TrainingState::load(&states.max().unwrap()).unwrap();
        assert_eq!(last.meta["progress"]["micro_batch"], micro_batch / 2);
        assert!(test_dir.path().join(&output).join(task.released()[1]).exists());
    }
}

/// A run that exceeds the available memory is rejected before training.
#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_detected_before_training() {
    let test_dir = TestDir::new();
    let more = ["--size", "base", "--batch-size", "24", "--no-cache"];
    let arguments = Task::Dit.arguments("little", &more).join(" ");
    let script = format!("ulimit -v 1500000; exec {CATS} {arguments}");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(test_dir.path())
        .env(CACHE.0, CACHE.1)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("training with micro-batches of 24 needs"), "{}", text(&output));
}

#[test]
fn accumulation_matches_a_larger_batch() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let load = |more: &[&str]| {
        let more = [&["--steps", "1", "--label-dropout", "0.5"], more].concat();
        let log = succeeds(CATS, dir, &trained::dit_args("accumulated", &more));
        let folder = trained::run_folder(dir, &log);
        TrainingState::load(&folder.join("dit_step_00000001.safetensors")).unwrap()
    };
    let a = load(&["--gradient-accumulation-steps", "2"]);
    let mut b = trained::dit_args("accumulated", &["--steps", "1", "--label-dropout", "0.5"]);
    let batch = b.iter().position(|a| *a == "8").unwrap();
    b[batch] = "16";
    let log = succeeds(CATS, dir, &b);
    let b =
        TrainingState::load(&trained::run_folder(dir, &log).join("dit_step_00000001.safetensors")).unwrap();
    for (name, a) in &a.moment1 {
        let max = a.data().iter().fold(0f32, |max, v| max.max(v.abs()));
        for (x, y) in a.data().iter().zip(b.moment1[name].data()) {
            assert!((x - y).abs() <= 1e-4 * max + 1e-9, "{name}: {x} and {y}");
        }
    }
}

/// A rejected command changes no file of a run, and a stopped run resumes with another output path.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_run_survives_invalid_commands_and_another_output() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let arguments = Task::Classifier.arguments("first", &["--resume", "auto"]);
    let mut run = test_dir.start(&arguments, "known");
    run.wait_for_states(1);
    signal(run.child.id() as i32, libc::SIGTERM);
    assert_eq!(run.wait().0, Some(75));
    let run_folder =
        files(&dir.join("known")).into_iter().find(|path| path.join("run.json").exists()).unwrap();
    let known = ["run.json", "config.toml"].map(|name| fs::read(run_folder.join(name)).unwrap());
    let folder = run_folder.to_string_lossy();
    let message = fails(
        CATS,
        dir,
        &["train", "classifier", "--resume", &folder, "--lr", "0.5", "--label-smoothing", "0"],
    );
    assert!(message.contains("label_smoothing changed from"), "{message}");
    assert!(known == ["run.json", "config.toml"].map(|name| fs::read(run_folder.join(name)).unwrap()));
    // The settings of the run apply again, and the output path may change.
    let log = succeeds(
        CATS,
        dir,
        &["train", "classifier", "--resume", &folder, "-o", "second/m.pt", "--", "synth"],
    );
    assert!(!log.contains("steps 0 to"), "{log}");
    test_dir.assert_same_files(Task::Classifier, "second");
}

#[test]
fn a_finished_run_is_not_repeated_and_released_files_are_kept() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let bytes = |name: &str| fs::read(dir.join("out").join(name)).unwrap();
    let runs = || list(&dir.join("runs")).unwrap().len();
    let first = Task::Dit.arguments("out", &["--resume", "auto"]);
    succeeds(CATS, dir, &first);
    let released = Task::Dit.released().map(bytes);
    let log = text(&run(CATS, dir, &first));
    assert!(log.contains("is finished: out/tinydit_final.pt and out/tinydit_final.safetensors"), "{log}");
    assert_eq!(runs(), 1);

    let second = Task::Dit.arguments("out", &["--resume", "auto", "--seed", "7"]);
    let log = text(&run(CATS, dir, &second));
    assert!(
        log.contains("kept the files of another run: out/tinydit_final.pt as out/tinydit_final.1.pt"),
        "{log}"
    );
    assert_eq!(["tinydit_final.1.pt", "tinydit_final.1.safetensors"].map(bytes), released);
    let other = Task::Dit.released().map(bytes);
    assert!(other != released && runs() == 2);
    // If the released files are missing, a finished run writes them again without training.
    fs::remove_dir_all(dir.join("out")).unwrap();
    succeeds(CATS, dir, &second);
    assert_eq!(Task::Dit.released().map(bytes), other);
    assert_eq!((runs(), fs::read_dir(dir.join("out")).unwrap().count()), (2, 2));
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let log = succeeds(CATS, dir, &Task::Dit.arguments("locked", &["--runs-dir", "locked-runs"]));
    let folder = trained::run_folder(dir, &log);
    let _lock = tiny_cats::train::folder::Lock::acquire(&folder).unwrap().unwrap();
    // The command waits for a limited time and reports a transient error.
    let more = ["--resume", &folder.to_string_lossy(), "--retry-max", "10ms"];
    let output = run(CATS, dir, &[&["train", "dit", "synth"][..], &more].concat());
    assert_eq!(output.status.code(), Some(74), "{}", text(&output));
    let log = text(&output);
    assert!(log.contains("another process trains in this folder; given up after 0.01 s"), "{log}");
    assert_eq!(log.lines().count(), 2, "{log}");
    let message = fails(CATS, dir, &["train", "classifier", "synth", "--resume", &folder.to_string_lossy()]);
    assert!(message.contains("is a run of `train dit`"), "{message}");
}

#[test]
fn a_run_with_an_id_starts_or_resumes() {
    for task in Task::ALL {
        let test_dir = TestDir::new();
        let named = task.arguments("released", &["--run-id", "mine", FAST_RETRIES[0], FAST_RETRIES[1]]);
        let mut run = test_dir.start(&named, "runs");
        run.wait_for_states(1);
        run.child.kill().unwrap();
        run.child.wait().unwrap();
        // The orphaned worker saves its training state and ends; the next command waits for it.
        for _ in 0..2 {
            succeeds(CATS, test_dir.path(), &named);
            test_dir.assert_same_files(task, "released");
            assert_eq!(list(&test_dir.path().join("runs")).unwrap().len(), 1);
        }
        assert_eq!(list(&test_dir.path().join("runs")).unwrap()[0].1.id, "mine");
        let other = [&named[..], &["--seed".into(), "7".into()]].concat();
        assert!(fails(CATS, test_dir.path(), &other).contains("was trained with different settings"));
        let invalid = task.arguments("released", &["--run-id", "../mine"]);
        assert!(fails(CATS, test_dir.path(), &invalid).contains("--run-id: expected a name"));
    }
}
