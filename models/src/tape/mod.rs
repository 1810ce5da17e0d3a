//! The training reading: every operation records its own backward.
//!
//! candle tensors are the storage. A gradient is accumulated where it lies and freed as soon as the operation that made its value has
//! used it; so is everything that an operation saved for its backward.
//!
//! [`TapeOptions`] make it compute blocks again rather than keep them, and multiply in half precision. What one operation keeps, and how
//! much memory a step takes, is for the [cost reading](crate::cost) to say; the two are to be changed together.

mod loss;
mod ops;
mod slots;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use candle_core::Tensor as CandleTensor;

pub use crate::options::{Precision, TapeOptions};
use crate::{
    Array, Error, ParamSpec, Result, Source,
    candle::{CandleValue, Params, precision::wide_type, to_device},
};
use slots::{Grad, Slots};

/// Gradients by parameter name.
pub type Gradients = BTreeMap<String, CandleTensor>;

/// What a batch normalisation saw, for the engine to update the running statistics with.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// The module's path.
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
    /// Whether operations compute and are not recorded: they are inside a block that will be computed again.
    paused: bool,
}

/// The record of one forward pass.
#[derive(Clone, Default)]
pub struct Tape(Rc<Shared>);

#[derive(Default)]
struct Shared {
    options: TapeOptions,
    record: RefCell<Record>,
}

/// A value on a tape.
#[derive(Clone)]
pub struct Var {
    value: CandleTensor,
    /// Where its gradient goes; none for what no parameter reaches.
    slot: Option<usize>,
    tape: Tape,
}

/// A parameter on a tape. It does not hold the tape, so what is recorded may hold it.
#[derive(Clone)]
pub struct Param {
    value: CandleTensor,
    slot: Option<usize>,
}

impl Tape {
    /// An empty tape that keeps whatever the way back needs.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty tape.
    pub fn with_options(options: TapeOptions) -> Self {
        Self(Rc::new(Shared { options, record: RefCell::default() }))
    }

    /// The record; the tape is empty then.
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

    /// A value that no gradient is wanted for: pictures, times, labels (`u32`).
    pub fn constant(&self, value: CandleTensor) -> Var {
        Var { value, slot: None, tape: self.clone() }
    }

    /// A value whose gradient [`Var::backward`] returns under `name`. Asked for again under the same name, it is the same leaf, so that
    /// a parameter used twice has one gradient.
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

    /// Hands `params` to a model as leaves of this tape.
    pub fn params<'a>(&self, params: &'a mut Params) -> TapeParams<'a> {
        TapeParams { tape: self.clone(), params }
    }

    /// What the batch normalisations of this pass saw.
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

    /// Records an operation with one result; `backward` is given its gradient.
    fn record(
        &self,
        value: CandleTensor,
        needed: bool,
        backward: impl FnOnce(Grad, &mut Slots) -> Result<()> + 'static,
    ) -> Var {
        let one = move |mut grads: Vec<Option<Grad>>, slots: &mut Slots| match grads.pop().flatten() {
            Some(grad) => backward(grad, slots),
            None => Ok(()),
        };
        self.record_many(vec![value], needed, one).pop().expect("one value gives one variable")
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
    /// The value.
    pub fn value(&self) -> &CandleTensor {
        &self.value
    }

    /// The tape that it is on.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Runs the tape backwards from this value, whose own gradient is `scale`, and empties it.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are no values, as of a batch of no items; those of candle.
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
