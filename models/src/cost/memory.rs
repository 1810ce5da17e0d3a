//! The memory of a forward and backward pass on the [tape](crate::tape): repeats the tape's steps without computing anything.
//!
//! Memory counts as used as long as it has an owner, as with a tensor. [`Cost`](super::Cost) alone defines which activations the
//! backward of each operation needs.

use std::{cell::Cell, rc::Rc};

use super::Counter;
use crate::Result;

/// Bytes in use, and their peak.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) live: Cell<u64>,
    pub(super) peak: Cell<u64>,
}

#[derive(Debug)]
struct Block {
    bytes: u64,
    meter: Rc<Meter>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.meter.live.set(self.meter.live.get().saturating_sub(self.bytes));
    }
}

/// Memory that is in use until its last owner is dropped.
#[derive(Clone, Debug)]
pub(super) struct Memory(Rc<Block>);

impl Memory {
    pub(super) fn new(bytes: u64, meter: &Rc<Meter>) -> Self {
        meter.live.set(meter.live.get().saturating_add(bytes));
        meter.peak.set(meter.peak.get().max(meter.live.get()));
        Self(Rc::new(Block { bytes, meter: meter.clone() }))
    }
}

/// The gradient of an operation's input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gradient {
    /// New memory of this many bytes.
    New(u64),
    /// The result's gradient, which other inputs may share.
    Shared,
    /// The result's gradient, unchanged.
    Passed,
}

/// Recomputes a block, and returns the slot of its result.
type RecomputeFn = Box<dyn FnOnce(&Counter) -> Result<Option<usize>>>;

/// The backward of a value.
pub(super) enum Backward {
    /// The backward of an operation.
    Operation {
        /// Activations that it saved.
        saved: Vec<Memory>,
        /// The slot and the gradient of each input.
        inputs: Vec<(Option<usize>, Gradient)>,
        /// Bytes of the gradient of each parameter; these gradients stay.
        params: Vec<u64>,
        /// Bytes of temporary memory.
        scratch: u64,
    },
    /// The backward of a block, which is recomputed.
    Block(RecomputeFn),
}

/// A recorded operation, as on the tape.
pub(super) struct Node {
    pub(super) outputs: Vec<usize>,
    pub(super) backward: Backward,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// A gradient.
#[derive(Clone)]
struct SlotGrad {
    memory: Memory,
    /// True if nothing else holds its memory.
    owned: bool,
}

/// The gradients of activations during backward.
pub(super) struct Slots<'a> {
    grads: Vec<Option<SlotGrad>>,
    params: Vec<Memory>,
    counter: &'a Counter,
}

impl<'a> Slots<'a> {
    /// Creates empty slots for all values that `counter` has recorded.
    pub(super) fn new(counter: &'a Counter) -> Self {
        let slots = counter.0.record.borrow().slots;
        Self { grads: vec![None; slots], params: Vec::new(), counter }
    }

    fn new_grad(&self, bytes: u64) -> SlotGrad {
        SlotGrad { memory: Memory::new(bytes, &self.counter.0.meter), owned: true }
    }

    /// Adds a gradient of this many bytes that only this slot uses.
    pub(super) fn add(&mut self, slot: Option<usize>, bytes: u64) {
        let grad = self.new_grad(bytes);
        self.pass(slot, grad);
    }

    /// Adds a gradient as the tape does: in place if the memory of the sum so far is not shared.
    fn pass(&mut self, slot: Option<usize>, grad: SlotGrad) {
        let Some(slot) = slot else { return };
        let sum = match self.grads[slot].take() {
            None => grad,
            Some(old) if old.owned => old,
            Some(old) => self.new_grad(old.memory.0.bytes),
        };
        self.grads[slot] = Some(sum);
    }

    /// Computes the backward of `nodes`, the last first.
    pub(super) fn run(&mut self, nodes: Vec<Node>) -> Result<()> {
        for Node { outputs, backward } in nodes.into_iter().rev() {
            // An operation with several results passes none of their gradients on to an input.
            let mut grads: Vec<SlotGrad> = outputs.iter().filter_map(|&o| self.grads[o].take()).collect();
            let Some(grad) = grads.pop() else { continue };
            match backward {
                Backward::Block(block) => self.replay(block, grad)?,
                Backward::Operation { saved, inputs, params, scratch } => {
                    let scratch = self.new_grad(scratch);
                    let gradient = |(slot, gradient)| {
                        let grad = match gradient {
                            Gradient::New(bytes) => self.new_grad(bytes),
                            Gradient::Shared => SlotGrad { owned: false, ..grad.clone() },
                            Gradient::Passed => grad.clone(),
                        };
                        (slot, grad)
                    };
                    let needed = inputs.into_iter().filter(|(slot, _)| slot.is_some());
                    let input_grads: Vec<(Option<usize>, SlotGrad)> = needed.map(gradient).collect();
                    let params = params.into_iter().map(|bytes| self.new_grad(bytes).memory);
                    let params: Vec<Memory> = params.collect();
                    self.params.extend(params);
                    input_grads.into_iter().for_each(|(slot, grad)| self.pass(slot, grad));
                    drop((grads, grad, saved, scratch));
                }
            }
        }
        Ok(())
    }

    fn replay(&mut self, block: RecomputeFn, grad: SlotGrad) -> Result<()> {
        let first = self.grads.len();
        {
            let mut record = self.counter.0.record.borrow_mut();
            (record.slots, record.recomputing) = (first, true);
        }
        let slot = block(self.counter)?;
        let record = self.counter.0.record.take();
        self.grads.resize(record.slots, None);
        self.pass(slot, grad);
        self.run(record.nodes)?;
        self.grads.truncate(first);
        Ok(())
    }
}
