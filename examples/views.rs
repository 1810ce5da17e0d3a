//! What networks are shown of training pictures, as sheets to look at: `cargo run --example views -- DATA OUTPUT`.
//!
//! For each level and task, `OUTPUT/generator-full.png` and so on: eight pictures in rows, each as it is shown eight times.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use image::RgbImage;
use tiny_cats::data::{AugmentLevel, Cache, Dataset, ImageStore, Images, Photos, View};
use tiny_cats_export::{grid, to_rgb, write_png};

const SIZE: u32 = 64;
const SHOWN: usize = 8;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (data, output) = arguments.next().zip(arguments.next()).context("expected DATA and OUTPUT")?;
    let data = Dataset::open(data)?;
    let images = Images::load(&data, SIZE, Some(SHOWN), &Cache::Memory)?;
    let photos = Photos::load(&data, SIZE + SIZE / 8, Some(SHOWN), &Cache::Memory)?;
    std::fs::create_dir_all(&output)?;
    for level in AugmentLevel::value_variants() {
        let generator = |position, _| View::for_generator(*level, 0, position, SIZE);
        let classifier = |position, shape| View::for_classifier(*level, 0, position, shape, SIZE);
        let sheets = [("generator", sheet(&images, generator)?), ("classifier", sheet(&photos, classifier)?)];
        for (task, sheet) in sheets {
            let name = format!("{task}-{}.png", format!("{level:?}").to_lowercase());
            write_png(&output.join(name), &sheet)?;
        }
    }
    Ok(())
}

fn sheet(pictures: &ImageStore, view: impl Fn(u64, (u32, u32)) -> View) -> Result<RgbImage> {
    let size = SIZE as usize;
    let mut out = vec![0.0; 3 * size * size];
    let shown = (0..pictures.len() * SHOWN).map(|i| {
        let index = i / SHOWN;
        pictures.fill(index, &view(i as u64, pictures.dimensions(index)), size, &mut out)?;
        Ok(to_rgb(&out, SIZE))
    });
    Ok(grid(&shown.collect::<Result<Vec<_>>>()?, SHOWN, None))
}
