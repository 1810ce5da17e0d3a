//! Cache files of decoded images, so that each image is decoded once and not once per run.
//!
//! The name of a file identifies its content: the resize mode, and the SHA-256 of each image in order. So a file is never updated. It holds
//! the images' pixels, then a CRC-32C of each image's pixels (4 bytes each, little-endian). JSON with the images that could not be decoded
//! and the reasons follows, then a trailer with lengths and a checksum over all but the pixels. The offset of each image's pixels follows
//! from the data set.
//!
//! Programs map the file into memory. The parts in use are in the system's page cache, which all runs share. So an image's checksum is
//! verified when the image is first used, not before.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use memmap2::Mmap;
use tempfile::{NamedTempFile, TempPath};
use tiny_cats_export::strip_temp_name;

use super::{Error, Result, hex};

/// The location of decoded images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Files in the folder `TINY_CATS_CACHE`. If that is unset, in `tiny-cats` in the system's folder for caches, which on Linux is
    /// `XDG_CACHE_HOME` or `~/.cache`. If there is no such folder, images are kept in memory.
    #[default]
    Default,
    /// Files in this folder.
    Folder(PathBuf),
    /// This program's memory, until it ends.
    Memory,
}

impl Cache {
    /// The folder of the files; `None` for memory.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Default => {
                default_folder(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            }
            Self::Folder(folder) => Some(folder.clone()),
            Self::Memory => None,
        }
    }
}

fn default_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let caches = || {
        // The XDG base directory specification: a relative path must be ignored.
        let xdg = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        xdg.or_else(|| {
            if cfg!(windows) {
                return variable("LOCALAPPDATA");
            }
            let home = variable("HOME")?;
            Some(home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
        })
    };
    variable("TINY_CATS_CACHE").or_else(|| Some(caches()?.join("tiny-cats")))
}

const EXTENSION: &str = "pixels";
const TEMP_PREFIX: &str = ".writing-";
/// The age after which an unfinished file is considered abandoned by a killed program.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest size of the decoding errors in a file, in bytes.
const MAX_REASON_BYTES: u64 = 1 << 28;
/// The space that is left free on a disk, in bytes.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// A file of decoded images, finished or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    /// The path of the file.
    pub path: PathBuf,
    /// Its length, in bytes.
    pub bytes: u64,
    /// The time of its last change.
    pub written: Option<SystemTime>,
    /// True if it is complete; another program may still be writing an incomplete file.
    pub finished: bool,
}

/// Lists the cache files in `folder`, sorted by name; other files are ignored. A missing folder has none.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<CacheFile>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(finished) = path.file_name().and_then(|name| is_finished(name.to_str()?)) else { continue };
        // The file may have been deleted in the meantime.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_file() {
            files.push(CacheFile {
                path,
                bytes: metadata.len(),
                written: metadata.modified().ok(),
                finished,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Deletes the cache files in `folder`, and returns them.
///
/// Programs that use the files continue to do so. Programs that are writing a file will keep their images in memory.
///
/// # Errors
/// If a file cannot be deleted.
pub fn clear(folder: &Path) -> Result<Vec<CacheFile>> {
    let files = list(folder)?;
    for file in &files {
        remove(&file.path).map_err(Error::io(&file.path))?;
    }
    Ok(files)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// True if the cache file of this name is finished; `None` if it is not a cache file.
fn is_finished(name: &str) -> Option<bool> {
    if name.starts_with(TEMP_PREFIX) && name.ends_with(&format!(".{EXTENSION}")) {
        return Some(false);
    }
    let (rest, hash) = name.strip_suffix(&format!(".{EXTENSION}"))?.rsplit_once('-')?;
    let (_, size) = rest.rsplit_once('-')?;
    let valid =
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && size.parse::<u32>().is_ok();
    valid.then_some(true)
}

/// The identity of a cache file.
pub(super) struct CacheKey {
    /// The prefix of its name.
    pub kind: String,
    /// SHA-256 over everything that its pixels depend on.
    pub hash: [u8; 32],
    /// Number of bytes of pixels.
    pub pixels: u64,
    /// Number of images.
    pub images: u64,
}

/// The end of a file. It is written last, so that a truncated file has none.
struct Trailer {
    hash: [u8; 32],
    pixels: u64,
    images: u64,
    reasons: u64,
}

impl Trailer {
    /// The magic number of this version of the format; files without checksums of their images had another.
    const MAGIC: &[u8; 16] = b"tiny-cats pixel2";
    const LEN: u64 = 16 + 32 + 8 + 8 + 8 + 4;

    /// The trailer's bytes, with a checksum (CRC-32C) over them and `preceding`: the checksums and reasons that precede it.
    fn bytes(&self, preceding: &[u8]) -> Vec<u8> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend(self.hash);
        for len in [self.pixels, self.images, self.reasons] {
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c_append(crc32c::crc32c(preceding), &bytes).to_le_bytes());
        bytes
    }
}

/// The checksum of an image's pixels.
pub(super) fn checksum(pixels: &[u8]) -> u32 {
    crc32c::crc32c(pixels)
}

/// The checksums and decoding errors in a cache file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CacheIndex {
    /// The [checksum] of each image's pixels; 0 if it could not be decoded.
    pub checksums: Vec<u32>,
    /// The images that could not be decoded, in order, and the reasons.
    pub reasons: DecodeErrors,
}

/// The images that could not be decoded, by index, and the reasons.
pub(super) type DecodeErrors = Vec<(usize, String)>;

/// A file that is mapped into memory.
pub(super) struct MappedFile {
    map: Mmap,
    /// A file that was not moved to its final name and is deleted after use. It is dropped after the map, as some systems require.
    _temporary: Option<TempPath>,
}

impl MappedFile {
    fn new(file: &File, temporary: Option<TempPath>) -> io::Result<Self> {
        // SAFETY: the file is in the user's own cache folder under a name that this program chose, and is not written to after it is
        // finished. A process that can truncate it anyway runs with the user's rights.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map, _temporary: temporary })
    }

    /// The bytes of the file, which start with the pixels.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl CacheKey {
    /// The path of the cache file in `folder`.
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}.{EXTENSION}", self.kind, hex(&self.hash)))
    }

    /// Opens the cache file in `folder`; `None` if there is none, with the reason if it is invalid.
    pub(super) fn open(
        &self,
        folder: &Path,
    ) -> std::result::Result<Option<(MappedFile, CacheIndex)>, String> {
        let path = self.path(folder);
        let invalid = |reason: &str| format!("{}: {reason}; it will be rewritten", path.display());
        let file = match File::open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            file => file.map_err(|e| invalid(&e.to_string()))?,
        };
        let metadata = file.metadata().map_err(|e| invalid(&e.to_string()))?;
        let checksums = self.images.saturating_mul(4);
        let fixed = self.pixels.saturating_add(checksums).saturating_add(Trailer::LEN);
        let reasons = metadata.len().checked_sub(fixed);
        let (true, Some(reasons)) = (metadata.is_file(), reasons.filter(|&len| len <= MAX_REASON_BYTES))
        else {
            return Err(invalid(&format!("expected at least {fixed} bytes, found {}", metadata.len())));
        };
        let mapped = MappedFile::new(&file, None).map_err(|e| invalid(&e.to_string()))?;
        // The pixels of each image are verified when they are first used, because there may be many.
        let end = &mapped.bytes()[self.pixels as usize..];
        let (preceding, trailer) = end.split_at((checksums + reasons) as usize);
        if trailer != self.trailer(reasons).bytes(preceding) {
            return Err(invalid("its trailer is damaged or has another version"));
        }
        let (checksums, text) = preceding.split_at(checksums as usize);
        let checksums = checksums.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let reasons = serde_json::from_slice(text).map_err(|e| invalid(&e.to_string()))?;
        Ok(Some((mapped, CacheIndex { checksums, reasons })))
    }

    fn trailer(&self, reasons: u64) -> Trailer {
        Trailer { hash: self.hash, pixels: self.pixels, images: self.images, reasons }
    }

    /// Creates the cache file in `folder`.
    ///
    /// `write` writes the pixels and returns the file's index, and true if the file may be reused. Otherwise the file is deleted after use.
    ///
    /// The file is written to a temporary name in the same folder, synced, and renamed. So several programs may create it at the same time,
    /// and a killed program leaves no file that is used.
    pub(super) fn create(
        &self,
        folder: &Path,
        write: impl FnOnce(&File) -> io::Result<(CacheIndex, bool)>,
    ) -> io::Result<(MappedFile, CacheIndex)> {
        fs::create_dir_all(folder)?;
        remove_abandoned(folder);
        let needed = self.pixels.saturating_add(MIN_FREE_BYTES);
        let free = fs4::available_space(folder)?;
        if free < needed {
            let reason = format!("{} MiB are free, {} MiB are needed", free >> 20, needed.div_ceil(1 << 20));
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        let temporary = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .suffix(&format!(".{EXTENSION}"))
            .tempfile_in(folder)
            .map_err(strip_temp_name)?;
        let file = temporary.as_file();
        file.set_len(self.pixels)?;
        let (index, cacheable) = write(file)?;
        let text = serde_json::to_vec(&index.reasons)?;
        let mut end: Vec<u8> = index.checksums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        end.extend(&text);
        end.extend(self.trailer(text.len() as u64).bytes(&end));
        write_at(file, &end, self.pixels)?;
        let mapped = |temporary: NamedTempFile| {
            let (file, path) = temporary.into_parts();
            MappedFile::new(&file, Some(path))
        };
        if !cacheable {
            return Ok((mapped(temporary)?, index));
        }
        #[cfg(unix)]
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.sync_all()?;
        match temporary.persist(self.path(folder)) {
            Ok(file) => Ok((MappedFile::new(&file, None)?, index)),
            // Some systems do not replace a file that another program has mapped; that file is the same.
            Err(error) => Ok((mapped(error.file)?, index)),
        }
    }
}

/// Deletes the unfinished files of killed programs.
fn remove_abandoned(folder: &Path) {
    let old = |file: &CacheFile| {
        file.written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > ABANDONED_AFTER)
    };
    for file in list(folder).unwrap_or_default().iter().filter(|file| !file.finished && old(file)) {
        // A remaining file does no harm.
        let _ = remove(&file.path);
    }
}

/// Writes all of `bytes` at `offset`; several threads may write at different offsets at the same time.
#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`; several threads may write at different offsets at the same time.
#[cfg(windows)]
pub(super) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        (bytes, offset) = (&bytes[written..], offset + written as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let folder = |set: &[(&str, &str)]| {
            default_folder(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value)))
        };
        let own = ("TINY_CATS_CACHE", "/ours");
        assert_eq!(folder(&[own, ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home")]), Some("/ours".into()));
        assert_eq!(folder(&[]), None);
        if cfg!(target_os = "linux") {
            let xdg = [("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home")];
            assert_eq!(folder(&xdg), Some("/xdg/tiny-cats".into()));
            assert_eq!(folder(&xdg[1..]), Some("/home/.cache/tiny-cats".into()));
            assert_eq!(folder(&[("XDG_CACHE_HOME", "rel"), xdg[1]]), Some("/home/.cache/tiny-cats".into()));
        }
        assert_eq!(Cache::Memory.folder(), None);
        assert_eq!(Cache::Folder("x".into()).folder(), Some("x".into()));
    }

    #[test]
    fn only_cache_files_are_listed_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0123456789abcdef".repeat(4);
        let (squares, photographs) =
            (format!("squares-64-{hash}.pixels"), format!("photographs-8-{hash}.pixels"));
        let others = ["a.pixels", "squares-64-12.pixels", "notes.txt", ".writing-x.tmp", &hash];
        for name in [&squares, &photographs, ".writing-abc.pixels"].into_iter().chain(others) {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join(squares.replace("64-", "32-"))).unwrap();
        let found = list(dir.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|f| (f.path.file_name().unwrap().to_str().unwrap(), f.finished)).collect();
        assert_eq!(names, [(".writing-abc.pixels", false), (&*photographs, true), (&*squares, true)]);
        assert_eq!(found[1].bytes, photographs.len() as u64);
        assert_eq!(clear(dir.path()).unwrap(), found);
        assert!(list(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len() + 1);
        assert!(list(&dir.path().join("missing")).unwrap().is_empty());
    }

    #[test]
    fn abandoned_files_are_removed_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        for (name, age) in
            [(".writing-old.pixels", 2 * ABANDONED_AFTER), (".writing-new.pixels", Duration::ZERO)]
        {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let key = CacheKey { kind: "squares-8".into(), hash: [7; 32], pixels: 3, images: 2 };
        let index =
            || CacheIndex { checksums: vec![checksum(b"abc"), 0], reasons: vec![(1, "why".to_string())] };
        key.create(dir.path(), |file| write_at(file, b"abc", 0).map(|()| (index(), true))).unwrap();
        let names: Vec<_> = list(dir.path()).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(names, [dir.path().join(".writing-new.pixels"), key.path(dir.path())]);
        let (mapped, found) = key.open(dir.path()).unwrap().unwrap();
        assert_eq!((&mapped.bytes()[..3], found), (&b"abc"[..], index()));
    }
}
