//! Loading speed: photographs per second from JPEG files to a classifier's training batches.
//!
//! `cargo bench --bench loading -- DIR [--size N] [--workers N]` prints a line of JSON for each of
//! - `cold`: reads, decodes, resizes and caches each photograph, then makes batches of random crops and flips, as in the first epoch of
//!   the first run;
//! - `cached`: only makes the batches, as in all other epochs;
//! - `full`: as `cached`, with rotation and color jitter.
//!
//! `peers/torch_loading.py` does the first two with PyTorch's DataLoader.

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
/// Number of timed epochs, except for `cold`.
const EPOCHS: u64 = 5;

/// A source of augmented batches.
struct AugmentedPhotos {
    photos: Photos,
    order: Order,
    level: AugmentLevel,
    size: usize,
}

impl BatchSource for AugmentedPhotos {
    fn items(&self) -> usize {
        self.photos.len()
    }

    fn batch(&self, position: u64, len: usize) -> tiny_cats::train::Result<Batch> {
        let values = 3 * self.size * self.size;
        let mut out = vec![0.0; len * values];
        let indices = self.order.range(position, len);
        let items = out.par_chunks_mut(values).zip(indices.par_iter().enumerate());
        items.try_for_each(|(out, (i, &index))| {
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

/// Loads `epochs` epochs, and returns the number of photographs.
fn load_epochs(loader: &mut Loader, items: usize, epochs: u64) -> Result<u64> {
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
        let mut parse_next = || arguments.next().and_then(|n| n.parse().ok()).context("expected a number");
        match argument.as_str() {
            "--size" => size = parse_next()?,
            "--workers" => workers = parse_next()?,
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(workers).build_global()?;
    let data = Dataset::open(folder.context("expected a folder of class folders of photographs")?)?;
    let cache = tempfile::tempdir()?;
    let load = |level| -> Result<Arc<AugmentedPhotos>> {
        let photos = Photos::load(&data, size as u32, None, &Cache::Folder(cache.path().into()))?;
        anyhow::ensure!(photos.notes.is_empty() && photos.skipped.is_empty(), "{:?}", photos.notes);
        let order = Order::new(0, photos.len() as u32);
        Ok(Arc::new(AugmentedPhotos { photos, order, level, size }))
    };

    for (name, level, epochs) in [
        ("cold", AugmentLevel::Medium, 1),
        ("cached", AugmentLevel::Medium, EPOCHS),
        ("full", AugmentLevel::Full, EPOCHS),
    ] {
        // The time includes opening the cache.
        let start = Instant::now();
        let source = load(level)?;
        let mut loader = Loader::with_workers(source.clone(), BATCH, workers, 2)?;
        let images = load_epochs(&mut loader, source.items(), epochs)?;
        let speed = images as f64 / start.elapsed().as_secs_f64();
        println!("{}", json!({"name": name, "images": source.items(), "images_per_second": speed}));
    }
    Ok(())
}
