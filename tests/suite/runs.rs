//! `tiny-cats runs` over valid, incomplete, damaged and hostile folders of runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::{CATS, fails, run, succeeds, text};
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny_cats::train::folder::{BestScore, Lock, RunRecord, Status};

/// Creates a run in `root` as training writes it, with `lines` as its metrics. Returns its folder.
fn create_run(root: &Path, status: Status, lines: &[Value]) -> PathBuf {
    let count = fs::read_dir(root).map_or(0, |entries| entries.count());
    let folder = root.join(format!("20261123-22450{count}-dit-{:04x}", 7919 * (count + 1)));
    fs::create_dir_all(&folder).unwrap();
    let mut record = RunRecord::new(id(&folder), "dit");
    (record.status, record.step, record.steps) = (status, 40, 200);
    record.started += count as u64;
    record.save(&folder).unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(folder.join("metrics.jsonl"), lines).unwrap();
    fs::write(folder.join("config.toml"), "[dit]\nbatch-size = 64\n").unwrap();
    folder
}

fn id(folder: &Path) -> String {
    folder.file_name().unwrap().to_str().unwrap().to_owned()
}

fn list_json(dir: &Path) -> Vec<Value> {
    let output = run(CATS, dir, &["runs", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap()
}

#[test]
fn runs_are_listed_with_their_status_newest_last() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("runs");
    fs::create_dir_all(root.join("sweeps/s")).unwrap();
    assert!(succeeds(CATS, dir.path(), &["runs"]).contains("no runs found"));
    let loss = |step: u64| json!({"step": step, "loss": 1.0 / step as f64, "mean_loss": 0.25, "lr": 1e-4});
    let single_step = [json!({"step": 10, "loss": 0.125})];
    let lines = [loss(10), loss(20), json!({"step": 20, "validation_loss": 0.5})];
    let finished = create_run(&root, Status::Finished, &lines);
    let killed = create_run(&root, Status::Running, &single_step);
    let running = create_run(&root, Status::Running, &[]);
    let stopped = create_run(&root, Status::Stopped, &lines);
    let failed = create_run(&root, Status::Failed, &lines);
    let _lock = Lock::acquire(&running).unwrap().unwrap();
    drop(Lock::acquire(&killed).unwrap().unwrap());
    let mut record = RunRecord::load(&finished).unwrap();
    record.best = Some(BestScore { step: 20, name: "validation_loss".into(), value: 0.5, average: 0 });
    record.sample = Some("samples/step_00000020.png".into());
    record.save(&finished).unwrap();

    let all = list_json(dir.path());
    let status = |folder: &Path| all.iter().find(|run| run["id"] == id(folder)).unwrap()["status"].clone();
    let order: Vec<_> = all.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(order, [&finished, &killed, &running, &stopped, &failed].map(|folder| id(folder)));
    for (folder, word) in [
        (&finished, "finished"),
        (&killed, "killed"),
        (&running, "running"),
        (&stopped, "stopped"),
        (&failed, "failed"),
    ] {
        assert_eq!(status(folder), word);
    }
    assert_eq!(all[0]["loss"], json!({"step": 20, "value": 0.05}));
    assert_eq!(all[0]["mean_loss"], json!({"step": 20, "value": 0.25}));
    assert_eq!(all[1]["mean_loss"], Value::Null);
    assert_eq!((&all[0]["step"], &all[0]["steps"], &all[2]["loss"]), (&json!(40), &json!(200), &Value::Null));
    let output = succeeds(CATS, dir.path(), &["runs"]);
    let line = output.lines().find(|line| line.starts_with(&id(&finished))).unwrap();
    for part in
        ["dit", "finished", "40/200", "validation_loss 0.5000 at 20", "0.2500", "samples/step_00000020.png"]
    {
        assert!(line.contains(part), "{part}: {output}");
    }
    assert_eq!(output.lines().count(), 6, "{output}");
    assert!(
        output.lines().next().unwrap().contains("mean loss") && output.contains("0.1250 (last step)"),
        "{output}"
    );
    let shown = succeeds(CATS, dir.path(), &["runs", "show", &id(&finished)]);
    assert!(shown.contains("mean loss 0.2500 at 20\nloss      0.0500 at 20\n"), "{shown}");
    // Listing runs does not create files in them.
    assert!(!failed.join("lock").exists());
}

#[test]
fn a_run_is_shown_by_its_id_or_a_unique_part_of_it() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("runs");
    let mut lines: Vec<Value> =
        (1..=50).map(|i| json!({"step": 10 * i, "loss": 1.0 / f64::from(i), "lr": 1e-4})).collect();
    lines.push(json!({"step": 250, "validation_accuracy": 0.5, "validation_loss": 0.4}));
    lines.push(json!({"step": 500, "validation_accuracy": 0.25, "validation_loss": 0.2}));
    let first = create_run(&root, Status::Finished, &lines);
    let second = create_run(&root, Status::Stopped, &[]);
    let copy = root.join("alone");
    fs::create_dir(&copy).unwrap();
    fs::copy(first.join("run.json"), copy.join("run.json")).unwrap();

    let show = |args: &[&str]| succeeds(CATS, dir.path(), &[&["runs", "show"], args].concat());
    let output = show(&[&id(&first)]);
    for part in [
        "status    finished",
        "batch-size = 64",
        "validation_accuracy  0.5000   250  0.2500",
        "step 500",
        "┤⢹",
        "o ",
    ] {
        assert!(output.contains(part), "{part}: {output}");
    }
    assert!(!output.contains('\x1b') && output.lines().all(|line| line.chars().count() <= 200), "{output}");
    let shown: Value = serde_json::from_str(&show(&["--json", &id(&first)])).unwrap();
    assert_eq!(shown["config"]["dit"]["batch-size"], 64);
    let score = &shown["evaluations"][0];
    assert_eq!((&score["name"], &score["best"]["step"]), (&json!("validation_accuracy"), &json!(250)));
    assert_eq!(shown["evaluations"][1]["best"], json!({"step": 500, "value": 0.2}));

    // `latest` is a link, or a file where links are unsupported. If it is missing or points elsewhere, the newest run is shown.
    let latest = root.join("latest");
    for (target, expected) in [(id(&first), &first), (String::new(), &second), ("../../etc".into(), &second)]
    {
        fs::write(&latest, &target).unwrap();
        assert!(show(&["latest"]).contains(&id(expected)), "{target}");
        #[cfg(unix)]
        if !target.is_empty() {
            fs::remove_file(&latest).unwrap();
            std::os::unix::fs::symlink(&target, &latest).unwrap();
            assert!(show(&[]).contains(&id(expected)), "{target}");
            fs::remove_file(&latest).unwrap();
        }
    }
    assert!(show(&[]).contains("no loss has been logged"));
    assert!(show(&["al"]).contains("alone"));
    let tail = &id(&first)[id(&first).len() - 8..];
    assert!(show(&[tail]).contains(&id(&first)));
    let ambiguous = fails(CATS, dir.path(), &["runs", "show", "20"]);
    assert!(ambiguous.contains("several runs"), "{ambiguous}");
    let missing = fails(CATS, dir.path(), &["runs", "show", "alnoe"]);
    assert!(missing.contains("did you mean alone?"), "{missing}");
    assert!(fails(CATS, dir.path(), &["runs", "show", ""]).contains("no run"));
    assert!(
        fails(CATS, dir.path(), &["runs", "show", "--runs-dir", "nowhere"])
            .contains("nowhere: no runs found")
    );
    // A missing folder of runs is an empty list, not an error.
    assert_eq!(succeeds(CATS, dir.path(), &["runs", "--runs-dir", "nowhere"]), "nowhere: no runs found\n");
    assert_eq!(succeeds(CATS, dir.path(), &["runs", "--runs-dir", "nowhere", "--json"]).trim(), "[]");
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(fails(CATS, dir.path(), &["runs", "--runs-dir", "file"]).contains("--runs-dir file"));
}

/// Anyone may have written the files in a folder of runs.
#[test]
fn unreadable_runs_take_one_line_and_the_others_are_listed() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("runs");
    let valid = create_run(&root, Status::Finished, &[json!({"step": 1, "loss": 2.0})]);
    let record = fs::read(valid.join("run.json")).unwrap();
    let broken = |name: &str, text: &[u8]| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("run.json"), text).unwrap();
    };
    fs::create_dir(root.join("empty")).unwrap();
    for len in [0, 1, 2, record.len() / 2, record.len() - 3] {
        broken(&format!("cut-{len}"), &record[..len]);
    }
    broken("deep", "[".repeat(500_000).as_bytes());
    broken("long", &vec![b' '; 2 << 20]);
    broken("bytes", &[0xff; 100]);
    fs::create_dir_all(root.join("folder/run.json")).unwrap();
    fs::write(root.join("file"), "no folder").unwrap();
    let mut lines = 10;
    #[cfg(unix)]
    {
        // Endless if read to the end, and a link to itself.
        for (name, target) in [("endless", "/dev/zero"), ("loop", "run.json")] {
            fs::create_dir(root.join(name)).unwrap();
            std::os::unix::fs::symlink(target, root.join(name).join("run.json")).unwrap();
        }
        lines += 2;
        broken("pipe", &record);
        for name in ["metrics.jsonl", "config.toml", "lock"] {
            assert!(Command::new("mkfifo").arg(root.join("pipe").join(name)).status().unwrap().success());
        }
    }
    broken("escape\u{1b}[31m", b"{}");
    // Records with values that no run has.
    let edited = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&record).unwrap();
        change(&mut value);
        broken(name, &serde_json::to_vec(&value).unwrap());
    };
    edited("time", &|value| value["begun"] = json!(u64::MAX));
    edited("steps", &|value| (value["step"], value["steps"]) = (json!(u64::MAX), json!(0)));
    edited("words", &|value| {
        value["task"] = json!("x\u{1b}]0;y\u{7}\n".repeat(1000));
        value["error"] = value["task"].clone();
        value["sample"] = json!("/etc/passwd\n");
        value["best"] = json!({"step": 1, "name": "a\nb", "value": 1e308, "average": 0});
    });
    let metrics =
        "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"a\\u001b[2J\":5}\n{\"st";
    for name in ["time", "steps", "words"] {
        fs::write(root.join(name).join("metrics.jsonl"), metrics).unwrap();
        fs::write(root.join(name).join("config.toml"), "\u{1b}[2J = [[[\n").unwrap();
    }

    let output = succeeds(CATS, dir.path(), &["runs"]);
    assert!(!output.contains('\x1b') && !output.contains('\u{7}'), "{output:?}");
    assert_eq!(output.lines().filter(|line| line.contains("broken: ")).count(), lines + 1, "{output}");
    assert!(output.lines().last().unwrap().starts_with("time"), "{output}");
    let all = list_json(dir.path());
    assert_eq!(all.len(), output.lines().count() - 1);
    assert!(!all.iter().any(|run| run["id"] == "file"));
    for run in &all {
        let id = run["id"].as_str().unwrap();
        if run["status"] == "broken" {
            assert!(fails(CATS, dir.path(), &["runs", "show", id]).contains("run.json"), "{id}");
        } else {
            let output = succeeds(CATS, dir.path(), &["runs", "show", id]);
            assert!(!output.contains('\x1b') && !output.contains('\u{7}'), "{output:?}");
            succeeds(CATS, dir.path(), &["runs", "show", id, "--json"]);
        }
    }
}

/// 100,000 steps; the time grows linearly with their number.
#[test]
fn long_runs_and_sparse_files_are_shown() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("runs");
    let folder = create_run(&root, Status::Finished, &[]);
    let line =
        |step: u64| format!("{{\"step\":{step},\"loss\":{},\"lr\":0.0001}}\n", 1.0 / (step as f64).sqrt());
    fs::write(folder.join("metrics.jsonl"), (1..=100_000).map(line).collect::<String>()).unwrap();
    let output = succeeds(CATS, dir.path(), &["runs", "show"]);
    assert!(output.contains("step 100000") && output.contains('⢹'), "{output}");
    // A hole of 4 TiB, then one line.
    let sparse = create_run(&root, Status::Finished, &[]);
    let file = fs::File::options().write(true).open(sparse.join("metrics.jsonl")).unwrap();
    if file.set_len(1 << 42).is_ok() {
        let mut file = fs::File::options().append(true).open(sparse.join("metrics.jsonl")).unwrap();
        std::io::Write::write_all(&mut file, b"\n{\"step\":5,\"loss\":0.5}\n").unwrap();
        assert!(succeeds(CATS, dir.path(), &["runs"]).contains("0.5000"));
        let output = succeeds(CATS, dir.path(), &["runs", "show", &id(&sparse)]);
        assert!(output.contains("skipped the first 4194048 MiB") && output.contains("step 5"), "{output}");
    }
}

#[test]
fn a_closed_pipe_does_not_panic() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("runs");
    for _ in 0..3 {
        create_run(&root, Status::Finished, &[json!({"step": 1, "loss": 2.0})]);
    }
    for args in [&["runs"][..], &["runs", "--json"], &["runs", "show"]] {
        let mut child = Command::new(CATS);
        child.args(args).current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let message = text(&output);
        assert!(output.status.code().is_some() && !message.contains("internal error"), "{message}");
        assert!(message.lines().count() <= 1, "{message}");
    }
}
