//! Folders that are there whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tiny_cats_export::strip_temp_name;

use super::{Error, Result};

/// Has `fill` write into a new folder, which then takes the place of `folder`. When it fails, `folder` is what it was, and nothing else is
/// left behind. Whether what is at `folder` may be replaced is for the caller to know.
///
/// # Errors
/// Those of `fill` and of making and renaming folders.
pub(super) fn replace<T>(folder: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let (folder, exists) = existing(folder)?;
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let work = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent);
    let work = work.map_err(strip_temp_name).map_err(Error::io(&folder))?;
    let (new, old) = (work.path().join("new"), work.path().join("old"));
    fs::create_dir(&new).map_err(Error::io(&folder))?;
    let filled = fill(&new)?;
    if exists {
        fs::rename(&folder, &old).map_err(Error::io(&folder))?;
    }
    if let Err(error) = fs::rename(&new, &folder) {
        if exists && fs::rename(&old, &folder).is_err() {
            // What was there could not be put back: at least keep it.
            let _ = work.keep();
        }
        return Err(Error::io(&folder)(error));
    }
    Ok(filled)
}

/// `folder` free of links, and whether it is there.
pub(super) fn existing(folder: &Path) -> Result<(PathBuf, bool)> {
    if folder.try_exists().map_err(Error::io(folder))? {
        Ok((fs::canonicalize(folder).map_err(Error::io(folder))?, true))
    } else {
        Ok((folder.to_path_buf(), false))
    }
}
