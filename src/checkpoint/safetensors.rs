//! Reading and writing safetensors files, with a checksum.
//!
//! A file is the header's length (8 bytes, little-endian), the header, and the tensors' numbers without gaps. The header is JSON: sizes,
//! types and offsets of the tensors, and a map of strings called `__metadata__`. The files written here have sorted keys, so that equal
//! contents give equal bytes. The `sha256` in their metadata covers **all** bytes of the file, with its own value read as 64 zeros. Files
//! without it are read too.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use serde_json::{Map, Value, json};
use tiny_cats_export::{Checksum, write_atomically};
use tiny_cats_models::Array;

use super::{
    Error, ErrorKind,
    error::printable,
    tensor_data::{Dtype, TensorData, elements, for_each_chunk},
};

/// The largest header, in bytes. At about 100 bytes a tensor it holds 150,000 of them.
const MAX_HEADER: u64 = 16 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// A tensor's entry in the header.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    /// The type of its numbers, if it is supported.
    pub(super) dtype: Option<Dtype>,
    /// The name of its type in the file.
    pub(super) kind: String,
    begin: u64,
    end: u64,
}

/// An open file with a valid header.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    file: File,
    /// The header's metadata.
    pub(super) metadata: BTreeMap<String, String>,
    /// The tensors, in the order of the file.
    pub(super) entries: Vec<Entry>,
    start: u64,
    checksum: Option<(Checksum, String)>,
}

/// A tensor with its values.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) numbers: TensorData,
}

impl SafetensorsFile {
    /// Reads and checks the header: every tensor has as many bytes as its sizes require, and together they fill the file.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorKind> {
        let mut file = File::open(path)?;
        let file_len = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| truncated("header"))?;
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER {
            let message = format!("{header_len} bytes long, expected at most {MAX_HEADER}");
            return Err(ErrorKind::malformed("header", message));
        }
        let start = 8 + header_len;
        if start > file_len {
            return Err(truncated("header"));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header)?;
        let json: Map<String, Value> =
            serde_json::from_slice(&header).map_err(|e| ErrorKind::malformed("header", e.to_string()))?;

        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        let mut entries = Vec::with_capacity(json.len());
        for (name, value) in json {
            if name == "__metadata__" {
                metadata = serde_json::from_value(value)
                    .map_err(|_| ErrorKind::malformed("__metadata__", "expected a map of strings"))?;
            } else {
                entries.push(Entry::parse(name, &value)?);
            }
        }
        entries.sort_by_key(|e| (e.begin, e.end));
        let mut at = 0;
        for entry in &entries {
            if entry.begin != at {
                let message = format!("data starts at byte {}, expected {at}", entry.begin);
                return Err(ErrorKind::malformed(&entry.name, message));
            }
            at = entry.end;
        }
        if start.checked_add(at) != Some(file_len) {
            let message = format!("{} bytes of numbers, expected {at}", file_len - start);
            return Err(ErrorKind::malformed("data", message));
        }
        let checksum = match metadata.get(Checksum::KEY) {
            Some(sum) => Some((Checksum::begin(&header).ok_or(ErrorKind::Checksum)?, sum.clone())),
            None => None,
        };
        Ok(Self { file, metadata, entries, start, checksum })
    }

    /// True if the file has a checksum, so that any damage to it is detected.
    pub(super) fn has_checksum(&self) -> bool {
        self.checksum.is_some()
    }

    /// Reads the tensors of supported types that `wanted` accepts, in the order of the file. If there is a checksum, the whole file is
    /// read.
    pub(super) fn read(mut self, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<StoredTensor>, ErrorKind> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut stored = Vec::new();
        self.file.seek(SeekFrom::Start(self.start))?;
        for entry in self.entries {
            let wanted = entry.dtype.filter(|_| wanted(&entry));
            if wanted.is_none() && self.checksum.is_none() {
                self.file.seek(SeekFrom::Start(self.start + entry.end))?;
                continue;
            }
            let mut remaining = (entry.end - entry.begin) as usize;
            let mut numbers = wanted.map(|dtype| dtype.empty_data(remaining / dtype.size()));
            while remaining > 0 {
                let bytes = &mut buffer[..remaining.min(CHUNK_BYTES)];
                self.file.read_exact(bytes)?;
                if let Some((sum, _)) = &mut self.checksum {
                    sum.update(bytes);
                }
                if let (Some(dtype), Some(numbers)) = (wanted, &mut numbers) {
                    dtype.decode(bytes, numbers);
                }
                remaining -= bytes.len();
            }
            if let Some(numbers) = numbers {
                stored.push(StoredTensor { name: entry.name, dims: entry.dims, numbers });
            }
        }
        match self.checksum {
            Some((sum, expected)) => (sum.finish() == expected).then_some(stored).ok_or(ErrorKind::Checksum),
            None => Ok(stored),
        }
    }
}

impl Entry {
    fn parse(name: String, value: &Value) -> Result<Self, ErrorKind> {
        let invalid = |message: &str| ErrorKind::malformed(&name, message);
        let numbers = |key: &str| -> Option<Vec<u64>> {
            value.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
        };
        let kind = value.get("dtype").and_then(Value::as_str).ok_or_else(|| invalid("expected a `dtype`"))?;
        let dtype = Dtype::from_name(kind);
        let dims = numbers("shape").ok_or_else(|| invalid("expected a `shape`, a list of integers"))?;
        let dims: Vec<usize> = dims
            .into_iter()
            .map(usize::try_from)
            .collect::<Result<_, _>>()
            .map_err(|_| invalid("a size is too large for this machine"))?;
        let Some(&[begin, end]) = numbers("data_offsets").as_deref() else {
            return Err(invalid("expected `data_offsets`, two integers"));
        };
        let bits = dtype.map(|dtype| 8 * dtype.size()).or_else(|| unsupported_bits(kind));
        let bytes =
            bits.map(|bits| elements(&dims)?.checked_mul(bits)).map(|n| n.map(|n| n.div_ceil(8) as u64));
        if end < begin || bytes.is_some_and(|n| n != Some(end - begin)) {
            return Err(invalid(&format!(
                "bytes {begin} to {end} are not the size of {} numbers of shape {dims:?}",
                printable(kind, 40)
            )));
        }
        Ok(Self { dtype, kind: printable(kind, 40), name, dims, begin, end })
    }
}

/// The bits of one number of an unsupported type. `None` if the type is unknown; its tensors may have any length.
fn unsupported_bits(kind: &str) -> Option<usize> {
    Some(match kind {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" => 16,
        "U32" => 32,
        "U64" | "C64" => 64,
        _ => return None,
    })
}

/// Writes `path` atomically: the scalars `integers`, then `tensors` in the given order. The header holds `metadata` and the checksum.
///
/// # Errors
/// Returns the errors of [`write_atomically`].
pub(super) fn write(
    path: &Path,
    metadata: &BTreeMap<&str, String>,
    integers: &[(String, i64)],
    tensors: &[(String, &Array)],
) -> Result<(), Error> {
    let mut header = Map::new();
    let mut at = 0;
    // Larger types go first: PyTorch cannot read a number at an offset that is not a multiple of its size.
    for (name, _) in integers {
        let end = at + size_of::<i64>();
        header.insert(name.clone(), json!({"dtype": "I64", "shape": [], "data_offsets": [at, end]}));
        at = end;
    }
    for (name, array) in tensors {
        let end = at + 4 * array.data().len();
        header
            .insert(name.clone(), json!({"dtype": "F32", "shape": array.dims(), "data_offsets": [at, end]}));
        at = end;
    }
    let mut strings: BTreeMap<&str, &str> = metadata.iter().map(|(k, v)| (*k, v.as_str())).collect();
    strings.insert(Checksum::KEY, Checksum::PLACEHOLDER);
    header.insert("__metadata__".to_owned(), json!(strings));
    let mut header = Value::Object(header).to_string().into_bytes();
    // The numbers start at a multiple of 8, for readers that map the file into memory.
    header.resize(header.len().next_multiple_of(8), b' ');

    let write = |file: &mut BufWriter<&mut File>| -> Result<(), ErrorKind> {
        let mut sum = Checksum::begin(&header).ok_or(ErrorKind::Checksum)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut put = |file: &mut BufWriter<&mut File>, bytes: &[u8]| {
            sum.update(bytes);
            file.write_all(bytes)
        };
        for (_, integer) in integers {
            put(file, &integer.to_le_bytes())?;
        }
        for (_, array) in tensors {
            for_each_chunk(array.data(), |bytes| put(file, bytes))?;
        }
        let digits_offset = Checksum::digits_offset(&header).ok_or(ErrorKind::Checksum)?;
        file.seek(SeekFrom::Start(8 + digits_offset as u64))?;
        file.write_all(sum.finish().as_bytes())?;
        Ok(())
    };
    write_atomically(path, write).map_err(|p| p.with_path(path))
}

fn truncated(field: &str) -> ErrorKind {
    ErrorKind::malformed(field, "the file is truncated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_bytes(header: &str, data: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(&vec![0; data]).unwrap();
        file
    }

    #[test]
    fn written_files_are_read_by_the_safetensors_crate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let (a, b) = (Array::new([2, 3], vec![0.5; 6]).unwrap(), Array::new([], vec![-1.0]).unwrap());
        let metadata = BTreeMap::from([("note", "a \"sha256\":\" in a note".to_owned())]);
        write(&path, &metadata, &[("n".into(), 7)], &[("z".into(), &a), ("a \" b".into(), &b)]).unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("z").unwrap().shape(), [2, 3]);
        assert_eq!(reference.tensor("n").unwrap().data(), 7i64.to_le_bytes());
        assert_eq!(reference.tensor("a \" b").unwrap().data(), (-1f32).to_le_bytes());

        let file = SafetensorsFile::open(&path).unwrap();
        assert!(file.has_checksum());
        assert_eq!(file.metadata["note"], metadata["note"]);
        let stored = file.read(|_| true).unwrap();
        assert_eq!((stored[0].name.as_str(), &stored[0].numbers), ("n", &TensorData::Integers(vec![7])));
        assert_eq!((stored[1].name.as_str(), &stored[1].dims[..]), ("z", &[2, 3][..]));
        assert_eq!(stored[1].numbers, TensorData::Floats(vec![0.5; 6]));
    }

    #[test]
    fn files_of_the_safetensors_crate_are_read() {
        use safetensors::{Dtype::BF16, tensor::TensorView};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let view = TensorView::new(BF16, vec![2], &[0x80, 0x3f, 0, 0xc0]).unwrap();
        safetensors::serialize_to_file([("half", view)], None, &path).unwrap();
        let stored = SafetensorsFile::open(&path).unwrap().read(|_| true).unwrap();
        assert_eq!(stored[0].numbers, TensorData::Floats(vec![1.0, -2.0]));
    }

    #[test]
    fn invalid_headers_are_rejected_before_allocation() {
        for (header, data, field) in [
            (r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 12, "data"),
            (r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 17, "data"),
            (r#"{"w":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#, 16, "w"),
            (r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16, "w"),
            (r#"{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0, "w"),
            (r#"{"w":{"dtype":"F4","shape":[4],"data_offsets":[0,4]}}"#, 4, "w"),
            (r#"{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, 16, "w"),
            (r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "w"),
            (
                r#"{"v":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},"w":{"dtype":"U8","shape":[9],"data_offsets":[1,10]}}"#,
                10,
                "w",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,18446744073709551612]}}"#,
                0,
                "w",
            ),
            (r#"{"__metadata__":{"a":1}}"#, 0, "__metadata__"),
            (r#"{"w":7}"#, 0, "w"),
            ("[]", 0, "header"),
        ] {
            let file = write_bytes(header, data);
            match SafetensorsFile::open(file.path()) {
                Err(ErrorKind::Malformed { field: found, .. }) => assert_eq!(found, field, "{header}"),
                other => panic!("{header}: {other:?}"),
            }
        }
        let mut oversized = tempfile::NamedTempFile::new().unwrap();
        oversized.write_all(&u64::MAX.to_le_bytes()).unwrap();
        assert!(SafetensorsFile::open(oversized.path()).is_err());
    }
}
