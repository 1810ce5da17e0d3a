//! The definition itself, read by candle.

use candle_core::{DType, Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use tiny_cats_models::{
    Array, Error as ModelError, ParamSpec, ResNet, ResNetConfig, Scope, TinyDit, TinyDitConfig, Weights,
    candle::{Params, Plain, best_device, to_device, to_host},
};

use super::RuntimeKind;
use crate::{Classify, Error, Result, sample::Denoiser};

pub const VERSION: &str = "0.11.1";

/// A network on the processor, or on the first NVIDIA GPU where there is one.
///
/// On a processor a batch of at least as many items as there are threads is cut into as many parts, each of which one thread takes through
/// the whole network: threads wait for each other once, not at every operation.
pub struct Definition<M> {
    model: M,
    device: Device,
    /// Pools of one thread each; none on a GPU.
    threads: Vec<ThreadPool>,
}

impl<M: Sync> Definition<M> {
    fn new(model: M, device: Device) -> Result<Self> {
        let count = if device.is_cpu() { rayon::current_num_threads() } else { 0 };
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let threads = (0..count).map(pool).collect::<std::result::Result<_, _>>();
        Ok(Self { model, device, threads: threads.map_err(|e| RuntimeKind::Candle.error(e))? })
    }

    /// What `forward` makes of `n` items, of which it is given a part, the first and the number of its items.
    fn run(&self, n: usize, forward: impl Fn(usize, usize) -> Result<Array> + Sync) -> Result<Array> {
        let parts = self.threads.len();
        if parts < 2 || n < parts {
            return forward(0, n);
        }
        let part = |i: usize| (i * n / parts, (i + 1) * n / parts);
        let run = |(i, pool): (usize, &ThreadPool)| {
            let (from, to) = part(i);
            pool.install(|| forward(from, to - from))
        };
        let results: Vec<Array> = self.threads.par_iter().enumerate().map(run).collect::<Result<_>>()?;
        let mut dims = results.first().map(|array| array.dims().to_vec()).unwrap_or_default();
        if let Some(batch) = dims.first_mut() {
            *batch = n;
        }
        Ok(Array::new(dims, results.into_iter().flat_map(Array::into_data).collect())?)
    }
}

/// Items of `x`, `n` of them from number `from` on.
fn items(x: &Array, from: usize, n: usize) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let len: usize = dims.iter().skip(1).product();
    if let Some(batch) = dims.first_mut() {
        *batch = n;
    }
    Ok(Array::new(dims, x.data().get(from * len..(from + n) * len).unwrap_or(&[]).to_vec())?)
}

impl Definition<TinyDit<Plain>> {
    /// Builds a generator out of `weights`, which must be its own: all of them, and no others.
    pub fn tiny_dit(config: &TinyDitConfig, weights: &Weights) -> Result<Self> {
        let (mut params, device) = params(config.cost()?.params, weights)?;
        Self::new(TinyDit::new(config, &mut Scope::root(&mut params))?, device)
    }
}

impl Definition<ResNet<Plain>> {
    /// Builds a classifier out of `weights`, which must be its own: all of them, and no others.
    pub fn resnet(config: &ResNetConfig, weights: &Weights) -> Result<Self> {
        let (mut params, device) = params(config.specs()?, weights)?;
        Self::new(ResNet::new(config, &mut Scope::root(&mut params))?, device)
    }

    /// What the classifying layer is given, `[n, features]`, of normalised pictures `x` `[n, 3, size, size]`.
    pub fn features(&self, x: &Array) -> Result<Array> {
        let x = to_device(x, DType::F32, &self.device)?;
        Ok(to_host(&self.model.features(&Plain::new(x))?.into_inner())?)
    }
}

fn params(specs: Vec<ParamSpec>, weights: &Weights) -> Result<(Params, Device)> {
    if let Some(other) = weights.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
        return Err(Error::file("weights", other, "the network has no parameter of this name"));
    }
    let device = best_device();
    Ok((Params::new(weights, DType::F32, &device)?, device))
}

impl Classify for Definition<ResNet<Plain>> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        self.run(x.dims().first().copied().unwrap_or(0), |from, n| {
            let x = to_device(&items(x, from, n)?, DType::F32, &self.device)?;
            Ok(to_host(&self.model.forward(&Plain::new(x))?.into_inner())?)
        })
    }
}

impl Denoiser for Definition<TinyDit<Plain>> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let whole = |&label: &i64| {
            u32::try_from(label).map_err(|_| RuntimeKind::Candle.error(format!("label {label}")))
        };
        let label = label.iter().map(whole).collect::<Result<Vec<u32>>>()?;
        self.run(t.len().min(label.len()), |from, n| {
            let vectors = || -> candle_core::Result<_> {
                Ok((
                    Tensor::from_slice(&t[from..from + n], n, &self.device)?,
                    Tensor::from_slice(&label[from..from + n], n, &self.device)?,
                ))
            };
            let (t, label) = vectors().map_err(ModelError::from)?;
            let x = to_device(&items(x, from, n)?, DType::F32, &self.device)?;
            let y = self.model.forward(&Plain::new(x), &Plain::new(t), &Plain::new(label))?;
            Ok(to_host(&y.into_inner())?)
        })
    }
}
