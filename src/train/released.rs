//! Copies the released files of a run to the path that the user chose. Existing files of another run are renamed.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use tiny_cats_export::{remove_abandoned, write_atomically};

use super::{Error, Result};
use crate::writable::check_free_space;

/// For each of `destinations`, true if it is the same file, byte for byte, as one that the run in `folder` released.
pub fn owned_by_run(folder: &Path, destinations: &[PathBuf; 2]) -> [bool; 2] {
    destinations.each_ref().map(|destination| {
        destination.file_name().is_some_and(|name| is_same(&folder.join(name), destination).unwrap_or(false))
    })
}

/// Checks that the files can be written to `destinations`, `bytes` each.
///
/// # Errors
/// If a destination is a folder, or the disk has too little free space.
pub fn check(destinations: &[PathBuf; 2], bytes: u64) -> Result<()> {
    for path in destinations {
        let failed = |source| Error::File { path: path.clone(), source };
        if path.is_dir() {
            return Err(failed(io::Error::other("expected a file, found a folder")));
        }
        check_free_space(path, destinations.len() as u64 * bytes).map_err(failed)?;
    }
    Ok(())
}

/// Copies `released` to `destinations`. Renames files of another run first, for which `is_own` is false. Returns those files with their new
/// names.
///
/// # Errors
/// If a file cannot be written; the error names it. No existing file is lost.
pub fn publish(
    released: &[PathBuf; 2],
    destinations: &[PathBuf; 2],
    is_own: [bool; 2],
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut others = Vec::new();
    for ((from, to), is_own) in released.iter().zip(destinations).zip(is_own) {
        if to.is_file() && !is_own && !is_same(from, to).unwrap_or(false) {
            others.push(to);
        }
    }
    if let Some(folder) = destinations[0].parent() {
        remove_abandoned(folder);
    }
    let renamed = back_up(&others)?;
    for (from, to) in released.iter().zip(destinations) {
        copy(from, to).map_err(|source| Error::File { path: to.clone(), source })?;
    }
    Ok(renamed)
}

/// Links `files` to a second name, with a number that is free for all of them: `NAME.1.pt`.
fn back_up(files: &[&PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let numbered = |number: u32| -> Vec<PathBuf> {
        let name = |file: &&PathBuf| {
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            file.with_extension(format!("{number}.{extension}"))
        };
        files.iter().map(name).collect()
    };
    // A process that was killed may have linked the files before.
    let is_backed_up = |file: &Path, name: &Path| is_same(file, name).unwrap_or(false);
    let is_free = |names: &Vec<PathBuf>| {
        let mut pairs = files.iter().zip(names);
        pairs.all(|(file, name)| name.symlink_metadata().is_err() || is_backed_up(file, name))
    };
    let names = (1..).map(numbered).find(is_free).unwrap_or_default();
    for (file, name) in files.iter().zip(&names).filter(|(file, name)| !is_backed_up(file, name)) {
        // On a file system without hard links, the old name is missing until the new file is copied there.
        fs::hard_link(file, name)
            .or_else(|_| fs::rename(file, name))
            .map_err(|source| Error::File { path: name.clone(), source })?;
    }
    Ok(files.iter().map(|file| file.to_path_buf()).zip(names).collect())
}

/// Copies a file atomically.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut source = File::open(from)?;
    write_atomically(to, |w| io::copy(&mut source, w).map(|_| ()))
}

/// True if two files hold the same bytes.
fn is_same(a: &Path, b: &Path) -> io::Result<bool> {
    let [a, b] = [File::open(a)?, File::open(b)?];
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let [mut a, mut b] = [BufReader::new(a), BufReader::new(b)];
    let [mut left, mut right] = [vec![0; 1 << 16], vec![0; 1 << 16]];
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        b.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_another_run_are_renamed_and_files_of_this_run_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let folder = path("run");
        fs::create_dir(&folder).unwrap();
        let files = |root: &Path| ["pt", "safetensors"].map(|extension| root.join(format!("m.{extension}")));
        let destinations = files(&path("out"));
        let write = |root: &Path, text: &str| {
            files(root).iter().for_each(|path| fs::write(path, text).unwrap());
        };
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();

        // No file; the same file again; a new release of the same run.
        for text in ["one", "one", "two"] {
            let is_own = owned_by_run(&folder, &destinations);
            write(&folder, text);
            assert_eq!(publish(&files(&folder), &destinations, is_own).unwrap(), []);
            assert_eq!((read("out/m.pt"), read("out/m.safetensors")), (text.into(), text.into()));
        }
        // Two files of another run, then only one.
        let other = path("other");
        fs::create_dir(&other).unwrap();
        write(&other, "three");
        assert_eq!(owned_by_run(&other, &destinations), [false; 2]);
        let renamed = publish(&files(&other), &destinations, [false; 2]).unwrap();
        assert_eq!(renamed[0], (path("out/m.pt"), path("out/m.1.pt")));
        assert_eq!((read("out/m.1.pt"), read("out/m.1.safetensors")), ("two".into(), "two".into()));
        assert_eq!((read("out/m.pt"), read("out/m.safetensors")), ("three".into(), "three".into()));
        fs::remove_file(path("out/m.1.pt")).unwrap();
        fs::remove_file(path("out/m.safetensors")).unwrap();
        let renamed = publish(&files(&folder), &destinations, owned_by_run(&folder, &destinations)).unwrap();
        assert_eq!(renamed, [(path("out/m.pt"), path("out/m.1.pt"))]);
        // A file that was renamed before a process was killed is not renamed twice.
        back_up(&[&destinations[0], &destinations[1]]).unwrap();
        let renamed = publish(&files(&other), &destinations, [false; 2]).unwrap();
        assert_eq!(renamed[1].1, path("out/m.2.safetensors"));
        assert_eq!(
            (read("out/m.2.pt"), read("out/m.1.pt"), read("out/m.pt")),
            ("two".into(), "three".into(), "three".into())
        );
    }

    #[test]
    fn files_are_compared_byte_by_byte() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        let long = vec![7u8; 200_000];
        fs::write(&a, &long).unwrap();
        for (change, expected) in [(None, true), (Some(199_999), false), (Some(0), false)] {
            let mut other = long.clone();
            change.into_iter().for_each(|at: usize| other[at] = 8);
            fs::write(&b, &other).unwrap();
            assert_eq!(is_same(&a, &b).unwrap(), expected);
        }
        fs::write(&b, &long[1..]).unwrap();
        assert!(!is_same(&a, &b).unwrap() && is_same(&a, &dir.path().join("c")).is_err());
    }
}
