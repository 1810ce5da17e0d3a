//! Images in a cache file, each verified when it is first used.

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

/// Decoded images in a mapped file. An image whose checksum does not match is decoded again.
pub(super) struct CachedImages {
    mapped: MappedFile,
    /// The file. It is deleted as soon as a damaged image is found, so that the next run writes it again.
    path: PathBuf,
    images: Vec<CachedChecksum>,
    /// The pixels of damaged images, by index.
    restored: Mutex<HashMap<usize, Arc<[u8]>>>,
}

/// The checksum of an image, and the state of its verification.
struct CachedChecksum {
    checksum: u32,
    state: AtomicU8,
}

const UNUSED: u8 = 0;
const VERIFIED: u8 = 1;
const DAMAGED: u8 = 2;

/// The bytes of an image.
pub(super) enum ImageBytes<'a> {
    /// Bytes in the file or in memory.
    Borrowed(&'a [u8]),
    /// Bytes that were decoded again.
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

impl CachedImages {
    /// Creates a reader of the images with these checksums in `mapped`, which is the file `path`.
    pub(super) fn new(mapped: MappedFile, path: PathBuf, checksums: impl Iterator<Item = u32>) -> Self {
        let images =
            checksums.map(|checksum| CachedChecksum { checksum, state: AtomicU8::new(UNUSED) }).collect();
        Self { mapped, path, images, restored: Mutex::default() }
    }

    /// The bytes of image `index`, which start at `offset`; `size` is its width and height. If they are damaged, `decode` decodes the image
    /// from its `source` again.
    ///
    /// # Errors
    /// [`Error::Damaged`] if that fails or gives another image.
    pub(super) fn image(
        &self,
        index: usize,
        (offset, size): (usize, [u32; 2]),
        source: &Path,
        decode: impl FnOnce() -> std::result::Result<RgbImage, String>,
    ) -> Result<ImageBytes<'_>> {
        let bytes = &self.mapped.bytes()[offset..offset + byte_len(size)];
        let CachedChecksum { checksum: expected, state } = &self.images[index];
        if state.load(Ordering::Relaxed) == UNUSED {
            state.store(if checksum(bytes) == *expected { VERIFIED } else { DAMAGED }, Ordering::Relaxed);
        }
        if state.load(Ordering::Relaxed) == VERIFIED {
            return Ok(ImageBytes::Borrowed(bytes));
        }
        // The lock is held while decoding, so that several threads do not decode the same image.
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = restored.get(&index) {
            return Ok(ImageBytes::Restored(bytes.clone()));
        }
        let matches =
            |pixels: &RgbImage| [pixels.width(), pixels.height()] == size && checksum(pixels) == *expected;
        let decoded: Arc<[u8]> = decode()
            .and_then(|pixels| {
                matches(&pixels).then_some(pixels).ok_or_else(|| "its content has changed".into())
            })
            .map_err(|reason| Error::Damaged { path: source.to_owned(), cache: self.path.clone(), reason })?
            .into_raw()
            .into();
        tracing::warn!(
            "{}: the pixels of {} are damaged; the image was decoded again, and the next run rewrites the file",
            self.path.display(),
            printable(source).display()
        );
        // If that fails, the next run finds the damage again.
        let _ = fs::remove_file(&self.path);
        restored.insert(index, decoded.clone());
        Ok(ImageBytes::Restored(decoded))
    }
}

/// The number of bytes of an image of `size`, a width and a height.
pub(super) fn byte_len([width, height]: [u32; 2]) -> usize {
    3 * width as usize * height as usize
}
