//! Networks that this project does not know: registered ones do everything that ours do, and files of others are kept and run.
#![cfg(feature = "candle")]

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tiny_cats_export::{
    Error, ExportOptions, InputArray, META_KEY, Model, ModelMeta, TaskMeta, VerificationCase, export,
    onnx::OnnxFile,
    register, registered_kinds,
    runtime::{InputTensor, RuntimeKind},
    to_onnx,
};
use tiny_cats_models::{
    Array, Axis, Init, Input, Network, ParamSpec, PredictionType, Result, Role, Scope, Sizes, Tensor,
    Weights, init,
    layers::{Conv2d, ConvOptions, Embedding, Linear},
    random::noise,
};

/// Rates an image for a reader: a convolution, the reader's embedding, and a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rater {
    channels: usize,
    readers: usize,
}

struct RaterLayers<T: Tensor> {
    conv: Conv2d<T>,
    reader: Embedding<T>,
    head: Linear<T>,
}

impl Network for Rater {
    const KIND: &'static str = "rater";
    type Built<T: Tensor> = RaterLayers<T>;

    fn inputs(&self) -> Vec<Input> {
        let axes = [Axis::Fixed(2), Axis::free("height"), Axis::free("width")];
        vec![Input::floats("image", axes), Input::labels("reader", self.readers)]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["rating".into(), "features".into()]
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<RaterLayers<T>> {
        let options = ConvOptions { stride: 2, padding: 1, ..ConvOptions::default() };
        Ok(RaterLayers {
            conv: Conv2d::with_options(scope.sub("conv"), 2, self.channels, 3, options)?,
            reader: Embedding::new(scope.sub("reader"), self.readers, self.channels)?,
            head: Linear::new(scope.sub("head"), self.channels, 3)?,
        })
    }

    fn forward<T: Tensor>(network: &RaterLayers<T>, inputs: &[T]) -> Result<Vec<T>> {
        let x = network.conv.forward(&inputs[0])?.relu()?;
        let (channels, positions) = (x.dims()[0], x.dims()[1..].iter().product());
        let features = x.reshape(&[channels, positions])?.mean(1)?;
        let rating = network.head.forward(&features.add(&network.reader.forward(&inputs[1])?)?)?;
        Ok(vec![rating, features])
    }
}

/// Another network of the same kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OtherRater {
    width: usize,
}

impl Network for OtherRater {
    const KIND: &'static str = Rater::KIND;
    type Built<T: Tensor> = Linear<T>;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("x", [self.width])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["y".into()]
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Linear<T>> {
        Linear::new(scope.sub("fc"), self.width, 1)
    }

    fn forward<T: Tensor>(layer: &Linear<T>, inputs: &[T]) -> Result<Vec<T>> {
        Ok(vec![layer.forward(&inputs[0])?])
    }
}

/// A generator that no test registers: a convolution of the image, plus an offset of its class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unregistered {
    side: usize,
    classes: usize,
}

impl Network for Unregistered {
    const KIND: &'static str = "unregistered";
    type Built<T: Tensor> = (Conv2d<T>, Embedding<T>);

    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::floats("x", [3, self.side, self.side]),
            Input::floats("t", [0usize; 0]),
            Input::labels("label", self.classes),
        ]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["prediction".into()]
    }

    fn role(&self) -> Role {
        Role::Generator { classes: self.classes, null_label: None, prediction: PredictionType::Velocity }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Self::Built<T>> {
        let options = ConvOptions { padding: 1, ..ConvOptions::default() };
        let values = 3 * self.side * self.side;
        Ok((
            Conv2d::with_options(scope.sub("conv"), 3, 3, 3, options)?,
            Embedding::new(scope.sub("class"), self.classes, values)?,
        ))
    }

    fn forward<T: Tensor>((conv, class): &Self::Built<T>, inputs: &[T]) -> Result<Vec<T>> {
        let [x, t, label] = inputs else { unreachable!("three inputs") };
        let values = x.dims().iter().product();
        let time = t.sinusoids(values, 10_000.0, 1.0)?;
        let offset = class.forward(label)?.add(&time)?.reshape(x.dims())?;
        Ok(vec![conv.forward(x)?.add(&offset)?])
    }
}

/// Returns initial weights in which no parameter is zero.
fn weights(mut specs: Vec<ParamSpec>) -> Weights {
    for spec in specs.iter_mut().filter(|spec| spec.init == Init::Zeros) {
        spec.init = Init::Normal(0.3);
    }
    init(&specs, 1)
}

fn assert_close(found: &Array, expected: &Array, name: RuntimeKind) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    for (a, b) in found.data().iter().zip(expected.data()) {
        assert!((a - b).abs() < 1e-4, "{name}: {a}, expected {b}");
    }
}

#[test]
fn a_registered_network_is_exported_verified_and_loaded_on_every_runtime() {
    register::<Rater>().unwrap();
    register::<Rater>().unwrap();
    assert!(registered_kinds().contains(&"rater"));
    let error = register::<OtherRater>().unwrap_err().to_string();
    assert_eq!(error, "kind: another network is registered as rater");

    let network = Rater { channels: 6, readers: 5 };
    let sizes = Sizes::from([("height".into(), 9), ("width".into(), 12)]);
    let meta = ModelMeta::for_network(network.clone(), sizes, Vec::new()).unwrap();
    assert_eq!((meta.image_size, &meta.task), (0, &TaskMeta::Other {}));
    let read = ModelMeta::from_json(&meta.to_json(), "rater").unwrap();
    assert_eq!((&read, read.config.downcast()), (&meta, Some(&network)));

    let weights = weights(network.specs().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rater.onnx");
    let image = Array::new([4, 2, 9, 12], noise(5, 0, 4 * 2 * 9 * 12)).unwrap();
    let readers = [4, 0, 1, 1];
    let case = VerificationCase {
        inputs: vec![InputArray::Floats(image.clone()), InputArray::Labels(readers.to_vec())],
    };
    let options = ExportOptions { cases: vec![case], ..ExportOptions::default() };
    let report = export(&meta, &weights, &path, &options).unwrap();
    assert!(report.passed && report.batches == [1, 3, 4], "{report:?}");
    let mut kinds = crate::common::required_runtimes(report.opset);
    kinds.push(RuntimeKind::Native);
    for kind in &kinds {
        assert!(report.runtimes.iter().any(|r| r.runtime == kind.name() && r.passed), "{kind}: {report:?}");
    }

    kinds.push(RuntimeKind::Candle);
    let inputs = [("image", InputTensor::Floats(&image)), ("reader", InputTensor::Labels(&readers))];
    let file = Model::open(&path).unwrap();
    assert_eq!(*file.meta(), meta);
    let model = Model::from_weights(meta, weights);
    let expected = model.load(RuntimeKind::Candle).unwrap().run(&inputs).unwrap();
    let features = model.load(RuntimeKind::Candle).unwrap().run_output(&inputs, "features").unwrap();
    assert_eq!((expected.dims(), features.dims()), (&[4, 3][..], &[4, 6][..]));
    for kind in kinds {
        for model in [&file, &model] {
            let mut session = model.load(kind).unwrap();
            assert_close(&session.run(&inputs).unwrap(), &expected, kind);
            assert_eq!(session.outputs()[0], "rating");
            let unknown = session.run(&[inputs[0], ("writer", InputTensor::Labels(&readers))]);
            assert!(unknown.is_err(), "{kind}");
        }
        // Graphs have the main output only.
        if !kind.can_run_graphs() {
            let found = file.load(kind).unwrap().run_output(&inputs, "features").unwrap();
            assert_close(&found, &features, kind);
        }
    }
    assert!(matches!(file.load_generator(RuntimeKind::Native), Err(Error::File { .. })));
}

#[test]
fn files_of_an_unregistered_kind_are_kept_and_run_as_graphs() {
    let network = Unregistered { side: 8, classes: 3 };
    let names = ["Bengal", "Birman", "Siamese"].map(String::from).to_vec();
    let mut meta = ModelMeta::for_network(network.clone(), Sizes::new(), names.clone()).unwrap();
    let TaskMeta::Generator(task) = &mut meta.task else { panic!("{meta:?}") };
    task.sampler.steps = 7;
    let weights = weights(network.specs().unwrap());
    let bytes = to_onnx(&meta, &weights, 17).unwrap();
    let stored = OnnxFile::from_bytes(bytes.clone(), "cat.onnx").unwrap().metadata()[META_KEY].clone();
    let model = Model::from_bytes(bytes, "cat.onnx").unwrap();

    let found = model.meta();
    assert!(!found.config.is_known() && matches!(found.task, TaskMeta::Unknown(_)), "{found:?}");
    assert_eq!((found.config.kind(), found.image_size, &found.classes), ("unregistered", 8, &names));
    assert_eq!(found.config.to_string(), "a network of the unknown kind unregistered");
    let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
    assert_eq!(json(&found.to_json()), json(&stored));
    assert_eq!(ModelMeta::from_json(&found.to_json(), "cat.onnx").unwrap(), *found);

    let x = Array::new([2, 3, 8, 8], noise(3, 0, 2 * 3 * 8 * 8)).unwrap();
    let t = Array::new([2], vec![0.2, 0.7]).unwrap();
    let inputs = [
        ("x", InputTensor::Floats(&x)),
        ("t", InputTensor::Floats(&t)),
        ("label", InputTensor::Labels(&[2, 0])),
    ];
    let known = Model::from_weights(meta.clone(), weights.clone());
    let expected = known.load(RuntimeKind::Native).unwrap().run(&inputs).unwrap();
    for kind in crate::common::required_runtimes(17) {
        assert_close(&model.load(kind).unwrap().run(&inputs).unwrap(), &expected, kind);
    }
    let unknown_kind = |error: &Error| matches!(error, Error::UnknownKind { kind } if kind == "unregistered");
    for kind in [RuntimeKind::Native, RuntimeKind::Candle] {
        let error = model.load(kind).err().unwrap();
        assert!(unknown_kind(&error), "{error}");
    }
    let error = model.weights().unwrap_err();
    assert!(unknown_kind(&error), "{error}");
    let error = export(&meta, &weights, std::path::Path::new("cat.onnx"), &ExportOptions::default());
    assert!(unknown_kind(error.as_ref().unwrap_err()), "{error:?}");
}
