//! The task: batches, loss and evaluation.

use std::{path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tiny_cats::train::{Batch, BatchSource, Result, Score, Task};
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    Sizes, Weights,
    candle::{self, Params},
    tape::{Tape, Var},
};

use crate::{
    data,
    network::{Digits, SIDE},
};

/// Number of training items. Evaluation uses another seed.
const ITEMS: usize = 4096;
const TRAINING_SEED: u64 = 1;
const EVALUATION_SEED: u64 = 2;

pub struct Training {
    pub network: Digits,
}

/// The source of batches, which loader threads share.
struct DigitSource;

/// Generates `len` items: images `[len, 1, SIDE, SIDE]` and probabilities `[len, 10]`.
fn batch(seed: u64, position: u64, len: usize) -> candle_core::Result<[Tensor; 2]> {
    let (mut images, mut targets) = (vec![0.0; len * SIDE * SIDE], vec![0f32; len * 10]);
    for (i, image) in images.chunks_mut(SIDE * SIDE).enumerate() {
        targets[i * 10 + data::draw(seed, position + i as u64, image)] = 1.0;
    }
    let images = Tensor::from_vec(images, (len, 1, SIDE, SIDE), &Device::Cpu)?;
    Ok([images, Tensor::from_vec(targets, (len, 10), &Device::Cpu)?])
}

impl BatchSource for DigitSource {
    fn items(&self) -> usize {
        ITEMS
    }

    fn batch(&self, position: u64, len: usize) -> Result<Batch> {
        Ok(Batch(batch(TRAINING_SEED, position, len)?.to_vec()))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        (position..position + len as u64).map(|item| format!("item {item}").into()).collect()
    }
}

impl Task for Training {
    fn kind(&self) -> &'static str {
        "digits"
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        Arc::new(DigitSource)
    }

    fn settings(&self) -> Value {
        json!({ "network": self.network, "items": ITEMS })
    }

    fn meta(&self) -> ModelMeta {
        let classes = (0..10).map(|digit| digit.to_string()).collect();
        ModelMeta::for_network(self.network.clone(), Sizes::new(), classes).expect("a valid configuration")
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [images, targets] = batch.to_device(&Device::Cpu)?;
        Ok(tape.forward(&self.network, params, &[images])?.cross_entropy(&targets)?)
    }

    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let [images, targets] = batch(EVALUATION_SEED, 0, 500)?;
        let logits = candle::forward(&self.network, weights, &[images], &Device::Cpu)?;
        let correct = logits.argmax(1)?.eq(&targets.argmax(1)?)?.to_dtype(candle_core::DType::F32)?;
        let value = f64::from(correct.mean_all()?.to_scalar::<f32>()?);
        Ok(vec![Score { name: "accuracy", value, higher_is_better: true }])
    }
}
