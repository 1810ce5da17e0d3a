//! Who hears what: warnings on the console, above a progress bar; what was said, and more, in log files that come and go.
//!
//! One subscriber is set up when the program starts; log files are added when they are known. What a person reads on the console anyway
//! goes through [`say`] and [`note`]: it is printed once, and is once in each file.

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

/// The target of what was printed already, which the console does not show again.
const PRINTED_TARGET: &str = "tiny_cats::said";
/// The target of what other files have already, and the run's is to have, too.
const REPLAYED_TARGET: &str = "tiny_cats::said::earlier";
/// What is heard where `RUST_LOG` says nothing; of others only what went wrong.
const CONSOLE: &str = "error,tiny_cats=warn,tiny_cats::serve=info,tiny_cats::init=info,tiny_cats_export=warn,tiny_cats_models=warn";
const FILES: &str = "warn,tiny_cats=info,tiny_cats_export=info,tiny_cats_models=info";

/// How a line of a log file looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Time, level and text.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Where it is written.
struct State {
    /// Nothing is printed, unless `RUST_LOG` asks for it.
    quiet: bool,
    /// The progress bar that lines are printed above.
    bar: Option<WeakProgressBar>,
    /// The file that the user asked for.
    user_file: Option<LogFile>,
    /// The file in the folder of the run that is on.
    run: Option<LogFile>,
}

struct LogFile {
    path: PathBuf,
    file: File,
    format: Format,
    /// The last write failed, perhaps in the middle of a line.
    write_failed: bool,
}

static STATE: Mutex<State> = Mutex::new(State { quiet: false, bar: None, user_file: None, run: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets logging up, for this process. `RUST_LOG=tiny_cats=debug` shows what happens inside; without it the console shows warnings, and
/// files have what was said, too. Times are in UTC.
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

/// What `RUST_LOG` says, if it says anything.
fn rust_log() -> Option<String> {
    std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty())
}

/// What `RUST_LOG` silences on the console is in the files all the same.
fn file_filter<S>() -> impl Filter<S> {
    EnvFilter::new(FILES).or(EnvFilter::new(rust_log().unwrap_or_else(|| "off".into())))
}

/// Writes to the file at `path` from now on, too, after what is in it.
///
/// # Errors
/// When it cannot be opened for writing.
pub fn add_file(path: &Path, format: Format) -> io::Result<()> {
    let file = LogFile::open(path, format)?;
    state().user_file = Some(file);
    Ok(())
}

/// Writes to the file at `path`, in the folder of a run, instead of that of the run before. That it cannot be opened is a warning.
pub fn add_run_file(path: &Path, format: Format) {
    match LogFile::open(path, format) {
        Ok(file) => state().run = Some(file),
        Err(e) => tracing::warn!("{}: {e}: the run is not logged there", path.display()),
    }
}

/// Prints nothing from now on but what `RUST_LOG` asks for: another process speaks for this one.
pub fn set_quiet() {
    state().quiet = true;
}

/// Prints all lines above `bar` for as long as it is there.
pub fn set_progress_bar(bar: &ProgressBar) {
    state().bar = Some(bar.downgrade());
}

/// Prints a line on the standard output and logs it.
pub fn print_and_log(line: &str) {
    suspend_bar(|| writeln!(io::stdout(), "{line}"));
    log(line);
}

/// Prints a line on the standard error stream and logs it.
pub fn eprint_and_log(line: &str) {
    suspend_bar(|| writeln!(io::stderr(), "{line}"));
    log(line);
}

/// Logs a line that is printed elsewhere, or not at all.
pub fn log(line: &str) {
    tracing::info!(target: PRINTED_TARGET, "{line}");
}

/// Logs to the file of the run alone what was logged before there was one.
pub fn log_to_run(line: &str) {
    tracing::info!(target: REPLAYED_TARGET, "{line}");
}

/// Prints the error that ends the program, and logs it.
pub fn log_fatal(line: &str) {
    suspend_bar(|| writeln!(io::stderr(), "error: {line}"));
    tracing::error!(target: PRINTED_TARGET, "{line}");
}

/// Runs `print` while the bar is out of its way. That nobody listens any more (`| head`) stops nothing.
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

    /// A full disk will stop the run where it matters; here it is said once.
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

/// The files of one format.
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
        // Printed, not logged: logging is what fails.
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
