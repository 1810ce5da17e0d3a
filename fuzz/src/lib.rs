//! Helpers for the fuzz targets.

use std::{
    io::{Seek, Write},
    panic,
    path::Path,
    sync::Mutex,
};

use tempfile::NamedTempFile;
use tiny_cats::checkpoint::{self, ModelOverrides, WeightsSelection};

/// An in-memory folder on Linux, which avoids millions of writes to a disk.
const MEMORY_DIR: &str = "/dev/shm";

/// The message of the last panic.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Installs a panic hook that does not end the process, so that the library can catch panics; [`abort_on_panic`] reports the others.
/// Must be called once, before the first input.
pub fn init() {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = format!("{info}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// Calls `body`, and aborts the process if it panics.
pub fn abort_on_panic<T>(body: impl FnOnce() -> T) -> T {
    panic::catch_unwind(panic::AssertUnwindSafe(body)).unwrap_or_else(|_| {
        eprintln!("the library panicked: {}", LAST_PANIC.lock().map(|last| last.clone()).unwrap_or_default());
        std::process::abort()
    })
}

/// Opens `bytes` as a checkpoint, with the default and with the raw weights, and identifies the network. Errors must be one line of
/// printable text.
pub fn check_checkpoint(bytes: &[u8]) {
    let mut file = temporary_file();
    file.write_all(bytes).and_then(|()| file.rewind()).expect("the temporary file can be written");
    for selection in [WeightsSelection::Default, WeightsSelection::Raw] {
        match checkpoint::open(file.path(), selection) {
            Ok(loaded) => {
                if let Err(error) = loaded.describe(&ModelOverrides::default()) {
                    check_message(&error.to_string());
                }
            }
            Err(error) => check_message(&error.to_string()),
        }
    }
}

fn temporary_file() -> NamedTempFile {
    let folder = if Path::new(MEMORY_DIR).is_dir() { MEMORY_DIR.into() } else { std::env::temp_dir() };
    tempfile::Builder::new()
        .prefix("tiny-cats-fuzz-")
        .tempfile_in(folder)
        .expect("a temporary file can be created")
}

/// Maximum length of a message, in bytes. Longer messages repeat too much of the file.
const MAX_MESSAGE: usize = 1000;

/// Panics if `text` is not one short line of printable characters.
pub fn check_message(text: &str) {
    assert!(!text.chars().any(char::is_control), "not one printable line: {text:?}");
    assert!(text.len() <= MAX_MESSAGE, "a message of {} bytes: {text}", text.len());
}
