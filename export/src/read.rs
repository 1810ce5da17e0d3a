//! Reading of model files.

use std::path::Path;

use crate::{Error, Result};

/// Maximum size of a model file, in bytes: above any model that we write, and small enough to hold in memory.
const MAX_BYTES: u64 = i32::MAX as u64;

/// Reads a model file of at most [`MAX_BYTES`].
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if size > MAX_BYTES {
        let message = format!("expected at most {MAX_BYTES} bytes, found {size}");
        return Err(Error::file(path.display(), "size", message));
    }
    std::fs::read(path).map_err(Error::io(path))
}
