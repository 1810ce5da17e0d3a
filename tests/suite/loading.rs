//! What networks are trained on does not depend on who prepares it.

use std::sync::Arc;

use candle_core::Device;
use tempfile::TempDir;
use tiny_cats::{
    data::{
        AugmentLevel, Cache, Dataset, Images, Photos,
        synth::{self, SynthManifest},
    },
    train::{Batch, BatchSource, Classifier, ClassifierOptions, Dit, DitOptions, Flow, Loader, Task},
};
use tiny_cats_models::{
    ResNetConfig, TinyDitConfig,
    random::{Purpose, Stream},
};

const SIZE: usize = 32;

/// Both tasks' batches of the same pictures, changed as much as can be.
fn tasks() -> (TempDir, [Arc<dyn BatchSource>; 2]) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("cats");
    synth::write(&root, &SynthManifest::new(2, 40, 0).unwrap(), |_| {}).unwrap();
    let data = Dataset::open(root).unwrap();
    let cache = Cache::At(dir.path().join("cache"));
    let generator = DitOptions {
        network: TinyDitConfig::named("nano", SIZE, 13).unwrap(),
        flow: Flow::default(),
        augmentation: AugmentLevel::Full,
        guidance: 1.0,
        guidance_interval: [0.0, 1.0],
        best: false,
        seed: 3,
        init: None,
    };
    let classifier = ClassifierOptions {
        network: ResNetConfig { width: 8, ..ResNetConfig::named("resnet18", 13).unwrap() },
        image_size: SIZE,
        crop_size: SIZE,
        augmentation: AugmentLevel::Full,
        mixup: 0.3,
        label_smoothing: 0.1,
        seed: 3,
        name: "cats".into(),
        init: None,
    };
    let images = Images::load(&data, SIZE as u32, None, &cache).unwrap();
    let photos = Photos::load(&data, classifier.short_side(), None, &cache).unwrap();
    let generator = Dit::new(generator, images, None, Device::Cpu).unwrap();
    let classifier = Classifier::new(classifier, photos, None, Device::Cpu).unwrap();
    (dir, [generator.batches(), classifier.batches()])
}

/// Every bit of a batch.
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
fn batches_are_the_same_to_the_last_bit_whoever_makes_them_and_after_whatever_jumps() {
    let (_dir, tasks) = tasks();
    let mut stream = Stream::new(5, Purpose::Order, 0);
    // The data have 26 pictures: some of these runs end an epoch in the middle of a batch.
    let mut positions = Vec::new();
    for _ in 0..8 {
        let start = u64::from(stream.below(200));
        positions.extend((0..u64::from(1 + stream.below(4))).map(|i| start + 8 * i));
    }
    for task in tasks {
        let all = |workers: usize| -> Vec<Vec<Vec<u8>>> {
            let mut loader = Loader::with_workers(task.clone(), 8, workers, 2).unwrap();
            positions.iter().map(|&position| bytes(&loader.load(position).unwrap())).collect()
        };
        let expected = all(0);
        for (places, pair) in positions.windows(2).zip(expected.windows(2)) {
            assert_eq!(places[0] == places[1], pair[0] == pair[1], "{places:?}");
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
fn what_a_generator_is_shown_at_a_position_does_not_depend_on_the_batch_it_is_in() {
    let (_dir, [generator, _]) = tasks();
    let batch = bytes(&generator.batch(21, 10).unwrap());
    let alone: Vec<_> = (21..31).map(|position| bytes(&generator.batch(position, 1).unwrap())).collect();
    for (i, tensor) in batch.iter().enumerate() {
        assert!(*tensor == alone.iter().flat_map(|one| one[i].clone()).collect::<Vec<u8>>(), "tensor {i}");
    }
}
