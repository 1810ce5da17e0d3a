//! Checks that outputs can be written before a long computation starts.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use tiny_cats_export::strip_temp_name;

/// The bytes of a test write: one block, so that a full disk is detected.
const PROBE: [u8; 4096] = [0; 4096];

/// The nearest existing path among `folder` and its parents. It may be a file.
fn nearest_existing(folder: &Path) -> PathBuf {
    // Removes a trailing separator, with which a file would not be found.
    let folder: PathBuf = folder.components().collect();
    let parents = folder.ancestors().filter(|path| !path.as_os_str().is_empty());
    let existing = parents.into_iter().find(|path| path.symlink_metadata().is_ok());
    existing.unwrap_or(Path::new(".")).to_owned()
}

/// Checks that files can be written to `folder`, or to its nearest existing parent. Leaves no file.
///
/// # Errors
/// If a component of the path is a file, permissions are missing, or the disk is full.
pub fn check_can_write(folder: &Path) -> io::Result<()> {
    // The file has no name, so it is removed even if the process is killed.
    let mut file = tempfile::tempfile_in(nearest_existing(folder)).map_err(strip_temp_name)?;
    file.write_all(&PROBE)?;
    file.sync_all()
}

/// Checks that the disk of `folder`, which need not exist yet, has `bytes` free.
///
/// # Errors
/// If it has less free space, or the free space is unknown.
pub fn check_free_space(folder: &Path, bytes: u64) -> io::Result<()> {
    let free = fs4::available_space(nearest_existing(folder))?;
    if free >= bytes {
        return Ok(());
    }
    let [needed, free] = [bytes, free].map(|bytes| bytes.div_ceil(1_000_000));
    let message = format!("expected {needed} MB of free space for the released files, found {free} MB");
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_leave_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        for folder in [dir.path().to_owned(), dir.path().join("a/b/c")] {
            check_can_write(&folder).unwrap();
            check_free_space(&folder, 1).unwrap();
            let error = check_free_space(&folder, u64::MAX).unwrap_err().to_string();
            assert!(error.starts_with("expected 18446744073710 MB of free space"), "{error}");
            assert_eq!(count(), 0);
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        for folder in ["file", "file/", "file/a/b"] {
            let error = check_can_write(&dir.path().join(folder)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{folder}");
        }
        assert_eq!(count(), 1);
    }
}
