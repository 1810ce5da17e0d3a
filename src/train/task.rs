//! What a task supplies to the engine.

use std::sync::Arc;

use image::RgbImage;
use serde_json::Value;
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    TapeOptions, Weights,
    candle::Params,
    cost::CostSummary,
    init,
    tape::{Tape, Var},
};

use super::{Batch, BatchSource, Result, Score};

/// What is trained. Whatever a task draws at random depends on its seed and the position in the data alone.
pub trait Task {
    /// Which task it is, `dit` or `classifier`: what its runs and training states are called by.
    fn kind(&self) -> &'static str;

    /// What its released files are called: `NAME.pt`.
    fn release_name(&self) -> String;

    /// The network's parameters, and what one item costs in training.
    ///
    /// # Errors
    /// When there is no such network.
    fn cost(&self) -> Result<CostSummary>;

    /// The most bytes that learning from a micro-batch of `batch` items has in use, besides weights and batch.
    ///
    /// # Errors
    /// When there is no such network.
    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64>;

    /// The weights that a run begins with.
    ///
    /// # Errors
    /// When they cannot be had.
    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        Ok(init(&self.cost()?.params, seed))
    }

    /// Items that a micro-batch must have: two or more where it is normalised by its own statistics.
    fn smallest_batch(&self) -> usize {
        1
    }

    /// What makes its batches; the workers share it.
    fn batches(&self) -> Arc<dyn BatchSource>;

    /// All settings and the data's fingerprint: a run goes on only with the same.
    fn settings(&self) -> Value;

    /// What a released file says about the model.
    fn meta(&self) -> ModelMeta;

    /// The mean loss of a micro-batch.
    ///
    /// # Errors
    /// Those of the network.
    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var>;

    /// How good the network is on data that it is not trained on, always measured alike; the score that decides comes first. None where
    /// there is no measure.
    ///
    /// # Errors
    /// Those of the network.
    fn evaluate(&mut self, _weights: &Weights) -> Result<Vec<Score>> {
        Ok(Vec::new())
    }

    /// Whether the weights that were evaluated best are released, or else the last.
    fn releases_best(&self) -> bool {
        true
    }

    /// What the network can do so far, to look at.
    ///
    /// # Errors
    /// Those of the network.
    fn sample_grid(&mut self, weights: &Weights) -> Result<Option<RgbImage>>;
}
