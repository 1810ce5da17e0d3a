//! The native runtime, which evaluates the definition with our own kernels.

use std::ops::Range;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tiny_cats_models::{
    Array, ResNet, ResNetConfig, Scope, TinyDit, TinyDitConfig, Weights,
    native::{Params, Value},
};

use super::{
    RuntimeKind,
    batch_split::{MAX_ITEMS_PER_PASS, items, split_batch},
    check_weights,
};
use crate::{Classify, Result, sample::Denoiser};

/// Version of this package, which is also that of the kernels.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A network on the CPU.
///
/// A batch with at least as many items as threads is split: each thread computes the entire network for a few items at a time.
/// Threads synchronize once, not at every operation. Results are unchanged, because an item's result does not depend on its batch.
pub struct NativeModel<M> {
    model: M,
    /// Pools of one thread each.
    threads: Vec<ThreadPool>,
}

impl<M: Sync> NativeModel<M> {
    fn new(model: M) -> Result<Self> {
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let threads = (0..rayon::current_num_threads()).map(pool).collect::<std::result::Result<_, _>>();
        Ok(Self { model, threads: threads.map_err(|e| RuntimeKind::Native.error(e))? })
    }

    /// Computes `forward` for the inputs of `n` items; the first axis of each input array is the batch.
    fn run<const N: usize>(
        &self,
        n: usize,
        inputs: [&Array; N],
        forward: impl Fn(&M, [Value; N]) -> tiny_cats_models::Result<Value> + Sync,
    ) -> Result<Array> {
        let part = |range: Range<usize>| -> Result<Array> {
            let mut values = Vec::with_capacity(N);
            for input in inputs {
                let (dims, data) = items(input, range.clone());
                values.push(Value::new(Array::new(dims, data.to_vec())?)?);
            }
            let values = values.try_into().expect("as many values as inputs");
            Ok(forward(&self.model, values)?.into_array())
        };
        if self.threads.len() < 2 || n < self.threads.len() {
            return part(0..n);
        }
        let mut threads: Vec<&ThreadPool> = self.threads.iter().collect();
        split_batch(&mut threads, n, MAX_ITEMS_PER_PASS, |thread, range| thread.install(|| part(range)))
    }
}

impl NativeModel<TinyDit<Value>> {
    /// Builds a generator from `weights`, which must be exactly those of the network.
    pub fn tiny_dit(config: &TinyDitConfig, weights: Weights) -> Result<Self> {
        check_weights(&config.cost()?.params, &weights)?;
        Self::new(TinyDit::new(config, &mut Scope::root(&mut Params::new(weights)))?)
    }
}

impl NativeModel<ResNet<Value>> {
    /// Builds a classifier from `weights`, which must be exactly those of the network.
    pub fn resnet(config: &ResNetConfig, weights: Weights) -> Result<Self> {
        check_weights(&config.specs()?, &weights)?;
        Self::new(ResNet::new(config, &mut Scope::root(&mut Params::new(weights)))?)
    }

    /// Computes the inputs of the classification layer, `[n, features]`, for normalized images `x` `[n, 3, size, size]`.
    pub fn features(&self, x: &Array) -> Result<Array> {
        self.run(batch(x), [x], |model, [x]| model.features(&x))
    }
}

fn batch(x: &Array) -> usize {
    x.dims().first().copied().unwrap_or(0)
}

impl Classify for NativeModel<ResNet<Value>> {
    fn logits(&mut self, x: &Array) -> Result<Array> {
        self.run(batch(x), [x], |model, [x]| model.forward(&x))
    }
}

impl Denoiser for NativeModel<TinyDit<Value>> {
    fn predict(&mut self, x: &Array, t: &[f32], label: &[i64]) -> Result<Array> {
        let label = Array::new([label.len()], label.iter().map(|&label| label as f32).collect())?;
        let t = Array::new([t.len()], t.to_vec())?;
        self.run(batch(x), [x, &t, &label], |model, [x, t, label]| model.forward(&x, &t, &label))
    }
}
