//! Loading speed: photographs a second from JPEG files to what a classifier is shown.
//!
//! `cargo bench --bench loading -- DIR [--size N] [--workers N]` prints a line of JSON for each of
//! - `cold`: read, decoded, resized and written into a new cache, then a random part of each, mirrored or not, as batches of floats: what
//!   the first epoch of the first run costs;
//! - `cached`: the batches alone: what every other epoch costs;
//! - `full`: the same with tilted parts and changed colours.
//!
//! `peers/torch_loading.py` does the first two with torchvision's DataLoader.

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::json;
use tiny_cats::{
    data::{AugmentLevel, Cache, Dataset, Order, Photos, View},
    train::{Batch, BatchSource, Loader},
};

const BATCH: usize = 32;
/// Epochs on the clock, but for the first.
const EPOCHS: u64 = 5;

struct Shown {
    photos: Photos,
    order: Order,
    level: AugmentLevel,
    size: usize,
}

impl BatchSource for Shown {
    fn items(&self) -> usize {
        self.photos.len()
    }

    fn batch(&self, position: u64, len: usize) -> tiny_cats::train::Result<Batch> {
        let values = 3 * self.size * self.size;
        let mut out = vec![0.0; len * values];
        let chosen = self.order.range(position, len);
        let places = out.par_chunks_mut(values).zip(chosen.par_iter().enumerate());
        places.try_for_each(|(out, (i, &index))| {
            let shape = self.photos.dimensions(index);
            let view = View::for_classifier(self.level, 0, position + i as u64, shape, self.size as u32);
            self.photos.fill(index, &view, self.size, out)
        })?;
        Ok(Batch(vec![Tensor::from_vec(out, (len, 3, self.size, self.size), &Device::Cpu)?]))
    }

    fn files(&self, _: u64, _: usize) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Goes through `epochs` epochs, and says how many photographs that were.
fn show(loader: &mut Loader, items: usize, epochs: u64) -> Result<u64> {
    let batches = items as u64 * epochs / BATCH as u64;
    for batch in 0..batches {
        loader.load(batch * BATCH as u64)?;
    }
    Ok(batches * BATCH as u64)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut folder, mut size, mut workers) = (None, 128, 2);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).context("expected a number");
        match argument.as_str() {
            "--size" => size = number()?,
            "--workers" => workers = number()?,
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(workers).build_global()?;
    let data = Dataset::open(folder.context("expected a folder of class folders of photographs")?)?;
    let cache = tempfile::tempdir()?;
    let load = |level| -> Result<Arc<Shown>> {
        let photos = Photos::load(&data, size as u32, None, &Cache::At(cache.path().into()))?;
        anyhow::ensure!(photos.notes.is_empty() && photos.skipped.is_empty(), "{:?}", photos.notes);
        let order = Order::new(0, photos.len() as u32);
        Ok(Arc::new(Shown { photos, order, level, size }))
    };

    for (name, level, epochs) in [
        ("cold", AugmentLevel::Medium, 1),
        ("cached", AugmentLevel::Medium, EPOCHS),
        ("full", AugmentLevel::Full, EPOCHS),
    ] {
        // Reading a cache that is there is part of what it costs.
        let begin = Instant::now();
        let shown = load(level)?;
        let mut loader = Loader::with_workers(shown.clone(), BATCH, workers, 2)?;
        let images = show(&mut loader, shown.items(), epochs)?;
        let speed = images as f64 / begin.elapsed().as_secs_f64();
        println!("{}", json!({"name": name, "images": shown.items(), "images_per_second": speed}));
    }
    Ok(())
}
