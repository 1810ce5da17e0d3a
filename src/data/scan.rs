//! Scanning of data folders.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use tiny_cats_export::{excerpt, is_class_name};

use super::{
    Error, OTHER, Result, Split,
    error::printable,
    file_names::{INDEX, MANIFEST, PREPARED, SOURCE},
};

/// The largest number of files: labels and positions in an order have 32 bits.
const MAX_FILES: usize = u32::MAX as usize;

/// The class folders of a data folder and their files, not opened yet.
pub(super) struct FolderScan {
    /// The names of the class folders, sorted, with `other` last.
    pub classes: Vec<String>,
    /// The class of each file and its path from the data folder, sorted.
    pub files: Vec<(usize, PathBuf)>,
    /// True if the class folders are in folders such as `train`, `val` and `test`, which define the split.
    pub is_split_by_folders: bool,
    /// Files and folders that are neither, and the reasons.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Scans the folder `root`: class folders, or folders `train`, `val` and `test` of class folders. Hidden files and those of operating
/// systems are ignored.
///
/// Links are only followed inside the folder: a data folder is self-contained, and a link in an untrusted archive must not name the user's
/// files.
pub(super) fn scan(root: &Path) -> Result<FolderScan> {
    let canonical_root = fs::canonicalize(root).map_err(Error::io(root))?;
    let mut skipped = Vec::new();
    let top_folders = folders(&canonical_root, root, Path::new(""), &mut skipped)?;
    if let Some(path) = oxford(&canonical_root, root) {
        return Err(Error::Oxford { path });
    }
    let split_by_folders = split_by_folders(root, &top_folders);
    // The class name of each class folder, and its path.
    let mut class_folders = Vec::new();
    for name in top_folders {
        let path = PathBuf::from(&name);
        if !split_by_folders {
            class_folders.push((name, path));
        } else if Split::from_folder_name(&name).is_none() {
            skipped.push((path, "a folder next to train, val and test".to_string()));
        } else {
            let subfolder = folders(&canonical_root, root, &path, &mut skipped)?;
            if subfolder.is_empty() {
                skipped.push((path.clone(), "a folder without class folders".to_string()));
            }
            class_folders.extend(subfolder.into_iter().map(|class| (class.clone(), path.join(class))));
        }
    }
    if class_folders.is_empty() {
        return Err(Error::NoClasses { path: root.to_path_buf() });
    }
    let mut classes: Vec<String> = class_folders.iter().map(|(class, _)| class.clone()).collect();
    classes.sort_by_key(|name| (name.eq_ignore_ascii_case(OTHER), name.clone()));
    classes.dedup();
    let labels: HashMap<&str, usize> =
        classes.iter().enumerate().map(|(label, class)| (class.as_str(), label)).collect();

    let mut files = Vec::new();
    for (class, folder) in &class_folders {
        let class = labels[class.as_str()];
        for name in list(&root.join(folder))? {
            let path = folder.join(&name);
            if name.to_str().is_none_or(|name| name.contains(char::is_control)) {
                let reason = "a name that is not UTF-8 or has control characters".to_string();
                skipped.push((printable(&path), reason));
            } else if let Some(reason) = link_error(&canonical_root, &root.join(&path)) {
                skipped.push((path, reason));
            } else {
                files.push((class, path));
            }
        }
    }
    if files.len() > MAX_FILES {
        return Err(Error::TooMany { path: root.to_path_buf(), count: files.len(), max: MAX_FILES });
    }
    files.sort();
    Ok(FolderScan { classes, files, is_split_by_folders: split_by_folders, skipped })
}

/// The folders in `subfolder`, a path from `root`, whose names are valid for classes.
fn folders(
    canonical_root: &Path,
    root: &Path,
    subfolder: &Path,
    skipped: &mut Vec<(PathBuf, String)>,
) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    for name in list(&root.join(subfolder))? {
        let path = subfolder.join(&name);
        if let Some(reason) = link_error(canonical_root, &root.join(&path)) {
            skipped.push((printable(&path), reason));
        } else if root.join(&path).is_dir() {
            match name.to_str() {
                Some(text) if is_class_name(text) => folders.push(text.to_owned()),
                _ => skipped
                    .push((printable(&path), "a folder whose name is not a valid class name".to_string())),
            }
        }
    }
    Ok(folders)
}

/// True if folders such as `train`, `val` and `test` in the folder `root` contain the class folders.
pub(super) fn is_split_by_folders(root: &Path) -> Result<bool> {
    let canonical_root = fs::canonicalize(root).map_err(Error::io(root))?;
    Ok(split_by_folders(root, &folders(&canonical_root, root, Path::new(""), &mut Vec::new())?))
}

/// True if the folders `top_folders` of `root` are the parts of a split and not classes. There must be one for training with folders in it,
/// and either another part or no other folder. A class may be called `train`: its folder contains images.
fn split_by_folders(root: &Path, top_folders: &[String]) -> bool {
    let has_folders = |name: &String| {
        let names = list(&root.join(name)).unwrap_or_default();
        names.iter().any(|subfolder| root.join(name).join(subfolder).is_dir())
    };
    let part_of = |name: &String| Split::from_folder_name(name);
    let others = top_folders.iter().filter(|name| part_of(name) != Some(Split::Train));
    let other_parts = others.clone().filter(|name| part_of(name).is_some()).count();
    top_folders.iter().any(|name| part_of(name) == Some(Split::Train) && has_folders(name))
        && (other_parts > 0 || others.count() == 0)
}

/// The folder that the archives of the Oxford-IIIT Pet data set were unpacked to, if `root` is that or the `images` in it.
fn oxford(canonical_root: &Path, root: &Path) -> Option<PathBuf> {
    let unpacked = |folder: &Path| folder.join("images").is_dir() && folder.join("annotations").is_dir();
    if unpacked(root) {
        return Some(root.to_path_buf());
    }
    let parent =
        canonical_root.parent().filter(|parent| canonical_root.ends_with("images") && unpacked(parent));
    parent.map(Path::to_path_buf)
}

/// True if a file or folder of this name is hidden or belongs to an operating system.
fn is_ignored(name: &OsStr) -> bool {
    let system_files = ["Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"];
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".")
        || system_files.iter().any(|system_files| bytes.eq_ignore_ascii_case(system_files.as_bytes()))
}

/// True unless a file or folder of this name [is ignored](is_ignored), or is a file that this program writes next to images.
pub(crate) fn can_be_image(name: &OsStr) -> bool {
    !is_ignored(name) && [INDEX, MANIFEST, PREPARED, SOURCE].iter().all(|file| name != *file)
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

/// The reason why `path` must not be followed, if it is a link. `canonical_root` is the data folder without links.
pub(super) fn link_error(canonical_root: &Path, path: &Path) -> Option<String> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        return None;
    }
    match fs::canonicalize(path) {
        Err(error) => Some(format!("a broken link: {error}")),
        Ok(target) if canonical_root.starts_with(&target) => {
            Some("a link back to a folder that it is in".to_string())
        }
        Ok(target) if !target.starts_with(canonical_root) => {
            Some("a link out of the data folder".to_string())
        }
        Ok(_) => None,
    }
}

/// A path with `/` between its parts on every system.
pub(super) fn name(path: &Path) -> String {
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}
/// Describes skipped images, one line each. Their names are escaped, since they may come from an untrusted index.
pub(crate) fn skipped_lines(skipped: &[(PathBuf, String)]) -> impl Iterator<Item = String> {
    skipped.iter().map(|(path, reason)| {
        format!("skipped {}: {}", excerpt(&path.display().to_string()), excerpt(reason))
    })
}
