//! The cost backend: counts the parameters, operations and bytes of a network without computing anything.

mod memory;
mod operation;

use std::{cell::RefCell, rc::Rc};

use crate::{
    Array, BatchNorm, Conv1dOptions, Conv2dOptions, ParamSpec, Precision, Result, Source, TapeOptions,
    Tensor, shape, tiling,
};
use memory::{Memory, Meter, Node, Slots};
use operation::Operation;

/// The cost of one operation for one item of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct OpCost {
    /// Path of the module that it belongs to.
    pub module: String,
    /// The operation's name in the [`Tensor`] trait.
    pub op: &'static str,
    /// Floating-point operations of the forward pass; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes of the result in f32; 0 where the result shares its input's memory.
    pub bytes: u64,
    /// True if gradient checkpointing recomputes it.
    pub in_block: bool,
}

/// The costs of a network, operation by operation.
#[derive(Clone, Debug, Default)]
pub struct CostSummary {
    /// The parameters, in the order in which the model requests them.
    pub params: Vec<ParamSpec>,
    /// The operations, in the order of the forward pass.
    pub ops: Vec<OpCost>,
}

impl CostSummary {
    /// Returns the number of values in all parameters, running statistics included.
    pub fn parameters(&self) -> u64 {
        self.params.iter().map(|p| p.dims.iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Returns the floating-point operations of one forward pass for one item.
    pub fn flops(&self) -> u64 {
        self.ops.iter().map(|e| e.flops).sum()
    }

    /// Returns the floating-point operations of one forward and backward pass for one item. Backward costs as much as two forward
    /// passes; gradient checkpointing adds one more through the blocks.
    pub fn training_flops(&self, checkpoint: bool) -> u64 {
        let recomputed = |e: &&OpCost| checkpoint && e.in_block;
        3 * self.flops() + self.ops.iter().filter(recomputed).map(|e| e.flops).sum::<u64>()
    }

    /// Returns the bytes of all results of one forward pass for one item in f32. [`Counter::training_bytes`] is the peak that
    /// training needs.
    pub fn activation_bytes(&self) -> u64 {
        self.ops.iter().map(|e| e.bytes).sum()
    }
}

/// The [`Source`] of [`Cost`] parameters, and the record of all operations.
#[derive(Clone, Debug, Default)]
pub struct Counter(Rc<State>);

#[derive(Debug, Default)]
struct State {
    summary: RefCell<CostSummary>,
    /// Number of items in the training batch; 0 where memory is not counted.
    batch: usize,
    options: TapeOptions,
    meter: Rc<Meter>,
    record: RefCell<Record>,
}

#[derive(Debug, Default)]
struct Record {
    nodes: Vec<Node>,
    slots: usize,
    /// True if operations are not recorded, because they are inside a block that is recomputed later.
    paused: bool,
    /// True if operations are not counted, because this is a recomputation.
    recomputing: bool,
    /// True if operations are inside a block.
    in_block: bool,
}

impl Counter {
    /// Creates a counter that also counts the memory of one training step of `batch` items: see
    /// [`training_bytes`](Self::training_bytes).
    pub fn training(batch: usize, options: TapeOptions) -> Self {
        Self(Rc::new(State { batch, options, ..State::default() }))
    }

    /// Returns an input of the network; `dims` are its sizes after the batch. Its memory is not counted.
    pub fn input(&self, dims: &[usize]) -> Cost {
        let memory = Memory::new(0, &self.0.meter);
        Cost {
            dims: dims.to_vec(),
            module: String::new(),
            counter: self.clone(),
            memory,
            half: false,
            slot: None,
        }
    }

    /// Returns the costs counted so far.
    pub fn summary(&self) -> CostSummary {
        self.0.summary.borrow().clone()
    }

    /// Returns the peak memory of a forward pass to `output` and the backward pass from its loss, in bytes. It includes the
    /// activations that the tape keeps, the gradients of activations, and the gradients of the parameters, which stay. It excludes
    /// weights and batch. The result is 0 unless [`Counter::training`] created the counter.
    ///
    /// # Errors
    /// The errors of a block that is recomputed.
    pub fn training_bytes(&self, output: Cost) -> Result<u64> {
        // The loss saves the weighted difference. Its gradient needs a temporary of the same size.
        let (bytes, slot) = (self.bytes(&output.dims), output.slot);
        let saved = Memory::new(bytes, &self.0.meter);
        drop(output);
        let mut slots = Slots::new(self);
        let temporary = Memory::new(bytes, &self.0.meter);
        slots.add(slot, bytes);
        drop((saved, temporary));
        let record = self.0.record.take();
        slots.run(record.nodes)?;
        Ok(self.0.meter.peak.get())
    }

    /// True if the factors of products are in half precision.
    fn is_half_precision(&self) -> bool {
        self.0.options.precision != Precision::F32
    }

    /// Returns the additional bytes of a linear layer's backward in half precision: in bf16, the weight and the result's gradient.
    fn linear_factors(&self, x: &[usize], weight: &[usize], y: &[usize]) -> u64 {
        match self.0.options.precision {
            Precision::Bf16 => (bytes(weight) / 2).saturating_add(self.bytes(y) / 2),
            _ => self.factors(x, weight, y),
        }
    }

    /// Returns the additional bytes of other products' backward in half precision: `x` in f32; the weight and the result's gradient, both
    /// in half precision and in f32.
    fn factors(&self, x: &[usize], weight: &[usize], y: &[usize]) -> u64 {
        if !self.is_half_precision() {
            return 0;
        }
        let half_and_f32 = |bytes: u64| bytes.saturating_add(bytes / 2);
        let others = half_and_f32(bytes(weight)).saturating_add(half_and_f32(self.bytes(y)));
        self.bytes(x).saturating_add(others)
    }

    /// Returns the number of partial gradients of the weights that a convolution with these outputs has on the CPU.
    fn partial_sums(&self, weight: [usize; 4], options: Conv2dOptions, [rows, cols]: [usize; 2]) -> u64 {
        let items = self.0.batch;
        let tiles = tiling::winograd_tiles(rows, cols);
        let ([out, channels, height, width], strides) = (weight, [options.stride, options.dilation]);
        let grouped = options.groups > 1;
        let depthwise = grouped && channels == 1;
        let winograd =
            !grouped && tiling::uses_winograd([out, channels], [height, width], strides, tiles, items);
        if depthwise || winograd {
            return 0;
        }
        items.div_ceil(tiling::items_per_partial(items, rows * cols)) as u64
    }

    /// Returns the bytes of `dims` values in f32 for each item of the batch.
    fn bytes(&self, dims: &[usize]) -> u64 {
        bytes(dims).saturating_mul(self.0.batch as u64)
    }
}

/// Returns the bytes of `dims` values in f32.
fn bytes(dims: &[usize]) -> u64 {
    dims.iter().fold(size_of::<f32>() as u64, |n, &d| n.saturating_mul(d as u64))
}

impl Source<Cost> for Counter {
    fn param(&mut self, spec: ParamSpec) -> Result<Vec<usize>> {
        let dims = spec.dims.clone();
        self.0.summary.borrow_mut().params.push(spec);
        Ok(dims)
    }

    fn constant(&mut self, _name: &str, value: Array) -> Result<Vec<usize>> {
        Ok(value.dims().to_vec())
    }
}

/// A value of the cost backend: a shape.
#[derive(Clone, Debug)]
pub struct Cost {
    dims: Vec<usize>,
    module: String,
    counter: Counter,
    memory: Memory,
    /// True if the values are in half precision.
    half: bool,
    /// Slot of the gradient; `None` if no parameter reaches this value.
    slot: Option<usize>,
}

impl Cost {
    /// Creates an operation whose result is new memory, with `flops` floating-point operations for each value of the result.
    fn allocating(&self, op: &'static str, dims: Vec<usize>, flops: usize) -> Operation<'_> {
        let n: usize = dims.iter().product();
        Operation::new(self, op, dims, n * flops)
    }

    /// Records a convolution with a weight of these sizes. `output` are rows and columns of the result, whose shape is `dims`.
    fn conv(
        &self,
        op: &'static str,
        weight: [usize; 4],
        params: [Option<&Vec<usize>>; 2],
        options: Conv2dOptions,
        (dims, output): (Vec<usize>, [usize; 2]),
    ) -> Cost {
        let (counter, groups) = (&self.counter, options.groups as u64);
        let flops = 2 * weight[1..].iter().product::<usize>() + usize::from(params[1].is_some());
        let partials = counter.partial_sums(weight, options, output);
        let mut scratch = (bytes(&weight) / groups).saturating_mul(partials);
        if groups > 1 && weight[1] > 1 {
            // The group's values and their gradients.
            let values = counter.bytes(&self.dims).saturating_mul(2).saturating_add(counter.bytes(&dims));
            scratch = scratch.saturating_add(values / groups);
        }
        let factors = counter.factors(&self.dims, &weight, &dims);
        let operation = self.allocating(op, dims, flops).saves_factor(self).half(counter.is_half_precision());
        operation.grad_for(self).params(params).scratch(scratch.saturating_add(factors)).finish()
    }

    /// Creates an elementwise operation, with `flops` floating-point operations for each value.
    fn elementwise(&self, op: &'static str, flops: usize) -> Operation<'_> {
        self.allocating(op, self.dims.clone(), flops)
    }
}

/// The cost of each operation, and the activations that its backward needs: the same ones as in [`tape`](crate::tape).
impl Tensor for Cost {
    type Param = Vec<usize>;

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn scoped(&self, module: &str) -> Self {
        Self { module: module.to_owned(), ..self.clone() }
    }

    fn checkpoint<const N: usize>(
        inputs: [&Self; N],
        block: impl Fn([&Self; N]) -> Result<Self> + 'static,
    ) -> Result<Self> {
        let Some(counter) = inputs.first().map(|x| x.counter.clone()) else { return block(inputs) };
        let before = std::mem::replace(&mut counter.0.record.borrow_mut().in_block, true);
        let y = if counter.0.options.checkpoint {
            counter.clone().checkpoint(inputs, block)
        } else {
            block(inputs)
        };
        counter.0.record.borrow_mut().in_block = before;
        y
    }

    fn linear(&self, weight: &Vec<usize>, bias: Option<&Vec<usize>>) -> Result<Self> {
        let dims = shape::linear(&self.dims, weight, bias.map(Vec::as_slice))?;
        let flops = 2 * weight[1] + usize::from(bias.is_some());
        let factors = self.counter.linear_factors(&self.dims, weight, &dims);
        let operation =
            self.allocating("linear", dims, flops).saves_factor(self).half(self.counter.is_half_precision());
        Ok(operation.grad_for(self).params([Some(weight), bias]).scratch(factors).finish())
    }

    fn conv2d_with_options(
        &self,
        weight: &Vec<usize>,
        bias: Option<&Vec<usize>>,
        options: Conv2dOptions,
    ) -> Result<Self> {
        let dims = shape::conv2d(&self.dims, weight, bias.map(Vec::as_slice), options)?;
        let (sizes, output) = ([weight[0], weight[1], weight[2], weight[3]], [dims[1], dims[2]]);
        Ok(self.conv("conv2d", sizes, [Some(weight), bias], options, (dims, output)))
    }

    fn conv1d(&self, weight: &Vec<usize>, bias: Option<&Vec<usize>>, options: Conv1dOptions) -> Result<Self> {
        let dims = shape::conv1d(&self.dims, weight, bias.map(Vec::as_slice), options)?;
        let (sizes, output) = ([weight[0], weight[1], 1, weight[2]], [1, dims[1]]);
        Ok(self.conv("conv1d", sizes, [Some(weight), bias], options.into(), (dims, output)))
    }

    fn batch_norm(&self, norm: &BatchNorm<Vec<usize>>) -> Result<Self> {
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var].map(Vec::as_slice);
        shape::batch_norm(&self.dims, params)?;
        let trained = [Some(&norm.weight), Some(&norm.bias)];
        Ok(self.elementwise("batch_norm", 2).saves(self).grad_for(self).params(trained).finish())
    }

    fn group_norm(
        &self,
        groups: usize,
        affine: Option<(&Vec<usize>, &Vec<usize>)>,
        _eps: f64,
    ) -> Result<Self> {
        let params = [affine.map(|a| a.0), affine.map(|a| a.1)];
        let param_dims: Vec<&[usize]> = params.iter().flatten().map(|p| p.as_slice()).collect();
        shape::group_norm(&self.dims, groups, &param_dims)?;
        // The normalized values times the gradient, or the gradient times the weight.
        let (flops, scratch) = if affine.is_some() { (9, self.counter.bytes(&self.dims)) } else { (7, 0) };
        let operation = self.elementwise("group_norm", flops).half(false).saves(self).grad_for(self);
        Ok(operation.params(params).scratch(scratch).finish())
    }

    fn layer_norm(&self, affine: Option<(&Vec<usize>, &Vec<usize>)>, _eps: f64) -> Result<Self> {
        let params = [affine.map(|a| a.0), affine.map(|a| a.1)];
        let param_dims: Vec<&[usize]> = params.iter().flatten().map(|p| p.as_slice()).collect();
        shape::norm("layer_norm", &self.dims, &param_dims)?;
        let flops = if affine.is_some() { 9 } else { 7 };
        Ok(self
            .elementwise("layer_norm", flops)
            .half(false)
            .saves(self)
            .grad_for(self)
            .params(params)
            .finish())
    }

    fn rms_norm(&self, weight: Option<&Vec<usize>>, _eps: f64) -> Result<Self> {
        let param_dims: Vec<&[usize]> = weight.iter().map(|w| w.as_slice()).collect();
        shape::norm("rms_norm", &self.dims, &param_dims)?;
        Ok(self
            .elementwise("rms_norm", 3 + param_dims.len())
            .half(false)
            .saves(self)
            .grad_for(self)
            .params([weight])
            .finish())
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        shape::modulation("scale_shift", &self.dims, [&scale.dims, &shift.dims])?;
        Ok(self
            .elementwise("scale_shift", 3)
            .half(false)
            .saves(self)
            .saves(scale)
            .grad_for(self)
            .grad_for(scale)
            .grad_for(shift)
            .finish())
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        shape::same("gated_residual", &self.dims, &branch.dims)?;
        shape::modulation("gated_residual", &self.dims, [&gate.dims, &gate.dims])?;
        let operation = self.elementwise("gated_residual", 2).half(false).saves(branch).saves(gate);
        Ok(operation.grad_for(branch).grad_for(gate).passes_grad_to(self).finish())
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        let dims = shape::attention(&self.dims, &key.dims, &value.dims)?;
        let (tokens, heads) = (dims[0], dims[1]);
        let n: usize = dims.iter().product();
        let scores = [heads, tokens, tokens];
        let flops = 4 * n * tokens + 5 * scores.iter().product::<usize>();
        let half = self.counter.is_half_precision();
        let operation = Operation::new(self, "attention", dims, flops).half(half).saves_buffer(&scores, half);
        let operation = operation.saves_factor(self).saves_factor(key).saves_factor(value);
        Ok(operation.grad_for(self).grad_for(key).grad_for(value).finish())
    }

    fn embedding(&self, table: &Vec<usize>) -> Result<Self> {
        let dims = shape::embedding(&self.dims, table)?;
        Ok(self.allocating("embedding", dims, 0).half(false).saves(self).params([Some(table)]).finish())
    }

    fn sinusoids(&self, width: usize, _period: f64, _scale: f64) -> Result<Self> {
        Ok(self.allocating("sinusoids", shape::sinusoids(&self.dims, width)?, 2).finish())
    }

    fn add_param(&self, param: &Vec<usize>) -> Result<Self> {
        shape::same("add_param", &self.dims, param)?;
        Ok(self.elementwise("add_param", 1).half(false).params([Some(param)]).passes_grad_to(self).finish())
    }

    fn add(&self, other: &Self) -> Result<Self> {
        shape::same("add", &self.dims, &other.dims)?;
        Ok(self
            .elementwise("add", 1)
            .half(self.half && other.half)
            .shares_grad_with(self)
            .shares_grad_with(other)
            .finish())
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        shape::same("mul", &self.dims, &other.dims)?;
        Ok(self
            .elementwise("mul", 1)
            .half(self.half && other.half)
            .saves(self)
            .saves(other)
            .grad_for(self)
            .grad_for(other)
            .finish())
    }

    fn sub(&self, other: &Self) -> Result<Self> {
        shape::same("sub", &self.dims, &other.dims)?;
        let operation = self.elementwise("sub", 1).half(self.half && other.half);
        Ok(operation.grad_for(other).passes_grad_to(self).finish())
    }

    fn div(&self, other: &Self) -> Result<Self> {
        shape::same("div", &self.dims, &other.dims)?;
        let operation = self.elementwise("div", 1).half(self.half && other.half).saves(other).saves_output();
        let operation = operation.scratch(self.counter.bytes(&self.dims));
        Ok(operation.grad_for(self).grad_for(other).finish())
    }

    fn affine(&self, _factor: f64, _offset: f64) -> Result<Self> {
        Ok(self.elementwise("affine", 2).grad_for(self).finish())
    }

    fn gelu(&self) -> Result<Self> {
        Ok(self.elementwise("gelu", 5).saves(self).grad_for(self).finish())
    }

    fn silu(&self) -> Result<Self> {
        Ok(self.elementwise("silu", 4).saves(self).grad_for(self).finish())
    }

    fn relu(&self) -> Result<Self> {
        Ok(self.elementwise("relu", 1).saves_output().grad_for(self).finish())
    }

    fn exp(&self) -> Result<Self> {
        Ok(self.elementwise("exp", 2).half(false).saves_output().grad_for(self).finish())
    }

    fn log(&self) -> Result<Self> {
        Ok(self.elementwise("log", 2).half(false).saves(self).grad_for(self).finish())
    }

    fn sqrt(&self) -> Result<Self> {
        Ok(self.elementwise("sqrt", 1).saves_output().grad_for(self).finish())
    }

    fn sigmoid(&self) -> Result<Self> {
        Ok(self.elementwise("sigmoid", 4).saves_output().grad_for(self).finish())
    }

    fn tanh(&self) -> Result<Self> {
        Ok(self.elementwise("tanh", 4).saves_output().grad_for(self).finish())
    }

    fn softplus(&self) -> Result<Self> {
        Ok(self.elementwise("softplus", 5).half(false).saves(self).grad_for(self).finish())
    }

    fn clamp(&self, min: f64, max: f64) -> Result<Self> {
        shape::check_clamp(min, max)?;
        Ok(self.elementwise("clamp", 2).saves(self).grad_for(self).finish())
    }

    fn swiglu(&self) -> Result<Self> {
        Ok(self.allocating("swiglu", shape::swiglu(&self.dims)?, 5).saves(self).grad_for(self).finish())
    }

    fn softmax(&self) -> Result<Self> {
        Ok(self
            .allocating("softmax", shape::softmax(&self.dims)?, 5)
            .half(false)
            .saves_output()
            .grad_for(self)
            .finish())
    }

    /// In training, dropout is counted as on a tape with a key. Otherwise it is the identity.
    fn dropout(&self, p: f64) -> Result<Self> {
        shape::check_dropout(p)?;
        if self.counter.0.batch == 0 {
            return Ok(Operation::view(self, "dropout", self.dims.clone()).passes_grad_to(self).finish());
        }
        Ok(self.elementwise("dropout", 1).saves_mask(&self.dims).grad_for(self).finish())
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(Operation::view(self, "reshape", shape::reshape(&self.dims, dims)?)
            .shares_grad_with(self)
            .finish())
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        Ok(self.allocating("permute", shape::permute(&self.dims, order)?, 0).grad_for(self).finish())
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let dims: Vec<&[usize]> = parts.iter().map(Tensor::dims).collect();
        let joined = shape::concat(&dims, axis)?;
        let operation = parts[0].allocating("concat", joined, 0).half(parts.iter().all(|p| p.half));
        Ok(parts.iter().fold(operation, Operation::grad_for).finish())
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let dims = shape::chunk(&self.dims, n, axis)?;
        Ok(self.allocating("chunk", dims, 0).grad_for(self).split(n))
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        Ok(self.allocating("slice", shape::slice(&self.dims, axis, start, len)?, 0).grad_for(self).finish())
    }

    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self> {
        let dims = shape::pad(&self.dims, axis, before, after)?;
        Ok(self.allocating("pad", dims, 0).grad_for(self).finish())
    }

    fn sum(&self, axis: usize) -> Result<Self> {
        let dims = shape::sum(&self.dims, axis)?;
        Ok(self.allocating("sum", dims, self.dims[axis]).half(false).grad_for(self).finish())
    }

    fn max(&self, axis: usize) -> Result<Self> {
        let dims = shape::max(&self.dims, axis)?;
        let indices = dims.clone();
        let operation = self.allocating("max", dims, self.dims[axis]).saves_buffer(&indices, false);
        Ok(operation.grad_for(self).finish())
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        let dims = shape::mean(&self.dims, axis)?;
        let expanded = self.counter.bytes(&self.dims);
        Ok(self
            .allocating("mean", dims, self.dims[axis])
            .half(false)
            .grad_for(self)
            .scratch(expanded)
            .finish())
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let dims = shape::pool2d(&self.dims, kernel, stride, padding)?;
        let indices = dims.clone();
        Ok(self
            .allocating("max_pool2d", dims, kernel * kernel)
            .saves_buffer(&indices, false)
            .grad_for(self)
            .finish())
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        let dims = shape::pool2d(&self.dims, kernel, stride, 0)?;
        Ok(self.allocating("avg_pool2d", dims, kernel * kernel).saves(self).grad_for(self).finish())
    }
    fn upsample_nearest2d(&self, factor: usize) -> Result<Self> {
        let dims = shape::upsample_nearest2d(&self.dims, factor)?;
        Ok(self.allocating("upsample_nearest2d", dims, 0).grad_for(self).finish())
    }
}
