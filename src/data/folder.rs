//! Writing of folders, completely or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tiny_cats_export::strip_temp_name;

use super::{Error, Result};

/// Calls `fill` to write into a new folder, which then replaces `folder`. If that fails, `folder` is unchanged and temporary files are
/// removed. The caller must check that `folder` may be replaced.
///
/// # Errors
/// Returns the errors of `fill` and of creating and renaming folders.
pub(super) fn replace<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let (folder, exists) = existing(folder)?;
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let temporary = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent);
    let temporary = temporary.map_err(strip_temp_name).map_err(Error::io(&folder))?;
    let (new, old) = (temporary.path().join("new"), temporary.path().join("old"));
    fs::create_dir(&new).map_err(Error::io(&folder))?;
    let filled = fill(&new)?;
    if exists {
        fs::rename(&folder, &old).map_err(Error::io(&folder))?;
    }
    if let Err(error) = fs::rename(&new, &folder) {
        if exists && fs::rename(&old, &folder).is_err() {
            // The old folder could not be moved back: at least keep it.
            let _ = temporary.keep();
        }
        return Err(Error::io(&folder)(error));
    }
    Ok(filled)
}

/// The path of `folder` without links, and true if it exists.
pub(super) fn existing(folder: &Path) -> Result<(PathBuf, bool)> {
    if folder.try_exists().map_err(Error::io(folder))? {
        Ok((fs::canonicalize(folder).map_err(Error::io(folder))?, true))
    } else {
        Ok((folder.to_path_buf(), false))
    }
}
