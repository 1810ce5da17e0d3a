//! What a person sees when something goes wrong that no code expected: one line.

use std::{backtrace, io::Write, panic, process};

use tiny_cats_export::excerpt;

/// Where to report a fault of this program.
const ISSUES_URL: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");

/// Shows a panic as one line that asks for a report; with `RUST_BACKTRACE` the backtrace follows. Ends the process quietly when nobody reads
/// the standard output any more, as behind `| head`, and with one line when it cannot be written.
pub fn install_hook() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or("no message");
        // `println!` panics with this text where others return an error.
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
