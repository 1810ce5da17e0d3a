//! Small networks that are trained on synthetic images.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use tempfile::TempDir;

use super::{CATS, succeeds};

const CLASSIFIER: [&str; 14] = [
    "--width",
    "8",
    "--image-size",
    "32",
    "--batch-size",
    "16",
    "--lr",
    "3e-3",
    "--ema-beta",
    "0.9",
    "--seed",
    "1",
    "--augmentation-level",
    "basic",
];

/// The arguments that train a small classifier on `synth`.
pub fn classifier_args<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "classifier", "synth", "--output", output];
    fixed.iter().chain(&CLASSIFIER).chain(more).copied().collect()
}

const GENERATOR: [&str; 12] = [
    "--image-size",
    "16",
    "--size",
    "nano",
    "--batch-size",
    "8",
    "--augmentation-level",
    "basic",
    "--sample-interval",
    "0",
    "--lr",
    "1e-3",
];

/// Writes synthetic images for a generator to `synth` in `folder`.
pub fn write_synthetic_images(folder: &Path) {
    succeeds(CATS, folder, &["data", "synth", "synth", "--per-class", "4", "--size", "32"]);
}

/// The arguments that train a small generator on `synth`.
pub fn dit_args<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "dit", "synth", "--output", output];
    fixed.iter().chain(&GENERATOR).chain(more).copied().collect()
}

/// The folder of the run whose output this is.
#[track_caller]
pub fn run_folder(folder: &Path, output: &str) -> PathBuf {
    let start = output.lines().find_map(|line| Some(line.split_once(" parameters, steps ")?.0));
    let (run, _) =
        start.and_then(|start| start.rsplit_once(": ")).expect("the output names the run's folder");
    folder.join(run)
}

/// A folder with synthetic images in `synth` and a classifier trained on them in `checkpoints`, and the output of training.
pub static TRAINED: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    succeeds(CATS, dir.path(), &["data", "synth", "synth", "--per-class", "20", "--size", "48"]);
    let output =
        succeeds(CATS, dir.path(), &classifier_args("checkpoints/cats_model.pt", &["--epochs", "6"]));
    (dir, output)
});
