//! Writing of a folder of synthetic images, completely or not at all.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::draw;
use crate::data::{BREEDS, Error, OTHER, Result, folder};

/// The file with the manifest of a folder.
pub const MANIFEST: &str = "SYNTHETIC.json";

/// The version of the painter; it changes when the images of a seed do.
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
        within("pictures per class", count, 1, 100_000)?;
        Ok(Self { version: VERSION, seed, size, count })
    }

    /// The number of images in all classes.
    pub fn total(&self) -> u64 {
        u64::from(self.count) * classes().count() as u64
    }

    /// Reads the manifest of `folder`; `None` if there is none, or none of this program.
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
/// must be empty, or hold only the output of an earlier call, which is replaced.
///
/// # Errors
/// If the folder holds anything else, or cannot be written.
pub fn write(folder: &Path, manifest: &SynthManifest, progress: impl Fn(u64) + Sync) -> Result<()> {
    let (folder, exists) = folder::existing(folder)?;
    if exists && let Some(stray) = not_ours(&folder)? {
        return Err(Error::Occupied { folder, stray });
    }
    folder::replace(&folder, |new| {
        for class in classes() {
            fs::create_dir_all(new.join(class)).map_err(Error::io(&folder))?;
        }
        let pictures: Vec<(&str, usize, u32)> = (classes().enumerate())
            .flat_map(|(class, name)| (0..manifest.count).map(move |index| (name, class, index)))
            .collect();
        pictures.par_iter().try_for_each(|&(name, class, index)| {
            let picture = draw(class, manifest.seed, u64::from(index), manifest.size);
            let path = new.join(name).join(file_name(name, index));
            picture
                .save(&path)
                .map_err(|e| Error::Write { folder: folder.clone(), reason: e.to_string() })?;
            progress(1);
            Ok::<(), Error>(())
        })?;
        let json = serde_json::to_vec_pretty(manifest)
            .map_err(|e| Error::Write { folder: folder.clone(), reason: e.to_string() })?;
        fs::write(new.join(MANIFEST), json).map_err(Error::io(&folder))
    })
}

/// A file in `folder` that an earlier call of [`write`] did not write.
fn not_ours(folder: &Path) -> Result<Option<PathBuf>> {
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
                let ours: BTreeSet<_> = (0..count).map(|index| entry.join(file_name(class, index))).collect();
                if let Some(stray) = list(&entry)?.into_iter().find(|path| !ours.contains(path)) {
                    return Ok(Some(stray));
                }
            }
            _ if manifest.is_some() && entry == folder.join(MANIFEST) => {}
            _ => return Ok(Some(entry)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;

    fn small(seed: u64) -> SynthManifest {
        SynthManifest::new(2, 8, seed).unwrap()
    }

    #[test]
    fn a_seed_always_gives_the_same_folder_and_replaces_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("deep/b"));
        let drawn = std::sync::atomic::AtomicU64::new(0);
        write(&a, &small(1), |n| _ = drawn.fetch_add(n, std::sync::atomic::Ordering::Relaxed)).unwrap();
        assert_eq!(drawn.into_inner(), small(1).total());
        write(&b, &SynthManifest::new(3, 8, 2).unwrap(), |_| {}).unwrap();
        let before = Dataset::open(&b).unwrap();
        write(&b, &small(1), |_| {}).unwrap();
        let (a, after) = (Dataset::open(&a).unwrap(), Dataset::open(&b).unwrap());
        assert_eq!((a.files.len(), a.classes.len(), &a.skipped), (26, 13, &vec![]));
        assert_eq!(a.fingerprint, after.fingerprint);
        assert_ne!(before.fingerprint, after.fingerprint);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was left behind");
    }

    #[test]
    fn a_folder_with_anything_else_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("ours");
        write(&ours, &small(1), |_| {}).unwrap();
        let mine = ours.join(OTHER).join("my own.png");
        fs::write(&mine, "precious").unwrap();
        let error = write(&ours, &small(2), |_| {}).unwrap_err();
        assert!(error.to_string().contains("my own.png"), "{error}");
        assert!(mine.exists());

        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        write(&foreign, &small(1), |_| {}).unwrap();
        fs::write(foreign.join(MANIFEST), "{}").unwrap();
        assert!(matches!(write(&foreign, &small(1), |_| {}), Err(Error::Occupied { .. })));
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
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
