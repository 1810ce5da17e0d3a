//! Tests of the classifier API.
#![cfg(feature = "candle")]

use std::path::Path;

use image::{Rgb, RgbImage};
use tiny_cats_export::{
    Classifier, Error, LoadOptions, Model, ModelMeta, image_sizes, runtime::RuntimeKind, to_onnx,
};
use tiny_cats_models::{
    Array, Network as _, ResNetConfig, Sizes, TinyDitConfig, Weights, init, random::noise,
};

fn classifier() -> (ModelMeta, Weights) {
    let config = ResNetConfig { width: 8, ..ResNetConfig::named("resnet18", 5).unwrap() };
    let classes = ["Bengal", "Birman", "Persian", "Sphynx", "other"].map(String::from).to_vec();
    let mut weights = init(&config.specs().unwrap(), 3);
    // A head with larger weights, so that the predictions for the images differ clearly.
    let head = weights.get_mut("fc.weight").unwrap();
    let values = noise(1, 0, head.data().len()).iter().map(|v| v * 0.1).collect();
    *head = Array::new(head.dims(), values).unwrap();
    (ModelMeta::for_network(config.clone(), image_sizes(32), classes).unwrap(), weights)
}

/// Returns images of several shapes.
fn images() -> Vec<RgbImage> {
    let image = |i: u32| {
        let pixel = move |x: u32, y: u32| {
            Rgb([(x * (3 + i)) as u8, (y * (7 - i) + 40 * i) as u8, ((x * y) >> i) as u8])
        };
        RgbImage::from_fn(40 + 13 * i, 90 - 11 * i, pixel)
    };
    (0..7).map(image).collect()
}

#[test]
fn predictions_agree_on_all_runtimes_and_batches() {
    let (meta, weights) = classifier();
    let model = Model::from_bytes(to_onnx(&meta, &weights, 17).unwrap(), "cat.onnx").unwrap();
    let images = images();
    let mut reference = None;
    let mut tested = Vec::new();
    for runtime in RuntimeKind::ALL.into_iter().filter(|kind| kind.version().is_ok()) {
        for batch in [16, 3, 1] {
            let options = LoadOptions { runtime: Some(runtime), batch };
            let mut classifier = Classifier::from_model(&model, &options).unwrap();
            let predictions = classifier.classify(&images).unwrap();
            let rows: Vec<Vec<f64>> = predictions
                .iter()
                .map(|prediction| {
                    let mut candidates = prediction.candidates.clone();
                    assert!(candidates.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
                    candidates.sort_by_key(|c| c.label);
                    assert!(candidates.iter().zip(&meta.classes).all(|(c, name)| c.class == *name));
                    candidates.into_iter().map(|c| c.probability).collect()
                })
                .collect();
            let reference = reference.get_or_insert_with(|| rows.clone());
            assert_eq!(rows.len(), images.len());
            for (a, b) in reference.iter().flatten().zip(rows.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{runtime}, batch {batch}: {a} and {b}");
            }
        }
        tested.push(runtime);
    }
    assert!(crate::common::required_runtimes(17).iter().all(|kind| tested.contains(kind)), "{tested:?}");
    let rows = reference.unwrap();
    let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(rows.windows(2).all(|pair| differ(&pair[0], &pair[1])), "predictions differ: {rows:?}");
}

#[test]
fn files_are_classified_as_their_images_and_errors_do_not_stop_others() {
    let (meta, weights) = classifier();
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (i, image) in images().iter().enumerate() {
        paths.push(dir.path().join(format!("{i}.png")));
        image.save(&paths[i]).unwrap();
    }
    std::fs::write(&paths[2], "not an image").unwrap();
    std::fs::remove_file(&paths[4]).unwrap();
    let model = Model::from_weights(meta, weights);
    for batch in [1, 2, 16] {
        let mut classifier =
            Classifier::from_model(&model, &LoadOptions { batch, ..LoadOptions::default() }).unwrap();
        let expected = classifier.classify(&images()).unwrap();
        let files = classifier.classify_files(&paths).unwrap();
        assert_eq!(files.len(), paths.len());
        for (i, result) in files.into_iter().enumerate() {
            match (i, result) {
                (2, Err(e)) => assert!(e.to_string().ends_with("2.png: not an image"), "{e}"),
                (4, Err(e)) => assert!(e.to_string().contains("4.png: not readable: "), "{e}"),
                (_, result) => assert_eq!(result.unwrap(), expected[i]),
            }
        }
    }
}

#[test]
fn invalid_input_gives_one_line_errors() {
    let (meta, mut weights) = classifier();
    let model = Model::from_weights(meta.clone(), weights.clone());
    for batch in [0, 1 << 20] {
        let options = LoadOptions { batch, ..LoadOptions::default() };
        let error = Classifier::from_model(&model, &options).unwrap_err();
        assert!(matches!(error, Error::Request { field: "batch", .. }), "{error}");
    }
    let mut classifier = Classifier::from_model(&model, &LoadOptions::default()).unwrap();
    assert!(classifier.classify(&[]).unwrap().is_empty());
    assert!(classifier.classify_files(&[] as &[&Path]).unwrap().is_empty());
    let error = classifier.classify(&[RgbImage::new(9, 9), RgbImage::new(0, 9)]).unwrap_err();
    assert_eq!(error.to_string(), "images: number 1 has no pixels");

    let config = TinyDitConfig::named("nano", 32, 5).unwrap();
    let generator = ModelMeta::for_network(config.clone(), Sizes::new(), meta.classes.clone()).unwrap();
    let generator = Model::from_weights(generator, init(&config.specs().unwrap(), 1));
    let error = Classifier::from_model(&generator, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("expected a classifier, found a generator of 5 classes"), "{error}");

    weights.get_mut("fc.bias").unwrap().data_mut()[1] = f32::NAN;
    let damaged = Model::from_weights(meta, weights);
    let options = LoadOptions { runtime: Some(RuntimeKind::Candle), ..LoadOptions::default() };
    let mut classifier = Classifier::from_model(&damaged, &options).unwrap();
    let error = classifier.classify(&images()).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}
