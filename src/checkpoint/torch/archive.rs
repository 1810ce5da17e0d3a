//! The zip archive of a PyTorch file.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use tiny_cats_export::Integrity;
use zip::{CompressionMethod, ZipArchive, ZipReadOptions, result::ZipError};

use super::pickle;
use crate::checkpoint::ErrorKind;

/// Flags of an entry that is encrypted (0, 6, 13) or a patch of another file (5).
const UNSUPPORTED_FLAGS: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;
/// The offset of the disk number in an entry of the central directory, two bytes.
const DISK: u64 = 34;

/// An open archive with a valid directory.
pub(super) struct Archive {
    zip: ZipArchive<BufReader<File>>,
    folder: String,
    len: u64,
    pub(super) integrity: Integrity,
}

impl Archive {
    /// Opens the archive and checks its directory.
    ///
    /// Like PyTorch, it rejects encrypted entries and archives of several disks. It also rejects contradictory or overlapping entries and
    /// repeated names, which PyTorch reads: one tensor's numbers could be another's.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorKind> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| zip_problem("archive", e))?;
        zip.validate_header_consistency().map_err(|e| zip_problem("archive", e))?;
        let mut integrity = Integrity::Verified;
        let mut raw = BufReader::new(File::open(path)?);
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|e| zip_problem("archive", e))?;
            let rejected = |message| Err(ErrorKind::malformed(entry.name().unwrap_or_default(), message));
            let flags = entry.flags();
            if flags.as_u16() & UNSUPPORTED_FLAGS != 0 {
                return rejected("expected a plain entry, found an encrypted one or a patch");
            }
            // The `zip` crate reads the disk of the archive, but not that of an entry. Like PyTorch, accepts 0 and 1 for the only disk.
            let [low, high] = bytes_at(&mut raw, entry.central_header_start() + DISK)?;
            if u16::from_le_bytes([low, high]) > 1 {
                return rejected("expected an archive of one disk");
            }
            if has_no_checksum(entry.crc32(), entry.size()) {
                integrity = Integrity::Unchecked;
                // `torch.save` repeats the checksum after the content. They can only be missing together.
                if let (true, Some(start)) = (flags.is_using_data_descriptor(), entry.data_start()) {
                    let [a, b, c, d, crc32 @ ..]: [u8; 8] =
                        bytes_at(&mut raw, start.saturating_add(entry.compressed_size()))?;
                    if [a, b, c, d] == *b"PK\x07\x08" && crc32 != [0; 4] {
                        return rejected("its two checksums differ: the file is damaged");
                    }
                }
            }
        }
        let folders: Vec<String> = zip
            .file_names()
            .filter_map(|name| Some(name.ok()?.strip_suffix("/data.pkl")?.to_owned()))
            .collect();
        let [folder] = &folders[..] else {
            let message =
                format!("{} entries `data.pkl`, expected the one that torch.save writes", folders.len());
            return Err(ErrorKind::malformed("archive", message));
        };
        let mut archive = Self { folder: folder.clone(), zip, len, integrity };
        if archive.has("constants.pkl") {
            let message = "the archive is a TorchScript program, expected a checkpoint that torch.save wrote";
            return Err(ErrorKind::malformed("constants.pkl", message));
        }
        if archive.has("byteorder") && archive.entry("byteorder", 16)? != b"little" {
            return Err(ErrorKind::malformed("byteorder", "expected little-endian numbers"));
        }
        Ok(archive)
    }

    fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{}/{name}", self.folder)).is_some()
    }

    /// Reads the pickle of the values.
    pub(super) fn pickle(&mut self) -> Result<Vec<u8>, ErrorKind> {
        self.entry("data.pkl", pickle::MAX_BYTES)
    }

    /// Reads the bytes of a storage, whose number the pickle gives. PyTorch rejects any other number too.
    pub(super) fn storage(&mut self, key: &str, expected: u64) -> Result<Vec<u8>, ErrorKind> {
        let name = format!("data/{key}");
        let bytes = self.entry(&name, self.len)?;
        if bytes.len() as u64 != expected {
            let message = format!("expected {expected} bytes as in the pickle, found {}", bytes.len());
            return Err(ErrorKind::malformed(name, message));
        }
        Ok(bytes)
    }

    /// Reads all bytes of an entry, at most `max`. `torch.save` never compresses, so an entry cannot be larger than the file.
    fn entry(&mut self, name: &str, max: u64) -> Result<Vec<u8>, ErrorKind> {
        let max = max.min(self.len);
        let index = self.zip.index_for_name(&format!("{}/{name}", self.folder));
        let mut entry = index
            .ok_or(ZipError::FileNotFound)
            .and_then(|i| reader(&mut self.zip, i))
            .map_err(|e| zip_problem(name, e))?;
        let size = entry.size();
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != size {
            return Err(ErrorKind::malformed(
                name,
                "compressed, expected the plain entry that torch.save writes",
            ));
        }
        if size > max {
            return Err(ErrorKind::malformed(name, format!("{size} bytes, expected at most {max}")));
        }
        let damaged = |e: std::io::Error| ErrorKind::malformed(name, e.to_string());
        let mut bytes = Vec::with_capacity(size as usize);
        (&mut entry).take(size).read_to_end(&mut bytes).map_err(damaged)?;
        // The checksum is compared at the end of the entry, so the end must be read.
        let extra = entry.read(&mut [0]).map_err(damaged)?;
        if extra != 0 || bytes.len() as u64 != size {
            return Err(ErrorKind::malformed(
                name,
                format!("{} bytes, expected {size}", bytes.len() + extra),
            ));
        }
        Ok(bytes)
    }

    /// Reads every entry to its end, which compares its checksum.
    pub(super) fn check(&mut self) -> Result<(), ErrorKind> {
        for i in 0..self.zip.len() {
            let mut entry = reader(&mut self.zip, i).map_err(|e| zip_problem("archive", e))?;
            let damaged = |name: &str, message: String| ErrorKind::malformed(name, message);
            let (size, copied) = (entry.size(), std::io::copy(&mut entry, &mut std::io::sink()));
            let name = entry.name().unwrap_or_default();
            match copied {
                Ok(n) if n == size => {}
                Ok(n) => return Err(damaged(&name, format!("{n} bytes, expected {size}"))),
                Err(e) => return Err(damaged(&name, e.to_string())),
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// True if no checksum was computed for the entry: `torch.serialization.set_crc32_options(False)` writes 0, which is also the checksum of
/// no bytes.
fn has_no_checksum(crc32: u32, size: u64) -> bool {
    crc32 == 0 && size > 0
}

fn bytes_at<const N: usize>(file: &mut (impl Read + Seek), offset: u64) -> Result<[u8; N], ErrorKind> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes).map_err(|e| zip_problem("archive", e.into()))?;
    Ok(bytes)
}

fn reader(
    zip: &mut ZipArchive<BufReader<File>>,
    index: usize,
) -> Result<zip::read::ZipFile<'_, BufReader<File>>, ZipError> {
    let entry = zip.by_index_data(index)?;
    let ignore = has_no_checksum(entry.crc32(), entry.size());
    zip.by_index_with_options(index, ZipReadOptions::new().ignore_crc32(ignore))
}

fn zip_problem(field: &str, error: ZipError) -> ErrorKind {
    match error {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => ErrorKind::Io(e),
        ZipError::FileNotFound => ErrorKind::malformed(field, "missing in the archive"),
        other => ErrorKind::malformed(field, format!("truncated or altered: {other}")),
    }
}
