//! The trait that a task implements for the engine.

use std::sync::Arc;

use serde_json::Value;
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    ParamSpec, TapeOptions, Weights,
    candle::Params,
    cost::CostSummary,
    init,
    tape::{Tape, Var},
};

use super::{Batch, BatchSource, Result, Sample, Score};

/// Returns the smallest micro-batch of a network with these parameters. The statistics of one item have no variance.
pub(super) fn smallest_batch(specs: &[ParamSpec]) -> usize {
    if specs.iter().all(|spec| spec.trainable) { 1 } else { 2 }
}

/// A trainable task. All its random draws depend only on its seed and the position in the data.
pub trait Task {
    /// The kind of task, such as `dit` or `classifier`, which names its runs and training states.
    fn kind(&self) -> &'static str;

    /// The base name of the released files: `NAME.pt`. By default it is the kind.
    fn release_name(&self) -> String {
        self.kind().into()
    }

    /// Computes the network's parameters and the training cost of one item. By default they are those of the network in the metadata.
    ///
    /// # Errors
    /// Returns an error if the network's settings are not valid.
    fn cost(&self) -> Result<CostSummary> {
        let meta = self.meta();
        Ok(meta.config.network()?.cost(&meta.sizes())?)
    }

    /// Predicts the peak bytes that the forward and backward pass of `batch` items takes, besides weights and batch. By default they are
    /// those of the network in the metadata.
    ///
    /// # Errors
    /// Returns an error if the network's settings are not valid.
    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        let meta = self.meta();
        Ok(meta.config.network()?.training_bytes(&meta.sizes(), batch, options)?)
    }

    /// Returns the weights at step 0.
    ///
    /// # Errors
    /// Returns an error if they cannot be read or computed.
    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        Ok(init(&self.cost()?.params, seed))
    }

    /// The smallest micro-batch: by default two if the network normalizes it by its own statistics, otherwise one.
    fn smallest_batch(&self) -> usize {
        self.cost().map_or(1, |cost| smallest_batch(&cost.params))
    }

    /// Returns the source of the batches, which the loader's workers share.
    fn batches(&self) -> Arc<dyn BatchSource>;

    /// All settings and the data's fingerprint: a run is resumed only if they are the same.
    fn settings(&self) -> Value;

    /// The metadata of the released files.
    fn meta(&self) -> ModelMeta;

    /// Computes the mean loss of a micro-batch.
    ///
    /// # Errors
    /// Returns errors of the network.
    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var>;

    /// Evaluates the network on data that it is not trained on, always in the same way.
    ///
    /// The first score selects the best weights. Empty if there is no evaluation.
    ///
    /// # Errors
    /// Returns errors of the network.
    fn evaluate(&mut self, _weights: &Weights) -> Result<Vec<Score>> {
        Ok(Vec::new())
    }

    /// True if the weights with the best evaluation are released, false for the last ones.
    fn releases_best(&self) -> bool {
        true
    }

    /// Makes a sample of what the network does, such as a grid of generated images; `None` if the task has no samples.
    ///
    /// # Errors
    /// Returns errors of the network.
    fn sample(&mut self, _weights: &Weights) -> Result<Option<Sample>> {
        Ok(None)
    }
}
