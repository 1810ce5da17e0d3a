//! Logging: warnings on the console, above a progress bar; printed lines and more in log files.
//!
//! A single subscriber is installed at the start of the program. Log files are added when their paths are known. [`print_and_log`] and
//! [`eprint_and_log`] print a line once, and log it once to each file.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use indicatif::{ProgressBar, WeakProgressBar};
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    fmt::MakeWriter,
    layer::{Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::recipes::LogFormat;

/// The target of lines that have been printed, which the console layer skips.
const PRINTED_TARGET: &str = "tiny_cats::said";
/// The target of lines that only the log of the run lacks.
const REPLAYED_TARGET: &str = "tiny_cats::said::earlier";
/// The filter of the console without `RUST_LOG`; other crates log only errors.
const CONSOLE_FILTER: &str = "error,tiny_cats=warn,tiny_cats::serve=info,tiny_cats::init=info,tiny_cats_export=warn,tiny_cats_models=warn";
/// The filter of log files without `RUST_LOG`.
const FILE_FILTER: &str = "warn,tiny_cats=info,tiny_cats_export=info,tiny_cats_models=info";

/// The destinations of printed and logged lines.
struct Destinations {
    /// True if only messages that `RUST_LOG` enables are printed.
    is_quiet: bool,
    /// The progress bar that lines are printed above.
    bar: Option<WeakProgressBar>,
    /// The file of `--log-file`.
    user_file: Option<LogFile>,
    /// The log file in the folder of the current run.
    run_file: Option<LogFile>,
}

struct LogFile {
    path: PathBuf,
    file: File,
    format: LogFormat,
    /// True if the last write failed, perhaps in the middle of a line.
    write_failed: bool,
}

static DESTINATIONS: Mutex<Destinations> =
    Mutex::new(Destinations { is_quiet: false, bar: None, user_file: None, run_file: None });

fn destinations() -> MutexGuard<'static, Destinations> {
    DESTINATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Initializes logging for this process. `RUST_LOG=tiny_cats=debug` enables debug messages. By default, the console shows warnings, and
/// log files also have the printed lines. Times are in UTC.
pub fn init() {
    let console = EnvFilter::new(rust_log().unwrap_or_else(|| CONSOLE_FILTER.into()));
    let console = fmt::layer()
        .with_writer(Console)
        .without_time()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(console.and(filter_fn(|event| !event.target().starts_with(PRINTED_TARGET))));
    let text = fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(LogFiles { format: LogFormat::Text, run_only: false });
    let json = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
    let json = json.with_writer(LogFiles { format: LogFormat::Json, run_only: false });
    tracing_subscriber::registry()
        .with(console)
        .with(text.with_filter(file_filter()))
        .with(json.with_filter(file_filter()))
        .init();
}

/// The value of `RUST_LOG`, unless it is unset or empty.
fn rust_log() -> Option<String> {
    std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty())
}

/// The filter of log files. `RUST_LOG` can add messages to it, but not remove any.
fn file_filter<S>() -> impl Filter<S> {
    EnvFilter::new(FILE_FILTER).or(EnvFilter::new(rust_log().unwrap_or_else(|| "off".into())))
}

/// Appends further log lines to the file at `path`.
///
/// # Errors
/// If the file cannot be opened for writing.
pub fn add_file(path: &Path, format: LogFormat) -> io::Result<()> {
    let file = LogFile::open(path, format)?;
    destinations().user_file = Some(file);
    Ok(())
}

/// Appends further log lines to the file at `path`, which replaces the log of the previous run. Warns if it cannot be opened.
pub fn add_run_file(path: &Path, format: LogFormat) {
    match LogFile::open(path, format) {
        Ok(file) => destinations().run_file = Some(file),
        Err(e) => tracing::warn!("{}: {e}; the run is not logged to this file", path.display()),
    }
}

/// Prints only messages that `RUST_LOG` enables from now on, because another process prints for this one.
pub fn set_quiet() {
    destinations().is_quiet = true;
}

/// Prints lines above `bar` while it exists.
pub fn set_progress_bar(bar: &ProgressBar) {
    destinations().bar = Some(bar.downgrade());
}

/// Prints a line to standard output and logs it.
pub fn print_and_log(line: &str) {
    suspend_bar(|| writeln!(io::stdout(), "{line}"));
    log(line);
}

/// Prints a line to standard error and logs it.
pub fn eprint_and_log(line: &str) {
    suspend_bar(|| writeln!(io::stderr(), "{line}"));
    log(line);
}

/// Logs a line without printing it.
pub fn log(line: &str) {
    tracing::info!(target: PRINTED_TARGET, "{line}");
}

/// Logs a line to the log of the run only, since it was logged elsewhere before that file existed.
pub fn log_to_run(line: &str) {
    tracing::info!(target: REPLAYED_TARGET, "{line}");
}

/// Prints and logs the error that ends the program.
pub fn log_fatal(line: &str) {
    suspend_bar(|| writeln!(io::stderr(), "error: {line}"));
    tracing::error!(target: PRINTED_TARGET, "{line}");
}

/// Runs `print` while the progress bar is hidden. A closed pipe (`| head`) is ignored.
fn suspend_bar(print: impl FnOnce() -> io::Result<()>) {
    let (is_quiet, bar) = {
        let destinations = destinations();
        (destinations.is_quiet, destinations.bar.as_ref().and_then(WeakProgressBar::upgrade))
    };
    if is_quiet {
        return;
    }
    let _ = match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    };
}

impl LogFile {
    fn open(path: &Path, format: LogFormat) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, format, write_failed: false })
    }

    /// Writes a line. Returns a warning for the first failure only, since writing the training state fails if the disk is full.
    fn write(&mut self, line: &[u8]) -> Option<String> {
        let line_bytes = if self.write_failed { [b"\n", line].concat() } else { line.to_owned() };
        match self.file.write_all(&line_bytes) {
            Ok(()) => {
                self.write_failed = false;
                None
            }
            Err(e) => {
                let is_first = !std::mem::replace(&mut self.write_failed, true);
                is_first.then(|| format!("{}: {e}; log lines are lost", self.path.display()))
            }
        }
    }
}

/// The console.
#[derive(Clone, Copy)]
struct Console;

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if destinations().is_quiet && rust_log().is_some() {
            let _ = io::stderr().write_all(line);
        }
        suspend_bar(|| io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log files with this format.
#[derive(Clone, Copy)]
struct LogFiles {
    format: LogFormat,
    /// True to write only to the log of the run.
    run_only: bool,
}

impl Write for LogFiles {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let failures: Vec<String> = {
            let mut destinations = destinations();
            let Destinations { user_file, run_file, .. } = &mut *destinations;
            let user_file = user_file.as_mut().filter(|_| !self.run_only);
            let files = user_file.into_iter().chain(run_file);
            files.filter(|f| f.format == self.format).filter_map(|f| f.write(line)).collect()
        };
        // Printed, not logged, since logging failed.
        failures.iter().for_each(|failure| suspend_bar(|| writeln!(io::stderr(), "{failure}")));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Console {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl MakeWriter<'_> for LogFiles {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }

    fn make_writer_for(&self, event: &Metadata) -> Self {
        Self { run_only: event.target() == REPLAYED_TARGET, ..*self }
    }
}
