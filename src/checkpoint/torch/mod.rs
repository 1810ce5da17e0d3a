//! PyTorch's files: what `torch.save` has written since version 1.6, a zip archive of a pickle and of the tensors' storages.

mod globals;
mod pickle;
mod value;
mod write;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::{Problem, numbers::Numbers};
pub use value::{Tensor, Value};
pub use write::{Item, write};

/// Tensors may share storages and repeat numbers by strides of 0; beyond one number a byte of the file, this many more are made.
const SHARED: usize = 1 << 20;

/// An open PyTorch file: its values were read, the numbers of its tensors were not.
#[derive(Debug)]
pub struct TorchFile {
    /// The value that was saved, usually a dictionary.
    pub root: Value,
    pub(super) storages: Storages,
}

/// Where the numbers of a file's tensors are.
pub(super) struct Storages {
    archive: ZipArchive<BufReader<File>>,
    folder: String,
    len: u64,
}

impl TorchFile {
    /// Opens the archive and reads its values.
    ///
    /// # Errors
    /// When it is no such archive, or its pickle needs more than tensors and plain values.
    pub fn open(path: &Path) -> super::Result<Self> {
        Self::read_values(path).map_err(|p| p.at(path))
    }

    pub(super) fn read_values(path: &Path) -> Result<Self, Problem> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| zip_problem("archive", e))?;
        // An altered directory could give one tensor's numbers to another: names must be the entries' own, and nothing may overlap.
        archive.validate_header_consistency().map_err(|e| zip_problem("archive", e))?;
        let folders: Vec<String> = archive
            .file_names()
            .filter_map(|name| Some(name.ok()?.strip_suffix("/data.pkl")?.to_owned()))
            .collect();
        let [folder] = &folders[..] else {
            let message =
                format!("{} entries `data.pkl`, expected the one that torch.save writes", folders.len());
            return Err(Problem::malformed("archive", message));
        };
        if archive.index_for_name(&format!("{folder}/constants.pkl")).is_some() {
            let message = "the archive is a TorchScript program, expected a checkpoint that torch.save wrote";
            return Err(Problem::malformed("constants.pkl", message));
        }
        let order = format!("{folder}/byteorder");
        if archive.index_for_name(&order).is_some() && entry(&mut archive, len, &order, 16)? != b"little" {
            return Err(Problem::malformed("byteorder", "expected little-endian numbers"));
        }
        let root =
            pickle::parse(&entry(&mut archive, len, &format!("{folder}/data.pkl"), pickle::MAX_BYTES)?)?;
        Ok(Self { root, storages: Storages { folder: folder.clone(), archive, len } })
    }

    /// Reads the numbers of `tensors`, in the same order; their names are for messages.
    ///
    /// # Errors
    /// When a storage is missing, damaged, or too small for its tensor.
    pub fn numbers(&mut self, tensors: &[(&str, &Tensor)]) -> Result<Vec<Numbers>, Problem> {
        self.storages.read(tensors)
    }

    /// Reads every entry of the archive through, which checks its CRC-32; `path` is for messages.
    ///
    /// # Errors
    /// When an entry is damaged.
    pub fn check(&mut self, path: &Path) -> super::Result<()> {
        let archive = &mut self.storages.archive;
        for i in 0..archive.len() {
            let read = archive.by_index(i).map_err(|e| zip_problem("archive", e)).and_then(|mut entry| {
                let copied = std::io::copy(&mut entry, &mut std::io::sink());
                copied.map_err(|e| Problem::malformed(entry.name().unwrap_or_default(), e.to_string()))
            });
            read.map_err(|p| p.at(path))?;
        }
        Ok(())
    }
}

impl Storages {
    /// Reads the numbers of `tensors`, in the same order. Each storage is read once, and its CRC-32 checked.
    pub(super) fn read(&mut self, tensors: &[(&str, &Tensor)]) -> Result<Vec<Numbers>, Problem> {
        let mut by_storage: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut total = 0usize;
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            tensor.bytes_needed()?;
            total = total.saturating_add(tensor.elements());
            if total as u64 > self.len + SHARED as u64 {
                let message = format!("more numbers than a file of {} bytes can hold", self.len);
                return Err(Problem::malformed(*name, message));
            }
            by_storage.entry(&tensor.storage).or_default().push(i);
        }
        let mut numbers: Vec<Option<Numbers>> = tensors.iter().map(|_| None).collect();
        for (storage, users) in by_storage {
            let bytes = self.storage(storage)?;
            for i in users {
                let (Some((name, tensor)), Some(slot)) = (tensors.get(i), numbers.get_mut(i)) else {
                    continue;
                };
                let needed = tensor.bytes_needed()?;
                if needed > bytes.len() {
                    let message =
                        format!("storage {storage} has {} bytes, expected at least {needed}", bytes.len());
                    return Err(Problem::malformed(*name, message));
                }
                let mut out = tensor.dtype.numbers(tensor.elements());
                tensor.dtype.decode(&tensor.gather(&bytes), &mut out);
                *slot = Some(out);
            }
        }
        Ok(numbers.into_iter().flatten().collect())
    }

    fn storage(&mut self, key: &str) -> Result<Vec<u8>, Problem> {
        let name = format!("{}/data/{key}", self.folder);
        entry(&mut self.archive, self.len, &name, self.len)
    }
}

impl std::fmt::Debug for Storages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storages").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// All bytes of the entry called `name`, of at most `max` bytes, in a file of `len`. `torch.save` never compresses, so that an entry
/// cannot be larger than the file.
fn entry(
    archive: &mut ZipArchive<BufReader<File>>,
    len: u64,
    name: &str,
    max: u64,
) -> Result<Vec<u8>, Problem> {
    let mut entry = archive.by_name(name).map_err(|e| zip_problem(name, e))?;
    let size = entry.size();
    if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != size {
        return Err(Problem::malformed(name, "compressed, expected the plain entry that torch.save writes"));
    }
    if size > max.min(len) {
        return Err(Problem::malformed(name, format!("{size} bytes, expected at most {}", max.min(len))));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    (&mut entry).take(size).read_to_end(&mut bytes).map_err(|e| Problem::malformed(name, e.to_string()))?;
    // The checksum is compared where the entry ends, so the end must be seen.
    let more = entry.read(&mut [0]).map_err(|e| Problem::malformed(name, e.to_string()))?;
    if more != 0 || bytes.len() as u64 != size {
        return Err(Problem::malformed(name, format!("{} bytes, expected {size}", bytes.len() + more)));
    }
    Ok(bytes)
}

fn zip_problem(field: &str, error: ZipError) -> Problem {
    match error {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Problem::Io(e),
        ZipError::FileNotFound => Problem::malformed(field, "there is no such entry in the archive"),
        other => Problem::malformed(field, format!("truncated or altered: {other}")),
    }
}
