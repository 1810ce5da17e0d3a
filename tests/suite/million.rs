//! The memory that data sets of up to a million images use, as measured by Linux.
#![cfg(target_os = "linux")]

use std::{fs, path::Path, sync::Arc};

use candle_core::Device;
use sha2::{Digest, Sha256};
use tiny_cats::{
    data::{AugmentLevel, Cache, Dataset, INDEX, ImageExamples, Images, synth},
    train::{Flow, FlowMatching, FlowMatchingOptions, Loader, Task},
};
use tiny_cats_models::{
    TinyDitConfig,
    random::{Purpose, Stream},
};

const SIZE: usize = 16;
const CLASSES: usize = 10;

/// A line of `/proc/self/status`, in bytes.
fn memory(line: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    1024.0 * line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap()
}

/// Calls `function`. Returns its result and its peak memory in bytes.
fn peak<T>(function: impl FnOnce() -> T) -> (T, f64) {
    // Resets VmHWM, the peak.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let result = function();
    (result, memory("VmHWM") - before)
}

/// Writes a data set of `count` images, which are hard links to 100 files.
fn write_images(root: &Path, count: usize) {
    let contents = root.join(".contents");
    fs::create_dir(&contents).unwrap();
    for i in 0..100 {
        synth::draw(i % 12, 0, i as u64, 16).save(contents.join(format!("{i}.png"))).unwrap();
    }
    for class in 0..CLASSES {
        let folder = root.join(format!("class_{class}"));
        fs::create_dir(&folder).unwrap();
        for i in 0..count / CLASSES {
            let content = contents.join(format!("{}.png", i % 100));
            fs::hard_link(content, folder.join(format!("image_{i:07}.png"))).unwrap();
        }
    }
}

/// Writes an index of all images. (`data index` would skip the duplicates.)
fn write_index(root: &Path, index: &Path, count: usize) {
    let contents: Vec<(usize, String)> = (0..100)
        .map(|i| {
            let bytes = fs::read(root.join(format!(".contents/{i}.png"))).unwrap();
            let sum = tiny_cats_export::hex(&Sha256::digest(&bytes));
            (bytes.len(), sum)
        })
        .collect();
    let mut entries = Vec::with_capacity(count);
    for class in 0..CLASSES {
        for i in 0..count / CLASSES {
            let (bytes, sha256) = &contents[i % 100];
            entries.push(format!(
                r#"{{"path":"class_{class}/image_{i:07}.png","split":"train","width":16,"height":16,"bytes":{bytes},"sha256":"{sha256}"}}"#
            ));
        }
    }
    let classes: Vec<String> = (0..CLASSES).map(|class| format!("\"class_{class}\"")).collect();
    let text = format!(
        r#"{{"format":"tiny-cats index","version":1,"folder":".","split":[80,10,10],"classes":[{}],"pictures":[{}],"skipped":[]}}"#,
        classes.join(","),
        entries.join(",\n")
    );
    fs::write(index, text).unwrap();
}

/// Opens an index of `count` images, decodes them, loads `steps` batches, and checks the memory of each stage.
fn check_memory(count: usize, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), count);
    let index = dir.path().join(INDEX);
    write_index(dir.path(), &index, count);
    let per_image = |bytes: f64| bytes / count as f64;

    let (data, opening) = peak(|| Dataset::open(&index).unwrap());
    assert_eq!(data.files.len(), count);
    let text = fs::metadata(&index).unwrap().len() as f64;
    println!(
        "{count} images: an index of {:.0} bytes per image takes {:.0} bytes of memory per image",
        per_image(text),
        per_image(opening)
    );
    assert!(per_image(opening) < 600.0, "{} bytes per image", per_image(opening));

    let cache = Cache::Folder(dir.path().join(".cache"));
    let before = memory("RssAnon");
    let images = Images::load(&data, SIZE as u32, None, &cache).unwrap();
    let used = memory("RssAnon") - before;
    assert!(images.notes.is_empty() && images.len() == count, "{:?}", images.notes);
    println!("{} bytes of pixels take {:.0} bytes of memory per image", 3 * SIZE * SIZE, per_image(used));
    assert!(per_image(used) < 250.0, "{} bytes per image", per_image(used));
    drop(data);

    let options = FlowMatchingOptions {
        network: TinyDitConfig::named("nano", SIZE, CLASSES).unwrap(),
        flow: Flow::default(),
        guidance: 1.0,
        guidance_interval: [0.0, 1.0],
        best: false,
        seed: 1,
        kind: "dit",
        name: "tinydit_final".into(),
        init: None,
    };
    let task = FlowMatching::new(
        options,
        Arc::new(ImageExamples::new(images, AugmentLevel::Full)),
        None,
        Device::Cpu,
    )
    .unwrap();
    let size = 32;
    let mut loader = Loader::with_workers(task.batches(), size, 2, 2).unwrap();
    let mut stream = Stream::new(1, Purpose::Order, 0);
    let (mut first_half, mut second_half) = (0.0f64, 0.0f64);
    let mut position = 0;
    for step in 0..steps {
        // Every 100 steps, the position jumps to the end of a random epoch.
        position = match step % 100 {
            99 => u64::from(1 + stream.uniform_int(50)) * count as u64 - 100,
            _ => position + size as u64,
        };
        loader.load(position).unwrap();
        // An epoch's order takes 4 bytes per image; the first half includes the end of an epoch, too.
        let max = if step < steps / 2 { &mut first_half } else { &mut second_half };
        *max = memory("RssAnon").max(*max);
    }
    println!(
        "{steps} batches: at most {:.1} MB in the first half, {:.1} MB in the second",
        first_half / 1e6,
        second_half / 1e6
    );
    assert!(second_half < first_half + 8e6, "memory grows from {first_half} to {second_half} bytes");
    drop(loader);
    assert_eq!(Arc::strong_count(&task.batches()), 2);
}

#[test]
fn loading_100_000_images_takes_constant_memory() {
    check_memory(100_000, 600);
}

#[test]
#[ignore = "takes minutes and creates a million hard links; run with --ignored"]
fn loading_a_million_images_takes_constant_memory() {
    check_memory(1_000_000, 5_000);
}
