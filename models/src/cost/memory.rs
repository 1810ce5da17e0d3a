//! The memory of a forward and backward pass on the [tape](crate::tape), by going through it as the tape does, computing nothing.
//!
//! Memory is counted as long as something holds it, like a tensor's. What an operation keeps for its way back is said once, where
//! [`Cost`](super::Cost) has it.

use std::{cell::Cell, rc::Rc};

use super::Counter;
use crate::Result;

/// Bytes in use, and the most that ever were.
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

/// Memory that is in use until nothing holds it any more.
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
    /// New memory of so many bytes.
    New(u64),
    /// The result's gradient, which others may look at too.
    Shared,
    /// The result's gradient as it came.
    Passed,
}

/// Goes through a block, and gives its result's slot.
type RecomputeFn = Box<dyn FnOnce(&Counter) -> Result<Option<usize>>>;

/// A value's way back.
pub(super) enum Backward {
    /// An operation's.
    Operation {
        /// What it kept.
        saved: Vec<Memory>,
        /// The slot and the gradient of each input.
        inputs: Vec<(Option<usize>, Gradient)>,
        /// Bytes of the gradient of each parameter, which stays.
        params: Vec<u64>,
        /// Bytes that it has in use for itself.
        scratch: u64,
    },
    /// A block's, which is gone through again.
    Block(RecomputeFn),
}

/// What the tape calls a node.
pub(super) struct Node {
    pub(super) outputs: Vec<usize>,
    pub(super) backward: Backward,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// A gradient, and whether nothing else looks at its memory.
#[derive(Clone)]
struct SlotGrad {
    memory: Memory,
    owned: bool,
}

/// Gradients on their way back.
pub(super) struct Slots<'a> {
    grads: Vec<Option<SlotGrad>>,
    params: Vec<Memory>,
    counter: &'a Counter,
}

impl<'a> Slots<'a> {
    /// Empty ones, for all values that `counter` has recorded.
    pub(super) fn new(counter: &'a Counter) -> Self {
        let slots = counter.0.record.borrow().slots;
        Self { grads: vec![None; slots], params: Vec::new(), counter }
    }

    fn made(&self, bytes: u64) -> SlotGrad {
        SlotGrad { memory: Memory::new(bytes, &self.counter.0.meter), owned: true }
    }

    /// Adds a gradient of so many bytes that was made for this slot alone.
    pub(super) fn add(&mut self, slot: Option<usize>, bytes: u64) {
        let grad = self.made(bytes);
        self.pass(slot, grad);
    }

    /// Adds a gradient as the tape does: in place where nothing else looks at what is there.
    fn pass(&mut self, slot: Option<usize>, grad: SlotGrad) {
        let Some(slot) = slot else { return };
        let sum = match self.grads[slot].take() {
            None => grad,
            Some(old) if old.owned => old,
            Some(old) => self.made(old.memory.0.bytes),
        };
        self.grads[slot] = Some(sum);
    }

    /// Goes back through `nodes`, the last first.
    pub(super) fn run(&mut self, nodes: Vec<Node>) -> Result<()> {
        for Node { outputs, backward } in nodes.into_iter().rev() {
            // Where there are several results, none of their gradients is handed on.
            let mut grads: Vec<SlotGrad> = outputs.iter().filter_map(|&o| self.grads[o].take()).collect();
            let Some(grad) = grads.pop() else { continue };
            match backward {
                Backward::Block(block) => self.replay(block, grad)?,
                Backward::Operation { saved, inputs, params, scratch } => {
                    let scratch = self.made(scratch);
                    let gradient = |(slot, gradient)| {
                        let made = match gradient {
                            Gradient::New(bytes) => self.made(bytes),
                            Gradient::Shared => SlotGrad { owned: false, ..grad.clone() },
                            Gradient::Passed => grad.clone(),
                        };
                        (slot, made)
                    };
                    let needed = inputs.into_iter().filter(|(slot, _)| slot.is_some());
                    let made: Vec<(Option<usize>, SlotGrad)> = needed.map(gradient).collect();
                    let params = params.into_iter().map(|bytes| self.made(bytes).memory);
                    let params: Vec<Memory> = params.collect();
                    self.params.extend(params);
                    made.into_iter().for_each(|(slot, grad)| self.pass(slot, grad));
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
