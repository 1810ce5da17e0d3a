//! Networks that are defined outside of this project are trained, released, verified and planned like its own.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tiny_cats::{
    checkpoint::{self, InitialWeights, ModelOverrides, WeightsSelection, verify},
    data::{
        AugmentLevel, Cache, Dataset, Examples, ImageExamples, Images, PhotoExamples, PhotoOptions, Photos,
        synth::{self, SynthManifest},
    },
    plan::{Prices, Workload, estimate},
    train::{
        Classification, ClassificationOptions, Control, Event, Flow, FlowMatching, FlowMatchingOptions,
        InitialWeightsSource, LrShape, OptimizerOptions, Schedule, Task, TrainOptions, train,
    },
};
use tiny_cats_export::{
    ExportOptions, Generator, LoadOptions, LoadableNetwork, Model, NetworkConfig, Request, export, register,
    to_onnx,
};
use tiny_cats_models::{
    Array, Axis, Init, Input, Network, PredictionType, Result, Role, Scope, TapeOptions, Tensor, Weights,
    init,
    layers::{Conv2d, ConvOptions, Embedding, Linear},
};

const SIDE: usize = 16;

/// A generator for images of any size: two convolutions, with the class and the time added to every position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ConvGenerator {
    channels: usize,
    classes: usize,
}

struct ConvGeneratorLayers<T: Tensor> {
    input: Conv2d<T>,
    class: Embedding<T>,
    output: Conv2d<T>,
}

const CONV_OPTIONS: ConvOptions =
    ConvOptions { stride: 1, padding: 1, dilation: 1, groups: 1, bias: true, init: Init::KaimingOut };

impl Network for ConvGenerator {
    const KIND: &'static str = "conv-generator";
    type Built<T: Tensor> = ConvGeneratorLayers<T>;

    fn inputs(&self) -> Vec<Input> {
        let side = || Axis::free("image_size");
        vec![
            Input::floats("x", [Axis::Fixed(3), side(), side()]),
            Input::floats("t", [0usize; 0]),
            Input::labels("label", self.classes + 1),
        ]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["velocity".into()]
    }

    fn role(&self) -> Role {
        let (classes, null_label) = (self.classes, Some(self.classes));
        Role::Generator { classes, null_label, prediction: PredictionType::Velocity }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<ConvGeneratorLayers<T>> {
        Ok(ConvGeneratorLayers {
            input: Conv2d::with_options(scope.sub("input"), 3, self.channels, 3, CONV_OPTIONS)?,
            class: Embedding::new(scope.sub("class"), self.classes + 1, self.channels)?,
            output: Conv2d::with_options(scope.sub("output"), self.channels, 3, 3, CONV_OPTIONS)?,
        })
    }

    fn forward<T: Tensor>(network: &ConvGeneratorLayers<T>, inputs: &[T]) -> Result<Vec<T>> {
        let [x, t, label] = inputs else { unreachable!("three inputs") };
        let x = network.input.forward(x)?;
        let &[channels, height, width] = x.dims() else { unreachable!("an image") };
        let time = t.sinusoids(channels, 10_000.0, 1000.0)?;
        let shift = network.class.forward(label)?.add(&time)?;
        let tokens = x.reshape(&[channels, height * width])?.permute(&[1, 0])?;
        let tokens = tokens.scale_shift(&shift.affine(0.0, 0.0)?, &shift)?.silu()?;
        let x = tokens.permute(&[1, 0])?.reshape(&[channels, height, width])?;
        Ok(vec![network.output.forward(&x)?])
    }
}

/// A classifier: a convolution, the mean over all positions, and a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ConvClassifier {
    channels: usize,
    classes: usize,
}

impl Network for ConvClassifier {
    const KIND: &'static str = "conv-classifier";
    type Built<T: Tensor> = (Conv2d<T>, Linear<T>);

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("pixels", [3, SIDE, SIDE])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["logits".into()]
    }

    fn role(&self) -> Role {
        Role::Classifier { classes: self.classes }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Self::Built<T>> {
        let options = ConvOptions { stride: 2, ..CONV_OPTIONS };
        Ok((
            Conv2d::with_options(scope.sub("conv"), 3, self.channels, 3, options)?,
            Linear::new(scope.sub("head"), self.channels, self.classes)?,
        ))
    }

    fn forward<T: Tensor>((conv, head): &Self::Built<T>, inputs: &[T]) -> Result<Vec<T>> {
        let x = conv.forward(&inputs[0])?.relu()?;
        let (channels, positions) = (x.dims()[0], x.dims()[1..].iter().product());
        Ok(vec![head.forward(&x.reshape(&[channels, positions])?.mean(1)?)?])
    }
}

fn data(dir: &Path) -> Dataset {
    let root = dir.join("cats");
    if !root.exists() {
        synth::write(&root, &SynthManifest::new(2, 24, 0).unwrap(), |_| {}).unwrap();
    }
    Dataset::open(root).unwrap()
}

fn generator_task<N: LoadableNetwork>(
    network: N,
    dir: &Path,
    init: Option<InitialWeightsSource>,
) -> tiny_cats::train::Result<FlowMatching<N>> {
    let load = || -> Arc<dyn Examples> {
        let images = Images::load(&data(dir), SIDE as u32, None, &Cache::Memory).unwrap();
        Arc::new(ImageExamples::new(images, AugmentLevel::Basic))
    };
    let options = FlowMatchingOptions {
        network,
        flow: Flow::default(),
        guidance: 1.5,
        guidance_interval: [0.0, 1.0],
        best: false,
        seed: 3,
        kind: "conv",
        name: "conv_final".into(),
        init,
    };
    FlowMatching::new(options, load(), Some(load()), Device::Cpu)
}

fn classifier_task<N: LoadableNetwork>(
    network: N,
    dir: &Path,
    crop_size: usize,
) -> tiny_cats::train::Result<Classification<N>> {
    let options = ClassificationOptions {
        network,
        mixup: 0.2,
        label_smoothing: 0.1,
        seed: 3,
        name: "conv_classifier".into(),
        init: None,
    };
    let photo_options = PhotoOptions { image_size: SIDE, crop_size, augmentation: AugmentLevel::Basic };
    let load = || -> tiny_cats::train::Result<Arc<dyn Examples>> {
        let photos = Photos::load(&data(dir), photo_options.short_side(), None, &Cache::Memory)?;
        Ok(Arc::new(PhotoExamples::new(photos, photo_options)?))
    };
    Classification::new(options, load()?, Some(load()?), Device::Cpu)
}

/// Trains for a few steps, checks the released files, and returns the released model.
fn release(task: &mut dyn Task, dir: &Path) -> Model {
    let options = TrainOptions {
        folder: dir.join(task.release_name()),
        from: None,
        schedule: Schedule::new(LrShape::Cosine, 1e-2, 0.0, None, 10, 6).unwrap(),
        optimizer: OptimizerOptions { ema: vec![0.5], ..OptimizerOptions::default() },
        batch: 8,
        accumulation: 1,
        halvings: 0,
        tape: TapeOptions::default(),
        workers: 0,
        save_interval: 3,
        sample_interval: 6,
        log_interval: 1,
        early_stopping: None,
        max_skipped_steps: 0,
        seed: 0,
        configuration: String::new(),
        device: Device::Cpu,
        control: Control::default(),
    };
    let mut losses = Vec::new();
    let files = train(task, &options, &mut |event| {
        if let Event::Step(step) = event {
            losses.push(step.loss);
        }
    })
    .unwrap();
    assert!(losses.len() == 6 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(files[0].ends_with(format!("{}.pt", task.release_name())));
    for file in &files {
        let loaded = checkpoint::open(file, WeightsSelection::Default).unwrap();
        let description = loaded.describe(&ModelOverrides::default()).unwrap();
        assert_eq!(description.meta.config, task.meta().config);
        let onnx = file.with_extension("onnx");
        export(&description.meta, &loaded.weights, &onnx, &ExportOptions::default()).unwrap();
        let report = verify::verify(file, &verify::VerifyOptions::default());
        assert!(report.is_ok() && report.is_complete() && !report.runtimes.is_empty(), "{report}");
        assert!(report.to_string().contains("for images of 16 px") == (task.kind() == "conv"), "{report}");
    }
    checkpoint::open_model(&files[1]).unwrap().0
}

#[test]
fn a_custom_generator_is_trained_released_and_sampled() {
    register::<ConvGenerator>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let network = ConvGenerator { channels: 8, classes: 13 };
    let mut task = generator_task(network.clone(), dir.path(), None).unwrap();
    assert_eq!((task.kind(), task.smallest_batch()), ("conv", 1));
    let settings = task.settings();
    assert_eq!(settings["options"]["network"], serde_json::json!({"channels": 8, "classes": 13}));
    assert!(settings.get("init").is_none() && settings["options"].get("kind").is_none(), "{settings}");

    let model = release(&mut task, dir.path());
    let sampler = &model.generator().unwrap().sampler;
    assert_eq!((model.meta().image_size, sampler.guidance), (SIDE, 1.5));
    let mut generator = Generator::from_model(&model, &LoadOptions::default()).unwrap();
    let images = generator.generate(&Request { count: 2, ..Request::default() }).unwrap();
    assert_eq!((images.len(), images[0].image.dimensions()), (2, (16, 16)));

    let classes = network.role().classes().unwrap();
    let found =
        generator_task(ConvGenerator { classes: classes + 1, ..network.clone() }, dir.path(), None).err();
    assert_eq!(found.unwrap().to_string(), "network: expected the data's 13 classes, found 14");
    let classifier = ConvClassifier { channels: 4, classes: 13 };
    let found = generator_task(classifier, dir.path(), None).err().unwrap().to_string();
    assert_eq!(found, "network: expected a generator, found conv-classifier");
}

#[test]
fn initial_weights_are_read_at_step_0_only() {
    let dir = tempfile::tempdir().unwrap();
    let network = ConvGenerator { channels: 8, classes: 13 };
    let array = Array::new([3], vec![0.5; 3]).unwrap();
    let weights = Weights::from([("output.bias".to_owned(), array.clone())]);
    let path = dir.path().join("other.safetensors");
    let source = InitialWeightsSource::new(path.clone(), move || {
        if !path.exists() {
            return Err(checkpoint::open(&path, WeightsSelection::Default).unwrap_err());
        }
        Ok(InitialWeights { weights: weights.clone(), notes: vec!["one tensor".into()] })
    });
    let task = generator_task(network.clone(), dir.path(), Some(source)).unwrap();
    assert_eq!(task.settings()["init"], "other.safetensors");
    assert!(task.initial_weights(7).is_err());
    std::fs::write(dir.path().join("other.safetensors"), "").unwrap();
    let mut expected = init(&network.specs().unwrap(), 7);
    expected.insert("output.bias".into(), array);
    assert_eq!(task.initial_weights(7).unwrap(), expected);
}

#[test]
fn a_custom_classifier_is_trained_released_and_planned() {
    register::<ConvClassifier>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let network = ConvClassifier { channels: 8, classes: 13 };
    let mut task = classifier_task(network.clone(), dir.path(), SIDE).unwrap();
    // It has no batch normalization.
    assert_eq!(task.smallest_batch(), 1);
    let model = release(&mut task, dir.path());
    assert_eq!(model.classifier().unwrap().preprocessing.resize, 18);

    for (found, expected) in [
        (
            classifier_task(network.clone(), dir.path(), 8).err(),
            "network: expected pixels [batch, 3, 16, 16], found [3, 8, 8]",
        ),
        (classifier_task(network.clone(), dir.path(), 17).err(), "crop size: expected 1 to 16, found 17"),
        (
            classifier_task(ConvClassifier { classes: 4, ..network.clone() }, dir.path(), SIDE).err(),
            "network: expected the data's 13 classes",
        ),
        (
            classifier_task(ConvGenerator { channels: 4, classes: 13 }, dir.path(), SIDE).err(),
            "network: expected a classifier, found conv-generator",
        ),
    ] {
        let error = found.unwrap().to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    let workload = Workload {
        network: NetworkConfig::new(network).unwrap(),
        side: SIDE,
        steps: 10,
        batch: 8,
        accumulation: 1,
        tape: TapeOptions::default(),
        moments: 2,
        averages: 1,
        augmentation: AugmentLevel::Basic,
        eval_flops: 0.0,
    };
    let gpu = "L4".parse().unwrap();
    let settings = tiny_cats::cloud::CloudSettings::default();
    let estimate = estimate(&workload, &gpu, &settings, &Prices::embedded()).unwrap();
    assert_eq!(estimate.source, tiny_cats::plan::SpeedSource::Assumed);
}

/// A network whose kind is never registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct UnregisteredNetwork {
    width: usize,
}

impl Network for UnregisteredNetwork {
    const KIND: &'static str = "unregistered";
    type Built<T: Tensor> = Linear<T>;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("x", [self.width])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["y".into()]
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Linear<T>> {
        Linear::new(scope.sub("fc"), self.width, 2)
    }

    fn forward<T: Tensor>(layer: &Linear<T>, inputs: &[T]) -> Result<Vec<T>> {
        Ok(vec![layer.forward(&inputs[0])?])
    }
}

#[test]
fn a_file_of_an_unregistered_kind_is_verified_except_for_its_network() {
    let dir = tempfile::tempdir().unwrap();
    let network = UnregisteredNetwork { width: 3 };
    let meta =
        tiny_cats_export::ModelMeta::for_network(network.clone(), Default::default(), Vec::new()).unwrap();
    let mut weights = init(&network.specs().unwrap(), 0);
    let path = dir.path().join("own.safetensors");
    checkpoint::write_safetensors(&path, &weights, &meta).unwrap();
    std::fs::write(dir.path().join("own.onnx"), to_onnx(&meta, &weights, 17).unwrap()).unwrap();
    let verify = |flags: &[&str]| {
        let mut command = std::process::Command::new(crate::common::VERIFY);
        let output = command.arg(&path).args(flags).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = verify(&[]);
    let line = "  network    not verified: the kind unregistered is not registered in this program\n";
    assert!(
        code == Some(3) && text.contains(line) && text.ends_with("ok, except for the network\n"),
        "{text}"
    );
    let (code, text) = verify(&["--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &report["unknown_kind"], &report["tensors"]),
        (Some(3), &"unregistered".into(), &2.into())
    );

    weights.get_mut("fc.bias").unwrap().data_mut()[1] = f32::NAN;
    checkpoint::write_safetensors(&path, &weights, &meta).unwrap();
    let (code, text) = verify(&[]);
    assert!(code == Some(1) && text.contains("fc.bias: 1 of 2 numbers are not finite"), "{text}");
}
