//! External data: tensors whose values are in another file beside the model, as PyTorch writes them (`NAME.onnx.data`). They are
//! moved into the model, so that every runtime reads one self-contained file.
//!
//! The name of the other file is untrusted input. It must be in the model's folder. Memory is allocated
//! only after every offset and length has been compared with the file's size.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use super::{
    graph::MAX_BYTES,
    proto::{EXTERNAL, TensorProto},
    scan::{Field, MessageKind, RawField, WireValue, field},
};
use crate::{Error, Result};

/// Number of the field with a tensor's values.
const RAW_DATA: u32 = 9;
/// Maximum length of the path of an external file, in bytes.
const MAX_LOCATION: usize = 512;

/// Returns the model in `bytes` with the values of all its tensors inside. [`scan`](super::scan::scan) has checked `bytes`. `file` is
/// the path of the model, and `folder` its folder.
///
/// # Errors
/// [`Error::File`] with the name of a tensor whose values are not at the stated location, and [`Error::Io`].
pub fn inline_external_data(bytes: &[u8], file: &str, folder: &Path) -> Result<Vec<u8>> {
    let mut reader = ExternalDataReader { file, folder, files: BTreeMap::new(), total: bytes.len() };
    let Some(chunks) = reader.split_message(bytes, MessageKind::Model)? else { return Ok(bytes.to_vec()) };
    let mut out = Vec::with_capacity(chunks.iter().map(Chunk::len).sum());
    for chunk in chunks {
        match chunk {
            Chunk::Bytes(bytes) => out.extend_from_slice(&bytes),
            Chunk::Values { location, offset, len } => reader.copy(&location, offset, len, &mut out)?,
        }
    }
    Ok(out)
}

/// A chunk of the model to write.
enum Chunk<'a> {
    Bytes(Cow<'a, [u8]>),
    Values { location: String, offset: u64, len: usize },
}

impl Chunk<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Values { len, .. } => *len,
        }
    }
}

/// A file with tensors' values.
struct ExternalFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// Bytes that no tensor has read yet.
    unread_bytes: u64,
}

struct ExternalDataReader<'a> {
    file: &'a str,
    folder: &'a Path,
    files: BTreeMap<String, ExternalFile>,
    /// Size of the model with its external data, in bytes.
    total: usize,
}

impl ExternalDataReader<'_> {
    /// Returns the chunks of a message; `None` if nothing in it changes.
    fn split_message<'b>(
        &mut self,
        mut bytes: &'b [u8],
        kind: MessageKind,
    ) -> Result<Option<Vec<Chunk<'b>>>> {
        if kind == MessageKind::Tensor {
            return self.split_tensor(bytes);
        }
        let (mut chunks, mut changed) = (Vec::new(), false);
        while !bytes.is_empty() {
            let Some(raw) = RawField::next(&mut bytes) else {
                return Err(Error::file(
                    self.file,
                    "ONNX",
                    "expected an ONNX model, found a truncated or malformed file",
                ));
            };
            let content = match (field(kind, raw.number), raw.value) {
                (Field::Message(kind), WireValue::Bytes(content)) => self.split_message(content, kind)?,
                _ => None,
            };
            match content {
                None => chunks.push(Chunk::Bytes(raw.bytes.into())),
                Some(content) => {
                    changed = true;
                    let len = content.iter().map(Chunk::len).sum();
                    chunks.push(Chunk::Bytes(field_header(raw.number as u32, len).into()));
                    chunks.extend(content);
                }
            }
        }
        Ok(changed.then_some(chunks))
    }

    /// Returns the chunks of a tensor; `None` if its values are in the model already.
    fn split_tensor<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<Vec<Chunk<'b>>>> {
        let tensor = TensorProto::decode(bytes).map_err(|e| Error::file(self.file, "ONNX", e.to_string()))?;
        if tensor.data_location != EXTERNAL {
            return Ok(None);
        }
        let invalid = |message: String| Error::file(self.file, &tensor.name, message);
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| invalid(format!("external data: expected a number as {key}, found {text:?}"))),
        };
        let Some(location) = entry("location") else {
            return Err(invalid("external data: expected a location, found none".into()));
        };
        let len = tensor.size().map_err(&invalid)?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if length.is_some_and(|length| length != len as u64) {
            let found = length.unwrap_or_default();
            let expected = format!("expected {len} bytes for the shape {:?}", tensor.dims);
            return Err(invalid(format!("external data: {expected}, found {found}")));
        }
        self.total = self.total.saturating_add(len);
        if self.total > MAX_BYTES {
            return Err(invalid(format!(
                "external data: expected a model of at most {MAX_BYTES} bytes, found more"
            )));
        }
        if !self.files.contains_key(location) {
            let external = self.open(location).map_err(|e| match e {
                ExternalError::Invalid(message) => {
                    // The name of a file may be longer than a message.
                    invalid(format!("external data: {message}, found {location:?}"))
                }
                ExternalError::Io(e) => e,
            })?;
            self.files.insert(location.to_owned(), external);
        }
        let external = self.files.get_mut(location).ok_or_else(|| invalid("external data".into()))?;
        let size = external.size;
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            let range = format!("{len} bytes from byte {offset}");
            return Err(invalid(format!(
                "external data in {location:?}: expected {range}, found a file of {size} bytes"
            )));
        }
        // Otherwise a small file could be read into memory many times.
        external.unread_bytes = external.unread_bytes.checked_sub(len as u64).ok_or_else(|| {
            invalid(format!("external data in {location:?}: expected tensors that do not overlap"))
        })?;
        let header =
            TensorProto { external_data: Vec::new(), data_location: 0, raw_data: Vec::new(), ..tensor };
        let mut start = header.encode_to_vec();
        start.extend(field_header(RAW_DATA, len));
        let values = Chunk::Values { location: location.to_owned(), offset, len };
        Ok(Some(vec![Chunk::Bytes(start.into()), values]))
    }

    /// Opens the file at `location`, which must be a file in the model's folder or a subfolder.
    fn open(&self, location: &str) -> Result<ExternalFile, ExternalError> {
        let relative = Path::new(location);
        let is_inside =
            relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.len() > MAX_LOCATION {
            return Err(ExternalError::Invalid("expected a path of at most 512 bytes"));
        }
        // A backslash is a separator on some systems and part of a name on others.
        if location.is_empty() || !is_inside || location.contains(['\\', ':', '\0']) {
            return Err(ExternalError::Invalid("expected a path inside the model's folder"));
        }
        let joined = self.folder.join(relative);
        let io = |e| ExternalError::Io(Error::io(&joined)(e));
        let (folder, path) = (self.folder.canonicalize().map_err(io)?, joined.canonicalize().map_err(io)?);
        if !path.starts_with(&folder) {
            return Err(ExternalError::Invalid(
                "expected a path inside the model's folder, found a link to outside",
            ));
        }
        // This check comes before opening, because opening a pipe blocks.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(ExternalError::Invalid("expected a file"));
        }
        let file = File::open(&path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        Ok(ExternalFile { path: joined, file, size, unread_bytes: size })
    }

    fn copy(&mut self, location: &str, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let Some(external) = self.files.get_mut(location) else { return Ok(()) };
        let mut copy = || {
            external.file.seek(SeekFrom::Start(offset))?;
            let read = (&external.file).take(len as u64).read_to_end(out)?;
            if read == len { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
        };
        copy().map_err(Error::io(&external.path))
    }
}

/// An error while reading external data.
enum ExternalError {
    Invalid(&'static str),
    Io(Error),
}

/// Encodes the header of a field of `len` bytes: tag and length.
fn field_header(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut bytes);
    encode_varint(len as u64, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        DIGEST_KEY, Integrity,
        onnx::{
            OnnxFile, OnnxGraph,
            proto::{ModelProto, StringStringEntryProto},
        },
    };
    use tiny_cats_models::{Array, Init, Scope, Tensor, Weights};

    /// Returns a file without a digest, and its weights.
    fn model() -> (ModelProto, Weights) {
        let array = |dims: &[usize]| {
            let values = (0..dims.iter().product()).map(|v: usize| v as f32 + 0.5).collect();
            Array::new(dims, values).unwrap()
        };
        let weights = Weights::from([("a".to_owned(), array(&[2, 3])), ("b".to_owned(), array(&[4, 2]))]);
        let graph = OnnxGraph::new(20).unwrap();
        let mut source = graph.source(&weights);
        let mut scope = Scope::root(&mut source);
        let a = scope.param("a", [2, 3], Init::Zeros).unwrap();
        let b = scope.param("b", [4, 2], Init::Zeros).unwrap();
        source.finish().unwrap();
        let y = graph.floats("x", &[3]).unwrap().linear(&a, None).unwrap().linear(&b, None).unwrap();
        let bytes = graph.finish(&[("y", &y)], &[]).unwrap();
        let mut model = ModelProto::decode(&bytes[..]).unwrap();
        model.metadata_props.retain(|entry| entry.key != DIGEST_KEY);
        (model, weights)
    }

    fn entries(entries: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
            key: (*key).into(),
            value: (*value).into(),
        };
        entries.iter().map(entry).collect()
    }

    /// Moves the values of all weights into one file, at offsets that are multiples of 64.
    fn with_external_data(location: &str) -> (ModelProto, Vec<u8>, Weights) {
        let (mut model, weights) = model();
        let mut data = Vec::new();
        for tensor in
            model.graph.as_mut().unwrap().initializer.iter_mut().filter(|t| weights.contains_key(&t.name))
        {
            data.resize(usize::next_multiple_of(data.len(), 64), 0xff);
            let (offset, length) = (data.len().to_string(), tensor.raw_data.len().to_string());
            tensor.external_data = entries(&[
                ("location", location),
                ("offset", &offset),
                ("length", &length),
                ("checksum", "0"),
            ]);
            tensor.data_location = EXTERNAL;
            data.append(&mut tensor.raw_data);
        }
        (model, data, weights)
    }

    #[test]
    fn external_data_is_moved_into_the_model() {
        let dir = tempfile::tempdir().unwrap();
        for location in ["m.onnx.data", "parts/m.data"] {
            let (model, data, weights) = with_external_data(location);
            fs::create_dir_all(dir.path().join("parts")).unwrap();
            fs::write(dir.path().join(location), data).unwrap();
            let path = dir.path().join("m.onnx");
            fs::write(&path, model.encode_to_vec()).unwrap();
            let file = OnnxFile::open(&path).unwrap();
            assert_eq!((file.weights().unwrap(), file.integrity()), (weights.clone(), Integrity::Unchecked));
            // Runtimes get the model as it was before the values were moved out.
            assert_eq!(ModelProto::decode(file.bytes()).unwrap(), self::model().0);
            let error = OnnxFile::from_bytes(fs::read(&path).unwrap(), "m").unwrap_err().to_string();
            assert!(error.starts_with("m: external_data: ") && error.contains("by its path"), "{error}");
        }
    }

    #[test]
    fn a_digest_covers_external_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        let (mut model, mut data, _) = with_external_data("m.onnx.data");
        let digest = super::super::digest::digest(&self::model().0);
        model.metadata_props.extend(entries(&[(DIGEST_KEY, &digest)]));
        fs::write(&path, model.encode_to_vec()).unwrap();
        fs::write(dir.path().join("m.onnx.data"), &data).unwrap();
        assert_eq!(OnnxFile::open(&path).unwrap().integrity(), Integrity::Verified);
        data[3] ^= 1;
        fs::write(dir.path().join("m.onnx.data"), &data).unwrap();
        let error = OnnxFile::open(&path).unwrap_err().to_string();
        assert!(error.ends_with(crate::CHECKSUM_MISMATCH), "{error}");
    }

    #[test]
    fn external_data_outside_the_folder_or_the_file_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        fs::create_dir_all(folder.join("folder")).unwrap();
        let (_, data, _) = with_external_data("");
        for name in ["outside.data", "model/m.data"] {
            fs::write(dir.path().join(name), &data).unwrap();
        }
        let outside = dir.path().join("outside.data").display().to_string();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&outside, folder.join("link.data")).unwrap();
            std::os::unix::fs::symlink(dir.path(), folder.join("links")).unwrap();
            std::os::unix::fs::symlink("m.data", folder.join("inside.data")).unwrap();
        }
        let path = folder.join("m.onnx");
        let open = |change: &dyn Fn(&mut TensorProto)| {
            let (mut model, ..) = with_external_data("m.data");
            change(&mut model.graph.as_mut().unwrap().initializer[0]);
            fs::write(&path, model.encode_to_vec()).unwrap();
            OnnxFile::open(&path).map_err(|e| e.to_string())
        };
        let open_at = |location: &str, offset: &str, length: &str| {
            let entries = entries(&[("location", location), ("offset", offset), ("length", length)]);
            open(&|tensor| tensor.external_data = entries.clone())
        };
        assert!(open_at("m.data", "0", "24").is_ok() && open_at("./m.data", "0", "24").is_ok());
        #[cfg(unix)]
        assert!(open_at("inside.data", "0", "24").is_ok());
        let long = "[".repeat(4000);
        let mut invalid = vec![
            (outside.as_str(), "0", "24", "inside the model's folder"),
            ("../outside.data", "0", "24", "inside the model's folder"),
            ("folder/../../outside.data", "0", "24", "inside the model's folder"),
            ("..\\outside.data", "0", "24", "inside the model's folder"),
            ("C:outside.data", "0", "24", "inside the model's folder"),
            ("m.data\0", "0", "24", "inside the model's folder"),
            ("", "0", "24", "inside the model's folder"),
            (long.as_str(), "0", "24", "expected a path of at most 512 bytes"),
            ("folder", "0", "24", "expected a file"),
            ("missing\n.data", "0", "24", "No such file"),
            ("m.data", "0", "25", "expected 24 bytes for the shape [2, 3], found 25"),
            ("m.data", "0", "18446744073709551615", "found 18446744073709551615"),
            (
                "m.data",
                "18446744073709551615",
                "24",
                "expected 24 bytes from byte 18446744073709551615, found",
            ),
            ("m.data", "73", "24", "found a file of 96"),
            ("m.data", "-1", "24", "expected a number as offset, found \"-1\""),
            ("m.data", "0", "ten", "expected a number as length, found \"ten\""),
        ];
        if cfg!(unix) {
            invalid.push(("link.data", "0", "24", "found a link to outside"));
            invalid.push(("links/outside.data", "0", "24", "found a link to outside"));
        }
        for (location, offset, length, message) in invalid {
            let error = open_at(location, offset, length).unwrap_err();
            assert!(error.contains(message) && !error.contains(char::is_control), "{location:?}: {error}");
            // A system error names the external file, all other errors the model file.
            assert!(error.starts_with(&folder.display().to_string()), "{error}");
        }
        let error = open(&|tensor| tensor.external_data.clear()).unwrap_err();
        assert!(error.contains("m.onnx: a: external data: expected a location"), "{error}");
        let error = open(&|tensor| tensor.dims = vec![1 << 40, 1 << 40]).unwrap_err();
        assert!(error.contains("expected a shape"), "{error}");
        let error = open(&|tensor| {
            tensor.dims = vec![1 << 40];
            tensor.external_data.retain(|entry| entry.key != "length");
        });
        assert!(error.unwrap_err().contains("expected a model of at most"));
        // A hundred tensors at one location would otherwise be read a hundred times.
        let (mut model, ..) = with_external_data("m.data");
        let initializers = &mut model.graph.as_mut().unwrap().initializer;
        let copies: Vec<_> =
            (0..100).map(|i| TensorProto { name: i.to_string(), ..initializers[0].clone() }).collect();
        initializers.extend(copies);
        fs::write(&path, model.encode_to_vec()).unwrap();
        assert!(OnnxFile::open(&path).unwrap_err().to_string().contains("do not overlap"));
    }

    #[test]
    fn models_with_one_changed_bit_load_or_give_one_line_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (model, data, _) = with_external_data("m.data");
        fs::write(dir.path().join("m.data"), data).unwrap();
        let bytes = model.encode_to_vec();
        let mut loaded = 0;
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match OnnxFile::read(changed, "m", Some(dir.path())).and_then(|file| file.weights()) {
                Ok(_) => loaded += 1,
                Err(e) => assert!(!e.to_string().contains(char::is_control), "{e:?}"),
            }
        }
        assert!(loaded > 0 && loaded < 8 * bytes.len());
    }
}
