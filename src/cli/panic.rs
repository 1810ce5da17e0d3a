//! The panic hook: one line for an unexpected error.

use std::{backtrace, io::Write, panic, process};

use tiny_cats_export::excerpt;

/// The page to report bugs at.
const ISSUES_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");

/// Installs a hook that prints a panic as one line that asks for a report; with `RUST_BACKTRACE` the backtrace follows. If standard output
/// is closed, as behind `| head`, the process ends silently. If it cannot be written for another reason, the process ends with one line.
pub fn install_hook() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or("no message");
        // `println!` panics with this text where other functions return an error.
        if let Some(reason) = message.strip_prefix("failed printing to ") {
            let broken = reason.contains("Broken pipe") || reason.contains("os error 232");
            if !broken {
                let _ = writeln!(std::io::stderr(), "error: {}", excerpt(reason));
            }
            process::exit(if broken { 0 } else { 1 });
        }
        let place = info
            .location()
            .map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        let line = format!(
            "error: internal error{place}: {}; please report it at {ISSUES_URL} (RUST_BACKTRACE=1 shows where it comes from)",
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
