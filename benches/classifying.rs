//! Classification speed: JPEG files per second from disk to classes (read, decode, resize, network), on each runtime.
//!
//! `cargo bench --bench classifying -- --write FOLDER [--model FILE] [--photographs DIR]` writes the benchmark's input: `model.onnx`,
//! `files.json`, a list of paths, and `predictions.json`, our probabilities of all classes for each file. The default model has the size
//! of the released one and random weights. From DIR, a folder of class folders, 100 files are used; the default is synthetic images.
//! `classifying FOLDER [RUNTIME…]` times all available runtimes, or the named ones, and prints a line of JSON for each.
//! `peers/ort_classify.py` compares its predictions with ours before it is timed. `scripts/bench` runs all of it.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use image::{codecs::jpeg::JpegEncoder, imageops};
use serde_json::json;
use tiny_cats::data::{BREEDS, Dataset, synth};
use tiny_cats_export::{
    Classifier, LoadOptions, Model, ModelMeta, Prediction, image_sizes, onnx::DEFAULT_OPSET,
    runtime::RuntimeKind, to_onnx,
};
use tiny_cats_models::{Network as _, ResNetConfig, init};

const FILES: usize = 100;
/// The most common width and height in the Oxford-IIIT Pet data set, in pixels.
const SIZE: (u32, u32) = (500, 375);

fn classifier(folder: &Path, runtime: RuntimeKind) -> Result<Classifier> {
    let options = LoadOptions { runtime: Some(runtime), ..LoadOptions::default() };
    Ok(Classifier::open_with(folder.join("model.onnx"), &options)?)
}

fn random_model() -> Result<Model> {
    let config = ResNetConfig { width: 32, ..ResNetConfig::named("resnet18", BREEDS.len() + 1)? };
    let classes = BREEDS.into_iter().chain(["other"]).map(String::from).collect();
    Ok(Model::from_weights(
        ModelMeta::for_network(config.clone(), image_sizes(128), classes).unwrap(),
        init(&config.specs()?, 0),
    ))
}

/// Writes synthetic images as JPEG files, and returns their paths.
fn write_images(folder: &Path) -> Result<Vec<PathBuf>> {
    let write_image = |i: usize| {
        let image = synth::draw(i % BREEDS.len(), 0, i as u64, SIZE.0);
        let image = imageops::crop_imm(&image, 0, (SIZE.0 - SIZE.1) / 2, SIZE.0, SIZE.1).to_image();
        let path = folder.join(format!("{i}.jpg"));
        image.write_with_encoder(JpegEncoder::new_with_quality(File::create(&path)?, 90))?;
        Ok(path)
    };
    (0..FILES).map(write_image).collect()
}

/// Returns the paths of files at regular intervals in a data set.
fn select_files(photographs: &Path) -> Result<Vec<PathBuf>> {
    let data = Dataset::open(photographs)?;
    let n = data.files.len();
    if n < FILES {
        bail!("{}: expected at least {FILES} images, found {n}", photographs.display());
    }
    let path = |i: usize| photographs.join(&data.files[i * n / FILES].path);
    (0..FILES).map(|i| path(i).canonicalize().with_context(|| path(i).display().to_string())).collect()
}

fn probabilities(mut prediction: Prediction) -> Vec<f64> {
    prediction.candidates.sort_by_key(|candidate| candidate.label);
    prediction.candidates.into_iter().map(|candidate| candidate.probability).collect()
}

fn write(folder: &Path, model: Option<PathBuf>, photographs: Option<PathBuf>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let model = model.map_or_else(random_model, |path| Ok(Model::open(&path)?))?;
    let files = photographs.map_or_else(|| write_images(folder), |photographs| select_files(&photographs))?;
    fs::write(folder.join("model.onnx"), to_onnx(model.meta(), &model.weights()?, DEFAULT_OPSET)?)?;
    fs::write(folder.join("files.json"), json!(files).to_string())?;
    let results = classifier(folder, RuntimeKind::Tract)?.classify_files(&files)?;
    let results = results.into_iter().map(|result| Ok(probabilities(result?))).collect::<Result<Vec<_>>>()?;
    Ok(fs::write(folder.join("predictions.json"), json!(results).to_string())?)
}

/// Returns the files per second, after a warm-up.
fn time(folder: &Path, files: &[PathBuf], runtime: RuntimeKind) -> Result<f64> {
    let mut classifier = classifier(folder, runtime)?;
    classifier.classify_files(&files[..files.len().min(16)])?;
    let start = Instant::now();
    let results = classifier.classify_files(files)?;
    let seconds = start.elapsed().as_secs_f64();
    results.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(files.len() as f64 / seconds)
}

fn main() -> Result<()> {
    // cargo bench adds --bench to the arguments of every benchmark.
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench").peekable();
    let mut option = |name: &str| -> Result<Option<PathBuf>> {
        match args.next_if(|a| a == name) {
            Some(_) => Ok(Some(args.next().with_context(|| format!("{name}: expected a path"))?.into())),
            None => Ok(None),
        }
    };
    if let Some(folder) = option("--write")? {
        let (model, photographs) = (option("--model")?, option("--photographs")?);
        return write(&folder, model, photographs);
    }
    let folder = PathBuf::from(args.next().context("expected FOLDER or --write FOLDER")?);
    let list = folder.join("files.json");
    let list = File::open(&list).with_context(|| list.display().to_string())?;
    let files: Vec<PathBuf> = serde_json::from_reader(BufReader::new(list))?;
    let selected = args.map(|a| Ok(a.parse()?)).collect::<Result<Vec<RuntimeKind>>>()?;
    // candle-onnx serves verification only.
    let is_included = |kind: &RuntimeKind| *kind != RuntimeKind::CandleOnnx && kind.version().is_ok();
    let runtimes = if selected.is_empty() {
        RuntimeKind::ALL.into_iter().filter(is_included).collect()
    } else {
        selected
    };
    for runtime in runtimes {
        let speed = time(&folder, &files, runtime)?;
        println!("{}", json!({"name": runtime.name(), "images_per_second": speed}));
    }
    Ok(())
}
