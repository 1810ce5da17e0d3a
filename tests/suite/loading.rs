//! Training batches do not depend on the number of workers or threads, nor on the order of loading.

use std::sync::Arc;

use candle_core::Device;
use tempfile::TempDir;
use tiny_cats::{
    data::{
        AugmentLevel, Cache, Dataset, ImageExamples, Images, PhotoExamples, PhotoOptions, Photos,
        synth::{self, SynthManifest},
    },
    train::{
        Batch, BatchSource, Classification, ClassificationOptions, Flow, FlowMatching, FlowMatchingOptions,
        Loader, Task,
    },
};
use tiny_cats_models::{
    ResNetConfig, TinyDitConfig,
    random::{Purpose, Stream},
};

const SIZE: usize = 32;

/// The batch sources of both tasks for the same images, with full augmentation.
fn tasks() -> (TempDir, [Arc<dyn BatchSource>; 2]) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("cats");
    synth::write(&root, &SynthManifest::new(2, 40, 0).unwrap(), |_| {}).unwrap();
    let data = Dataset::open(root).unwrap();
    let cache = Cache::Folder(dir.path().join("cache"));
    let generator = FlowMatchingOptions {
        network: TinyDitConfig::named("nano", SIZE, 13).unwrap(),
        flow: Flow::default(),
        guidance: 1.0,
        guidance_interval: [0.0, 1.0],
        best: false,
        seed: 3,
        kind: "dit",
        name: "tinydit_final".into(),
        init: None,
    };
    let classifier = ClassificationOptions {
        network: ResNetConfig { width: 8, ..ResNetConfig::named("resnet18", 13).unwrap() },
        mixup: 0.3,
        label_smoothing: 0.1,
        seed: 3,
        name: "cats".into(),
        init: None,
    };
    let images = Images::load(&data, SIZE as u32, None, &cache).unwrap();
    let images = Arc::new(ImageExamples::new(images, AugmentLevel::Full));
    let options = PhotoOptions { image_size: SIZE, crop_size: SIZE, augmentation: AugmentLevel::Full };
    let photos = Photos::load(&data, options.short_side(), None, &cache).unwrap();
    let photos = Arc::new(PhotoExamples::new(photos, options).unwrap());
    let generator = FlowMatching::new(generator, images, None, Device::Cpu).unwrap();
    let classifier = Classification::new(classifier, photos, None, Device::Cpu).unwrap();
    (dir, [generator.batches(), classifier.batches()])
}

/// The bytes of all tensors of a batch.
fn bytes(batch: &Batch) -> Vec<Vec<u8>> {
    let tensor = |tensor: &candle_core::Tensor| -> Vec<u8> {
        let tensor = tensor.flatten_all().unwrap();
        match tensor.to_vec1::<f32>() {
            Ok(values) => values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect(),
            Err(_) => tensor.to_vec1::<u32>().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    };
    batch.0.iter().map(tensor).collect()
}

#[test]
fn batches_are_identical_for_any_number_of_workers_and_order_of_positions() {
    let (_dir, tasks) = tasks();
    let mut stream = Stream::new(5, Purpose::Order, 0);
    // The data set has 26 images: some of these sequences end an epoch within a batch.
    let mut positions = Vec::new();
    for _ in 0..8 {
        let start = u64::from(stream.uniform_int(200));
        positions.extend((0..u64::from(1 + stream.uniform_int(4))).map(|i| start + 8 * i));
    }
    for task in tasks {
        let all = |workers: usize| -> Vec<Vec<Vec<u8>>> {
            let mut loader = Loader::with_workers(task.clone(), 8, workers, 2).unwrap();
            positions.iter().map(|&position| bytes(&loader.load(position).unwrap())).collect()
        };
        let expected = all(0);
        for (pair, contents) in positions.windows(2).zip(expected.windows(2)) {
            assert_eq!(pair[0] == pair[1], contents[0] == contents[1], "{pair:?}");
        }
        for workers in [1, 3] {
            assert!(all(workers) == expected, "{workers} workers");
        }
        for pool in [1, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(pool).build().unwrap();
            assert!(pool.install(|| all(0)) == expected);
        }
    }
}

#[test]
fn a_generator_item_does_not_depend_on_its_batch() {
    let (_dir, [generator, _]) = tasks();
    let batch = bytes(&generator.batch(21, 10).unwrap());
    let single: Vec<_> = (21..31).map(|position| bytes(&generator.batch(position, 1).unwrap())).collect();
    for (i, tensor) in batch.iter().enumerate() {
        assert!(*tensor == single.iter().flat_map(|item| item[i].clone()).collect::<Vec<u8>>(), "tensor {i}");
    }
}
