//! The pickle in a PyTorch file: the bytes become `data.pkl` in an otherwise valid archive.

#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Values of the storages `0` to `3`.
const STORAGE: [u8; 1024] = [0x3c; 1024];

fuzz_target!(init: tiny_cats_fuzz::init(), |pickle: &[u8]| {
    let archive = archive(pickle).expect("an archive in memory can be written");
    tiny_cats_fuzz::abort_on_panic(|| tiny_cats_fuzz::check_checkpoint(&archive));
});

fn archive(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut add_file = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), stored)?;
        zip.write_all(bytes)?;
        Ok::<_, zip::result::ZipError>(())
    };
    add_file("data.pkl", pickle)?;
    for storage in 0..4 {
        add_file(&format!("data/{storage}"), &STORAGE)?;
    }
    add_file("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}
