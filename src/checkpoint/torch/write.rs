//! Writes files for `torch.load(path, weights_only=True)`, also with `mmap=True`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use tiny_cats_export::write_atomically;
use tiny_cats_models::Array;
use zip::{CompressionMethod, DateTime, ZipWriter, result::ZipError, write::SimpleFileOptions};

use crate::checkpoint::{Error, ErrorKind, tensor_data::for_each_chunk};

/// A value to write. Equal values give equal bytes.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A real number.
    Float(f64),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<Item<'a>>),
    /// A dictionary, in this order.
    Dict(Vec<(String, Item<'a>)>),
    /// A contiguous tensor of float32 on the CPU.
    Tensor(&'a Array),
    /// A tensor of one int64, without axes, on the CPU.
    IntegerTensor(i64),
}

impl From<&serde_json::Value> for Item<'_> {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Item::None,
            Json::Bool(b) => Item::Bool(*b),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Item::Int(n),
                None => Item::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Item::Str(s.clone()),
            Json::Array(items) => Item::List(items.iter().map(Item::from).collect()),
            Json::Object(items) => Item::Dict(items.iter().map(|(k, v)| (k.clone(), v.into())).collect()),
        }
    }
}

/// Writes `root` to `path`, atomically.
///
/// # Errors
/// Returns the errors of [`write_atomically`].
pub fn write(path: &Path, root: &Item) -> Result<(), Error> {
    write_atomically(path, |file| archive(file, root)).map_err(|p| p.with_path(path))
}

fn archive(file: &mut BufWriter<&mut File>, root: &Item) -> Result<(), ErrorKind> {
    let mut pickle = Pickle { bytes: vec![0x80, 2], storages: Vec::new() };
    pickle.item(root);
    pickle.bytes.push(b'.');

    let mut zip = ZipWriter::new(file);
    // PyTorch maps storages into memory in place. They are aligned to 64 bytes, as in its own files.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::DEFAULT)
        .unix_permissions(0o644)
        .with_alignment(64);
    for (name, bytes) in [
        ("data.pkl", &pickle.bytes[..]),
        ("byteorder", b"little"),
        ("version", b"3\n"),
        (".storage_alignment", b"64"),
    ] {
        zip.start_file(format!("archive/{name}"), options).map_err(problem)?;
        zip.write_all(bytes)?;
    }
    for (key, storage) in pickle.storages.iter().enumerate() {
        let large = matches!(storage, Storage::Floats(a) if a.data().len() as u64 >= u64::from(u32::MAX) / 4);
        zip.start_file(format!("archive/data/{key}"), options.large_file(large)).map_err(problem)?;
        match storage {
            Storage::Floats(array) => for_each_chunk(array.data(), |bytes| zip.write_all(bytes))?,
            Storage::Integer(integer) => zip.write_all(&integer.to_le_bytes())?,
        }
    }
    zip.finish().map_err(problem)?;
    Ok(())
}

fn problem(error: ZipError) -> ErrorKind {
    match error {
        ZipError::Io(e) => ErrorKind::Io(e),
        other => ErrorKind::malformed("archive", other.to_string()),
    }
}

/// The numbers of a tensor.
enum Storage<'a> {
    Floats(&'a Array),
    Integer(i64),
}

struct Pickle<'a> {
    bytes: Vec<u8>,
    /// The storages; the index is the name in the file.
    storages: Vec<Storage<'a>>,
}

impl<'a> Pickle<'a> {
    fn item(&mut self, item: &Item<'a>) {
        match item {
            Item::None => self.bytes.push(b'N'),
            Item::Bool(b) => self.bytes.push(if *b { 0x88 } else { 0x89 }),
            Item::Int(n) => self.int(*n),
            Item::Float(x) => {
                self.bytes.push(b'G');
                self.bytes.extend(x.to_be_bytes());
            }
            Item::Str(s) => self.text(s),
            Item::List(items) => {
                self.bytes.extend(b"](");
                items.iter().for_each(|i| self.item(i));
                self.bytes.push(b'e');
            }
            Item::Dict(items) => {
                self.bytes.extend(b"}(");
                for (key, value) in items {
                    self.text(key);
                    self.item(value);
                }
                self.bytes.push(b'u');
            }
            Item::Tensor(array) => self.tensor(array.dims(), Storage::Floats(array)),
            Item::IntegerTensor(integer) => self.tensor(&[], Storage::Integer(*integer)),
        }
    }

    fn int(&mut self, n: i64) {
        match i32::try_from(n) {
            Ok(n) => {
                self.bytes.push(b'J');
                self.bytes.extend(n.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(n.to_le_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn sizes(&mut self, sizes: impl IntoIterator<Item = usize>) {
        self.bytes.push(b'(');
        sizes.into_iter().for_each(|n| self.int(n as i64));
        self.bytes.push(b't');
    }

    /// Writes `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`.
    fn tensor(&mut self, dims: &[usize], storage: Storage<'a>) {
        let (kind, len) = match storage {
            Storage::Floats(array) => ("FloatStorage", array.data().len()),
            Storage::Integer(_) => ("LongStorage", 1),
        };
        let key = self.storages.len();
        self.storages.push(storage);
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(format!("ctorch\n{kind}\n").as_bytes());
        self.text(&key.to_string());
        self.text("cpu");
        self.int(len as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        self.sizes(dims.iter().copied());
        let mut stride = 1;
        let mut strides: Vec<usize> = Vec::new();
        for &d in dims.iter().rev() {
            strides.push(stride);
            stride *= d.max(1);
        }
        self.sizes(strides.into_iter().rev());
        self.bytes.push(0x89);
        self.bytes.extend(b"ccollections\nOrderedDict\n)RtR");
    }
}
