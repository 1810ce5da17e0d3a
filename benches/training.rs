//! Training speed: pictures a second over whole optimizer steps, the drawing of the batch included.
//!
//! `cargo bench --bench training [-- [--device cpu|cuda] [--tf32] [--batch N] NAME…]` times every case, or those named, and prints a line
//! of JSON for each. With `--write FOLDER` it writes each case as `NAME.safetensors` instead: weights, a batch, and what the network
//! makes of it, so that `peers/torch_dit.py` can show that it computes the same before it is timed. `scripts/bench` does all of it;
//! `scripts/gpu/check` does it on a GPU, and wants the feature `cuda` for that.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use serde_json::json;
use tiny_cats::{
    checkpoint::write_safetensors,
    data::{BREEDS, Dataset, Images, Level, OTHER, synth},
    train::{AdamW, Dit, DitOptions, Flow, Optimizer, learn},
};
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    Array, Init, ParamSpec, Scope, TinyDit, TinyDitConfig, Weights, candle::to_host, init, random::noise,
    tape::Tape,
};

mod device;
use device::Memory;

/// Steps before the clock starts, and steps on the clock; on a GPU, where they are short, more.
const STEPS: [u64; 2] = [2, 5];
const GPU_STEPS: [u64; 2] = [10, 50];

struct Case {
    name: &'static str,
    network: TinyDitConfig,
    batch: usize,
}

impl Case {
    fn all() -> Result<[Self; 3]> {
        let classes = BREEDS.len() + 1;
        Ok([
            Self { name: "base-128", network: TinyDitConfig::named("base", 128, classes)?, batch: 8 },
            Self { name: "legacy-128", network: TinyDitConfig::legacy(), batch: 8 },
            Self { name: "tiny-32", network: TinyDitConfig::named("tiny", 32, classes)?, batch: 64 },
        ])
    }

    /// Weights with nothing at zero, so that every part of the network shows in its output.
    fn weights(&self) -> Result<(Vec<ParamSpec>, Weights)> {
        let mut specs = self.network.cost()?.params;
        for spec in specs.iter_mut().filter(|s| s.init == Init::Zeros) {
            spec.init = Init::Normal(0.02);
        }
        let weights = init(&specs, 0);
        Ok((specs, weights))
    }

    /// Writes the case with `check/x`, `check/t`, `check/label`, `check/target`, `check/weight` (of each item's error), and from our
    /// forward and backward pass `check/prediction`, `check/loss`, and `check/gradients`: the norm of each parameter's gradient, in
    /// the order of their names.
    fn write(&self, folder: &Path) -> Result<()> {
        let (_, mut weights) = self.weights()?;
        let [channels, height, width] = self.network.picture();
        let len = channels * height * width;
        let null = self.network.null_label().map(|l| l as u32);
        let (mut x, mut target, mut examples) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..self.batch {
            let clean: Vec<f32> = noise(1, i as u64, len);
            let (mut noisy, mut wanted) = (vec![0.0; len], vec![0.0; len]);
            let label = ((i % self.network.classes) as u32, null);
            let prediction = self.network.prediction();
            examples.push(Flow::default().draw(
                0,
                i as u64,
                prediction,
                label,
                &clean,
                &mut noisy,
                &mut wanted,
            ));
            x.extend(noisy);
            target.extend(wanted);
        }
        let pictures = [self.batch, channels, height, width];
        let numbers = |f: fn(&tiny_cats::train::Example) -> f32| {
            Array::new([self.batch], examples.iter().map(f).collect())
        };
        let batch = Weights::from([
            ("check/x".into(), Array::new(pictures, x)?),
            ("check/t".into(), numbers(|e| e.t)?),
            ("check/label".into(), numbers(|e| e.label as f32)?),
            ("check/target".into(), Array::new(pictures, target)?),
            ("check/weight".into(), numbers(|e| e.weight)?),
        ]);
        weights.extend(self.pass(&batch)?);
        weights.extend(batch);
        let meta = ModelMeta::tiny_dit(&self.network, classes());
        Ok(write_safetensors(&folder.join(format!("{}.safetensors", self.name)), &weights, &meta)?)
    }

    /// Prediction, loss and norms of gradients for a batch.
    fn pass(&self, batch: &Weights) -> Result<Weights> {
        let device = Device::Cpu;
        let get = |name: &str| Tensor::from_slice(batch[name].data(), batch[name].dims(), &device);
        let (specs, weights) = self.weights()?;
        let optimizer = Optimizer::new(AdamW::default(), &specs, &weights, &device)?;
        let tape = Tape::new();
        let mut params = optimizer.params()?;
        let model = TinyDit::new(&self.network, &mut Scope::root(&mut tape.params(&mut params)))?;
        let label = get("check/label")?.to_dtype(candle_core::DType::U32)?;
        let [x, t] = [get("check/x")?, get("check/t")?].map(|v| tape.constant(v));
        let prediction = model.forward(&x, &t, &tape.constant(label))?;
        let loss = prediction.squared_error(&get("check/target")?, &get("check/weight")?)?;
        let gradients = loss.backward(1.0)?;
        let norm = |g: &Tensor| -> Result<f32> {
            let squares = to_host(g)?.data().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            Ok(squares.sqrt() as f32)
        };
        let norms: Vec<f32> = gradients.values().map(norm).collect::<Result<_>>()?;
        Ok(Weights::from([
            ("check/prediction".into(), to_host(prediction.value())?),
            ("check/loss".into(), to_host(loss.value())?),
            ("check/gradients".into(), Array::new([norms.len()], norms)?),
        ]))
    }

    /// Median pictures a second, and the most bytes in use on a GPU.
    fn time(&self, device: &Device) -> Result<(f64, Option<u64>)> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("cats");
        let size = self.network.image_size as u32;
        synth::write(&data, &synth::Manifest::new(2, size, 0)?, |_| ())?;
        let images = Images::load(&Dataset::open(&data)?, size, None)?;
        let options = DitOptions {
            network: self.network.clone(),
            flow: Flow::default(),
            augmentation: Level::Basic,
            batch: self.batch,
            guidance: 1.0,
            seed: 0,
        };
        let mut task = Dit::new(options, images, device.clone())?;
        let (specs, weights) = self.weights()?;
        let mut optimizer = Optimizer::new(AdamW::default(), &specs, &weights, device)?;
        let memory = Memory::watch(device);
        let [warm_up, steps] = if device.is_cpu() { STEPS } else { GPU_STEPS };
        let mut times = Vec::new();
        for step in 0..warm_up + steps {
            let start = Instant::now();
            let (_, learnt) = learn(&mut task, &optimizer, 1, step * self.batch as u64)?;
            let norm = optimizer.step(&learnt, 1e-4, step)?;
            if !norm.is_finite() {
                bail!("{}: the gradient's norm is {norm} at step {step}", self.name);
            }
            drop(learnt);
            if step >= warm_up {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        Ok((self.batch as f64 / times[times.len() / 2], memory.map(Memory::peak)))
    }
}

fn classes() -> Vec<String> {
    BREEDS.into_iter().chain([OTHER]).map(String::from).collect()
}

fn main() -> Result<()> {
    // cargo bench adds --bench to the arguments of every benchmark.
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let mut cases = Case::all()?;
    let (mut folder, mut device, mut named) = (None, Device::Cpu, Vec::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg}: expected a value"));
        match arg.as_str() {
            "--write" => folder = Some(PathBuf::from(value()?)),
            "--device" => device = device::open(&value()?)?.0,
            // Factors of products are rounded on a GPU, as PyTorch can.
            "--tf32" => candle_core::cuda::set_gemm_reduced_precision_f32(true),
            "--batch" => {
                let batch = value()?.parse().context("--batch: expected a whole number")?;
                cases.iter_mut().for_each(|case| case.batch = batch);
            }
            name if cases.iter().any(|c| c.name == name) => named.push(arg),
            unknown => {
                bail!("expected one of {}, found {unknown}", cases.each_ref().map(|c| c.name).join(", "))
            }
        }
    }
    for case in cases.iter().filter(|c| named.is_empty() || named.iter().any(|n| n == c.name)) {
        if let Some(folder) = &folder {
            case.write(folder)?;
            continue;
        }
        let (speed, peak) = case.time(&device)?;
        let mut line = json!({"name": case.name, "images_per_second": speed});
        if let Some(peak) = peak {
            line["peak_bytes"] = peak.into();
        }
        println!("{line}");
    }
    Ok(())
}
