//! Files of decoded pictures, so that each is decoded once and not once a run.
//!
//! A file is named by what it is made of, form and SHA-256 of each picture in order, so that it never has to be brought up to date: what
//! is wanted is there, or is not. It holds the pictures' pixels, then a CRC-32C of each picture's pixels (4 bytes each, little-endian), then
//! JSON that says which could not be decoded and why, then a trailer with lengths and a checksum over all but the pixels. Where each
//! picture's pixels are follows from the data set. Programs map it into memory: what of it is in use is in the system's page cache, which
//! is shared by all runs and given up when memory is short. So a picture's checksum is verified when the picture is first used, not before.

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

use super::{Error, Result, index::hex};

/// Where decoded pictures are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// In the folder that `TINY_CATS_CACHE` names; unset, in `tiny-cats` in the folder that the system has for caches, which on Linux is
    /// `XDG_CACHE_HOME` or `~/.cache`; without any, in memory.
    #[default]
    Default,
    /// In files in this folder.
    At(PathBuf),
    /// In this program's memory, until it ends.
    Memory,
}

impl Cache {
    /// The folder, if there is to be one.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Default => {
                default_folder(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            }
            Self::At(folder) => Some(folder.clone()),
            Self::Memory => None,
        }
    }
}

fn default_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let caches = || {
        // The XDG base directory specification: a path that is not absolute is to be ignored.
        let named = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        named.or_else(|| {
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
/// What nobody has written to for so long belongs to a program that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Reasons why pictures could not be decoded are not read beyond this.
const MAX_REASON_BYTES: u64 = 1 << 28;
/// What is left free on a disk.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// A file of decoded pictures, or what is left of one that was not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was written.
    pub written: Option<SystemTime>,
    /// Whether it is whole; what is not may be being written by another program at this moment.
    pub finished: bool,
}

/// The files of decoded pictures in `folder`, sorted by name; other files are none of ours. A folder that is not there has none.
///
/// # Errors
/// When the folder can't be read.
pub fn list(folder: &Path) -> Result<Vec<CacheFile>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(finished) = path.file_name().and_then(|name| finished(name.to_str()?)) else { continue };
        // It may be gone by now.
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

/// Deletes the files of decoded pictures in `folder`, and returns them. Programs that use them now are not disturbed, but for those that
/// are writing one, which will keep their pictures in memory.
///
/// # Errors
/// When one can't be deleted.
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

/// Whether a file of this name is one of decoded pictures, and finished.
fn finished(name: &str) -> Option<bool> {
    if name.starts_with(TEMP_PREFIX) && name.ends_with(&format!(".{EXTENSION}")) {
        return Some(false);
    }
    let (rest, hash) = name.strip_suffix(&format!(".{EXTENSION}"))?.rsplit_once('-')?;
    let (_, size) = rest.rsplit_once('-')?;
    let sound =
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && size.parse::<u32>().is_ok();
    sound.then_some(true)
}

/// What a file is made of.
pub(super) struct CacheKey {
    /// The beginning of its name.
    pub kind: String,
    /// SHA-256 over everything that its pixels depend on.
    pub hash: [u8; 32],
    /// How many bytes of pixels there are.
    pub pixels: u64,
    /// How many pictures they are of.
    pub pictures: u64,
}

/// The end of a file. It is written last, so that what is cut off has none.
struct Trailer {
    hash: [u8; 32],
    pixels: u64,
    pictures: u64,
    reasons: u64,
}

impl Trailer {
    /// Of this version of the format; files without checksums of their pictures had another.
    const MAGIC: &[u8; 16] = b"tiny-cats pixel2";
    const LEN: u64 = 16 + 32 + 8 + 8 + 8 + 4;

    /// With a checksum (CRC-32C) over itself and `before`, the checksums and reasons that stand before it.
    fn bytes(&self, before: &[u8]) -> Vec<u8> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend(self.hash);
        for len in [self.pixels, self.pictures, self.reasons] {
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c_append(crc32c::crc32c(before), &bytes).to_le_bytes());
        bytes
    }
}

/// The checksum of a picture's pixels.
pub(super) fn checksum(pixels: &[u8]) -> u32 {
    crc32c::crc32c(pixels)
}

/// What a file says of its pictures.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CacheIndex {
    /// The [checksum] of each picture's pixels; of one that could not be decoded, 0.
    pub sums: Vec<u32>,
    /// Which pictures could not be decoded, in order, and why.
    pub reasons: DecodeErrors,
}

/// Which pictures could not be decoded, by number, and why.
pub(super) type DecodeErrors = Vec<(usize, String)>;

/// Bytes of a file in memory.
pub(super) struct MappedFile {
    map: Mmap,
    /// Deleted when it is no longer needed, because it was not put at its place; after the map, which some systems want gone by then.
    _temporary: Option<TempPath>,
}

impl MappedFile {
    fn new(file: &File, temporary: Option<TempPath>) -> io::Result<Self> {
        // SAFETY: the file is in the user's own cache folder under a name that this program gave it, and is never written to once it is
        // finished; whoever changes or cuts it nevertheless can do anything else to the user's programs too.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map, _temporary: temporary })
    }

    /// The pixels.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl CacheKey {
    /// Where the file of these pictures is in `folder`.
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}.{EXTENSION}", self.kind, hex(&self.hash)))
    }

    /// The file of these pictures in `folder`; `None` where there is none, and why there is none where one is not what it should be.
    pub(super) fn open(
        &self,
        folder: &Path,
    ) -> std::result::Result<Option<(MappedFile, CacheIndex)>, String> {
        let path = self.path(folder);
        let about = |what: &str| format!("{}: {what}; it is made anew", path.display());
        let file = match File::open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            file => file.map_err(|e| about(&e.to_string()))?,
        };
        let metadata = file.metadata().map_err(|e| about(&e.to_string()))?;
        let sums = self.pictures.saturating_mul(4);
        let fixed = self.pixels.saturating_add(sums).saturating_add(Trailer::LEN);
        let reasons = metadata.len().checked_sub(fixed);
        let (true, Some(reasons)) = (metadata.is_file(), reasons.filter(|&len| len <= MAX_REASON_BYTES))
        else {
            return Err(about(&format!("{} bytes, expected {fixed} or a few more", metadata.len())));
        };
        let mapped = MappedFile::new(&file, None).map_err(|e| about(&e.to_string()))?;
        // The pixels may be many: each picture's are verified when they are first used.
        let end = &mapped.bytes()[self.pixels as usize..];
        let (before, trailer) = end.split_at((sums + reasons) as usize);
        if trailer != self.trailer(reasons).bytes(before) {
            return Err(about("its end is damaged, or of another version"));
        }
        let (sums, text) = before.split_at(sums as usize);
        let sums = sums.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let reasons = serde_json::from_slice(text).map_err(|e| about(&e.to_string()))?;
        Ok(Some((mapped, CacheIndex { sums, reasons })))
    }

    fn trailer(&self, reasons: u64) -> Trailer {
        Trailer { hash: self.hash, pixels: self.pixels, pictures: self.pictures, reasons }
    }

    /// Makes the file of these pictures in `folder`. `write` is to write the pixels, and returns what the file is to say of the pictures, and
    /// whether that will be the same next time; if not, the file is used now and then deleted.
    ///
    /// It is written to a temporary name beside its place, synced, and renamed: several programs may do so at the same time, and of one
    /// that is killed nothing is left that is used.
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
            let reason = format!("{} MiB are free, {} needed", free >> 20, needed.div_ceil(1 << 20));
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        let temporary = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .suffix(&format!(".{EXTENSION}"))
            .tempfile_in(folder)
            .map_err(strip_temp_name)?;
        let file = temporary.as_file();
        file.set_len(self.pixels)?;
        let (contents, lasting) = write(file)?;
        let text = serde_json::to_vec(&contents.reasons)?;
        let mut end: Vec<u8> = contents.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        end.extend(&text);
        end.extend(self.trailer(text.len() as u64).bytes(&end));
        write_at(file, &end, self.pixels)?;
        let mapped = |temporary: NamedTempFile| {
            let (file, path) = temporary.into_parts();
            MappedFile::new(&file, Some(path))
        };
        if !lasting {
            return Ok((mapped(temporary)?, contents));
        }
        #[cfg(unix)]
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.sync_all()?;
        match temporary.persist(self.path(folder)) {
            Ok(file) => Ok((MappedFile::new(&file, None)?, contents)),
            // Some systems do not replace a file that another program has mapped; it is the same.
            Err(error) => Ok((mapped(error.file)?, contents)),
        }
    }
}

/// Deletes what programs that were killed left behind.
fn remove_abandoned(folder: &Path) {
    let old = |file: &CacheFile| {
        file.written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > ABANDONED_AFTER)
    };
    for file in list(folder).unwrap_or_default().iter().filter(|file| !file.finished && old(file)) {
        // It is in nobody's way.
        let _ = remove(&file.path);
    }
}

/// Writes all of `bytes` at `offset`; several threads may do so at the same time at different places.
#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`; several threads may do so at the same time at different places.
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
    fn the_folder_is_the_one_that_was_asked_for() {
        let folder = |set: &[(&str, &str)]| {
            default_folder(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value)))
        };
        let ours = ("TINY_CATS_CACHE", "/ours");
        assert_eq!(folder(&[ours, ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home")]), Some("/ours".into()));
        assert_eq!(folder(&[]), None);
        if cfg!(target_os = "linux") {
            let xdg = [("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home")];
            assert_eq!(folder(&xdg), Some("/xdg/tiny-cats".into()));
            assert_eq!(folder(&xdg[1..]), Some("/home/.cache/tiny-cats".into()));
            assert_eq!(folder(&[("XDG_CACHE_HOME", "rel"), xdg[1]]), Some("/home/.cache/tiny-cats".into()));
        }
        assert_eq!(Cache::Memory.folder(), None);
        assert_eq!(Cache::At("x".into()).folder(), Some("x".into()));
    }

    #[test]
    fn only_files_of_ours_are_listed_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0123456789abcdef".repeat(4);
        let (squares, photographs) =
            (format!("squares-64-{hash}.pixels"), format!("photographs-8-{hash}.pixels"));
        let theirs = ["a.pixels", "squares-64-12.pixels", "notes.txt", ".writing-x.tmp", &hash];
        for name in [&squares, &photographs, ".writing-abc.pixels"].into_iter().chain(theirs) {
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), theirs.len() + 1);
        assert!(list(&dir.path().join("missing")).unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_program_left_is_forgotten_in_time() {
        let dir = tempfile::tempdir().unwrap();
        for (name, age) in
            [(".writing-old.pixels", 2 * ABANDONED_AFTER), (".writing-new.pixels", Duration::ZERO)]
        {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let key = CacheKey { kind: "squares-8".into(), hash: [7; 32], pixels: 3, pictures: 2 };
        let contents =
            || CacheIndex { sums: vec![checksum(b"abc"), 0], reasons: vec![(1, "why".to_string())] };
        key.create(dir.path(), |file| write_at(file, b"abc", 0).map(|()| (contents(), true))).unwrap();
        let names: Vec<_> = list(dir.path()).unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(names, [dir.path().join(".writing-new.pixels"), key.path(dir.path())]);
        let (mapped, found) = key.open(dir.path()).unwrap().unwrap();
        assert_eq!((&mapped.bytes()[..3], found), (&b"abc"[..], contents()));
    }
}
