//! The panic hook: one line for an unexpected error.

use std::{backtrace, io::Write, panic, process};

use tiny_cats_export::excerpt;

/// The page for bug reports.
const ISSUES_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");

/// Installs a hook that prints a panic as one line that asks for a report; with `RUST_BACKTRACE` the backtrace follows. If standard output
/// is a closed pipe, as with `| head`, the process ends silently. If it fails for another reason, the process ends with one line.
pub fn install_hook() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or("no message");
        // `println!` panics with this text where other functions return an error.
        if let Some(reason) = message.strip_prefix("failed printing to ") {
            let is_closed_pipe = reason.contains("Broken pipe") || reason.contains("os error 232");
            if !is_closed_pipe {
                let _ = writeln!(std::io::stderr(), "error: {}", excerpt(reason));
            }
            process::exit(if is_closed_pipe { 0 } else { 1 });
        }
        let location = info
            .location()
            .map_or_else(String::new, |location| format!(" at {}:{}", location.file(), location.line()));
        let line = format!(
            "error: internal error{location}: {}; please report it at {ISSUES_URL} (RUST_BACKTRACE=1 prints a backtrace)",
            excerpt(message)
        );
        let backtrace = backtrace::Backtrace::capture();
        let mut stderr = std::io::stderr();
        let _ = writeln!(stderr, "{line}");
        if backtrace.status() == backtrace::BacktraceStatus::Captured {
            let _ = writeln!(stderr, "{backtrace}");
        }
    }));
}
