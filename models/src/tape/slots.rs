//! The gradients of activations during backward.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor as CandleTensor};

use super::{Node, Tape, Var};
use crate::{Result, kernels::pointwise::add_assign};

/// A gradient.
pub(super) struct Grad {
    pub(super) value: CandleTensor,
    /// True if its memory is not shared, so that other gradients can be added in place.
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

/// The gradients of activations during backward, and their tape.
pub(super) struct Slots {
    grads: Vec<Option<Grad>>,
    tape: Tape,
}

impl Slots {
    /// Creates `slots` empty slots.
    pub(super) fn new(slots: usize, tape: Tape) -> Self {
        Self { grads: (0..slots).map(|_| None).collect(), tape }
    }

    /// Takes the accumulated gradient of a slot.
    pub(super) fn take(&mut self, slot: usize) -> Option<CandleTensor> {
        self.grads[slot].take().map(|grad| grad.value)
    }

    /// Computes the backward of `nodes`, the last first. Each node is freed as soon as it has been used.
    pub(super) fn run(&mut self, nodes: Vec<Node>) -> Result<()> {
        for node in nodes.into_iter().rev() {
            let grads: Vec<_> = node.outputs.iter().map(|&o| self.grads[o].take()).collect();
            if grads.iter().any(Option::is_some) {
                (node.backward)(grads, self)?;
            }
        }
        Ok(())
    }

    /// Recomputes a block from the values of its inputs and the slots of their gradients, then computes its backward. The values
    /// recorded meanwhile get the slots after all others. `dropouts` is the number of dropouts before the block, so that it gets the same
    /// masks. Statistics are dropped, because the first pass has reported them.
    pub(super) fn replay<const N: usize>(
        &mut self,
        inputs: [(CandleTensor, Option<usize>); N],
        block: impl Fn([&Var; N]) -> Result<Var>,
        dropouts: usize,
        grad: Grad,
    ) -> Result<()> {
        let first = self.grads.len();
        {
            let mut record = self.tape.0.record.borrow_mut();
            (record.slots, record.dropouts) = (first, dropouts);
        }
        let slot = {
            let inputs = inputs.map(|(value, slot)| Var { value, slot, tape: self.tape.clone() });
            block(inputs.each_ref())?.slot
        };
        let record = self.tape.take();
        self.grads.resize_with(record.slots, || None);
        self.pass(slot, grad)?;
        self.run(record.nodes)?;
        self.grads.truncate(first);
        Ok(())
    }

    /// Adds a gradient that only this slot uses.
    pub(super) fn add(&mut self, slot: Option<usize>, value: CandleTensor) -> Result<()> {
        self.pass(slot, Grad { value, owned: true })
    }

    /// Adds a gradient whose memory may be shared.
    pub(super) fn add_shared(&mut self, slot: Option<usize>, value: &CandleTensor) -> Result<()> {
        self.pass(slot, Grad { value: value.clone(), owned: false })
    }

    /// Adds a gradient, either owned or shared.
    pub(super) fn pass(&mut self, slot: Option<usize>, grad: Grad) -> Result<()> {
        let Some(slot) = slot else { return Ok(()) };
        let grad = if grad.is_contiguous() { grad } else { Grad { value: grad.contiguous()?, owned: true } };
        let sum = match self.grads[slot].take() {
            None => grad,
            Some(old) if old.owned && old.device().is_cpu() => {
                old.inplace_op2(&grad, &AddInPlace)?;
                old
            }
            Some(old) => Grad { value: (&old.value + &grad.value)?, owned: true },
        };
        self.grads[slot] = Some(sum);
        Ok(())
    }
}
