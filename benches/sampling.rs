//! Sampling speed: pictures a second for a request of 16, with 20 steps of Heun's method and guidance, on each runtime.
//!
//! `cargo bench --bench sampling [-- --model FILE] [RUNTIME…]` times the runtimes that are present, or those named, and prints a line of
//! JSON for each. Without a file the released model draws. With `--write FOLDER` it writes `model.onnx`, and the noise and the pictures
//! as rows of little-endian f32 (`noise.bin`, `pictures.bin`), so that `peers/ort_sample.py` can show that it draws the same before it
//! is timed. `scripts/bench` does all of it.

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
    let put = |name: &str, bytes: Vec<u8>| {
        write_atomically(&folder.join(name), |w| w.write_all(&bytes)).with_context(|| name.to_owned())
    };
    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
    let size = model.meta().image_size;
    let start = (0..REQUEST.count).flat_map(|i| noise(REQUEST.seed, i as u64, 3 * size * size)).collect();
    let pictures = generator(model, RuntimeKind::Native)?.generate(&REQUEST)?;
    put("model.onnx", to_onnx(model.meta(), &model.weights()?, DEFAULT_OPSET)?)?;
    put("noise.bin", bytes(start))?;
    put("pictures.bin", bytes(pictures.into_iter().flat_map(|p| p.values.data().to_vec()).collect()))
}

/// Pictures a second, the runtime being warm.
fn time(model: &Model, runtime: RuntimeKind) -> Result<f64> {
    let mut generator = generator(model, runtime)?;
    generator.generate(&Request { steps: Some(1), ..REQUEST })?;
    let start = Instant::now();
    let pictures = generator.generate(&REQUEST)?;
    Ok(pictures.len() as f64 / start.elapsed().as_secs_f64())
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
    let named = args.map(|a| Ok(a.parse()?)).collect::<Result<Vec<RuntimeKind>>>()?;
    // candle-onnx is there to verify files, not to draw.
    let present = |kind: &RuntimeKind| *kind != RuntimeKind::CandleOnnx && kind.version().is_ok();
    let runtimes =
        if named.is_empty() { RuntimeKind::ALL.into_iter().filter(present).collect() } else { named };
    for runtime in runtimes {
        println!("{}", json!({"name": runtime.name(), "images_per_second": time(&model, runtime)?}));
    }
    Ok(())
}
