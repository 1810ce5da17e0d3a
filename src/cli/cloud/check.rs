//! `tiny-cats cloud check`: checks the requirements of training at Modal.

use std::process::ExitCode;

use crate::{
    cli::common::print,
    cloud::{RequirementCheck, check_requirements},
};

/// Prints a line for each check, and the command that fixes a failed one.
///
/// # Errors
/// If standard output cannot be written.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut printed = Ok(());
    let ok = check_requirements(&std::env::current_dir().unwrap_or_default(), &mut |check| {
        let RequirementCheck { name, result } = check;
        let (status, details) = match result {
            Ok(details) => ("ok", details),
            Err(details) => ("missing", details),
        };
        if printed.is_ok() {
            printed = print(&format!("{status:<10}{name:<16}{details}\n"));
        }
    });
    printed?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
