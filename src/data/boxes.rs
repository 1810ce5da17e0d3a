//! Head boxes, from a CSV file or from the XML files of the PASCAL VOC and Oxford-IIIT Pet data sets.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    path::Path,
};

use tiny_cats_export::excerpt;

use super::{
    Error, Result,
    scan::{self, name},
};

/// The largest CSV file that is read, in bytes.
const MAX_CSV_BYTES: u64 = 64 << 20;
/// The largest XML file that is read, in bytes.
const MAX_XML_BYTES: u64 = 1 << 20;
/// The largest number of nodes in an XML file that is read.
const MAX_XML_NODES: u32 = 10_000;
/// The side of the square around a head, relative to the longer side of its box.
const CROP_SCALE: f64 = 1.6;
/// The largest relative difference between an image's aspect ratio and that of the image on which its box was annotated.
const ASPECT_TOLERANCE: f64 = 0.02;

/// A box around a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HeadBox {
    /// Left, upper, right and lower edge, in pixels.
    edges: [f64; 4],
    /// Width and height of the annotated image, if known.
    image_size: Option<[f64; 2]>,
}

/// The head boxes of many images. A box that cannot be used has the reason instead.
pub(super) struct Boxes(HashMap<String, std::result::Result<HeadBox, String>>);

impl Boxes {
    /// Reads a CSV file with columns `file`, `xmin`, `ymin`, `xmax` and `ymax` (others are ignored), or the `.xml` files of a folder.
    ///
    /// # Errors
    /// If there is no such file or folder, or it has no boxes. An invalid row or XML file only affects its image.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut boxes = Self(HashMap::new());
        if path.is_dir() {
            boxes.read_folder(path)?;
        } else {
            boxes.read_csv(path)?;
        }
        if boxes.0.is_empty() {
            let reason =
                "expected a CSV file or a folder of XML files with boxes, found no boxes".to_string();
            return Err(Error::Boxes { path: path.to_path_buf(), reason });
        }
        Ok(boxes)
    }

    /// The box of the image at `path`, relative to the data folder, or the reason why it cannot be used; `None` if it has none. A box
    /// belongs to the images with its path, its file name, or its name without extension, in this order.
    pub(super) fn get(&self, path: &Path) -> Option<std::result::Result<HeadBox, String>> {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let keys = [name(path), part(path.file_name()), part(path.file_stem())];
        keys.iter().find_map(|key| self.0.get(key)).cloned()
    }

    /// Adds a box; the largest of an image's boxes is kept.
    fn add(&mut self, key: String, head: std::result::Result<HeadBox, String>) {
        let larger = match (self.0.get(&key), &head) {
            (Some(Ok(earlier)), Ok(head)) => head.area() > earlier.area(),
            (Some(Ok(_)), Err(_)) => false,
            _ => true,
        };
        if larger {
            self.0.insert(key, head);
        }
    }

    fn read_csv(&mut self, path: &Path) -> Result<()> {
        let invalid = |reason: String| Error::Boxes { path: path.to_path_buf(), reason };
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_file() || metadata.len() > MAX_CSV_BYTES {
            return Err(invalid(format!("expected a CSV file of at most {} MiB", MAX_CSV_BYTES >> 20)));
        }
        let file = File::open(path).map_err(Error::io(path))?.take(MAX_CSV_BYTES);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(file);
        let header = reader.headers().map_err(|e| invalid(e.to_string()))?.clone();
        let column = |name: &str| {
            let index = header.iter().position(|column| column.eq_ignore_ascii_case(name));
            index.ok_or_else(|| {
                invalid(format!("expected columns file, xmin, ymin, xmax and ymax, found no column {name}"))
            })
        };
        let file = column("file")?;
        let edges = [column("xmin")?, column("ymin")?, column("xmax")?, column("ymax")?];
        for record in reader.records() {
            let record = record.map_err(|e| invalid(e.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let number = |column: usize| {
                let text = record.get(column).unwrap_or_default();
                let invalid = || {
                    let found = excerpt(text);
                    format!("{} of its box is {found:?} in line {line}; expected a number", &header[column])
                };
                text.parse::<f64>().map_err(|_| invalid())
            };
            let head = match edges.map(number) {
                [Ok(left), Ok(top), Ok(right), Ok(bottom)] => Ok([left, top, right, bottom]),
                results => Err(results.into_iter().find_map(std::result::Result::err).unwrap_or_default()),
            };
            let key = record.get(file).unwrap_or_default().replace('\\', "/");
            self.add(key, head.map(|edges| HeadBox { edges, image_size: None }));
        }
        Ok(())
    }

    fn read_folder(&mut self, folder: &Path) -> Result<()> {
        for name in scan::list(folder)? {
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".xml")) else { continue };
            let head =
                read_xml(&folder.join(&name)).map_err(|reason| format!("{} is {reason}", name.display()));
            self.add(stem.to_string(), head);
        }
        Ok(())
    }
}

/// The largest box in an annotation of the PASCAL VOC format.
fn read_xml(path: &Path) -> std::result::Result<HeadBox, String> {
    let unreadable = |e: std::io::Error| format!("not readable: {e}");
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("not a file".to_string());
    }
    let mut text = String::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_XML_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_XML_BYTES {
        return Err(format!("more than {} MiB", MAX_XML_BYTES >> 20));
    }
    // Entities can only be defined in a DTD, which is an error.
    let options =
        roxmltree::ParsingOptions { allow_dtd: false, nodes_limit: MAX_XML_NODES, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&text, options)
        .map_err(|e| format!("invalid XML: {}", excerpt(&e.to_string())))?;
    let child = |node: roxmltree::Node, name: &str| -> Option<f64> {
        let child = node.children().find(|child| child.has_tag_name(name))?;
        child.text()?.trim().parse().ok()
    };
    let root = document.root_element();
    let image_size = root.children().find(|node| node.has_tag_name("size")).and_then(|size| {
        let size = [child(size, "width")?, child(size, "height")?];
        size.iter().all(|side| *side >= 1.0 && side.is_finite()).then_some(size)
    });
    let objects = root.children().filter(|node| node.has_tag_name("object"));
    let boxes = objects.flat_map(|object| object.children().filter(|node| node.has_tag_name("bndbox")));
    let heads = boxes.filter_map(|node| {
        let edges = [child(node, "xmin")?, child(node, "ymin")?, child(node, "xmax")?, child(node, "ymax")?];
        Some(HeadBox { edges, image_size })
    });
    let largest = heads.max_by(|a, b| a.area().total_cmp(&b.area()));
    largest.ok_or_else(|| "without an object with a bndbox of xmin, ymin, xmax and ymax".to_string())
}

impl HeadBox {
    fn area(&self) -> f64 {
        let [left, top, right, bottom] = self.edges;
        (right - left) * (bottom - top)
    }

    /// The square around the head in an image of `width` × `height` pixels, as x, y and side. It is moved inside the image, and is at most
    /// as large.
    pub(super) fn square(&self, [width, height]: [u32; 2]) -> std::result::Result<[u32; 3], String> {
        let (w, h) = (f64::from(width), f64::from(height));
        let [x, y] = match self.image_size {
            Some([annotated_width, annotated_height])
                if ((w / annotated_width) / (h / annotated_height) - 1.0).abs() > ASPECT_TOLERANCE =>
            {
                return Err(format!(
                    "{width} x {height}, but its box is of an image of {annotated_width} x {annotated_height}"
                ));
            }
            Some([annotated_width, annotated_height]) => [w / annotated_width, h / annotated_height],
            None => [1.0, 1.0],
        };
        let [left, top, right, bottom] = self.edges;
        let (left, top, right, bottom) = (left * x, top * y, right * x, bottom * y);
        let (center_x, center_y) = ((left + right) / 2.0, (top + bottom) / 2.0);
        let valid =
            left < right && top < bottom && (0.0..=w).contains(&center_x) && (0.0..=h).contains(&center_y);
        // No head fits into the corner pixel, so these are fractions of width and height.
        if self.edges.iter().all(|&edge| edge <= 1.0) {
            let [left, top, right, bottom] = self.edges;
            return Err(format!(
                "{width} x {height}, but its box is {left}, {top}, {right}, {bottom}; expected edges in pixels"
            ));
        }
        if !valid {
            let [left, top, right, bottom] = self.edges;
            return Err(format!("{width} x {height}, but its box is {left}, {top}, {right}, {bottom}"));
        }
        let side = (CROP_SCALE * (right - left).max(bottom - top)).round().clamp(1.0, w.min(h));
        let start = |center: f64, length: f64| (center - side / 2.0).round().clamp(0.0, length - side);
        Ok([start(center_x, w) as u32, start(center_y, h) as u32, side as u32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(edges: [f64; 4]) -> HeadBox {
        HeadBox { edges, image_size: None }
    }

    #[test]
    fn the_square_is_centered_on_the_head_and_moved_inside_the_image() {
        for (edges, size, expected) in [
            ([40.0, 40.0, 60.0, 60.0], [100, 100], [34, 34, 32]),
            ([40.0, 45.0, 60.0, 55.0], [100, 100], [34, 34, 32]),
            ([0.0, 0.0, 20.0, 20.0], [100, 100], [0, 0, 32]),
            ([80.0, 90.0, 100.0, 110.0], [100, 100], [68, 68, 32]),
            ([10.0, 0.0, 90.0, 80.0], [120, 90], [5, 0, 90]),
            ([50.0, 50.0, 50.1, 50.1], [100, 100], [50, 50, 1]),
        ] {
            assert_eq!(head(edges).square(size).unwrap(), expected, "{edges:?}");
        }
        for edges in [
            [60.0, 40.0, 40.0, 60.0],
            [f64::NAN, 0.0, 20.0, 20.0],
            [0.0, 0.0, f64::INFINITY, 20.0],
            [150.0, 10.0, 170.0, 30.0],
            [-1e300, 0.0, 1e300, 9.0],
            [5.0, 5.0, 5.0, 9.0],
        ] {
            let square = head(edges).square([100, 100]);
            // Boxes of any size give a part of the image.
            assert!(square.is_err() || square == Ok([0, 0, 100]), "{edges:?}: {square:?}");
        }
    }

    #[test]
    fn boxes_of_a_larger_version_of_an_image_are_scaled() {
        let with_size = |size| HeadBox { edges: [80.0, 80.0, 120.0, 120.0], image_size: Some(size) };
        assert_eq!(with_size([200.0, 200.0]).square([100, 100]).unwrap(), [34, 34, 32]);
        assert!(with_size([300.0, 200.0]).square([100, 100]).unwrap_err().contains("300 x 200"));
    }

    #[test]
    fn rows_match_by_path_or_name_and_invalid_rows_affect_one_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heads.csv");
        let rows = "file, xmin,ymin,xmax,ymax,by\nA/1.jpg,1,2,3,4,x\n2.jpg,1,2,3,4,x\nA/1.jpg,0,0,9,9,x\n\
                    \"A/3, b.jpg\",1,two,3,4,x\nB\\4.jpg,1,2\n";
        fs::write(&path, rows).unwrap();
        let boxes = Boxes::read(&path).unwrap();
        assert_eq!(boxes.get(Path::new("A/1.jpg")).unwrap().unwrap().edges, [0.0, 0.0, 9.0, 9.0]);
        assert!(boxes.get(Path::new("B/2.jpg")).unwrap().is_ok());
        assert!(boxes.get(Path::new("B/1.jpg")).is_none());
        let reason = boxes.get(Path::new("A/3, b.jpg")).unwrap().unwrap_err();
        assert!(reason.contains("ymin") && reason.contains("\"two\" in line 5"), "{reason}");
        assert!(boxes.get(Path::new("B/4.jpg")).unwrap().unwrap_err().contains("xmax"));

        for (text, expected) in [
            ("file,xmin,ymin,xmax\na,1,2,3\n", "no column ymax"),
            ("", "no column file"),
            ("file,xmin,ymin,xmax,ymax\n", "no boxes"),
            ("file,xmin,ymin,xmax,ymax\n\u{0}\"\n", ""),
        ] {
            fs::write(&path, text).unwrap();
            if let Err(error) = Boxes::read(&path) {
                let error = error.to_string();
                assert!(
                    error.contains("heads.csv") && error.contains(expected) && !error.contains('\n'),
                    "{error}"
                );
            } else {
                assert!(expected.is_empty(), "{text:?} was read");
            }
        }
        let long = format!("file,xmin,ymin,xmax,ymax\na,{},2,3,4\n", "9x".repeat(1 << 19));
        fs::write(&path, long).unwrap();
        let reason = Boxes::read(&path).unwrap().get(Path::new("a")).unwrap().unwrap_err();
        assert!(reason.starts_with("xmin of its box is \"9x") && reason.len() < 500, "{reason}");
        fs::write(&path, b"file,xmin,ymin,xmax,ymax\n\xff\xfe,1,2,3,4\n").unwrap();
        assert!(Boxes::read(&path).is_err_and(|error| !error.to_string().contains('\n')));
    }

    #[test]
    fn annotations_are_read_and_entity_bombs_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let object = |edges: &str| format!("<object><name>cat</name><bndbox>{edges}</bndbox></object>");
        let small = object("<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>");
        let large = object("<xmin>10</xmin><ymin>20.5</ymin><xmax> 30 </xmax><ymax>40</ymax>");
        let size = "<size><width>200</width><height>100</height><depth>3</depth></size>";
        let bomb = "<!DOCTYPE a [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>";
        let cases = [
            ("two", format!("<annotation>{size}{small}{large}</annotation>"), ""),
            ("bare", format!("<annotation>{large}</annotation>"), ""),
            ("bomb", format!("{bomb}<annotation>&b;{small}</annotation>"), "DTD"),
            ("none", "<annotation/>".to_string(), "without an object"),
            ("word", format!("<annotation>{}</annotation>", object("<xmin>x</xmin>")), "without an object"),
            ("cut", format!("<annotation>{small}"), "invalid XML"),
            ("deep", "<a>".repeat(300_000), "invalid XML"),
            ("wide", format!("<annotation>{}</annotation>", "<a/>".repeat(20_000)), "invalid XML"),
            ("long", " ".repeat(2 << 20), "more than 1 MiB"),
        ];
        for (name, text, _) in &cases {
            fs::write(dir.path().join(format!("{name}.xml")), text).unwrap();
        }
        fs::create_dir(dir.path().join("folder.xml")).unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let boxes = Boxes::read(dir.path()).unwrap();
        assert_eq!(boxes.0.len(), cases.len() + 1);
        for (name, _, expected) in &cases {
            match boxes.get(&Path::new("A").join(format!("{name}.jpg"))).unwrap() {
                Ok(head) => {
                    assert_eq!(head.edges, [10.0, 20.5, 30.0, 40.0], "{name}");
                    assert_eq!(head.image_size.is_some(), *name == "two");
                }
                Err(reason) => {
                    assert!(
                        !expected.is_empty() && reason.contains(expected) && !reason.contains('\n'),
                        "{name}: {reason}"
                    )
                }
            }
        }
    }
}
