//! What lies in a data folder.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use tiny_cats_export::is_class_name;

use super::{Error, OTHER, Result};

/// Labels are 32 bits wide, and so are positions in an order.
const MOST_FILES: usize = u32::MAX as usize;

/// The class folders of a data folder and the files in them; none has been opened yet.
pub(super) struct Found {
    /// The names of the class folders, sorted, `other` last.
    pub classes: Vec<String>,
    /// Class and path from the data folder of each file, sorted.
    pub files: Vec<(usize, PathBuf)>,
    /// What can be neither, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Looks through the folder `root`. Hidden files and those of operating systems are left out. Links are followed inside of it, and only there: a data folder is whole
/// in itself, and a link in an archive of somebody else can't name files of the user.
pub(super) fn scan(root: &Path) -> Result<Found> {
    let inside = fs::canonicalize(root).map_err(Error::io(root))?;
    let mut skipped = Vec::new();
    let mut classes = Vec::new();
    for name in list(root)? {
        let path = root.join(&name);
        if let Some(reason) = astray(&inside, &path) {
            skipped.push((printable(&name), reason));
        } else if path.is_dir() {
            match name.to_str() {
                Some(text) if is_class_name(text) => classes.push(text.to_owned()),
                _ => skipped.push((printable(&name), "a folder whose name no class can have".to_string())),
            }
        }
    }
    if let Some(path) = oxford(&inside, root) {
        return Err(Error::Oxford { path });
    }
    if classes.is_empty() {
        return Err(Error::NoClasses { path: root.to_path_buf() });
    }
    classes.sort_by_key(|name| (name.eq_ignore_ascii_case(OTHER), name.clone()));

    let mut files = Vec::new();
    for (class, folder) in classes.iter().enumerate() {
        for name in list(&root.join(folder))? {
            let path = Path::new(folder).join(&name);
            if name.to_str().is_none_or(|name| name.contains(char::is_control)) {
                let reason = "a name that is no text or has control characters in it".to_string();
                skipped.push((printable(&path), reason));
            } else if let Some(reason) = astray(&inside, &root.join(&path)) {
                skipped.push((path, reason));
            } else {
                files.push((class, path));
            }
        }
    }
    if files.len() > MOST_FILES {
        return Err(Error::TooMany { path: root.to_path_buf(), count: files.len(), most: MOST_FILES });
    }
    Ok(Found { classes, files, skipped })
}

/// The folder that the archives of the Oxford-IIIT Pet data set were unpacked to, if `root` is that or the `images` in it.
fn oxford(inside: &Path, root: &Path) -> Option<PathBuf> {
    let unpacked = |folder: &Path| folder.join("images").is_dir() && folder.join("annotations").is_dir();
    if unpacked(root) {
        return Some(root.to_path_buf());
    }
    let above = inside.parent().filter(|above| inside.ends_with("images") && unpacked(above));
    above.map(Path::to_path_buf)
}

/// Whether a file or folder of this name is hidden or one that an operating system keeps for itself, so that nobody means it when naming
/// the folder that it is in.
pub(crate) fn is_ignored(name: &OsStr) -> bool {
    let kept = ["Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"];
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".") || kept.iter().any(|kept| bytes.eq_ignore_ascii_case(kept.as_bytes()))
}

/// The names in a folder, sorted, without those that are [ignored](is_ignored).
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut names: Vec<PathBuf> =
        entries.map(|e| Ok(e.map_err(Error::io(folder))?.file_name().into())).collect::<Result<_>>()?;
    names.retain(|name| !is_ignored(name.as_os_str()));
    names.sort();
    Ok(names)
}

/// Why `path` must not be followed when it is a link. `inside` is the data folder, free of links.
pub(super) fn astray(inside: &Path, path: &Path) -> Option<String> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        return None;
    }
    match fs::canonicalize(path) {
        Err(error) => Some(format!("a link that leads nowhere: {error}")),
        Ok(target) if inside.starts_with(&target) => {
            Some("a link back to a folder that it is in".to_string())
        }
        Ok(target) if !target.starts_with(inside) => Some("a link out of the data folder".to_string()),
        Ok(_) => None,
    }
}

/// A path with `/` between its parts on every system.
pub(super) fn name(path: &Path) -> String {
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// A name of any characters as one that can be printed.
pub(crate) fn printable(name: &Path) -> PathBuf {
    tiny_cats_export::escaped(&name.to_string_lossy(), usize::MAX).into_owned().into()
}
