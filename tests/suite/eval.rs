//! End-to-end tests of `tiny-cats eval`.

use std::{fs, path::Path, sync::LazyLock};

use crate::common::{CATS, fails, run, succeeds};
use serde_json::Value;
use tempfile::TempDir;
use tiny_cats::{
    checkpoint,
    data::{Cache, Dataset, Images, Split, View},
    evaluate::{Features, frechet_distance, split_randomly},
};
use tiny_cats_export::{
    ModelMeta, image_sizes,
    onnx::{DEFAULT_OPSET, OnnxGraph},
    to_onnx, to_rgb,
};
use tiny_cats_models::{
    Array, Head, Init, Network as _, ResNetConfig, Scope, Sizes, Tensor, TinyDitConfig, Weights, init,
};

/// A folder with synthetic images in `synth` and untrained networks: the classifier `classifier` (as .onnx, .safetensors and .pt), the
/// generator `generator.safetensors`, and `pixels.onnx`, which returns its input.
static FIXTURE: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    let path = dir.path();
    succeeds(CATS, path, &["data", "synth", "synth", "--per-class", "6", "--size", "24"]);
    let classes = Dataset::open(path.join("synth")).unwrap().classes;
    let config =
        ResNetConfig { depth: 18, width: 4, classes: classes.len(), head: Head::Plain, batch_norm: true };
    let mut weights = init(&config.specs().unwrap(), 3);
    // Large enough for different predictions, some with high confidence.
    weights.get_mut("fc.weight").unwrap().data_mut().iter_mut().for_each(|w| *w *= 400.0);
    let meta = ModelMeta::for_network(config.clone(), image_sizes(32), classes.clone()).unwrap();
    checkpoint::write_safetensors(&path.join("classifier.safetensors"), &weights, &meta).unwrap();
    checkpoint::write_torch(&path.join("classifier.pt"), &weights, &meta).unwrap();
    fs::write(path.join("classifier.onnx"), to_onnx(&meta, &weights, DEFAULT_OPSET).unwrap()).unwrap();
    let config = TinyDitConfig::named("nano", 16, classes.len()).unwrap();
    let weights = init(&config.specs().unwrap(), 5);
    let meta = ModelMeta::for_network(config.clone(), Sizes::new(), classes).unwrap();
    checkpoint::write_safetensors(&path.join("generator.safetensors"), &weights, &meta).unwrap();
    fs::write(path.join("pixels.onnx"), graph(&[3, 8, 8], |x| x.reshape(&[192]).unwrap())).unwrap();
    dir
});

/// An ONNX file without metadata.
fn graph<V>(dims: &[usize], build: impl FnOnce(tiny_cats_export::onnx::Value) -> V) -> Vec<u8>
where
    V: std::borrow::Borrow<tiny_cats_export::onnx::Value>,
{
    let graph = OnnxGraph::new(DEFAULT_OPSET).unwrap();
    let output = build(graph.floats("image", dims).unwrap());
    graph.finish(&[("output", output.borrow())], &[]).unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn eval(args: &[&str]) -> String {
    succeeds(CATS, FIXTURE.path(), &[&["eval"], args].concat())
}

#[test]
fn classifier_metrics_match_single_predictions() {
    let dir = FIXTURE.path();
    let data = Dataset::open(dir.join("synth")).unwrap();
    let paths: Vec<String> = data.files.iter().map(|f| format!("synth/{}", f.path.display())).collect();
    let mut args = vec!["classify", "--model", "classifier.onnx", "--json", "--top-k", "13"];
    args.extend(paths.iter().map(String::as_str));
    let items: Value = serde_json::from_slice(&run(CATS, dir, &args).stdout).unwrap();
    let (mut top1, mut top3, mut likelihood) = (0, 0, 0.0);
    let mut bins = [[0.0; 2]; 15];
    for (item, file) in items.as_array().unwrap().iter().zip(&data.files) {
        let truth = data.classes[file.label as usize].as_str();
        let top = item["top"].as_array().unwrap();
        let probability = |i: usize| top[i]["probability"].as_f64().unwrap();
        let rank = top.iter().position(|c| c["class"] == truth).unwrap();
        top1 += u32::from(rank == 0);
        top3 += u32::from(rank < 3);
        likelihood -= probability(rank).ln();
        let bin = (15.0 * probability(0)).ceil() as usize - 1;
        bins[bin][0] += probability(0);
        bins[bin][1] += f64::from(u8::from(rank == 0));
    }
    let n = data.files.len() as f64;
    let gap = bins.iter().map(|[confidence, correct]| (confidence - correct).abs()).sum::<f64>() / n;
    let mut reports = Vec::new();
    for (model, batch) in [("classifier.onnx", "16"), ("classifier.safetensors", "5"), ("classifier.pt", "1")]
    {
        let more = ["--split", "all", "--json", "c.json", "--confusion", "c.png", "--batch", batch];
        let output = eval(&[&["classifier", "synth", "--model", model], &more[..]].concat());
        let report = read(&dir.join("c.json"));
        let results = &report["results"];
        assert_eq!(results["top1"]["correct"], top1, "{output}");
        assert_eq!(results["top3"]["correct"], top3);
        let assert_close = |field: &str, expected: f64| {
            let found = results[field].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-4, "{model}: {field} {found}, expected {expected}");
        };
        assert_close("negative_log_likelihood", likelihood / n);
        assert_close("expected_calibration_error", gap);
        assert!(
            output.contains(&format!("({top1} of 78;")) && output.contains("expected calibration error"),
            "{output}"
        );
        assert_eq!(report["model"]["file"], model);
        assert_eq!(report["data"]["fingerprint"], data.fingerprint);
        assert!(image::open(dir.join("c.png")).unwrap().width() > 13 * 44);
        reports.push(results.clone());
    }
    assert!(top1 > 0 && f64::from(top1) < n && gap > 0.01, "{top1} {gap}");
    assert!(reports.iter().all(|r| r["confusion"] == reports[0]["confusion"]));
}

#[test]
fn a_split_is_evaluated_alone_and_invalid_images_are_reported() {
    let dir = TempDir::new_in(FIXTURE.path()).unwrap();
    succeeds(CATS, dir.path(), &["data", "synth", "cats", "--per-class", "8", "--size", "24"]);
    let data = Dataset::open(dir.path().join("cats")).unwrap();
    let test = data.part(Split::Test);
    // The damage is after the header, so that only decoding finds it.
    let damaged_file = dir.path().join("cats").join(&test.files[0].path);
    let mut bytes = fs::read(&damaged_file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 40].fill(0);
    fs::write(&damaged_file, bytes).unwrap();
    fs::write(dir.path().join("cats/Bengal/note.txt"), "not an image").unwrap();
    let args = ["eval", "classifier", "cats", "--model", "../classifier.onnx", "--json", "c.json"];
    let output = succeeds(CATS, dir.path(), &args);
    let report = read(&dir.path().join("c.json"));
    assert_eq!(report["results"]["pictures"], test.files.len() - 1);
    assert_eq!(report["data"]["skipped"].as_array().unwrap().len(), 1);
    for name in [test.files[0].path.to_str().unwrap(), "Bengal/note.txt"] {
        assert!(output.contains(&format!("skipped {name}: ")), "{output}");
    }
    let limited = [&args[..], &["--limit-files", "5", "--split", "train"]].concat();
    succeeds(CATS, dir.path(), &limited);
    assert_eq!(read(&dir.path().join("c.json"))["results"]["pictures"], 5);
}

/// Arguments of all evaluations of the generator.
const DIT: [&str; 8] =
    ["dit", "synth", "--classifier", "classifier.onnx", "--runtime", "candle", "--bootstrap", "20"];

#[test]
fn classes_are_generated_in_proportion_and_evaluation_is_deterministic() {
    let dir = FIXTURE.path();
    let generation =
        ["--model", "generator.safetensors", "--samples", "20", "--steps", "1", "--cfg", "1", "--seed", "7"];
    let mut reports = Vec::new();
    for batch in ["16", "16", "7"] {
        let more = [
            "--features",
            "classifier.safetensors",
            "--json",
            "d.json",
            "--sheet",
            "d.png",
            "--batch",
            batch,
        ];
        let output = eval(&[&DIT[..], &generation, &more].concat());
        assert!(
            output.contains("warning: Fréchet distance: 20 images are too few for 32 features"),
            "{output}"
        );
        reports.push(fs::read_to_string(dir.join("d.json")).unwrap());
    }
    assert!(reports[0] == reports[1]);
    let [report, other]: [Value; 2] = [0, 2].map(|i| serde_json::from_str(&reports[i]).unwrap());
    let frechet = |report: &Value| report["results"]["frechet"].as_f64().unwrap();
    assert!((frechet(&report) / frechet(&other) - 1.0).abs() < 1e-5);
    let counts: Vec<u64> =
        report["drawn"]["of_each_class"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(counts, [2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
    assert_eq!(report["breed_as_asked"]["drawn"]["pictures"], 20);
    assert_eq!(report["results"]["real"], 78);
    assert_eq!(report["results"]["features"], 32);
    let number = |path: &str| report.pointer(path).unwrap_or(&Value::Null).as_f64().unwrap_or(f64::NAN);
    // The untrained generator generates nothing like a cat.
    assert!(number("/results/frechet") > 2.0 * number("/real_halves/frechet"));
    assert!(number("/results/frechet_interval/low") < number("/results/frechet"));
    assert!(number("/results/kernel/interval/low") > 0.0);
    assert!(number("/results/density_coverage/coverage") < 0.5);
    // Its images are uniformly gray: close to many training images, but copies of none.
    assert_eq!(number("/nearest_training_picture/pixels/copied"), 0.0);
    assert!(image::open(dir.join("d.png")).is_ok());
    for hash in
        ["/drawn/model/sha256", "/features/sha256", "/data/fingerprint", "/breed_as_asked/classifier/sha256"]
    {
        assert_eq!(report.pointer(hash).and_then(Value::as_str).map(str::len), Some(64), "{hash}");
    }
}

#[test]
fn training_images_have_perfect_scores_and_count_as_copied() {
    let dir = FIXTURE.path();
    eval(
        &[&DIT[..], &["--images", "synth", "--features", "classifier.onnx", "--json", "same.json"]].concat(),
    );
    let report = read(&dir.join("same.json"));
    let results = &report["results"];
    assert!(results["frechet"].as_f64().unwrap() < 1e-6, "{results}");
    assert!(results["kernel"]["distance"].as_f64().unwrap() <= 0.0);
    assert_eq!(
        (&results["precision_recall"]["precision"], &results["precision_recall"]["recall"]),
        (&1.0.into(), &1.0.into())
    );
    assert_eq!(results["density_coverage"]["coverage"], 1.0);
    for space in ["pixels", "features"] {
        assert_eq!(report["nearest_training_picture"][space]["share"], 1.0);
        assert_eq!(report["nearest_training_picture"][space]["copied"], 1.0);
        assert_eq!(report["nearest_training_picture"][space]["median"], 0.0);
    }
    // Images from a folder have the class of their subfolder.
    let breeds = &report["breed_as_asked"];
    assert_eq!(breeds["drawn"]["pictures"], 78);
    assert_eq!(breeds["drawn"]["confusion"], breeds["real"]["confusion"]);
}

/// With a network that returns its input, the expected features are known: both sets are resized to one size and preprocessed alike.
#[test]
fn any_onnx_file_can_compute_features_and_both_sets_are_preprocessed_alike() {
    let dir = FIXTURE.path();
    let preprocessing =
        ["--features-resize", "8", "--features-mean", "0.5,0.5,0.5", "--features-std", "0.5,0.5,0.5"];
    let data = Dataset::open(dir.join("synth")).unwrap();
    for runtime in ["tract", "ort"] {
        // ONNX Runtime is optional here; scripts/test sets it up.
        if runtime == "ort" && std::env::var_os("ORT_DYLIB_PATH").is_none() {
            continue;
        }
        let rest = [
            "--images",
            "synth/Bengal",
            "--image-size",
            "8",
            "--features",
            "pixels.onnx",
            "--json",
            "p.json",
        ];
        let classifier = ["--classifier", "classifier.onnx", "--bootstrap", "0", "--runtime", runtime];
        eval(&[&["dit", "synth"], &classifier[..], &rest, &preprocessing].concat());
        let report = read(&dir.join("p.json"));
        let images = Images::load(&data, 8, None, &Cache::Memory).unwrap();
        let row = |i: usize| {
            let mut values = vec![0.0; 192];
            images.fill(i, &View::center((8, 8), 8), 8, &mut values).unwrap();
            let bytes = to_rgb(&values, 8);
            let plane = |channel: usize| bytes.pixels().map(move |p| f32::from(p[channel]) / 127.5 - 1.0);
            (0..3).flat_map(plane).collect::<Vec<f32>>()
        };
        let all: Vec<usize> = (0..images.len()).collect();
        let features =
            |chosen: &[usize]| Features::new(192, chosen.iter().flat_map(|&i| row(i)).collect()).unwrap();
        let bengals: Vec<usize> = all.iter().copied().filter(|&i| images.label(i) == 1).collect();
        let real = features(&all);
        let expected = frechet_distance(&real, &features(&bengals)).unwrap();
        let found = report["results"]["frechet"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4 * expected, "{runtime}: {found}, expected {expected}");
        let [a, b] = split_randomly(&real, 0).unwrap();
        let expected = frechet_distance(&a, &b).unwrap();
        let found = report["real_halves"]["frechet"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4 * expected, "{runtime}: {found}, expected {expected}");
        assert_eq!(report["features"]["preprocessing"]["resize"], 8);
        assert_eq!(report["results"]["frechet_interval"], Value::Null);
    }
}

#[test]
fn invalid_arguments_and_models_give_one_line_errors() {
    let dir = FIXTURE.path();
    let nan = Weights::from([("bias".to_owned(), Array::new([768], vec![f32::NAN; 768]).unwrap())]);
    let damaged = {
        let graph = OnnxGraph::new(DEFAULT_OPSET).unwrap();
        let mut source = graph.source(&nan);
        let bias = Scope::root(&mut source).param("bias", [768], Init::Zeros).unwrap();
        let x = graph.floats("image", &[3, 16, 16]).unwrap().reshape(&[768]).unwrap();
        graph.finish(&[("output", &x.add_param(&bias).unwrap())], &[]).unwrap()
    };
    let two = {
        let graph = OnnxGraph::new(DEFAULT_OPSET).unwrap();
        let (a, b) = (graph.floats("a", &[3, 16, 16]).unwrap(), graph.floats("b", &[3, 16, 16]).unwrap());
        graph.finish(&[("output", &a.add(&b).unwrap())], &[]).unwrap()
    };
    for (name, bytes) in [
        ("damaged.onnx", damaged),
        ("two.onnx", two),
        ("same.onnx", graph(&[3, 16, 16], |x| x)),
        ("flat.onnx", graph(&[768], |x| x)),
        ("wide.onnx", graph(&[3, 16, 8], |x| x.reshape(&[384]).unwrap())),
        ("gray.onnx", graph(&[1, 16, 16], |x| x.reshape(&[256]).unwrap())),
        ("huge.onnx", graph(&[3, 1 << 20, 1 << 20], |x| x)),
        ("text.onnx", b"not a network".to_vec()),
    ] {
        fs::write(dir.join(name), bytes).unwrap();
    }
    let png = fs::read_dir(dir.join("synth/Bengal")).unwrap().next().unwrap().unwrap().path();
    fs::create_dir_all(dir.join("one/Bengal")).unwrap();
    fs::copy(&png, dir.join("one/Bengal/a.png")).unwrap();
    fs::create_dir_all(dir.join("none")).unwrap();
    fs::create_dir_all(dir.join("unknown/Dragon")).unwrap();
    fs::copy(&png, dir.join("unknown/Dragon/a.png")).unwrap();
    let images =
        ["dit", "synth", "--images", "synth/Bengal", "--bootstrap", "0", "--classifier", "classifier.onnx"];
    let generator = ["dit", "synth", "--model", "generator.safetensors"];
    let classifier = ["classifier", "synth", "--model", "classifier.onnx"];
    let mut failures: Vec<String> = Vec::new();
    for (base, args, expected) in [
        (&images[..], &["--features", "text.onnx"][..], "error: text.onnx: ONNX: "),
        (&images, &["--features", "missing.onnx"], "error: missing.onnx: No such file"),
        (
            &images,
            &["--features", "generator.safetensors"],
            "error: generator.safetensors: task: expected a classifier",
        ),
        (
            &images,
            &["--features", "two.onnx"],
            "error: two.onnx: inputs: expected one image input, found 2 inputs",
        ),
        (
            &images,
            &["--features", "flat.onnx"],
            "error: flat.onnx: inputs: image: expected 32-bit floats [batch, 3, size, size]",
        ),
        (&images, &["--features", "wide.onnx"], "error: wide.onnx: inputs: image: expected 32-bit floats"),
        (&images, &["--features", "gray.onnx"], "error: gray.onnx: inputs: image: expected 32-bit floats"),
        (&images, &["--features", "huge.onnx"], "error: huge.onnx: inputs: image: expected 32-bit floats"),
        (
            &images,
            &["--features", "same.onnx"],
            "error: same.onnx: tract: expected a feature extractor with output [16, f",
        ),
        (
            &images,
            &["--features", "damaged.onnx"],
            "error: damaged.onnx: tract: the network returned features that are not finite",
        ),
        (&images, &["--features", "pixels.onnx", "--features-resize", "7"], "error: resize: expected 8 to"),
        (
            &images,
            &["--features", "pixels.onnx", "--features-std", "1,0,1"],
            "error: preprocessing: expected finite",
        ),
        (
            &images,
            &["--features", "pixels.onnx", "--runtime", "candle"],
            "error: pixels.onnx: candle: expected a runtime of graphs",
        ),
        (&images, &["--features", "classifier.onnx", "--features-resize", "64"], "error: --features-resize"),
        (
            &["dit", "synth", "--images", "synth/Bengal"],
            &["--features", "classifier.onnx", "--bootstrap", "1000000000"],
            "error: bootstrap: expected at most",
        ),
        (
            &images,
            &["--features", "classifier.onnx", "--image-size", "100000"],
            "error: --image-size: expected 8 to 1024, found 100000",
        ),
        (&images, &["--batch", "0"], "error: batch: expected 1 to 1024, found 0"),
        (
            &images,
            &["--json", "missing/d.json"],
            "error: --json missing/d.json: expected a file in an existing folder",
        ),
        (&images, &["--json", "d.txt"], "error: --json d.txt: expected a name that ends in .json"),
        (&images, &["--sheet", "d.jpg"], "error: --sheet d.jpg: expected a name that ends in .png"),
        (
            &["dit", "synth", "--images", "one"],
            &["--features", "classifier.onnx"],
            "error: Fréchet distance: expected at least 2 images",
        ),
        (&["dit", "synth", "--images", "none"], &[], "error: --images none: no usable image found"),
        (&["dit", "synth", "--images", "missing"], &[], "error: --images missing: "),
        (
            &["dit", "one", "--images", "synth"],
            &["--features", "classifier.onnx"],
            "error: Fréchet distance: expected at least 2 images",
        ),
        (&generator, &["--samples", "1"], "error: --samples: expected 2 to 100000, found 1"),
        (&generator, &["--limit-files", "1"], "error: --limit-files: expected at least 2, found 1"),
        (&generator, &["--samples", "4", "--steps", "0"], "error: steps: expected 1 to"),
        (
            &["dit", "unknown", "--model", "generator.safetensors"],
            &[],
            "error: unknown: the generator has no class \"Dragon\"",
        ),
        (&["dit", "missing"], &[], "error: missing: No such file"),
        (
            &classifier,
            &["--split", "test", "--limit-files", "0"],
            "error: --limit-files: expected at least 1",
        ),
        (
            &classifier,
            &["--confusion", "c.gif"],
            "error: --confusion c.gif: expected a name that ends in .png",
        ),
        (
            &["classifier", "unknown", "--model", "classifier.onnx"],
            &["--split", "all"],
            "error: unknown: the model has no class \"Dragon\"",
        ),
        (
            &["classifier", "one", "--model", "classifier.onnx"],
            &[],
            "error: one: no test images found; pass --split all",
        ),
        (
            &["classifier", "synth", "--model", "generator.safetensors"],
            &[],
            "error: generator.safetensors: task: expected a classifier",
        ),
        (&["classifier", "synth", "--model", "text.onnx"], &[], "error: text.onnx: ONNX: "),
    ] {
        let error = fails(CATS, dir, &[&["eval"], base, args].concat());
        let last = error.lines().last().unwrap_or_default();
        if !last.starts_with(expected) {
            failures.push(format!("{base:?} {args:?}: {last}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
