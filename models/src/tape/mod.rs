//! The tape backend, for training: every operation records its own backward.
//!
//! Storage is candle tensors. A gradient is accumulated in place, and freed as soon as the backward of the operation that computed
//! its value has used it. The same holds for everything that an operation saved for its backward.
//!
//! With [`TapeOptions`] the tape recomputes blocks rather than keeping their activations, and rounds factors to half precision. The
//! [cost backend](crate::cost) repeats which activations each operation keeps, to count the memory of a step. Change both together.

mod dropout;
mod loss;
mod ops;
mod slots;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use candle_core::Tensor as CandleTensor;

pub use crate::options::{Precision, TapeOptions};
use crate::{
    Array, Error, Network, ParamSpec, Result, Scope, Source,
    candle::{CandleValue, Params, precision::wide_type, to_device},
    main_output,
};
pub use dropout::DropoutKey;
pub use loss::CrossEntropyOptions;
use slots::{Grad, Slots};

/// Gradients by parameter name.
pub type Gradients = BTreeMap<String, CandleTensor>;

/// The statistics of one batch, with which the training loop updates the running statistics of a batch normalization.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Path of the module.
    pub path: String,
    /// Mean of the batch, `[channels]`.
    pub mean: CandleTensor,
    /// Unbiased variance of the batch, `[channels]`.
    pub var: CandleTensor,
}

type Backward = Box<dyn FnOnce(Vec<Option<Grad>>, &mut Slots) -> Result<()>>;

struct Node {
    outputs: Vec<usize>,
    backward: Backward,
}

#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    slots: usize,
    leaves: Vec<(String, usize)>,
    statistics: Vec<BatchStatistics>,
    /// Number of dropouts so far.
    dropouts: usize,
    /// True if operations compute and are not recorded, because they are inside a block that is recomputed later.
    paused: bool,
}

/// The record of one forward pass.
#[derive(Clone, Default)]
pub struct Tape(Rc<Shared>);

#[derive(Default)]
struct Shared {
    options: TapeOptions,
    dropout: Cell<Option<DropoutKey>>,
    record: RefCell<Record>,
}

/// A value on a tape.
#[derive(Clone)]
pub struct Var {
    value: CandleTensor,
    /// Slot of the gradient; `None` if no parameter reaches this value.
    slot: Option<usize>,
    tape: Tape,
}

/// A parameter on a tape. It has no reference to the tape, so that the tape's records can own it without a cycle.
#[derive(Clone)]
pub struct Param {
    value: CandleTensor,
    slot: Option<usize>,
}

impl Tape {
    /// Creates an empty tape with the default options, which keeps all activations that backward needs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty tape with `options`.
    pub fn with_options(options: TapeOptions) -> Self {
        Self(Rc::new(Shared { options, ..Shared::default() }))
    }

    /// Takes the record, and leaves the tape empty.
    fn take(&self) -> Record {
        self.0.record.take()
    }

    /// Runs `block` without recording it.
    fn unrecorded<R>(&self, block: impl FnOnce() -> Result<R>) -> Result<R> {
        let before = std::mem::replace(&mut self.0.record.borrow_mut().paused, true);
        let result = block();
        self.0.record.borrow_mut().paused = before;
        result
    }

    /// Returns a value without a gradient: images, times, labels (`u32`).
    pub fn constant(&self, value: CandleTensor) -> Var {
        Var { value, slot: None, tape: self.clone() }
    }

    /// Returns a value whose gradient [`Var::backward`] returns under `name`. A second call with the same name returns the same
    /// leaf, so that a parameter that is used twice has one gradient.
    pub fn leaf(&self, name: &str, value: CandleTensor) -> Var {
        let mut record = self.0.record.borrow_mut();
        if let Some(&(_, slot)) = record.leaves.iter().find(|(known, _)| known == name) {
            return Var { value, slot: Some(slot), tape: self.clone() };
        }
        let slot = record.slots;
        record.slots += 1;
        record.leaves.push((name.to_owned(), slot));
        Var { value, slot: Some(slot), tape: self.clone() }
    }

    /// Returns a source that supplies `params` to a model as leaves of this tape.
    pub fn params<'a>(&self, params: &'a mut Params) -> TapeParams<'a> {
        TapeParams { tape: self.clone(), params }
    }

    /// Builds `network` from `params` on this tape, and returns its main output for `inputs`, in the order of the definition. Labels are
    /// `u32`.
    ///
    /// # Errors
    /// Errors of the parameters and of the network.
    pub fn forward<N: Network>(
        &self,
        network: &N,
        params: &mut Params,
        inputs: &[CandleTensor],
    ) -> Result<Var> {
        let built = network.build(&mut Scope::root(&mut self.params(params)))?;
        let inputs: Vec<Var> = inputs.iter().map(|input| self.constant(input.clone())).collect();
        main_output(N::forward(&built, &inputs)?)
    }

    /// Takes the statistics that the batch normalizations of this pass computed.
    pub fn take_statistics(&self) -> Vec<BatchStatistics> {
        std::mem::take(&mut self.0.record.borrow_mut().statistics)
    }

    /// Records an operation with several results.
    fn record_many(
        &self,
        values: Vec<CandleTensor>,
        needed: bool,
        backward: impl FnOnce(Vec<Option<Grad>>, &mut Slots) -> Result<()> + 'static,
    ) -> Vec<Var> {
        let mut record = self.0.record.borrow_mut();
        if !needed || record.paused {
            return values.into_iter().map(|v| self.constant(v)).collect();
        }
        let outputs: Vec<usize> = (record.slots..record.slots + values.len()).collect();
        record.slots += values.len();
        record.nodes.push(Node { outputs: outputs.clone(), backward: Box::new(backward) });
        let var = |(value, slot)| Var { value, slot: Some(slot), tape: self.clone() };
        values.into_iter().zip(outputs).map(var).collect()
    }

    /// Records an operation with one result; `backward` receives its gradient.
    fn record(
        &self,
        value: CandleTensor,
        needed: bool,
        backward: impl FnOnce(Grad, &mut Slots) -> Result<()> + 'static,
    ) -> Var {
        let backward_one = move |mut grads: Vec<Option<Grad>>, slots: &mut Slots| match grads.pop().flatten()
        {
            Some(grad) => backward(grad, slots),
            None => Ok(()),
        };
        self.record_many(vec![value], needed, backward_one).pop().expect("one value gives one variable")
    }
}

/// The [`Source`] of parameters on a tape.
pub struct TapeParams<'a> {
    tape: Tape,
    params: &'a mut Params,
}

impl Source<Var> for TapeParams<'_> {
    fn param(&mut self, spec: ParamSpec) -> Result<Param> {
        let (name, trained) = (spec.name.clone(), spec.trainable);
        let value = <Params as Source<CandleValue>>::param(self.params, spec)?;
        Ok(if trained { self.tape.leaf(&name, value) } else { self.tape.constant(value) }.into())
    }

    fn constant(&mut self, name: &str, value: Array) -> Result<Param> {
        Ok(self.tape.constant(<Params as Source<CandleValue>>::constant(self.params, name, value)?).into())
    }
}

impl From<Var> for Param {
    fn from(Var { value, slot, .. }: Var) -> Self {
        Self { value, slot }
    }
}

impl Var {
    /// Returns the value.
    pub fn value(&self) -> &CandleTensor {
        &self.value
    }

    /// Returns the tape of this value.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Computes the gradients of all leaves, and empties the tape. `scale` is the gradient of this value itself.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no values, as for an empty batch; errors of candle.
    pub fn backward(&self, scale: f64) -> Result<Gradients> {
        if self.value.elem_count() == 0 {
            return Err(Error::shape("backward", "at least one value", 0));
        }
        let record = self.tape.take();
        let mut slots = Slots::new(record.slots, self.tape.clone());
        let ones = to_device(
            &Array::new(self.value.dims(), vec![1.0; self.value.elem_count()])?,
            wide_type(self.value.dtype()),
            self.value.device(),
        )?;
        slots.add(self.slot, (ones * scale)?)?;
        slots.run(record.nodes)?;
        let take = |(name, slot)| slots.take(slot).map(|gradient| (name, gradient));
        Ok(record.leaves.into_iter().filter_map(take).collect())
    }
}
