//! The parameters of a run and their update: by a rule, with gradient clipping and exponential moving averages of the weights.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tiny_cats_models::{
    ParamSpec, Weights,
    candle::{Params, has_kernels},
    tape::{BatchStatistics, Gradients},
};

use super::{
    AdamW, Error, Result,
    group::{Group, GroupUpdate, Member, Part, ROW, concat, sum_of_squares, sum_of_squares_composed},
    rule::{MAX_MOMENTS, Update, UpdateRule},
};
use crate::checkpoint::TrainingState;

/// Settings of an optimizer: the rule, and what all rules share.
#[derive(Clone, Debug)]
pub struct OptimizerOptions {
    /// The rule that updates the weights.
    pub rule: Arc<dyn UpdateRule>,
    /// Maximum norm of the gradients, to which larger ones are clipped; 0 disables clipping.
    pub clip: f64,
    /// Decays of the weights' moving averages, one or two.
    ///
    /// Each is at most `(1 + n)/(10 + n)` after `n` steps, so that short runs also have a useful average.
    pub ema: Vec<f64>,
}

/// Maximum number of moving averages.
pub const MAX_AVERAGES: usize = 2;

/// Keys in the settings of an optimizer that are not settings of its rule.
const RESERVED_KEYS: [&str; 3] = [NAME_KEY, "clip", "ema"];
/// The key of the rule's name.
const NAME_KEY: &str = "name";

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self::new(AdamW::default())
    }
}

impl OptimizerOptions {
    /// Returns the options for `rule`, with gradients clipped to a norm of 1 and one moving average, with a decay of 0.9999.
    pub fn new(rule: impl UpdateRule + 'static) -> Self {
        Self { rule: Arc::new(rule), clip: 1.0, ema: vec![0.9999] }
    }

    /// The parts that are stored for each parameter, in their order.
    fn parts(&self) -> Vec<Part> {
        let moments = (0..self.rule.moments()).map(Part::Moment);
        [Part::Weights].into_iter().chain(moments).chain((0..self.ema.len()).map(Part::Average)).collect()
    }

    /// Returns the settings as recorded in a run: those of the rule, its name, `clip` and `ema`.
    ///
    /// AdamW has no name there: runs of versions that had no other rule resume.
    ///
    /// # Errors
    /// Returns an error if the rule has too many moments, or its settings are not an object or have a reserved key.
    pub fn settings(&self) -> Result<Value> {
        let name = self.rule.name();
        let fail = |message: String| Err(Error::setting("optimizer", format!("{name}: {message}")));
        if self.rule.moments() > MAX_MOMENTS {
            return fail(format!("expected at most {MAX_MOMENTS} moments, found {}", self.rule.moments()));
        }
        let Value::Object(mut settings) = self.rule.settings() else {
            return fail("expected an object of settings".to_owned());
        };
        if let Some(key) = RESERVED_KEYS.iter().find(|key| settings.contains_key(**key)) {
            return fail(format!("the key {key} of its settings is reserved"));
        }
        settings.extend([("clip".to_owned(), json!(self.clip)), ("ema".to_owned(), json!(self.ema))]);
        if name != AdamW::NAME {
            settings.insert(NAME_KEY.to_owned(), json!(name));
        }
        Ok(settings.into())
    }
}

/// Returns the name of the rule in `settings`, those of a run.
pub(super) fn rule_name(settings: &Value) -> &str {
    settings["optimizer"][NAME_KEY].as_str().unwrap_or(AdamW::NAME)
}

/// The running statistics of batch normalizations and their moving averages.
struct RunningStatistics {
    members: Vec<Member>,
    value: Tensor,
    ema: Vec<Tensor>,
}

/// The share of a running statistic that one step replaces; PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// The parameters of a run and their optimizer.
pub struct Optimizer {
    options: OptimizerOptions,
    groups: Vec<Group>,
    running: Option<RunningStatistics>,
    /// True if steps use the fused kernel of the rule for CPUs, false for candle's operations.
    fused: bool,
    device: Device,
}

/// The gradients and statistics of one step's micro-batches.
#[derive(Default)]
pub struct StepGradients {
    /// Gradients by parameter name, times the loss scale.
    pub gradients: Gradients,
    /// Statistics of the batch normalizations, one list for each micro-batch, each in the order of the network.
    pub statistics: Vec<Vec<BatchStatistics>>,
}

/// The options of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Learning rate.
    pub rate: f64,
    /// Updates before this one; skipped steps do not count.
    pub updates: u64,
    /// The loss scale; 1 without scaling.
    pub scale: f64,
}

impl Optimizer {
    /// Makes the optimizer of a run that starts from `weights`.
    ///
    /// # Errors
    /// Returns an error if `weights` do not match `specs`, and those of [`OptimizerOptions::settings`].
    pub fn new(
        options: OptimizerOptions,
        specs: &[ParamSpec],
        weights: &Weights,
        device: &Device,
    ) -> Result<Self> {
        let state = TrainingState { weights: weights.clone(), ..TrainingState::default() };
        Self::restore(options, specs, &state, device)
    }

    /// Makes the optimizer of a run that resumes from `state`; missing parts start as in a new run.
    ///
    /// # Errors
    /// Returns an error if its weights do not match `specs`, and those of [`OptimizerOptions::settings`].
    pub fn restore(
        options: OptimizerOptions,
        specs: &[ParamSpec],
        state: &TrainingState,
        device: &Device,
    ) -> Result<Self> {
        options.settings()?;
        let fused = has_kernels(device);
        let (parts, moments) = (options.parts(), options.rule.moments());
        let (trained, statistics): (Vec<_>, Vec<_>) = specs.iter().partition(|s| s.trainable);
        let group_specs: Vec<Vec<&ParamSpec>> = if fused || !options.rule.is_elementwise() {
            trained.into_iter().map(|spec| vec![spec]).collect()
        } else {
            let (decaying, others) = trained.into_iter().partition(|spec| spec.has_weight_decay);
            [decaying, others].into_iter().filter(|group: &Vec<_>| !group.is_empty()).collect()
        };
        let group = |specs: Vec<&ParamSpec>| -> Result<Group> {
            let (members, n) = Member::layout(&specs);
            let n = if fused { n } else { n.next_multiple_of(ROW) };
            let mut packed = Vec::with_capacity(parts.len() * n);
            for (i, &part) in parts.iter().enumerate() {
                for spec in &specs {
                    packed.extend(values(spec, state, part)?);
                }
                packed.resize((i + 1) * n, 0.0);
            }
            let packed = Tensor::from_vec(packed, (parts.len(), n), device)?;
            Ok(Group { members, decays: specs[0].has_weight_decay, moments, packed })
        };
        let running = |specs: Vec<&ParamSpec>| -> Result<RunningStatistics> {
            let (members, n) = Member::layout(&specs);
            let part = |part| -> Result<Tensor> {
                let values =
                    specs.iter().map(|spec| values(spec, state, part)).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::from_vec(values.concat(), n, device)?)
            };
            let ema = (0..options.ema.len()).map(|i| part(Part::Average(i))).collect::<Result<_>>()?;
            Ok(RunningStatistics { members, value: part(Part::Weights)?, ema })
        };
        let groups = group_specs.into_iter().map(group).collect::<Result<_>>()?;
        let running = if statistics.is_empty() { None } else { Some(running(statistics)?) };
        Ok(Self { options, groups, running, fused, device: device.clone() })
    }

    /// Returns the current weights for a forward pass. They are views: call this again after each step.
    ///
    /// # Errors
    /// Returns errors of candle.
    pub fn params(&self) -> Result<Params> {
        let mut tensors = HashMap::new();
        let mut put = |members: &[Member], flat: &Tensor| -> Result<()> {
            for member in members {
                tensors.insert(member.name.clone(), member.view(flat)?);
            }
            Ok(())
        };
        for group in &self.groups {
            put(&group.members, &group.part(Part::Weights)?)?;
        }
        if let Some(running) = &self.running {
            put(&running.members, &running.value)?;
        }
        Ok(Params::from_tensors(tensors, DType::F32, &self.device))
    }

    /// Updates all parameters with `step_gradients` and moves running statistics toward the mean of the micro-batches.
    ///
    /// Returns the norm of the gradients before clipping. Nothing is changed if that norm is not finite.
    ///
    /// # Errors
    /// Returns an error if a parameter has no gradient: the network does not use it, so it would never be trained.
    pub fn step(&mut self, step_gradients: &StepGradients, options: StepOptions) -> Result<f64> {
        let gradients: Vec<Tensor> = self
            .groups
            .iter()
            .map(|group| group.gradient(&step_gradients.gradients))
            .collect::<Result<_>>()?;
        let sum = if self.fused {
            gradients.iter().map(sum_of_squares).sum::<Result<f64>>()?
        } else {
            sum_of_squares_composed(&gradients)?
        };
        let norm = sum.sqrt() / options.scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clip = self.options.clip;
        let number = (options.updates + 1).min(1 << 30);
        let warmup_decay = number as f64 / (number as f64 + 9.0);
        let ema: Vec<f64> = self.options.ema.iter().map(|decay| decay.min(warmup_decay)).collect();
        self.update_statistics(&step_gradients.statistics, &ema)?;
        for (group, gradient) in self.groups.iter().zip(&gradients) {
            let update = Update {
                rate: options.rate,
                number,
                gradient_scale: if clip > 0.0 && norm > clip { clip / norm } else { 1.0 } / options.scale,
                has_weight_decay: group.decays,
            };
            let update = GroupUpdate { rule: &*self.options.rule, update, ema: &ema, group };
            if self.fused {
                update.apply_fused(gradient)?;
            } else {
                update.apply_with_candle_ops(gradient)?;
            }
        }
        Ok(norm)
    }

    /// Updates the running statistics, and their averages by `decays`.
    fn update_statistics(&mut self, statistics: &[Vec<BatchStatistics>], decays: &[f64]) -> Result<()> {
        let interpolate = |old: &Tensor, new: &Tensor, keep: f64| -> candle_core::Result<Tensor> {
            (old * keep)? + (new * (1.0 - keep))?
        };
        let Some(running) = &mut self.running else { return Ok(()) };
        let found = |batch: &Vec<BatchStatistics>| -> Result<Tensor> {
            let one = |member: &Member| {
                let found = batch.iter().find_map(|s| match member.name.strip_prefix(&s.path)? {
                    ".running_mean" => Some(s.mean.clone()),
                    ".running_var" => Some(s.var.clone()),
                    _ => None,
                });
                let missing = || {
                    Error::setting("network", format!("statistic {} is missing in the batch", member.name))
                };
                found.ok_or_else(missing)
            };
            concat(running.members.iter().map(one).collect::<Result<_>>()?)
        };
        let statistics: Vec<Tensor> = statistics.iter().map(found).collect::<Result<_>>()?;
        if statistics.is_empty() {
            return Err(Error::setting("network", "no batch has running statistics"));
        }
        let mean = Tensor::stack(&statistics, 0)?.mean(0)?;
        running.value = interpolate(&running.value, &mean, 1.0 - MOMENTUM)?;
        for (average, decay) in running.ema.iter_mut().zip(decays) {
            *average = interpolate(average, &running.value, *decay)?;
        }
        Ok(())
    }

    /// Returns one part of all parameters, with the running statistics that belong to it.
    fn part(&self, part: Part) -> Result<Weights> {
        let mut weights = Weights::new();
        let mut put = |members: &[Member], flat: &Tensor| -> Result<()> {
            // Copies only this part, because candle copies the whole storage of a view from a GPU.
            let values = flat.force_contiguous()?.to_vec1::<f32>()?;
            for member in members {
                weights.insert(member.name.clone(), member.array(&values)?);
            }
            Ok(())
        };
        for group in &self.groups {
            put(&group.members, &group.part(part)?)?;
        }
        if let Some(running) = &self.running {
            match part {
                Part::Weights => put(&running.members, &running.value)?,
                Part::Moment(_) => {}
                Part::Average(i) => put(&running.members, &running.ema[i])?,
            }
        }
        Ok(weights)
    }

    /// The number of moving averages of the weights.
    pub fn averages(&self) -> usize {
        self.options.ema.len()
    }

    /// Returns moving average `index` of the weights.
    ///
    /// # Errors
    /// Returns errors of candle.
    ///
    /// # Panics
    /// Panics if there is no such average.
    pub fn ema(&self, index: usize) -> Result<Weights> {
        assert!(index < self.averages(), "there are {} moving averages", self.averages());
        self.part(Part::Average(index))
    }

    /// Returns everything that [`restore`](Self::restore) needs.
    ///
    /// # Errors
    /// Returns errors of candle.
    pub fn state(&self, meta: serde_json::Value) -> Result<TrainingState> {
        let moments = self.options.rule.moments();
        let part_if = |exists: bool, part| if exists { self.part(part) } else { Ok(Weights::new()) };
        Ok(TrainingState {
            weights: self.part(Part::Weights)?,
            ema: self.part(Part::Average(0))?,
            ema2: part_if(self.averages() > 1, Part::Average(1))?,
            moment1: part_if(moments > 0, Part::Moment(0))?,
            moment2: part_if(moments > 1, Part::Moment(1))?,
            meta,
        })
    }
}

/// Returns one part of a parameter from `state`, or that of a new run if `state` has none.
fn values(spec: &ParamSpec, state: &TrainingState, part: Part) -> Result<Vec<f32>> {
    let found = |group: &Weights| match group.get(&spec.name) {
        Some(array) if array.dims() == spec.dims => Ok(Some(array.data().to_vec())),
        Some(array) => Err(tiny_cats_models::Error::ParameterShape {
            name: spec.name.clone(),
            expected: spec.dims.clone(),
            found: array.dims().to_vec(),
        }),
        None => Ok(None),
    };
    let missing = || tiny_cats_models::Error::MissingParameter { name: spec.name.clone() };
    let weights = || found(&state.weights)?.ok_or_else(missing);
    let zeros = || vec![0.0; spec.dims.iter().product()];
    Ok(match part {
        Part::Weights => weights()?,
        Part::Moment(0) => found(&state.moment1)?.unwrap_or_else(zeros),
        Part::Moment(_) => found(&state.moment2)?.unwrap_or_else(zeros),
        Part::Average(0) => found(&state.ema)?.map_or_else(weights, Ok)?,
        Part::Average(_) => found(&state.ema2)?.map_or_else(weights, Ok)?,
    })
}

#[cfg(test)]
mod tests {
    use tiny_cats_models::{Array, Init, candle::with_candle_ops, init};

    use super::*;
    use crate::train::{ParameterSlices, Sgd};

    fn specs() -> Vec<ParamSpec> {
        let spec = |name: &str, dims: &[usize]| ParamSpec {
            name: name.into(),
            dims: dims.into(),
            init: Init::Normal(1.0),
            trainable: true,
            has_weight_decay: dims.len() > 1,
        };
        vec![spec("a", &[300, 200]), spec("b", &[7]), spec("c", &[20, 30])]
    }

    fn random_gradients(step: u64) -> StepGradients {
        let w: Weights = init(&specs(), 100 + step);
        let tensor = |a: &Array| Tensor::from_slice(a.data(), a.dims(), &Device::Cpu).unwrap();
        let gradients = w.iter().map(|(name, a)| (name.clone(), tensor(a))).collect();
        StepGradients { gradients, statistics: Vec::new() }
    }

    fn step_options(rate: f64, before: u64) -> StepOptions {
        StepOptions { rate, updates: before, scale: 1.0 }
    }

    /// Normalizes the gradient of each row; so it needs the shape, and has no operations for tensors.
    #[derive(Debug)]
    struct RowNormalized;

    impl UpdateRule for RowNormalized {
        fn name(&self) -> &str {
            "row-normalized"
        }

        fn settings(&self) -> Value {
            json!({})
        }

        fn moments(&self) -> usize {
            1
        }

        fn is_elementwise(&self) -> bool {
            false
        }

        fn update(&self, parameter: ParameterSlices, update: &Update) {
            let ParameterSlices { dims, values, moments: [sum, _], gradient } = parameter;
            assert_eq!(dims.iter().product::<usize>(), values.len());
            let columns = *dims.last().unwrap();
            let rows = values.chunks_mut(columns).zip(sum.chunks_mut(columns));
            for ((values, sum), gradient) in rows.zip(gradient.chunks(columns)) {
                let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
                for ((w, s), g) in values.iter_mut().zip(sum).zip(gradient) {
                    *s += g / norm;
                    *w -= update.rate as f32 * *s;
                }
            }
        }
    }

    /// Settings of every rule and each of its branches.
    fn rules() -> Vec<OptimizerOptions> {
        let options = [
            OptimizerOptions::new(AdamW { weight_decay: 0.1, ..AdamW::default() }),
            OptimizerOptions::new(Sgd { momentum: 0.0, weight_decay: 0.1, ..Sgd::default() }),
            OptimizerOptions::new(Sgd { weight_decay: 0.1, ..Sgd::default() }),
            OptimizerOptions::new(Sgd { nesterov: true, ..Sgd::default() }),
            OptimizerOptions::new(RowNormalized),
        ];
        options.into_iter().map(|options| OptimizerOptions { ema: vec![0.3, 0.05], ..options }).collect()
    }

    #[test]
    fn the_fused_kernels_equal_candle_operations() {
        let start = init(&specs(), 0);
        for options in rules() {
            let new = || Optimizer::new(options.clone(), &specs(), &start, &Device::Cpu).unwrap();
            let (mut fused, mut plain) = (new(), with_candle_ops(new));
            for step in 0..5 {
                let norms = [&mut fused, &mut plain]
                    .map(|o| o.step(&random_gradients(step), step_options(1e-2, step)).unwrap());
                assert!((norms[0] / norms[1] - 1.0).abs() < 1e-5, "{norms:?}");
            }
            let (a, b) = (fused.state(().into()).unwrap(), plain.state(().into()).unwrap());
            assert!(a.ema != a.ema2, "two decays give two averages");
            let moments = [&a.moment1, &a.moment2].map(|moment| moment.len() / specs().len());
            assert_eq!(moments.iter().sum::<usize>(), options.rule.moments(), "{options:?}");
            let parts = [(a.ema, b.ema), (a.ema2, b.ema2), (a.moment1, b.moment1), (a.moment2, b.moment2)];
            for (a, b) in parts.into_iter().chain([(a.weights, b.weights)]) {
                assert_eq!(a.len(), b.len());
                for (name, a) in a {
                    let max_error =
                        a.data().iter().zip(b[&name].data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(max_error < 1e-5, "{options:?}: {name}: {max_error}");
                }
            }
        }
    }

    #[test]
    fn settings_are_recorded_with_the_name_except_that_of_adamw() {
        assert_eq!(
            OptimizerOptions::default().settings().unwrap().to_string(),
            r#"{"betas":[0.9,0.95],"clip":1.0,"ema":[0.9999],"eps":1e-8,"weight_decay":0.0}"#
        );
        let sgd = OptimizerOptions { clip: 0.5, ..OptimizerOptions::new(Sgd::default()) };
        assert_eq!(
            sgd.settings().unwrap().to_string(),
            r#"{"clip":0.5,"ema":[0.9999],"momentum":0.9,"name":"sgd","nesterov":false,"weight_decay":0.0}"#
        );
    }

    #[test]
    fn invalid_rules_are_refused() {
        #[derive(Debug)]
        struct Invalid(usize, Value);

        impl UpdateRule for Invalid {
            fn name(&self) -> &str {
                "invalid"
            }

            fn settings(&self) -> Value {
                self.1.clone()
            }

            fn moments(&self) -> usize {
                self.0
            }

            fn update(&self, _: ParameterSlices, _: &Update) {}
        }

        for (rule, expected) in [
            (Invalid(3, json!({})), "expected at most 2 moments, found 3"),
            (Invalid(0, json!([1])), "expected an object of settings"),
            (Invalid(0, json!({"clip": 1})), "the key clip of its settings is reserved"),
        ] {
            let error =
                Optimizer::new(OptimizerOptions::new(rule), &specs(), &init(&specs(), 0), &Device::Cpu);
            let error = error.err().unwrap().to_string();
            assert_eq!(error, format!("optimizer: invalid: {expected}"));
        }
    }

    #[test]
    fn the_first_step_has_the_size_of_the_learning_rate() {
        let settings = OptimizerOptions { clip: 0.0, ..OptimizerOptions::default() };
        let start = init(&specs(), 0);
        let mut optimizer = Optimizer::new(settings, &specs(), &start, &Device::Cpu).unwrap();
        let random_gradients = random_gradients(0);
        optimizer.step(&random_gradients, step_options(1e-3, 0)).unwrap();
        let after = optimizer.state(().into()).unwrap().weights;
        for (name, gradient) in random_gradients.gradients {
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for ((g, b), a) in gradient.iter().zip(start[&name].data()).zip(after[&name].data()) {
                assert!((b - a - 1e-3 * g / (g.abs() + 1e-8)).abs() < 2e-6, "{name}: {b} to {a} by {g}");
            }
        }
    }

    #[test]
    fn loss_scaling_does_not_change_the_step() {
        let start = init(&specs(), 0);
        let mut results = [1.0, 1024.0].map(|scale| {
            let mut optimizer =
                Optimizer::new(OptimizerOptions::default(), &specs(), &start, &Device::Cpu).unwrap();
            let mut random_gradients = random_gradients(0);
            random_gradients.gradients.values_mut().for_each(|g| *g = (&*g * scale).unwrap());
            let norm =
                optimizer.step(&random_gradients, StepOptions { rate: 1e-3, updates: 0, scale }).unwrap();
            (norm, optimizer.state(().into()).unwrap())
        });
        // Scaling by a power of two is exact.
        assert!(results[0] == results[1]);
        results[1].1.weights.clear();
        assert!(results[0] != results[1]);
    }

    #[test]
    fn a_restored_optimizer_continues_exactly() {
        let start = init(&specs(), 0);
        for (options, fused) in
            rules().into_iter().flat_map(|options| [(options.clone(), true), (options, false)])
        {
            let make = |state: &TrainingState| {
                let restore = || Optimizer::restore(options.clone(), &specs(), state, &Device::Cpu).unwrap();
                if fused { restore() } else { with_candle_ops(restore) }
            };
            let mut reference = make(&TrainingState { weights: start.clone(), ..TrainingState::default() });
            for step in 0..3 {
                reference.step(&random_gradients(step), step_options(1e-3, step)).unwrap();
            }
            let mut resumed = make(&reference.state(().into()).unwrap());
            for step in 3..6 {
                let norms = [&mut reference, &mut resumed]
                    .map(|o| o.step(&random_gradients(step), step_options(1e-3, step)).unwrap());
                assert_eq!(norms[0], norms[1]);
            }
            assert!(
                reference.state(().into()).unwrap() == resumed.state(().into()).unwrap(),
                "{options:?}, fused: {fused}"
            );
        }
    }

    #[test]
    fn non_finite_gradients_change_nothing() {
        let start = init(&specs(), 0);
        let mut optimizer =
            Optimizer::new(OptimizerOptions::default(), &specs(), &start, &Device::Cpu).unwrap();
        let mut random_gradients = random_gradients(0);
        let bad = (random_gradients.gradients["b"].clone() * f64::NAN).unwrap();
        random_gradients.gradients.insert("b".into(), bad);
        assert!(optimizer.step(&random_gradients, step_options(1e-3, 0)).unwrap().is_nan());
        assert_eq!(optimizer.state(().into()).unwrap().weights, start);
    }

    #[test]
    fn running_statistics_match_pytorch_and_are_averaged() {
        let statistic = |name: &str| ParamSpec {
            name: format!("bn.{name}"),
            dims: vec![2],
            init: Init::Zeros,
            trainable: false,
            has_weight_decay: false,
        };
        let specs = [specs(), vec![statistic("running_mean"), statistic("running_var")]].concat();
        let start = init(&specs, 0);
        let mut optimizer =
            Optimizer::new(OptimizerOptions::default(), &specs, &start, &Device::Cpu).unwrap();
        let (mut value, mut ema) = (0.0f64, 0.0f64);
        for step in 0..4 {
            let mut random_gradients = random_gradients(step);
            assert!(
                optimizer.step(&random_gradients, step_options(1e-3, step)).is_err(),
                "a statistic is missing"
            );
            // The mean of two micro-batches is used.
            let batch_statistics = |v: f64| {
                let tensor = |v: f64| Tensor::new(&[v as f32, 2.0 * v as f32], &Device::Cpu).unwrap();
                vec![BatchStatistics { path: "bn".into(), mean: tensor(v), var: tensor(10.0 * v) }]
            };
            random_gradients.statistics =
                vec![batch_statistics(step as f64), batch_statistics(step as f64 + 2.0)];
            optimizer.step(&random_gradients, step_options(1e-3, step)).unwrap();
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
        let again = Optimizer::restore(OptimizerOptions::default(), &specs, &state, &Device::Cpu).unwrap();
        assert_eq!(again.state(().into()).unwrap(), state);
    }
}
