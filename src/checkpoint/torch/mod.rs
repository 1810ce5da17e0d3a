//! PyTorch files, as `torch.save` has written them since version 1.6: a zip archive of a pickle and the tensors' storages.

mod archive;
mod calls;
mod globals;
mod node;
mod pickle;
#[cfg(test)]
mod tests;
mod tree;
mod value;
mod write;

use std::{collections::BTreeMap, path::Path};

use tiny_cats_export::Integrity;

use super::{ErrorKind, tensor_data::TensorData};
use archive::Archive;
pub use value::{Tensor, Value};
pub use write::{Item, write};

/// Numbers that may be read beyond one for each byte of the file. Tensors may share storages and repeat numbers by strides of 0.
const MAX_SHARED_NUMBERS: usize = 1 << 20;

/// True if a file with these first bytes is from PyTorch: a zip archive, or before 1.6 a pickle of this number or a tar archive.
pub(super) fn is_torch(start: &[u8]) -> bool {
    matches!(start, [b'P', b'K', 3, 4, ..] | [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, ..])
        || start.get(257..262) == Some(b"ustar")
}

/// An open PyTorch file: its values were read, but not the numbers of its tensors.
#[derive(Debug)]
pub struct TorchFile {
    /// The saved value, usually a dictionary.
    pub root: Value,
    /// Unknown classes and functions that the pickle mentions, such as `argparse.Namespace`; the first by name if there are many. They were
    /// not imported or called; their objects are [`Value::Object`]s.
    pub opaque: Vec<String>,
    /// `Verified` if the archive has checksums, which are compared when the numbers are read.
    pub integrity: Integrity,
    pub(super) storages: Storages,
}

/// The storages of a file's tensors.
#[derive(Debug)]
pub(super) struct Storages {
    archive: Archive,
    len: u64,
}

impl TorchFile {
    /// Opens the archive and reads its values.
    ///
    /// # Errors
    /// If it is not such an archive, is damaged, or holds an object of an unknown class instead of a dictionary.
    pub fn open(path: &Path) -> super::Result<Self> {
        Self::read_values(path).map_err(|p| p.with_path(path))
    }

    pub(super) fn read_values(path: &Path) -> Result<Self, ErrorKind> {
        let len = std::fs::metadata(path)?.len();
        let mut archive = Archive::open(path)?;
        let (root, opaque) = pickle::parse(&archive.pickle()?)?;
        Ok(Self { root, opaque, integrity: archive.integrity, storages: Storages { archive, len } })
    }

    /// Reads the numbers of `tensors`, in the same order; their names are for messages.
    ///
    /// # Errors
    /// If a storage is missing, damaged, too small for its tensor, or of another length than the pickle gives.
    pub fn numbers(&mut self, tensors: &[(&str, &Tensor)]) -> Result<Vec<TensorData>, ErrorKind> {
        self.storages.read(tensors)
    }

    /// Reads every entry of the archive to its end, which compares its CRC-32 if it has one; `path` is for messages.
    ///
    /// # Errors
    /// If an entry is damaged.
    pub fn check(&mut self, path: &Path) -> super::Result<()> {
        self.storages.archive.check().map_err(|p| p.with_path(path))
    }
}

impl Storages {
    /// Reads the numbers of `tensors`, in the same order. Each storage is read once, and its CRC-32 is compared.
    pub(super) fn read(&mut self, tensors: &[(&str, &Tensor)]) -> Result<Vec<TensorData>, ErrorKind> {
        let mut by_storage: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut total = 0usize;
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            tensor.bytes_needed()?;
            total = total.saturating_add(tensor.elements());
            if total as u64 > self.len + MAX_SHARED_NUMBERS as u64 {
                let message = format!("more numbers than a file of {} bytes can hold", self.len);
                return Err(ErrorKind::malformed(*name, message));
            }
            by_storage.entry(&tensor.storage).or_default().push(i);
        }
        let mut numbers: Vec<Option<TensorData>> = tensors.iter().map(|_| None).collect();
        for (storage, users) in by_storage {
            let mut bytes: Option<Vec<u8>> = None;
            for i in users {
                let (Some((name, tensor)), Some(slot)) = (tensors.get(i), numbers.get_mut(i)) else {
                    continue;
                };
                let bytes = match &mut bytes {
                    Some(bytes) => bytes,
                    none => none.insert(self.archive.storage(storage, tensor.storage_bytes as u64)?),
                };
                let needed = tensor.bytes_needed()?;
                if bytes.len() != tensor.storage_bytes || needed > bytes.len() {
                    let message = format!(
                        "storage {storage} has {} bytes, expected {needed} of {}",
                        bytes.len(),
                        tensor.storage_bytes
                    );
                    return Err(ErrorKind::malformed(*name, message));
                }
                let mut out = tensor.dtype.empty_data(tensor.elements());
                tensor.dtype.decode(&tensor.gather(bytes), &mut out);
                *slot = Some(out);
            }
        }
        Ok(numbers.into_iter().flatten().collect())
    }
}
