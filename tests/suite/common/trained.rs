//! Small networks that are trained on synthetic pictures.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use tempfile::TempDir;

use super::{CATS, succeeds};

const NETWORK: [&str; 14] = [
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

pub fn train_args<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "classifier", "synth", "--output", output];
    fixed.iter().chain(&NETWORK).chain(more).copied().collect()
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

/// Synthetic pictures for a generator, in `synth`.
pub fn synthetic(folder: &Path) {
    succeeds(CATS, folder, &["data", "synth", "synth", "--per-class", "4", "--size", "32"]);
}

/// The arguments that train a small generator.
pub fn dit<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "dit", "synth", "--output", output];
    fixed.iter().chain(&GENERATOR).chain(more).copied().collect()
}

/// The folder of the run that said this.
#[track_caller]
pub fn run_folder(folder: &Path, said: &str) -> PathBuf {
    let begin = said.lines().find_map(|line| Some(line.split_once(" parameters, steps ")?.0));
    let (run, _) = begin.and_then(|begin| begin.rsplit_once(": ")).expect("a run says where it is");
    folder.join(run)
}

/// A folder with synthetic pictures in `synth` and a classifier trained on them in `checkpoints`, and what training said.
pub static TRAINED: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    succeeds(CATS, dir.path(), &["data", "synth", "synth", "--per-class", "20", "--size", "48"]);
    let said = succeeds(CATS, dir.path(), &train_args("checkpoints/cats_model.pt", &["--epochs", "6"]));
    (dir, said)
});
