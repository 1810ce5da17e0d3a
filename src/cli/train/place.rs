//! Whether there is a place for what a run will write, before it begins.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// What is written to see whether anything can be: a block, which a full disk has no room for.
const PROBE: [u8; 4096] = [0; 4096];

/// The nearest folder of `folder`'s parents that is there, which may be itself; what is in its place, if that is no folder.
fn there(folder: &Path) -> &Path {
    let parents =
        folder.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    parents.into_iter().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."))
}

/// Looks whether files can be written in `folder`, which need not be there yet: in the nearest of its parents that is. Leaves nothing.
///
/// # Errors
/// When none can be written: a file is in the way, rights are missing, or the disk is full.
pub fn can_write(folder: &Path) -> io::Result<()> {
    // No name of a file that is made for a moment is in an error of the standard library.
    let path = there(folder).join(format!(".writing-{}.tmp", std::process::id()));
    let mut file = File::create_new(&path)?;
    let written = file.write_all(&PROBE).and_then(|()| file.sync_all());
    drop(file);
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

/// Looks whether `bytes` have room in `folder`, which need not be there yet.
///
/// # Errors
/// When there is less room, or nobody can say.
pub fn has_room(folder: &Path, bytes: u64) -> io::Result<()> {
    let free = fs4::available_space(there(folder))?;
    if free >= bytes {
        return Ok(());
    }
    let [needed, free] = [bytes, free].map(|bytes| bytes.div_ceil(1_000_000));
    let message = format!("the released files need {needed} MB, {free} MB are free");
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_looked_at_and_nothing_is_left_there() {
        let dir = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        for folder in [dir.path().to_owned(), dir.path().join("a/b/c")] {
            can_write(&folder).unwrap();
            has_room(&folder, 1).unwrap();
            let error = has_room(&folder, u64::MAX).unwrap_err().to_string();
            assert!(error.starts_with("the released files need 18446744073710 MB"), "{error}");
            assert_eq!(names(), 0);
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        for folder in ["file", "file/a/b"] {
            let error = can_write(&dir.path().join(folder)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{folder}");
        }
        assert_eq!(names(), 1);
    }
}
