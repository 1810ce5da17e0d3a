//! Shows that a GPU computes what the processor does, and that it learns.
//!
//! `cargo bench --bench gpu -- FOLDER [--device cpu|cuda]` checks each network on pictures of FOLDER: the forward pass; a whole training
//! step, that is the loss, every gradient by name, and all weights and running statistics after it; that every parameter has a gradient
//! that is a number and not zero; and that 16 pictures are learnt by heart within a minute. The reference are the processor's kernels.
//! With `--device cpu` compositions of candle's operations take the GPU's place: they are what a GPU runs, so all is checked but its own
//! kernels. Each check is a line of JSON; exit code 1 where one fails. `scripts/gpu/check` takes this to a machine with a GPU.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tiny_cats::{
    data::{AugmentLevel, Cache, Dataset, Images, Photos},
    train::{
        AdamW, Classifier, ClassifierOptions, Dit, DitOptions, Flow, Loader, Optimizer, StepOptions, Task,
        forward_backward,
    },
};
use tiny_cats_models::{
    Array, Init, ParamSpec, ResNet, ResNetConfig, Scope, TapeOptions, TinyDit, TinyDitConfig, Weights,
    candle::{CandleValue, Params, to_device, to_host, with_candle_ops},
    init,
    random::noise,
};

mod device;
use device::Memory;

/// Largest differences from the reference, relative: of results and gradients to the length of the reference (Euclidean norm).
const FORWARD: f64 = 1e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-3;
/// The same of what a step changes a parameter by. Adam's first step is the rate times the gradient's sign: a gradient near zero may
/// have the other sign on another device.
const STEP: f64 = 2e-2;
/// Pictures in a batch, and those to be learnt by heart.
const BATCH: usize = 16;
/// How long that may take; without a GPU it is not what is measured.
const MINUTE: Duration = Duration::from_secs(60);
const NO_GPU: Duration = Duration::from_secs(1200);

/// A network as it is trained here.
trait Network {
    const NAME: &'static str;
    /// Learning rate, and the mean loss of ten steps below which the pictures are learnt.
    const OVERFIT: (f64, f64);
    fn task(&self, device: &Device) -> Result<Box<dyn Task>>;
    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array>;
}

/// TinyDiT on [`BATCH`] pictures.
struct Generator {
    network: TinyDitConfig,
    data: PathBuf,
}

impl Generator {
    const SIZE: usize = 32;

    fn new(data: &Path) -> Result<Self> {
        let classes = Dataset::open(data)?.classes.len();
        Ok(Self { network: TinyDitConfig::named("nano", Self::SIZE, classes)?, data: data.into() })
    }
}

impl Network for Generator {
    const NAME: &'static str = "TinyDiT";
    const OVERFIT: (f64, f64) = (2e-3, 0.1);

    fn task(&self, device: &Device) -> Result<Box<dyn Task>> {
        let images =
            Images::load(&Dataset::open(&self.data)?, Self::SIZE as u32, Some(BATCH), &Cache::Memory)?;
        ensure!(images.len() == BATCH, "{}: expected {BATCH} pictures or more", self.data.display());
        let options = DitOptions {
            network: self.network.clone(),
            flow: Flow { label_dropout: 0.0, ..Flow::default() },
            augmentation: AugmentLevel::None,
            guidance: 1.0,
            guidance_interval: [0.0, 1.0],
            best: false,
            seed: 0,
            init: None,
        };
        Ok(Box::new(Dit::new(options, images, None, device.clone())?))
    }

    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array> {
        let mut params = Params::new(weights, DType::F32, device)?;
        let model = TinyDit::<CandleValue>::new(&self.network, &mut Scope::root(&mut params))?;
        let picture = self.network.image_dims();
        let x = Array::new(
            [vec![BATCH], picture.to_vec()].concat(),
            noise(1, 0, BATCH * picture.iter().product::<usize>()),
        )?;
        let t = Array::new([BATCH], (0..BATCH).map(|i| i as f32 / BATCH as f32).collect())?;
        let label = Tensor::from_iter((0..BATCH).map(|i| (i % self.network.classes) as u32), device)?;
        let [x, t] =
            [to_device(&x, DType::F32, device)?, to_device(&t, DType::F32, device)?].map(CandleValue::new);
        Ok(to_host(&model.forward(&x, &t, &CandleValue::new(label))?.into_inner())?)
    }
}

/// ResNet-18, narrower than torchvision's, on [`BATCH`] pictures.
struct ResNetCase {
    network: ResNetConfig,
    data: PathBuf,
}

impl ResNetCase {
    const SIZE: usize = 64;
    const WIDTH: usize = 16;

    fn new(data: &Path) -> Result<Self> {
        let classes = Dataset::open(data)?.classes.len();
        let network = ResNetConfig { width: Self::WIDTH, ..ResNetConfig::named("resnet18", classes)? };
        Ok(Self { network, data: data.into() })
    }
}

impl Network for ResNetCase {
    const NAME: &'static str = "ResNet-18";
    const OVERFIT: (f64, f64) = (1e-3, 0.05);

    fn task(&self, device: &Device) -> Result<Box<dyn Task>> {
        let photos =
            Photos::load(&Dataset::open(&self.data)?, Self::SIZE as u32, Some(BATCH), &Cache::Memory)?;
        ensure!(photos.len() == BATCH, "{}: expected {BATCH} pictures or more", self.data.display());
        let options = ClassifierOptions {
            network: self.network.clone(),
            image_size: Self::SIZE,
            crop_size: Self::SIZE,
            augmentation: AugmentLevel::None,
            mixup: 0.0,
            label_smoothing: 0.0,
            seed: 0,
            name: "judge".into(),
            init: None,
        };
        Ok(Box::new(Classifier::new(options, photos, None, device.clone())?))
    }

    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array> {
        let mut params = Params::new(weights, DType::F32, device)?;
        let model = ResNet::<CandleValue>::new(&self.network, &mut Scope::root(&mut params))?;
        let dims = [BATCH, 3, Self::SIZE, Self::SIZE];
        let x = Array::new(dims, noise(1, 0, dims.iter().product()))?;
        Ok(to_host(&model.forward(&CandleValue::new(to_device(&x, DType::F32, device)?))?.into_inner())?)
    }
}

/// Initial weights with what begins at zero lifted, as if some steps had been taken, so that all of the network shows.
fn with_nonzero_weights(specs: &[ParamSpec]) -> Weights {
    let lift = |spec: &ParamSpec| match spec.init {
        Init::Zeros if spec.trainable => ParamSpec { init: Init::Normal(0.02), ..spec.clone() },
        _ => spec.clone(),
    };
    init(&specs.iter().map(lift).collect::<Vec<_>>(), 0)
}

/// What a pass and a step come to.
struct Outcome {
    forward: Array,
    loss: f64,
    gradients: Weights,
    changes: Weights,
}

fn outcome(network: &impl Network, device: &Device) -> Result<Outcome> {
    let mut task = network.task(device)?;
    let specs = task.cost()?.params;
    let before = with_nonzero_weights(&specs);
    let forward = network.forward(&before, device)?;
    let mut optimizer = Optimizer::new(AdamW::default(), &specs, &before, device)?;
    let mut loader = Loader::new(task.batches(), BATCH);
    let (loss, learnt) = forward_backward(
        &mut *task,
        TapeOptions::default(),
        &mut optimizer.params()?,
        &mut loader,
        1,
        0,
        1.0,
    )?;
    let host = |(name, gradient): (&String, &Tensor)| Ok((name.clone(), to_host(gradient)?));
    let gradients = learnt.gradients.iter().map(host).collect::<Result<_>>()?;
    optimizer.step(&learnt, StepOptions { rate: 1e-3, before: 0, scale: 1.0 })?;
    let mut changes = optimizer.state(json!(null))?.weights;
    for (name, after) in &mut changes {
        after.data_mut().iter_mut().zip(before[name].data()).for_each(|(after, before)| *after -= before);
    }
    Ok(Outcome { forward, loss, gradients, changes })
}

fn length(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// How far `found` is from `expected`, relative to the length of the latter.
fn distance(found: &Array, expected: &Array) -> f64 {
    let difference = length(found.data().iter().zip(expected.data()).map(|(a, b)| a - b));
    difference / length(expected.data().iter().copied()).max(f64::MIN_POSITIVE)
}

/// The largest [`distance`], and of what.
fn worst(found: &Weights, expected: &Weights) -> Result<(f64, String)> {
    ensure!(found.keys().eq(expected.keys()), "other parameters than the reference");
    let of = |(name, expected): (&String, &Array)| (distance(&found[name], expected), name.clone());
    // Not a number is the largest of all.
    expected.iter().map(of).max_by(|a, b| a.0.total_cmp(&b.0)).context("no parameters")
}

/// Parameters whose gradient is not a number, or zero throughout.
fn idle(gradients: &Weights) -> Vec<&str> {
    let length = |gradient: &Array| length(gradient.data().iter().copied());
    let idle = |gradient: &Array| !(length(gradient).is_finite() && length(gradient) > 0.0);
    gradients.iter().filter(|(_, g)| idle(g)).map(|(name, _)| name.as_str()).collect()
}

/// Trains on the same [`BATCH`] pictures until they are learnt, or the time is up: seconds, steps, and the mean loss of the last ten.
fn overfit<N: Network>(network: &N, device: &Device, limit: Duration) -> Result<(f64, u64, f64)> {
    let (rate, goal) = N::OVERFIT;
    let mut task = network.task(device)?;
    let specs = task.cost()?.params;
    let mut optimizer = Optimizer::new(AdamW::default(), &specs, &task.initial_weights(0)?, device)?;
    let mut loader = Loader::new(task.batches(), BATCH);
    let start = Instant::now();
    let mut losses = Vec::new();
    loop {
        let step = losses.len() as u64;
        let (loss, learnt) = forward_backward(
            &mut *task,
            TapeOptions::default(),
            &mut optimizer.params()?,
            &mut loader,
            1,
            step * BATCH as u64,
            1.0,
        )?;
        ensure!(loss.is_finite(), "{}: the loss is {loss} at step {step}", N::NAME);
        optimizer.step(
            &learnt,
            StepOptions { rate: rate * ((step + 1) as f64 / 20.0).min(1.0), before: step, scale: 1.0 },
        )?;
        losses.push(loss);
        let last = &losses[losses.len().saturating_sub(10)..];
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        if last.len() == 10 && mean < goal || start.elapsed() > limit {
            return Ok((start.elapsed().as_secs_f64(), losses.len() as u64, mean));
        }
    }
}

/// The lines that are printed, and whether all of them are good.
struct Report {
    passed: bool,
}

impl Report {
    /// A value that is to be less than `limit`.
    fn below(&mut self, name: String, value: f64, limit: f64, note: String) {
        let passed = value < limit;
        self.passed &= passed;
        // JSON knows no numbers that are none.
        let value = if value.is_finite() { json!(value) } else { json!(value.to_string()) };
        println!("{}", json!({"name": name, "value": value, "limit": limit, "passed": passed, "note": note}));
    }

    fn check<N: Network>(&mut self, network: &N, device: &Device) -> Result<()> {
        let gpu = !device.is_cpu();
        let expected = outcome(network, &Device::Cpu)?;
        let found =
            if gpu { outcome(network, device)? } else { with_candle_ops(|| outcome(network, device))? };
        let name = |what: &str| format!("{}: {what}", N::NAME);
        self.below(name("forward"), distance(&found.forward, &expected.forward), FORWARD, String::new());
        let loss = (found.loss / expected.loss - 1.0).abs();
        self.below(name("loss"), loss, LOSS, format!("{:.6}, reference {:.6}", found.loss, expected.loss));
        let (value, of) = worst(&found.gradients, &expected.gradients)?;
        self.below(
            name("gradients"),
            value,
            GRADIENT,
            format!("{} of them, worst {of}", found.gradients.len()),
        );
        let idle = idle(&found.gradients);
        let note = if idle.is_empty() { "all finite and not zero".into() } else { idle.join(", ") };
        self.below(name("parameters without gradient"), idle.len() as f64, 1.0, note);
        let (value, of) = worst(&found.changes, &expected.changes)?;
        self.below(name("weights after a step"), value, STEP, format!("worst {of}"));
        let limit = if gpu { MINUTE } else { NO_GPU };
        let memory = Memory::watch(device);
        let heart = || overfit(network, device, limit);
        let (seconds, steps, loss) = if gpu { heart()? } else { with_candle_ops(heart)? };
        let memory =
            memory.map_or(String::new(), |m| format!(", at most {} MB in use", m.peak() / 1_000_000));
        let note = format!("loss {loss:.4}, to be below {}, after {steps} steps{memory}", N::OVERFIT.1);
        let seconds = if loss < N::OVERFIT.1 { seconds } else { f64::INFINITY };
        self.below(name(&format!("seconds to learn {BATCH} pictures")), seconds, limit.as_secs_f64(), note);
        Ok(())
    }
}

fn run() -> Result<bool> {
    // cargo bench adds --bench to the arguments of every benchmark.
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut data, mut name) = (None, if cfg!(feature = "cuda") { "cuda" } else { "cpu" }.to_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--device" => name = args.next().context("--device: expected cpu or cuda")?,
            _ if data.is_none() && !arg.starts_with('-') => data = Some(PathBuf::from(arg)),
            _ => bail!("unexpected {arg}; expected FOLDER [--device cpu|cuda]"),
        }
    }
    let data = data.context("expected FOLDER, with pictures in class folders")?;
    let start = Instant::now();
    let (device, name) = device::open(&name)?;
    let sum =
        Tensor::ones((64, 64), DType::F32, &device)?.matmul(&Tensor::ones((64, 64), DType::F32, &device)?)?;
    let sum = sum.sum_all()?.to_scalar::<f32>()?;
    let mut report = Report { passed: true };
    let wrong = f64::from((sum - 64.0 * 64.0 * 64.0).abs());
    report.below(
        "first product".into(),
        wrong,
        1.0,
        format!("{name}, after {:.2} s", start.elapsed().as_secs_f64()),
    );
    report.check(&Generator::new(&data)?, &device)?;
    report.check(&ResNetCase::new(&data)?, &device)?;
    Ok(report.passed)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
