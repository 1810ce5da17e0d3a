//! Checks that training on a GPU matches training on the CPU, and that networks overfit a small batch.
//!
//! `cargo bench --bench gpu -- FOLDER [--device cpu|cuda]` checks each network on images of FOLDER:
//! - the forward pass;
//! - a training step: the loss, each gradient, and all weights and running statistics after the step;
//! - that each parameter has a finite, nonzero gradient;
//! - that the network overfits 16 images within a minute.
//!
//! The reference is our CPU kernels. With `--device cpu`, compositions of candle's operations and the CPU version of candle-nn's fused
//! kernels replace the GPU. A GPU runs the same operations, so this checks everything but the GPU's kernels. Each check prints a line of
//! JSON; the exit code is 1 if one fails. `scripts/gpu/check` runs this on a machine with a GPU.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tiny_cats::{
    data::{AugmentLevel, Cache, Dataset, ImageExamples, Images, PhotoExamples, PhotoOptions, Photos},
    train::{
        Classification, ClassificationOptions, Flow, FlowMatching, FlowMatchingOptions, GradientOptions,
        Loader, Optimizer, OptimizerOptions, StepOptions, Task, forward_backward,
    },
};
use tiny_cats_models::{
    Array, Init, ParamSpec, ResNet, ResNetConfig, Scope, TapeOptions, TinyDit, TinyDitConfig, Weights,
    candle::{CandleValue, Params, to_device, to_host, with_fused_ops},
    init,
    random::noise,
};

mod device;
use device::PeakMemory;

/// Maximum relative differences from the reference. For outputs and gradients, it is the Euclidean norm of the difference divided by that
/// of the reference.
const FORWARD_TOLERANCE: f64 = 1e-4;
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// Maximum relative difference of a parameter's update. Adam's first update is the learning rate times the gradient's sign, and a
/// gradient near zero may have different signs on two devices.
const UPDATE_TOLERANCE: f64 = 2e-2;
/// Number of images in a batch, and of images to overfit.
const BATCH: usize = 16;
/// Maximum time of overfitting on a GPU.
const MAX_GPU_TIME: Duration = Duration::from_secs(60);
/// Maximum time of overfitting on the CPU, whose speed is not checked.
const MAX_CPU_TIME: Duration = Duration::from_secs(1200);

/// A network to check.
trait Network {
    const NAME: &'static str;
    /// Learning rate, and the target of the mean loss over ten steps.
    const OVERFIT: (f64, f64);
    fn task(&self, device: &Device) -> Result<Box<dyn Task>>;
    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array>;
}

/// TinyDiT on [`BATCH`] images.
struct TinyDitCase {
    network: TinyDitConfig,
    data: PathBuf,
}

impl TinyDitCase {
    const SIZE: usize = 32;

    fn new(data: &Path) -> Result<Self> {
        let classes = Dataset::open(data)?.classes.len();
        Ok(Self { network: TinyDitConfig::named("nano", Self::SIZE, classes)?, data: data.into() })
    }
}

impl Network for TinyDitCase {
    const NAME: &'static str = "TinyDiT";
    const OVERFIT: (f64, f64) = (2e-3, 0.1);

    fn task(&self, device: &Device) -> Result<Box<dyn Task>> {
        let images =
            Images::load(&Dataset::open(&self.data)?, Self::SIZE as u32, Some(BATCH), &Cache::Memory)?;
        ensure!(images.len() == BATCH, "{}: expected at least {BATCH} images", self.data.display());
        let options = FlowMatchingOptions {
            network: self.network.clone(),
            flow: Flow { label_dropout: 0.0, ..Flow::default() },
            guidance: 1.0,
            guidance_interval: [0.0, 1.0],
            best: false,
            seed: 0,
            kind: "dit",
            name: "tinydit_final".into(),
            init: None,
        };
        let images = Arc::new(ImageExamples::new(images, AugmentLevel::None));
        Ok(Box::new(FlowMatching::new(options, images, None, device.clone())?))
    }

    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array> {
        let mut params = Params::new(weights, DType::F32, device)?;
        let model = TinyDit::<CandleValue>::new(&self.network, &mut Scope::root(&mut params))?;
        let dims = self.network.image_dims();
        let x = Array::new(
            [vec![BATCH], dims.to_vec()].concat(),
            noise(1, 0, BATCH * dims.iter().product::<usize>()),
        )?;
        let t = Array::new([BATCH], (0..BATCH).map(|i| i as f32 / BATCH as f32).collect())?;
        let label = Tensor::from_iter((0..BATCH).map(|i| (i % self.network.classes) as u32), device)?;
        let [x, t] =
            [to_device(&x, DType::F32, device)?, to_device(&t, DType::F32, device)?].map(CandleValue::new);
        Ok(to_host(&model.forward(&x, &t, &CandleValue::new(label))?.into_inner())?)
    }
}

/// ResNet-18, narrower than torchvision's, on [`BATCH`] images.
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
        ensure!(photos.len() == BATCH, "{}: expected at least {BATCH} images", self.data.display());
        let options = ClassificationOptions {
            network: self.network.clone(),
            mixup: 0.0,
            label_smoothing: 0.0,
            seed: 0,
            name: "resnet18".into(),
            init: None,
        };
        let photo_options =
            PhotoOptions { image_size: Self::SIZE, crop_size: Self::SIZE, augmentation: AugmentLevel::None };
        let photos = Arc::new(PhotoExamples::new(photos, photo_options)?);
        Ok(Box::new(Classification::new(options, photos, None, device.clone())?))
    }

    fn forward(&self, weights: &Weights, device: &Device) -> Result<Array> {
        let mut params = Params::new(weights, DType::F32, device)?;
        let model = ResNet::<CandleValue>::new(&self.network, &mut Scope::root(&mut params))?;
        let dims = [BATCH, 3, Self::SIZE, Self::SIZE];
        let x = Array::new(dims, noise(1, 0, dims.iter().product()))?;
        Ok(to_host(&model.forward(&CandleValue::new(to_device(&x, DType::F32, device)?))?.into_inner())?)
    }
}

/// Returns initial weights with random values in place of zeros, as after some steps, so that every parameter has a gradient.
fn nonzero_weights(specs: &[ParamSpec]) -> Weights {
    let with_noise = |spec: &ParamSpec| match spec.init {
        Init::Zeros if spec.trainable => ParamSpec { init: Init::Normal(0.02), ..spec.clone() },
        _ => spec.clone(),
    };
    init(&specs.iter().map(with_noise).collect::<Vec<_>>(), 0)
}

/// The results of a forward pass and a training step.
struct StepResults {
    forward: Array,
    loss: f64,
    gradients: Weights,
    updates: Weights,
}

fn compute_step(network: &impl Network, device: &Device) -> Result<StepResults> {
    let mut task = network.task(device)?;
    let specs = task.cost()?.params;
    let before = nonzero_weights(&specs);
    let forward = network.forward(&before, device)?;
    let mut optimizer = Optimizer::new(OptimizerOptions::default(), &specs, &before, device)?;
    let mut loader = Loader::new(task.batches(), BATCH);
    let options = GradientOptions::new(TapeOptions::default(), 0);
    let (loss, step_gradients) =
        forward_backward(&mut *task, &mut optimizer.params()?, &mut loader, &options)?;
    let to_host_entry = |(name, gradient): (&String, &Tensor)| Ok((name.clone(), to_host(gradient)?));
    let gradients = step_gradients.gradients.iter().map(to_host_entry).collect::<Result<_>>()?;
    optimizer.step(&step_gradients, StepOptions { rate: 1e-3, updates: 0, scale: 1.0 })?;
    let mut updates = optimizer.state(json!(null))?.weights;
    for (name, after) in &mut updates {
        after.data_mut().iter_mut().zip(before[name].data()).for_each(|(after, before)| *after -= before);
    }
    Ok(StepResults { forward, loss, gradients, updates })
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Returns the norm of the difference, relative to the norm of `expected`.
fn relative_error(found: &Array, expected: &Array) -> f64 {
    let difference = norm(found.data().iter().zip(expected.data()).map(|(a, b)| a - b));
    difference / norm(expected.data().iter().copied()).max(f64::MIN_POSITIVE)
}

/// Returns the maximum [`relative_error`], and its parameter.
fn max_relative_error(found: &Weights, expected: &Weights) -> Result<(f64, String)> {
    ensure!(found.keys().eq(expected.keys()), "expected the parameters of the reference, found others");
    let error = |(name, expected): (&String, &Array)| (relative_error(&found[name], expected), name.clone());
    // `total_cmp` orders NaN above all numbers.
    expected.iter().map(error).max_by(|a, b| a.0.total_cmp(&b.0)).context("no parameters")
}

/// Returns the parameters whose gradient is zero or not finite.
fn params_without_gradient(gradients: &Weights) -> Vec<&str> {
    let norm = |gradient: &Array| norm(gradient.data().iter().copied());
    let is_invalid = |gradient: &Array| !(norm(gradient).is_finite() && norm(gradient) > 0.0);
    gradients.iter().filter(|(_, gradient)| is_invalid(gradient)).map(|(name, _)| name.as_str()).collect()
}

/// Trains on the same [`BATCH`] images until the loss reaches its target or `limit` is exceeded. Returns the seconds, the steps, and
/// the mean loss of the last ten steps.
fn overfit<N: Network>(network: &N, device: &Device, limit: Duration) -> Result<(f64, u64, f64)> {
    let (rate, target) = N::OVERFIT;
    let mut task = network.task(device)?;
    let specs = task.cost()?.params;
    let mut optimizer =
        Optimizer::new(OptimizerOptions::default(), &specs, &task.initial_weights(0)?, device)?;
    let mut loader = Loader::new(task.batches(), BATCH);
    let start = Instant::now();
    let mut losses = Vec::new();
    loop {
        let step = losses.len() as u64;
        let options = GradientOptions::new(TapeOptions::default(), step * BATCH as u64);
        let (loss, step_gradients) =
            forward_backward(&mut *task, &mut optimizer.params()?, &mut loader, &options)?;
        ensure!(loss.is_finite(), "{}: the loss is {loss} at step {step}", N::NAME);
        optimizer.step(
            &step_gradients,
            StepOptions { rate: rate * ((step + 1) as f64 / 20.0).min(1.0), updates: step, scale: 1.0 },
        )?;
        losses.push(loss);
        let last = &losses[losses.len().saturating_sub(10)..];
        let mean = last.iter().sum::<f64>() / last.len() as f64;
        if last.len() == 10 && mean < target || start.elapsed() > limit {
            return Ok((start.elapsed().as_secs_f64(), losses.len() as u64, mean));
        }
    }
}

/// The printed checks.
struct Report {
    /// True if all checks passed.
    passed: bool,
}

impl Report {
    /// Prints a check that `value` is less than `limit`.
    fn check_below(&mut self, name: String, value: f64, limit: f64, note: String) {
        let passed = value < limit;
        self.passed &= passed;
        // JSON has no NaN and no infinity.
        let value = if value.is_finite() { json!(value) } else { json!(value.to_string()) };
        println!("{}", json!({"name": name, "value": value, "limit": limit, "passed": passed, "note": note}));
    }

    /// Runs all checks of a network.
    fn check_network<N: Network>(&mut self, network: &N, device: &Device) -> Result<()> {
        let gpu = !device.is_cpu();
        let expected = compute_step(network, &Device::Cpu)?;
        let found = if gpu {
            compute_step(network, device)?
        } else {
            with_fused_ops(|| compute_step(network, device))?
        };
        let name = |check: &str| format!("{}: {check}", N::NAME);
        self.check_below(
            name("forward"),
            relative_error(&found.forward, &expected.forward),
            FORWARD_TOLERANCE,
            String::new(),
        );
        let loss = (found.loss / expected.loss - 1.0).abs();
        self.check_below(
            name("loss"),
            loss,
            LOSS_TOLERANCE,
            format!("{:.6}, reference {:.6}", found.loss, expected.loss),
        );
        let (value, parameter) = max_relative_error(&found.gradients, &expected.gradients)?;
        self.check_below(
            name("gradients"),
            value,
            GRADIENT_TOLERANCE,
            format!("{} gradients, maximum at {parameter}", found.gradients.len()),
        );
        let missing = params_without_gradient(&found.gradients);
        let note = if missing.is_empty() { "all finite and nonzero".into() } else { missing.join(", ") };
        self.check_below(name("parameters without gradient"), missing.len() as f64, 1.0, note);
        let (value, parameter) = max_relative_error(&found.updates, &expected.updates)?;
        self.check_below(
            name("weights after a step"),
            value,
            UPDATE_TOLERANCE,
            format!("maximum at {parameter}"),
        );
        let limit = if gpu { MAX_GPU_TIME } else { MAX_CPU_TIME };
        let memory = PeakMemory::start(device);
        let run = || overfit(network, device, limit);
        let (seconds, steps, loss) = if gpu { run()? } else { with_fused_ops(run)? };
        let memory =
            memory.map_or(String::new(), |m| format!(", at most {} MB in use", m.peak() / 1_000_000));
        let note = format!("loss {loss:.4}, target {}, after {steps} steps{memory}", N::OVERFIT.1);
        let seconds = if loss < N::OVERFIT.1 { seconds } else { f64::INFINITY };
        self.check_below(
            name(&format!("seconds to overfit {BATCH} images")),
            seconds,
            limit.as_secs_f64(),
            note,
        );
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
    let data = data.context("expected FOLDER, a folder of class folders with images")?;
    let start = Instant::now();
    let (device, name) = device::open(&name)?;
    let sum =
        Tensor::ones((64, 64), DType::F32, &device)?.matmul(&Tensor::ones((64, 64), DType::F32, &device)?)?;
    let sum = sum.sum_all()?.to_scalar::<f32>()?;
    let mut report = Report { passed: true };
    let error = f64::from((sum - 64.0 * 64.0 * 64.0).abs());
    report.check_below(
        "first product".into(),
        error,
        1.0,
        format!("{name}, after {:.2} s", start.elapsed().as_secs_f64()),
    );
    report.check_network(&TinyDitCase::new(&data)?, &device)?;
    report.check_network(&ResNetCase::new(&data)?, &device)?;
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
