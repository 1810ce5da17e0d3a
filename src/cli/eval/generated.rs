//! The images to compare: generated for the evaluation, or read from a folder.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tiny_cats_export::{GeneratedImage, Generator, Request, Sampler, decode};
use walkdir::WalkDir;

use super::{bar, labels};
use crate::{
    cli::common::interval,
    data::{Dataset, hex, is_ignored},
};

/// The maximum number of files; a list of so many paths fits into memory.
const MAX_FILES: usize = 1 << 20;
/// The largest width and height of compared images, in pixels.
pub const MAX_SIZE: u32 = 1024;
/// The maximum bytes of generated images, which stay in memory so that the nearest can be shown.
const MAX_BYTES: usize = 4 << 30;

/// Images from a generator.
pub struct GeneratedSet {
    /// The images, all of one size.
    pub images: Vec<RgbImage>,
    /// The requested class of each image, if it is known.
    pub labels: Vec<Option<usize>>,
    /// SHA-256 over the files of the images, in hexadecimal; `None` if they were just generated.
    pub fingerprint: Option<String>,
    /// Files that are not usable images, and the reasons.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Settings of the sampler.
#[derive(clap::Args, Debug)]
pub struct Sampling {
    /// Weight of classifier-free guidance; 1 disables it [default: what the model advises]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// Times at which guidance applies, from 0 (noise) to 1 (image) [default: what the model advises]
    #[arg(long, value_name = "FROM,TO", value_parser = interval)]
    cfg_interval: Option<[f32; 2]>,
    /// Steps from noise to image [default: what the model advises]
    #[arg(long)]
    steps: Option<usize>,
    /// Sampler: heun, euler or midpoint [default: what the model advises]
    #[arg(long)]
    sampler: Option<Sampler>,
}

impl Sampling {
    /// The request for a generator.
    pub fn request(&self, seed: u64) -> Request {
        Request {
            seed,
            steps: self.steps,
            sampler: self.sampler,
            guidance: self.cfg,
            guidance_interval: self.cfg_interval,
            ..Request::default()
        }
    }
}

/// For each class of the data, its label in `classes`, those of a generator.
///
/// # Errors
/// If the data has an image of another class.
pub fn class_labels(path: &Path, data: &Dataset, classes: &[String]) -> anyhow::Result<Vec<Option<usize>>> {
    let known = labels(&data.classes, classes);
    match data.files.iter().find(|file| known[file.label as usize].is_none()) {
        None => Ok(known),
        Some(file) => bail!(
            "{}: the generator draws no {:?}; it draws {}",
            path.display(),
            data.classes[file.label as usize],
            classes.join(", ")
        ),
    }
}

/// Generates `counts[label]` images of each class.
pub fn draw(generator: &mut Generator, counts: &[usize], request: &Request) -> anyhow::Result<GeneratedSet> {
    let labels: Vec<usize> =
        counts.iter().enumerate().flat_map(|(label, &count)| std::iter::repeat_n(label, count)).collect();
    check_memory(labels.len(), generator.meta().image_size)?;
    let mut images = Vec::with_capacity(labels.len());
    draw_each(generator, &labels, request, |picture| images.push(picture.image))?;
    let labels = labels.into_iter().map(Some).collect();
    Ok(GeneratedSet { images, labels, fingerprint: None, skipped: Vec::new() })
}

/// Generates an image for each of `labels`, numbered from 0, and passes them to `put` in this order.
pub fn draw_each(
    generator: &mut Generator,
    labels: &[usize],
    request: &Request,
    mut sink: impl FnMut(GeneratedImage),
) -> anyhow::Result<()> {
    let progress = bar(labels.len() as u64, "pictures drawn")?;
    let go_on = |_| ControlFlow::Continue(());
    generator.generate_each(labels, 0, request, go_on, |picture| {
        sink(picture);
        progress.inc(1);
        anyhow::Ok(())
    })?;
    progress.finish_and_clear();
    Ok(())
}

/// Reads the images in a folder and its subfolders. Their center squares are resized to `size` pixels; without a size, all images must be
/// squares of one size. The class of an image is that of its folder's name, or that which its own name begins with.
pub fn from_folder(folder: &Path, size: Option<u32>, classes: &[String]) -> anyhow::Result<GeneratedSet> {
    let mut files = Vec::new();
    let entries = WalkDir::new(folder).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !is_ignored(entry.file_name())) {
        let entry =
            entry.map_err(std::io::Error::from).with_context(|| format!("--images {}", folder.display()))?;
        if !entry.path().is_dir() {
            files.push(entry.into_path());
        }
        if files.len() > MAX_FILES {
            bail!("--images {}: there are more than {MAX_FILES} files", folder.display());
        }
    }
    let square = |bytes: &[u8]| match size {
        Some(size) => decode::decode_square(bytes, size),
        // Checked by the header, before memory is allocated for all pixels.
        None => match decode::check(bytes)? {
            [width, height] if width.max(height) > MAX_SIZE => {
                Err(format!("{width} x {height} pixels; expected at most {MAX_SIZE} px, or --image-size"))
            }
            _ => decode::upright(bytes),
        },
    };
    let read = |path: &PathBuf| {
        let bytes = decode::read(path)?;
        Ok::<_, String>((square(&bytes)?, <[u8; 32]>::from(Sha256::digest(&bytes))))
    };
    let (mut hash, mut first) = (Sha256::new(), None);
    let mut drawn =
        GeneratedSet { images: Vec::new(), labels: Vec::new(), fingerprint: None, skipped: Vec::new() };
    let progress = bar(files.len() as u64, "drawn pictures read")?;
    for part in files.chunks(64) {
        let pictures: Vec<Result<_, String>> = part.par_iter().map(read).collect();
        for (path, picture) in part.iter().zip(pictures) {
            let (image, sha256) = match picture {
                Ok(picture) => picture,
                Err(reason) => {
                    drawn.skipped.push((path.clone(), reason));
                    continue;
                }
            };
            let (width, height) = image.dimensions();
            let expected = *first.get_or_insert(width);
            if (width, height) != (expected, expected) {
                bail!(
                    "{}: is of {width} x {height} pixels; expected squares of {expected} as the others, or --image-size",
                    path.display()
                );
            }
            check_memory(drawn.images.len() + 1, width as usize)?;
            drawn.labels.push(class_of(path.strip_prefix(folder).unwrap_or(path), classes));
            drawn.images.push(image);
            hash.update(sha256);
        }
        progress.inc(part.len() as u64);
    }
    progress.finish_and_clear();
    drawn.fingerprint = Some(hex(&hash.finalize()));
    Ok(drawn)
}

fn check_memory(pictures: usize, size: usize) -> anyhow::Result<()> {
    match pictures.checked_mul(3 * size * size) {
        Some(bytes) if bytes <= MAX_BYTES => Ok(()),
        _ => bail!("{pictures} drawn pictures of {size} px do not fit into {} GiB", MAX_BYTES >> 30),
    }
}

/// The class of a file, by its folder or the beginning of its name.
fn class_of(path: &Path, classes: &[String]) -> Option<usize> {
    let parent = path.parent().and_then(|parent| parent.file_name()).and_then(|name| name.to_str());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let begins = |class: &String| name.strip_prefix(class.as_str()).is_some_and(|rest| rest.starts_with('_'));
    let in_folder = classes.iter().position(|class| Some(class.as_str()) == parent);
    // The longest, if one class's name begins with another's.
    let by_name = || (0..classes.len()).filter(|&i| begins(&classes[i])).max_by_key(|&i| classes[i].len());
    in_folder.or_else(by_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_known_by_the_folder_or_the_beginning_of_the_name() {
        let classes: Vec<String> = ["Cat", "Cat_Blue", "Dog"].map(String::from).to_vec();
        for (path, class) in [
            ("Dog/a.png", Some(2)),
            ("x/Dog/Cat_1.png", Some(2)),
            ("Cat_seed1_0001.png", Some(0)),
            ("Cat_Blue_seed1_0001.png", Some(1)),
            ("x/Cat_1.png", Some(0)),
            ("Category.png", None),
            ("1.png", None),
        ] {
            assert_eq!(class_of(Path::new(path), &classes), class, "{path}");
        }
    }
}
