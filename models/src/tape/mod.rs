//! The training reading: every operation records its own backward.
//!
//! candle tensors are the storage. A gradient is accumulated where it lies and freed as soon as the operation that made its value has
//! used it; so is everything that an operation saved for its backward.

mod loss;
mod ops;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor as CandleTensor};

use crate::{
    Array, ParamSpec, Result, Source,
    candle::{Params, Plain, add_assign, to_device},
};

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
}

/// The record of one forward pass.
#[derive(Clone, Default)]
pub struct Tape(Rc<RefCell<Record>>);

/// A value on a tape.
#[derive(Clone)]
pub struct Var {
    value: CandleTensor,
    /// Where its gradient goes; none for what no parameter reaches.
    slot: Option<usize>,
    tape: Tape,
}

/// Gradients on their way back.
#[derive(Default)]
struct Slots(Vec<Option<Grad>>);

/// A gradient.
struct Grad {
    value: CandleTensor,
    /// Whether nothing else looks at its memory, so that it may be added to in place.
    owned: bool,
}

impl std::ops::Deref for Grad {
    type Target = CandleTensor;

    fn deref(&self) -> &CandleTensor {
        &self.value
    }
}

struct AddInPlace;

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((a0, a1)), Some((b0, b1))) = (la.contiguous_offsets(), lb.contiguous_offsets()) else {
            candle_core::bail!("gradients are contiguous")
        };
        match (a, b) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => add_assign(&mut a[a0..a1], &b[b0..b1]),
            (CpuStorage::F64(a), CpuStorage::F64(b)) => add_assign(&mut a[a0..a1], &b[b0..b1]),
            _ => candle_core::bail!("gradients are f32 or f64"),
        }
        Ok(())
    }
}

impl Slots {
    /// Adds a gradient that was made for this slot alone.
    fn add(&mut self, slot: Option<usize>, value: CandleTensor) -> Result<()> {
        self.pass(slot, Grad { value, owned: true })
    }

    /// Adds a gradient whose memory others may look at.
    fn add_shared(&mut self, slot: Option<usize>, value: &CandleTensor) -> Result<()> {
        self.pass(slot, Grad { value: value.clone(), owned: false })
    }

    /// Adds a gradient as it came.
    fn pass(&mut self, slot: Option<usize>, grad: Grad) -> Result<()> {
        let Some(slot) = slot else { return Ok(()) };
        let grad = if grad.is_contiguous() { grad } else { Grad { value: grad.contiguous()?, owned: true } };
        let sum = match self.0[slot].take() {
            None => grad,
            Some(old) if old.owned && old.device().is_cpu() => {
                old.inplace_op2(&grad, &AddInPlace)?;
                old
            }
            Some(old) => Grad { value: (&old.value + &grad.value)?, owned: true },
        };
        self.0[slot] = Some(sum);
        Ok(())
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that no gradient is wanted for: pictures, times, labels (`u32`).
    pub fn constant(&self, value: CandleTensor) -> Var {
        Var { value, slot: None, tape: self.clone() }
    }

    /// A value whose gradient [`Var::backward`] returns under `name`. Asked for again under the same name, it is the same leaf, so that
    /// a parameter used twice has one gradient.
    pub fn leaf(&self, name: &str, value: CandleTensor) -> Var {
        let mut record = self.0.borrow_mut();
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
        std::mem::take(&mut self.0.borrow_mut().statistics)
    }

    /// Records an operation with several results.
    fn record_many(
        &self,
        values: Vec<CandleTensor>,
        needed: bool,
        backward: impl FnOnce(Vec<Option<Grad>>, &mut Slots) -> Result<()> + 'static,
    ) -> Vec<Var> {
        if !needed {
            return values.into_iter().map(|v| self.constant(v)).collect();
        }
        let mut record = self.0.borrow_mut();
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
    fn param(&mut self, spec: ParamSpec) -> Result<Var> {
        let (name, trained) = (spec.name.clone(), spec.trained);
        let value = <Params as Source<Plain>>::param(self.params, spec)?;
        Ok(if trained { self.tape.leaf(&name, value) } else { self.tape.constant(value) })
    }

    fn constant(&mut self, name: &str, value: Array) -> Result<Var> {
        Ok(self.tape.constant(<Params as Source<Plain>>::constant(self.params, name, value)?))
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
    /// Those of candle.
    pub fn backward(&self, scale: f64) -> Result<Gradients> {
        let record = std::mem::take(&mut *self.tape.0.borrow_mut());
        let mut slots = Slots((0..record.slots).map(|_| None).collect());
        let ones = to_device(
            &Array::new(self.value.dims(), vec![1.0; self.value.elem_count()])?,
            self.value.dtype(),
            self.value.device(),
        )?;
        slots.add(self.slot, (ones * scale)?)?;
        for node in record.nodes.into_iter().rev() {
            let grads: Vec<_> = node.outputs.iter().map(|&o| slots.0[o].take()).collect();
            if grads.iter().any(Option::is_some) {
                (node.backward)(grads, &mut slots)?;
            }
        }
        let take = |(name, slot): (String, usize)| slots.0[slot].take().map(|g| (name, g.value));
        Ok(record.leaves.into_iter().filter_map(take).collect())
    }
}
