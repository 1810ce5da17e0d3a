//! Logging: warnings on the console, above a progress bar; printed lines and more in log files, which can be added at any time.
//!
//! One subscriber is set up when the program starts. Log files are added when their paths are known. Lines for the user go through
//! [`print_and_log`] and [`eprint_and_log`]: they are printed once, and logged once to each file.

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

/// The target of lines that were printed already; the console layer skips it.
const PRINTED_TARGET: &str = "tiny_cats::said";
/// The target of lines that other files have already, and that only the run's file still needs.
const REPLAYED_TARGET: &str = "tiny_cats::said::earlier";
/// The console's filter without `RUST_LOG`; of other crates only errors.
const CONSOLE: &str = "error,tiny_cats=warn,tiny_cats::serve=info,tiny_cats::init=info,tiny_cats_export=warn,tiny_cats_models=warn";
const FILES: &str = "warn,tiny_cats=info,tiny_cats_export=info,tiny_cats_models=info";

/// The format of a log file's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Time, level and text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The destinations of lines.
struct State {
    /// True if only what `RUST_LOG` requests is printed.
    quiet: bool,
    /// The progress bar that lines are printed above.
    bar: Option<WeakProgressBar>,
    /// The file of `--log-file`.
    user_file: Option<LogFile>,
    /// The log file in the folder of the current run.
    run: Option<LogFile>,
}

struct LogFile {
    path: PathBuf,
    file: File,
    format: Format,
    /// True if the last write failed, perhaps in the middle of a line.
    write_failed: bool,
}

static STATE: Mutex<State> = Mutex::new(State { quiet: false, bar: None, user_file: None, run: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Initializes logging for this process. `RUST_LOG=tiny_cats=debug` adds debug messages; without it the console shows warnings, and files
/// also have the printed lines. Times are in UTC.
pub fn init() {
    let console = EnvFilter::new(rust_log().unwrap_or_else(|| CONSOLE.into()));
    let console = fmt::layer()
        .with_writer(Console)
        .without_time()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(console.and(filter_fn(|event| !event.target().starts_with(PRINTED_TARGET))));
    let text = fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(Files { format: Format::Text, run_only: false });
    let json = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
    let json = json.with_writer(Files { format: Format::Json, run_only: false });
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

/// The filter of log files: a `RUST_LOG` that silences the console does not silence them.
fn file_filter<S>() -> impl Filter<S> {
    EnvFilter::new(FILES).or(EnvFilter::new(rust_log().unwrap_or_else(|| "off".into())))
}

/// Appends further log lines to the file at `path`.
///
/// # Errors
/// If the file cannot be opened for writing.
pub fn add_file(path: &Path, format: Format) -> io::Result<()> {
    let file = LogFile::open(path, format)?;
    state().user_file = Some(file);
    Ok(())
}

/// Appends further log lines to the file at `path`, in a run's folder, instead of that of the previous run. Warns if it cannot be opened.
pub fn add_run_file(path: &Path, format: Format) {
    match LogFile::open(path, format) {
        Ok(file) => state().run = Some(file),
        Err(e) => tracing::warn!("{}: {e}: the run is not logged there", path.display()),
    }
}

/// Prints only what `RUST_LOG` requests from now on, because another process prints for this one.
pub fn set_quiet() {
    state().quiet = true;
}

/// Prints all lines above `bar` for as long as the bar exists.
pub fn set_progress_bar(bar: &ProgressBar) {
    state().bar = Some(bar.downgrade());
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

/// Logs a line that is printed elsewhere, or not at all.
pub fn log(line: &str) {
    tracing::info!(target: PRINTED_TARGET, "{line}");
}

/// Logs only to the run's file a line that was logged before that file existed.
pub fn log_to_run(line: &str) {
    tracing::info!(target: REPLAYED_TARGET, "{line}");
}

/// Prints the error that ends the program, and logs it.
pub fn log_fatal(line: &str) {
    suspend_bar(|| writeln!(io::stderr(), "error: {line}"));
    tracing::error!(target: PRINTED_TARGET, "{line}");
}

/// Runs `print` while the progress bar is hidden. A closed pipe (`| head`) is ignored.
fn suspend_bar(print: impl FnOnce() -> io::Result<()>) {
    let (quiet, bar) = {
        let state = state();
        (state.quiet, state.bar.as_ref().and_then(WeakProgressBar::upgrade))
    };
    if quiet {
        return;
    }
    let _ = match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    };
}

impl LogFile {
    fn open(path: &Path, format: Format) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, format, write_failed: false })
    }

    /// Writes a line; returns a warning for the first failure only, since a full disk stops the run where it matters.
    fn write(&mut self, line: &[u8]) -> Option<String> {
        let whole = if self.write_failed { [b"\n", line].concat() } else { line.to_owned() };
        match self.file.write_all(&whole) {
            Ok(()) => {
                self.write_failed = false;
                None
            }
            Err(e) => {
                let first = !std::mem::replace(&mut self.write_failed, true);
                first.then(|| format!("{}: {e}: some of the log is lost", self.path.display()))
            }
        }
    }
}

/// The console.
#[derive(Clone, Copy)]
struct Console;

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if state().quiet && rust_log().is_some() {
            let _ = io::stderr().write_all(line);
        }
        suspend_bar(|| io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log files of one format.
#[derive(Clone, Copy)]
struct Files {
    format: Format,
    run_only: bool,
}

impl Write for Files {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let failures: Vec<String> = {
            let mut state = state();
            let State { user_file, run, .. } = &mut *state;
            let asked = user_file.as_mut().filter(|_| !self.run_only);
            let files = asked.into_iter().chain(run);
            files.filter(|f| f.format == self.format).filter_map(|f| f.write(line)).collect()
        };
        // Printed, not logged: logging is what failed.
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

impl MakeWriter<'_> for Files {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }

    fn make_writer_for(&self, event: &Metadata) -> Self {
        Self { run_only: event.target() == REPLAYED_TARGET, ..*self }
    }
}
