//! End-to-end tests of `tiny-cats classify`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::{
    CATS, fails,
    images::{camera_jpegs, png_with_truncated_palette},
    run, succeeds,
    trained::TRAINED,
};
use image::{ImageFormat, RgbImage};
use serde_json::Value;
use tempfile::TempDir;
use tiny_cats::data::{Cache, Dataset, Photos, Split, View, synth};
use tiny_cats_export::{Classifier, Preprocessing};

const MODEL: &str = "checkpoints/cats_model.safetensors";

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    synth::draw(1, 3, 0, 60).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A small image file whose header declares 20,000 × 20,000 pixels.
fn huge_image(format: ImageFormat) -> Vec<u8> {
    let mut bytes = encoded(format);
    let side = 20_000u16.to_be_bytes();
    if format == ImageFormat::Png {
        bytes[16..24].copy_from_slice(&[0, 0, side[0], side[1], 0, 0, side[0], side[1]]);
        let crc = !bytes[12..29].iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(c & 1)))
        });
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    } else {
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a baseline frame");
        bytes[frame + 5..frame + 9].copy_from_slice(&[side, side].concat());
    }
    bytes
}

fn write_file(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Runs `classify` in the folder of the trained model.
fn classify(args: &[&str]) -> Output {
    run(CATS, TRAINED.0.path(), &[&["classify", "--model", MODEL], args].concat())
}

/// The items that `--json` prints.
fn json_items(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {}", crate::common::text(output)))
}

/// On the test images, `classify` has the accuracy in the report of training.
#[test]
fn accuracy_matches_training_and_runtimes_agree() {
    let dir = TRAINED.0.path();
    let report = fs::read(dir.join("checkpoints/cats_model_test.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let test = Dataset::open(dir.join("synth")).unwrap().part(Split::Test);
    let paths: Vec<String> = test.files.iter().map(|f| format!("synth/{}", f.path.display())).collect();
    let mut probabilities: Vec<Vec<BTreeMap<String, f64>>> = Vec::new();
    for (runtime, batch) in
        [("native", "16"), ("native", "5"), ("candle", "16"), ("tract", "16"), ("tract", "1")]
    {
        let mut args = vec!["--json", "--top-k", "13", "--runtime", runtime, "--batch", batch];
        args.extend(paths.iter().map(String::as_str));
        let output = classify(&args);
        assert!(output.status.success(), "{}", crate::common::text(&output));
        let items = json_items(&output);
        assert!(items.iter().zip(&paths).all(|(item, path)| item["path"] == **path));
        let correct = items.iter().zip(&test.files).filter(|(item, file)| {
            item["top"][0]["class"].as_str() == Some(&test.classes[file.label as usize])
        });
        let accuracy = correct.count() as f64 / paths.len() as f64;
        assert!(
            (accuracy - report["top1"]["accuracy"].as_f64().unwrap()).abs() < 1e-9,
            "{runtime}: {accuracy}"
        );
        let entry = |candidate: &Value| {
            (candidate["class"].as_str().unwrap().to_owned(), candidate["probability"].as_f64().unwrap())
        };
        let all = |item: &Value| item["top"].as_array().unwrap().iter().map(entry).collect();
        probabilities.push(items.iter().map(all).collect());
    }
    for other in &probabilities[1..] {
        for (a, b) in probabilities[0].iter().zip(other) {
            assert!((a.values().sum::<f64>() - 1.0).abs() < 1e-9);
            assert!(a.iter().all(|(class, p)| (p - b[class]).abs() < 1e-5), "{a:?} {b:?}");
        }
    }
}

/// Training and inference prepare photographs of any aspect ratio identically, bit for bit.
#[test]
fn preprocessing_matches_training() {
    let dir = TempDir::new().unwrap();
    let preprocessing = Preprocessing { resize: 37, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.25] };
    let size = 32;
    for (i, (width, height)) in
        [(100, 80), (80, 101), (37, 50), (64, 37), (5, 9), (300, 20), (20, 301)].into_iter().enumerate()
    {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 7 + y) as u8, (x * x + y * 3) as u8, (x ^ y) as u8]);
        let name = format!("A/{i}.png");
        write_file(dir.path(), &name, b"");
        RgbImage::from_fn(width, height, pixel).save(dir.path().join(name)).unwrap();
    }
    let data = Dataset::open(dir.path()).unwrap();
    let photos = Photos::load(&data, preprocessing.resize as u32, None, &Cache::Memory).unwrap();
    assert_eq!(photos.len(), 7);
    for index in 0..photos.len() {
        let path = photos.path(index);
        let mut training = vec![0.0; 3 * size * size];
        photos
            .fill(index, &View::center(photos.dimensions(index), size as u32), size, &mut training)
            .unwrap();
        preprocessing.normalize(&mut training);
        let image = image::open(dir.path().join(path)).unwrap().into_rgb8();
        assert!(training == preprocessing.apply(&image, size), "{}", path.display());
    }
}

#[test]
fn predictions_are_printed_in_aligned_columns() {
    let dir = TRAINED.0.path();
    let images = TempDir::new_in(dir).unwrap();
    for name in ["b/2.png", "b/10.png", "b/c/1.png", "a.png", "b/.hidden.png", "b/.git/x.png"] {
        write_file(images.path(), name, &encoded(ImageFormat::Png));
    }
    for name in ["Thumbs.db", "thumbs.db", "desktop.ini", ".DS_Store", "._2.png", "c/Desktop.ini"] {
        write_file(images.path(), &format!("b/{name}"), b"not an image");
    }
    // Files that this program writes next to images.
    for name in ["index.json", "SYNTHETIC.json", "PREPARED.json", "SOURCE.md"] {
        write_file(images.path(), &format!("b/{name}"), b"not an image");
    }
    write_file(images.path(), "b/3 of mine", &encoded(ImageFormat::Jpeg));
    let (folder, single) = (images.path().join("b"), images.path().join("a.png"));
    let output = classify(&[single.to_str().unwrap(), folder.to_str().unwrap(), "--top-k", "2"]);
    assert!(output.status.success(), "{}", crate::common::text(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> =
        text.lines().map(|line| line.split_once("  ").unwrap().0.rsplit_once("/").unwrap().1).collect();
    assert_eq!(names, ["a.png", "10.png", "2.png", "3 of mine", "1.png"]);
    let column = |line: &str| line.len() - line.rsplit_once("  ").unwrap().1.len();
    assert!(text.lines().all(|line| column(line) == column(text.lines().next().unwrap())), "{text}");
    for line in text.lines() {
        let predictions = &line[column(line)..];
        assert_eq!(predictions.matches(" %").count(), 2, "{line}");
        assert!(!predictions.contains('_'), "{line}");
    }
    // Identical images in files of different names have identical predictions.
    let probability = |item: &Value| item["top"][0]["probability"].as_f64().unwrap();
    let output = classify(&["--json", single.to_str().unwrap(), folder.join("c/1.png").to_str().unwrap()]);
    let items = json_items(&output);
    assert_eq!(items[0]["top"], items[1]["top"]);
    assert_eq!(items[0]["top"].as_array().unwrap().len(), 3);
    assert!(probability(&items[0]) > 1.0 / 13.0);
}

/// Motion photos, multi-picture files, and JPEGs without an end marker are complete images. A file named on the command line is never
/// skipped silently.
#[test]
fn camera_jpegs_are_classified() {
    let dir = TRAINED.0.path();
    let work = TempDir::new_in(dir).unwrap();
    let jpeg = encoded(ImageFormat::Jpeg);
    write_file(work.path(), "whole.jpg", &jpeg);
    for (name, bytes) in camera_jpegs(&jpeg) {
        write_file(work.path(), name, &bytes);
    }
    let output = classify(&["--json", work.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", crate::common::text(&output));
    let items = json_items(&output);
    assert_eq!(items.len(), 4);
    assert!(items.iter().all(|item| item["top"] == items[0]["top"]), "{items:?}");
    for (name, content) in [("desktop.ini", &b"[.ShellClassInfo]"[..]), ("index.json", b"{}")] {
        write_file(work.path(), name, content);
        let path = work.path().join(name);
        let error = fails(CATS, dir, &["classify", "--model", MODEL, path.to_str().unwrap()]);
        assert!(error.contains(&format!("{name}: not an image\n")), "{error}");
    }
}

#[test]
fn invalid_images_give_one_line_errors_and_others_are_classified() {
    let dir = TRAINED.0.path();
    let work = TempDir::new_in(dir).unwrap();
    let root = work.path();
    let (png, jpeg) = (encoded(ImageFormat::Png), encoded(ImageFormat::Jpeg));
    let closed = [&jpeg[..jpeg.len() / 2], &[0xff, 0xd9]].concat();
    let mut broken = png.clone();
    let middle = png.len() / 2;
    broken[middle..middle + 40].fill(0);
    let bad: [(&str, &[u8], &str); 11] = [
        ("cut.jpg", &jpeg[..jpeg.len() / 2], "a broken JPEG file: its end is missing"),
        ("closed.jpg", &closed, "a broken JPEG file: its end is missing"),
        ("cut.png", &png[..png.len() / 2], "a broken PNG file: its end is missing"),
        ("damaged.png", &broken, "a broken PNG file: "),
        ("empty.png", b"", "an empty file"),
        ("gif.jpg", b"GIF89a\x01\0\x01\0\0\0\0;", "a GIF image; expected PNG, JPEG or WebP"),
        ("huge.jpg", &huge_image(ImageFormat::Jpeg), "20000 x 20000 pixels are too many"),
        ("huge.png", &huge_image(ImageFormat::Png), "20000 x 20000 pixels are too many"),
        ("palette.png", &png_with_truncated_palette(), "a broken PNG file: its decoder failed: "),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image; expected PNG, JPEG or WebP"),
        ("text.png", b"hello, I am a cat", "not an image"),
    ];
    for (name, bytes, _) in bad {
        write_file(root, &format!("mixed/{name}"), bytes);
    }
    write_file(root, "mixed/good.jpg", &png);
    write_file(root, "mixed/last/good.png", &png);
    fs::create_dir(root.join("empty_folder")).unwrap();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();

    // Each file alone.
    let mut lines: Vec<(String, &str)> =
        bad.iter().map(|(name, _, reason)| (path(&format!("mixed/{name}")), *reason)).collect();
    lines.push((path("missing.png"), "not readable: "));
    lines.push((path("empty_folder"), "no files found in this folder"));
    for (name, reason) in &lines {
        let error = fails(CATS, dir, &["classify", "--model", MODEL, name]);
        assert!(error.starts_with(&format!("skipped {name}: {reason}")), "{error}");
        assert!(error.ends_with("\nerror: 1 of 1 could not be classified\n"), "{error}");
    }
    // All files together, in batches with and without a valid image.
    for batch in ["1", "3", "64"] {
        let output = classify(&[
            "--json",
            "--batch",
            batch,
            &path("empty_folder"),
            &path("mixed"),
            &path("missing.png"),
        ]);
        assert_eq!(output.status.code(), Some(1));
        let items = json_items(&output);
        assert_eq!(items.len(), lines.len() + 2);
        for (name, reason) in &lines {
            let item = items.iter().find(|item| item["path"] == **name).expect("an item for each path");
            assert!(item["error"].as_str().unwrap().starts_with(reason), "{item}");
            assert!(item.get("top").is_none());
        }
        let good: Vec<&Value> = items.iter().filter(|item| item.get("error").is_none()).collect();
        assert_eq!(good.len(), 2);
        assert_eq!(good[0]["top"], good[1]["top"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.ends_with("error: 13 of 15 could not be classified\n"), "{stderr}");
        assert_eq!(stderr.lines().count(), 14, "{stderr}");
    }
    // Without --json, the valid images are still classified.
    let output = classify(&[&path("mixed")]);
    assert_eq!((output.status.code(), output.stdout.iter().filter(|b| **b == b'\n').count()), (Some(1), 2));
}

#[cfg(unix)]
#[test]
fn symlink_loops_end_and_control_characters_are_escaped() {
    use std::os::unix::fs::symlink;
    let dir = TRAINED.0.path();
    let work = TempDir::new_in(dir).unwrap();
    let root = work.path();
    write_file(root, "in/a.png", &encoded(ImageFormat::Png));
    write_file(root, "in/b\u{1b}[2J\n.txt", b"text");
    for (link, target) in
        [("in/round", "."), ("in/up", ".."), ("in/self", "self"), ("in/same.png", "a.png"), ("to", "in")]
    {
        symlink(target, root.join(link)).unwrap();
    }
    // A symlink to a folder is traversed, and a symlink to an image is classified.
    for folder in ["in", "to"] {
        let output = classify(&["--json", root.join(folder).to_str().unwrap()]);
        let items = json_items(&output);
        let names: Vec<PathBuf> = items.iter().map(|item| item["path"].as_str().unwrap().into()).collect();
        let names: Vec<&str> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.png", "b\u{1b}[2J\n.txt", "same.png", "self"], "{items:?}");
        assert_eq!(items[0]["top"], items[2]["top"]);
        assert!(items[3]["error"].as_str().unwrap().starts_with("not readable: "));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("b\\u{1b}[2J\\n.txt: not an image\n"), "{stderr:?}");
        assert_eq!(stderr.lines().count(), 3);
    }
}

#[test]
fn invalid_arguments_and_models_give_one_line_errors() {
    let dir = TRAINED.0.path();
    write_file(dir, "image.png", &encoded(ImageFormat::Png));
    let generator = tiny_cats_models::pretrained::TINYDIT;
    write_file(dir, "generator.onnx", generator);
    write_file(dir, "cut.safetensors", &fs::read(dir.join(MODEL)).unwrap()[..5000]);
    let mut altered = fs::read(dir.join(MODEL)).unwrap();
    let middle = altered.len() / 2;
    altered[middle..middle + 1024].fill(0);
    write_file(dir, "altered.safetensors", &altered);
    let error = |args: &[&str]| fails(CATS, dir, &[&["classify", "image.png"], args].concat());
    for (args, expected) in [
        (&["--model", MODEL, "--top-k", "0"][..], "error: --top-k: expected 1 to 13"),
        (&["--model", MODEL, "--top-k", "14"], "error: --top-k: expected 1 to 13"),
        (&["--model", MODEL, "--batch", "0"], "error: batch: expected 1 to 1024, found 0"),
        (
            &["--model", "generator.onnx"],
            "error: generator.onnx: task: expected a classifier, found a generator",
        ),
        (&["--model", "missing.onnx"], "error: missing.onnx: No such file"),
        (&["--model", "image.png"], "error: image.png: "),
        (&["--model", "cut.safetensors"], "error: cut.safetensors: header: the file is truncated"),
        (&["--model", "altered.safetensors"], "error: altered.safetensors: the checksum does not match"),
    ] {
        let error = error(args);
        assert!(error.starts_with(expected), "{args:?}: {error}");
    }
    let error = fails(CATS, dir, &["classify", "--model", MODEL]);
    assert!(error.contains("IMAGE|DIR"), "{error}");
}

/// The library and the command line make the same predictions with an ONNX file.
#[test]
fn the_library_and_the_command_agree() {
    let dir = TRAINED.0.path();
    succeeds(CATS, dir, &["export", "checkpoints/cats_model.pt", "-o", "embedded.onnx"]);
    let folder = dir.join("synth/Siamese");
    let path = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let output = run(CATS, dir, &["classify", "--model", "embedded.onnx", "--json", path.to_str().unwrap()]);
    let items = json_items(&output);
    let mut classifier = Classifier::open(dir.join("embedded.onnx")).unwrap();
    let image = image::open(&path).unwrap().into_rgb8();
    for prediction in [
        classifier.classify(&[image]).unwrap().remove(0),
        classifier.classify_files(&[path]).unwrap().remove(0).unwrap(),
    ] {
        let first = &prediction.candidates[0];
        assert_eq!(items[0]["top"][0]["class"], *first.class);
        assert_eq!(items[0]["top"][0]["probability"].as_f64().unwrap(), first.probability);
    }
}

#[test]
fn the_released_classifier_is_embedded() {
    let dir = TRAINED.0.path();
    write_file(dir, "any.png", &encoded(ImageFormat::Png));
    let items = json_items(&run(CATS, dir, &["classify", "--json", "--top-k", "13", "any.png"]));
    let top = items[0]["top"].as_array().unwrap();
    let sum: f64 = top.iter().map(|candidate| candidate["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    let classes: BTreeSet<&str> = top.iter().map(|candidate| candidate["class"].as_str().unwrap()).collect();
    assert!(classes.is_superset(&tiny_cats::data::BREEDS.into()) && classes.contains("other"), "{classes:?}");
}
