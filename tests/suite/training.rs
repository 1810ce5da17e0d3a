//! Training as a user has it: whatever interrupts it, it ends in the files of a run that was left alone.

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
    CACHE, CATS, background_run::BackgroundRun, fails, run, shared, succeeds, text, trained,
};
use tempfile::TempDir;
use tiny_cats::{
    checkpoint::TrainingState,
    train::{folder::list, metrics::Metrics},
};

const STEPS: [&str; 4] = ["--steps", "12", "--save-interval", "3"];
/// Retries need not wait.
const QUICK: [&str; 2] = ["--retry-initial", "10ms"];

/// A folder with synthetic pictures in `synth`, and what training on them for a while, undisturbed, ended in: `dit` and `classifier`.
static UNDISTURBED: LazyLock<PathBuf> = LazyLock::new(|| {
    shared("training", |dir| {
        trained::synthetic(dir);
        for task in Task::ALL {
            succeeds(CATS, dir, &task.arguments(task.name(), &[]));
        }
        std::fs::remove_dir_all(dir.join("runs")).unwrap();
    })
});

/// A folder for one test, with the same pictures in `synth`.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let pictures = UNDISTURBED.join("synth");
        for class in fs::read_dir(&pictures).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            let copy = dir.path().join("synth").join(class.file_name());
            fs::create_dir_all(&copy).unwrap();
            for picture in fs::read_dir(class.path()).unwrap().flatten() {
                fs::copy(picture.path(), copy.join(picture.file_name())).unwrap();
            }
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What was released to `output` is what an undisturbed run releases.
    #[track_caller]
    fn same(&self, task: Task, output: &str) {
        for name in task.released() {
            let [a, b] = [UNDISTURBED.join(task.name()), self.path().join(output)]
                .map(|folder| fs::read(folder.join(name)).unwrap());
            assert!(a == b, "{output}/{name} is another file than an undisturbed run's");
        }
    }

    fn begin(&self, arguments: &[String], runs: &str) -> BackgroundRun {
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
            Self::Dit => trained::dit(output, &STEPS),
            Self::Classifier => trained::train_args(&file, &["--epochs", "3"]),
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
fn a_run_that_begins_from_a_state_ends_in_the_same_files() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    for (task, state) in [(Task::Dit, "dit_step_00000003"), (Task::Classifier, "classifier_step_00000002")] {
        let output = format!("from-{}", task.name());
        let said = succeeds(CATS, dir, &task.arguments(&format!("{output}-0"), &["--runs-dir", &output]));
        let first = trained::run_folder(dir, &said);
        let state = first.join(format!("{state}.safetensors"));
        let before = files(&first);
        assert!(state.exists(), "{before:?}");
        let state = state.to_string_lossy();
        let said =
            succeeds(CATS, dir, &task.arguments(&output, &["--runs-dir", &output, "--resume", &state]));
        assert!(said.contains("steps 3 to ") || said.contains("steps 2 to "), "{said}");
        test_dir.same(task, &output);
        let second = trained::run_folder(dir, &said);
        assert!(second != first && files(&first) == before, "the first run is left alone");
        // The mean loss is that of a run that was not interrupted, and what the console says of the last step `runs` says.
        let means = [&first, &second].map(|run| mean_loss(run));
        assert!(means[0].is_some() && means[0] == means[1], "{task:?}: {means:?}");
        let id = second.file_name().unwrap().to_string_lossy();
        let shown = succeeds(CATS, dir, &["runs", "show", &id, "--runs-dir", &output]);
        let shown = shown.lines().find_map(|line| line.strip_prefix("mean loss ")).unwrap();
        let (mean, _) = shown.split_once(" at ").unwrap();
        assert!(said.contains(&format!("  mean loss {mean}  lr ")), "{mean}: {said}");
    }
    // A run may be made longer, aloud; anything else must be what it was.
    let state = state_of(&dir.join("from-dit"), "dit_step_00000003.safetensors");
    let resume = ["--runs-dir", "longer", "--resume", &state];
    let said = succeeds(CATS, dir, &trained::dit("longer", &[&resume[..], &["--steps", "13"]].concat()));
    assert!(said.contains("schedule.steps was 12, is 13"), "{said}");
    // From its end on, there are two ways to go on with a learning rate that has come down.
    let last = state_of(&dir.join("from-dit"), "dit_step_00000012.safetensors");
    let goes_on = |steps| {
        let more = ["--runs-dir", "after", "--resume", &last, "--steps", steps];
        succeeds(CATS, dir, &trained::dit("after", &more))
    };
    let said = goes_on("13");
    assert!(said.contains("at or near its floor, for all 1 steps that are left"), "{said}");
    let said = goes_on("24");
    assert!(said.contains("goes up to"), "{said}");
    let other = [&STEPS[..], &resume, &["--weight-decay", "0.1"]].concat();
    let said = fails(CATS, dir, &trained::dit("x", &other));
    assert!(said.contains("optimizer.weight_decay was 0.0, is 0.1"), "{said}");
    let said = fails(CATS, dir, &trained::dit("x", &[&resume[..], &["--steps", "1"]].concat()));
    assert!(said.contains("beyond --steps 1"), "{said}");
    // Other pictures are another run.
    let fewer = [&STEPS[..], &resume, &["--limit-files", "20"]].concat();
    let said = fails(CATS, dir, &trained::dit("x", &fewer));
    assert!(
        said.contains("uses another part of the same data") && said.contains("are 20 to train on"),
        "{said}"
    );
    let said = fails(CATS, dir, &trained::dit("x", &["--resume", "longer/tinydit_final.safetensors"]));
    assert!(said.contains("not the state of a training run"), "{said}");
    // Another seed gives another model.
    succeeds(CATS, dir, &trained::dit("other", &[&STEPS[..], &["--seed", "1"]].concat()));
    let [a, b] = [UNDISTURBED.join("dit"), dir.join("other")]
        .map(|folder| fs::read(folder.join("tinydit_final.safetensors")).unwrap());
    assert!(a != b);
    // Data that changed is told in words.
    let removed = files(&files(&dir.join("synth")).into_iter().find(|path| path.is_dir()).unwrap()).remove(0);
    fs::remove_file(&removed).unwrap();
    let said = fails(CATS, dir, &trained::dit("x", &[&STEPS[..], &resume].concat()));
    assert!(said.contains("the data changed since the run began: pictures were"), "{said}");
}

/// The running mean of the loss after the last step of the run in `folder`, as its metrics have it and as its state does.
fn mean_loss(folder: &Path) -> Option<f64> {
    let metrics = Metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let logged = metrics.training("mean_loss").last()?;
    let state = files(folder).into_iter().rfind(|path| path.to_string_lossy().contains("_step_"))?;
    assert_eq!(TrainingState::load(&state).unwrap().meta["progress"]["mean_loss"], logged.value);
    Some(logged.value)
}

/// The state called `name` in the oldest run in `runs`.
fn state_of(runs: &Path, name: &str) -> String {
    let mut found: Vec<PathBuf> = files(runs).into_iter().filter(|path| !path.is_symlink()).collect();
    found.sort();
    found.iter().map(|run| run.join(name)).find(|path| path.exists()).unwrap().to_string_lossy().into_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// The process that trains is killed: its parent begins it anew.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_run_goes_on_by_itself() {
    let test_dir = TestDir::new();
    for task in Task::ALL {
        let output = format!("killed-{}", task.name());
        let mut begun = test_dir.begin(&task.arguments(&output, &QUICK), &output);
        begun.until(1);
        signal(begun.worker().unwrap(), libc::SIGKILL);
        let (code, said) = begun.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("killed (signal 9): going on in"), "{said}");
        test_dir.same(task, &output);
    }
}

/// The same, killed at three moments that nobody chose.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes minutes; scripts/test-slow runs it"]
fn a_run_that_is_killed_again_and_again_ends_in_the_same_bytes() {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let test_dir = TestDir::new();
    for (task, round) in Task::ALL.into_iter().flat_map(|task| [(task, 0), (task, 1), (task, 2)]) {
        let output = format!("again-{}-{round}", task.name());
        let quick = [&QUICK[..], &["--max-retries", "5"]].concat();
        let start = Instant::now();
        let begun = test_dir.begin(&task.arguments(&output, &quick), &output);
        let mut killed = Vec::new();
        for _ in 0..3 {
            let wait = RandomState::new().build_hasher().finish() % 3000;
            std::thread::sleep(Duration::from_millis(wait));
            if let Some(worker) = begun.worker() {
                signal(worker, libc::SIGKILL);
                killed.push(start.elapsed());
            }
        }
        let (code, said) = begun.end();
        println!("{task:?}: killed after {killed:?}\n{said}");
        assert_eq!(code, Some(0), "{said}");
        test_dir.same(task, &output);
    }
}

/// However long a step takes, and however busy the machine is, a signal is answered within 20 s.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "keeps the machine busy; scripts/test-slow runs it"]
fn a_signal_is_answered_in_time_under_load() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let test_dir = TestDir::new();
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().unwrap().get();
    for _ in 0..2 * cores {
        std::thread::spawn(|| {
            while !ENOUGH.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
    // A step of 64 micro-batches takes minutes.
    let more =
        ["--size", "base", "--image-size", "64", "--batch-size", "26", "--gradient-accumulation-steps", "64"];
    let arguments = Task::Dit.arguments("busy", &[&more[..], &["--resume", "auto"]].concat());
    let begun = test_dir.begin(&arguments, "busy");
    while !files_below(&test_dir.path().join("busy")).iter().any(|path| path.ends_with("training.log")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(20));
    signal(begun.child.id() as i32, libc::SIGTERM);
    let asked = Instant::now();
    let (code, said) = begun.end();
    ENOUGH.store(true, Ordering::Relaxed);
    println!("stopped after {:?}: {said}", asked.elapsed());
    assert_eq!(code, Some(75), "{said}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten())
        .map(|file| file.path())
        .collect()
}

/// Parent and child are killed in the same moment, as when the power goes: the same command goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_run_whose_power_went_goes_on() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    for task in Task::ALL {
        let output = format!("power-{}", task.name());
        let arguments = task.arguments(&output, &["--resume", "auto"]);
        let mut begun = test_dir.begin(&arguments, &output);
        begun.until(1);
        let worker = begun.worker().unwrap();
        signal(worker, libc::SIGSTOP);
        signal(begun.child.id() as i32, libc::SIGKILL);
        signal(worker, libc::SIGKILL);
        begun.end();
        let (code, said) = test_dir.begin(&arguments, &output).end();
        assert_eq!(code, Some(0), "{said}");
        test_dir.same(task, &output);
        let runs = files(&dir.join(&output)).into_iter().filter(|path| path.is_dir() && !path.is_symlink());
        assert_eq!(runs.count(), 1, "it went on in its own folder");
    }
}

/// A signal to the program saves the last finished step, also in the middle of one, and ends with a code of its own; so does one to all of
/// its processes, as from systemd, which reaches the one that trains twice.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_run_says_so_and_goes_on() {
    let test_dir = TestDir::new();
    for (task, kind, all) in [
        (Task::Dit, libc::SIGTERM, true),
        (Task::Classifier, libc::SIGINT, false),
        (Task::Classifier, libc::SIGTERM, true),
        (Task::Dit, libc::SIGHUP, false),
        (Task::Dit, libc::SIGINT, true),
    ] {
        let output = format!("stopped-{}-{kind}", task.name());
        let arguments = task.arguments(&output, &["--resume", "auto"]);
        let mut begun = test_dir.begin(&arguments, &output);
        begun.until(1);
        std::thread::sleep(Duration::from_millis(40));
        let worker = begun.worker().filter(|_| all);
        assert_eq!(worker.is_some(), all, "{output}");
        signal(begun.child.id() as i32, kind);
        if let Some(worker) = worker {
            signal(worker, kind);
        }
        let asked = Instant::now();
        let (code, said) = begun.end();
        assert!(asked.elapsed() < Duration::from_secs(20));
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains("stopped at step") && said.contains("--resume auto goes on"), "{said}");
        let (code, said) = test_dir.begin(&arguments, &output).end();
        assert_eq!(code, Some(0), "{said}");
        test_dir.same(task, &output);
    }
    // Its time being up is the same.
    let arguments = Task::Dit.arguments("timed", &["--resume", "auto", "--max-time", "1ms"]);
    let (code, said) = test_dir.begin(&arguments, "timed").end();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("its time is up"), "{said}");
    let (code, said) = test_dir.begin(&Task::Dit.arguments("timed", &["--resume", "auto"]), "timed").end();
    assert_eq!(code, Some(0), "{said}");
    test_dir.same(Task::Dit, "timed");
}

/// The program alone is killed while its training process saves: the same command waits for that one and goes on with its state.
#[cfg(target_os = "linux")]
#[test]
fn a_command_waits_for_the_process_that_saves_and_goes_on() {
    use std::io::{BufRead, BufReader, Read};
    let test_dir = TestDir::new();
    for (round, flags) in [["--resume", "auto"], ["--run-id", "mine"]].into_iter().enumerate() {
        let output = format!("orphan-{round}");
        let arguments = Task::Dit.arguments(&output, &flags);
        let mut begun = test_dir.begin(&arguments, &output);
        begun.until(1);
        let worker = begun.worker().unwrap();
        signal(worker, libc::SIGSTOP);
        signal(begun.child.id() as i32, libc::SIGKILL);
        // Not its output: the stopped process still holds that open.
        begun.child.wait().unwrap();
        let mut again = test_dir.begin(&arguments, &output);
        let mut said = BufReader::new(again.child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("another process trains in this folder; waiting at most 30 s"), "{line}");
        signal(worker, libc::SIGCONT);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let (code, _) = again.end();
        assert_eq!(code, Some(0), "{rest}");
        test_dir.same(Task::Dit, &output);
        assert_eq!(list(&test_dir.path().join(&output)).unwrap().len(), 1, "it went on in its own folder");
    }
}

/// As soon as the program can be asked to stop, which is before it has looked at anything, it ends as it always does when it is.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_before_training_begins_has_the_code_of_any_other() {
    let test_dir = TestDir::new();
    for kind in [libc::SIGTERM, libc::SIGINT] {
        let mut begun = test_dir.begin(&Task::Dit.arguments("early", &["--resume", "auto"]), "early");
        let process = begun.child.id() as i32;
        let catches = || {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let mask =
                status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
            u64::from_str_radix(&mask, 16).unwrap() & (1 << (kind - 1)) != 0
        };
        while !catches() {
            assert!(begun.child.try_wait().unwrap().is_none(), "it ended before it caught signals");
            std::thread::yield_now();
        }
        signal(process, kind);
        let (code, said) = begun.end();
        assert_eq!(code, Some(75), "{said}");
    }
    let (code, said) = test_dir.begin(&Task::Dit.arguments("early", &["--resume", "auto"]), "early").end();
    assert_eq!(code, Some(0), "{said}");
    test_dir.same(Task::Dit, "early");
}

/// A state that was damaged is noticed, and the one before it is gone on with.
#[test]
fn a_damaged_state_is_left_for_the_one_before() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let said = succeeds(CATS, dir, &Task::Dit.arguments("damaged-0", &["--runs-dir", "damaged"]));
    let run_folder = trained::run_folder(dir, &said);
    let newest = run_folder.join("dit_step_00000012.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    let resume = run_folder.to_string_lossy();
    let said = succeeds(CATS, dir, &Task::Dit.arguments("damaged-1", &["--resume", &resume]));
    assert!(said.contains("dit_step_00000012.safetensors: the checksum does not match"), "{said}");
    assert!(said.contains("going on from the state before it") && said.contains("steps 9 to 12"), "{said}");
    test_dir.same(Task::Dit, "damaged-1");
    for state in fs::read_dir(&run_folder)
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().contains("_step_"))
    {
        fs::write(state.path(), &bytes[..bytes.len() / 3]).unwrap();
    }
    // Of states none of which is whole, nothing is left to go on with: the run begins again, and the files stay.
    let said = succeeds(CATS, dir, &Task::Dit.arguments("damaged-2", &["--resume", &resume]));
    assert!(said.contains("no training state of this run is whole: the run begins again"), "{said}");
    assert!(said.contains("steps 0 to 12"), "{said}");
    test_dir.same(Task::Dit, "damaged-2");
    let aside = run_folder.join("dit_step_00000012.safetensors.damaged");
    assert_eq!(fs::read(aside).unwrap().len(), bytes.len() / 3);
}

/// A file may not grow beyond this: what a full disk does, without a disk.
#[cfg(unix)]
#[test]
fn a_full_disk_stops_a_run_in_one_line_and_loses_nothing() {
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
    let left: Vec<String> = files(&dir.join("full-runs/latest"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name.contains("_step_") || name.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let output = Command::new("sh")
        .args(["-c", &format!("exec {CATS} {arguments}")])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    test_dir.same(Task::Dit, "full");
}

/// What costs time or memory, or is only watched, changes not one bit of what is learnt.
#[test]
fn memory_threads_and_trackers_change_nothing() {
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
            test_dir.same(task, &output);
        }
    }
}

/// A program that is refused memory aborts: it is begun anew with smaller micro-batches, from where it was.
#[cfg(target_os = "linux")]
#[test]
fn a_process_that_aborts_for_want_of_memory_goes_on_with_less_at_once() {
    let test_dir = TestDir::new();
    for task in Task::ALL {
        let output = format!("memory-{}", task.name());
        let mut begun = test_dir.begin(&task.arguments(&output, &[]), &output);
        begun.until(1);
        let whole = if task == Task::Dit { 8 } else { 16 };
        signal(begun.worker().unwrap(), libc::SIGABRT);
        let (code, said) = begun.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("out of memory: micro-batches are halved"), "{said}");
        assert!(said.contains(&format!("micro-batches of {} a step", whole / 2)), "{said}");
        assert_eq!(said.contains("batch normalisation"), task == Task::Classifier, "{said}");
        let run =
            files(&test_dir.path().join(&output)).into_iter().find(|path| path.join("run.json").exists());
        let states =
            files(&run.unwrap()).into_iter().filter(|path| path.to_string_lossy().contains("_step_"));
        let last = TrainingState::load(&states.max().unwrap()).unwrap();
        assert_eq!(last.meta["progress"]["micro_batch"], whole / 2);
        assert!(test_dir.path().join(&output).join(task.released()[1]).exists());
    }
}

/// What cannot fit is refused before anything is computed.
#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_seen_beforehand() {
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
    assert!(text(&output).contains("training with micro-batches of 24 takes"), "{}", text(&output));
}

#[test]
fn accumulation_takes_the_pictures_of_a_larger_batch() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let load = |more: &[&str]| {
        let more = [&["--steps", "1", "--label-dropout", "0.5"], more].concat();
        let said = succeeds(CATS, dir, &trained::dit("accumulated", &more));
        let folder = trained::run_folder(dir, &said);
        TrainingState::load(&folder.join("dit_step_00000001.safetensors")).unwrap()
    };
    let a = load(&["--gradient-accumulation-steps", "2"]);
    let mut b = trained::dit("accumulated", &["--steps", "1", "--label-dropout", "0.5"]);
    let batch = b.iter().position(|a| *a == "8").unwrap();
    b[batch] = "16";
    let said = succeeds(CATS, dir, &b);
    let b =
        TrainingState::load(&trained::run_folder(dir, &said).join("dit_step_00000001.safetensors")).unwrap();
    for (name, a) in &a.moment1 {
        let most = a.data().iter().fold(0f32, |m, v| m.max(v.abs()));
        for (x, y) in a.data().iter().zip(b.moment1[name].data()) {
            assert!((x - y).abs() <= 1e-4 * most + 1e-9, "{name}: {x} and {y}");
        }
    }
}

/// A call that is refused changes nothing of what is known of a run, and a stopped run is found whatever its output is called.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_run_survives_wrong_calls_and_another_output() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let arguments = Task::Classifier.arguments("first", &["--resume", "auto"]);
    let mut begun = test_dir.begin(&arguments, "known");
    begun.until(1);
    signal(begun.child.id() as i32, libc::SIGTERM);
    assert_eq!(begun.end().0, Some(75));
    let run = files(&dir.join("known")).into_iter().find(|path| path.join("run.json").exists()).unwrap();
    let known = ["run.json", "config.toml"].map(|name| fs::read(run.join(name)).unwrap());
    let folder = run.to_string_lossy();
    let said = fails(
        CATS,
        dir,
        &["train", "classifier", "--resume", &folder, "--lr", "0.5", "--label-smoothing", "0"],
    );
    assert!(said.contains("label_smoothing was"), "{said}");
    assert!(known == ["run.json", "config.toml"].map(|name| fs::read(run.join(name)).unwrap()));
    // What it was asked before it is asked again, and the file may lie elsewhere.
    let said = succeeds(
        CATS,
        dir,
        &["train", "classifier", "--resume", &folder, "-o", "second/m.pt", "--", "synth"],
    );
    assert!(!said.contains("steps 0 to"), "{said}");
    test_dir.same(Task::Classifier, "second");
}

#[test]
fn a_finished_run_is_not_trained_again_and_what_another_released_is_kept() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let bytes = |name: &str| fs::read(dir.join("out").join(name)).unwrap();
    let runs = || list(&dir.join("runs")).unwrap().len();
    let first = Task::Dit.arguments("out", &["--resume", "auto"]);
    succeeds(CATS, dir, &first);
    let released = Task::Dit.released().map(bytes);
    let said = text(&run(CATS, dir, &first));
    assert!(said.contains("is finished: out/tinydit_final.pt and out/tinydit_final.safetensors"), "{said}");
    assert_eq!(runs(), 1);

    let second = Task::Dit.arguments("out", &["--resume", "auto", "--seed", "7"]);
    let said = text(&run(CATS, dir, &second));
    assert!(
        said.contains("kept what another run released: out/tinydit_final.pt as out/tinydit_final.1.pt"),
        "{said}"
    );
    assert_eq!(["tinydit_final.1.pt", "tinydit_final.1.safetensors"].map(bytes), released);
    let other = Task::Dit.released().map(bytes);
    assert!(other != released && runs() == 2);
    // A finished run whose files are gone writes them again, without training.
    fs::remove_dir_all(dir.join("out")).unwrap();
    succeeds(CATS, dir, &second);
    assert_eq!(Task::Dit.released().map(bytes), other);
    assert_eq!((runs(), fs::read_dir(dir.join("out")).unwrap().count()), (2, 2));
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let test_dir = TestDir::new();
    let dir = test_dir.path();
    let said = succeeds(CATS, dir, &Task::Dit.arguments("locked", &["--runs-dir", "locked-runs"]));
    let folder = trained::run_folder(dir, &said);
    let _lock = tiny_cats::train::folder::Lock::take(&folder).unwrap().unwrap();
    // It is waited for, but not for ever; another time may do better.
    let more = ["--resume", &folder.to_string_lossy(), "--retry-max", "10ms"];
    let output = run(CATS, dir, &[&["train", "dit", "synth"][..], &more].concat());
    assert_eq!(output.status.code(), Some(74), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("another process trains in this folder; given up after 0.01 s"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    let said = fails(CATS, dir, &["train", "classifier", "synth", "--resume", &folder.to_string_lossy()]);
    assert!(said.contains("is a run of `train dit`"), "{said}");
}

#[test]
fn a_run_with_a_name_is_begun_or_gone_on_with() {
    for task in Task::ALL {
        let test_dir = TestDir::new();
        let named = task.arguments("released", &["--run-id", "mine", QUICK[0], QUICK[1]]);
        let mut begun = test_dir.begin(&named, "runs");
        begun.until(1);
        begun.child.kill().unwrap();
        begun.child.wait().unwrap();
        // Its training process saves its state and ends by itself, which is waited for.
        for _ in 0..2 {
            succeeds(CATS, test_dir.path(), &named);
            test_dir.same(task, "released");
            assert_eq!(list(&test_dir.path().join("runs")).unwrap().len(), 1);
        }
        assert_eq!(list(&test_dir.path().join("runs")).unwrap()[0].1.id, "mine");
        let other = [&named[..], &["--seed".into(), "7".into()]].concat();
        assert!(fails(CATS, test_dir.path(), &other).contains("was trained with other settings"));
        let bad = task.arguments("released", &["--run-id", "../mine"]);
        assert!(fails(CATS, test_dir.path(), &bad).contains("--run-id: expected a name"));
    }
}
