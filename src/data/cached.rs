//! Pixels in a file of the cache, each picture verified when it is first used.

use std::{
    collections::HashMap,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use image::RgbImage;

use super::{
    Error, Result,
    cache::{MappedFile, checksum},
    printable,
};

/// Decoded pictures in a mapped file. One whose checksum does not match is decoded again.
pub(super) struct Cached {
    mapped: MappedFile,
    /// The file, deleted as soon as a picture in it is found to be damaged, so that the next run writes it again.
    path: PathBuf,
    pictures: Vec<Checked>,
    /// Pixels of damaged pictures.
    restored: Mutex<HashMap<usize, Arc<[u8]>>>,
}

/// The checksum of a picture, and whether it is known to match.
struct Checked {
    sum: u32,
    state: AtomicU8,
}

const UNUSED: u8 = 0;
const VERIFIED: u8 = 1;
const DAMAGED: u8 = 2;

/// A picture's bytes.
pub(super) enum ImageBytes<'a> {
    /// In the file or in memory.
    Borrowed(&'a [u8]),
    /// Decoded again.
    Restored(Arc<[u8]>),
}

impl Deref for ImageBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Restored(bytes) => bytes,
        }
    }
}

impl Cached {
    /// The pictures with these checksums in `mapped`, which is the file `path`.
    pub(super) fn new(mapped: MappedFile, path: PathBuf, sums: impl Iterator<Item = u32>) -> Self {
        let pictures = sums.map(|sum| Checked { sum, state: AtomicU8::new(UNUSED) }).collect();
        Self { mapped, path, pictures, restored: Mutex::default() }
    }

    /// The bytes of picture `index`, which are at `offset` and of `size`, a width and a height. If they are damaged, `decode` is to decode
    /// the picture from its `source` again.
    ///
    /// # Errors
    /// [`Error::Damaged`] when that gives no picture, or another one.
    pub(super) fn picture(
        &self,
        index: usize,
        (offset, size): (usize, [u32; 2]),
        source: &Path,
        decode: impl FnOnce() -> std::result::Result<RgbImage, String>,
    ) -> Result<ImageBytes<'_>> {
        let bytes = &self.mapped.bytes()[offset..offset + byte_len(size)];
        let Checked { sum, state } = &self.pictures[index];
        if state.load(Ordering::Relaxed) == UNUSED {
            state.store(if checksum(bytes) == *sum { VERIFIED } else { DAMAGED }, Ordering::Relaxed);
        }
        if state.load(Ordering::Relaxed) == VERIFIED {
            return Ok(ImageBytes::Borrowed(bytes));
        }
        // Locked while it decodes, so that several threads do not decode the same picture.
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = restored.get(&index) {
            return Ok(ImageBytes::Restored(bytes.clone()));
        }
        let same = |pixels: &RgbImage| [pixels.width(), pixels.height()] == size && checksum(pixels) == *sum;
        let again: Arc<[u8]> = decode()
            .and_then(|pixels| {
                same(&pixels).then_some(pixels).ok_or_else(|| "it is another picture now".into())
            })
            .map_err(|reason| Error::Damaged { path: source.to_owned(), cache: self.path.clone(), reason })?
            .into_raw()
            .into();
        tracing::warn!(
            "{}: the pixels of {} are damaged; the picture was decoded again, and the next run writes the file again",
            self.path.display(),
            printable(source).display()
        );
        // Where that fails, the next run finds the damage again.
        let _ = fs::remove_file(&self.path);
        restored.insert(index, again.clone());
        Ok(ImageBytes::Restored(again))
    }
}

/// How many bytes a picture of `size`, a width and a height, has.
pub(super) fn byte_len([width, height]: [u32; 2]) -> usize {
    3 * width as usize * height as usize
}
