//! Training speed: images per second over complete optimizer steps, including the loading of the batch.
//!
//! `cargo bench --bench training [-- [--device cpu|cuda] [--tf32] [--batch N] [--precision f32|bf16|f16] [--checkpoint] [--candle-ops]
//! NAME…]` times all cases, or the named ones, and prints a line of JSON for each. With `--write FOLDER` it writes each case as
//! `NAME.safetensors` instead: weights, a batch, and the outputs and gradients. The PyTorch version (`peers/torch_dit.py`,
//! `peers/torch_resnet.py`) compares its own with them before it is timed. `scripts/bench` runs everything; `scripts/gpu/check` runs it on a
//! GPU, with the feature `cuda`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tiny_cats::{
    checkpoint::write_safetensors,
    data::{
        AugmentLevel, BREEDS, Cache, Dataset, Draw, ImageExamples, Images, OTHER, PhotoExamples,
        PhotoOptions, Photos, synth,
    },
    plan::Workload,
    train::{
        AdamW, Classification, ClassificationOptions, Example, Flow, FlowMatching, FlowMatchingOptions,
        GradientOptions, Loader, Optimizer, OptimizerOptions, StepGradients, StepOptions, Task,
        forward_backward, tune_allocator,
    },
};
use tiny_cats_export::{ModelMeta, NetworkConfig, image_sizes};
use tiny_cats_models::{
    Array, Init, ParamSpec, ResNet, ResNetConfig, Scope, TapeOptions, TinyDit, TinyDitConfig, Weights,
    candle::{Params, to_host, with_candle_ops},
    init,
    random::noise,
    tape::{Tape, Var},
};

mod device;
use device::PeakMemory;

/// Numbers of warm-up steps and of timed steps. A GPU gets more, because its steps are short.
const STEPS: [u64; 2] = [2, 5];
const GPU_STEPS: [u64; 2] = [10, 50];

/// Learning rate of every step.
const RATE: f64 = 1e-4;
/// Side of a classifier's training images, in pixels.
const PHOTO_SIZE: usize = 128;
/// Fraction of a classifier's targets that is spread over all classes.
const LABEL_SMOOTHING: f64 = 0.1;

/// The network of a case.
enum CaseNetwork {
    TinyDit(TinyDitConfig),
    ResNet(ResNetConfig),
}

impl From<TinyDitConfig> for CaseNetwork {
    fn from(config: TinyDitConfig) -> Self {
        Self::TinyDit(config)
    }
}

impl From<ResNetConfig> for CaseNetwork {
    fn from(config: ResNetConfig) -> Self {
        Self::ResNet(config)
    }
}

impl CaseNetwork {
    fn config(&self) -> tiny_cats_export::Result<NetworkConfig> {
        match self {
            Self::TinyDit(config) => NetworkConfig::new(config.clone()),
            Self::ResNet(config) => NetworkConfig::new(config.clone()),
        }
    }
}

struct Case {
    name: &'static str,
    network: CaseNetwork,
    batch: usize,
}

impl Case {
    fn all() -> Result<[Self; 4]> {
        let classes = BREEDS.len() + 1;
        let dit = |name, size| Ok::<_, anyhow::Error>(TinyDitConfig::named(name, size, classes)?);
        let resnet = ResNetConfig::named("resnet18", classes)?;
        Ok([
            Self { name: "base-128", network: dit("base", 128)?.into(), batch: 16 },
            Self { name: "legacy-128", network: TinyDitConfig::legacy().into(), batch: 16 },
            Self { name: "tiny-32", network: dit("tiny", 32)?.into(), batch: 64 },
            Self { name: "resnet18-128", network: resnet.into(), batch: 32 },
        ])
    }

    /// Returns weights without zeros, so that every parameter affects the output. Running statistics have their initial values.
    fn weights(&self) -> Result<(Vec<ParamSpec>, Weights)> {
        let mut specs = self.network.config()?.specs()?;
        for spec in specs.iter_mut().filter(|s| s.trainable && s.init == Init::Zeros) {
            spec.init = Init::Normal(0.02);
        }
        let weights = init(&specs, 0);
        Ok((specs, weights))
    }

    /// Returns the optimizer with the defaults of the training command.
    fn optimizer(&self) -> OptimizerOptions {
        match self.network {
            CaseNetwork::TinyDit(_) => OptimizerOptions::default(),
            CaseNetwork::ResNet(_) => {
                let adamw = AdamW { betas: [0.9, 0.999], weight_decay: 0.05, ..AdamW::default() };
                OptimizerOptions { ema: vec![0.999], ..OptimizerOptions::new(adamw) }
            }
        }
    }

    /// Writes the case: weights, a batch (see [`generator_batch`] and [`classifier_batch`]), and the results of a training step on it (see
    /// [`Case::reference`]).
    fn write(&self, folder: &Path) -> Result<()> {
        let (_, mut weights) = self.weights()?;
        let batch = match &self.network {
            CaseNetwork::TinyDit(config) => generator_batch(config, self.batch)?,
            CaseNetwork::ResNet(config) => classifier_batch(config, self.batch)?,
        };
        let meta = ModelMeta::new(self.network.config()?, image_sizes(PHOTO_SIZE), classes());
        weights.extend(self.reference(&batch)?);
        weights.extend(batch);
        Ok(write_safetensors(&folder.join(format!("{}.safetensors", self.name)), &weights, &meta)?)
    }

    /// Computes a training step. Returns `check/prediction`, `check/loss`, `check/gradients` (the norm of each parameter's gradient, in
    /// the order of the names), and `check/NAME` for each running statistic after the step.
    fn reference(&self, batch: &Weights) -> Result<Weights> {
        let (specs, weights) = self.weights()?;
        let mut optimizer = Optimizer::new(self.optimizer(), &specs, &weights, &Device::Cpu)?;
        let tape = Tape::new();
        let (prediction, loss) = self.forward(&tape, &mut optimizer.params()?, batch)?;
        let statistics = vec![tape.take_statistics()];
        let gradients = StepGradients { gradients: loss.backward(1.0)?, statistics };
        let norm = |g: &Tensor| -> Result<f32> {
            let squares = to_host(g)?.data().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            Ok(squares.sqrt() as f32)
        };
        let norms: Vec<f32> = gradients.gradients.values().map(norm).collect::<Result<_>>()?;
        let mut results = Weights::from([
            ("check/prediction".into(), to_host(prediction.value())?),
            ("check/loss".into(), to_host(loss.value())?),
            ("check/gradients".into(), Array::new([norms.len()], norms)?),
        ]);
        optimizer.step(&gradients, StepOptions { rate: RATE, updates: 0, scale: 1.0 })?;
        let mut after = optimizer.state(json!(null))?.weights;
        for spec in specs.iter().filter(|s| !s.trainable) {
            let value = after.remove(&spec.name).with_context(|| format!("{} is missing", spec.name))?;
            results.insert(format!("check/{}", spec.name), value);
        }
        Ok(results)
    }

    /// Returns the prediction and the loss of a batch, as in training.
    fn forward(&self, tape: &Tape, params: &mut Params, batch: &Weights) -> Result<(Var, Var)> {
        let get = |name: &str| Tensor::from_slice(batch[name].data(), batch[name].dims(), &Device::Cpu);
        let (x, target) = (tape.constant(get("check/x")?), get("check/target")?);
        let mut params = tape.params(params);
        let scope = &mut Scope::root(&mut params);
        Ok(match &self.network {
            CaseNetwork::TinyDit(config) => {
                let label = tape.constant(get("check/label")?.to_dtype(DType::U32)?);
                let t = tape.constant(get("check/t")?);
                let prediction = TinyDit::new(config, scope)?.forward(&x, &t, &label)?;
                let loss = prediction.weighted_mse(&target, &get("check/weight")?)?;
                (prediction, loss)
            }
            CaseNetwork::ResNet(config) => {
                let logits = ResNet::new(config, scope)?.forward(&x)?;
                let loss = logits.cross_entropy(&target)?;
                (logits, loss)
            }
        })
    }

    /// Returns the training task, on synthetic images.
    fn task(&self, device: &Device) -> Result<Box<dyn Task>> {
        let size = match &self.network {
            CaseNetwork::TinyDit(config) => config.image_size,
            CaseNetwork::ResNet(_) => PHOTO_SIZE,
        };
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("cats");
        synth::write(&data, &synth::SynthManifest::new(2, size as u32, 0)?, |_| ())?;
        let data = Dataset::open(&data)?;
        let (seed, augmentation) = (0, AugmentLevel::Basic);
        Ok(match &self.network {
            CaseNetwork::TinyDit(config) => {
                let images = Images::load(&data, size as u32, None, &Cache::Memory)?;
                let (network, flow, guidance) = (config.clone(), Flow::default(), 1.0);
                let options = FlowMatchingOptions {
                    network,
                    flow,
                    guidance,
                    guidance_interval: [0.0, 1.0],
                    best: false,
                    seed,
                    kind: "dit",
                    name: "tinydit_final".into(),
                    init: None,
                };
                let images = Arc::new(ImageExamples::new(images, augmentation));
                Box::new(FlowMatching::new(options, images, None, device.clone())?)
            }
            CaseNetwork::ResNet(config) => {
                let photos = Photos::load(&data, size as u32, None, &Cache::Memory)?;
                let options = ClassificationOptions {
                    network: config.clone(),
                    mixup: 0.0,
                    label_smoothing: LABEL_SMOOTHING,
                    seed,
                    name: self.name.into(),
                    init: None,
                };
                let photo_options = PhotoOptions { image_size: size, crop_size: size, augmentation };
                let photos = Arc::new(PhotoExamples::new(photos, photo_options)?);
                Box::new(Classification::new(options, photos, None, device.clone())?)
            }
        })
    }

    /// Returns the planned memory of a step on a GPU, in bytes, without the memory of CUDA itself.
    fn planned_memory(&self, tape: TapeOptions) -> Result<u64> {
        let side = match &self.network {
            CaseNetwork::TinyDit(config) => config.image_size,
            CaseNetwork::ResNet(_) => PHOTO_SIZE,
        };
        let workload = Workload {
            network: self.network.config()?,
            side,
            steps: 1,
            batch: self.batch,
            accumulation: 1,
            tape,
            moments: self.optimizer().rule.moments(),
            averages: self.optimizer().ema.len(),
            augmentation: AugmentLevel::Basic,
            eval_flops: 0.0,
        };
        Ok(workload.requirements(true)?.memory.total())
    }

    /// Returns the images per second of the median step, and the peak memory of a GPU in bytes.
    fn measure(&self, device: &Device, options: TapeOptions) -> Result<(f64, Option<u64>)> {
        let mut task = self.task(device)?;
        let (specs, weights) = self.weights()?;
        let mut optimizer = Optimizer::new(self.optimizer(), &specs, &weights, device)?;
        let mut loader = Loader::new(task.batches(), self.batch);
        let memory = PeakMemory::start(device);
        let [warm_up, steps] = if device.is_cpu() { STEPS } else { GPU_STEPS };
        let mut times = Vec::new();
        for step in 0..warm_up + steps {
            let start = Instant::now();
            let options = GradientOptions::new(options, step * self.batch as u64);
            let (_, gradients) =
                forward_backward(&mut *task, &mut optimizer.params()?, &mut loader, &options)?;
            let norm = optimizer.step(&gradients, StepOptions { rate: RATE, updates: step, scale: 1.0 })?;
            if !norm.is_finite() {
                bail!("{}: the gradient's norm is {norm} at step {step}", self.name);
            }
            drop(gradients);
            if step >= warm_up {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        Ok((self.batch as f64 / times[times.len() / 2], memory.map(PeakMemory::peak)))
    }
}

/// Returns a generator's batch: `check/x`, `check/t`, `check/label`, `check/target` and `check/weight` (the weight of each item's error).
fn generator_batch(config: &TinyDitConfig, batch: usize) -> Result<Weights> {
    let [channels, height, width] = config.image_dims();
    let len = channels * height * width;
    let null = config.null_label().map(|l| l as u32);
    let (mut x, mut target, mut examples) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..batch {
        let clean: Vec<f32> = noise(1, i as u64, len);
        let (mut noisy, mut expected) = (vec![0.0; len], vec![0.0; len]);
        let label = ((i % config.classes) as u32, null);
        let prediction = config.prediction();
        examples.push(Flow::default().draw(
            Draw { seed: 0, position: i as u64 },
            prediction,
            label,
            &clean,
            &mut noisy,
            &mut expected,
        ));
        x.extend(noisy);
        target.extend(expected);
    }
    let dims = [batch, channels, height, width];
    let numbers = |f: fn(&Example) -> f32| Array::new([batch], examples.iter().map(f).collect());
    Ok(Weights::from([
        ("check/x".into(), Array::new(dims, x)?),
        ("check/t".into(), numbers(|e| e.t)?),
        ("check/label".into(), numbers(|e| e.label as f32)?),
        ("check/target".into(), Array::new(dims, target)?),
        ("check/weight".into(), numbers(|e| e.weight)?),
    ]))
}

/// Returns a classifier's batch: `check/x`, normalized, and `check/target`, the probabilities of all classes.
fn classifier_batch(config: &ResNetConfig, batch: usize) -> Result<Weights> {
    let dims = [batch, 3, PHOTO_SIZE, PHOTO_SIZE];
    let x = Array::new(dims, noise(1, 0, dims.iter().product()))?;
    let n = config.classes;
    let mut target = vec![(LABEL_SMOOTHING / n as f64) as f32; batch * n];
    (0..batch).for_each(|i| target[i * n + i % n] += 1.0 - LABEL_SMOOTHING as f32);
    Ok(Weights::from([("check/x".into(), x), ("check/target".into(), Array::new([batch, n], target)?)]))
}

fn classes() -> Vec<String> {
    BREEDS.into_iter().chain([OTHER]).map(String::from).collect()
}

fn main() -> Result<()> {
    tune_allocator();
    // cargo bench adds --bench to the arguments of every benchmark.
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let mut cases = Case::all()?;
    let (mut folder, mut device, mut selected) = (None, Device::Cpu, Vec::new());
    let (mut options, mut composed) = (TapeOptions::default(), false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg}: expected a value"));
        match arg.as_str() {
            "--write" => folder = Some(PathBuf::from(value()?)),
            "--device" => device = device::open(&value()?)?.0,
            // Rounds the factors of matrix products to TF32 on a GPU, as PyTorch's option does.
            "--tf32" => candle_core::cuda::set_gemm_reduced_precision_f32(true),
            "--checkpoint" => options.checkpoint = true,
            // Replaces all fused kernels by compositions of candle's operations.
            "--candle-ops" => composed = true,
            "--precision" => options.precision = value()?.parse()?,
            "--batch" => {
                let batch = value()?.parse().context("--batch: expected a whole number")?;
                cases.iter_mut().for_each(|case| case.batch = batch);
            }
            name if cases.iter().any(|c| c.name == name) => selected.push(arg),
            unknown => {
                bail!("expected one of {}, found {unknown}", cases.each_ref().map(|c| c.name).join(", "))
            }
        }
    }
    for case in cases.iter().filter(|c| selected.is_empty() || selected.iter().any(|n| n == c.name)) {
        if let Some(folder) = &folder {
            case.write(folder)?;
            continue;
        }
        let measure = || case.measure(&device, options);
        let (speed, peak) = if composed { with_candle_ops(measure)? } else { measure()? };
        let mut line = json!({"name": case.name, "images_per_second": speed});
        if let Some(peak) = peak {
            line["peak_bytes"] = peak.into();
            line["planned_bytes"] = case.planned_memory(options)?.into();
        }
        println!("{line}");
    }
    Ok(())
}
