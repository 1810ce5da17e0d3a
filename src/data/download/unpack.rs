//! Unpacks archives into folders, completely or not at all.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::{Archive, Error, Result};

/// The file in an unpacked folder that identifies its archive.
const MANIFEST: &str = ".unpacked.json";

const MAX_FILES: u64 = 100_000;

/// The largest depth of folders within folders.
const MAX_DEPTH: usize = 8;

/// The largest extension of a header, such as a long name, in bytes.
const MAX_HEADER: u64 = 64 << 10;

/// The manifest of an unpacked archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    archive: String,
    md5: String,
    pub files: u64,
    pub bytes: u64,
}

/// The manifest of `folder` if it holds the content of `archive`; `None` if there is no such folder. Other content is an error.
pub(super) fn read_manifest(folder: &Path, archive: &Archive) -> Result<Option<Manifest>> {
    if !folder.try_exists().map_err(Error::io(folder))? && !folder.is_symlink() {
        return Ok(None);
    }
    let occupied = |found: String| Error::Occupied { folder: folder.to_owned(), found };
    let path = folder.join(MANIFEST);
    let small = fs::metadata(&path).is_ok_and(|m| m.len() <= 4096);
    let manifest: Option<Manifest> =
        small.then(|| fs::read(&path).ok()).flatten().and_then(|json| serde_json::from_slice(&json).ok());
    let manifest = manifest
        .filter(|m| m.archive == archive.file_name() && m.md5 == archive.md5)
        .ok_or_else(|| occupied("other files".into()))?;
    let (files, bytes) = count(folder, MAX_DEPTH)?;
    let manifest_bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
    if (files, bytes) != (manifest.files.saturating_add(1), manifest.bytes.saturating_add(manifest_bytes)) {
        return Err(occupied(format!(
            "{} files of {bytes} bytes instead of {} of {}",
            files.saturating_sub(1),
            manifest.files,
            manifest.bytes.saturating_add(manifest_bytes),
        )));
    }
    Ok(Some(manifest))
}

/// Counts the files in `folder` and their total size in bytes. Links are not followed.
fn count(folder: &Path, depth: usize) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let meta = entry.metadata().map_err(Error::io(&entry.path()))?;
        let (files, bytes) = match meta.is_dir() {
            true if depth == 0 => (0, 0),
            true => count(&entry.path(), depth - 1)?,
            false => (1, meta.len()),
        };
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}

/// Unpacks the gzipped tar file at `path`, whose files are all in a folder of the archive's name, to `folder`, which must not exist.
/// `progress` is called with the number of the archive's bytes that are read so far.
///
/// Only plain files are written, under names inside the folder; permissions and times are ignored. The files `._name` that macOS adds are
/// skipped.
pub(super) fn unpack(
    path: &Path,
    folder: &Path,
    archive: &Archive,
    progress: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let temporary = folder.with_file_name(format!(".unpacking-{}", archive.name));
    let clear = || match fs::remove_dir_all(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&temporary)(e)),
        _ => Ok(()),
    };
    // Removes the files of a killed run.
    clear()?;
    fs::create_dir(&temporary).map_err(Error::io(&temporary))?;
    let manifest = write_files(path, &temporary, archive, progress).and_then(|manifest| {
        let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::io(&temporary)(e.into()))?;
        fs::write(temporary.join(MANIFEST), json).map_err(Error::io(&temporary))?;
        fs::rename(&temporary, folder).map_err(Error::io(folder))?;
        Ok(manifest)
    });
    if manifest.is_err() {
        // Only the first error is reported.
        let _ = clear();
    }
    manifest
}

fn write_files(
    path: &Path,
    temporary: &Path,
    archive: &Archive,
    progress: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let invalid = |reason: String| Error::Archive { path: path.to_owned(), reason };
    let damaged = |e: io::Error| invalid(e.to_string());
    let (read, remaining) = (Cell::new(0), Cell::new(0));
    let packed = CountingReader {
        inner: File::open(path).map_err(Error::io(path))?,
        count: |n| {
            read.set(read.get() + n);
            Ok(())
        },
    };
    // The tar reader keeps long names in memory, so the bytes that it may read for each entry are limited.
    let unpacked = CountingReader {
        inner: MultiGzDecoder::new(io::BufReader::with_capacity(1 << 16, packed)),
        count: |n| {
            let rest = u64::checked_sub(remaining.get(), n);
            remaining.set(rest.ok_or_else(|| io::Error::other("a header is too long"))?);
            Ok(())
        },
    };
    let mut tar = tar::Archive::new(unpacked);
    let mut manifest = Manifest { archive: archive.file_name(), md5: archive.md5.into(), files: 0, bytes: 0 };
    remaining.set(MAX_HEADER);
    let (mut entries, mut total) = (0u64, 0u64);
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        entries += 1;
        total = total.saturating_add(size);
        if total > archive.max_bytes || entries > MAX_FILES {
            let max = archive.max_bytes;
            return Err(invalid(format!("unpacks to more than {max} bytes or {MAX_FILES} files")));
        }
        remaining.set(size + MAX_HEADER);
        let target = match entry.header().entry_type() {
            // The oldest format marks a folder only by its name.
            EntryType::Regular if !name.ends_with('/') => {
                target_path(&name, archive.name).map_err(&invalid)?
            }
            EntryType::Regular | EntryType::Directory => {
                target_path(&name, archive.name).map(|_| None).map_err(&invalid)?
            }
            EntryType::XGlobalHeader => None,
            other => return Err(invalid(format!("{name:?}: expected a plain file, found {other:?}"))),
        };
        if let Some(target) = target {
            let target = temporary.join(target);
            let parent = target.parent().unwrap_or(temporary);
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
            let mut file = File::create_new(&target).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => invalid(format!("{name:?}: expected once, found twice")),
                _ => Error::io(&target)(e),
            })?;
            let copied = copy(&mut entry, &mut file).map_err(|e| match e {
                CopyError::Read(e) => damaged(e),
                CopyError::Write(e) => Error::io(&target)(e),
            })?;
            if copied != size {
                return Err(invalid(format!("{name:?}: expected {size} bytes, found {copied}")));
            }
            manifest.files += 1;
            manifest.bytes += size;
        }
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        remaining.set(MAX_HEADER);
        progress(read.get());
    }
    if manifest.files == 0 {
        return Err(invalid(format!("expected files in {}/, found none", archive.name)));
    }
    Ok(manifest)
}

/// The path of the entry `name` relative to the archive's folder; `None` for the folder itself and for skipped entries.
fn target_path(name: &str, folder: &str) -> Result<Option<PathBuf>, String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => return Err(format!("{name:?} is outside of the folder")),
        }
    }
    // A name that another system rejects or interprets as a path.
    let is_invalid = |c: char| c.is_control() || ['\\', ':', '\u{fffd}'].contains(&c);
    if parts.len() > MAX_DEPTH || parts.iter().any(|part| part.contains(is_invalid)) {
        return Err(format!("{name:?} is not a valid file name"));
    }
    if parts.last().is_none_or(|part| part.starts_with("._")) {
        return Ok(None);
    }
    if parts.first().is_none_or(|part| part != folder) {
        return Err(format!("{name:?} is not in {folder}/"));
    }
    if parts.get(1).is_some_and(|part| part == MANIFEST) {
        return Err(format!("{name:?} is a reserved name"));
    }
    Ok((parts.len() > 1).then(|| parts[1..].iter().collect()))
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies like [`io::copy`], but distinguishes a damaged archive from a full disk.
fn copy(from: &mut impl Read, to: &mut impl io::Write) -> Result<u64, CopyError> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        let n = from.read(&mut buffer).map_err(CopyError::Read)?;
        if n == 0 {
            return Ok(copied);
        }
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        copied += n as u64;
    }
}

/// A reader that reports how many bytes were read.
struct CountingReader<R, F> {
    inner: R,
    count: F,
}

impl<R: Read, F: FnMut(u64) -> io::Result<()>> Read for CountingReader<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        (self.count)(n as u64)?;
        Ok(n)
    }
}
