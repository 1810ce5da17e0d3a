//! Training in several processes: the weights match those of one process, and interrupted runs resume to the same files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use crate::common::{CATS, fails, run, shared_folder, succeeds, text, trained};
use tempfile::TempDir;
use tiny_cats::checkpoint::TrainingState;

/// Two processes on the CPU. They differ from two GPUs only in the all-reduce.
const TWO_PROCESSES: [&str; 4] = ["--device", "cpu", "--gpus", "2"];
/// The largest difference of weights that rounding may cause. Weights are of size 1; a step changes them by up to 1e-3.
const ROUNDING: f32 = 1e-5;

/// A folder with synthetic images in `synth` and the output of uninterrupted training in two processes: `dit` and `classifier`, with their
/// runs in `dit-runs` and `classifier-runs`.
static REFERENCE: LazyLock<PathBuf> = LazyLock::new(|| {
    shared_folder("parallel", |dir| {
        trained::write_synthetic_images(dir);
        train_dit(dir, "dit", &TWO_PROCESSES);
        train_classifier(dir, "classifier", &TWO_PROCESSES);
    })
});

fn dit_arguments(output: &str, more: &[&str]) -> Vec<String> {
    let fixed = ["--steps", "6", "--save-interval", "3", "--no-validation"];
    trained::dit_args(output, &[&fixed, more].concat()).into_iter().map(String::from).collect()
}

/// Trains a generator for six steps of eight images, with its runs in `OUTPUT-runs`. Returns the program's output.
fn train_dit(dir: &Path, output: &str, more: &[&str]) -> String {
    let runs = format!("{output}-runs");
    succeeds(CATS, dir, &dit_arguments(output, &[&["--runs-dir", &runs], more].concat()))
}

/// Trains a classifier for five epochs of two steps of sixteen images, with its runs in `OUTPUT-runs`. Returns the program's output.
fn train_classifier(dir: &Path, output: &str, more: &[&str]) -> String {
    let runs = format!("{output}-runs");
    succeeds(CATS, dir, &classifier_arguments(output, &[&["--runs-dir", &runs], more].concat()))
}

fn classifier_arguments(output: &str, more: &[&str]) -> Vec<String> {
    let file = format!("{output}/m.pt");
    trained::classifier_args(&file, &[&["--epochs", "5"], more].concat())
        .into_iter()
        .map(String::from)
        .collect()
}

/// A folder for one test, with the same images.
fn test_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    trained::write_synthetic_images(dir.path());
    dir
}

/// The training state of `step` in the only run in `runs`.
fn state_path(runs: &Path, step: usize) -> PathBuf {
    let name = format!("_step_{step:08}.safetensors");
    let runs = fs::read_dir(runs).unwrap().flatten().filter(|run| !run.path().is_symlink());
    let mut files = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
    files.find(|file| file.file_name().to_string_lossy().ends_with(&name)).expect("a training state").path()
}

/// The largest difference between the weights of two training states, including running statistics and EMA weights.
fn max_difference(a: &Path, b: &Path) -> f32 {
    let [a, b] = [a, b].map(|path| TrainingState::load(path).unwrap());
    let mut max = 0.0f32;
    for (a, b) in [(&a.weights, &b.weights), (&a.ema, &b.ema)] {
        assert!(!a.is_empty() && a.keys().eq(b.keys()));
        for (name, a) in a {
            let differences = a.data().iter().zip(b[name].data()).map(|(a, b)| (a - b).abs());
            max = differences.fold(max, f32::max);
        }
    }
    max
}

#[track_caller]
fn assert_same_file(a: &Path, b: &Path) {
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} differs from {}", b.display(), a.display());
}

#[test]
fn two_processes_train_the_same_weights_as_one() {
    let (test_dir, reference) = (test_dir(), state_path(&REFERENCE.join("dit-runs"), 6));
    let dir = test_dir.path();
    let compare = |output: &str, more: &[&str]| {
        train_dit(dir, output, more);
        max_difference(&reference, &state_path(&dir.join(format!("{output}-runs")), 6))
    };
    let single = compare("single", &[]);
    let half = ["--batch-size", "4", "--gradient-accumulation-steps", "2"];
    let accumulated = compare("accumulated", &half);
    let halved = compare("halved", &[&TWO_PROCESSES[..], &["--halvings", "1"]].concat());
    // For scale: the difference if the images of the second process were missing, and the change of weights in the last three steps.
    let half_batch = compare("half-batch", &["--batch-size", "4"]);
    let update = max_difference(&reference, &state_path(&REFERENCE.join("dit-runs"), 3));
    println!(
        "single {single:e}, accumulated {accumulated:e}, halved {halved:e}; half batch {half_batch:e}, update {update:e}"
    );
    assert!(single < ROUNDING && accumulated < ROUNDING && halved < ROUNDING);
    assert!(half_batch > 100.0 * ROUNDING && update > 10.0 * ROUNDING);
}

/// Batch normalization uses the statistics of micro-batches, so two processes match one process with two micro-batches a step.
#[test]
fn batch_norm_matches_one_process_with_as_many_micro_batches() {
    let (test_dir, reference) = (test_dir(), state_path(&REFERENCE.join("classifier-runs"), 10));
    let dir = test_dir.path();
    let compare = |output: &str, more: &[&str]| {
        train_classifier(dir, output, more);
        max_difference(&reference, &state_path(&dir.join(format!("{output}-runs")), 10))
    };
    let accumulated = compare("accumulated", &["--batch-size", "8", "--gradient-accumulation-steps", "2"]);
    let single = compare("single", &[]);
    println!("accumulated {accumulated:e}; one micro-batch {single:e}");
    assert!(accumulated < ROUNDING && single > 100.0 * ROUNDING);
}

#[test]
fn equal_process_counts_give_equal_files_and_changes_are_reported() {
    let test_dir = test_dir();
    let dir = test_dir.path();
    let released = |output: &str| dir.join(output).join("m.safetensors");
    train_classifier(dir, "again", &TWO_PROCESSES);
    assert_same_file(&REFERENCE.join("classifier/m.safetensors"), &released("again"));
    let state_argument = |runs: &str, step| state_path(&dir.join(runs), step).to_str().unwrap().to_owned();
    let log = train_classifier(
        dir,
        "two",
        &[&TWO_PROCESSES[..], &["--resume", &state_argument("again-runs", 4)]].concat(),
    );
    assert!(!log.contains("--gpus changed"), "{log}");
    assert_same_file(&REFERENCE.join("classifier/m.safetensors"), &released("two"));

    let reference = REFERENCE.join("dit-runs");
    let log = train_dit(dir, "one", &["--resume", state_path(&reference, 3).to_str().unwrap()]);
    assert!(log.contains("--gpus changed from 2 to 1"), "{log}");
    let change = max_difference(&state_path(&reference, 6), &state_path(&dir.join("one-runs"), 6));
    assert!(change < ROUNDING, "{change}");
    let log = train_dit(
        dir,
        "more",
        &[&TWO_PROCESSES[..], &["--steps", "7", "--resume", &state_argument("one-runs", 6)]].concat(),
    );
    assert!(log.contains("--gpus changed from 1 to 2"), "{log}");
    let log = train_dit(
        dir,
        "same",
        &[&TWO_PROCESSES[..], &["--resume", state_path(&reference, 3).to_str().unwrap()]].concat(),
    );
    assert!(!log.contains("--gpus changed"), "{log}");
    assert_same_file(&REFERENCE.join("dit/tinydit_final.pt"), &dir.join("same/tinydit_final.pt"));
}

#[test]
fn invalid_process_counts_and_batches_give_one_line_errors() {
    let test_dir = test_dir();
    let error = |more: &[&str]| fails(CATS, test_dir.path(), &dit_arguments("x", more));
    assert!(error(&["--gpus", "0"]).contains("--gpus: expected at least 1, found 0"));
    let indivisible = error(&["--device", "cpu", "--gpus", "3"]);
    assert!(indivisible.contains("--batch-size: expected a multiple of gpus (3), found 8"), "{indivisible}");
    // A batch never exceeds the number of images.
    let limited = ["--device", "cpu", "--gpus", "4", "--batch-size", "32", "--limit-files", "26"];
    let message = text(&run(CATS, test_dir.path(), &dit_arguments("x", &limited)));
    assert!(message.contains("--batch-size: expected a multiple of gpus (4), found 26"), "{message}");
    let small_batch = ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--gpus", "2"];
    let message = fails(CATS, test_dir.path(), &trained::classifier_args("x/m.pt", &small_batch));
    assert!(message.contains("--batch-size: expected at least 4, found 2"), "{message}");
    if !cfg!(feature = "cuda") {
        let message = error(&["--gpus", "2"]);
        assert!(
            message.contains("--gpus: expected 2 usable GPUs, found 0; the device cpu tests on the CPU"),
            "{message}"
        );
        assert!(error(&["--device", "cuda", "--gpus", "2"]).contains("built without CUDA"));
    }
    assert!(!test_dir.path().join("x").exists());
}

#[cfg(target_os = "linux")]
mod interrupted {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::common::background_run::*;

    /// The IDs and command lines of all processes whose working directory is `dir`.
    fn processes(dir: &Path) -> Vec<(i32, String)> {
        let dir = dir.canonicalize().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let matching =
            all.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir));
        let id_and_command = |entry: fs::DirEntry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()))
        };
        matching.filter_map(id_and_command).collect()
    }

    /// Asserts that all processes in `dir` end within five seconds.
    #[track_caller]
    fn assert_no_process_left(dir: &Path) {
        let start = Instant::now();
        while !processes(dir).is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", processes(dir));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn start_run(dir: &Path, output: &str, more: &[&str]) -> BackgroundRun {
        let fixed = ["--retry-initial", "10ms", "--resume", "auto"];
        BackgroundRun::new(
            dir,
            &classifier_arguments(output, &[&TWO_PROCESSES, &fixed[..], more].concat()),
            output,
        )
    }

    #[track_caller]
    fn assert_ends_like_reference(dir: &Path, output: &str, run: BackgroundRun) -> String {
        let (code, log) = run.wait();
        assert_eq!(code, Some(0), "{log}");
        for name in ["m.pt", "m.safetensors"] {
            assert_same_file(&REFERENCE.join("classifier").join(name), &dir.join(output).join(name));
        }
        assert_no_process_left(dir);
        log
    }

    #[test]
    fn a_run_resumes_when_any_process_is_killed() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        let mut run = start_run(dir, "first", &[]);
        run.wait_for_states(1);
        signal(run.worker().unwrap(), libc::SIGKILL);
        let log = assert_ends_like_reference(dir, "first", run);
        assert!(log.contains("killed (signal 9): resuming in"), "{log}");

        let mut run = start_run(dir, "other", &[]);
        run.wait_for_states(1);
        signal(first_child(run.worker().unwrap()).unwrap(), libc::SIGKILL);
        let log = assert_ends_like_reference(dir, "other", run);
        let exited = "error: process 1 of this run: exited unexpectedly (signal: 9 (SIGKILL))";
        assert!(log.contains(exited) && log.contains("transient error: resuming in"), "{log}");
        assert_eq!(log.matches("error").count(), 2, "{log}");
    }

    #[test]
    fn a_stopped_run_leaves_no_process_and_resumes() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        for signal_number in [libc::SIGTERM, libc::SIGINT] {
            let output = format!("stopped-{signal_number}");
            let mut run = start_run(dir, &output, &[]);
            run.wait_for_states(1);
            signal(run.child.id() as i32, signal_number);
            let start = Instant::now();
            let (code, log) = run.wait();
            assert!(code == Some(75) && start.elapsed() < Duration::from_secs(20), "{code:?}: {log}");
            assert!(log.contains("stopped at step") && !log.contains("error"), "{log}");
            assert_no_process_left(dir);
            assert_ends_like_reference(dir, &output, start_run(dir, &output, &[]));
        }
        // A signal to all workers has the same effect as one to the parent.
        let mut run = start_run(dir, "all", &[]);
        run.wait_for_states(1);
        for (id, _) in processes(dir).into_iter().filter(|(_, command)| command.contains("--worker=")) {
            signal(id, libc::SIGTERM);
        }
        let (code, log) = run.wait();
        assert!(code == Some(75) && !log.contains("error"), "{code:?}: {log}");
        assert_no_process_left(dir);
        // The parent and the first worker are killed at once, as in a power failure.
        let mut run = start_run(dir, "all", &[]);
        run.wait_for_states(2);
        let worker = run.worker();
        signal(run.child.id() as i32, libc::SIGKILL);
        worker.into_iter().for_each(|worker| signal(worker, libc::SIGKILL));
        run.wait();
        assert_no_process_left(dir);
        assert_ends_like_reference(dir, "all", start_run(dir, "all", &[]));
    }

    #[test]
    fn retries_end_when_a_process_always_fails() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        let mut run = start_run(dir, "failing", &["--max-retries", "1"]);
        while run.child.try_wait().unwrap().is_none() {
            let second_workers =
                processes(dir).into_iter().filter(|(_, command)| command.contains("--rank=1"));
            second_workers.for_each(|(id, _)| signal(id, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(1));
        }
        let (code, log) = run.wait();
        assert_eq!(code, Some(74), "{log}");
        assert_eq!(log.matches("error: process 1 of this run: exited unexpectedly").count(), 2, "{log}");
        assert!(log.contains("(retry 1 of 1)") && log.contains("given up after 1 retries"), "{log}");
        assert_no_process_left(dir);
    }
}
