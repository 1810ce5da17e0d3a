//! The tasks train on arrays in memory, without images: a classifier and a generator of points in the plane.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tiny_cats::{
    checkpoint::{WeightsSelection, open_model, verify},
    data::{ArrayExamples, Examples},
    train::{
        Batch, BatchSource, Classification, ClassificationOptions, Error, Event, FlowMatching,
        FlowMatchingOptions, LrShape, OptimizerOptions, Sample, Schedule, Score, Task, TrainOptions, train,
    },
};
use tiny_cats_export::{ModelMeta, export, register};
use tiny_cats_models::{
    Input, Network, PredictionType, Result, Role, Scope, TapeOptions, Tensor, Weights,
    candle::Params,
    layers::{Dropout, Embedding, Linear},
    random::{Purpose, Stream},
    tape::{Tape, Var},
};

const CLASSES: usize = 3;
const HIDDEN: usize = 16;

/// A classifier of points with dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PointClassifier {
    dropout: f64,
}

struct PointClassifierLayers<T: Tensor> {
    hidden: Linear<T>,
    dropout: Dropout,
    output: Linear<T>,
}

impl Network for PointClassifier {
    const KIND: &'static str = "point-classifier";
    type Built<T: Tensor> = PointClassifierLayers<T>;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("point", [2])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["logits".into()]
    }

    fn role(&self) -> Role {
        Role::Classifier { classes: CLASSES }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Self::Built<T>> {
        Ok(PointClassifierLayers {
            // A name that DataParallel of PyTorch would have added.
            hidden: Linear::new(scope.sub("module").sub("hidden"), 2, HIDDEN)?,
            dropout: Dropout::new(self.dropout)?,
            output: Linear::new(scope.sub("output"), HIDDEN, CLASSES)?,
        })
    }

    fn forward<T: Tensor>(network: &Self::Built<T>, inputs: &[T]) -> Result<Vec<T>> {
        let (hidden, dropout) = (network.hidden.clone(), network.dropout);
        let x = T::checkpoint([&inputs[0]], move |[x]| dropout.forward(&hidden.forward(x)?.silu()?))?;
        Ok(vec![network.output.forward(&x)?])
    }
}

/// A generator of points: an MLP that predicts the velocity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PointGenerator {}

struct PointGeneratorLayers<T: Tensor> {
    x: Linear<T>,
    class: Embedding<T>,
    output: Linear<T>,
}

impl Network for PointGenerator {
    const KIND: &'static str = "point-generator";
    type Built<T: Tensor> = PointGeneratorLayers<T>;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("x", [2]), Input::floats("t", [0usize; 0]), Input::labels("label", CLASSES + 1)]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["velocity".into()]
    }

    fn role(&self) -> Role {
        let null_label = Some(CLASSES);
        Role::Generator { classes: CLASSES, null_label, prediction: PredictionType::Velocity }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<Self::Built<T>> {
        Ok(PointGeneratorLayers {
            x: Linear::new(scope.sub("x"), 2, HIDDEN)?,
            class: Embedding::new(scope.sub("class"), CLASSES + 1, HIDDEN)?,
            output: Linear::new(scope.sub("output"), HIDDEN, 2)?,
        })
    }

    fn forward<T: Tensor>(network: &Self::Built<T>, inputs: &[T]) -> Result<Vec<T>> {
        let [x, t, label] = inputs else { unreachable!("three inputs") };
        let time = t.sinusoids(HIDDEN, 10_000.0, 1000.0)?;
        let hidden = network.x.forward(x)?.add(&network.class.forward(label)?)?.add(&time)?.silu()?;
        Ok(vec![network.output.forward(&hidden)?])
    }
}

/// Points around three centers, which are their classes.
fn points(seed: u64) -> Arc<dyn Examples> {
    let centers = [[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]];
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    let mut stream = Stream::new(seed, Purpose::Synthetic, 0);
    for label in 0..60 {
        let class = label % CLASSES;
        values.extend(centers[class].map(|center: f32| center + 0.3 * stream.normal() as f32));
        labels.push(class as u32);
    }
    let classes = ["left", "right", "upper"].map(String::from).to_vec();
    Arc::new(ArrayExamples::new([2], values, labels, classes).unwrap())
}

fn classifier() -> Classification<PointClassifier> {
    let options = ClassificationOptions::new(PointClassifier { dropout: 0.5 });
    Classification::new(options, points(0), Some(points(1)), Device::Cpu).unwrap()
}

fn options(folder: &Path, steps: u64) -> TrainOptions {
    TrainOptions {
        schedule: Schedule::new(LrShape::Constant, 1e-2, 0.0, None, 0, steps).unwrap(),
        optimizer: OptimizerOptions { ema: vec![0.9], ..OptimizerOptions::default() },
        sample_interval: 10,
        ..TrainOptions::new(folder, steps, 12).unwrap()
    }
}

/// A task with samples of its own that fails after some batches.
struct WithText<T> {
    task: T,
    batches: usize,
}

impl<T: Task> Task for WithText<T> {
    fn kind(&self) -> &'static str {
        self.task.kind()
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.task.batches()
    }

    fn settings(&self) -> serde_json::Value {
        self.task.settings()
    }

    fn meta(&self) -> ModelMeta {
        self.task.meta()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> tiny_cats::train::Result<Var> {
        let Some(batches) = self.batches.checked_sub(1) else {
            return Err(Error::Preflight("out of batches".into()));
        };
        self.batches = batches;
        self.task.loss(tape, params, batch)
    }

    fn evaluate(&mut self, weights: &Weights) -> tiny_cats::train::Result<Vec<Score>> {
        self.task.evaluate(weights)
    }

    fn sample(&mut self, weights: &Weights) -> tiny_cats::train::Result<Option<Sample>> {
        Ok(Some(Sample::Text(format!("{} tensors\n", weights.len()))))
    }
}

#[test]
fn a_classifier_of_vectors_learns_is_released_and_verified() {
    register::<PointClassifier>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut task, mut scores) = (classifier(), Vec::new());
    assert_eq!(task.settings()["items"], 60);
    let files = train(&mut task, &options(&dir.path().join("run"), 200), &mut |event| {
        if let Event::Evaluated { scores: found, .. } = event {
            scores.push(found[0].value);
        }
    })
    .unwrap();
    assert!(*scores.last().unwrap() > 0.9, "{scores:?}");
    for file in &files {
        let weights = tiny_cats::checkpoint::open(file, WeightsSelection::Default).unwrap().weights;
        assert!(weights.contains_key("module.hidden.weight"), "{:?}", weights.keys());
    }
    let (model, _) = open_model(&files[1]).unwrap();
    assert_eq!((model.meta().image_size, &model.meta().classes[2][..]), (0, "upper"));
    // Dropout is the identity outside of training, so all runtimes agree.
    let onnx = files[1].with_extension("onnx");
    let weights = tiny_cats::checkpoint::open(&files[1], WeightsSelection::Default).unwrap().weights;
    export(model.meta(), &weights, &onnx, &Default::default()).unwrap();
    let report = verify::verify(&files[1], &verify::VerifyOptions::default());
    assert!(report.is_ok() && report.is_complete() && !report.runtimes.is_empty(), "{report}");
}

#[test]
fn dropout_resumes_exactly_and_does_not_depend_on_checkpointing() {
    register::<PointClassifier>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, batches: usize, checkpoint: bool| {
        let mut task = WithText { task: classifier(), batches };
        let tape = TapeOptions { checkpoint, ..TapeOptions::default() };
        let options = TrainOptions { tape, ..options(&dir.path().join(name), 20) };
        train(&mut task, &options, &mut |_| {})
    };
    let read = |path: &Path| std::fs::read(path).unwrap();
    let whole = run("whole", usize::MAX, false).unwrap();
    assert!(run("resumed", 13, false).unwrap_err().to_string().contains("out of batches"));
    let resumed = run("resumed", usize::MAX, false).unwrap();
    for (whole, resumed) in whole.iter().zip(&resumed) {
        assert!(read(whole) == read(resumed), "{}", resumed.display());
    }
    let weights = |path: &Path| tiny_cats::checkpoint::open(path, WeightsSelection::Default).unwrap().weights;
    let checkpointed = run("checkpointed", usize::MAX, true).unwrap();
    assert!(weights(&checkpointed[1]) == weights(&whole[1]));
    // Samples of any kind are files of the run.
    let samples = dir.path().join("resumed/samples");
    for step in [10, 20] {
        assert_eq!(read(&samples.join(format!("step_{step:08}.txt"))), b"4 tensors\n");
    }
}

#[test]
fn a_generator_of_vectors_is_trained_by_flow_matching() {
    register::<PointGenerator>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut task = FlowMatching::new(
        FlowMatchingOptions::new(PointGenerator {}),
        points(0),
        Some(points(1)),
        Device::Cpu,
    )
    .unwrap();
    let mut losses = Vec::new();
    let files = train(&mut task, &options(&dir.path().join("run"), 200), &mut |event| match event {
        Event::Evaluated { scores, .. } => losses.push(scores[0].value),
        Event::Sampled { .. } => panic!("there is no picture of a point"),
        _ => {}
    })
    .unwrap();
    assert!(losses[losses.len() - 1] < 0.8 * losses[0], "{losses:?}");
    assert!(open_model(&files[1]).unwrap().0.generator().is_err());
}

#[test]
fn examples_that_do_not_match_give_one_line_errors() {
    let new = |dims: &[usize], classes: usize| -> Arc<dyn Examples> {
        let values = vec![0.5; 4 * dims.iter().product::<usize>()];
        let classes = (0..classes).map(|class| class.to_string()).collect();
        Arc::new(ArrayExamples::new(dims, values, vec![0; 4], classes).unwrap())
    };
    let classify = |train, validation| {
        let options = ClassificationOptions::new(PointClassifier { dropout: 0.0 });
        Classification::new(options, train, validation, Device::Cpu).err().unwrap().to_string()
    };
    let generate = |train| {
        let options = FlowMatchingOptions::new(PointGenerator {});
        FlowMatching::new(options, train, None, Device::Cpu).err().unwrap().to_string()
    };
    for (error, expected) in [
        (classify(new(&[3], CLASSES), None), "expected point [batch, 2], found [3]"),
        (classify(new(&[2], 4), None), "network: expected the data's 4 classes"),
        (classify(new(&[2], CLASSES), Some(new(&[1], CLASSES))), "validation: expected examples of the same"),
        (classify(new(&[2], CLASSES), Some(new(&[2], 2))), "validation: expected examples of the same"),
        (generate(new(&[2, 1], CLASSES)), "expected x [batch, 2], found [2, 1]"),
        (generate(new(&[2], 2)), "network: expected the data's 2 classes, found 3"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
