//! The definition itself, computed by our own kernels.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use tiny_cats_models::{
    Array, ResNet, ResNetConfig, Scope, TinyDit, TinyDitConfig, Weights,
    native::{Params, Value},
};

use super::{RuntimeKind, check_weights};
use crate::{Classify, Result, sample::Denoiser};

/// The kernels are those of this package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The most items that a thread takes through the network at a time: weights are read once for all of them, and what they become stays in
/// its cache.
const GROUP: usize = 4;

/// A network on the processor.
///
/// Of a batch of at least as many items as there are threads, each thread takes some at a time through the whole network: threads wait
/// for each other once, not at every operation. That changes no result, since an item's does not depend on what it is computed with.
pub struct Native<M> {
    model: M,
    /// Pools of one thread each.
    threads: Vec<ThreadPool>,
}

impl<M: Sync> Native<M> {
    fn new(model: M) -> Result<Self> {
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let threads = (0..rayon::current_num_threads()).map(pool).collect::<std::result::Result<_, _>>();
        Ok(Self { model, threads: threads.map_err(|e| RuntimeKind::Native.error(e))? })
    }

    /// What `forward` makes of the inputs of `n` items, each input an array with an item in each place of its first axis.
    fn run<const N: usize>(
        &self,
        n: usize,
        inputs: [&Array; N],
        forward: impl Fn(&M, [Value; N]) -> tiny_cats_models::Result<Value> + Sync,
    ) -> Result<Array> {
        let part = |from: usize, n: usize| -> Result<Array> {
            let mut values = Vec::with_capacity(N);
            for input in inputs {
                values.push(Value::new(items(input, from, n)?)?);
            }
            let values = values.try_into().expect("as many values as inputs");
            Ok(forward(&self.model, values)?.into_array())
        };
        if self.threads.len() < 2 || n < self.threads.len() {
            return part(0, n);
        }
        let group = (n / self.threads.len()).min(GROUP);
        let next = AtomicUsize::new(0);
        // Which is the next group is asked when a thread is free, so that none waits long for a slower one.
        let some = |pool: &ThreadPool| {
            let starts =
                std::iter::from_fn(|| Some(next.fetch_add(group, Ordering::Relaxed)).filter(|&at| at < n));
            pool.install(|| {
                starts.map(|at| Ok((at, part(at, group.min(n - at))?))).collect::<Result<Vec<_>>>()
            })
        };
        let mut parts: Vec<_> =
            self.threads.par_iter().map(some).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        parts.sort_by_key(|&(at, _)| at);
        let mut dims = parts.first().map(|(_, array)| array.dims().to_vec()).unwrap_or_default();
        if let Some(batch) = dims.first_mut() {
            *batch = n;
        }
        Ok(Array::new(dims, parts.into_iter().flat_map(|(_, array)| array.into_data()).collect())?)
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

impl Native<TinyDit<Value>> {
    /// Builds a generator out of `weights`, which must be its own: all of them, and no others.
    pub fn tiny_dit(config: &TinyDitConfig, weights: Weights) -> Result<Self> {
        check_weights(&config.cost()?.params, &weights)?;
        Self::new(TinyDit::new(config, &mut Scope::root(&mut Params::new(weights)))?)
    }
}

impl Native<ResNet<Value>> {
    /// Builds a classifier out of `weights`, which must be its own: all of them, and no others.
    pub fn resnet(config: &ResNetConfig, weights: Weights) -> Result<Self> {
        check_weights(&config.specs()?, &weights)?;
        Self::new(ResNet::new(config, &mut Scope::root(&mut Params::new(weights)))?)
    }

    /// What the classifying layer is given, `[n, features]`, of normalised pictures `x` `[n, 3, size, size]`.
    pub fn features(&self, x: &Array) -> Result<Array> {
        self.run(batch(x), [x], |model, [x]| model.features(&x))
    }
}

fn batch(x: &Array) -> usize {
    x.dims().first().copied().unwrap_or(0)
}

impl Classify for Native<ResNet<Value>> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        self.run(batch(x), [x], |model, [x]| model.forward(&x))
    }
}

impl Denoiser for Native<TinyDit<Value>> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let label = Array::new([label.len()], label.iter().map(|&label| label as f32).collect())?;
        let t = Array::new([t.len()], t.to_vec())?;
        self.run(batch(x), [x, &t, &label], |model, [x, t, label]| model.forward(&x, &t, &label))
    }
}
