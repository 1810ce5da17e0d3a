//! Batches, made while the network computes.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};

use super::Result;

/// A micro-batch in the processor's memory: what its task's loss expects, in its order.
#[derive(Clone, Debug)]
pub struct Batch(pub Vec<Tensor>);

impl Batch {
    /// Its tensors on `device`.
    ///
    /// # Errors
    /// Those of candle.
    ///
    /// # Panics
    /// When there are not `N` of them.
    pub fn on<const N: usize>(&self, device: &Device) -> Result<[Tensor; N]> {
        let tensors = self.0.iter().map(|tensor| tensor.to_device(device));
        let tensors: Vec<Tensor> = tensors.collect::<candle_core::Result<_>>()?;
        Ok(tensors.try_into().expect("a task's batch has the tensors that its loss expects"))
    }
}

/// Makes micro-batches. What is in one depends on its place alone: not on who makes it, when, or what was made before.
pub trait Batches: Send + Sync {
    /// Items in the training data.
    fn items(&self) -> usize;

    /// The `len` items from `position` on, the number of items drawn before.
    ///
    /// # Errors
    /// When data cannot be read.
    fn batch(&self, position: u64, len: usize) -> Result<Batch>;

    /// The files of these items, to be named when something is wrong with them.
    fn files(&self, position: u64, len: usize) -> Vec<PathBuf>;
}

/// Hands out micro-batches of one size.
pub struct Loader {
    batches: Arc<dyn Batches>,
    size: usize,
    waited: Duration,
}

impl Loader {
    /// Micro-batches of `size` items.
    pub fn new(batches: Arc<dyn Batches>, size: usize) -> Self {
        Self { batches, size, waited: Duration::ZERO }
    }

    /// Items in a micro-batch.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How long was waited for data since this was last asked.
    pub fn waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// The micro-batch that begins at `position`.
    ///
    /// # Errors
    /// When data cannot be read.
    pub fn load(&mut self, position: u64) -> Result<Batch> {
        let begin = Instant::now();
        let batch = self.batches.batch(position, self.size);
        self.waited += begin.elapsed();
        batch
    }
}
