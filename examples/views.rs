//! Contact sheets of augmented training images: `cargo run --example views -- DATA OUTPUT`.
//!
//! Writes a sheet for each augmentation level and task, such as `OUTPUT/generator-full.png`, with eight views of eight images: one row
//! per image.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use image::RgbImage;
use tiny_cats::data::{AugmentLevel, Cache, Dataset, ImageStore, Images, Photos, View};
use tiny_cats_export::{grid, to_rgb, write_png};

const SIZE: u32 = 64;
/// Number of images, and of views of each.
const COUNT: usize = 8;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (data, output) = arguments.next().zip(arguments.next()).context("expected DATA and OUTPUT")?;
    let data = Dataset::open(data)?;
    let images = Images::load(&data, SIZE, Some(COUNT), &Cache::Memory)?;
    let photos = Photos::load(&data, SIZE + SIZE / 8, Some(COUNT), &Cache::Memory)?;
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

fn sheet(images: &ImageStore, view: impl Fn(u64, (u32, u32)) -> View) -> Result<RgbImage> {
    let size = SIZE as usize;
    let mut output = vec![0.0; 3 * size * size];
    let views = (0..images.len() * COUNT).map(|i| {
        let index = i / COUNT;
        images.fill(index, &view(i as u64, images.dimensions(index)), size, &mut output)?;
        Ok(to_rgb(&output, SIZE))
    });
    Ok(grid(&views.collect::<Result<Vec<_>>>()?, COUNT, None))
}
