//! The classifier's task: a network trained with cross entropy.

use std::{path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use tiny_cats_export::{LoadableNetwork, ModelMeta, Prediction, TaskMeta};
use tiny_cats_models::{
    Network, Role, Scope, Sizes, TapeOptions, Weights,
    candle::{CandleValue, Params, to_host},
    cost::CostSummary,
    main_output,
    random::{Purpose, Stream},
    tape::{Tape, Var},
};

use super::{
    Batch, BatchSource, Error, InitialWeightsSource, Result, Score, Task,
    examples::{batch_dims, order, paths, task_settings},
    initial::initial_weights,
    task::smallest_batch,
};
use crate::{
    data::{Draw, Examples, Order},
    evaluate::ClassificationResults,
};

/// Examples that are evaluated at once: it bounds memory and does not affect the result.
const EVAL_BATCH: usize = 32;

/// Settings of a classifier's training, besides those of the engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ClassificationOptions<N> {
    /// The network: a [classifier](Role::Classifier) whose input has the sizes of the examples.
    pub network: N,
    /// The parameter of the Beta distribution by which two examples are mixed (mixup, arXiv 1710.09412), at most 1; 0 disables it.
    pub mixup: f64,
    /// The share of a target that is spread over all classes (arXiv 1512.00567).
    pub label_smoothing: f64,
    /// Seed of the order, the augmentation and the mixing.
    pub seed: u64,
    /// The base name of its released files, which affects nothing else.
    #[serde(skip)]
    pub name: String,
    /// A file with initial weights. The settings hold its name, not its path.
    #[serde(skip)]
    pub init: Option<InitialWeightsSource>,
}

impl<N: Network> ClassificationOptions<N> {
    /// Returns the options of plain training: no mixing, and 10 % label smoothing.
    pub fn new(network: N) -> Self {
        Self { network, mixup: 0.0, label_smoothing: 0.1, seed: 0, name: "classifier".into(), init: None }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for the first setting that is not valid.
    pub fn validate(&self) -> Result<()> {
        self.network.validate()?;
        if !matches!(self.network.role(), Role::Classifier { .. }) {
            let message = format!("expected a classifier, found {}", self.network.describe());
            return Err(Error::setting("network", message));
        }
        if !(0.0..=1.0).contains(&self.mixup) {
            return Err(Error::setting("mixup", format!("expected 0 to 1, found {}", self.mixup)));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let message = format!("expected 0 or more and less than 1, found {}", self.label_smoothing);
            return Err(Error::setting("label-smoothing", message));
        }
        Ok(())
    }

    /// Returns the sizes of the network's free axes for examples of the sizes `dims`.
    fn sizes(&self, dims: &[usize]) -> Result<Sizes> {
        let inputs = self.network.inputs();
        let [input] = &inputs[..] else {
            let message = format!("expected a network of one input, found {}", inputs.len());
            return Err(Error::setting("network", message));
        };
        let sizes = input.sizes(dims)?;
        // The definition knows which sizes it takes.
        self.network.cost(&sizes)?;
        Ok(sizes)
    }
}

/// The training of a classifier on labelled examples.
pub struct Classification<N> {
    data: Arc<ClassificationBatches<N>>,
    validation: Option<Arc<dyn Examples>>,
    /// The sizes of the network's free axes in training.
    sizes: Sizes,
    meta: ModelMeta,
    smallest_batch: usize,
    device: Device,
}

/// The source of the classifier's batches.
struct ClassificationBatches<N> {
    options: ClassificationOptions<N>,
    train: Arc<dyn Examples>,
    order: Order,
}

impl<N: LoadableNetwork> Classification<N> {
    /// Creates the task for the classes of `train`, evaluated on `validation` if there is any.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] if examples, network and settings do not match.
    pub fn new(
        options: ClassificationOptions<N>,
        train: Arc<dyn Examples>,
        validation: Option<Arc<dyn Examples>>,
        device: Device,
    ) -> Result<Self> {
        options.validate()?;
        let classes = train.classes().to_vec();
        if options.network.role().classes() != Some(classes.len()) {
            let found = options.network.role().classes().unwrap_or(0);
            let message = format!("expected the data's {} classes, found {found}", classes.len());
            return Err(Error::setting("network", message));
        }
        let sizes = options.sizes(&train.training_dims())?;
        let eval_sizes = options.sizes(&train.dims())?;
        let mut meta = ModelMeta::for_network(options.network.clone(), eval_sizes, classes)?;
        if let (TaskMeta::Classifier(task), Some(preprocessing)) = (&mut meta.task, train.preprocessing()) {
            task.preprocessing = preprocessing;
        }
        let smallest_batch = smallest_batch(&options.network.specs()?);
        let order = order(options.seed, &*train, validation.as_deref())?;
        let data = Arc::new(ClassificationBatches { options, train, order });
        Ok(Self { data, validation, sizes, meta, smallest_batch, device })
    }

    /// Classifies `examples` with `weights` and collects the results: see [`classify`].
    ///
    /// # Errors
    /// Returns errors of the network.
    pub fn classify(&self, weights: &Weights, examples: &dyn Examples) -> Result<ClassificationResults> {
        classify(&self.data.options.network, weights, examples, &self.device)
    }
}

/// Classifies `examples` with a network and its `weights`, and collects the results.
///
/// # Errors
/// Returns errors of the network.
pub fn classify<N: Network>(
    network: &N,
    weights: &Weights,
    examples: &dyn Examples,
    device: &Device,
) -> Result<ClassificationResults> {
    let (dims, classes) = (examples.dims(), examples.classes());
    let len: usize = dims.iter().product();
    let mut params = Params::new(weights, DType::F32, device)?;
    let network = network.build::<CandleValue>(&mut Scope::root(&mut params))?;
    let mut results = ClassificationResults::new(classes);
    let all: Vec<usize> = (0..examples.count()).collect();
    for chosen in all.chunks(EVAL_BATCH) {
        let mut values = vec![0.0; chosen.len() * len];
        values.par_chunks_mut(len).zip(chosen).try_for_each(|(out, &index)| examples.fill(index, out))?;
        let x = Tensor::from_vec(values, batch_dims(chosen.len(), &dims), device)?;
        let logits = main_output(N::forward(&network, &[CandleValue::new(x)])?)?;
        let logits = to_host(&logits.into_inner())?;
        for (row, &index) in logits.data().chunks(classes.len()).zip(chosen) {
            results.add(examples.label(index) as usize, &Prediction::new(row, classes));
        }
    }
    Ok(results)
}

impl<N> ClassificationBatches<N> {
    /// The share of the example at `position` in a mixture; the rest is the next one in the batch.
    fn share(&self, position: u64) -> f32 {
        let alpha = self.options.mixup;
        if alpha == 0.0 {
            return 1.0;
        }
        // Beta(α, α) for α ≤ 1 by Jöhnk's method (1964).
        let mut stream = Stream::new(self.options.seed, Purpose::Training, position);
        loop {
            let [a, b] = [stream.uniform(), stream.uniform()].map(|u| u.powf(1.0 / alpha));
            if a + b <= 1.0 && a + b > 0.0 {
                return (a / (a + b)) as f32;
            }
        }
    }
}

impl<N: Network> BatchSource for ClassificationBatches<N> {
    fn items(&self) -> usize {
        self.train.count()
    }

    fn batch(&self, position: u64, batch: usize) -> Result<Batch> {
        let (dims, classes) = (self.train.training_dims(), self.train.classes().len());
        let len: usize = dims.iter().product();
        let chosen = self.order.range(position, batch);
        let mut pure = vec![0.0; batch * len];
        let outputs = pure.par_chunks_mut(len).zip(chosen.par_iter().enumerate());
        outputs.try_for_each(|(out, (i, &index))| {
            let draw = Draw { seed: self.options.seed, position: position + i as u64 };
            self.train.fill_augmented(index, draw, out)
        })?;
        let smooth = self.options.label_smoothing as f32;
        let mut targets = vec![smooth / classes as f32; batch * classes];
        let mut mixed = vec![0.0; batch * len];
        let outputs = mixed.par_chunks_mut(len).zip(targets.par_chunks_mut(classes));
        outputs.enumerate().for_each(|(i, (out, target))| {
            let (next, share) = ((i + 1) % batch, self.share(position + i as u64));
            let values = |i: usize| &pure[i * len..(i + 1) * len];
            let pairs = values(i).iter().zip(values(next));
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = share * a + (1.0 - share) * b);
            for (i, share) in [(i, share), (next, 1.0 - share)] {
                target[self.train.label(chosen[i]) as usize] += share * (1.0 - smooth);
            }
        });
        Ok(Batch(vec![
            Tensor::from_vec(mixed, batch_dims(batch, &dims), &Device::Cpu)?,
            Tensor::from_vec(targets, (batch, classes), &Device::Cpu)?,
        ]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        paths(&*self.train, &self.order, position, len)
    }
}

impl<N: LoadableNetwork> Task for Classification<N> {
    fn kind(&self) -> &'static str {
        "classifier"
    }

    fn release_name(&self) -> String {
        self.data.options.name.clone()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(self.data.options.network.cost(&self.sizes)?)
    }

    fn initial_weights(&self, seed: u64) -> Result<Weights> {
        initial_weights(&self.cost()?.params, seed, self.data.options.init.as_ref())
    }

    fn smallest_batch(&self) -> usize {
        self.smallest_batch
    }

    fn training_bytes(&self, batch: usize, options: TapeOptions) -> Result<u64> {
        Ok(self.data.options.network.training_bytes(&self.sizes, batch, options)?)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.data.clone()
    }

    fn settings(&self) -> serde_json::Value {
        let ClassificationBatches { options, train, .. } = &*self.data;
        let mut settings = task_settings(options, &**train, self.validation.as_deref());
        settings["init"] = options.init.as_ref().and_then(InitialWeightsSource::name).into();
        settings
    }

    fn meta(&self) -> ModelMeta {
        self.meta.clone()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [x, targets] = batch.to_device(&self.device)?;
        let network = self.data.options.network.build(&mut Scope::root(&mut tape.params(params)))?;
        let logits = main_output(N::forward(&network, &[tape.constant(x)])?)?;
        Ok(logits.cross_entropy(&targets)?)
    }

    fn evaluate(&mut self, weights: &Weights) -> Result<Vec<Score>> {
        let Some(examples) = &self.validation else { return Ok(Vec::new()) };
        let results = self.classify(weights, &**examples)?;
        let top3 = f64::from(results.top_k_correct()) / f64::from(results.total());
        let scores = [
            ("validation_accuracy", results.confusion.accuracy()),
            ("validation_top3", top3),
            ("validation_recall", results.confusion.mean_recall()),
        ];
        Ok(scores.map(|(name, value)| Score { name, value, higher_is_better: true }).to_vec())
    }
}
