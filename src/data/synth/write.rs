//! Writing of a folder of synthetic images, completely or not at all.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::draw;
use crate::data::{BREEDS, Error, INDEX, OTHER, Result, file_names::MANIFEST, folder};

/// The version of the painter. It changes whenever the images of a seed change.
const VERSION: u32 = 1;

/// The settings of a folder of synthetic images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthManifest {
    /// The version of the painter.
    version: u32,
    /// The seed of all images.
    pub seed: u64,
    /// Width and height of each image in pixels, 8 to 1024.
    pub size: u32,
    /// Number of images in each class, 1 to 100,000.
    pub count: u32,
}

impl SynthManifest {
    /// Creates the settings for `count` images of `size` × `size` pixels in each class.
    ///
    /// # Errors
    /// If `size` is not in 8 to 1024 or `count` is not in 1 to 100,000.
    pub fn new(count: u32, size: u32, seed: u64) -> Result<Self> {
        let within = |name, value: u32, low, high| {
            let ok = (low..=high).contains(&u64::from(value));
            if ok { Ok(()) } else { Err(Error::OutOfRange { name, value: value.into(), low, high }) }
        };
        within("size", size, 8, 1024)?;
        within("images per class", count, 1, 100_000)?;
        Ok(Self { version: VERSION, seed, size, count })
    }

    /// The number of images in all classes.
    pub fn total(&self) -> u64 {
        u64::from(self.count) * classes().count() as u64
    }

    /// Reads the manifest of `folder`; `None` if it is missing or invalid.
    fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(MANIFEST);
        if fs::metadata(&path).ok()?.len() > 4096 {
            return None;
        }
        let manifest: Self = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        Self::new(manifest.count, manifest.size, manifest.seed).ok()?;
        Some(manifest)
    }
}

fn classes() -> impl Iterator<Item = &'static str> {
    BREEDS.into_iter().chain([OTHER])
}

fn file_name(class: &str, index: u32) -> String {
    format!("{class}_{index:05}.png")
}

/// Writes the images of `manifest` into class folders of `folder`, with the manifest.
///
/// `progress` is called from several threads, with 1 after each image. The folder appears when all images are written. An existing folder
/// must be empty, or hold only the output of an earlier call and its index, which are replaced.
///
/// # Errors
/// If the folder holds anything else, or cannot be written.
pub fn write(folder: &Path, manifest: &SynthManifest, progress: impl Fn(u64) + Sync) -> Result<()> {
    let (folder, exists) = folder::existing(folder)?;
    if exists && let Some(stray) = find_other_file(&folder)? {
        return Err(Error::Occupied { folder, stray });
    }
    folder::replace(&folder, |new| {
        for class in classes() {
            fs::create_dir_all(new.join(class)).map_err(Error::io(&folder))?;
        }
        let images: Vec<(&str, usize, u32)> = (classes().enumerate())
            .flat_map(|(class, name)| (0..manifest.count).map(move |index| (name, class, index)))
            .collect();
        images.par_iter().try_for_each(|&(name, class, index)| {
            let image = draw(class, manifest.seed, u64::from(index), manifest.size);
            let path = new.join(name).join(file_name(name, index));
            image.save(&path).map_err(|e| Error::Write { folder: folder.clone(), reason: e.to_string() })?;
            progress(1);
            Ok::<(), Error>(())
        })?;
        let json = serde_json::to_vec_pretty(manifest)
            .map_err(|e| Error::Write { folder: folder.clone(), reason: e.to_string() })?;
        fs::write(new.join(MANIFEST), json).map_err(Error::io(&folder))
    })
}

/// Finds a file in `folder` that is neither from [`write`] nor the index of the images, which is invalid for new ones.
fn find_other_file(folder: &Path) -> Result<Option<PathBuf>> {
    let manifest = SynthManifest::read(folder);
    let count = manifest.as_ref().map_or(0, |m| m.count);
    let list = |path: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(path).map_err(Error::io(path))?;
        entries.map(|entry| Ok(entry.map_err(Error::io(path))?.path())).collect()
    };
    for entry in list(folder)? {
        let class = classes().find(|class| entry.file_name() == Some(class.as_ref()));
        match class {
            Some(class) if manifest.is_some() && entry.is_dir() && !entry.is_symlink() => {
                let expected: BTreeSet<_> =
                    (0..count).map(|index| entry.join(file_name(class, index))).collect();
                if let Some(stray) = list(&entry)?.into_iter().find(|path| !expected.contains(path)) {
                    return Ok(Some(stray));
                }
            }
            _ if manifest.is_some()
                && [MANIFEST, INDEX].iter().any(|name| entry == folder.join(name))
                && entry.is_file() => {}
            _ => return Ok(Some(entry)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, Shares};

    fn small(seed: u64) -> SynthManifest {
        SynthManifest::new(2, 8, seed).unwrap()
    }

    #[test]
    fn output_is_deterministic_and_replaces_only_earlier_output() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("deep/b"));
        let painted = std::sync::atomic::AtomicU64::new(0);
        write(&a, &small(1), |n| _ = painted.fetch_add(n, std::sync::atomic::Ordering::Relaxed)).unwrap();
        assert_eq!(painted.into_inner(), small(1).total());
        write(&b, &SynthManifest::new(3, 8, 2).unwrap(), |_| {}).unwrap();
        let before = Dataset::open(&b).unwrap();
        write(&b, &small(1), |_| {}).unwrap();
        let (a, after) = (Dataset::open(&a).unwrap(), Dataset::open(&b).unwrap());
        assert_eq!((a.files.len(), a.classes.len(), &a.skipped), (26, 13, &vec![]));
        assert_eq!(a.fingerprint, after.fingerprint);
        assert_ne!(before.fingerprint, after.fingerprint);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a temporary file was left");
        // An index is replaced, too: it lists the old images.
        Dataset::index(&b, &b.join(INDEX), Shares::default(), None, |_| {}).unwrap();
        write(&b, &small(2), |_| {}).unwrap();
        assert!(!b.join(INDEX).exists());
    }

    #[test]
    fn folders_with_other_files_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("output");
        write(&output, &small(1), |_| {}).unwrap();
        let users_file = output.join(OTHER).join("my own.png");
        fs::write(&users_file, "precious").unwrap();
        let error = write(&output, &small(2), |_| {}).unwrap_err();
        assert!(error.to_string().contains("my own.png"), "{error}");
        assert!(users_file.exists());

        let other_folder = dir.path().join("foreign");
        fs::create_dir(&other_folder).unwrap();
        write(&other_folder, &small(1), |_| {}).unwrap();
        fs::write(other_folder.join(MANIFEST), "{}").unwrap();
        assert!(matches!(write(&other_folder, &small(1), |_| {}), Err(Error::Occupied { .. })));
    }

    #[test]
    fn failures_leave_no_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(write(&dir.path().join("file"), &small(0), |_| {}).is_err());
        assert!(write(&dir.path().join("file/below"), &small(0), |_| {}).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for (count, size) in [(0, 64), (1, 7), (1, 1025), (100_001, 64)] {
            assert!(matches!(SynthManifest::new(count, size, 0), Err(Error::OutOfRange { .. })));
        }
    }
}
