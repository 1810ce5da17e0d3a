//! The index of a data folder: a file that lists its contents after every image was decoded.
//!
//! It is JSON with one image a line, sorted, without times, so that two indexes can be compared line by line. Like any file, it may be from
//! an untrusted source. No path in it leads out of its folder, and an image that differs from the indexed one is not used.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Component, Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};
use tiny_cats_export::{decode, excerpt, hex, is_class_name, unhex, write_atomically};

use crate::plural::pluralize;

use super::{
    Dataset, Error, ImageFile, OTHER, Result, Shares, Split,
    dataset::{FileInfo, fingerprint},
    scan::{self, FolderScan, name},
};

const FORMAT: &str = "tiny-cats index";
const VERSION: u32 = 1;
/// The largest index that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;
/// Maximum length in bytes of the names of a folder and a file, at least that of all file systems.
const MAX_NAME: usize = 1020;
const REINDEX_HINT: &str = "run `tiny-cats data index` again";

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexFile {
    format: String,
    version: u32,
    /// The path of the data folder from the folder of the index.
    folder: PathBuf,
    split: Shares,
    classes: Vec<String>,
    #[serde(rename = "pictures")]
    images: Vec<Entry>,
    skipped: Vec<SkippedEntry>,
}

/// An image. Its class is the folder that it is in.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    split: Split,
    width: u32,
    height: u32,
    bytes: u64,
    #[serde(serialize_with = "write_hex", deserialize_with = "read_hex")]
    sha256: [u8; 32],
}

fn write_hex<S: Serializer>(sha256: &[u8; 32], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(sha256))
}

fn read_hex<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    unhex(&text)
        .ok_or_else(|| D::Error::custom(format!("sha256: expected 64 hexadecimal digits, found {text:?}")))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SkippedEntry {
    path: String,
    reason: String,
}

/// An index that was read, but not compared with the folder.
struct Index {
    folder: PathBuf,
    classes: Vec<String>,
    shares: Shares,
    images: Vec<ImageFile>,
    skipped: HashSet<PathBuf>,
}

impl Dataset {
    /// Decodes every image of the folder `root`, splits them, and writes the index `file`.
    ///
    /// Images are split by `shares`, unless the folder has its class folders in `train`, `val` and `test`. With the index `held_out`,
    /// images that it holds out of training are held out here too, recognized by their content. All others are for training, and `shares`
    /// is not used. Images whose SHA-256 is in an earlier index at `file` are not decoded again.
    ///
    /// `progress` is called from several threads, after each file, with the total number of files.
    ///
    /// # Errors
    /// As for [`Dataset::open`] on a folder without index. Also if `file` exists but is not an index, or cannot be written. If `held_out`
    /// is not an index, or holds out no image of the folder.
    pub fn index(
        root: &Path,
        file: &Path,
        shares: Shares,
        held_out: Option<&Path>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Self> {
        let known: HashMap<[u8; 32], [u32; 2]> = match fs::symlink_metadata(file) {
            Ok(_) => read(file)?.images.into_iter().map(|image| (image.sha256, image.size)).collect(),
            Err(_) => HashMap::new(),
        };
        let held_out = held_out.map(|index| Ok((index, read(index)?))).transpose()?;
        let found = scan::scan(root)?;
        let all = found.files.len() as u64;
        let contents = (found.files.par_iter())
            .map(|(_, path)| {
                let content = decode_entry(&root.join(path), &known);
                progress(all);
                content
            })
            .collect();
        let mut data = Self::assemble(root, found, contents, shares)?;
        if let Some((held_out_index, index)) = held_out {
            data.hold_out(held_out_index, index)?;
        }
        data.write_index(file)?;
        Ok(data)
    }

    /// Splits the images as in the index that was read from `held_out_index`; images that are not in it are for training.
    fn hold_out(&mut self, held_out_index: &Path, index: Index) -> Result<()> {
        let mut held_out_splits: HashMap<[u8; 32], Split> = HashMap::new();
        for image in index.images.iter().filter(|image| image.split != Split::Train) {
            // An index may have an image in several parts.
            let split = held_out_splits.entry(image.sha256).or_insert(image.split);
            *split = image.split.max(*split);
        }
        for image in &mut self.files {
            image.split = held_out_splits.get(&image.sha256).copied().unwrap_or(Split::Train);
        }
        if self.files.iter().all(|image| image.split == Split::Train) {
            let reason = format!("holds out no image of {}", self.root.display());
            return Err(Error::Index { path: held_out_index.to_path_buf(), reason });
        }
        self.fingerprint = fingerprint(&self.files);
        Ok(())
    }

    /// Opens the images of the index `file` that have not changed since; [`Dataset::skipped`] has the others.
    pub(super) fn open_index(file: &Path) -> Result<Self> {
        let index = read(file)?;
        let FolderScan { files, skipped: skipped_links, .. } = scan::scan(&index.folder)?;
        let skipped_links: HashMap<PathBuf, String> = skipped_links.into_iter().collect();
        let present: HashSet<&PathBuf> = files.iter().map(|(_, path)| path).collect();
        let changes: Vec<_> = (index.images.par_iter())
            .map(|image| match skipped_links.get(&image.path) {
                Some(reason) => Err(reason.clone()),
                None if !present.contains(&image.path) => {
                    Err(format!("missing since it was indexed; {REINDEX_HINT}"))
                }
                None => unchanged(&index.folder.join(&image.path), image),
            })
            .collect();
        let indexed: HashSet<&PathBuf> = index.images.iter().map(|p| &p.path).chain(&index.skipped).collect();
        let added: Vec<&&PathBuf> = present.iter().filter(|path| !indexed.contains(**path)).collect();
        let mut skipped = Vec::new();
        if let Some(first) = added.iter().min() {
            let more = match added.len() - 1 {
                0 => String::new(),
                count => format!(", like {}", pluralize(count, "other")),
            };
            skipped.push((first.to_path_buf(), format!("not in the index{more}; {REINDEX_HINT}")));
        }
        let mut images = Vec::new();
        for (image, changes) in index.images.into_iter().zip(changes) {
            match changes {
                Ok(()) => images.push(image),
                Err(reason) => skipped.push((image.path, reason)),
            }
        }
        if images.is_empty() {
            return Err(Error::no_images(&index.folder, &skipped));
        }
        Ok(Self {
            fingerprint: fingerprint(&images),
            root: index.folder,
            index: Some(file.to_path_buf()),
            classes: index.classes,
            shares: index.shares,
            files: images,
            skipped,
        })
    }

    fn write_index(&self, file: &Path) -> Result<()> {
        let contents = IndexFile {
            format: FORMAT.to_string(),
            version: VERSION,
            folder: folder_from(file, &self.root)?,
            split: self.shares,
            classes: self.classes.clone(),
            images: (self.files.iter())
                .map(|image| Entry {
                    path: name(&image.path),
                    split: image.split,
                    width: image.size[0],
                    height: image.size[1],
                    bytes: image.bytes,
                    sha256: image.sha256,
                })
                .collect(),
            skipped: (self.skipped.iter())
                .map(|(path, reason)| SkippedEntry { path: name(path), reason: reason.clone() })
                .collect(),
        };
        write_atomically(file, |w| contents.write(w)).map_err(Error::io(file))
    }
}

impl IndexFile {
    /// Writes one line for each element of a list.
    fn write(&self, w: &mut impl Write) -> io::Result<()> {
        write!(w, "{{\n\"format\": ")?;
        serde_json::to_writer(&mut *w, &self.format)?;
        write!(w, ",\n\"version\": {},\n\"folder\": ", self.version)?;
        serde_json::to_writer(&mut *w, &self.folder)?;
        write!(w, ",\n\"split\": ")?;
        serde_json::to_writer(&mut *w, &self.split)?;
        list(w, "classes", &self.classes)?;
        list(w, "pictures", &self.images)?;
        list(w, "skipped", &self.skipped)?;
        w.write_all(b"\n}\n")
    }
}

/// Writes a list field with each element on its own line.
pub(super) fn list<T: Serialize>(w: &mut impl Write, name: &str, all: &[T]) -> io::Result<()> {
    write!(w, ",\n\"{name}\": [")?;
    for (i, one) in all.iter().enumerate() {
        w.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *w, one)?;
    }
    w.write_all(b"]")
}

/// The path of the folder `root` in an index at `file`.
fn folder_from(file: &Path, root: &Path) -> Result<PathBuf> {
    let index_folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let root = fs::canonicalize(root).map_err(Error::io(root))?;
    if fs::canonicalize(index_folder).map_err(Error::io(file))? == root {
        return Ok(PathBuf::from("."));
    }
    if root.to_str().is_none() {
        let reason = format!("{} is not UTF-8; expected the index in the data folder", root.display());
        return Err(Error::Index { path: file.to_path_buf(), reason });
    }
    Ok(root)
}

/// Size, length and SHA-256 of an image that can be decoded.
fn decode_entry(path: &Path, known: &HashMap<[u8; 32], [u32; 2]>) -> std::result::Result<FileInfo, String> {
    let bytes = decode::read(path)?;
    let sha256 = Sha256::digest(&bytes).into();
    let size = match known.get(&sha256) {
        Some(size) => *size,
        None => decode::decode_with(&bytes, |upright| upright.size)?,
    };
    Ok(FileInfo { size, bytes: bytes.len() as u64, sha256 })
}

fn unchanged(path: &Path, image: &ImageFile) -> std::result::Result<(), String> {
    let bytes = decode::read(path)?;
    let same = bytes.len() as u64 == image.bytes && <[u8; 32]>::from(Sha256::digest(&bytes)) == image.sha256;
    if same { Ok(()) } else { Err(format!("changed since it was indexed; {REINDEX_HINT}")) }
}

fn other_version(version: u32) -> String {
    format!("expected version {VERSION}, found {version}; {REINDEX_HINT}")
}

/// Reads an index and validates every field.
fn read(file: &Path) -> Result<Index> {
    let invalid =
        |reason: String| Error::Index { path: file.to_path_buf(), reason: excerpt(&reason).into_owned() };
    let metadata = fs::metadata(file).map_err(Error::io(file))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(invalid(format!("expected a file of at most {} MiB", MAX_BYTES >> 20)));
    }
    // Streamed: the text of a million images would take 200 MB.
    let text = || Ok(BufReader::new(File::open(file).map_err(Error::io(file))?.take(MAX_BYTES)));
    let contents: IndexFile = match serde_json::from_reader(text()?) {
        Ok(contents) => contents,
        Err(error) => {
            #[derive(Deserialize)]
            struct Kind {
                format: String,
                version: u32,
            }
            return Err(invalid(match serde_json::from_reader(text()?) {
                Ok(Kind { format, .. }) if format != FORMAT => "not an index of a data folder".to_string(),
                Ok(Kind { version, .. }) if version != VERSION => other_version(version),
                Ok(_) => error.to_string(),
                Err(error) => format!("not an index of a data folder: {error}"),
            }));
        }
    };
    if contents.format != FORMAT {
        return Err(invalid("not an index of a data folder".to_string()));
    }
    if contents.version != VERSION {
        return Err(invalid(other_version(contents.version)));
    }
    let index_folder = file.parent().unwrap_or(Path::new(""));
    contents.validate(index_folder).map_err(invalid)
}

impl IndexFile {
    fn validate(self, index_folder: &Path) -> std::result::Result<Index, String> {
        let mut labels = HashMap::new();
        for (label, name) in self.classes.iter().enumerate() {
            if !is_class_name(name) {
                return Err(format!("classes[{label}]: expected a valid class name, found {name:?}"));
            }
            if labels.insert(name.clone(), label as u32).is_some() {
                return Err(format!("classes[{label}]: {name:?} is listed twice"));
            }
        }
        let order = |name: &String| (name.eq_ignore_ascii_case(OTHER), name.clone());
        if !self.classes.is_sorted_by_key(order) {
            return Err("classes: expected sorted names, `other` last".to_string());
        }
        let mut images = Vec::with_capacity(self.images.len());
        for (i, entry) in self.images.into_iter().enumerate() {
            let invalid_field = |field: &str, found: &str, expected: &str| {
                format!("pictures[{i}].{field}: expected {expected}, found {found}")
            };
            let path = class_path(&entry.path).ok_or_else(|| {
                invalid_field("path", &format!("{:?}", entry.path), "a class folder and a file in it")
            })?;
            let folder = path.parent().and_then(Path::file_name);
            let class = folder.and_then(|folder| folder.to_str()).unwrap_or_default();
            let label = *labels
                .get(class)
                .ok_or_else(|| invalid_field("path", &format!("{:?}", entry.path), "one of the classes"))?;
            let size = [entry.width, entry.height];
            if size.iter().any(|side| !(1..=decode::MAX_SIDE).contains(side))
                || u64::from(size[0]) * u64::from(size[1]) > decode::MAX_PIXELS
            {
                let found = format!("{} x {}", size[0], size[1]);
                return Err(invalid_field("width and height", &found, "the size of an image"));
            }
            if !(1..=decode::MAX_BYTES).contains(&entry.bytes) {
                return Err(invalid_field(
                    "bytes",
                    &entry.bytes.to_string(),
                    &format!("1 to {}", decode::MAX_BYTES),
                ));
            }
            let Entry { split, bytes, sha256, .. } = entry;
            images.push(ImageFile { path, label, split, size, bytes, sha256 });
        }
        images.sort_by(|a, b| (a.label, &a.path).cmp(&(b.label, &b.path)));
        if let Some(duplicate) = images.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let path = name(&duplicate[0].path);
            return Err(format!("pictures: path {path:?} is listed twice; expected each file once"));
        }
        let skipped = self.skipped.into_iter().map(|skipped| skipped.path.into()).collect();
        let folder =
            index_folder.join(if self.folder == Path::new(".") { Path::new("") } else { &self.folder });
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        Ok(Index { folder, classes: self.classes, shares: self.split, images, skipped })
    }
}

/// Returns `path` if it is `FOLDER/FILE` on this system, perhaps in a folder such as `train`.
fn class_path(path: &str) -> Option<PathBuf> {
    let (part, path) = match path.split_once('/')? {
        (part, rest) if rest.contains('/') => (Some(part), rest),
        _ => (None, path),
    };
    if part.is_some_and(|part| Split::from_folder_name(part).is_none()) {
        return None;
    }
    let (folder, file) = path.split_once('/')?;
    let is_plain = |name: &str| {
        let mut parts = Path::new(name).components();
        let is_single = parts.next() == Some(Component::Normal(name.as_ref())) && parts.next().is_none();
        is_single && name.len() <= MAX_NAME && !name.contains(|c: char| c.is_control() || c == '/')
    };
    let parent = Path::new(part.unwrap_or_default());
    (is_plain(folder) && is_plain(file)).then(|| parent.join(folder).join(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{INDEX, synth};

    fn put(root: &Path, name: &str, number: u64) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        synth::draw(0, 0, number, 8).save_with_format(path, image::ImageFormat::Png).unwrap();
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..12 {
            put(dir.path(), &format!("A/a_{number}.png"), number);
            put(dir.path(), &format!("other/b_{number}.png"), 100 + number);
        }
        fs::write(dir.path().join("A/text.png"), "text").unwrap();
        dir
    }

    fn index(dir: &Path, file: &Path) -> Dataset {
        Dataset::index(dir, file, Shares::default(), None, |_| {}).unwrap()
    }

    #[test]
    fn an_index_round_trips_and_is_deterministic() {
        let (dir, elsewhere) = (folder(), tempfile::tempdir().unwrap());
        let (inside, outside) = (dir.path().join(INDEX), elsewhere.path().join("cats.json"));
        let scanned = Dataset::open(dir.path()).unwrap();
        for file in [&inside, &outside] {
            let written = index(dir.path(), file);
            let bytes = fs::read(file).unwrap();
            let opened = Dataset::open(file).unwrap();
            assert_eq!((&opened.files, &opened.classes), (&written.files, &written.classes));
            assert_eq!((&opened.fingerprint, &opened.skipped), (&scanned.fingerprint, &vec![]));
            assert_eq!(opened.index.as_ref(), Some(file));
            index(dir.path(), file);
            assert_eq!(fs::read(file).unwrap(), bytes);
            let text = String::from_utf8(bytes).unwrap();
            let image_lines =
                text.lines().filter(|line| line.starts_with("{\"path\":\"") && line.contains("sha256"));
            assert_eq!(image_lines.count(), 24, "one image a line");
        }
        assert_eq!(Dataset::open(dir.path()).unwrap().index, Some(inside));
        // A folder can be moved with the index in it.
        let moved = elsewhere.path().join("moved");
        fs::rename(dir.path(), &moved).unwrap();
        assert_eq!(Dataset::open(&moved).unwrap().fingerprint, scanned.fingerprint);
        assert!(Dataset::open(&outside).unwrap_err().to_string().contains("No such file") || cfg!(not(unix)));
    }

    #[test]
    fn the_requested_split_is_kept_and_known_images_are_not_decoded_again() {
        let dir = folder();
        let file = dir.path().join(INDEX);
        let half = Dataset::index(dir.path(), &file, "1,1,0".parse().unwrap(), None, |_| {}).unwrap();
        let counts: Vec<_> = half.counts().iter().map(|c| [c.train, c.val, c.test]).collect();
        assert_eq!(counts, [[6, 6, 0], [6, 6, 0]]);
        assert_eq!(Dataset::open(dir.path()).unwrap().counts(), half.counts());
        // The size in an index is used as long as the content is the same.
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("\"width\":8", "\"width\":7", 1)).unwrap();
        assert_eq!(index(dir.path(), &file).files[0].size, [7, 8]);
        fs::remove_file(&file).unwrap();
        assert_eq!(index(dir.path(), &file).files[0].size, [8, 8]);
    }

    #[test]
    fn new_images_are_for_training_and_held_out_images_stay_held_out() {
        let (dir, more_folder) = (folder(), tempfile::tempdir().unwrap());
        let file = dir.path().join(INDEX);
        let before = index(dir.path(), &file);
        // The same contents under other names, which would be split otherwise, and new ones.
        for number in 0..12 {
            put(more_folder.path(), &format!("A/z_{number}.png"), 200 + number);
            for (class, old) in [("A", number), ("other", 100 + number)] {
                put(more_folder.path(), &format!("{class}/y_{}.png", 40 - number), old);
            }
        }
        let output = more_folder.path().join(INDEX);
        let index_holding_out = |held_out: &Path| {
            Dataset::index(more_folder.path(), &output, Shares::default(), Some(held_out), |_| {})
        };
        let both = index_holding_out(&file).unwrap();
        assert_eq!(both.files.len(), 36);
        for image in &both.files {
            let known = before.files.iter().find(|p| p.sha256 == image.sha256);
            assert_eq!(image.split, known.map_or(Split::Train, |p| p.split), "{}", image.path.display());
        }
        let opened = Dataset::open(more_folder.path()).unwrap();
        assert_eq!((&opened.files, &opened.fingerprint), (&both.files, &both.fingerprint));
        // If nothing would be held out, the existing index stays.
        let written = fs::read(&output).unwrap();
        let all = dir.path().join("all.json");
        Dataset::index(dir.path(), &all, "1,0,0".parse().unwrap(), None, |_| {}).unwrap();
        let error = index_holding_out(&all).unwrap_err().to_string();
        assert!(error.contains("all.json") && error.contains("holds out no image of"), "{error}");
        assert!(
            index_holding_out(&more_folder.path().join("A/z_0.png"))
                .unwrap_err()
                .to_string()
                .contains("not an index")
        );
        assert_eq!(fs::read(&output).unwrap(), written);
    }

    /// As an earlier version wrote them: a run that started with one can resume.
    #[test]
    fn duplicates_in_an_index_are_kept_and_reported() {
        let dir = folder();
        let file = dir.path().join(INDEX);
        let before = index(dir.path(), &file);
        fs::copy(dir.path().join("A/a_0.png"), dir.path().join("A/copy.png")).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let first_entry = text.lines().find(|line| line.contains("A/a_0.png")).unwrap().trim_end_matches(',');
        let copy = first_entry.replace("A/a_0.png", "A/copy.png").replace("\"train\"", "\"test\"");
        fs::write(&file, text.replacen(first_entry, &format!("{first_entry},\n{copy}"), 1)).unwrap();
        let opened = Dataset::open(dir.path()).unwrap();
        assert_eq!((opened.files.len(), before.files.len()), (25, 24));
        let expected_line = "the same image twice in the index: A/a_0.png (train), A/copy.png (test); run `tiny-cats data index` again";
        assert_eq!(opened.duplicate_lines(), [expected_line]);
        // An image that it held out of training is held out under any name.
        let more_folder = tempfile::tempdir().unwrap();
        put(more_folder.path(), "A/x.png", 0);
        put(more_folder.path(), "A/y.png", 0);
        put(more_folder.path(), "A/z.png", 300);
        let output = more_folder.path().join(INDEX);
        let held =
            Dataset::index(more_folder.path(), &output, Shares::default(), Some(&file), |_| {}).unwrap();
        let splits: Vec<_> = held.files.iter().map(|p| (name(&p.path), p.split)).collect();
        assert_eq!(splits, [("A/x.png".to_owned(), Split::Test), ("A/z.png".to_owned(), Split::Train)]);
        // Indexed again, it has each image once.
        let again = index(dir.path(), &file);
        assert_eq!((again.files, again.fingerprint), (before.files, before.fingerprint));
    }

    #[test]
    fn changed_files_are_skipped_and_reported() {
        let dir = folder();
        let file = dir.path().join(INDEX);
        let before = index(dir.path(), &file);
        put(dir.path(), "A/a_0.png", 50);
        fs::remove_file(dir.path().join("A/a_1.png")).unwrap();
        fs::write(dir.path().join("A/a_2.png"), "").unwrap();
        put(dir.path(), "A/c.png", 51);
        put(dir.path(), "B/c.png", 52);
        let now = Dataset::open(dir.path()).unwrap();
        assert_eq!((now.files.len(), &now.classes), (21, &before.classes));
        assert_ne!(now.fingerprint, before.fingerprint);
        let reason_of = |name: &str| {
            let found = now.skipped.iter().find(|(path, _)| path == Path::new(name));
            found.unwrap_or_else(|| panic!("{name} is not in {:?}", now.skipped)).1.clone()
        };
        assert!(
            reason_of("A/a_0.png").contains("changed since it was indexed; run `tiny-cats data index` again")
        );
        assert!(reason_of("A/a_1.png").contains("missing"));
        assert!(reason_of("A/a_2.png").contains("empty"));
        assert!(reason_of("A/c.png").contains("not in the index, like 1 other;"));
        assert_eq!(now.skipped.len(), 4);
        // The split is that of the index, regardless of the remaining images.
        assert!(now.files.iter().all(|image| before.files.contains(image)));
    }

    #[test]
    fn invalid_indexes_give_one_line_errors_with_the_field() {
        let dir = folder();
        let file = dir.path().join(INDEX);
        index(dir.path(), &file);
        let good = fs::read_to_string(&file).unwrap();
        let (first_entry, width) = ("\"path\":\"A/a_0.png\"", "\"width\":8");
        let long = format!("\"path\":\"A/{}\"", "a".repeat(4000));
        let hash = good.split("\"sha256\":\"").nth(1).unwrap()[..64].to_string();
        for (from, to, expected) in [
            (first_entry, "\"path\":\"/etc/passwd\"", "pictures[0].path: "),
            (first_entry, "\"path\":\"../A/a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"A/../a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"A/b/a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"train/../a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"train/A/b/a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"train/C/a_0.png\"", "one of the classes"),
            (first_entry, "\"path\":\"A/./a_0.png\"", "pictures[0].path"),
            (first_entry, "\"path\":\"A/\"", "pictures[0].path"),
            (first_entry, "\"path\":\"A\"", "pictures[0].path"),
            (first_entry, "\"path\":\"A/a\\n0.png\"", "pictures[0].path"),
            (first_entry, &long, "pictures[0].path"),
            (first_entry, "\"path\":\"C/a_0.png\"", "one of the classes"),
            (first_entry, "\"path\":\"A/a_1.png\"", "each file once"),
            (first_entry, "\"path\":3", "line"),
            (first_entry, "\"label\":99,\"path\":\"A/a_0.png\"", "unknown field `label`"),
            (width, "\"width\":0", "width and height: expected the size of an image, found 0 x 8"),
            (width, "\"width\":99999", "width and height"),
            (width, "\"width\":-8", "line"),
            ("\"height\":8", "\"height\":4294967295", "width and height"),
            ("\"bytes\":", "\"bytes\":9999999", "bytes"),
            ("\"split\":\"train\"", "\"split\":\"all\"", "`train`, `val`, `test`"),
            ("[80,10,10]", "[0,10,10]", "share for training greater than 0"),
            (&hash, "zz", "64 hexadecimal digits"),
            ("\"A\",\n\"other\"", "\"other\",\n\"A\"", "sorted"),
            ("\"A\",\n\"other\"", "\"A\",\n\"A\",\n\"other\"", "listed twice"),
            ("\"A\",\n\"other\"", "\"A\",\n\"a\\tb\",\n\"other\"", "expected a valid class name"),
            ("\"version\": 1", "\"version\": 2", "expected version 1, found 2"),
            ("tiny-cats index", "something else", "not an index"),
            ("\n}\n", "", "line"),
        ] {
            assert!(good.contains(from), "{from}");
            fs::write(&file, good.replacen(from, to, 1)).unwrap();
            let error = Dataset::open(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains(INDEX) && error.contains(expected) && !error.contains('\n'),
                "{to}: {error}"
            );
            // Nor is it overwritten: it may be another program's file.
            assert!(Dataset::index(dir.path(), &file, Shares::default(), None, |_| {}).is_err());
        }
        for text in ["", "[]", "nothing", "{\"format\":", &"[".repeat(100_000)] {
            fs::write(&file, text).unwrap();
            let error = Dataset::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("not an index") && !error.contains('\n'), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_folder_are_skipped() {
        let (dir, elsewhere) = (folder(), tempfile::tempdir().unwrap());
        let file = dir.path().join(INDEX);
        index(dir.path(), &file);
        let out = elsewhere.path().join("x.png");
        fs::rename(dir.path().join("A/a_0.png"), &out).unwrap();
        std::os::unix::fs::symlink(&out, dir.path().join("A/a_0.png")).unwrap();
        let data = Dataset::open(&file).unwrap();
        assert_eq!((data.files.len(), data.skipped.len()), (23, 1));
        assert!(data.skipped[0].1.contains("a link out of the data folder"), "{:?}", data.skipped);
    }
}
