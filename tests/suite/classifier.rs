//! The classifier as a user has it: from synthetic pictures to a class, and everything that can be wrong on the way.

use std::fs;

use crate::common::{
    CATS, VERIFY, fails, succeeds,
    trained::{TRAINED, train_args},
};
use serde_json::Value;

fn json(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_was_trained_knows_unseen_pictures_and_says_how_well() {
    let (dir, said) = &*TRAINED;
    let dir = dir.path();
    assert!(said.contains("208 photographs of 13 classes to train on, 26 to validate"), "{said}");
    assert!(
        said.contains("finished: checkpoints/cats_model.pt and checkpoints/cats_model.safetensors"),
        "{said}"
    );
    for part in ["validation", "test"] {
        let report = json(dir.join(format!("checkpoints/cats_model_{part}.json")));
        let accuracy = report["top1"]["accuracy"].as_f64().unwrap();
        // Chance is 8 %.
        assert!(accuracy > 0.3, "{part}: {accuracy}\n{said}");
        let counts: u64 = report["confusion"]["counts"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()))
            .sum();
        assert_eq!(counts, 26);
        assert!(image::open(dir.join(format!("checkpoints/cats_model_{part}.png"))).unwrap().width() > 300);
    }
    // The released weights are those that were evaluated best.
    let best = said.lines().rfind(|line| line.ends_with("the best so far")).expect("one is the best");
    assert!(best.contains("validation_top3") && best.contains("validation_recall"), "{best}");
    let released =
        json(dir.join("checkpoints/cats_model_validation.json"))["top1"]["accuracy"].as_f64().unwrap();
    assert!(best.contains(&format!("validation_accuracy {released:.4}")), "{best}, released {released}");
}

#[test]
fn what_was_trained_is_verified_and_exported() {
    let dir = TRAINED.0.path();
    for path in ["checkpoints/cats_model.pt", "checkpoints/cats_model.safetensors"] {
        let said = succeeds(VERIFY, dir, &[path]);
        assert!(said.contains("ResNet") || said.contains("resnet18"), "{said}");
    }
    let said = succeeds(CATS, dir, &["export", "checkpoints/cats_model.pt", "-o", "cats.onnx", "--test"]);
    assert!(said.contains("tract"), "{said}");
    assert_eq!(json(dir.join("cats.report.json"))["passed"], true);
    succeeds(VERIFY, dir, &["--checkpoint", "checkpoints/cats_model.pt", "--onnx", "cats.onnx"]);
    // Neither network is taken for the other.
    let said = fails(CATS, dir, &["generate", "--model", "cats.onnx", "-o", "x.png"]);
    assert!(said.contains("cats.onnx") && said.contains("classifier"), "{said}");
}

#[test]
fn halves_are_half_the_file_and_the_same_classes() {
    let dir = TRAINED.0.path();
    let checkpoint = "checkpoints/cats_model.pt";
    succeeds(CATS, dir, &["export", checkpoint, "-o", "full.onnx"]);
    let said = succeeds(CATS, dir, &["export", checkpoint, "--f16", "-o", "halves.onnx"]);
    assert!(said.contains("rounding weights to halves") && said.contains("the class of 0 inputs"), "{said}");
    let report = crate::common::halves(dir, "full.onnx", "halves.onnx");
    assert_eq!(report["rounding"]["other_class"], 0);
    succeeds(VERIFY, dir, &["--checkpoint", checkpoint, "--onnx", "halves.onnx"]);
}

#[test]
fn training_goes_on_from_a_backbone_with_another_head() {
    let dir = TRAINED.0.path();
    succeeds(CATS, dir, &["data", "synth", "few", "--per-class", "4", "--size", "48"]);
    for class in ["Bombay", "Sphynx", "Persian"] {
        fs::remove_dir_all(dir.join("few").join(class)).unwrap();
    }
    let mut args = train_args("tuned/m.pt", &["--epochs", "1", "--init", "checkpoints/cats_model.pt"]);
    args[2] = "few";
    let said = succeeds(CATS, dir, &args);
    assert!(said.contains("of 10 classes"), "{said}");
    // What it began from is said by name; where that lay is nobody's business.
    let released = fs::read(dir.join("tuned/m.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&released[..20_000]).into_owned();
    assert!(header.contains(r#"\"init\":\"cats_model.pt\""#) && !header.contains("checkpoints/"), "{header}");
    let mut args = train_args(
        "x/m.pt",
        &["--epochs", "1", "--init", "checkpoints/cats_model.pt", "--backbone", "resnet34"],
    );
    args[2] = "few";
    let said = fails(CATS, dir, &args);
    assert!(said.contains("checkpoints/cats_model.pt") && said.contains("resnet34"), "{said}");
}

#[test]
fn training_refuses_what_makes_no_sense_in_one_line() {
    let dir = TRAINED.0.path();
    for (more, expected) in [
        (&["--mixup", "2"][..], "--mixup: expected 0 to 1, found 2"),
        (&["--label-smoothing", "1"], "--label-smoothing"),
        (&["--crop-size", "64"], "--crop-size: expected 32 to --image-size (32), found 64"),
        (
            &["--epochs", "2", "--warmup-epochs", "2"],
            "--warmup-epochs: expected fewer than --epochs (2), found 2",
        ),
        (&["--epochs", "0"], "--epochs: expected at least 1"),
        (&["--lr", "0"], "--lr"),
        (&["--backbone", "vgg"], "resnet50"),
        (&["--init", "nowhere.pth"], "nowhere.pth"),
        (&["--init", "synth/Bengal", "--no-pretrained"], "--no-pretrained"),
        (&["--resume", "checkpoints/cats_model.pt"], "cats_model.pt"),
        (&["--batch-size", "1"], "--batch-size: expected at least 2, found 1"),
    ] {
        let said = fails(CATS, dir, &train_args("x/m.pt", more));
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    for size in ["5", "5000"] {
        let said = fails(CATS, dir, &["train", "classifier", "synth", "--image-size", size, "-o", "x/m.pt"]);
        assert!(said.contains(&format!("--image-size: expected 32 to 1024, found {size}")), "{said}");
    }
    let said = fails(CATS, dir, &train_args("x/m.onnx", &[]));
    assert!(said.contains("--output x/m.onnx: expected the name of a .pt file"), "{said}");
    assert!(
        !dir.join("x").exists() || fs::read_dir(dir.join("x")).unwrap().next().is_none(),
        "nothing is left"
    );
}
