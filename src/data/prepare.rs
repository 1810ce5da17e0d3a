//! Makes class folders with images of one size, from class folders of photographs or the Oxford-IIIT Pet data set's archives.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tiny_cats_export::{decode, hex, is_class_name};

use super::{
    Dataset, Error, ImageFile, OTHER, Result,
    boxes::{Boxes, HeadBox},
    file_names::{PREPARED, SOURCE},
    folder,
    index::list,
    printable,
    scan::{self, name},
    split,
};

/// The largest source file that is copied, in bytes.
const MAX_SOURCE_BYTES: u64 = 1 << 20;
const OXFORD: &str = "\
# Source of these images

Parts of photographs of the Oxford-IIIT Pet Dataset: O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, \"Cats and Dogs\", IEEE
Conference on Computer Vision and Pattern Recognition, 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/

They were cut and resized by `tiny-cats data prepare`; PREPARED.json has the settings. The data set is published under the Creative Commons
Attribution-ShareAlike 4.0 International license (CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/), and so are these parts;
the copyright of each photograph remains with its owner. Keep this file with them.
";

/// The part of a photograph that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The square around the head, of 1.6 times the longer side of its box, moved inside the photograph.
    Head,
    /// The largest square in the middle.
    #[cfg_attr(feature = "cli", value(name = "center", alias = "centre"))]
    // PREPARED.json keeps the spelling of its format.
    #[serde(rename = "centre")]
    Center,
    /// The whole photograph; the shorter side gets the size.
    None,
}

/// The file format of the output images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JPEG of quality 92 with full color resolution.
    #[default]
    Jpeg,
    /// PNG, lossless.
    Png,
}

/// The settings of a preparation.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// The part of each photograph that is kept.
    pub crop: Crop,
    /// Width and height of the squares, or of the shorter side, in pixels: 8 to 1024.
    pub size: u32,
    /// A CSV file or a folder of XML files with a box around each head; if unset, the boxes in the input folder.
    pub boxes: Option<PathBuf>,
    /// True if the dogs of the Oxford-IIIT Pet data set become the class `other`; otherwise they are skipped.
    pub other: bool,
    /// The file format of the output images.
    pub encoding: Encoding,
}

/// The result of a preparation.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The number of images of each class.
    pub classes: BTreeMap<String, usize>,
    /// The skipped files, by their path from the folder of the photographs, and the reasons.
    pub skipped: Vec<(PathBuf, String)>,
    /// The number of photographs of dogs that were skipped.
    pub dogs: usize,
    /// The index that listed the photographs; `None` if the folder was scanned.
    pub index: Option<PathBuf>,
}

/// An output image and its source, one line of the list.
#[derive(Serialize)]
struct PreparedImage {
    file: String,
    from: String,
    sha256: String,
    /// x, y, width and height of the part that was kept.
    part: [u32; 4],
}

/// A photograph to prepare.
struct SourceImage {
    /// Its path from the folder of the photographs.
    from: PathBuf,
    class: String,
    /// The output folder: that of its class, in `train`, `val` or `test` if there are such folders.
    folder: PathBuf,
}

/// The photographs to prepare.
struct SourceImages {
    files: Vec<SourceImage>,
    skipped: Vec<(PathBuf, String)>,
    dogs: usize,
    index: Option<PathBuf>,
    source: Option<Vec<u8>>,
    boxes: PathBuf,
}

impl Prepare {
    /// Creates `output`, which must be new or empty, from the photographs in `input`.
    ///
    /// `input` is class folders (or an index of them), or the folder that the archives of the Oxford-IIIT Pet data set were unpacked to. In
    /// that folder, file names determine the breeds. With [`Crop::Head`], photographs without a box are skipped. `progress` is called from
    /// several threads, after each photograph, with the total number of photographs.
    ///
    /// # Errors
    /// If a setting is invalid, there is nothing to read, or `output` is in use or cannot be written; it is then unchanged.
    pub fn run(&self, input: &Path, output: &Path, progress: impl Fn(u64) + Sync) -> Result<Prepared> {
        if !(8..=1024).contains(&self.size) {
            return Err(Error::OutOfRange { name: "size", value: self.size.into(), low: 8, high: 1024 });
        }
        let (root, photos) = match Dataset::open(input) {
            Ok(data) => (data.root.clone(), SourceImages::from_classes(data)),
            Err(Error::Oxford { path }) => (path.clone(), SourceImages::from_oxford(&path, self.other)?),
            Err(error) => return Err(error),
        };
        check_output_free(output, &root)?;
        let boxes = match (self.crop, &self.boxes) {
            (Crop::Head, Some(path)) => Some(Boxes::read(path)?),
            (Crop::Head, None) if !photos.boxes.exists() => {
                let reason = "no such file or folder; pass --boxes with the head boxes".to_string();
                return Err(Error::Boxes { path: photos.boxes, reason });
            }
            (Crop::Head, None) => Some(Boxes::read(&photos.boxes)?),
            _ => None,
        };
        folder::replace(output, |new| {
            let io_error = |error| Error::Io { path: output.to_path_buf(), error };
            let SourceImages { files, mut skipped, dogs, index, source, .. } = photos;
            for folder in files.iter().map(|photo| &photo.folder).collect::<BTreeSet<_>>() {
                fs::create_dir_all(new.join(folder)).map_err(io_error)?;
            }
            let results: Vec<std::result::Result<PreparedImage, String>> =
                (files.par_iter().zip(self.names(&files)))
                    .map(|(photo, file)| {
                        progress(files.len() as u64);
                        match self.make(&root, &photo.from, file, boxes.as_ref()) {
                            Ok((bytes, written)) => fs::write(new.join(&written.file), bytes)
                                .map_err(io_error)
                                .map(|()| Ok(written)),
                            Err(reason) => Ok(Err(reason)),
                        }
                    })
                    .collect::<Result<_>>()?;
            let (mut classes, mut written) = (BTreeMap::new(), Vec::new());
            let mut dropped_classes = BTreeSet::new();
            for (SourceImage { from, class, folder }, result) in files.into_iter().zip(results) {
                match result {
                    Ok(image) => {
                        *classes.entry(class).or_insert(0) += 1;
                        written.push(image);
                    }
                    Err(reason) => {
                        // This removes the folder of a class without images; other folders are not empty, so they stay.
                        let _ = fs::remove_dir(new.join(folder));
                        skipped.push((from, reason));
                        dropped_classes.insert(class);
                    }
                }
            }
            if written.is_empty() {
                return Err(Error::no_images(&root, &skipped));
            }
            for class in dropped_classes.into_iter().filter(|class| !classes.contains_key(class)) {
                skipped.push((PathBuf::from(class), "a class without images".to_string()));
            }
            if let Some(source) = source {
                fs::write(new.join(SOURCE), source).map_err(io_error)?;
            }
            self.describe(&new.join(PREPARED), &written).map_err(io_error)?;
            Ok(Prepared { classes, skipped, dogs, index })
        })
    }

    /// The paths of the output images. A name that is in use, ignoring case, gets `_` appended, which does not change its series and
    /// number.
    fn names(&self, files: &[SourceImage]) -> Vec<String> {
        let extension = match self.encoding {
            Encoding::Jpeg => "jpg",
            Encoding::Png => "png",
        };
        let mut used_names = HashSet::new();
        (files.iter())
            .map(|SourceImage { from, folder, .. }| {
                let mut stem = from.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                while !used_names.insert((folder, stem.to_lowercase())) {
                    stem.push('_');
                }
                format!("{}/{stem}.{extension}", name(folder))
            })
            .collect()
    }

    /// Encodes the content of `file` from the photograph `from`.
    fn make(
        &self,
        root: &Path,
        from: &Path,
        file: String,
        boxes: Option<&Boxes>,
    ) -> std::result::Result<(Vec<u8>, PreparedImage), String> {
        let head = match boxes {
            Some(boxes) => Some(boxes.get(from).ok_or("without a box around its head")??),
            None => None,
        };
        let photo = decode::read(&root.join(from))?;
        let (bytes, part) = decode::decode_with(&photo, |upright| {
            let (part, size) = self.part(upright.size, head)?;
            let resized = decode::resize_region(&upright.image, upright.part(part), size);
            Ok::<_, String>((self.encode(&resized)?, part))
        })??;
        let from = name(from);
        Ok((bytes, PreparedImage { file, from, sha256: hex(&Sha256::digest(&photo)), part }))
    }

    /// The part of an image of this width and height that is kept, and its output size.
    fn part(
        &self,
        [width, height]: [u32; 2],
        head: Option<HeadBox>,
    ) -> std::result::Result<([u32; 4], [u32; 2]), String> {
        let side = width.min(height);
        Ok(match (self.crop, head) {
            (Crop::Head, Some(head)) => {
                let [x, y, side] = head.square([width, height])?;
                ([x, y, side, side], [self.size; 2])
            }
            (Crop::None, _) => {
                let scaled =
                    |n: u32| (u64::from(n) * u64::from(self.size) + u64::from(side) / 2) / u64::from(side);
                let (writer, h) = (scaled(width), scaled(height));
                if writer * h > decode::FULL_SIZE_PIXELS || writer.max(h) > decode::MAX_SIDE.into() {
                    return Err(format!(
                        "{width} x {height}, too long to be resized to a short side of {}",
                        self.size
                    ));
                }
                ([0, 0, width, height], [writer as u32, h as u32])
            }
            _ => ([(width - side) / 2, (height - side) / 2, side, side], [self.size; 2]),
        })
    }

    fn encode(&self, image: &RgbImage) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let (width, height) = image.dimensions();
        match self.encoding {
            Encoding::Jpeg => JpegEncoder::new_with_quality(&mut bytes, 92).write_image(
                image,
                width,
                height,
                ExtendedColorType::Rgb8,
            ),
            Encoding::Png => {
                PngEncoder::new(&mut bytes).write_image(image, width, height, ExtendedColorType::Rgb8)
            }
        }
        .map_err(|error| format!("cannot be encoded: {error}"))?;
        Ok(bytes)
    }

    fn describe(&self, path: &Path, written: &[PreparedImage]) -> io::Result<()> {
        use io::Write;
        let mut writer = io::BufWriter::new(fs::File::create(path)?);
        let settings = serde_json::json!({
            "crop": self.crop, "encoding": self.encoding, "program": concat!("tiny-cats ", env!("CARGO_PKG_VERSION")), "size": self.size,
        });
        write!(writer, "{{\n\"made\": {settings}")?;
        list(&mut writer, "pictures", written)?;
        writer.write_all(b"\n}\n")?;
        writer.flush()
    }
}

/// Checks that `output` is new or empty, and not in the input folder.
fn check_output_free(output: &Path, root: &Path) -> Result<()> {
    let (folder, exists) = folder::existing(output)?;
    if exists && let Some(other_file) = fs::read_dir(&folder).map_err(Error::io(output))?.next() {
        let other_file = other_file.map_err(Error::io(output))?.file_name().into();
        return Err(Error::NotEmpty { folder: output.to_path_buf(), stray: other_file });
    }
    let from = fs::canonicalize(root).map_err(Error::io(root))?;
    let folder = std::path::absolute(folder).map_err(Error::io(output))?;
    let nearest = folder.ancestors().find_map(|above| fs::canonicalize(above).ok());
    if nearest.is_some_and(|nearest| nearest.starts_with(&from)) {
        return Err(Error::InSource { folder: output.to_path_buf(), from: root.to_path_buf() });
    }
    Ok(())
}

impl SourceImages {
    fn from_classes(data: Dataset) -> Self {
        let source = data.root.join(SOURCE);
        let plain = fs::symlink_metadata(&source).is_ok_and(|m| m.is_file() && m.len() <= MAX_SOURCE_BYTES);
        let photo = |image: ImageFile| SourceImage {
            folder: image.path.parent().unwrap_or(Path::new("")).to_path_buf(),
            class: data.classes[image.label as usize].clone(),
            from: image.path,
        };
        Self {
            files: data.files.into_iter().map(photo).collect(),
            skipped: data.skipped,
            dogs: 0,
            index: data.index,
            source: if plain { fs::read(&source).ok() } else { None },
            boxes: data.root.join("heads.csv"),
        }
    }

    /// Lists the photographs of the Oxford-IIIT Pet data set. Names of cats' files start with a capital letter.
    fn from_oxford(root: &Path, other: bool) -> Result<Self> {
        let inside = fs::canonicalize(root).map_err(Error::io(root))?;
        let (mut files, mut skipped, mut dogs) = (Vec::new(), Vec::new(), 0);
        for name in scan::list(&root.join("images"))? {
            let path = Path::new("images").join(&name);
            let breed = name.to_str().map(|name| split::series(name).0.trim_end_matches('_'));
            match breed.filter(|breed| is_class_name(breed)) {
                None => skipped.push((printable(&path), "not named like Breed_12.jpg".to_string())),
                Some(breed) => {
                    let cat = breed.starts_with(char::is_uppercase);
                    if !cat && !other {
                        dogs += 1;
                    } else if let Some(reason) = scan::link_error(&inside, &root.join(&path)) {
                        skipped.push((path, reason));
                    } else {
                        let class = if cat { breed } else { OTHER }.to_string();
                        files.push(SourceImage { from: path, folder: PathBuf::from(&class), class });
                    }
                }
            }
        }
        if files.is_empty() {
            return Err(Error::no_images(&root.join("images"), &skipped));
        }
        files.sort_by(|a, b| (&a.class, &a.from).cmp(&(&b.class, &b.from)));
        let source = Some(OXFORD.as_bytes().to_vec());
        Ok(Self { files, skipped, dogs, index: None, source, boxes: root.join("annotations").join("xmls") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn prepare(crop: Crop) -> Prepare {
        Prepare { crop, size: 16, boxes: None, other: false, encoding: Encoding::Png }
    }

    /// An image in which red is the column and green the row.
    fn put(root: &Path, name: &str, width: u32, height: u32) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 0]))
            .save_with_format(path, image::ImageFormat::Png)
            .unwrap();
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            walk(folder).iter().map(|path| name(path.strip_prefix(folder).unwrap())).collect();
        all.sort();
        all
    }

    fn walk(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn each_crop_keeps_its_region() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        put(&input, "A/1.png", 100, 60);
        put(&input, "B/2.png", 64, 200);
        fs::write(input.join("heads.csv"), "file,xmin,ymin,xmax,ymax\nA/1.png,85,20,95,30\n").unwrap();
        fs::write(input.join(SOURCE), "from somewhere").unwrap();
        let run_crop = |crop: Crop| {
            let output = dir.path().join(format!("{crop:?}"));
            let prepared = prepare(crop).run(&input, &output, |all| assert_eq!(all, 2)).unwrap();
            (output, prepared)
        };
        let part = |output: &Path, from: &str| -> Vec<u64> {
            let json: serde_json::Value =
                serde_json::from_slice(&fs::read(output.join(PREPARED)).unwrap()).unwrap();
            let images = json["pictures"].as_array().unwrap();
            let image = images.iter().find(|image| image["from"] == from).unwrap();
            image["part"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
        };
        let (output, prepared) = run_crop(Crop::Head);
        assert_eq!(prepared.classes, [("A".to_string(), 1)].into());
        assert_eq!(
            prepared.skipped,
            [("B/2.png", "without a box around its head"), ("B", "a class without images")]
                .map(|(path, reason)| (PathBuf::from(path), reason.to_string()))
        );
        assert_eq!(files(&output), ["A/1.png", PREPARED, SOURCE]);
        assert_eq!(part(&output, "A/1.png"), [82, 17, 16, 16]);
        let head = image::open(output.join("A/1.png")).unwrap().to_rgb8();
        assert_eq!(
            (head.dimensions(), head.get_pixel(0, 0), head.get_pixel(15, 15)),
            ((16, 16), &Rgb([82, 17, 0]), &Rgb([97, 32, 0]))
        );

        let (output, prepared) = run_crop(Crop::Center);
        assert_eq!(prepared.classes.len(), 2);
        assert_eq!(part(&output, "A/1.png"), [20, 0, 60, 60]);
        assert_eq!(part(&output, "B/2.png"), [0, 68, 64, 64]);
        let (output, _) = run_crop(Crop::None);
        assert_eq!(image::image_dimensions(output.join("A/1.png")).unwrap(), (27, 16));
        assert_eq!(image::image_dimensions(output.join("B/2.png")).unwrap(), (16, 50));
        assert_eq!(fs::read_to_string(output.join(SOURCE)).unwrap(), "from somewhere");
    }

    #[test]
    fn breeds_are_read_from_the_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        for cat in ["British_Shorthair_1.jpg", "British_Shorthair_12.jpg", "Sphynx_3.jpg"] {
            put(&input, &format!("images/{cat}"), 40, 40);
        }
        put(&input, "images/pug_1.jpg", 40, 40);
        fs::write(input.join("images/Sphynx_4.mat"), "not an image").unwrap();
        fs::create_dir_all(input.join("annotations/xmls")).unwrap();
        for name in ["Sphynx_3", "British_Shorthair_12", "pug_1"] {
            let edges = "<xmin>10</xmin><ymin>10</ymin><xmax>20</xmax><ymax>20</ymax>";
            let xml = format!("<annotation><object><bndbox>{edges}</bndbox></object></annotation>");
            fs::write(input.join(format!("annotations/xmls/{name}.xml")), xml).unwrap();
        }
        for from in [&input, &input.join("images")] {
            let error = Dataset::open(from).unwrap_err().to_string();
            assert!(error.contains("tiny-cats data prepare") && !error.contains('\n'), "{error}");
        }
        let (heads, all) = (dir.path().join("heads"), dir.path().join("all"));
        let prepared = prepare(Crop::Head).run(&input, &heads, |_| {}).unwrap();
        assert_eq!((prepared.classes.values().sum::<usize>(), prepared.dogs), (2, 1));
        assert_eq!(
            files(&heads),
            ["British_Shorthair/British_Shorthair_12.png", PREPARED, SOURCE, "Sphynx/Sphynx_3.png"]
        );
        let mut with_dogs = prepare(Crop::Center);
        (with_dogs.other, with_dogs.encoding) = (true, Encoding::Jpeg);
        let prepared = with_dogs.run(&input.join("images"), &all, |_| {}).unwrap();
        assert_eq!(prepared.classes[OTHER], 1);
        assert!(
            prepared
                .skipped
                .iter()
                .any(|(path, reason)| path.ends_with("Sphynx_4.mat") && reason == "not an image")
        );
        assert_eq!(Dataset::open(&all).unwrap().classes, ["British_Shorthair", "Sphynx", OTHER]);
        assert!(fs::read_to_string(all.join(SOURCE)).unwrap().contains("CC BY-SA 4.0"));
    }

    #[test]
    fn images_with_the_same_name_are_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        for (name, width) in [("A/1.png", 20), ("A/1.jpg", 22), ("B/1.png", 24)] {
            put(&input, name, width, 20);
        }
        let prepared = prepare(Crop::Center).run(&input, &dir.path().join("out"), |_| {}).unwrap();
        assert_eq!(prepared.classes, [("A".to_string(), 2), ("B".to_string(), 1)].into());
        assert_eq!(prepared.skipped, []);
        assert_eq!(files(&dir.path().join("out")), ["A/1.png", "A/1_.png", "B/1.png", PREPARED]);
        // The series and number do not change.
        assert_eq!(split::series("1_.png"), ("", "1"));
    }

    #[test]
    fn split_folders_are_kept_and_dropped_classes_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        for (name, width) in [("train/A/1.png", 20), ("train/B/1.png", 22), ("val/A/1.png", 24)] {
            put(&input, name, width, 20);
        }
        let out = dir.path().join("out");
        let prepared = prepare(Crop::Center).run(&input, &out, |_| {}).unwrap();
        assert_eq!(prepared.classes, [("A".to_string(), 2), ("B".to_string(), 1)].into());
        assert_eq!(files(&out), [PREPARED, "train/A/1.png", "train/B/1.png", "val/A/1.png"]);
        assert_eq!(Dataset::open(&out).unwrap().counts(), Dataset::open(&input).unwrap().counts());

        fs::write(
            dir.path().join("heads.csv"),
            "file,xmin,ymin,xmax,ymax\ntrain/A/1.png,4.5,4.25,12.5,12\nval/A/1.png,0.1,0.2,0.5,0.6\n",
        )
        .unwrap();
        let heads = Prepare { boxes: Some(dir.path().join("heads.csv")), ..prepare(Crop::Head) };
        let prepared = heads.run(&input, &dir.path().join("heads"), |_| {}).unwrap();
        assert_eq!(prepared.classes, [("A".to_string(), 1)].into());
        let dropped_class = (PathBuf::from("B"), "a class without images".to_string());
        let shares = &prepared.skipped.iter().find(|(path, _)| path == Path::new("val/A/1.png")).unwrap().1;
        assert_eq!(shares, "24 x 20, but its box is 0.1, 0.2, 0.5, 0.6; expected edges in pixels");
        assert!(
            prepared.skipped.len() == 3 && prepared.skipped.contains(&dropped_class),
            "{:?}",
            prepared.skipped
        );
    }

    #[test]
    fn failed_preparations_leave_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        put(&input, "A/1.png", 20, 20);
        let files_before = files(dir.path());
        let check_error = |prepare: Prepare, output: &str, expected: &str| {
            let error = prepare.run(&input, &dir.path().join(output), |_| {}).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            assert_eq!(files(dir.path()), files_before, "{expected}");
        };
        check_error(Prepare { size: 7, ..prepare(Crop::Center) }, "out", "size: expected 8 to 1024, found 7");
        check_error(
            Prepare { size: 2000, ..prepare(Crop::Center) },
            "out",
            "size: expected 8 to 1024, found 2000",
        );
        check_error(prepare(Crop::Head), "out", "--boxes");
        check_error(
            Prepare { boxes: Some(dir.path().join("no.csv")), ..prepare(Crop::Head) },
            "out",
            "no.csv",
        );
        check_error(Prepare { boxes: Some(input.join("A")), ..prepare(Crop::Head) }, "out", "no boxes");
        check_error(prepare(Crop::Center), "in", "expected a new or an empty folder, found A in it");
        check_error(prepare(Crop::Center), "in/deep/out", "expected a folder outside of");
        check_error(prepare(Crop::Center), "in/A/1.png/out", "");
        // An existing empty folder can be the output.
        fs::create_dir(dir.path().join("empty")).unwrap();
        prepare(Crop::Center).run(&input, &dir.path().join("empty"), |_| {}).unwrap();
        assert!(dir.path().join("empty/A/1.png").exists());
        assert!(!dir.path().join("in/deep").exists());
    }
}
