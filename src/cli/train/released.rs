//! The released files of a run at the place that the user chose. Files of another run in that place are kept.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use tiny_cats_export::{remove_abandoned, write_atomically};

/// The extensions of the released files.
pub const EXTENSIONS: [&str; 2] = ["pt", "safetensors"];

/// For each of `places`, true if it holds a file that the run in `folder` released, byte for byte.
pub fn owned_by_run(folder: &Path, places: &[PathBuf; 2]) -> [bool; 2] {
    places.each_ref().map(|place| {
        place.file_name().is_some_and(|name| is_same(&folder.join(name), place).unwrap_or(false))
    })
}

/// Copies `released` to `places`. A file of another run, which is not one of `own`, is renamed first. Returns those files with their new
/// names.
///
/// # Errors
/// If a file cannot be written; the error names it. No existing file is lost.
pub fn publish(
    released: &[PathBuf; 2],
    places: &[PathBuf; 2],
    own: [bool; 2],
) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut others = Vec::new();
    for ((from, to), own) in released.iter().zip(places).zip(own) {
        if to.is_file() && !own && !is_same(from, to).unwrap_or(false) {
            others.push(to);
        }
    }
    if let Some(folder) = places[0].parent() {
        remove_abandoned(folder);
    }
    let kept = back_up(&others)?;
    for (from, to) in released.iter().zip(places) {
        copy(from, to).with_context(|| to.display().to_string())?;
    }
    Ok(kept)
}

/// Gives `files` a second name, with a number that is free for all of them: `NAME.1.pt`.
fn back_up(files: &[&PathBuf]) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let named = |number: u32| -> Vec<PathBuf> {
        let name = |file: &&PathBuf| {
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            file.with_extension(format!("{number}.{extension}"))
        };
        files.iter().map(name).collect()
    };
    // A process that was killed may have done this already.
    let is_kept = |file: &Path, name: &Path| is_same(file, name).unwrap_or(false);
    let is_free = |names: &Vec<PathBuf>| {
        let mut pairs = files.iter().zip(names);
        pairs.all(|(file, name)| name.symlink_metadata().is_err() || is_kept(file, name))
    };
    let names = (1..).map(named).find(is_free).unwrap_or_default();
    for (file, name) in files.iter().zip(&names).filter(|(file, name)| !is_kept(file, name)) {
        // On a file system without hard links the file has only its new name, until the run's own file takes the old one.
        fs::hard_link(file, name)
            .or_else(|_| fs::rename(file, name))
            .with_context(|| format!("keeping {} as {}", file.display(), name.display()))?;
    }
    Ok(files.iter().map(|file| file.to_path_buf()).zip(names).collect())
}

/// Copies a file so that `to` holds either the old file or the whole new one.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut source = File::open(from)?;
    Ok(write_atomically(to, |w| io::copy(&mut source, w).map(|_| ()))?)
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
    fn what_another_run_released_is_kept_and_what_this_one_did_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let folder = path("run");
        fs::create_dir(&folder).unwrap();
        let files = |root: &Path| EXTENSIONS.map(|extension| root.join(format!("m.{extension}")));
        let places = files(&path("out"));
        let write = |root: &Path, text: &str| {
            files(root).iter().for_each(|path| fs::write(path, text).unwrap());
        };
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();

        // No file; the same file again; a new release of the same run.
        for text in ["one", "one", "two"] {
            let own = owned_by_run(&folder, &places);
            write(&folder, text);
            assert_eq!(publish(&files(&folder), &places, own).unwrap(), []);
            assert_eq!((read("out/m.pt"), read("out/m.safetensors")), (text.into(), text.into()));
        }
        // Two files of another run, then only one.
        let other = path("other");
        fs::create_dir(&other).unwrap();
        write(&other, "three");
        assert_eq!(owned_by_run(&other, &places), [false; 2]);
        let kept = publish(&files(&other), &places, [false; 2]).unwrap();
        assert_eq!(kept[0], (path("out/m.pt"), path("out/m.1.pt")));
        assert_eq!((read("out/m.1.pt"), read("out/m.1.safetensors")), ("two".into(), "two".into()));
        assert_eq!((read("out/m.pt"), read("out/m.safetensors")), ("three".into(), "three".into()));
        fs::remove_file(path("out/m.1.pt")).unwrap();
        fs::remove_file(path("out/m.safetensors")).unwrap();
        let kept = publish(&files(&folder), &places, owned_by_run(&folder, &places)).unwrap();
        assert_eq!(kept, [(path("out/m.pt"), path("out/m.1.pt"))]);
        // A file that was kept before a process was killed is not kept twice.
        back_up(&[&places[0], &places[1]]).unwrap();
        let kept = publish(&files(&other), &places, [false; 2]).unwrap();
        assert_eq!(kept[1].1, path("out/m.2.safetensors"));
        assert_eq!(
            (read("out/m.2.pt"), read("out/m.1.pt"), read("out/m.pt")),
            ("two".into(), "three".into(), "three".into())
        );
    }

    #[test]
    fn files_are_compared_to_their_ends() {
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
