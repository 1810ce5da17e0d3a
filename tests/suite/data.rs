//! End-to-end tests of `tiny-cats data`, with valid, invalid and hostile files.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::common::images::{camera_jpegs, crc, png_with_truncated_palette};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use tempfile::TempDir;
use tiny_cats::data::{Cache, Dataset, Images, Split, cache, synth};

fn run(folder: &Path, args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_tiny-cats");
    Command::new(program).arg("data").args(args).current_dir(folder).output().expect("the program starts")
}

/// Runs a command that must succeed. Returns its standard output and standard error.
#[track_caller]
fn succeeds(folder: &Path, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = run(folder, args);
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(status.success(), "{args:?}: {out}{err}");
    (out, err)
}

/// Runs a command that must fail with a one-line error, and returns its standard error.
#[track_caller]
fn fails(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() == 1,
        "{args:?}: expected one line, found:\n{stderr}"
    );
    stderr
}

/// The only line of `text` that contains `part`.
#[track_caller]
fn line<'a>(text: &'a str, part: &str) -> &'a str {
    let mut lines = text.lines().filter(|line| line.contains(part));
    let line = lines.next().unwrap_or_else(|| panic!("no line with {part} in\n{text}"));
    assert!(lines.next().is_none(), "several lines with {part} in\n{text}");
    line
}

/// A folder with synthetic images in `cats`: 12 of each of 13 classes.
fn data_folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    succeeds(dir.path(), &["synth", "cats", "--per-class", "12", "--size", "32"]);
    dir
}

fn png(seed: u64) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    synth::draw(0, seed, 0, 32).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn jpeg(image: &RgbImage, exif: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
    }
    encoder.write_image(image, image.width(), image.height(), ExtendedColorType::Rgb8).unwrap();
    bytes
}

/// A small PNG file whose header declares `width` × `height`, with a valid checksum.
fn png_of_size(width: u32, height: u32) -> Vec<u8> {
    let mut png = png(0);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

/// Motion photos, multi-picture files, and JPEGs without an end marker are complete images.
#[test]
fn camera_jpegs_are_used() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("cats/Bengal")).unwrap();
    let jpeg = jpeg(&synth::draw(1, 0, 0, 64), None);
    fs::write(root.join("cats/Bengal/whole.jpg"), &jpeg).unwrap();
    for (name, bytes) in camera_jpegs(&jpeg) {
        fs::write(root.join("cats/Bengal").join(name), bytes).unwrap();
    }
    let closed = [&jpeg[..jpeg.len() / 2], &[0xff, 0xd9]].concat();
    fs::write(root.join("cats/Bengal/closed.jpg"), closed).unwrap();
    let (out, err) = succeeds(root, &["index", "cats"]);
    assert!(out.contains("4 images in 1 class, 1 skipped"), "{out}");
    assert!(line(&err, "closed.jpg").contains("a broken JPEG file: its end is missing"), "{err}");
    let (out, _) = succeeds(root, &["prepare", "cats", "prepared", "--crop", "center", "--size", "16"]);
    assert!(out.contains("used only the images in cats/index.json"), "{out}");
    let prepared: Vec<_> =
        fs::read_dir(root.join("prepared/Bengal")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(prepared.len(), 4);
    assert!(prepared.iter().all(|path| fs::read(path).unwrap() == fs::read(&prepared[0]).unwrap()));
}

/// A small JPEG file whose header declares `width` × `height`.
fn jpeg_of_size(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = jpeg(&synth::draw(0, 0, 0, 32), None);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    jpeg
}

#[test]
fn an_index_is_written_used_and_updated() {
    let dir = data_folder();
    let (out, err) = succeeds(dir.path(), &["index", "cats"]);
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(line(&out, "Bengal")), ["Bengal", "10", "1", "1", "12"]);
    assert_eq!(words(line(&out, "all  ")), ["all", "130", "13", "13", "156"]);
    assert_eq!(line(&out, "index.json"), "cats/index.json: 156 images in 13 classes, 0 skipped");
    assert_eq!(err, "");
    let data = Dataset::open(dir.path().join("cats")).unwrap();
    assert_eq!(data.index, Some(dir.path().join("cats/index.json")));
    let test = data.part(Split::Test);
    assert_eq!(test.files.len(), 13);
    assert!(test.files.iter().all(|file| file.path.to_string_lossy().ends_with("_00011.png")));

    let first = fs::read(dir.path().join("cats/index.json")).unwrap();
    succeeds(dir.path(), &["index", "cats"]);
    assert_eq!(fs::read(dir.path().join("cats/index.json")).unwrap(), first);
    let (out, _) = succeeds(dir.path(), &["index", "cats", "-o", "half.json", "--split", "50,25,25"]);
    assert_eq!(words(line(&out, "all  ")), ["all", "78", "39", "39", "156"]);
    let (out, _) = succeeds(dir.path(), &["stats", "half.json"]);
    assert_eq!(words(line(&out, "Sphynx")), ["Sphynx", "6", "3", "3", "12"]);
    assert!(line(&out, "split ").contains("half.json"), "{out}");
    let output = run(dir.path(), &["index", "cats", "--split", "0,50,50"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("a share for training greater than 0"));
    fs::write(dir.path().join("notes.json"), "{}").unwrap();
    assert!(fails(dir.path(), &["index", "cats", "-o", "notes.json"]).contains("notes.json: not an index"));
    assert_eq!(fs::read(dir.path().join("notes.json")).unwrap(), b"{}");
    assert!(fails(dir.path(), &["index", "cats", "-o", "no/where.json"]).contains("no/where.json"));
}

#[test]
fn invalid_files_are_skipped_with_a_reason() {
    let dir = data_folder();
    let bengal = dir.path().join("cats/Bengal");
    let (png, jpeg) = (png(1), jpeg(&synth::draw(1, 0, 0, 64), None));
    let mut broken = png.clone();
    broken[png.len() / 2..png.len() / 2 + 20].fill(0);
    let bad: [(&str, &[u8], &str); 11] = [
        ("empty.png", b"", "an empty file"),
        ("cut.jpg", &jpeg[..jpeg.len() / 2], "a broken JPEG file: its end is missing"),
        ("cut.png", &png[..png.len() / 2], "a broken PNG file: its end is missing"),
        ("broken.png", &broken, "a broken PNG file"),
        ("animation.jpg", b"GIF89a\x01\0\x01\0\0\0\0;", "a GIF image; expected PNG, JPEG or WebP"),
        ("text.png", b"I am a cat", "not an image"),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>", "not an image"),
        (
            "huge.png",
            &png_of_size(20_000, 20_000),
            "20000 x 20000 pixels are too many; expected at most 210000000",
        ),
        (
            "huge.jpg",
            &jpeg_of_size(20_000, 20_000),
            "20000 x 20000 pixels are too many; expected at most 210000000",
        ),
        ("flat.png", &png_of_size(32, 0), "broken"),
        ("palette.png", &png_with_truncated_palette(), "a broken PNG file: its decoder failed: "),
    ];
    for (name, bytes, _) in bad {
        fs::write(bengal.join(name), bytes).unwrap();
    }
    for name in ["Thumbs.db", "desktop.ini", ".DS_Store", "._x.jpg"] {
        fs::write(bengal.join(name), "not an image").unwrap();
    }
    fs::create_dir(bengal.join("deeper")).unwrap();
    let (_, err) = succeeds(dir.path(), &["stats", "cats"]);
    assert!(line(&err, "palette.png").contains("a broken PNG file: its decoder failed: "), "{err}");
    assert!(!err.contains("\nthread"), "{err}");
    let (out, err) = succeeds(dir.path(), &["index", "cats"]);
    assert_eq!(err.lines().count(), bad.len() + 1, "{err}");
    for (name, _, reason) in bad.into_iter().chain([("deeper", &b""[..], "not a file")]) {
        let warning = line(&err, name);
        assert!(
            warning.starts_with("skipped cats/Bengal/") || warning.starts_with("skipped Bengal/"),
            "{warning}"
        );
        assert!(warning.contains(reason), "{warning}");
    }
    assert!(out.contains("156 images in 13 classes, 12 skipped"), "{out}");
    // Skipped files are reported only when the index is written. Files added since then are reported when it is used.
    assert_eq!(Dataset::open(dir.path().join("cats")).unwrap().skipped, []);
    fs::write(bengal.join("new.png"), &png).unwrap();
    let (_, err) = succeeds(dir.path(), &["stats", "cats"]);
    assert!(line(&err, "new.png").contains("not in the index; run `tiny-cats data index` again"));
    let indexed = fs::read_dir(&bengal).unwrap().flatten().find(|e| {
        e.file_name() != "new.png"
            && e.path().extension() == Some("png".as_ref())
            && e.file_name().to_string_lossy().contains("_0")
    });
    fs::write(indexed.unwrap().path(), &png).unwrap();
    let (_, err) = succeeds(dir.path(), &["stats", "cats"]);
    assert!(
        line(&err, "changed since")
            .contains("changed since it was indexed; run `tiny-cats data index` again")
    );
}

/// Images whose headers declare large sizes are refused without allocating memory: a limit of 1 GB of address space is enough.
#[cfg(target_os = "linux")]
#[test]
fn too_large_images_are_refused_before_memory_is_allocated() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("A")).unwrap();
    for (name, bytes) in [
        ("a.png", png_of_size(20_000, 20_000)),
        ("a.jpg", jpeg_of_size(20_000, 20_000)),
        ("b.jpg", jpeg_of_size(65_000, 65_000)),
        ("c.png", png_of_size(0x7fff_ffff, 0x7fff_ffff)),
        ("good.png", png(0)),
    ] {
        fs::write(dir.path().join("A").join(name), bytes).unwrap();
    }
    // A decoded image of 20,000 x 20,000 has 1.2 GB.
    let script = format!("ulimit -v 1000000; exec {} data index . ", env!("CARGO_BIN_EXE_tiny-cats"));
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("RAYON_NUM_THREADS", "2")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("skipped A/")).count(), 4, "{stderr}");
}

#[cfg(unix)]
#[test]
fn cyclic_and_outside_symlinks_are_skipped_with_one_line_each() {
    use std::os::unix::fs::symlink;
    let dir = data_folder();
    let cats = dir.path().join("cats");
    fs::create_dir(dir.path().join("private")).unwrap();
    fs::write(dir.path().join("private/diary.png"), png(5)).unwrap();
    symlink(".", cats.join("loop")).unwrap();
    symlink("..", cats.join("Bengal/up")).unwrap();
    symlink("self.png", cats.join("Bengal/self.png")).unwrap();
    symlink("../private", cats.join("out")).unwrap();
    symlink("../../private/diary.png", cats.join("Bengal/diary.png")).unwrap();
    symlink("../Birman/Birman_00000.png", cats.join("Bengal/same.png")).unwrap();
    let (out, err) = succeeds(dir.path(), &["index", "cats"]);
    for (name, reason) in [
        (" loop:", "a link back"),
        ("Bengal/up", "a link back"),
        ("self.png", "a broken link"),
        (" out:", "out of the data folder"),
        ("diary.png", "out of the data folder"),
    ] {
        assert!(line(&err, name).contains(reason), "{err}");
    }
    let warning = line(&err, "same.png");
    assert!(
        warning.starts_with("the same image in two classes: ")
            && warning.contains("Birman_00000.png (train)"),
        "{warning}"
    );
    assert!(out.contains("157 images in 13 classes, 5 skipped"), "{out}");
    assert!(
        !fs::read_to_string(cats.join("index.json"))
            .unwrap()
            .contains("\"path\":\"Bengal/diary.png\",\"split\"")
    );
}

#[test]
fn a_class_with_one_image_is_used_for_training_with_a_warning() {
    let dir = TempDir::new().unwrap();
    for (name, seed) in
        [("A/1.png", 1), ("B/1.png", 2), ("B/2.png", 3), ("C/1.png", 4), ("C/2.png", 4), ("C/3.png", 6)]
    {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), png(seed)).unwrap();
    }
    let (out, err) = succeeds(dir.path(), &["index", "."]);
    assert!(line(&err, "A has only one image").contains("for training"));
    assert!(line(&err, "B has").contains("no test images"));
    assert!(line(&err, "C has").contains("no test images"));
    assert_eq!(line(&err, "C/2.png"), "skipped C/2.png: the same image as C/1.png");
    assert_eq!(err.lines().count(), 4, "{err}");
    assert!(out.contains("5 images in 3 classes, 1 skipped"), "{out}");
}

#[test]
fn a_folder_with_split_subfolders_keeps_its_split() {
    let dir = TempDir::new().unwrap();
    for (i, name) in
        ["train/A/1.png", "train/A/2.png", "train/B/1.png", "val/A/1.png", "test/A/1.png", "test/B/1.png"]
            .into_iter()
            .enumerate()
    {
        let path = dir.path().join("pets").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(i as u64)).unwrap();
    }
    let counts = |out: &str| line(out, "all ").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (out, err) = succeeds(dir.path(), &["stats", "pets"]);
    assert_eq!((counts(&out).join(" "), &*err), ("all 3 1 2 6".to_owned(), ""));
    assert!(line(&out, "split ").ends_with("by folders"), "{out}");
    let error = fails(dir.path(), &["index", "pets", "--split", "80,10,10"]);
    assert!(error.contains("--split: pets is split by its folders"), "{error}");
    let (out, _) = succeeds(dir.path(), &["index", "pets"]);
    assert_eq!(counts(&out).join(" "), "all 3 1 2 6");
    assert!(out.contains("pets/index.json: 6 images in 2 classes, 0 skipped"), "{out}");
}

#[test]
fn invalid_data_folders_give_one_line_errors_and_no_index() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("texts/A")).unwrap();
    fs::write(root.join("texts/A/readme.txt"), "not an image").unwrap();
    for folder in ["images", "annotations/xmls"] {
        fs::create_dir_all(root.join("pets").join(folder)).unwrap();
    }
    fs::write(root.join("pets/images/Abyssinian_1.jpg"), jpeg(&synth::draw(0, 0, 0, 32), None)).unwrap();
    for (folder, expected) in [
        ("nowhere", "nowhere: No such file"),
        ("empty", "expected one folder of images per class, found no class folders"),
        ("texts", "found no usable image"),
        ("texts/A/readme.txt", "readme.txt"),
        ("pets", "tiny-cats data prepare pets"),
        ("pets/images", "tiny-cats data prepare"),
    ] {
        for command in ["index", "stats"] {
            let error = fails(root, &[command, folder]);
            assert!(error.contains(expected) || error.contains("not an index"), "{error}");
        }
        assert!(!root.join(folder).join("index.json").exists());
    }
}

#[test]
fn stats_are_correct_as_text_json_and_sheet() {
    let dir = TempDir::new().unwrap();
    // Stored rotated: EXIF orientation 6 means that the left side is the top.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let rotated = RgbImage::from_pixel(48, 24, Rgb([255, 255, 255]));
    fs::create_dir_all(dir.path().join("A")).unwrap();
    fs::write(dir.path().join("A/1.jpg"), jpeg(&rotated, Some(exif))).unwrap();
    RgbImage::from_pixel(20, 20, Rgb([0, 0, 0])).save(dir.path().join("A/2.png")).unwrap();
    let (out, _) = succeeds(dir.path(), &["stats", ".", "--sheet", "sheet.png"]);
    assert!(line(&out, "short side").ends_with("20 to 24 px, median 24"), "{out}");
    assert!(line(&out, "aspect").ends_with("0.50 to 1.00, median 1.00"), "{out}");
    assert!(line(&out, "mean").contains("0.500 0.500 0.500"), "{out}");
    assert_eq!(image::open(dir.path().join("sheet.png")).unwrap().width(), 8 * 134 + 6);
    let (out, err) = succeeds(dir.path(), &["stats", ".", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&stats["pictures"], &stats["classes"][0]["val"]), (&2.into(), &1.into()));
    assert_eq!(stats["aspect"]["min"], 0.5);
    assert_eq!(err, "");
    assert!(fails(dir.path(), &["stats", ".", "--sheet", "no/sheet.png"]).contains("no/sheet.png"));
}

#[test]
fn prepare_crops_heads() {
    let dir = data_folder();
    let root = dir.path();
    let mut boxes = String::from("file,xmin,ymin,xmax,ymax,drawn_by\n");
    for number in 0..6 {
        boxes += &format!("Siamese/Siamese_{number:05}.png,{number},4,{},14,me\n", number + 10);
    }
    boxes += "Siamese/Siamese_00006.png,4,4,x,14,me\nSiamese/Siamese_00007.png,90,90,99,99,me\n";
    fs::write(root.join("boxes.csv"), boxes).unwrap();
    let args = ["prepare", "cats", "heads", "--crop", "head", "--size", "24", "--boxes", "boxes.csv"];
    let (out, err) = succeeds(root, &args);
    // 150 images, and the other 12 classes.
    assert!(out.contains("heads: 6 images in 1 class, 162 skipped"), "{out}");
    assert!(line(&err, "skipped Bengal:").contains("a class without images"), "{err}");
    assert!(
        line(&err, "Siamese_00006.png").contains("xmax of its box is \"x\" in line 8; expected a number")
    );
    assert!(line(&err, "Siamese_00007.png").contains("32 x 32, but its box is 90, 90, 99, 99"));
    assert!(line(&err, "Bengal_00000.png").contains("without a box around its head"));
    let data = Dataset::open(root.join("heads")).unwrap();
    assert!(data.files.len() == 6 && data.files.iter().all(|file| file.size == [24, 24]));
    let error = fails(root, &args);
    assert!(error.contains("heads: expected a new or an empty folder"), "{error}");
    let error = fails(root, &["prepare", "cats", "more", "--crop", "head", "--size", "24"]);
    assert!(error.contains("cats/heads.csv") && error.contains("--boxes"), "{error}");
    assert!(!root.join("more").exists());
    fs::write(root.join("bad.csv"), "name,x,y\n").unwrap();
    let error =
        fails(root, &["prepare", "cats", "more", "--crop", "head", "--size", "24", "--boxes", "bad.csv"]);
    assert!(
        error.contains("bad.csv: expected columns file, xmin, ymin, xmax and ymax, found no column file"),
        "{error}"
    );
    assert!(
        fails(root, &["prepare", "cats", "more", "--crop", "none", "--size", "4"])
            .contains("size: expected 8 to 1024, found 4")
    );
}

/// A file size limit of 512 bytes simulates a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_partial_files() {
    let dir = data_folder();
    let before = fs::read_dir(dir.path()).unwrap().count();
    for command in ["index cats", "prepare cats out --crop centre --size 64", "stats cats --sheet sheet.png"]
    {
        let program = env!("CARGO_BIN_EXE_tiny-cats");
        let script = format!("trap '' XFSZ; ulimit -f 1; exec {program} data {command}");
        let output = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "{command}");
        assert_eq!(fs::read_dir(dir.path().join("cats")).unwrap().count(), 14, "{command}");
    }
}

#[test]
fn the_cache_command_lists_and_deletes_only_decoded_images() {
    let dir = data_folder();
    let folder = dir.path().join("cache");
    let data = Dataset::open(dir.path().join("cats")).unwrap();
    for size in [8, 16] {
        Images::load(&data, size, None, &Cache::Folder(folder.clone())).unwrap();
    }
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    let (out, _) = succeeds(dir.path(), &["cache", "--cache", "cache"]);
    assert!(line(&out, "squares-16-").starts_with("   0.1 MB") && out.contains("squares-8-"), "{out}");
    assert!(out.contains("cache: 2 files of decoded images, 0.2 MB"), "{out}");
    let program = env!("CARGO_BIN_EXE_tiny-cats");
    let output = Command::new(program)
        .args(["data", "cache", "--clear"])
        .env("TINY_CATS_CACHE", &folder)
        .output()
        .unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("2 files"),
        "{output:?}"
    );
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["notes.txt"]);
    assert!(succeeds(dir.path(), &["cache", "--cache", "missing"]).0.contains("0 files"));
    assert!(fails(dir.path(), &["cache", "--cache", "cache/notes.txt"]).contains("notes.txt"));
}

/// A program that is killed while it decodes leaves a cache file that is marked as unfinished.
#[cfg(unix)]
#[test]
fn an_unfinished_cache_file_is_not_used() {
    let dir = data_folder();
    let folder = dir.path().join("cache");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tiny-cats"))
        .args(["train", "dit", "cats", "--image-size", "512", "--size", "nano", "--steps", "1"])
        .current_dir(dir.path())
        .env("TINY_CATS_CACHE", &folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while cache::list(&folder).unwrap().is_empty() {
        assert!(
            start.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(),
            "no cache file is written"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = cache::list(&folder).unwrap();
    assert!(left.len() == 1 && !left[0].finished, "{left:?}");
    assert!(succeeds(dir.path(), &["cache", "--cache", "cache"]).0.contains("unfinished"));

    let data = Dataset::open(dir.path().join("cats")).unwrap();
    let images = Images::load(&data, 512, Some(2), &Cache::Folder(folder.clone())).unwrap();
    assert!(images.notes.is_empty() && images.len() == 2);
    assert_eq!(cache::list(&folder).unwrap().iter().filter(|file| file.finished).count(), 1);
}
