//! A classifier that was trained on synthetic pictures.

use std::sync::LazyLock;

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

/// A folder with synthetic pictures in `synth` and a classifier trained on them in `checkpoints`, and what training said.
pub static TRAINED: LazyLock<(TempDir, String)> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    succeeds(CATS, dir.path(), &["data", "synth", "synth", "--per-class", "20", "--size", "48"]);
    let said = succeeds(CATS, dir.path(), &train_args("checkpoints/cats_model.pt", &["--epochs", "6"]));
    (dir, said)
});
