//! Loading speed: photographs a second from JPEG files to what a classifier is shown, and from memory.
//!
//! `cargo bench --bench loading -- DIR [--size N]` prints a line of JSON for each of
//! - `cold`: read, decoded, resized, then a random part of it, mirrored or not, written as floats: what the first epoch costs;
//! - `cached`: the random part alone, of photographs in memory: what every other epoch costs.
//!
//! `peers/torch_loading.py` does the same with torchvision's DataLoader.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::json;
use tiny_cats::data::{Dataset, Level, Photos, View};

/// The cached epochs on the clock.
const EPOCHS: u64 = 5;

/// Shows each photograph once, as epoch `epoch` does; the sum of what is shown, so that nothing of it can be left out.
fn epoch(photos: &Photos, size: usize, epoch: u64) -> f64 {
    (0..photos.len())
        .into_par_iter()
        .map_init(
            || vec![0.0; 3 * size * size],
            |out, index| {
                let position = epoch * photos.len() as u64 + index as u64;
                let view = View::draw(Level::Medium, 0, position, photos.dimensions(index), size as u32);
                photos.fill(index, &view, size, out);
                f64::from(out[out.len() / 2])
            },
        )
        .sum()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut folder, mut size) = (None, 128);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--size" => size = arguments.next().context("--size: expected a number")?.parse()?,
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let data = Dataset::open(folder.context("expected a folder of class folders of photographs")?)?;

    let begin = Instant::now();
    let photos = Photos::load(&data, size, None)?;
    let mut sum = epoch(&photos, size as usize, 0);
    let cold = begin.elapsed();
    let begin = Instant::now();
    for number in 1..=EPOCHS {
        sum += epoch(&photos, size as usize, number);
    }
    let cached = begin.elapsed() / EPOCHS as u32;
    anyhow::ensure!(sum.is_finite(), "what is shown is no picture");
    for (name, time) in [("cold", cold), ("cached", cached)] {
        let speed = photos.len() as f64 / time.as_secs_f64();
        println!("{}", json!({"name": name, "images": photos.len(), "images_per_second": speed}));
    }
    Ok(())
}
