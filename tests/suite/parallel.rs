//! Training in several processes: they learn what one learns, and whatever interrupts them, they end in the same files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use crate::common::{CATS, fails, run, shared, succeeds, text, trained};
use tempfile::TempDir;
use tiny_cats::checkpoint::TrainingState;

/// Two processes on the processor: what GPUs do, but for how the sums are taken.
const TWO: [&str; 4] = ["--device", "cpu", "--gpus", "2"];
/// Weights that differ by no more differ by how sums are rounded. They are of size 1, and a step moves them by up to 1e-3.
const ROUNDING: f32 = 1e-5;

/// A folder with synthetic pictures in `synth`, and what training on them in two processes, undisturbed, ended in: `dit` and `classifier`,
/// with their runs in `dit-runs` and `classifier-runs`.
static UNDISTURBED: LazyLock<PathBuf> = LazyLock::new(|| {
    shared("parallel", |dir| {
        trained::synthetic(dir);
        dit(dir, "dit", &TWO);
        classifier(dir, "classifier", &TWO);
    })
});

fn dit_arguments(output: &str, more: &[&str]) -> Vec<String> {
    let fixed = ["--steps", "6", "--save-interval", "3", "--no-validation"];
    trained::dit(output, &[&fixed, more].concat()).into_iter().map(String::from).collect()
}

/// Trains a generator for six steps of eight pictures, with its runs in `OUTPUT-runs`; what that said.
fn dit(dir: &Path, output: &str, more: &[&str]) -> String {
    let runs = format!("{output}-runs");
    succeeds(CATS, dir, &dit_arguments(output, &[&["--runs-dir", &runs], more].concat()))
}

/// Trains a classifier for five epochs of two steps of sixteen photographs, with its runs in `OUTPUT-runs`; what that said.
fn classifier(dir: &Path, output: &str, more: &[&str]) -> String {
    let runs = format!("{output}-runs");
    succeeds(CATS, dir, &classifier_arguments(output, &[&["--runs-dir", &runs], more].concat()))
}

fn classifier_arguments(output: &str, more: &[&str]) -> Vec<String> {
    let file = format!("{output}/m.pt");
    trained::train_args(&file, &[&["--epochs", "5"], more].concat()).into_iter().map(String::from).collect()
}

/// A folder for one test, with the same pictures.
fn test_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    trained::synthetic(dir.path());
    dir
}

/// The state of `step` in the only run in `runs`.
fn state(runs: &Path, step: usize) -> PathBuf {
    let name = format!("_step_{step:08}.safetensors");
    let runs = fs::read_dir(runs).unwrap().flatten().filter(|run| !run.path().is_symlink());
    let mut files = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
    files.find(|file| file.file_name().to_string_lossy().ends_with(&name)).expect("a state").path()
}

/// The largest difference between the weights, running statistics included, of two states; and between their averages.
fn difference(a: &Path, b: &Path) -> f32 {
    let [a, b] = [a, b].map(|path| TrainingState::load(path).unwrap());
    let mut worst = 0.0f32;
    for (a, b) in [(&a.weights, &b.weights), (&a.ema, &b.ema)] {
        assert!(!a.is_empty() && a.keys().eq(b.keys()));
        for (name, a) in a {
            let differences = a.data().iter().zip(b[name].data()).map(|(a, b)| (a - b).abs());
            worst = differences.fold(worst, f32::max);
        }
    }
    worst
}

#[track_caller]
fn same(a: &Path, b: &Path) {
    assert!(
        fs::read(a).unwrap() == fs::read(b).unwrap(),
        "{} is another file than {}",
        b.display(),
        a.display()
    );
}

#[test]
fn two_processes_learn_what_one_does() {
    let (test_dir, two) = (test_dir(), state(&UNDISTURBED.join("dit-runs"), 6));
    let dir = test_dir.path();
    let of = |output: &str, more: &[&str]| {
        dit(dir, output, more);
        difference(&two, &state(&dir.join(format!("{output}-runs")), 6))
    };
    let whole = of("whole", &[]);
    let half = ["--batch-size", "4", "--gradient-accumulation-steps", "2"];
    let parts = of("parts", &half);
    let quarters = of("quarters", &[&TWO[..], &["--halvings", "1"]].concat());
    // What would come of it if the other process's pictures were left out, and how far weights move in the last three steps.
    let without = of("without", &["--batch-size", "4"]);
    let moved = difference(&two, &state(&UNDISTURBED.join("dit-runs"), 3));
    println!("whole {whole:e}, parts {parts:e}, quarters {quarters:e}; without {without:e}, moved {moved:e}");
    assert!(whole < ROUNDING && parts < ROUNDING && quarters < ROUNDING);
    assert!(without > 100.0 * ROUNDING && moved > 10.0 * ROUNDING);
}

/// Batch normalisation goes by the statistics of micro-batches, which the two processes have in common with one that has as many.
#[test]
fn two_processes_see_the_statistics_that_one_sees_in_as_many_micro_batches() {
    let (test_dir, two) = (test_dir(), state(&UNDISTURBED.join("classifier-runs"), 10));
    let dir = test_dir.path();
    let of = |output: &str, more: &[&str]| {
        classifier(dir, output, more);
        difference(&two, &state(&dir.join(format!("{output}-runs")), 10))
    };
    let parts = of("parts", &["--batch-size", "8", "--gradient-accumulation-steps", "2"]);
    let whole = of("whole", &[]);
    println!("parts {parts:e}; in one micro-batch {whole:e}");
    assert!(parts < ROUNDING && whole > 100.0 * ROUNDING);
}

#[test]
fn the_same_number_of_processes_gives_the_same_files_and_another_is_said() {
    let test_dir = test_dir();
    let dir = test_dir.path();
    let released = |output: &str| dir.join(output).join("m.safetensors");
    classifier(dir, "again", &TWO);
    same(&UNDISTURBED.join("classifier/m.safetensors"), &released("again"));
    let from = |runs: &str, step| state(&dir.join(runs), step).to_str().unwrap().to_owned();
    let said = classifier(dir, "two", &[&TWO[..], &["--resume", &from("again-runs", 4)]].concat());
    assert!(!said.contains("--gpus was"), "{said}");
    same(&UNDISTURBED.join("classifier/m.safetensors"), &released("two"));

    let first = UNDISTURBED.join("dit-runs");
    let said = dit(dir, "one", &["--resume", state(&first, 3).to_str().unwrap()]);
    assert!(said.contains("--gpus was 2, is 1 from here on"), "{said}");
    let other = difference(&state(&first, 6), &state(&dir.join("one-runs"), 6));
    assert!(other < ROUNDING, "{other}");
    let said = dit(dir, "more", &[&TWO[..], &["--steps", "7", "--resume", &from("one-runs", 6)]].concat());
    assert!(said.contains("--gpus was 1, is 2 from here on"), "{said}");
    let said = dit(dir, "same", &[&TWO[..], &["--resume", state(&first, 3).to_str().unwrap()]].concat());
    assert!(!said.contains("--gpus was"), "{said}");
    same(&UNDISTURBED.join("dit/tinydit_final.pt"), &dir.join("same/tinydit_final.pt"));
}

#[test]
fn what_cannot_be_shared_is_refused_in_one_line() {
    let test_dir = test_dir();
    let said = |more: &[&str]| fails(CATS, test_dir.path(), &dit_arguments("x", more));
    assert!(said(&["--gpus", "0"]).contains("--gpus: expected at least 1, found 0"));
    let odd = said(&["--device", "cpu", "--gpus", "3"]);
    assert!(odd.contains("--batch-size: expected a multiple of --gpus 3, found 8"), "{odd}");
    // A batch has no more pictures than there are.
    let fewer = ["--device", "cpu", "--gpus", "4", "--batch-size", "32", "--limit-files", "26"];
    let fewer = text(&run(CATS, test_dir.path(), &dit_arguments("x", &fewer)));
    assert!(fewer.contains("--batch-size: expected a multiple of --gpus 4, found 26"), "{fewer}");
    let few = ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--gpus", "2"];
    let few = fails(CATS, test_dir.path(), &trained::train_args("x/m.pt", &few));
    assert!(few.contains("--batch-size: expected at least 4, found 2"), "{few}");
    if !cfg!(feature = "cuda") {
        let none = said(&["--gpus", "2"]);
        assert!(none.contains("--gpus 2: GPUs that can be used: 0; with --device cpu"), "{none}");
        assert!(said(&["--device", "cuda", "--gpus", "2"]).contains("built without CUDA"));
    }
    assert!(!test_dir.path().join("x").exists());
}

#[cfg(target_os = "linux")]
mod interrupted {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::common::background_run::*;

    /// All processes that are at work in `dir`, with what they were called with.
    fn processes(dir: &Path) -> Vec<(i32, String)> {
        let dir = dir.canonicalize().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let here = all.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir));
        let called = |entry: fs::DirEntry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()))
        };
        here.filter_map(called).collect()
    }

    /// No process is left at work in `dir`, at the latest in a moment.
    #[track_caller]
    fn nobody_is_left(dir: &Path) {
        let asked = Instant::now();
        while !processes(dir).is_empty() {
            assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", processes(dir));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn begin(dir: &Path, output: &str, more: &[&str]) -> BackgroundRun {
        let always = ["--retry-initial", "10ms", "--resume", "auto"];
        BackgroundRun::new(dir, &classifier_arguments(output, &[&TWO, &always[..], more].concat()), output)
    }

    #[track_caller]
    fn ends_the_same(dir: &Path, output: &str, begun: BackgroundRun) -> String {
        let (code, said) = begun.end();
        assert_eq!(code, Some(0), "{said}");
        for name in ["m.pt", "m.safetensors"] {
            same(&UNDISTURBED.join("classifier").join(name), &dir.join(output).join(name));
        }
        nobody_is_left(dir);
        said
    }

    #[test]
    fn whichever_process_is_killed_the_run_goes_on_by_itself() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        let mut begun = begin(dir, "first", &[]);
        begun.until(1);
        signal(begun.worker().unwrap(), libc::SIGKILL);
        let said = ends_the_same(dir, "first", begun);
        assert!(said.contains("killed (signal 9): going on in"), "{said}");

        let mut begun = begin(dir, "other", &[]);
        begun.until(1);
        signal(child_of(begun.worker().unwrap()).unwrap(), libc::SIGKILL);
        let said = ends_the_same(dir, "other", begun);
        let gone = "error: process 1 of this run: is gone (signal: 9 (SIGKILL))";
        assert!(said.contains(gone) && said.contains("the error may pass: going on in"), "{said}");
        assert_eq!(said.matches("error").count(), 2, "{said}");
    }

    #[test]
    fn a_stopped_run_leaves_no_process_and_goes_on() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        for kind in [libc::SIGTERM, libc::SIGINT] {
            let output = format!("stopped-{kind}");
            let mut begun = begin(dir, &output, &[]);
            begun.until(1);
            std::thread::sleep(Duration::from_millis(40));
            signal(begun.child.id() as i32, kind);
            let asked = Instant::now();
            let (code, said) = begun.end();
            assert!(code == Some(75) && asked.elapsed() < Duration::from_secs(20), "{code:?}: {said}");
            assert!(said.contains("stopped at step") && !said.contains("error"), "{said}");
            nobody_is_left(dir);
            ends_the_same(dir, &output, begin(dir, &output, &[]));
        }
        // A signal that all get who train is answered like one to the first.
        let mut begun = begin(dir, "all", &[]);
        begun.until(1);
        for (process, _) in processes(dir).into_iter().filter(|(_, called)| called.contains("--worker=")) {
            signal(process, libc::SIGTERM);
        }
        let (code, said) = begun.end();
        assert!(code == Some(75) && !said.contains("error"), "{code:?}: {said}");
        nobody_is_left(dir);
        // Parent and first process are killed at once, as when the power goes.
        let mut begun = begin(dir, "all", &[]);
        begun.until(2);
        let worker = begun.worker();
        signal(begun.child.id() as i32, libc::SIGKILL);
        worker.into_iter().for_each(|worker| signal(worker, libc::SIGKILL));
        begun.end();
        nobody_is_left(dir);
        ends_the_same(dir, "all", begin(dir, "all", &[]));
    }

    #[test]
    fn a_process_that_always_fails_is_given_up_and_nobody_is_left() {
        let test_dir = test_dir();
        let dir = test_dir.path();
        let mut begun = begin(dir, "failing", &["--max-retries", "1"]);
        while begun.child.try_wait().unwrap().is_none() {
            let followers = processes(dir).into_iter().filter(|(_, called)| called.contains("--rank=1"));
            followers.for_each(|(process, _)| signal(process, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(1));
        }
        let (code, said) = begun.end();
        assert_eq!(code, Some(74), "{said}");
        assert_eq!(said.matches("error: process 1 of this run: is gone").count(), 2, "{said}");
        assert!(said.contains("(retry 1 of 1)") && said.contains("given up after 1 retries"), "{said}");
        nobody_is_left(dir);
    }
}
