//! End-to-end tests of `tiny-cats cloud`, with a fake `modal` command that records its arguments.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::common::{CACHE, CATS, succeeds, text, trained};
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny_cats::{
    sweep::{JobStatus, Sweep, SweepState},
    train::metrics::Point,
};

const BIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bin");
const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/modal");

/// A working directory with fake Modal volumes in `modal/volumes`: a data set `cats` and no runs.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        let test_dir = Self(TempDir::new().unwrap());
        fs::create_dir_all(test_dir.volume("tiny-cats-data").join("cats/Siamese")).unwrap();
        test_dir
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn modal(&self) -> PathBuf {
        self.path().join("modal")
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.modal().join("volumes").join(name)
    }

    /// Selects a behavior of the fake `modal` command.
    fn set_mode(&self, mode: &str) {
        fs::write(self.modal().join("MODE"), mode).unwrap();
    }

    /// Creates a run's folder in the outputs volume.
    fn run(&self, id: &str) -> PathBuf {
        let folder = self.volume("tiny-cats-outputs").join("runs").join(id);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn cloud(&self, arguments: &[&str]) -> Output {
        let path = format!("{BIN}:{}", std::env::var("PATH").unwrap());
        self.command(arguments).env("PATH", path).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CATS);
        command.arg("cloud").args(arguments).current_dir(self.path()).env("FAKE_MODAL", self.modal());
        // A build of the program that supports GPUs.
        command.env("TINY_CATS_BINARY", "/opt/tiny-cats").env(CACHE.0, CACHE.1);
        command
    }

    #[track_caller]
    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.cloud(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with a one-line error, and returns its standard error.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.cloud(arguments);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {}", text(&output));
        assert!(output.status.code() == Some(2) || stderr.lines().count() == 1, "{arguments:?}: {stderr}");
        stderr
    }

    /// Returns and clears the recorded calls of the fake `modal` command.
    fn take_calls(&self) -> Vec<Vec<String>> {
        let path = self.modal().join("calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        calls.lines().map(|call| call.split_terminator('\x1f').map(str::to_owned).collect()).collect()
    }

    /// Takes the recorded calls and returns the only `modal run` among them.
    #[track_caller]
    fn take_run_call(&self) -> Vec<String> {
        let mut runs: Vec<Vec<String>> =
            self.take_calls().into_iter().filter(|call| call[0] == "run").collect();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }
}

const DIT: [&str; 5] = ["train", "dit", "data/cats", "--config", "a10"];

#[test]
fn check_prints_a_fix_for_each_missing_requirement() {
    let test_dir = TestDir::new();
    let output = test_dir.succeeds(&["check"]);
    assert_eq!(output.lines().filter(|line| line.starts_with("ok ")).count(), 5, "{output}");
    assert!(output.contains("data/cats") && output.contains("the first run creates the volume"), "{output}");

    let missing = |output: &str| -> String {
        let lines: Vec<&str> = output.lines().filter(|line| line.starts_with("missing ")).collect();
        assert_eq!(lines.len(), 1, "{output}");
        lines[0].to_owned()
    };
    let check = || {
        let output = test_dir.cloud(&["check"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        missing(&String::from_utf8(output.stdout).unwrap())
    };
    for (mode, expected) in [
        ("old", "modal 0.73.1 is too old; run pip install --upgrade 'modal>=1.6'"),
        ("token", "not logged in; run modal token new"),
        ("network", "cannot reach the servers"),
        ("app", "SyntaxError"),
    ] {
        test_dir.set_mode(mode);
        let line = check();
        assert!(line.contains(expected), "{line}");
    }
    test_dir.set_mode("");
    fs::remove_dir_all(test_dir.volume("tiny-cats-data").join("cats")).unwrap();
    assert!(check().contains("is empty; run modal volume put tiny-cats-data data/cats /cats"));
    fs::remove_dir_all(test_dir.volume("tiny-cats-data")).unwrap();
    assert!(check().contains("modal volume create tiny-cats-data"));
    // Without the `modal` command.
    let output = test_dir.command(&["check"]).env("PATH", "/nonexistent").output().unwrap();
    assert!(missing(&text(&output)).contains("pip install 'modal>=1.6'"));
    // Without GPU support, outside of a clone.
    let path = format!("{BIN}:{}", std::env::var("PATH").unwrap());
    let output =
        test_dir.command(&["check"]).env_remove("TINY_CATS_BINARY").env("PATH", path).output().unwrap();
    if !cfg!(feature = "cuda") {
        assert!(text(&output).contains("expected a clone of tiny-cats"), "{}", text(&output));
    }
}

#[test]
fn train_prints_its_price_and_passes_its_flags_to_modal() {
    let test_dir = TestDir::new();
    let more = ["--steps", "1000", "--gpu", "A10,l4", "--max-cost", "5", "--detach", "--run-id", "mine"];
    let arguments = [&DIT[..], &more].concat();
    let planned = test_dir.succeeds(&[&arguments[..], &["--dry-run"]].concat());
    assert!(test_dir.take_calls().is_empty(), "a dry run does not call Modal");
    let output = test_dir.succeeds(&arguments);
    assert!(
        output.contains("run mine: ") && output.contains(" expected on A10,L4 at $1.42 an hour, 1000 steps"),
        "{output}"
    );
    let calls = test_dir.take_calls();
    let call = calls.last().unwrap().join(" ");
    let command = planned.lines().last().unwrap().replace('\'', "");
    assert_eq!(command, format!("modal {call}"), "a dry run prints the command");
    assert!(call.starts_with("run --detach --name=tiny-cats-mine "), "{call}");
    for word in ["train dit data/cats", "--run-id=mine", "--gpu=A10,L4", "--max-cost=5", "--max-retries=3"] {
        assert!(call.contains(word), "{word}: {call}");
    }
    // The profile is resolved locally: the arguments in the container do not depend on a local file.
    assert!(call.ends_with(
        "--ema-beta=0.9995,0.9999 --image-size=64 --lr=0.0004 --precision=bf16 --save-interval=2000 --size=small --steps=1000"
    ));
    assert!(!call.contains("config") && !call.contains("token"), "{call}");
    // With the plan's GPU, a generated run ID, and without --detach.
    test_dir.succeeds(&[
        "train",
        "classifier",
        "data/cats",
        "--config",
        "t4",
        "--timeout",
        "2h",
        "--max-retries",
        "7",
    ]);
    let call = test_dir.take_run_call().join(" ");
    assert!(
        call.starts_with("run --name=tiny-cats-20") && call.contains("--timeout=7200 --max-retries=7 "),
        "{call}"
    );
    // If Modal fails, this program fails.
    test_dir.set_mode("run");
    assert_eq!(test_dir.cloud(&DIT).status.code(), Some(1));
}

/// The app parses the arguments of the call, and passes arguments on that `train` accepts.
#[test]
fn the_app_parses_the_call() {
    let test_dir = TestDir::new();
    let more = [
        "--gpu",
        "A100:2",
        "--timeout",
        "3h",
        "--max-cost",
        "50",
        "--region",
        "us-east",
        "--gradient-checkpointing",
    ];
    test_dir.succeeds(&[&DIT[..], &more].concat());
    let call = test_dir.take_run_call();
    let words: Vec<&str> =
        call.iter().map(String::as_str).skip_while(|word| !word.ends_with("app.py")).skip(1).collect();
    let script = "import json, options, sys; arguments = options.parse(sys.argv[1:]); print(json.dumps(options.build_request(arguments)))";
    let python =
        Command::new("python3").args(["-c", script]).args(&words).env("PYTHONPATH", APP).output().unwrap();
    assert!(python.status.success(), "{}", text(&python));
    let request: Value = serde_json::from_slice(&python.stdout).unwrap();
    assert_eq!((&request["timeout"], &request["max_cost"]), (&10_800.into(), &50.0.into()));
    assert_eq!((&request["gpu"], &request["region"]), (&"A100:2".into(), &"us-east".into()));
    assert_eq!(request["prices"]["A100:2"]["device"], "A100 40GB");
    // Two GPUs, four cores and 16 GiB, with the surcharge for a region.
    let hour = request["prices"]["A100:2"]["hour"].as_f64().unwrap();
    assert!((hour - 1.75 * (2.0 * 2.10 + 4.0 * 0.0472 + 16.0 * 0.008)).abs() < 1e-3, "{hour}");
    let rest: Vec<&str> =
        request["arguments"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(rest.contains(&"--gradient-checkpointing") && rest.contains(&"--gpus=2"), "{rest:?}");
    // Both sets of arguments plan the same work: no argument is lost.
    let plan = |arguments: &[&str]| -> Value {
        let arguments = [&["plan", "train", "dit"], arguments, &["--json"]].concat();
        serde_json::from_str(&succeeds(CATS, test_dir.path(), &arguments)).unwrap()
    };
    let [remote, local] =
        [plan(&rest), plan(&["data/cats", "--config", "a10", "--gradient-checkpointing", "--gpus", "2"])];
    assert_eq!(remote["demand"], local["demand"]);
    // The app and `tiny-cats cloud train` have the same flags for the cloud.
    let help = succeeds(CATS, test_dir.path(), &["cloud", "train", "dit", "--help"]);
    let script = "import options\nfor action in options.parser()._subparsers._group_actions[0].choices['train']._actions: print(*action.option_strings)";
    let python = Command::new("python3").args(["-c", script]).env("PYTHONPATH", APP).output().unwrap();
    let flags = String::from_utf8(python.stdout).unwrap();
    let flags: Vec<&str> =
        flags.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help").collect();
    assert!(flags.len() >= 6, "{flags:?}");
    for flag in flags.into_iter().filter(|flag| *flag != "--detach") {
        let local = if flag == "--price-per-hour" { "--prices" } else { flag };
        assert!(help.contains(&format!("{local} ")), "{flag} is not one of `tiny-cats cloud train`");
    }
}

#[test]
fn invalid_arguments_start_nothing() {
    let test_dir = TestDir::new();
    fs::write(test_dir.path().join("broken.toml"), "[gpu]\nA10 = 0\n").unwrap();
    for (more, expected) in [
        (&["--gpu", "A11"][..], "--gpu A11: unknown GPU; did you mean A10?"),
        (&["--gpu", "A10:2,L4"], "expected the same number of GPUs for all models"),
        (&["--gpu", "T4"], "--gpu T4: has no bf16"),
        (
            &["--gpu", "T4", "--precision", "f32", "--batch-size", "99999", "--pictures", "999999"],
            "too little memory",
        ),
        (&["--timeout", "25h"], "--timeout: expected 6m to 1day, found 1day 1h"),
        (&["--timeout", "5s"], "--timeout: expected 6m to 1day, found 5s"),
        (&["--max-retries", "11"], "--max-retries: expected 0 to 10, found 11"),
        (&["--max-cost", "0"], "--max-cost: expected more than 0 dollars, found 0"),
        (&["--max-cost", "0.01"], "exceeds $0.01; nothing was started"),
        (&["--gpu", "RTX-PRO-6000", "--max-cost", "5"], "--max-cost: these GPUs have no price"),
        (&["--prices", "broken.toml"], "broken.toml: gpu.A10: expected dollars per hour, found 0"),
        (&["--prices", "absent.toml"], "absent.toml"),
        (&["--run-id", "../x"], "--run-id: expected a name"),
        (&["--runs-dir", "x"], "--runs-dir: is set in the cloud"),
        (&["--resume", "auto"], "--resume: is set in the cloud"),
        (&["--device", "cpu"], "--device: is set in the cloud"),
        (&["--region", "us east"], "--region: expected a name"),
        (&["--steps", "0"], "--steps: expected at least 1"),
        (&["--mlflow", "http://me:secret@host"], "--mlflow"),
    ] {
        let error = test_dir.fails(&[&DIT[..], more].concat());
        assert!(error.contains(expected) && !error.contains("secret"), "{more:?}: {error}");
    }
    for data in ["cats", "/data/cats", "data", "data/../cats", "../data/cats"] {
        assert!(
            test_dir.fails(&["train", "dit", data]).contains("expected data/NAME, such as data/cats"),
            "{data}"
        );
    }
    let not_a_run = |call: &Vec<String>| call[0] != "run";
    assert!(test_dir.take_calls().iter().all(not_a_run));
    // Errors that only Modal can report also come before anything starts.
    for (mode, expected) in [
        ("token", "error: modal: not logged in; run modal token new"),
        ("network", "cannot reach the servers"),
        ("old", "is too old"),
        ("secret", "Something went wrong with … and …"),
    ] {
        test_dir.set_mode(mode);
        let error = test_dir.fails(&DIT);
        assert!(error.contains(expected) && !error.contains("0123456789"), "{error}");
        assert!(test_dir.take_calls().iter().all(not_a_run), "{mode}");
    }
    test_dir.set_mode("");
    assert!(
        test_dir
            .fails(&["train", "dit", "data/dogs"])
            .contains("modal volume put tiny-cats-data FOLDER /dogs")
    );
    fs::remove_dir(test_dir.volume("tiny-cats-data").join("cats/Siamese")).unwrap();
    assert!(test_dir.fails(&DIT).contains("data/cats: no class folders found in the volume"));
    fs::remove_dir_all(test_dir.volume("tiny-cats-data")).unwrap();
    assert!(
        test_dir
            .fails(&DIT)
            .contains("the volume tiny-cats-data does not exist; run modal volume create tiny-cats-data")
    );
    assert!(test_dir.take_calls().iter().all(not_a_run));
}

/// Writes `run.json` and `cloud.json` as the app writes them.
fn write_records(folder: &Path, status: &str, cloud: &str, step: u64) {
    let id = folder.file_name().unwrap().to_str().unwrap();
    let run = json!({"id": id, "task": "dit", "status": status, "begun": 1, "written": 2, "step": step,
        "steps": if step > 12 { 100_000 } else { 12 },
        "best": null, "error": null, "sample": null, "command": []});
    fs::write(folder.join("run.json"), run.to_string()).unwrap();
    let attempt =
        |outcome: &str| json!({"begun": 0.0, "ended": 1800.0, "gpu": "NVIDIA A10", "outcome": outcome});
    let cloud = json!({"provider": "modal", "app": "tiny-cats", "call": "c", "status": cloud, "gpu": "A10", "error": null,
        "attempts": [attempt("preempted"), attempt("finished")], "preemptions": 1, "seconds": 3600.0, "dollars": 1.42});
    fs::write(folder.join("cloud.json"), cloud.to_string()).unwrap();
}

#[test]
fn a_run_is_monitored_stopped_and_fetched_after_verification() {
    let test_dir = TestDir::new();
    trained::write_synthetic_images(test_dir.path());
    let more = ["--steps", "4", "--run-id", "mine", "--device", "cpu"];
    succeeds(CATS, test_dir.path(), &trained::dit_args("released", &more));
    let remote = test_dir.run("mine");
    for file in
        fs::read_dir(test_dir.path().join("runs/mine")).unwrap().flatten().filter(|f| f.path().is_file())
    {
        fs::copy(file.path(), remote.join(file.file_name())).unwrap();
    }
    fs::remove_dir_all(test_dir.path().join("runs")).unwrap();
    write_records(&remote, "running", "running", 5);
    write_records(&test_dir.run("other"), "running", "failed", 3);

    let output = test_dir.succeeds(&["status"]);
    let row = output.lines().find(|line| line.starts_with("mine ")).unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>(),
        ["mine", "running", "5/12", "A10", "2", "1", "1.00", "1.42"],
        "{output}"
    );
    let output = test_dir.succeeds(&["status", "mine"]);
    assert!(output.contains("modal, NVIDIA A10, 2 attempts, 1 preemption, 1.00 h, $1.42"), "{output}");
    assert!(output.contains("NVIDIA A10, 0.50 h, preempted"), "{output}");
    let output: Value = serde_json::from_str(&test_dir.succeeds(&["status", "--json"])).unwrap();
    assert_eq!((&output[0]["id"], &output[1]["cloud"]["status"]), (&"mine".into(), &"failed".into()));
    assert_eq!(
        test_dir.succeeds(&["logs", "mine"]),
        fs::read_to_string(remote.join("training.log")).unwrap()
    );
    for (arguments, expected) in [
        (["fetch", "mine"], "mine: expected a finished run, found running at step 5/12"),
        (["fetch", "mint"], "mint: there is no such run in the volume tiny-cats-outputs; did you mean mine?"),
        (["fetch", "../x"], "expected the name of a run"),
        (["stop", "mine"], "mine: no container works on this run; tiny-cats cloud status shows"),
        (["logs", "other"], "other: the run has no log yet"),
    ] {
        let error = test_dir.fails(&arguments);
        assert!(error.contains(expected), "{error}");
    }

    // Apps as Modal's client lists them: a stopped one, one of another run, and the run's own.
    let app = |id: &str, name: &str, state: &str| json!({"app_id": id, "description": name, "state": state, "tasks": "1"});
    let apps = json!([
        app("ap-1", "tiny-cats-mine", "stopped"),
        app("ap-2", "tiny-cats-mine2", "ephemeral"),
        app("ap-3", "tiny-cats-mine", "ephemeral (detached)"),
    ]);
    fs::write(test_dir.modal().join("apps"), apps.to_string()).unwrap();
    assert!(test_dir.succeeds(&["stop", "mine"]).contains("saved states are kept"));
    assert_eq!(fs::read_to_string(test_dir.modal().join("stopped")).unwrap(), "ap-3\n");
    assert!(test_dir.succeeds(&["logs", "mine", "--follow"]).contains("logs of ap-3"));

    write_records(&remote, "finished", "finished", 12);
    let output = test_dir.succeeds(&["fetch", "mine"]);
    assert!(output.contains("verified tinydit_final.pt\nverified tinydit_final.safetensors"), "{output}");
    let local = test_dir.path().join("runs/mine");
    for name in [
        "tinydit_final.pt",
        "tinydit_final.safetensors",
        "run.json",
        "cloud.json",
        "metrics.jsonl",
        "config.toml",
    ] {
        assert_eq!(fs::read(local.join(name)).unwrap(), fs::read(remote.join(name)).unwrap(), "{name}");
    }
    let files = |folder: &Path| fs::read_dir(folder).unwrap().count();
    assert!(!local.read_dir().unwrap().flatten().any(|f| f.file_name().to_string_lossy().contains("_step_")));
    assert_eq!(files(&test_dir.path().join("runs")), 1, "no other files remain");
    // `runs show` describes the fetched run and its cloud.
    let output = succeeds(CATS, test_dir.path(), &["runs", "show", "mine"]);
    assert!(output.contains("cloud     modal, NVIDIA A10, 2 attempts"), "{output}");

    // A damaged download does not replace the local files.
    let released = fs::read(remote.join("tinydit_final.safetensors")).unwrap();
    fs::write(remote.join("tinydit_final.safetensors"), &released[..released.len() / 2]).unwrap();
    assert!(test_dir.fails(&["fetch", "mine"]).contains("tinydit_final.safetensors: verification failed"));
    assert_eq!(fs::read(local.join("tinydit_final.safetensors")).unwrap(), released);
    fs::remove_file(remote.join("tinydit_final.safetensors")).unwrap();
    fs::remove_file(remote.join("tinydit_final.pt")).unwrap();
    assert!(test_dir.fails(&["fetch", "mine"]).contains("expected a released file"));
    assert_eq!(files(&test_dir.path().join("runs")), 1);
}

/// A budget covers a run with all its resumptions.
#[test]
fn earlier_cost_and_progress_count_against_the_budget() {
    let test_dir = TestDir::new();
    let arguments = [&DIT[..], &["--gpu", "A10", "--run-id", "mine"]].concat();
    let output = test_dir.succeeds(&[&arguments[..], &["--dry-run"]].concat());
    let expected: f64 = output.split('$').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let budget = format!("{}", expected * 0.8);
    let bounded = [&arguments[..], &["--max-cost", &budget]].concat();
    assert!(test_dir.fails(&bounded).contains("nothing was started"));
    // Half of the run is done, for less than half of its price.
    write_records(&test_dir.run("mine"), "stopped", "stopped", 50_000);
    let cloud = test_dir.run("mine").join("cloud.json");
    fs::write(&cloud, fs::read_to_string(&cloud).unwrap().replace("1.42", "0.001")).unwrap();
    test_dir.take_calls();
    test_dir.succeeds(&bounded);
    assert!(test_dir.take_run_call().contains(&"--run-id=mine".to_owned()));
    fs::write(&cloud, fs::read_to_string(&cloud).unwrap().replace("0.001", "1000.0")).unwrap();
    assert!(test_dir.fails(&bounded).contains("nothing was started"));
    // A finished run starts again only with more steps, and only these steps count as new cost.
    write_records(&test_dir.run("mine"), "finished", "finished", 100_000);
    assert!(
        test_dir
            .fails(&arguments)
            .contains("mine: the run is finished; download it with tiny-cats cloud fetch mine")
    );
    test_dir.take_calls();
    let longer = [&arguments[..], &["--steps", "150000", "--max-cost"]].concat();
    assert!(test_dir.fails(&[&longer[..], &["1.5"]].concat()).contains("nothing was started"));
    test_dir.succeeds(&[&longer[..], &[&format!("{:.2}", 1.42 + 1.2 * expected)]].concat());
    assert!(test_dir.take_run_call().contains(&"--steps=150000".to_owned()));
}

/// Two containers must not train the same run.
#[test]
fn a_run_with_an_active_app_is_not_started_again() {
    let test_dir = TestDir::new();
    let app = |name: &str| {
        json!([{"app_id": "ap-7", "description": name, "state": "ephemeral (detached)"}]).to_string()
    };
    let set_app = |name: &str| fs::write(test_dir.modal().join("apps"), app(name)).unwrap();
    set_app("tiny-cats-mine");
    let run = |id: &str| test_dir.fails(&[&DIT[..], &["--run-id", id]].concat());
    assert!(run("mine").contains("mine: the app ap-7 already works on this run"));
    // Run IDs that are not valid app names, or too long, get a hash.
    test_dir.succeeds(&[&DIT[..], &["--run-id", "lr=1e+4"]].concat());
    let started = test_dir.take_calls().pop().unwrap();
    let name = started.iter().find_map(|word| word.strip_prefix("--name=")).unwrap().to_owned();
    assert!(name.starts_with("tiny-cats-lr-1e-4-") && name.len() == 26, "{name}");
    set_app("tiny-cats-lr-1e-4");
    assert!(test_dir.fails(&["stop", "lr=1e+4"]).contains("no container works on this run"));
    set_app(&name);
    assert!(run("lr=1e+4").contains("already works on this run"));
    test_dir.succeeds(&["stop", "lr=1e+4"]);
    let long = "x".repeat(100);
    test_dir.succeeds(&[&DIT[..], &["--run-id", &long]].concat());
    let started = test_dir.take_calls().pop().unwrap();
    let name = started.iter().find_map(|word| word.strip_prefix("--name=")).unwrap();
    assert_eq!(name.len(), 64);
    set_app("tiny-cats-sweep-rates");
    test_dir.succeeds(&["stop", "sweeps/rates"]);
    assert!(test_dir.succeeds(&["logs", "sweeps/rates/a=1-2f", "--follow"]).contains("logs of ap-7"));
}

/// A timeout applies to one attempt, so that a long run needs several.
#[test]
fn the_number_of_retries_depends_on_the_timeout() {
    let test_dir = TestDir::new();
    let arguments = [&DIT[..], &["--gpu", "L4", "--steps", "3000000", "--dry-run"]].concat();
    let retries = |more: &[&str]| {
        let output = test_dir.succeeds(&[&arguments[..], more].concat());
        let words = output.split("--max-retries=").nth(1).unwrap();
        words.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let [full_day, half_day] = [retries(&[]), retries(&["--timeout", "12h"])];
    assert!(half_day > full_day, "{half_day} and {full_day}");
    assert!(test_dir.fails(&[&arguments[..], &["--timeout", "1h"]].concat()).contains("--timeout: "));
    let too_few = [&arguments[..], &["--timeout", "43200", "--max-retries", "0"]].concat();
    let line = test_dir.fails(&too_few);
    assert!(line.contains("--max-retries: ") && line.contains("attempts of 12h, found 1"), "{line}");
}

#[test]
fn an_unreadable_run_does_not_hide_the_others() {
    let test_dir = TestDir::new();
    write_records(&test_dir.run("a"), "finished", "finished", 12);
    fs::write(test_dir.run("b").join("run.json"), "{").unwrap();
    fs::write(test_dir.run("c").join("dit_step_00000001.safetensors"), "").unwrap();
    write_records(&test_dir.run("d"), "running", "running", 3);
    let cloud = test_dir.run("d").join("cloud.json");
    let text = fs::read_to_string(&cloud).unwrap();
    fs::write(&cloud, text.replace("\"provider\"", "\"heartbeat\": 1000.0, \"provider\"")).unwrap();
    let output: Value = serde_json::from_str(&test_dir.succeeds(&["status", "--json"])).unwrap();
    let statuses: Vec<&str> =
        output.as_array().unwrap().iter().map(|run| run["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["finished", "unreadable", "unreadable", "lost"]);
    let output = test_dir.succeeds(&["status"]);
    assert_eq!(output.lines().count(), 5, "{output}");
    // A run of a sweep is listed like any other run. A local run of the same name is not overwritten.
    let job = test_dir.run("sweeps/rates/lr=1-2f/lr=1-2f");
    write_records(&job, "finished", "finished", 12);
    assert!(test_dir.succeeds(&["status", "sweeps/rates/lr=1-2f"]).contains("finished"));
    let local = test_dir.path().join("runs/lr=1-2f");
    fs::create_dir_all(&local).unwrap();
    let record = fs::read_to_string(job.join("run.json")).unwrap();
    fs::write(local.join("run.json"), record.replace("\"begun\":1", "\"begun\":7")).unwrap();
    assert!(test_dir.fails(&["fetch", "sweeps/rates/lr=1-2f"]).contains("this folder contains another run"));
}

#[test]
fn a_sweep_is_validated_and_priced_as_a_whole() {
    let test_dir = TestDir::new();
    let file = "task = \"dit\"\ndata = \"data/cats\"\nconfig = \"a10\"\n[fixed]\nsteps = 1000\n[sweep]\nlr = [1e-4, 3e-4, 1e-3]\n";
    fs::write(test_dir.path().join("rates.toml"), file).unwrap();
    let arguments = ["sweep", "rates.toml", "--parallel", "2", "--gpu", "A10", "--max-cost", "20"];
    let output = test_dir.succeeds(&arguments);
    assert!(output.contains("sweep rates: 3 jobs, 2 in parallel, on A10"), "{output}");
    let call = test_dir.take_run_call();
    assert!(
        call.join(" ").starts_with("run --name=tiny-cats-sweep-rates ")
            && call.join(" ").contains("sweep rates.toml --parallel=2 --gpu=A10 "),
        "{call:?}"
    );
    fs::write(test_dir.path().join("bad.toml"), file.replace("1e-3]", "-1]")).unwrap();
    fs::write(test_dir.path().join("else.toml"), file.replace("data/cats", "cats")).unwrap();
    for (arguments, expected) in [
        (&["sweep", "rates.toml", "--parallel", "0"][..], "--parallel: expected at least 1"),
        (&["sweep", "rates.toml", "--max-cost", "0.02"], "exceeds $0.02; nothing was started"),
        (&["sweep", "rates.toml", "--max-retries", "11"], "--max-retries: expected 0 to 10"),
        (&["sweep", "rates.toml", "--gpu", "A9"], "--gpu A9: unknown GPU"),
        (&["sweep", "bad.toml"], "bad.toml"),
        (&["sweep", "else.toml"], "expected data/NAME"),
        (&["sweep", "absent.toml"], "absent.toml"),
        (&["sweep", "../rates.toml"], "expected a path below the working directory"),
        (&["sweep", "/rates.toml"], "expected a path below the working directory"),
    ] {
        let error = test_dir.fails(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    assert!(test_dir.take_calls().is_empty());
    let words: Vec<&str> =
        call.iter().map(String::as_str).skip_while(|word| !word.ends_with("app.py")).skip(1).collect();
    let script =
        "import json, options, sys; print(json.dumps(options.build_request(options.parse(sys.argv[1:]))))";
    let mut python = Command::new("python3");
    let python = python
        .args(["-c", script])
        .args(&words)
        .env("PYTHONPATH", APP)
        .current_dir(test_dir.path())
        .output()
        .unwrap();
    let request: Value =
        serde_json::from_slice(&python.stdout).unwrap_or_else(|_| panic!("{}", text(&python)));
    // Each job gets a share of the budget, by its expected cost.
    let shares = call.iter().find_map(|word| word.strip_prefix("--shares=")).unwrap();
    let shares: serde_json::Map<String, Value> = serde_json::from_str(shares).unwrap();
    let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
    assert!(shares.len() == 3 && sum <= 20.0 && sum > 19.99, "{shares:?}");
    assert_eq!((&request["parallel"], &request["train"]["files"]["rates.toml"]), (&2.into(), &file.into()));

    // `--results` reads the state that the app saved in the volume.
    assert!(test_dir.fails(&["sweep", "rates.toml", "--results"]).contains("no job of this sweep has ended"));
    let remote = test_dir.volume("tiny-cats-outputs").join("runs/sweeps/rates");
    fs::create_dir_all(&remote).unwrap();
    let sweep = Sweep::load(&test_dir.path().join("rates.toml")).unwrap();
    let mut state = SweepState::new(&sweep, &sweep.jobs().unwrap());
    for (i, job) in state.jobs.iter_mut().enumerate().take(2) {
        job.status = JobStatus::Finished;
        job.metric = Some(Point { step: 1000, value: 0.5 - 0.1 * i as f64 });
    }
    (state.jobs[2].status, state.jobs[2].error) = (JobStatus::Failed, Some("no memory".into()));
    state.save(&remote).unwrap();
    let output = test_dir.succeeds(&["sweep", "rates.toml", "--results"]);
    assert!(output.lines().nth(1).unwrap().trim().starts_with("0.0003           0.4000"), "{output}");
    assert!(output.contains("no memory") && output.ends_with("runs/sweeps/rates\n"), "{output}");
    let output: Value =
        serde_json::from_str(&test_dir.succeeds(&["sweep", "rates.toml", "--results", "--json"])).unwrap();
    assert_eq!(output["jobs"][0]["metric"]["value"], 0.4);
}
