//! Opening data folders.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tiny_cats_export::decode;

use super::{Dataset, INDEX, Result, Shares, dataset::FileInfo, scan};

impl Dataset {
    /// Opens an index that [`Dataset::index`] wrote, or a folder: by the `index.json` in it, or else by scanning it.
    ///
    /// Images are recognized by their content, not by their names. Files that are not PNG, JPEG or WebP images, or are damaged, are
    /// skipped. So are links out of the folder, and files that changed since they were indexed: see [`Dataset::skipped`]. Hidden files,
    /// those of operating systems, such as `Thumbs.db`, and class folders without an image are skipped, too.
    ///
    /// Of identical files in one class, one is used; [`Dataset::duplicates`] lists those in several classes. An index is not filtered: if it
    /// lists a file and its copy, the data set has both.
    ///
    /// # Errors
    /// If the folder cannot be read, or has no class folders or no usable image, or if the index is invalid.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let index = path.join(INDEX);
        if path.is_file() {
            Self::open_index(path)
        } else if index.is_file() {
            Self::open_index(&index)
        } else {
            let found = scan::scan(path)?;
            let examined = found.files.par_iter().map(|(_, file)| examine(&path.join(file))).collect();
            Self::assemble(path, found, examined, Shares::default())
        }
    }
}

/// Reads the header of an image, or returns the reason why the image is not usable.
fn examine(path: &Path) -> std::result::Result<FileInfo, String> {
    let bytes = decode::read(path)?;
    let size = decode::check(&bytes)?;
    Ok(FileInfo { size, bytes: bytes.len() as u64, sha256: Sha256::digest(&bytes).into() })
}
