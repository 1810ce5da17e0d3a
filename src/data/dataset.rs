//! Data sets: a folder with one folder of images for each class.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tiny_cats_export::{decode, hex};

use super::{
    Error, Result, Shares, Split,
    scan::{self, FolderScan, name},
    split::series,
};

/// An image file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// The path from the data folder: the folder of its class and its name, after `train`, `val` or `test` if there are such folders.
    pub path: PathBuf,
    /// The index of its class.
    pub label: u32,
    /// The part of the data that it is in.
    pub split: Split,
    /// Width and height in pixels, in upright orientation.
    pub size: [u32; 2],
    /// The size of the file, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the file.
    pub sha256: [u8; 32],
}

/// The contents of a data folder: each folder in it is a class, and each image in a class folder is an example. The class folders may be
/// in folders `train`, `val` (also `valid` or `validation`) and `test`, which then are the parts of the data.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The data folder.
    pub root: PathBuf,
    /// The index that this was read from; `None` if the folder was scanned.
    pub index: Option<PathBuf>,
    /// The proportions of the split, unless folders define it.
    pub shares: Shares,
    /// The names of the classes, sorted, with `other` last.
    pub classes: Vec<String>,
    /// The images, sorted by label, then by path.
    pub files: Vec<ImageFile>,
    /// The skipped files and folders, by their path from the data folder, and the reasons.
    pub skipped: Vec<(PathBuf, String)>,
    /// SHA-256, in hexadecimal, over path, length, SHA-256 and split of each image: the identity of the data.
    pub fingerprint: String,
}

impl Dataset {
    /// True if the class folders of `root` are in folders `train`, `val` and `test`, which define the split.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn is_split_by_folders(root: &Path) -> Result<bool> {
        scan::is_split_by_folders(root)
    }

    /// Creates a class for each folder that has images, and splits its images.
    pub(super) fn assemble(
        root: &Path,
        found: FolderScan,
        examined: Vec<std::result::Result<FileInfo, String>>,
        shares: Shares,
    ) -> Result<Self> {
        let FolderScan { classes: folders, files: paths, is_split_by_folders, mut skipped } = found;
        let mut classes: Vec<String> = Vec::new();
        let mut files = Vec::new();
        let mut last = None;
        for ((folder, path), examined) in paths.into_iter().zip(examined) {
            match examined {
                Ok(FileInfo { size, bytes, sha256 }) => {
                    if last != Some(folder) {
                        last = Some(folder);
                        classes.push(folders[folder].clone());
                    }
                    let label = classes.len() as u32 - 1;
                    let part = path.iter().next().and_then(|part| Split::from_folder_name(part.to_str()?));
                    let split = part.filter(|_| is_split_by_folders).unwrap_or(Split::Train);
                    files.push(ImageFile { path, label, split, size, bytes, sha256 });
                }
                Err(reason) => skipped.push((path, reason)),
            }
        }
        if files.is_empty() {
            return Err(Error::no_images(root, &skipped));
        }
        for name in folders.iter().filter(|name| !classes.contains(name)) {
            skipped.push((PathBuf::from(name), "a class folder without a usable image".to_string()));
        }
        drop_duplicates(&mut files, &mut skipped);
        if !is_split_by_folders {
            for class in files.chunk_by_mut(|a, b| a.label == b.label) {
                let names: Vec<&str> = class.iter().map(ImageFile::name).collect();
                let splits = shares.split(&names);
                class.iter_mut().zip(splits).for_each(|(image, split)| image.split = split);
            }
            assign_copies_to_one_part(&mut files);
        }
        let fingerprint = fingerprint(&files);
        Ok(Self { root: root.to_path_buf(), index: None, shares, classes, files, skipped, fingerprint })
    }

    /// The images of one part, with the same classes and labels; possibly none. It has its own fingerprint.
    pub fn part(&self, split: Split) -> Self {
        self.parts(&[split])
    }

    /// The images of some parts, as in [`part`](Self::part).
    pub fn parts(&self, splits: &[Split]) -> Self {
        let files: Vec<ImageFile> =
            self.files.iter().filter(|p| splits.contains(&p.split)).cloned().collect();
        let fingerprint = fingerprint(&files);
        let (root, index, classes) = (self.root.clone(), self.index.clone(), self.classes.clone());
        Self { root, index, shares: self.shares, classes, files, skipped: Vec::new(), fingerprint }
    }

    /// Reads the bytes of an image, or returns the reason why that failed.
    pub(super) fn read(&self, image: &ImageFile) -> std::result::Result<Vec<u8>, String> {
        decode::read(&self.root.join(&image.path))
    }
}

impl ImageFile {
    /// The name of the file.
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// Keeps one of the identical files in a class. If folders define the split, it is the one in `test`, else in `val`, so that the evaluation
/// data stay complete. Otherwise it is the one in the longest series, so that its neighbors stay together.
fn drop_duplicates(files: &mut Vec<ImageFile>, skipped: &mut Vec<(PathBuf, String)>) {
    let series_key =
        |image: &ImageFile| (image.path.parent().map(Path::to_owned), series(image.name()).0.to_owned());
    let mut series_lengths = HashMap::new();
    for image in files.iter() {
        *series_lengths.entry(series_key(image)).or_insert(0usize) += 1;
    }
    let priority = |image: &ImageFile| (image.split, series_lengths[&series_key(image)]);
    let mut first_copies: HashMap<(u32, [u8; 32]), usize> = HashMap::new();
    for (i, image) in files.iter().enumerate() {
        let kept = first_copies.entry((image.label, image.sha256)).or_insert(i);
        if priority(image) > priority(&files[*kept]) {
            *kept = i;
        }
    }
    let mut unique = Vec::with_capacity(first_copies.len());
    for (i, image) in files.iter().enumerate() {
        match first_copies[&(image.label, image.sha256)] {
            kept if kept == i => unique.push(image.clone()),
            kept => {
                skipped.push((image.path.clone(), format!("the same image as {}", name(&files[kept].path))))
            }
        }
    }
    *files = unique;
}

/// Assigns copies of an image in several classes to one part, the earliest of their parts. So a model is not evaluated on images that it
/// was trained on.
fn assign_copies_to_one_part(files: &mut [ImageFile]) {
    let mut earliest: HashMap<[u8; 32], Split> = HashMap::new();
    for image in files.iter() {
        let split = earliest.entry(image.sha256).or_insert(image.split);
        *split = image.split.min(*split);
    }
    files.iter_mut().for_each(|image| image.split = earliest[&image.sha256]);
}

pub(super) fn fingerprint(files: &[ImageFile]) -> String {
    let mut hash = Sha256::new();
    for image in files {
        let name = name(&image.path);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(image.bytes.to_le_bytes());
        hash.update(image.sha256);
        hash.update(image.split.name());
    }
    hex(&hash.finalize())
}

/// The properties of a usable image.
pub(super) struct FileInfo {
    pub size: [u32; 2],
    pub bytes: u64,
    pub sha256: [u8; 32],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Cache, INDEX, Images, synth};
    use image::ImageFormat;
    use std::fs;

    fn encoded(format: ImageFormat, size: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        synth::draw(1, 0, 0, size).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn write_file(root: &Path, name: &str, bytes: &[u8]) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn images_are_recognized_by_content_and_invalid_files_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (png, jpeg) = (encoded(ImageFormat::Png, 48), encoded(ImageFormat::Jpeg, 48));
        write_file(root, "Other/a.jpg", &png);
        write_file(root, "Zebra/a.png", &jpeg);
        write_file(root, "Bengal/b", &jpeg);
        write_file(root, "Bengal/.hidden.png", &png);
        write_file(root, "README.md", b"not a class");
        write_file(root, ".git/x.png", &png);
        let mut huge = png.clone();
        huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        let mut many = png.clone();
        many[16..24].copy_from_slice(&[0, 0, 0x7f, 0xff, 0, 0, 0x7f, 0xff]);
        // The size in the header is only used if the header's checksum matches.
        let crc = png_crc(&many[12..29]);
        many[29..33].copy_from_slice(&crc.to_be_bytes());
        let invalid: [(&str, &[u8], &str); 9] = [
            ("cut.jpg", &jpeg[..jpeg.len() / 2], "end is missing"),
            ("cut.png", &png[..png.len() / 2], "end is missing"),
            ("head.png", &png[..20], "broken"),
            ("text.jpg", b"hello, I am a cat", "not an image"),
            ("empty.png", b"", "empty"),
            ("gif.jpg", b"GIF89a\x01\0\x01\0\0\0\0;", "a GIF"),
            ("huge.png", &huge, "broken"),
            ("many.png", &many, "too many"),
            ("folder.png/x.png", &png, "not a file"),
        ];
        for (name, bytes, _) in invalid {
            write_file(root, &format!("Empty/{name}"), bytes);
        }
        let data = Dataset::open(root).unwrap();
        assert_eq!(data.classes, ["Bengal", "Zebra", "Other"]);
        let files: Vec<_> = data.files.iter().map(|f| (f.path.to_str().unwrap(), f.label)).collect();
        assert_eq!(files, [("Bengal/b", 0), ("Zebra/a.png", 1), ("Other/a.jpg", 2)]);
        assert_eq!(data.skipped.len(), invalid.len() + 1);
        for (name, _, reason) in invalid {
            let top = name.split('/').next().unwrap();
            let (_, found) = data.skipped.iter().find(|(path, _)| path.ends_with(top)).unwrap();
            assert!(found.contains(reason), "{name}: {found}");
        }
    }

    fn png_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(c & 1)))
        })
    }

    #[test]
    fn unusable_folders_give_one_line_errors() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let open = |name: &str| {
            let error = Dataset::open(root.join(name)).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains('\n'), "{error}");
            error
        };
        assert!(open("missing").contains("No such file") || cfg!(not(unix)));
        fs::create_dir(root.join("no_classes")).unwrap();
        assert!(open("no_classes").contains("no class folders"));
        write_file(root, "no_images/Bengal/a.txt", b"text");
        assert!(open("no_images").contains("a.txt: not a"));
    }

    #[cfg(unix)]
    #[test]
    fn folders_with_invalid_class_names_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["Bengal", "two\nlines"] {
            write_file(dir.path(), &format!("{folder}/a.png"), &encoded(ImageFormat::Png, 8));
        }
        let data = Dataset::open(dir.path()).unwrap();
        assert_eq!((data.classes, data.files.len()), (vec!["Bengal".to_owned()], 1));
        assert!(data.skipped[0].1.contains("not a valid class name"), "{:?}", data.skipped);
    }

    #[test]
    fn the_fingerprint_depends_on_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let current = || Dataset::open(root).unwrap().fingerprint;
        write_file(root, "A/1.png", &encoded(ImageFormat::Png, 8));
        let first = current();
        write_file(root, "A/.DS_Store", b"x");
        write_file(root, "A/notes.txt", b"x");
        assert_eq!(first, current());
        write_file(root, "A/1.png", &encoded(ImageFormat::Png, 9));
        let second = current();
        fs::rename(root.join("A/1.png"), root.join("A/2.png")).unwrap();
        assert!(first != second && second != current());
        assert_eq!(first.len(), 64);
    }

    #[test]
    fn each_image_is_in_one_part_and_fingerprints_differ() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..13 {
            write_file(dir.path(), &format!("A/{i}.png"), &encoded(ImageFormat::Png, 8 + i));
        }
        write_file(dir.path(), "B/1.png", &encoded(ImageFormat::Png, 30));
        let all = Dataset::open(dir.path()).unwrap();
        let parts = Split::ALL.map(|split| all.part(split));
        assert_eq!(parts.each_ref().map(|part| part.files.len()), [12, 1, 1]);
        assert!(parts.iter().all(|part| part.classes == all.classes));
        let mut files: Vec<ImageFile> = parts.iter().flat_map(|part| part.files.clone()).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(files, all.files);
        let mut fingerprints: Vec<&str> = parts.iter().chain([&all]).map(|data| &*data.fingerprint).collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 4);
        assert_eq!(all.parts(&[Split::Validation, Split::Test]).files.len(), 2);
        assert_eq!(all.parts(&Split::ALL).fingerprint, all.fingerprint);
        // The split is a part of the identity, too.
        let mut changed = all.files.clone();
        changed[0].split = Split::Test;
        assert_ne!(fingerprint(&changed), all.fingerprint);
        assert_eq!(Images::load(&parts[2], 8, None, &Cache::Memory).unwrap().len(), 1);
        assert!(parts[0].part(Split::Test).files.is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_only_inside_the_folder() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        write_file(&root, "A/a.png", &encoded(ImageFormat::Png, 8));
        write_file(dir.path(), "outside/b.png", &encoded(ImageFormat::Png, 9));
        for (link, target, reason) in [
            ("round", ".", "a link back"),
            ("up", "..", "a link back"),
            ("B", "../outside", "out of"),
            ("nowhere", "missing", "a broken link"),
            ("A/out.png", "../../outside/b.png", "out of"),
            ("A/self.png", "self.png", "a broken link"),
            ("A/round", "../A", "not a file"),
            ("A/same.png", "a.png", ""),
        ] {
            symlink(target, root.join(link)).unwrap();
            let data = Dataset::open(&root).unwrap();
            let found = data.skipped.iter().find(|(path, _)| path == Path::new(link));
            assert!(reason.is_empty() || found.unwrap().1.contains(reason), "{link}: {found:?}");
        }
        let data = Dataset::open(&root).unwrap();
        assert_eq!((data.files.len(), data.skipped.len()), (1, 8), "{:?}", data.skipped);
        let reason = data.skipped.iter().find(|(path, _)| path == Path::new("A/same.png"));
        assert_eq!(reason.unwrap().1, "the same image as A/a.png");
    }

    #[test]
    fn identical_images_are_counted_once_and_stay_in_one_part() {
        let dir = tempfile::tempdir().unwrap();
        let image = |side| encoded(ImageFormat::Png, side);
        for number in 0..20 {
            write_file(dir.path(), &format!("A/cat_{number}.png"), &image(20 + number));
            write_file(dir.path(), &format!("B/cat_{number}.png"), &image(60 + number));
        }
        let before = Dataset::open(dir.path()).unwrap();
        // Copies in one class, one of which is alphabetically before the others.
        for (copy, side) in
            [("A/a copy.png", 20), ("A/zzz.png", 20), ("A/cat_19 (x).png", 39), ("B/_1.png", 60)]
        {
            write_file(dir.path(), copy, &image(side));
        }
        let data = Dataset::open(dir.path()).unwrap();
        let files = |data: &Dataset| data.files.iter().map(|p| (p.path.clone(), p.split)).collect::<Vec<_>>();
        // Files of a series stay in their part.
        assert_eq!((files(&data), &data.fingerprint), (files(&before), &before.fingerprint));
        assert_eq!((data.duplicate_lines(), data.skipped.len()), (vec![], 4));
        let reason_of = |name: &str| &data.skipped.iter().find(|(path, _)| path.ends_with(name)).unwrap().1;
        assert_eq!(reason_of("zzz.png"), "the same image as A/cat_0.png");
        assert_eq!(reason_of("_1.png"), "the same image as B/cat_0.png");

        // Copies in two classes stay, are in one part, and are reported.
        write_file(dir.path(), "B/from A.png", &image(20 + 19));
        let data = Dataset::open(dir.path()).unwrap();
        assert_eq!(data.files.len(), 41);
        let repeated = data.files.iter().find(|p| p.path.ends_with("from A.png")).unwrap().sha256;
        let same = data.files.iter().filter(|image| image.sha256 == repeated);
        let splits: Vec<Split> = same.map(|image| image.split).collect();
        assert!(splits.len() == 2 && splits[0] == splits[1], "{splits:?}");
        let lines = data.duplicate_lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("the same image in two classes: A/cat_19.png ("), "{lines:?}");
        assert!(lines[0].contains(", B/from A.png ("), "{lines:?}");
    }

    #[test]
    fn split_folders_define_the_split() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let image = |side| encoded(ImageFormat::Png, side);
        for (i, name) in [
            "train/A/1.png",
            "train/A/2.png",
            "train/other/1.png",
            "Valid/A/1.png",
            "test/A/1.png",
            "test/B/9.png",
        ]
        .into_iter()
        .enumerate()
        {
            write_file(root, name, &image(10 + i as u32));
        }
        // A copy of a test image is not trained on, although it sorts first.
        write_file(root, "train/A/0.png", &image(14));
        write_file(root, "test/notes.txt", b"text");
        write_file(root, "extra/A/1.png", &image(30));
        fs::create_dir(root.join("validation")).unwrap();
        assert!(Dataset::is_split_by_folders(root).unwrap());
        let check = |data: &Dataset| {
            let files: Vec<_> = data.files.iter().map(|p| (name(&p.path), p.label, p.split)).collect();
            let expected = [
                ("Valid/A/1.png", 0, Split::Validation),
                ("test/A/1.png", 0, Split::Test),
                ("train/A/1.png", 0, Split::Train),
                ("train/A/2.png", 0, Split::Train),
                ("test/B/9.png", 1, Split::Test),
                ("train/other/1.png", 2, Split::Train),
            ];
            assert_eq!(files, expected.map(|(name, label, split)| (name.to_owned(), label, split)));
            assert_eq!(data.classes, ["A", "B", "other"]);
        };
        let data = Dataset::open(root).unwrap();
        check(&data);
        let reason_of =
            |name: &str| &data.skipped.iter().find(|(path, _)| path == Path::new(name)).unwrap().1;
        assert_eq!(reason_of("train/A/0.png"), "the same image as test/A/1.png");
        assert!(reason_of("extra").contains("next to train, val and test"));
        assert!(reason_of("validation").contains("without class folders"));
        assert_eq!(data.skipped.len(), 3);
        let index = root.join(INDEX);
        check(&Dataset::index(root, &index, Shares::default(), None, |_| {}).unwrap());
        let opened = Dataset::open(root).unwrap();
        check(&opened);
        assert_eq!((opened.skipped, opened.fingerprint), (vec![], data.fingerprint));

        // Folders of these names with images in them are classes.
        let classes = tempfile::tempdir().unwrap();
        for (i, name) in ["train/1.png", "test/1.png", "bus/1.png"].into_iter().enumerate() {
            write_file(classes.path(), name, &image(10 + i as u32));
        }
        assert!(!Dataset::is_split_by_folders(classes.path()).unwrap());
        assert_eq!(Dataset::open(classes.path()).unwrap().classes, ["bus", "test", "train"]);
        // A single part is enough.
        let alone = tempfile::tempdir().unwrap();
        write_file(alone.path(), "train/A/1.png", &image(10));
        let data = Dataset::open(alone.path()).unwrap();
        assert_eq!((&data.classes, data.files[0].split), (&vec!["A".to_owned()], Split::Train));
    }

    #[test]
    fn images_damaged_after_the_header_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut png = encoded(ImageFormat::Png, 48);
        write_file(dir.path(), "A/good.png", &png);
        let middle = png.len() / 2;
        png[middle..middle + 40].fill(0);
        write_file(dir.path(), "A/bad.png", &png);
        let images = Images::load(&Dataset::open(dir.path()).unwrap(), 16, None, &Cache::Memory).unwrap();
        assert_eq!((images.len(), images.skipped.len()), (1, 1));
        assert!(images.skipped[0].1.contains("broken PNG"), "{:?}", images.skipped);
    }
}
