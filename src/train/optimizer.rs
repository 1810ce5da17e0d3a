//! AdamW with clipping and an exponential moving average of the weights, in one pass over memory.

use std::collections::HashMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tiny_cats_models::{
    ParamSpec, Weights,
    candle::{Params, to_host},
    tape::{BatchStatistics, Gradients},
};

use super::{Error, Result};
use crate::checkpoint::TrainingState;

/// Settings of AdamW (Loshchilov and Hutter, arXiv 1711.05101) and of what goes with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of parameters with two axes or more.
    pub weight_decay: f64,
    /// The gradient's norm is cut to this; 0 cuts nothing.
    pub clip: f64,
    /// Decay of the weights' moving average, which begins as `(1 + n)/(10 + n)` after `n` steps so that short runs have one too.
    pub ema: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0, clip: 1.0, ema: 0.9999 }
    }
}

/// One parameter with all that belongs to it.
struct Slot {
    name: String,
    dims: Vec<usize>,
    decays: bool,
    /// `[4, n]`: weight, moving average, first and second moment, one after the other.
    packed: Tensor,
}

/// Places of the parts in [`Slot::packed`].
const PARTS: usize = 4;
const WEIGHT: usize = 0;
const EMA: usize = 1;
const MOMENT1: usize = 2;
const MOMENT2: usize = 3;
/// Values that one task works through: fixed, so that sums do not depend on the machine.
const CHUNK: usize = 1 << 14;

impl Slot {
    /// A part, as it lies: what the next step changes is seen through it.
    fn part(&self, part: usize) -> candle_core::Result<Tensor> {
        self.packed.narrow(0, part, 1)?.reshape(self.dims.as_slice())
    }
}

/// A running statistic of a batch normalisation, and its moving average.
struct Statistic {
    name: String,
    value: Tensor,
    ema: Tensor,
}

/// How much of a running statistic one step replaces; PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// The parameters of a run and their optimizer.
pub struct Optimizer {
    settings: AdamW,
    slots: Vec<Slot>,
    statistics: Vec<Statistic>,
    device: Device,
}

/// What one step learns from its micro-batches.
#[derive(Default)]
pub struct Learnt {
    /// Gradients by parameter name.
    pub gradients: Gradients,
    /// What batch normalisations saw, one list a micro-batch, each in the order of the network.
    pub statistics: Vec<Vec<BatchStatistics>>,
}

/// What one step needs to know besides the gradient.
struct Update {
    rate: f64,
    scale: f64,
    decay: f64,
    betas: [f64; 2],
    eps: f64,
    corrections: [f64; 2],
    ema: f64,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        packed: &mut CpuStorage,
        lp: &Layout,
        grad: &CpuStorage,
        lg: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(packed), CpuStorage::F32(grad)) = (packed, grad) else {
            candle_core::bail!("parameters and gradients are f32")
        };
        let (Some((p0, p1)), Some((g0, g1))) = (lp.contiguous_offsets(), lg.contiguous_offsets()) else {
            candle_core::bail!("parameters and gradients are contiguous")
        };
        let (packed, grad) = (&mut packed[p0..p1], &grad[g0..g1]);
        let (weight, rest) = packed.split_at_mut(grad.len());
        let (ema, rest) = rest.split_at_mut(grad.len());
        let (moment1, moment2) = rest.split_at_mut(grad.len());
        let [b1, b2] = self.betas.map(|b| b as f32);
        let (scale, eps, ema_rest) = (self.scale as f32, self.eps as f32, (1.0 - self.ema) as f32);
        let step = (self.rate / self.corrections[0]) as f32;
        let root = (1.0 / self.corrections[1].sqrt()) as f32;
        let keep = (1.0 - self.rate * self.decay) as f32;
        weight
            .par_chunks_mut(CHUNK)
            .zip(ema.par_chunks_mut(CHUNK))
            .zip(moment1.par_chunks_mut(CHUNK).zip(moment2.par_chunks_mut(CHUNK)))
            .zip(grad.par_chunks(CHUNK))
            .for_each(|(((w, e), (m, v)), g)| {
                for i in 0..g.len() {
                    let g = g[i] * scale;
                    m[i] = b1 * m[i] + (1.0 - b1) * g;
                    v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                    w[i] = keep * w[i] - step * m[i] / (v[i].sqrt() * root + eps);
                    e[i] += ema_rest * (w[i] - e[i]);
                }
            });
        Ok(())
    }
}

impl Update {
    /// The same on any device, from candle's own operations.
    fn plain(&self, slot: &Slot, grad: &Tensor) -> candle_core::Result<()> {
        let grad = (grad * self.scale)?;
        let [b1, b2] = self.betas;
        let [weight, ema, m, v] =
            [slot.part(WEIGHT)?, slot.part(EMA)?, slot.part(MOMENT1)?, slot.part(MOMENT2)?];
        let m = ((m * b1)? + (&grad * (1.0 - b1))?)?;
        let v = ((v * b2)? + (grad.sqr()? * (1.0 - b2))?)?;
        let root = ((&v / self.corrections[1])?.sqrt()? + self.eps)?;
        let change = ((&m / root)? * (self.rate / self.corrections[0]))?;
        let weight = ((weight * (1.0 - self.rate * self.decay))? - change)?;
        let ema = ((ema * self.ema)? + (&weight * (1.0 - self.ema))?)?;
        for (part, value) in [(WEIGHT, weight), (EMA, ema), (MOMENT1, m), (MOMENT2, v)] {
            slot.packed.slice_set(&value.reshape((1, value.elem_count()))?, 0, part)?;
        }
        Ok(())
    }
}

/// `Σ x²`, in f64 over fixed pieces.
fn squares(x: &Tensor) -> Result<f64> {
    if !x.device().is_cpu() {
        return Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let piece = |x: &[f32]| x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    Ok(values.par_chunks(CHUNK).map(piece).collect::<Vec<_>>().into_iter().sum())
}

impl Optimizer {
    /// A run that begins from `weights`.
    ///
    /// # Errors
    /// When `weights` are not those of `specs`.
    pub fn new(settings: AdamW, specs: &[ParamSpec], weights: &Weights, device: &Device) -> Result<Self> {
        let state = TrainingState { weights: weights.clone(), ..TrainingState::default() };
        Self::restore(settings, specs, &state, device)
    }

    /// A run that goes on from `state`; parts that it lacks begin as in a new run.
    ///
    /// # Errors
    /// When its weights are not those of `specs`.
    pub fn restore(
        settings: AdamW,
        specs: &[ParamSpec],
        state: &TrainingState,
        device: &Device,
    ) -> Result<Self> {
        let part = |spec: &ParamSpec, group: &Weights| match group.get(&spec.name) {
            Some(array) if array.dims() == spec.dims => Ok(Some(array.data().to_vec())),
            Some(array) => Err(tiny_cats_models::Error::ParameterShape {
                name: spec.name.clone(),
                expected: spec.dims.clone(),
                found: array.dims().to_vec(),
            }),
            None => Ok(None),
        };
        let missing =
            |spec: &ParamSpec| tiny_cats_models::Error::MissingParameter { name: spec.name.clone() };
        let slot = |spec: &ParamSpec| -> Result<Slot> {
            let n: usize = spec.dims.iter().product();
            let weight = part(spec, &state.weights)?.ok_or_else(|| missing(spec))?;
            let mut packed = weight.clone();
            packed.extend(part(spec, &state.ema)?.unwrap_or(weight));
            packed.extend(part(spec, &state.moment1)?.unwrap_or_else(|| vec![0.0; n]));
            packed.extend(part(spec, &state.moment2)?.unwrap_or_else(|| vec![0.0; n]));
            Ok(Slot {
                name: spec.name.clone(),
                dims: spec.dims.clone(),
                decays: spec.dims.len() > 1,
                packed: Tensor::from_vec(packed, (PARTS, n), device)?,
            })
        };
        let statistic = |spec: &ParamSpec| -> Result<Statistic> {
            let value = part(spec, &state.weights)?.ok_or_else(|| missing(spec))?;
            let ema = part(spec, &state.ema)?.unwrap_or_else(|| value.clone());
            let put = |values| Tensor::from_vec(values, spec.dims.as_slice(), device);
            Ok(Statistic { name: spec.name.clone(), value: put(value)?, ema: put(ema)? })
        };
        let slots = specs.iter().filter(|s| s.trained).map(slot).collect::<Result<_>>()?;
        let statistics = specs.iter().filter(|s| !s.trained).map(statistic).collect::<Result<_>>()?;
        Ok(Self { settings, slots, statistics, device: device.clone() })
    }

    /// The weights as they are now, for a forward pass. They are views: take them anew after a step.
    ///
    /// # Errors
    /// Those of candle.
    pub fn params(&self) -> Result<Params> {
        let part = |slot: &Slot| Ok((slot.name.clone(), slot.part(WEIGHT)?));
        let statistics = self.statistics.iter().map(|s| Ok((s.name.clone(), s.value.clone())));
        let tensors: HashMap<String, Tensor> =
            self.slots.iter().map(part).chain(statistics).collect::<candle_core::Result<_>>()?;
        Ok(Params::from_tensors(tensors, DType::F32, &self.device))
    }

    /// Steps all parameters by what was learnt, at learning rate `rate`, and moves running statistics towards the mean of what the
    /// micro-batches saw; `step` counts from 0. Returns the gradient's norm before clipping. Nothing is changed when that norm is not
    /// finite.
    ///
    /// # Errors
    /// When a parameter has no gradient: then the network does not use it, and training it would be an illusion.
    pub fn step(&mut self, learnt: &Learnt, rate: f64, step: u64) -> Result<f64> {
        let gradients = &learnt.gradients;
        let mut sum = 0.0;
        for slot in &self.slots {
            let gradient = gradients.get(&slot.name).ok_or_else(|| {
                Error::setting("network", format!("parameter {} has no gradient", slot.name))
            })?;
            sum += squares(gradient)?;
        }
        let norm = sum.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let AdamW { betas, eps, weight_decay, clip, ema } = self.settings;
        let taken = (step + 1).min(1 << 30) as i32;
        let ema = ema.min(f64::from(taken) / (f64::from(taken) + 9.0));
        self.observe(&learnt.statistics, ema)?;
        for slot in &self.slots {
            let update = Update {
                rate,
                scale: if clip > 0.0 && norm > clip { clip / norm } else { 1.0 },
                decay: if slot.decays { weight_decay } else { 0.0 },
                betas,
                eps,
                corrections: betas.map(|b| 1.0 - b.powi(taken)),
                ema,
            };
            let gradient = &gradients[&slot.name];
            if self.device.is_cpu() {
                slot.packed.inplace_op2(&gradient.contiguous()?, &update)?;
            } else {
                update.plain(slot, gradient)?;
            }
        }
        Ok(norm)
    }

    /// Moves running statistics, and their average by `decay`.
    fn observe(&mut self, seen: &[Vec<BatchStatistics>], decay: f64) -> Result<()> {
        let toward = |old: &Tensor, new: &Tensor, keep: f64| -> candle_core::Result<Tensor> {
            (old * keep)? + (new * (1.0 - keep))?
        };
        for statistic in &mut self.statistics {
            let found = |batch: &Vec<BatchStatistics>| {
                batch.iter().find_map(|s| match statistic.name.strip_prefix(&s.path)? {
                    ".running_mean" => Some(s.mean.clone()),
                    ".running_var" => Some(s.var.clone()),
                    _ => None,
                })
            };
            let seen: Vec<Tensor> = seen.iter().filter_map(found).collect();
            if seen.is_empty() {
                return Err(Error::setting("network", format!("statistic {} is never seen", statistic.name)));
            }
            let mean = Tensor::stack(&seen, 0)?.mean(0)?;
            statistic.value = toward(&statistic.value, &mean, 1.0 - MOMENTUM)?;
            statistic.ema = toward(&statistic.ema, &statistic.value, decay)?;
        }
        Ok(())
    }

    /// A part of all parameters, with the running statistics that belong to it.
    fn group(&self, part: usize) -> Result<Weights> {
        let slots = self.slots.iter().map(|s| Ok((s.name.clone(), to_host(&s.part(part)?)?)));
        let statistic = |s: &Statistic| {
            let value = if part == EMA { &s.ema } else { &s.value };
            Ok((s.name.clone(), to_host(value)?))
        };
        let kept = self.statistics.iter().filter(|_| matches!(part, WEIGHT | EMA)).map(statistic);
        slots.chain(kept).collect()
    }

    /// The moving average of the weights.
    ///
    /// # Errors
    /// Those of candle.
    pub fn ema(&self) -> Result<Weights> {
        self.group(EMA)
    }

    /// All that [`restore`](Self::restore) needs.
    ///
    /// # Errors
    /// Those of candle.
    pub fn state(&self, meta: serde_json::Value) -> Result<TrainingState> {
        Ok(TrainingState {
            weights: self.group(WEIGHT)?,
            ema: self.group(EMA)?,
            moment1: self.group(MOMENT1)?,
            moment2: self.group(MOMENT2)?,
            meta,
        })
    }
}

#[cfg(test)]
mod tests {
    use tiny_cats_models::{Array, Init, init};

    use super::*;

    fn specs() -> Vec<ParamSpec> {
        let spec = |name: &str, dims: &[usize]| ParamSpec {
            name: name.into(),
            dims: dims.into(),
            init: Init::Normal(1.0),
            trained: true,
        };
        vec![spec("a", &[300, 200]), spec("b", &[7])]
    }

    fn learnt(step: u64) -> Learnt {
        let w: Weights = init(&specs(), 100 + step);
        let tensor = |a: &Array| Tensor::from_slice(a.data(), a.dims(), &Device::Cpu).unwrap();
        let gradients = w.iter().map(|(name, a)| (name.clone(), tensor(a))).collect();
        Learnt { gradients, statistics: Vec::new() }
    }

    #[test]
    fn one_pass_does_what_candle_s_operations_do() {
        let settings = AdamW { weight_decay: 0.1, clip: 0.0, ..AdamW::default() };
        let start = init(&specs(), 0);
        let mut fused = Optimizer::new(settings.clone(), &specs(), &start, &Device::Cpu).unwrap();
        let plain = Optimizer::new(settings.clone(), &specs(), &start, &Device::Cpu).unwrap();
        for step in 0..5 {
            let learnt = learnt(step);
            fused.step(&learnt, 1e-2, step).unwrap();
            let taken = step as i32 + 1;
            for slot in &plain.slots {
                let update = Update {
                    rate: 1e-2,
                    scale: 1.0,
                    decay: if slot.decays { 0.1 } else { 0.0 },
                    betas: settings.betas,
                    eps: settings.eps,
                    corrections: settings.betas.map(|b| 1.0 - b.powi(taken)),
                    ema: settings.ema.min(f64::from(taken) / (f64::from(taken) + 9.0)),
                };
                update.plain(slot, &learnt.gradients[&slot.name]).unwrap();
            }
        }
        let (a, b) = (fused.state(().into()).unwrap(), plain.state(().into()).unwrap());
        for (a, b) in [(a.weights, b.weights), (a.ema, b.ema), (a.moment1, b.moment1), (a.moment2, b.moment2)]
        {
            for (name, a) in a {
                let worst =
                    a.data().iter().zip(b[&name].data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{name}: {worst}");
            }
        }
    }

    #[test]
    fn the_first_step_is_the_rate_against_the_gradient_s_sign() {
        let settings = AdamW { clip: 0.0, ..AdamW::default() };
        let start = init(&specs(), 0);
        let mut optimizer = Optimizer::new(settings, &specs(), &start, &Device::Cpu).unwrap();
        let learnt = learnt(0);
        optimizer.step(&learnt, 1e-3, 0).unwrap();
        let after = optimizer.state(().into()).unwrap().weights;
        for (name, gradient) in learnt.gradients {
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for ((g, b), a) in gradient.iter().zip(start[&name].data()).zip(after[&name].data()) {
                assert!((b - a - 1e-3 * g / (g.abs() + 1e-8)).abs() < 2e-6, "{name}: {b} to {a} by {g}");
            }
        }
    }

    #[test]
    fn going_on_from_a_state_is_going_on() {
        let start = init(&specs(), 0);
        let mut straight = Optimizer::new(AdamW::default(), &specs(), &start, &Device::Cpu).unwrap();
        for step in 0..3 {
            straight.step(&learnt(step), 1e-3, step).unwrap();
        }
        let state = straight.state(().into()).unwrap();
        let mut resumed = Optimizer::restore(AdamW::default(), &specs(), &state, &Device::Cpu).unwrap();
        for step in 3..6 {
            let norms = [&mut straight, &mut resumed].map(|o| o.step(&learnt(step), 1e-3, step).unwrap());
            assert_eq!(norms[0], norms[1]);
        }
        assert_eq!(straight.state(().into()).unwrap(), resumed.state(().into()).unwrap());
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let start = init(&specs(), 0);
        let mut optimizer = Optimizer::new(AdamW::default(), &specs(), &start, &Device::Cpu).unwrap();
        let mut learnt = learnt(0);
        let bad = (learnt.gradients["b"].clone() * f64::NAN).unwrap();
        learnt.gradients.insert("b".into(), bad);
        assert!(optimizer.step(&learnt, 1e-3, 0).unwrap().is_nan());
        assert_eq!(optimizer.state(().into()).unwrap().weights, start);
    }

    #[test]
    fn running_statistics_move_as_pytorch_s_and_are_averaged_like_weights() {
        let statistic = |name: &str| ParamSpec {
            name: format!("bn.{name}"),
            dims: vec![2],
            init: Init::Zeros,
            trained: false,
        };
        let specs = [specs(), vec![statistic("running_mean"), statistic("running_var")]].concat();
        let start = init(&specs, 0);
        let mut optimizer = Optimizer::new(AdamW::default(), &specs, &start, &Device::Cpu).unwrap();
        let (mut value, mut ema) = (0.0f64, 0.0f64);
        for step in 0..4 {
            let mut learnt = learnt(step);
            assert!(optimizer.step(&learnt, 1e-3, step).is_err(), "a statistic that is never seen");
            // Two micro-batches, whose mean counts.
            let seen = |v: f64| {
                let tensor = |v: f64| Tensor::new(&[v as f32, 2.0 * v as f32], &Device::Cpu).unwrap();
                vec![BatchStatistics { path: "bn".into(), mean: tensor(v), var: tensor(10.0 * v) }]
            };
            learnt.statistics = vec![seen(step as f64), seen(step as f64 + 2.0)];
            optimizer.step(&learnt, 1e-3, step).unwrap();
            value = 0.9 * value + 0.1 * (step as f64 + 1.0);
            let decay = (step as f64 + 1.0) / (step as f64 + 10.0);
            ema = decay * ema + (1.0 - decay) * value;
        }
        let state = optimizer.state(().into()).unwrap();
        for (group, expected) in [(&state.weights, value), (&state.ema, ema)] {
            for (name, factor) in [("bn.running_mean", 1.0), ("bn.running_var", 10.0)] {
                for (i, &v) in group[name].data().iter().enumerate() {
                    let expected = expected * factor * (i + 1) as f64;
                    assert!((f64::from(v) - expected).abs() < 1e-5, "{name}: {v}, expected {expected}");
                }
            }
        }
        assert!(!state.moment1.contains_key("bn.running_mean"));
        let again = Optimizer::restore(AdamW::default(), &specs, &state, &Device::Cpu).unwrap();
        assert_eq!(again.state(().into()).unwrap(), state);
    }
}
