//! What a million pictures cost in memory. Linux says how much that is.
#![cfg(target_os = "linux")]

use std::{fs, path::Path, sync::Arc};

use candle_core::Device;
use sha2::{Digest, Sha256};
use tiny_cats::{
    data::{AugmentLevel, Cache, Dataset, INDEX, Images, synth},
    train::{Dit, DitOptions, Flow, Loader, Task},
};
use tiny_cats_models::{
    TinyDitConfig,
    random::{Purpose, Stream},
};

const SIZE: usize = 16;
const CLASSES: usize = 10;

/// A line of what the system says of this process, in bytes.
fn memory(line: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    1024.0 * line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap()
}

/// Calls `what`, and returns the most memory that it took at once, too.
fn peak<T>(what: impl FnOnce() -> T) -> (T, f64) {
    // Forgets the highest mark so far.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let done = what();
    (done, memory("VmHWM") - before)
}

/// A folder of so many pictures, a few contents again and again.
fn folder(root: &Path, pictures: usize) {
    let contents = root.join(".contents");
    fs::create_dir(&contents).unwrap();
    for i in 0..100 {
        synth::draw(i % 12, 0, i as u64, 16).save(contents.join(format!("{i}.png"))).unwrap();
    }
    for class in 0..CLASSES {
        let folder = root.join(format!("class_{class}"));
        fs::create_dir(&folder).unwrap();
        for i in 0..pictures / CLASSES {
            let content = contents.join(format!("{}.png", i % 100));
            fs::hard_link(content, folder.join(format!("picture_{i:07}.png"))).unwrap();
        }
    }
}

/// An index that has all of them, as `data index` wrote them before it left out copies.
fn write_index(root: &Path, index: &Path, pictures: usize) {
    let contents: Vec<(usize, String)> = (0..100)
        .map(|i| {
            let bytes = fs::read(root.join(format!(".contents/{i}.png"))).unwrap();
            let sum = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (bytes.len(), sum)
        })
        .collect();
    let mut entries = Vec::with_capacity(pictures);
    for class in 0..CLASSES {
        for i in 0..pictures / CLASSES {
            let (bytes, sha256) = &contents[i % 100];
            entries.push(format!(
                r#"{{"path":"class_{class}/picture_{i:07}.png","split":"train","width":16,"height":16,"bytes":{bytes},"sha256":"{sha256}"}}"#
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

/// Opens the index of so many pictures, decodes them, and makes batches of them for a while.
fn batches_of(pictures: usize, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), pictures);
    let index = dir.path().join(INDEX);
    write_index(dir.path(), &index, pictures);
    let each = |bytes: f64| bytes / pictures as f64;

    let (data, opening) = peak(|| Dataset::open(&index).unwrap());
    assert_eq!(data.files.len(), pictures);
    let text = fs::metadata(&index).unwrap().len() as f64;
    println!(
        "{pictures} pictures: an index of {:.0} bytes each is opened in {:.0} bytes each",
        each(text),
        each(opening)
    );
    assert!(each(opening) < 600.0, "{} bytes", each(opening));

    let cache = Cache::At(dir.path().join(".cache"));
    let before = memory("RssAnon");
    let images = Images::load(&data, SIZE as u32, None, &cache).unwrap();
    let taken = memory("RssAnon") - before;
    assert!(images.notes.is_empty() && images.len() == pictures, "{:?}", images.notes);
    println!("their {} bytes of pixels take {:.0} bytes of memory each", 3 * SIZE * SIZE, each(taken));
    assert!(each(taken) < 250.0, "{} bytes", each(taken));
    drop(data);

    let options = DitOptions {
        network: TinyDitConfig::named("nano", SIZE, CLASSES).unwrap(),
        flow: Flow::default(),
        augmentation: AugmentLevel::Full,
        guidance: 1.0,
        guidance_interval: [0.0, 1.0],
        best: false,
        seed: 1,
        init: None,
    };
    let task = Dit::new(options, images, None, Device::Cpu).unwrap();
    let size = 32;
    let mut loader = Loader::with_workers(task.batches(), size, 2, 2).unwrap();
    let mut stream = Stream::new(1, Purpose::Order, 0);
    let (mut early, mut most) = (0.0f64, 0.0f64);
    let mut position = 0;
    for step in 0..steps {
        // Now and then it goes on elsewhere, over the end of an epoch.
        position = match step % 100 {
            99 => u64::from(1 + stream.below(50)) * pictures as u64 - 100,
            _ => position + size as u64,
        };
        loader.load(position).unwrap();
        // The first half has seen epochs end, whose orders take four bytes a picture.
        let half = if step < steps / 2 { &mut early } else { &mut most };
        *half = memory("RssAnon").max(*half);
    }
    println!("{steps} batches: at most {:.1} MB in the first half, {:.1} MB later", early / 1e6, most / 1e6);
    assert!(most < early + 8e6, "memory grows from {early} to {most} bytes");
    drop(loader);
    assert_eq!(Arc::strong_count(&task.batches()), 2);
}

#[test]
fn batches_of_a_hundred_thousand_pictures_take_no_more_memory_the_longer_they_are_made() {
    batches_of(100_000, 600);
}

#[test]
#[ignore = "takes minutes and a million links on disk; run with --ignored"]
fn batches_of_a_million_pictures_take_no_more_memory_the_longer_they_are_made() {
    batches_of(1_000_000, 5_000);
}
