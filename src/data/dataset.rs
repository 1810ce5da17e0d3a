//! A folder of class folders of pictures.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tiny_cats_export::is_class_name;

use super::{Error, OTHER, Result, decode};

/// Labels are 32 bits wide, and so are positions in an order.
const MOST_FILES: usize = u32::MAX as usize;

/// A file that is a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Where it is, from the data folder.
    pub path: PathBuf,
    /// The index of its class.
    pub label: u32,
}

/// What is in a data folder: each folder in it is a class, each picture in that an example.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The data folder.
    pub root: PathBuf,
    /// The names of the classes, sorted, `other` last.
    pub classes: Vec<String>,
    /// The pictures, sorted by label, then by path.
    pub files: Vec<Picture>,
    /// What was left out, from the data folder, and why.
    pub skipped: Vec<(PathBuf, String)>,
    /// SHA-256, in hexadecimal, over path, size and SHA-256 of the content of each picture: the identity of the data.
    pub fingerprint: String,
}

impl Dataset {
    /// Looks through the folder `root`. Content decides what is a picture, not the name of a file. Hidden files and class folders
    /// without a picture are left out, as is what is no PNG, JPEG or WebP picture or is broken: see [`Dataset::skipped`].
    ///
    /// # Errors
    /// When the folder can't be read, has no class folders or not one usable picture.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let mut skipped = Vec::new();
        let mut folders = Vec::new();
        for name in list(root)? {
            if hidden(&name) || !root.join(&name).is_dir() {
                continue;
            }
            match name.to_str() {
                Some(text) if is_class_name(text) => folders.push(text.to_owned()),
                Some(_) => skipped.push((name, "a folder whose name no class can have".to_string())),
                None => skipped.push((name, "a folder whose name is not UTF-8".to_string())),
            }
        }
        if folders.is_empty() {
            return Err(Error::NoClasses { path: root.to_path_buf() });
        }
        folders.sort_by_key(|name| (name.eq_ignore_ascii_case(OTHER), name.clone()));

        let mut found = Vec::new();
        for (folder, name) in folders.iter().enumerate() {
            let mut names = list(&root.join(name))?;
            names.retain(|name| !hidden(name));
            found.extend(names.into_iter().map(|file| (folder, Path::new(name).join(file))));
        }
        if found.len() > MOST_FILES {
            return Err(Error::TooMany { path: root.to_path_buf(), count: found.len(), most: MOST_FILES });
        }
        let checked: Vec<_> = found.par_iter().map(|(_, path)| examine(&root.join(path))).collect();

        let mut hash = Sha256::new();
        let mut classes: Vec<String> = Vec::new();
        let mut files = Vec::new();
        let mut last = None;
        for ((folder, path), checked) in found.into_iter().zip(checked) {
            match checked {
                Ok((size, content)) => {
                    if last != Some(folder) {
                        last = Some(folder);
                        classes.push(folders[folder].clone());
                    }
                    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
                    let name = parts.join("/");
                    hash.update((name.len() as u64).to_le_bytes());
                    hash.update(name.as_bytes());
                    hash.update(size.to_le_bytes());
                    hash.update(content);
                    files.push(Picture { path, label: classes.len() as u32 - 1 });
                }
                Err(reason) => skipped.push((path, reason)),
            }
        }
        if files.is_empty() {
            let first = match skipped.first() {
                Some((path, reason)) => format!("; {} is {reason}", path.display()),
                None => String::new(),
            };
            return Err(Error::NoPictures { path: root.to_path_buf(), first });
        }
        for name in folders.iter().filter(|name| !classes.contains(name)) {
            skipped.push((PathBuf::from(name), "a class folder without a usable picture".to_string()));
        }
        let fingerprint = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { root: root.to_path_buf(), classes, files, skipped, fingerprint })
    }

    /// The bytes of a picture, or why they can't be had.
    pub(super) fn read(&self, picture: &Picture) -> std::result::Result<Vec<u8>, String> {
        read(&self.root.join(&picture.path))
    }
}

/// The names in a folder, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut names: Vec<PathBuf> =
        entries.map(|e| Ok(e.map_err(Error::io(folder))?.file_name().into())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn hidden(name: &Path) -> bool {
    name.as_os_str().as_encoded_bytes().first() == Some(&b'.')
}

/// Size and SHA-256 of a usable picture, or why it is none.
fn examine(path: &Path) -> std::result::Result<(u64, [u8; 32]), String> {
    let bytes = read(path)?;
    decode::check(&bytes)?;
    Ok((bytes.len() as u64, Sha256::digest(&bytes).into()))
}

fn read(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let about = |e: std::io::Error| format!("not readable: {e}");
    let metadata = fs::metadata(path).map_err(about)?;
    if !metadata.is_file() {
        return Err("not a file".to_string());
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(about)?.take(decode::MOST_BYTES + 1).read_to_end(&mut bytes).map_err(about)?;
    match bytes.len() as u64 {
        0 => Err("an empty file".to_string()),
        size if size > decode::MOST_BYTES => Err(format!("more than {} MiB", decode::MOST_BYTES >> 20)),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Images, synth};
    use image::ImageFormat;

    fn encoded(format: ImageFormat, size: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        synth::draw(1, 0, 0, size).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn put(root: &Path, name: &str, bytes: &[u8]) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn content_decides_and_what_is_bad_is_named_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (png, jpeg) = (encoded(ImageFormat::Png, 48), encoded(ImageFormat::Jpeg, 48));
        put(root, "Other/a.jpg", &png);
        put(root, "Zebra/a.png", &jpeg);
        put(root, "Bengal/b", &jpeg);
        put(root, "Bengal/.hidden.png", &png);
        put(root, "README.md", b"not a class");
        put(root, ".git/x.png", &png);
        let mut huge = png.clone();
        huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        let mut many = png.clone();
        many[16..24].copy_from_slice(&[0, 0, 0x7f, 0xff, 0, 0, 0x7f, 0xff]);
        // The checksum of the header must hold for its size to be believed.
        let crc = png_crc(&many[12..29]);
        many[29..33].copy_from_slice(&crc.to_be_bytes());
        let bad: [(&str, &[u8], &str); 9] = [
            ("cut.jpg", &jpeg[..jpeg.len() / 2], "end is missing"),
            ("cut.png", &png[..png.len() / 2], "end is missing"),
            ("head.png", &png[..20], "broken"),
            ("text.jpg", b"hello, I am a cat", "not a picture"),
            ("empty.png", b"", "empty"),
            ("gif.jpg", b"GIF89a\x01\0\x01\0\0\0\0;", "gif"),
            ("huge.png", &huge, "broken"),
            ("many.png", &many, "too many"),
            ("folder.png/x.png", &png, "not a file"),
        ];
        for (name, bytes, _) in bad {
            put(root, &format!("Empty/{name}"), bytes);
        }
        let data = Dataset::open(root).unwrap();
        assert_eq!(data.classes, ["Bengal", "Zebra", "Other"]);
        let files: Vec<_> = data.files.iter().map(|f| (f.path.to_str().unwrap(), f.label)).collect();
        assert_eq!(files, [("Bengal/b", 0), ("Zebra/a.png", 1), ("Other/a.jpg", 2)]);
        assert_eq!(data.skipped.len(), bad.len() + 1);
        for (name, _, reason) in bad {
            let top = name.split('/').next().unwrap();
            let (_, said) = data.skipped.iter().find(|(path, _)| path.ends_with(top)).unwrap();
            assert!(said.contains(reason), "{name}: {said}");
        }
    }

    fn png_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(c & 1)))
        })
    }

    #[test]
    fn what_can_not_be_used_at_all_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let open = |name: &str| {
            let error = Dataset::open(root.join(name)).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains('\n'), "{error}");
            error
        };
        assert!(open("missing").contains("No such file") || cfg!(not(unix)));
        fs::create_dir(root.join("bare")).unwrap();
        assert!(open("bare").contains("no class folders"));
        put(root, "hollow/Bengal/a.txt", b"text");
        assert!(open("hollow").contains("a.txt is not a picture"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_can_name_no_class_is_no_class() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["Bengal", "two\nlines"] {
            put(dir.path(), &format!("{folder}/a.png"), &encoded(ImageFormat::Png, 8));
        }
        let data = Dataset::open(dir.path()).unwrap();
        assert_eq!((data.classes, data.files.len()), (vec!["Bengal".to_owned()], 1));
        assert!(data.skipped[0].1.contains("no class"), "{:?}", data.skipped);
    }

    #[test]
    fn the_fingerprint_is_that_of_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let print = || Dataset::open(root).unwrap().fingerprint;
        put(root, "A/1.png", &encoded(ImageFormat::Png, 8));
        let first = print();
        put(root, "A/.DS_Store", b"x");
        put(root, "A/notes.txt", b"x");
        assert_eq!(first, print());
        put(root, "A/1.png", &encoded(ImageFormat::Png, 9));
        let second = print();
        fs::rename(root.join("A/1.png"), root.join("A/2.png")).unwrap();
        assert!(first != second && second != print());
        assert_eq!(first.len(), 64);
    }

    #[test]
    fn a_file_that_breaks_after_its_header_is_skipped_when_loading() {
        let dir = tempfile::tempdir().unwrap();
        let mut png = encoded(ImageFormat::Png, 48);
        put(dir.path(), "A/good.png", &png);
        let middle = png.len() / 2;
        png[middle..middle + 40].fill(0);
        put(dir.path(), "A/bad.png", &png);
        let images = Images::load(&Dataset::open(dir.path()).unwrap(), 16, None).unwrap();
        assert_eq!((images.len(), images.skipped.len()), (1, 1));
        assert!(images.skipped[0].1.contains("broken png"), "{:?}", images.skipped);
    }
}
