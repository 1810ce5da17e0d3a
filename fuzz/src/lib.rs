//! What the fuzz targets share.

use std::{
    io::{Seek, Write},
    panic,
    path::Path,
    sync::Mutex,
};

use tempfile::NamedTempFile;
use tiny_cats::checkpoint::{self, Given, WeightsSelection};

/// A folder in memory on Linux: nothing is written to a disk millions of times.
const MEMORY: &str = "/dev/shm";

/// The message of the last panic.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Keeps panics that the library catches from ending the process; [`escaped`] reports the others. To be called once, before the first
/// input.
pub fn init() {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST.lock() {
            *last = format!("{info}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// Runs `body`, and ends the process if a panic leaves it.
pub fn escaped<T>(body: impl FnOnce() -> T) -> T {
    panic::catch_unwind(panic::AssertUnwindSafe(body)).unwrap_or_else(|_| {
        eprintln!("a panic left the library: {}", LAST.lock().map(|last| last.clone()).unwrap_or_default());
        std::process::abort()
    })
}

/// Opens `bytes` as a checkpoint, with the weights that are used by default and, where they differ, the raw ones, and asks which network
/// it is. Errors must be one line of printable text.
pub fn checkpoint(bytes: &[u8]) {
    let mut file = temporary();
    file.write_all(bytes).and_then(|()| file.rewind()).expect("the temporary file can be written");
    for which in [WeightsSelection::Default, WeightsSelection::Raw] {
        match checkpoint::open(file.path(), which) {
            Ok(loaded) => {
                if let Err(problem) = loaded.describe(&Given::default()) {
                    message(&problem.to_string());
                }
            }
            Err(error) => message(&error.to_string()),
        }
    }
}

fn temporary() -> NamedTempFile {
    let folder = if Path::new(MEMORY).is_dir() { MEMORY.into() } else { std::env::temp_dir() };
    tempfile::Builder::new()
        .prefix("tiny-cats-fuzz-")
        .tempfile_in(folder)
        .expect("a temporary file can be made")
}

/// Longer messages echo what a hostile file says.
const MAX_MESSAGE: usize = 1000;

/// Ends the process if `text` is not one short line of printable characters.
pub fn message(text: &str) {
    assert!(!text.chars().any(char::is_control), "not one printable line: {text:?}");
    assert!(text.len() <= MAX_MESSAGE, "a message of {} bytes: {text}", text.len());
}
