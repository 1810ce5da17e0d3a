//! Atomic file writes: a file appears complete or not at all.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use image::{ImageFormat, RgbImage};
use tempfile::NamedTempFile;

/// A file that is written and synced under a temporary name. It is renamed when [committed](Self::commit), and deleted when
/// dropped.
#[derive(Debug)]
#[must_use = "the file is deleted when this value is dropped"]
pub struct StagedFile {
    file: NamedTempFile,
    path: PathBuf,
}

/// Writes the contents for `path` into a temporary file beside it, and syncs it. Lack of space or permissions fails here: stage all
/// files that belong together before you commit the first.
///
/// # Errors
/// Errors of `write`, and of creating and syncing the file; also if `path` is a folder. No temporary file remains.
pub fn stage<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<(), E>,
) -> Result<StagedFile, E> {
    let folder = parent_dir(path);
    if !folder.is_dir() {
        let message = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message).into());
    }
    if path.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, found a folder").into());
    }
    let mut file = create_temporary_file(folder)?;
    let mut writer = BufWriter::new(file.as_file_mut());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.as_file().sync_all()?;
    Ok(StagedFile { file, path: path.to_owned() })
}

const PREFIX: &str = ".writing-";
const SUFFIX: &str = ".tmp";

/// Creates a temporary file in `folder`. It is locked as long as it is open, so that [`remove_abandoned`] leaves it alone.
fn create_temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder);
        let file = file.map_err(strip_temp_name)?;
        // On systems without locks, no file counts as abandoned.
        let _ = file.as_file().lock();
        // It may have been removed before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes the temporary files of [`stage`] in `folder` whose writer was killed. Files that are being written stay.
pub fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_temporary = name.starts_with(PREFIX)
            && name.ends_with(SUFFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_temporary && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl StagedFile {
    /// Renames the file to its final path, and replaces an older one.
    ///
    /// # Errors
    /// Errors of renaming; an older file is then unchanged.
    pub fn commit(self) -> io::Result<()> {
        if let Err(e) = self.file.persist(&self.path) {
            copy_fallback(e.file.path(), &self.path, e.error)?;
        }
        // The file is complete and in place. Not every file system syncs folders, and an error here does not undo the rename.
        #[cfg(unix)]
        let _ = File::open(parent_dir(&self.path)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// Copies a file to its final path on a file system that refused to rename it, as network mounts may. A crash during the copy
/// leaves an incomplete file.
///
/// # Errors
/// `error` itself if it is of another kind; errors of copying.
fn copy_fallback(from: &Path, to: &Path, error: io::Error) -> io::Result<()> {
    if !matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices) {
        return Err(error);
    }
    tracing::warn!(
        "{}: this file system cannot rename files ({error}); copying the file instead",
        to.display()
    );
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

/// Writes `path` so that a reader, or a crash at any moment, sees the old file or the complete new one. The contents go into a
/// temporary file beside it, which is synced, then renamed. No temporary file remains if `write` fails.
///
/// # Errors
/// As [`stage`] and [`StagedFile::commit`].
pub fn write_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<(), E>,
) -> Result<(), E> {
    Ok(stage(path, write)?.commit()?)
}

/// Removes the name that tempfile appends from an error of creating a temporary file or folder: the name is random, and the file
/// no longer exists.
pub fn strip_temp_name(error: io::Error) -> io::Error {
    let text = error.to_string();
    let Some((message, _)) = text.split_once(" at path \"") else { return error };
    // The message of the operating system, from which its error number is recovered.
    let code = message.rsplit_once("(os error ").and_then(|(_, code)| code.strip_suffix(')')?.parse().ok());
    code.map_or_else(|| io::Error::new(error.kind(), message), io::Error::from_raw_os_error)
}

fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Encodes `image` as PNG.
///
/// # Errors
/// Errors of encoding.
pub fn png(image: &RgbImage) -> io::Result<Vec<u8>> {
    let mut bytes = io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(io::Error::other)?;
    Ok(bytes.into_inner())
}

/// Writes `image` as PNG, atomically.
///
/// # Errors
/// Errors of encoding and writing.
pub fn write_png(path: &Path, image: &RgbImage) -> io::Result<()> {
    let bytes = png(image)?;
    write_atomically(path, |w| w.write_all(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomically(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_do_not_name_temporary_files() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        for error in [
            tempfile::Builder::new().tempfile_in(&missing).unwrap_err(),
            tempfile::Builder::new().tempdir_in(&missing).unwrap_err(),
        ] {
            assert!(error.to_string().contains("missing"), "{error}");
            let expected = std::fs::File::open(&missing).unwrap_err();
            let error = strip_temp_name(error);
            assert_eq!(
                (error.to_string(), error.raw_os_error()),
                (expected.to_string(), expected.raw_os_error())
            );
        }
        let other = strip_temp_name(io::Error::other("no room at path"));
        assert_eq!(other.to_string(), "no room at path");
    }

    #[test]
    fn a_file_is_copied_if_renaming_is_unsupported() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "older").unwrap();
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(copy_fallback(&from, &to, denied).is_err());
        assert_eq!(std::fs::read(&to).unwrap(), b"older");
        copy_fallback(&from, &to, io::ErrorKind::Unsupported.into()).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"new");
    }

    #[test]
    fn only_abandoned_temporary_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let staged = stage::<io::Error>(&path, |w| w.write_all(b"new")).unwrap();
        for name in [".writing-abc.tmp", ".writing-abc", "abc.tmp"] {
            std::fs::write(dir.path().join(name), "half").unwrap();
        }
        remove_abandoned(dir.path());
        staged.commit().unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".writing-abc", "abc.tmp", "f"]);
        remove_abandoned(&dir.path().join("missing"));
    }

    #[test]
    fn a_staged_file_exists_when_committed_and_is_deleted_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let stage = |bytes: &'static [u8]| stage::<io::Error>(&path, |w| w.write_all(bytes)).unwrap();
        let (first, second) = (stage(b"first"), stage(b"second"));
        assert!(!path.exists());
        second.commit().unwrap();
        drop(first);
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
