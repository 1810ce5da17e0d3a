//! End-to-end tests of `tiny-cats eval gate`.

use std::{fs, path::Path, sync::LazyLock};

use crate::common::{CATS, fails, run, succeeds};
use serde_json::Value;
use tempfile::TempDir;
use tiny_cats::{
    checkpoint,
    data::{Dataset, Split},
};
use tiny_cats_export::{ModelMeta, image_sizes, onnx::DEFAULT_OPSET, to_onnx};
use tiny_cats_models::{Head, Network as _, ResNetConfig, Sizes, TinyDitConfig, init};

/// A folder with synthetic images in `synth` and untrained networks: `classifier.onnx`, `generator.onnx`, and
/// `other_classes.onnx`, a classifier of other classes.
static WORK: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    let path = dir.path();
    succeeds(CATS, path, &["data", "synth", "synth", "--per-class", "10", "--size", "24"]);
    let classes = Dataset::open(path.join("synth")).unwrap().classes;
    let config =
        ResNetConfig { depth: 18, width: 4, classes: classes.len(), head: Head::Plain, batch_norm: true };
    let mut weights = init(&config.specs().unwrap(), 3);
    // Large enough for different predictions.
    weights.get_mut("fc.weight").unwrap().data_mut().iter_mut().for_each(|w| *w *= 400.0);
    let others: Vec<String> = (0..classes.len()).map(|i| format!("Lion_{i}")).collect();
    for (name, classes) in [("classifier.onnx", &classes), ("other_classes.onnx", &others)] {
        let meta = ModelMeta::for_network(config.clone(), image_sizes(32), classes.clone()).unwrap();
        fs::write(path.join(name), to_onnx(&meta, &weights, DEFAULT_OPSET).unwrap()).unwrap();
    }
    let config = TinyDitConfig::named("nano", 16, classes.len()).unwrap();
    let weights = init(&config.specs().unwrap(), 5);
    let mut meta = ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap();
    fs::write(path.join("generator.onnx"), to_onnx(&meta, &weights, DEFAULT_OPSET).unwrap()).unwrap();
    checkpoint::write_safetensors(&path.join("generator.safetensors"), &weights, &meta).unwrap();
    meta.classes[0] = "Lion".into();
    checkpoint::write_safetensors(&path.join("lion.safetensors"), &weights, &meta).unwrap();
    dir
});

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Runs the gate on the untrained generator, which must fail. Returns its standard output and standard error.
#[track_caller]
fn failing_gate(more: &[&str]) -> [String; 2] {
    let fixed = ["eval", "gate", "synth", "--classifier", "classifier.onnx", "--count", "2", "--steps", "1"];
    let output = run(CATS, WORK.path(), &[&fixed, more].concat());
    let streams = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(1), "{streams:?}");
    streams
}

#[test]
fn an_untrained_generator_fails_with_one_line_per_criterion_and_a_report() {
    let dir = WORK.path();
    let args = ["--model", "generator.onnx", "--seed", "7", "--output", "g.json", "--sheet", "g.png"];
    let [output, errors] = failing_gate(&args);
    let report = read(&dir.join("g.json"));
    let criteria = report["criteria"].as_array().unwrap();
    let names: Vec<&str> = criteria.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["compression", "breed as asked", "kernel distance", "nearest training picture", "runtimes"]
    );
    // Its images are uniform and smooth: near to every training image, but unlike real ones. The runtimes agree.
    for (i, passed) in [(0, true), (2, false), (3, false), (4, true)] {
        assert_eq!(criteria[i]["passed"], passed, "{output}");
    }
    assert_eq!(report["passed"], false);
    for criterion in criteria {
        let (name, passed) = (criterion["name"].as_str().unwrap(), criterion["passed"] == true);
        let count_lines =
            |text: &str, prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        let word = if passed { "passed" } else { "FAILED" };
        assert_eq!(count_lines(&output, &format!("{word}  {name}: ")), 1, "{output}");
        assert_eq!(count_lines(&errors, &format!("error: {name}: ")), usize::from(!passed), "{errors}");
        if let Some(value) = criterion["value"].as_f64().filter(|_| name != "runtimes") {
            let bound = criterion["bound"].as_f64().unwrap();
            let is_met = if criterion["expected"] == "less" { value < bound } else { value >= bound };
            assert_eq!(is_met, passed, "{criterion}");
        }
    }
    let number = |path: &str| report.pointer(path).unwrap_or(&Value::Null).as_f64().unwrap_or(f64::NAN);
    let data = Dataset::open(dir.join("synth")).unwrap();
    let (training, held_out) =
        (data.part(Split::Train).files.len(), data.parts(&[Split::Validation, Split::Test]).files.len());
    assert_eq!(number("/criteria/1/detail/held_out/pictures"), held_out as f64);
    assert_eq!(number("/criteria/1/detail/drawn/pictures"), 2.0 * data.classes.len() as f64);
    assert_eq!(number("/criteria/3/detail/training"), training as f64);
    assert_eq!(number("/criteria/2/detail/sigma"), 2.0);
    assert_eq!(number("/criteria/2/detail/blurred/distance"), number("/criteria/2/bound"));
    assert!(number("/criteria/3/detail/drawn/percentile_5") <= number("/criteria/3/value"));
    assert!(number("/criteria/4/detail/runtimes/0/trajectory_psnr") > 50.0);
    assert_eq!((&report["seed"], &report["count"], &report["steps"]), (&7.into(), &2.into(), &1.into()));
    assert_eq!(report["model"]["file"], "generator.onnx");
    let text = fs::read_to_string(dir.join("g.json")).unwrap();
    assert!(!text.contains(&dir.display().to_string()), "{text}");

    // The grid equals that of `generate`. The numbers are equal for a checkpoint with another batch size.
    let n = (2 * data.classes.len()).to_string();
    let args =
        ["generate", "--model", "generator.onnx", "-n", &n, "--steps", "1", "--seed", "7", "-o", "same.png"];
    succeeds(CATS, dir, &args);
    let open = |name: &str| image::open(dir.join(name)).unwrap();
    assert!(open("g.png") == open("same.png"));
    failing_gate(&["--model", "generator.safetensors", "--seed", "7", "--output", "h.json", "--batch", "5"]);
    let repeated = read(&dir.join("h.json"));
    for i in [0, 1, 3] {
        assert_eq!(repeated["criteria"][i], report["criteria"][i]);
    }
}

#[test]
fn invalid_arguments_and_models_give_one_line_errors() {
    let dir = WORK.path();
    let missing = Path::new("none").join("g.json");
    let mut failures = Vec::new();
    for (args, expected) in [
        (&["synth", "--count", "0"][..], "error: --count: expected 1 to 1000, found 0"),
        (&["synth", "--output", "g.txt"], "error: --output g.txt: expected a name that ends in .json"),
        (&["synth", "--output", missing.to_str().unwrap()], "error: --output none"),
        (&["synth", "--sheet", "g.jpg"], "error: --sheet g.jpg: expected a name that ends in .png"),
        (&["synth", "--model", "classifier.onnx"], "error: classifier.onnx: task: expected a generator"),
        (&["synth", "--model", "generator.onnx", "--steps", "0"], "error: steps: expected 1 to"),
        (&["synth", "--classifier", "generator.onnx"], "error: generator.onnx: task: expected a classifier"),
        (&["synth", "--judge", "missing.onnx"], "error: missing.onnx: No such file"),
        (
            &["synth", "--model", "generator.onnx", "--judge", "other_classes.onnx"],
            "error: other_classes.onnx: this classifier has no class",
        ),
        (
            &["synth", "--model", "lion.safetensors"],
            "error: synth: the generator has no class \"Abyssinian\"",
        ),
        (&["missing"], "error: missing: No such file"),
    ] {
        let error = fails(CATS, dir, &[&["eval", "gate"], args].concat());
        if !error.starts_with(expected) {
            failures.push(format!("{args:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
