//! Checks that the paths of flags can be written to before a long computation starts.

use std::path::Path;

use anyhow::{Context, bail};

use crate::writable::check_can_write;

/// True if the name of `path` ends in this extension, ignoring case.
pub fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Checks that a file with this `extension` can be written to `path`, the value of `flag`.
///
/// # Errors
/// If the extension differs, the folder does not exist, or it is not writable.
pub fn check_writable(flag: &str, path: &Path, extension: &str) -> anyhow::Result<()> {
    if !has_extension(path, extension) {
        bail!("{flag} {}: expected a name that ends in .{extension}", path.display());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() || path.is_dir() {
        bail!("{flag} {}: expected a file in an existing folder", path.display());
    }
    check_can_write(folder).with_context(|| write_error(flag, path))
}

/// Checks that files can be written to the folder `path`, the value of `flag`. It need not exist yet.
///
/// # Errors
/// If files cannot be written.
pub fn check_writable_folder(flag: &str, path: &Path) -> anyhow::Result<()> {
    check_can_write(path).with_context(|| write_error(flag, path))
}

fn write_error(flag: &str, path: &Path) -> String {
    format!("{flag} {}: cannot write", path.display())
}
