//! An operation of the cost backend: its cost, and its record as on the tape.

use super::{
    Cost, Counter, OpCost, bytes,
    memory::{Backward, Gradient, Memory, Node},
};
use crate::Result;

/// A builder of one operation; [`finish`](Self::finish) records it.
pub(super) struct Operation<'a> {
    x: &'a Cost,
    op: &'static str,
    dims: Vec<usize>,
    flops: usize,
    /// Memory of the result; `None` if it is new.
    view: Option<Memory>,
    saved: Vec<Memory>,
    saves_output: bool,
    /// True if the result is in half precision. The default is that of `x`.
    half: bool,
    inputs: Vec<(Option<usize>, Gradient)>,
    params: Vec<u64>,
    scratch: u64,
    /// Bytes of the operation's own buffers for each item.
    buffer_bytes: u64,
}

impl<'a> Operation<'a> {
    /// Creates an operation with new memory for its result.
    pub(super) fn new(x: &'a Cost, op: &'static str, dims: Vec<usize>, flops: usize) -> Self {
        let (view, saved, inputs, params) = (None, Vec::new(), Vec::new(), Vec::new());
        Self {
            x,
            op,
            dims,
            flops,
            view,
            saved,
            saves_output: false,
            half: x.half,
            inputs,
            params,
            scratch: 0,
            buffer_bytes: 0,
        }
    }

    /// Creates an operation whose result is a view of the memory of `x`.
    pub(super) fn view(x: &'a Cost, op: &'static str, dims: Vec<usize>) -> Self {
        Self { view: Some(x.memory.clone()), ..Self::new(x, op, dims, 0) }
    }

    /// Saves a value for backward.
    pub(super) fn saves(mut self, value: &Cost) -> Self {
        self.saved.push(value.memory.clone());
        self
    }

    /// Saves a factor of products, rounded to half precision if necessary.
    pub(super) fn saves_factor(mut self, value: &Cost) -> Self {
        let counter = &self.x.counter;
        let rounded = counter.is_half_precision() && !value.half;
        let bytes = counter.bytes(&value.dims) / 2;
        self.saved.push(if rounded { Memory::new(bytes, &counter.0.meter) } else { value.memory.clone() });
        self
    }

    /// Saves a buffer with `dims` values for each item; `half` means half precision.
    pub(super) fn saves_buffer(mut self, dims: &[usize], half: bool) -> Self {
        let counter = &self.x.counter;
        self.saved.push(Memory::new(counter.bytes(dims) / if half { 2 } else { 1 }, &counter.0.meter));
        self.buffer_bytes += bytes(dims);
        self
    }

    /// Saves a mask of one byte for each of `dims` values for each item.
    pub(super) fn saves_mask(mut self, dims: &[usize]) -> Self {
        let counter = &self.x.counter;
        self.saved.push(Memory::new(counter.bytes(dims) / 4, &counter.0.meter));
        self.buffer_bytes += bytes(dims) / 4;
        self
    }

    /// Sets whether the result is in half precision.
    pub(super) fn half(self, half: bool) -> Self {
        Self { half, ..self }
    }

    /// Saves the result for backward.
    pub(super) fn saves_output(self) -> Self {
        Self { saves_output: true, ..self }
    }

    /// Computes a new gradient for `input`.
    pub(super) fn grad_for(mut self, input: &Cost) -> Self {
        self.inputs.push((input.slot, Gradient::New(input.counter.bytes(&input.dims))));
        self
    }

    /// Gives the result's gradient to `input`, shared with other inputs.
    pub(super) fn shares_grad_with(mut self, input: &Cost) -> Self {
        self.inputs.push((input.slot, Gradient::Shared));
        self
    }

    /// Gives the result's gradient to `input` only.
    pub(super) fn passes_grad_to(mut self, input: &Cost) -> Self {
        self.inputs.push((input.slot, Gradient::Passed));
        self
    }

    /// Computes gradients for parameters.
    pub(super) fn params<const N: usize>(mut self, params: [Option<&Vec<usize>>; N]) -> Self {
        self.params.extend(params.into_iter().flatten().map(|dims| bytes(dims)));
        self
    }

    /// Sets the bytes of temporary memory in backward.
    pub(super) fn scratch(self, scratch: u64) -> Self {
        Self { scratch, ..self }
    }

    /// Records the operation, and returns its result.
    pub(super) fn finish(self) -> Cost {
        self.split(1).pop().expect("one part")
    }

    /// Records the operation, and returns its `n` results of one size.
    pub(super) fn split(self, n: usize) -> Vec<Cost> {
        let Self { x, op, dims, view, mut saved, half, inputs, params, scratch, .. } = self;
        let state = &x.counter.0;
        let mut record = state.record.borrow_mut();
        if !record.recomputing {
            let bytes = if view.is_some() { 0 } else { bytes(&dims) + self.buffer_bytes };
            let (module, flops, in_block) = (x.module.clone(), self.flops as u64, record.in_block);
            let entry = OpCost { module, op, flops, bytes, in_block };
            state.summary.borrow_mut().ops.extend(std::iter::repeat_n(entry, n));
        }
        let new = || Memory::new(x.counter.bytes(&dims) / if half { 2 } else { 1 }, &state.meter);
        let memory: Vec<Memory> = (0..n).map(|_| view.clone().unwrap_or_else(new)).collect();
        let needed = !params.is_empty() || inputs.iter().any(|(slot, _)| slot.is_some());
        let recorded = needed && !record.paused;
        let first = record.slots;
        if recorded {
            record.slots += n;
            if self.saves_output {
                saved.extend(memory.iter().cloned());
            }
            let backward = Backward::Operation { saved, inputs, params, scratch };
            record.nodes.push(Node { outputs: (first..first + n).collect(), backward });
        }
        let part = |(i, memory)| Cost {
            dims: dims.clone(),
            module: x.module.clone(),
            counter: x.counter.clone(),
            memory,
            half,
            slot: recorded.then_some(first + i),
        };
        memory.into_iter().enumerate().map(part).collect()
    }
}

impl Counter {
    /// Applies `block` as the tape does: keeps only its inputs, and recomputes the block in backward.
    pub(super) fn checkpoint<const N: usize>(
        self,
        inputs: [&Cost; N],
        block: impl Fn([&Cost; N]) -> Result<Cost> + 'static,
    ) -> Result<Cost> {
        let before = std::mem::replace(&mut self.0.record.borrow_mut().paused, true);
        let y = block(inputs);
        let mut record = self.0.record.borrow_mut();
        record.paused = before;
        let y = y?;
        if before {
            return Ok(y);
        }
        let slot = record.slots;
        record.slots += 1;
        let saved = inputs.map(|x| (x.dims.clone(), x.memory.clone(), x.half, x.slot));
        let recompute = move |counter: &Counter| {
            let inputs = saved.map(|(dims, memory, half, slot)| Cost {
                dims,
                module: String::new(),
                counter: counter.clone(),
                memory,
                half,
                slot,
            });
            block(inputs.each_ref()).map(|y| y.slot)
        };
        record.nodes.push(Node { outputs: vec![slot], backward: Backward::Block(Box::new(recompute)) });
        drop(record);
        Ok(Cost { slot: Some(slot), ..y })
    }
}
