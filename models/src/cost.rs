//! The cost reading: counts what a network takes without computing anything.

use std::{cell::RefCell, rc::Rc};

use crate::{Array, BatchNorm, ParamSpec, Result, Source, Tensor, shape};

/// What one operation takes for one item of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Path of the module that it belongs to.
    pub module: String,
    /// The operation's name in the [`Tensor`] trait.
    pub op: &'static str,
    /// Floating-point operations of the forward pass; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes of the result in f32; 0 where the result shares its input's memory.
    pub bytes: u64,
}

/// What a network takes, operation by operation.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The parameters, in the order in which the model asks for them.
    pub params: Vec<ParamSpec>,
    /// The operations, in the order of the forward pass.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// Number of values in all parameters, running statistics included.
    pub fn parameters(&self) -> u64 {
        self.params.iter().map(|p| p.dims.iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Floating-point operations of one forward pass for one item.
    pub fn flops(&self) -> u64 {
        self.entries.iter().map(|e| e.flops).sum()
    }

    /// Bytes of all results of one forward pass for one item in f32: what training keeps when it keeps everything.
    pub fn activation_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }
}

/// A counter: the [`Source`] of [`Cost`] parameters and the place where operations are written down.
#[derive(Clone, Debug, Default)]
pub struct Counter(Rc<RefCell<Ledger>>);

impl Counter {
    /// A value that enters the network, of these sizes after the batch.
    pub fn input(&self, dims: &[usize]) -> Cost {
        Cost { dims: dims.to_vec(), module: String::new(), counter: self.clone() }
    }

    /// What has been counted so far.
    pub fn ledger(&self) -> Ledger {
        self.0.borrow().clone()
    }
}

impl Source<Cost> for Counter {
    fn param(&mut self, spec: ParamSpec) -> Result<Vec<usize>> {
        let dims = spec.dims.clone();
        self.0.borrow_mut().params.push(spec);
        Ok(dims)
    }

    fn constant(&mut self, _name: &str, value: Array) -> Result<Vec<usize>> {
        Ok(value.dims().to_vec())
    }
}

/// A value of the cost reading: a shape.
#[derive(Clone, Debug)]
pub struct Cost {
    dims: Vec<usize>,
    module: String,
    counter: Counter,
}

impl Cost {
    fn entry(&self, op: &'static str, dims: Vec<usize>, flops: usize, bytes: usize) -> Self {
        let entry = Entry { module: self.module.clone(), op, flops: flops as u64, bytes: bytes as u64 };
        self.counter.0.borrow_mut().entries.push(entry);
        Self { dims, ..self.clone() }
    }

    /// An operation whose result is new memory and takes `each` operations for each of its values.
    fn made(&self, op: &'static str, dims: Vec<usize>, each: usize) -> Result<Self> {
        let n: usize = dims.iter().product();
        Ok(self.entry(op, dims, n * each, n * size_of::<f32>()))
    }

    /// An operation whose result is its input seen otherwise.
    fn view(&self, op: &'static str, dims: Vec<usize>) -> Result<Self> {
        Ok(self.entry(op, dims, 0, 0))
    }
}

impl Tensor for Cost {
    type Param = Vec<usize>;

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn at(&self, module: &str) -> Self {
        Self { module: module.to_owned(), ..self.clone() }
    }

    fn linear(&self, weight: &Vec<usize>, bias: Option<&Vec<usize>>) -> Result<Self> {
        let dims = shape::linear(&self.dims, weight, bias.map(Vec::as_slice))?;
        self.made("linear", dims, 2 * weight[1] + usize::from(bias.is_some()))
    }

    fn conv2d(
        &self,
        weight: &Vec<usize>,
        bias: Option<&Vec<usize>>,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let dims = shape::conv2d(&self.dims, weight, bias.map(Vec::as_slice), stride, padding)?;
        self.made("conv2d", dims, 2 * weight[1..].iter().product::<usize>() + usize::from(bias.is_some()))
    }

    fn batch_norm(&self, norm: &BatchNorm<Vec<usize>>) -> Result<Self> {
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var].map(Vec::as_slice);
        self.made("batch_norm", shape::batch_norm(&self.dims, params)?, 2)
    }

    fn layer_norm(&self, affine: Option<(&Vec<usize>, &Vec<usize>)>, eps: f64) -> Result<Self> {
        let _ = eps;
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [w.as_slice(), b.as_slice()]).collect();
        let each = if params.is_empty() { 7 } else { 9 };
        self.made("layer_norm", shape::norm("layer_norm", &self.dims, &params)?, each)
    }

    fn rms_norm(&self, weight: Option<&Vec<usize>>, eps: f64) -> Result<Self> {
        let _ = eps;
        let params: Vec<&[usize]> = weight.iter().map(|w| w.as_slice()).collect();
        self.made("rms_norm", shape::norm("rms_norm", &self.dims, &params)?, 3 + params.len())
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        self.made("scale_shift", shape::modulation("scale_shift", &self.dims, [&scale.dims, &shift.dims])?, 3)
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        shape::same("gated_residual", &self.dims, &branch.dims)?;
        self.made(
            "gated_residual",
            shape::modulation("gated_residual", &self.dims, [&gate.dims, &gate.dims])?,
            2,
        )
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        let dims = shape::attention(&self.dims, &key.dims, &value.dims)?;
        let (tokens, heads) = (dims[0], dims[1]);
        let n: usize = dims.iter().product();
        let scores = tokens * tokens * heads;
        Ok(self.entry("attention", dims, 4 * n * tokens + 5 * scores, size_of::<f32>() * (n + scores)))
    }

    fn embedding(&self, table: &Vec<usize>) -> Result<Self> {
        self.made("embedding", shape::embedding(&self.dims, table)?, 0)
    }

    fn sinusoids(&self, width: usize, _period: f64, _scale: f64) -> Result<Self> {
        self.made("sinusoids", shape::sinusoids(&self.dims, width)?, 2)
    }

    fn add_param(&self, param: &Vec<usize>) -> Result<Self> {
        shape::same("add_param", &self.dims, param)?;
        self.made("add_param", self.dims.clone(), 1)
    }

    fn add(&self, other: &Self) -> Result<Self> {
        shape::same("add", &self.dims, &other.dims)?;
        self.made("add", self.dims.clone(), 1)
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        shape::same("mul", &self.dims, &other.dims)?;
        self.made("mul", self.dims.clone(), 1)
    }

    fn affine(&self, _factor: f64, _offset: f64) -> Result<Self> {
        self.made("affine", self.dims.clone(), 2)
    }

    fn gelu(&self) -> Result<Self> {
        self.made("gelu", self.dims.clone(), 5)
    }

    fn silu(&self) -> Result<Self> {
        self.made("silu", self.dims.clone(), 4)
    }

    fn relu(&self) -> Result<Self> {
        self.made("relu", self.dims.clone(), 1)
    }

    fn swiglu(&self) -> Result<Self> {
        self.made("swiglu", shape::swiglu(&self.dims)?, 5)
    }

    fn softmax(&self) -> Result<Self> {
        self.made("softmax", shape::softmax(&self.dims)?, 5)
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        self.view("reshape", shape::reshape(&self.dims, dims)?)
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        self.made("permute", shape::permute(&self.dims, order)?, 0)
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let dims: Vec<&[usize]> = parts.iter().map(Tensor::dims).collect();
        let joined = shape::concat(&dims, axis)?;
        parts[0].made("concat", joined, 0)
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let dims = shape::chunk(&self.dims, n, axis)?;
        (0..n).map(|_| self.made("chunk", dims.clone(), 0)).collect()
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.made("slice", shape::slice(&self.dims, axis, start, len)?, 0)
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        let dims = shape::mean(&self.dims, axis)?;
        self.made("mean", dims, self.dims[axis])
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        self.made("max_pool2d", shape::pool2d(&self.dims, kernel, stride, padding)?, kernel * kernel)
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        self.made("avg_pool2d", shape::pool2d(&self.dims, kernel, stride, 0)?, kernel * kernel)
    }
}
