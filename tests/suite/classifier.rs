//! End-to-end tests of the commands that train, export and verify a classifier, and of their errors.

use std::fs;

use crate::common::{
    CATS, VERIFY, fails, succeeds,
    trained::{TRAINED, classifier_args},
};
use serde_json::Value;

fn json(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn training_writes_reports_on_validation_and_test_images() {
    let (dir, output) = &*TRAINED;
    let dir = dir.path();
    assert!(output.contains("208 photographs of 13 classes to train on, 26 to validate"), "{output}");
    assert!(
        output.contains("finished: checkpoints/cats_model.pt and checkpoints/cats_model.safetensors"),
        "{output}"
    );
    for part in ["validation", "test"] {
        let report = json(dir.join(format!("checkpoints/cats_model_{part}.json")));
        let accuracy = report["top1"]["accuracy"].as_f64().unwrap();
        // Random guessing has an accuracy of 8 %.
        assert!(accuracy > 0.3, "{part}: {accuracy}\n{output}");
        let counts: u64 = report["confusion"]["counts"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()))
            .sum();
        assert_eq!(counts, 26);
        assert!(image::open(dir.join(format!("checkpoints/cats_model_{part}.png"))).unwrap().width() > 300);
    }
    // The released weights are those with the best evaluation.
    let best =
        output.lines().rfind(|line| line.ends_with("the best so far")).expect("one evaluation is the best");
    assert!(best.contains("validation_top3") && best.contains("validation_recall"), "{best}");
    let released =
        json(dir.join("checkpoints/cats_model_validation.json"))["top1"]["accuracy"].as_f64().unwrap();
    assert!(best.contains(&format!("validation_accuracy {released:.4}")), "{best}, released {released}");
}

#[test]
fn a_trained_classifier_is_verified_and_exported() {
    let dir = TRAINED.0.path();
    for path in ["checkpoints/cats_model.pt", "checkpoints/cats_model.safetensors"] {
        let output = succeeds(VERIFY, dir, &[path]);
        assert!(output.contains("ResNet") || output.contains("resnet18"), "{output}");
    }
    let output = succeeds(CATS, dir, &["export", "checkpoints/cats_model.pt", "-o", "cats.onnx", "--test"]);
    assert!(output.contains("tract"), "{output}");
    assert_eq!(json(dir.join("cats.report.json"))["passed"], true);
    succeeds(VERIFY, dir, &["--checkpoint", "checkpoints/cats_model.pt", "--onnx", "cats.onnx"]);
    // A classifier is not accepted as a generator.
    let error = fails(CATS, dir, &["generate", "--model", "cats.onnx", "-o", "x.png"]);
    assert!(error.contains("cats.onnx") && error.contains("classifier"), "{error}");
}

#[test]
fn an_f16_export_halves_the_file_and_predicts_the_same_classes() {
    let dir = TRAINED.0.path();
    let checkpoint = "checkpoints/cats_model.pt";
    succeeds(CATS, dir, &["export", checkpoint, "-o", "full.onnx"]);
    let output = succeeds(CATS, dir, &["export", checkpoint, "--f16", "-o", "half.onnx"]);
    assert!(
        output.contains("rounding weights to half precision") && output.contains("the class of 0 inputs"),
        "{output}"
    );
    let report = crate::common::check_f16_export(dir, "full.onnx", "half.onnx");
    assert_eq!(report["rounding"]["other_class"], 0);
    succeeds(VERIFY, dir, &["--checkpoint", checkpoint, "--onnx", "half.onnx"]);
}

#[test]
fn training_starts_from_a_backbone_with_another_head() {
    let dir = TRAINED.0.path();
    succeeds(CATS, dir, &["data", "synth", "few", "--per-class", "4", "--size", "48"]);
    for class in ["Bombay", "Sphynx", "Persian"] {
        fs::remove_dir_all(dir.join("few").join(class)).unwrap();
    }
    let mut args = classifier_args("tuned/m.pt", &["--epochs", "1", "--init", "checkpoints/cats_model.pt"]);
    args[2] = "few";
    let output = succeeds(CATS, dir, &args);
    assert!(output.contains("of 10 classes"), "{output}");
    // The metadata names the initial checkpoint, but not its directory.
    let released = fs::read(dir.join("tuned/m.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&released[..20_000]).into_owned();
    assert!(header.contains(r#"\"init\":\"cats_model.pt\""#) && !header.contains("checkpoints/"), "{header}");
    let mut args = classifier_args(
        "x/m.pt",
        &["--epochs", "1", "--init", "checkpoints/cats_model.pt", "--backbone", "resnet34"],
    );
    args[2] = "few";
    let error = fails(CATS, dir, &args);
    assert!(error.contains("checkpoints/cats_model.pt") && error.contains("resnet34"), "{error}");
}

#[test]
fn invalid_arguments_give_one_line_errors() {
    let dir = TRAINED.0.path();
    for (more, expected) in [
        (&["--mixup", "2"][..], "--mixup: expected 0 to 1, found 2"),
        (&["--label-smoothing", "1"], "--label-smoothing"),
        (&["--crop-size", "64"], "--crop-size: expected 32 to the image size (32), found 64"),
        (
            &["--epochs", "2", "--warmup-epochs", "2"],
            "--warmup-epochs: expected fewer than epochs (2), found 2",
        ),
        (&["--epochs", "0"], "--epochs: expected at least 1"),
        (&["--lr", "0"], "--lr"),
        (&["--backbone", "vgg"], "resnet50"),
        (&["--init", "nowhere.pth"], "nowhere.pth"),
        (&["--init", "synth/Bengal", "--no-pretrained"], "--no-pretrained"),
        (&["--resume", "checkpoints/cats_model.pt"], "cats_model.pt"),
        (&["--batch-size", "1"], "--batch-size: expected at least 2, found 1"),
    ] {
        let error = fails(CATS, dir, &classifier_args("x/m.pt", more));
        assert!(error.contains(expected), "{more:?}: {error}");
    }
    for size in ["5", "5000"] {
        for command in [&["train"][..], &["plan", "train"], &["cloud", "train"]] {
            let error = fails(CATS, dir, &[command, &["classifier", "synth", "--image-size", size]].concat());
            assert!(
                error.contains(&format!("--image-size: expected 32 to 1024, found {size}")),
                "{command:?}: {error}"
            );
        }
    }
    let error = fails(CATS, dir, &classifier_args("x/m.onnx", &[]));
    assert!(error.contains("--output: expected the name of a .pt file, found x/m.onnx"), "{error}");
    assert!(
        !dir.join("x").exists() || fs::read_dir(dir.join("x")).unwrap().next().is_none(),
        "no files remain"
    );
}
