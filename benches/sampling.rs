//! Sampling speed: images per second for a request of 16, with 20 steps of Heun's method and guidance, on each runtime.
//!
//! `cargo bench --bench sampling [-- --model FILE] [RUNTIME…]` times all available runtimes, or the named ones, and prints a line of JSON
//! for each. The default model is the released one. With `--write FOLDER` it writes `model.onnx`, and the noise and the images as rows
//! of little-endian f32 (`noise.bin`, `images.bin`). `peers/ort_sample.py` compares its images with ours before it is timed.
//! `scripts/bench` runs all of it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::json;
use tiny_cats_export::{
    Breed, Generator, LoadOptions, Model, Request, Sampler, onnx::DEFAULT_OPSET, runtime::RuntimeKind,
    to_onnx, write_atomically,
};
use tiny_cats_models::{pretrained, random::noise};

const REQUEST: Request = Request {
    breed: Breed::All,
    count: 16,
    seed: 0,
    steps: Some(20),
    sampler: Some(Sampler::Heun),
    guidance: Some(2.0),
    guidance_interval: None,
};

fn generator(model: &Model, runtime: RuntimeKind) -> Result<Generator> {
    Ok(Generator::from_model(model, &LoadOptions { runtime: Some(runtime), ..LoadOptions::default() })?)
}

fn write(model: &Model, folder: &Path) -> Result<()> {
    let write_file = |name: &str, bytes: Vec<u8>| {
        write_atomically(&folder.join(name), |w| w.write_all(&bytes)).with_context(|| name.to_owned())
    };
    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
    let size = model.meta().image_size;
    let start = (0..REQUEST.count).flat_map(|i| noise(REQUEST.seed, i as u64, 3 * size * size)).collect();
    let images = generator(model, RuntimeKind::Native)?.generate(&REQUEST)?;
    write_file("model.onnx", to_onnx(model.meta(), &model.weights()?, DEFAULT_OPSET)?)?;
    write_file("noise.bin", bytes(start))?;
    write_file("images.bin", bytes(images.into_iter().flat_map(|p| p.values.data().to_vec()).collect()))
}

/// Returns the images per second, after a warm-up.
fn time(model: &Model, runtime: RuntimeKind) -> Result<f64> {
    let mut generator = generator(model, runtime)?;
    generator.generate(&Request { steps: Some(1), ..REQUEST })?;
    let start = Instant::now();
    let images = generator.generate(&REQUEST)?;
    Ok(images.len() as f64 / start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    // cargo bench adds --bench to the arguments of every benchmark.
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench").peekable();
    let model = match args.next_if(|a| a == "--model") {
        Some(_) => Model::open(Path::new(&args.next().context("--model: expected a file")?))?,
        None => Model::from_bytes(pretrained::TINYDIT.to_vec(), "the released model")?,
    };
    if args.next_if(|a| a == "--write").is_some() {
        return write(&model, &PathBuf::from(args.next().context("--write: expected a folder")?));
    }
    let selected = args.map(|a| Ok(a.parse()?)).collect::<Result<Vec<RuntimeKind>>>()?;
    // candle-onnx serves verification only.
    let is_included = |kind: &RuntimeKind| *kind != RuntimeKind::CandleOnnx && kind.version().is_ok();
    let runtimes = if selected.is_empty() {
        RuntimeKind::ALL.into_iter().filter(is_included).collect()
    } else {
        selected
    };
    for runtime in runtimes {
        println!("{}", json!({"name": runtime.name(), "images_per_second": time(&model, runtime)?}));
    }
    Ok(())
}
