//! The generated images of an evaluation: from a generator, or read from a folder.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tiny_cats_export::{GeneratedImage, Generator, Request, decode};
use walkdir::WalkDir;

use super::{Error, Event, Result, event::Progress, source::labels};
use crate::data::{Dataset, can_be_image, hex};

/// Maximum number of files, so that the list of paths fits into memory.
const MAX_FILES: usize = 1 << 20;
/// Maximum width and height of compared images, in pixels.
pub(super) const MAX_SIZE: u32 = 1024;
/// Maximum total bytes of generated images, which stay in memory for the sheet of nearest images.
const MAX_BYTES: usize = 4 << 30;

/// Generated images.
pub(super) struct GeneratedSet {
    /// The images, all of one size.
    pub images: Vec<RgbImage>,
    /// The requested class of each image, if it is known.
    pub labels: Vec<Option<usize>>,
    /// SHA-256 over the digests of the image files, in hexadecimal; `None` for images that are not from files.
    pub fingerprint: Option<String>,
    /// Files that cannot be used, with the reasons.
    pub skipped: Vec<(PathBuf, String)>,
}

/// For each class of the data, its label among `classes`, the classes of a generator.
///
/// # Errors
/// If the data contains an image of another class.
pub(super) fn class_labels(path: &Path, data: &Dataset, classes: &[String]) -> Result<Vec<Option<usize>>> {
    let generator_labels = labels(&data.classes, classes);
    match data.files.iter().find(|file| generator_labels[file.label as usize].is_none()) {
        None => Ok(generator_labels),
        Some(file) => {
            let (missing, classes) = (&data.classes[file.label as usize], classes.join(", "));
            let message = format!("the generator has no class {missing:?}; its classes are {classes}");
            Err(Error::images(path, message))
        }
    }
}

/// Generates `counts[label]` images of each class.
///
/// # Errors
/// If the images do not fit into memory, and those of the generator.
pub(super) fn generate_set(
    generator: &mut Generator,
    counts: &[usize],
    request: &Request,
    observe: &mut dyn FnMut(Event),
) -> Result<GeneratedSet> {
    let labels: Vec<usize> =
        counts.iter().enumerate().flat_map(|(label, &count)| std::iter::repeat_n(label, count)).collect();
    check_memory(labels.len(), generator.meta().image_size)?;
    let mut images = Vec::with_capacity(labels.len());
    generate_each(generator, &labels, request, observe, |image| images.push(image.image))?;
    let labels = labels.into_iter().map(Some).collect();
    Ok(GeneratedSet { images, labels, fingerprint: None, skipped: Vec::new() })
}

/// Generates an image for each of `labels`, with indices from 0, and passes the images to `sink` in this order.
///
/// # Errors
/// Those of the generator.
pub(super) fn generate_each(
    generator: &mut Generator,
    labels: &[usize],
    request: &Request,
    observe: &mut dyn FnMut(Event),
    mut sink: impl FnMut(GeneratedImage),
) -> Result<()> {
    let mut progress = Progress::new(observe, "images generated", labels.len());
    let on_progress = |_| ControlFlow::Continue(());
    generator.generate_each(labels, 0, request, on_progress, |image| {
        sink(image);
        progress.add(1);
        Ok(())
    })
}

/// Reads the images in a folder and its subfolders. Resizes their center squares to `size` pixels; without `size`, all images must be
/// squares of the same size. The class of an image is given by the name of its folder, or by the start of its file name.
///
/// # Errors
/// If the folder cannot be read, or the images differ in size or do not fit into memory.
pub(super) fn read_folder(
    folder: &Path,
    size: Option<u32>,
    classes: &[String],
    observe: &mut dyn FnMut(Event),
) -> Result<GeneratedSet> {
    let files = find_files(folder)?;
    let (mut hash, mut first_size) = (Sha256::new(), None);
    let mut generated =
        GeneratedSet { images: Vec::new(), labels: Vec::new(), fingerprint: None, skipped: Vec::new() };
    let mut progress = Progress::new(observe, "generated images read", files.len());
    for chunk in files.chunks(64) {
        let results: Vec<_> = chunk.par_iter().map(|path| read_image(path, size)).collect();
        for (path, result) in chunk.iter().zip(results) {
            let (image, sha256) = match result {
                Ok(decoded) => decoded,
                Err(reason) => {
                    generated.skipped.push((path.clone(), reason));
                    continue;
                }
            };
            let (width, height) = image.dimensions();
            let expected = *first_size.get_or_insert(width);
            if (width, height) != (expected, expected) {
                let message = format!(
                    "expected {expected} x {expected} px, as the other images, found {width} x {height}; set image_size to resize"
                );
                return Err(Error::images(path, message));
            }
            check_memory(generated.images.len() + 1, width as usize)?;
            generated.labels.push(class_of(path.strip_prefix(folder).unwrap_or(path), classes));
            generated.images.push(image);
            hash.update(sha256);
        }
        progress.add(chunk.len());
    }
    generated.fingerprint = Some(hex(&hash.finalize()));
    Ok(generated)
}

/// Finds all files in a folder and its subfolders that may be images, sorted by name.
fn find_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder_error = |message: String| Error::GeneratedImages { path: folder.to_owned(), message };
    let mut files = Vec::new();
    let entries = WalkDir::new(folder).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || can_be_image(entry.file_name())) {
        let entry = entry.map_err(|error| folder_error(std::io::Error::from(error).to_string()))?;
        if !entry.path().is_dir() {
            files.push(entry.into_path());
        }
        if files.len() > MAX_FILES {
            return Err(folder_error(format!("expected at most {MAX_FILES} files")));
        }
    }
    Ok(files)
}

/// Reads an image, and resizes its center square to `size` pixels. Also returns the SHA-256 of the file.
fn read_image(path: &Path, size: Option<u32>) -> std::result::Result<(RgbImage, [u8; 32]), String> {
    let bytes = decode::read(path)?;
    let image = match size {
        Some(size) => decode::decode_square(&bytes, size)?,
        // The header is checked before memory is allocated for the pixels.
        None => match decode::check(&bytes)? {
            [width, height] if width.max(height) > MAX_SIZE => {
                return Err(format!(
                    "expected at most {MAX_SIZE} px, found {width} x {height}; set image_size to resize"
                ));
            }
            _ => decode::upright(&bytes)?,
        },
    };
    Ok((image, Sha256::digest(&bytes).into()))
}

fn check_memory(count: usize, size: usize) -> Result<()> {
    match count.checked_mul(3 * size * size) {
        Some(bytes) if bytes <= MAX_BYTES => Ok(()),
        _ => Err(Error::Memory { count, size, max_gib: MAX_BYTES >> 30 }),
    }
}

/// The class of a file, by the name of its folder or the start of its file name.
fn class_of(path: &Path, classes: &[String]) -> Option<usize> {
    let parent = path.parent().and_then(|parent| parent.file_name()).and_then(|name| name.to_str());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let has_prefix =
        |class: &String| name.strip_prefix(class.as_str()).is_some_and(|rest| rest.starts_with('_'));
    let in_folder = classes.iter().position(|class| Some(class.as_str()) == parent);
    // The longest match, if the name of one class is a prefix of another.
    let by_name =
        || (0..classes.len()).filter(|&i| has_prefix(&classes[i])).max_by_key(|&i| classes[i].len());
    in_folder.or_else(by_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_file_is_given_by_its_folder_or_its_prefix() {
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
