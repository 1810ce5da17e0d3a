//! The value and the parameters of the candle backend: inference on candle tensors, without a tape.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor as CandleTensor};

use super::{
    elementwise::{self, UnaryFunction},
    ops::{self, Activation, NormKind},
    precision::FactorPrecision,
    spatial, to_device,
};
use crate::{
    Array, BatchNorm, Conv1dOptions, Conv2dOptions, ParamSpec, Result, Source, Tensor, Weights, shape,
};

/// A value of the candle backend.
#[derive(Clone, Debug)]
pub struct CandleValue(CandleTensor);

impl CandleValue {
    /// Creates a value from a tensor whose first axis is the batch; integers (labels) are `u32`.
    pub fn new(tensor: CandleTensor) -> Self {
        Self(tensor)
    }

    /// Returns the tensor.
    pub fn into_inner(self) -> CandleTensor {
        self.0
    }

    fn batch(&self, dims: &[usize]) -> Vec<usize> {
        batched(&self.0, dims)
    }
}

/// Prepends the batch size of `x` to `dims`.
pub(crate) fn batched(x: &CandleTensor, dims: &[usize]) -> Vec<usize> {
    std::iter::once(x.dims()[0]).chain(dims.iter().copied()).collect()
}

/// Weights on a device, which models take by name.
pub struct Params {
    tensors: HashMap<String, CandleTensor>,
    dtype: DType,
    device: Device,
}

impl Params {
    /// Copies `weights` to `device` as `dtype`.
    ///
    /// # Errors
    /// Errors of candle.
    pub fn new(weights: &Weights, dtype: DType, device: &Device) -> Result<Self> {
        let put = |(name, array): (&String, &Array)| Ok((name.clone(), to_device(array, dtype, device)?));
        Ok(Self { tensors: weights.iter().map(put).collect::<Result<_>>()?, dtype, device: device.clone() })
    }

    /// Wraps tensors that are on `device` as `dtype` already, such as those that an optimizer updates.
    pub fn from_tensors(tensors: HashMap<String, CandleTensor>, dtype: DType, device: &Device) -> Self {
        Self { tensors, dtype, device: device.clone() }
    }
}

impl Source<CandleValue> for Params {
    fn param(&mut self, spec: ParamSpec) -> Result<CandleTensor> {
        let tensor = self.tensors.get(&spec.name);
        spec.check_dims(tensor.map(CandleTensor::dims))?;
        Ok(tensor.expect("found above").clone())
    }

    fn constant(&mut self, _name: &str, value: Array) -> Result<CandleTensor> {
        to_device(&value, self.dtype, &self.device)
    }
}

impl Tensor for CandleValue {
    type Param = CandleTensor;

    fn dims(&self) -> &[usize] {
        &self.0.dims()[1..]
    }

    fn linear(&self, weight: &CandleTensor, bias: Option<&CandleTensor>) -> Result<Self> {
        shape::linear(self.dims(), weight.dims(), bias.map(|b| b.dims()))?;
        ops::linear(FactorPrecision::Never, &self.0, weight, bias).map(CandleValue)
    }

    fn conv2d_with_options(
        &self,
        weight: &CandleTensor,
        bias: Option<&CandleTensor>,
        options: Conv2dOptions,
    ) -> Result<Self> {
        shape::conv2d(self.dims(), weight.dims(), bias.map(|b| b.dims()), options)?;
        spatial::conv2d(FactorPrecision::Never, &self.0, weight, bias, options, false).map(CandleValue)
    }

    fn conv1d(
        &self,
        weight: &CandleTensor,
        bias: Option<&CandleTensor>,
        options: Conv1dOptions,
    ) -> Result<Self> {
        shape::conv1d(self.dims(), weight.dims(), bias.map(|b| b.dims()), options)?;
        let (x, weight) = (self.0.unsqueeze(2)?, weight.unsqueeze(2)?);
        let y = spatial::conv2d(FactorPrecision::Never, &x, &weight, bias, options.into(), false)?;
        Ok(Self(y.squeeze(2)?))
    }

    fn batch_norm(&self, norm: &BatchNorm<CandleTensor>) -> Result<Self> {
        shape::batch_norm(
            self.dims(),
            [norm.weight.dims(), norm.bias.dims(), norm.running_mean.dims(), norm.running_var.dims()],
        )?;
        let scale = (&norm.weight * (&norm.running_var + norm.eps)?.sqrt()?.recip()?)?;
        let shift = (&norm.bias - (&norm.running_mean * &scale)?)?;
        spatial::scale_shift_channels(&self.0, &scale, &shift).map(CandleValue)
    }

    fn group_norm(
        &self,
        groups: usize,
        affine: Option<(&CandleTensor, &CandleTensor)>,
        eps: f64,
    ) -> Result<Self> {
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [w.dims(), b.dims()]).collect();
        shape::group_norm(self.dims(), groups, &params)?;
        elementwise::group_norm(&self.0, groups, affine, eps).map(CandleValue)
    }

    fn layer_norm(&self, affine: Option<(&CandleTensor, &CandleTensor)>, eps: f64) -> Result<Self> {
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [w.dims(), b.dims()]).collect();
        shape::norm("layer_norm", self.dims(), &params)?;
        ops::norm(NormKind::Layer, &self.0, affine.map(|a| a.0), affine.map(|a| a.1), eps).map(CandleValue)
    }

    fn rms_norm(&self, weight: Option<&CandleTensor>, eps: f64) -> Result<Self> {
        let params: Vec<&[usize]> = weight.iter().map(|w| w.dims()).collect();
        shape::norm("rms_norm", self.dims(), &params)?;
        ops::norm(NormKind::Rms, &self.0, weight, None, eps).map(CandleValue)
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        shape::modulation("scale_shift", self.dims(), [scale.dims(), shift.dims()])?;
        ops::scale_shift(&self.0, &scale.0, &shift.0).map(CandleValue)
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        shape::same("gated_residual", self.dims(), branch.dims())?;
        shape::modulation("gated_residual", self.dims(), [gate.dims(), gate.dims()])?;
        ops::gated_residual(&self.0, &branch.0, &gate.0).map(CandleValue)
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        shape::attention(self.dims(), key.dims(), value.dims())?;
        Ok(Self(ops::attention(FactorPrecision::Never, &self.0, &key.0, &value.0)?.0))
    }

    fn embedding(&self, table: &CandleTensor) -> Result<Self> {
        shape::embedding(self.dims(), table.dims())?;
        Ok(Self(table.index_select(&self.0, 0)?))
    }

    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self> {
        shape::sinusoids(self.dims(), width)?;
        ops::sinusoids(&self.0, width, period, scale).map(CandleValue)
    }

    fn add_param(&self, param: &CandleTensor) -> Result<Self> {
        shape::same("add_param", self.dims(), param.dims())?;
        Ok(Self(self.0.broadcast_add(&param.unsqueeze(0)?)?))
    }

    fn add(&self, other: &Self) -> Result<Self> {
        shape::same("add", self.dims(), other.dims())?;
        ops::add(&self.0, &other.0).map(CandleValue)
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        shape::same("mul", self.dims(), other.dims())?;
        Ok(Self((&self.0 * &other.0)?))
    }

    fn sub(&self, other: &Self) -> Result<Self> {
        shape::same("sub", self.dims(), other.dims())?;
        Ok(Self((&self.0 - &other.0)?))
    }

    fn div(&self, other: &Self) -> Result<Self> {
        shape::same("div", self.dims(), other.dims())?;
        Ok(Self((&self.0 / &other.0)?))
    }

    fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        Ok(Self(self.0.affine(factor, offset)?))
    }

    fn gelu(&self) -> Result<Self> {
        ops::activation(Activation::Gelu, &self.0).map(CandleValue)
    }

    fn silu(&self) -> Result<Self> {
        ops::activation(Activation::Silu, &self.0).map(CandleValue)
    }

    fn relu(&self) -> Result<Self> {
        ops::activation(Activation::Relu, &self.0).map(CandleValue)
    }

    fn exp(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Exp, &self.0).map(CandleValue)
    }

    fn log(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Log, &self.0).map(CandleValue)
    }

    fn sqrt(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Sqrt, &self.0).map(CandleValue)
    }

    fn sigmoid(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Sigmoid, &self.0).map(CandleValue)
    }

    fn tanh(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Tanh, &self.0).map(CandleValue)
    }

    fn softplus(&self) -> Result<Self> {
        elementwise::unary(UnaryFunction::Softplus, &self.0).map(CandleValue)
    }

    fn clamp(&self, min: f64, max: f64) -> Result<Self> {
        shape::check_clamp(min, max)?;
        elementwise::unary(UnaryFunction::Clamp { min, max }, &self.0).map(CandleValue)
    }

    fn swiglu(&self) -> Result<Self> {
        shape::swiglu(self.dims())?;
        ops::swiglu(&self.0).map(CandleValue)
    }

    fn softmax(&self) -> Result<Self> {
        shape::softmax(self.dims())?;
        ops::softmax(&self.0).map(CandleValue)
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        shape::reshape(self.dims(), dims)?;
        Ok(Self(self.0.reshape(self.batch(dims))?))
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        shape::permute(self.dims(), order)?;
        Ok(Self(self.0.permute(with_batch(order))?.contiguous()?))
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let dims: Vec<&[usize]> = parts.iter().map(Tensor::dims).collect();
        shape::concat(&dims, axis)?;
        let tensors: Vec<&CandleTensor> = parts.iter().map(|p| &p.0).collect();
        Ok(Self(CandleTensor::cat(&tensors, axis + 1)?))
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let len = shape::chunk(self.dims(), n, axis)?[axis];
        (0..n).map(|i| Ok(Self(self.0.narrow(axis + 1, i * len, len)?.contiguous()?))).collect()
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        shape::slice(self.dims(), axis, start, len)?;
        Ok(Self(self.0.narrow(axis + 1, start, len)?.contiguous()?))
    }

    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self> {
        shape::pad(self.dims(), axis, before, after)?;
        Ok(Self(self.0.pad_with_zeros(axis + 1, before, after)?.contiguous()?))
    }

    fn sum(&self, axis: usize) -> Result<Self> {
        shape::sum(self.dims(), axis)?;
        elementwise::sum(&self.0, axis + 1).map(CandleValue)
    }

    fn max(&self, axis: usize) -> Result<Self> {
        shape::max(self.dims(), axis)?;
        Ok(Self(elementwise::max(&self.0, axis + 1)?.0))
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        shape::mean(self.dims(), axis)?;
        Ok(Self(self.0.mean(axis + 1)?))
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        shape::pool2d(self.dims(), kernel, stride, padding)?;
        Ok(Self(spatial::max_pool2d(&self.0, kernel, stride, padding)?.0))
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        shape::pool2d(self.dims(), kernel, stride, 0)?;
        spatial::avg_pool2d(&self.0, kernel, stride).map(CandleValue)
    }

    fn upsample_nearest2d(&self, factor: usize) -> Result<Self> {
        shape::upsample_nearest2d(self.dims(), factor)?;
        elementwise::upsample_nearest2d(&self.0, factor).map(CandleValue)
    }
}

/// Converts an order of the axes after the batch to an order of all axes.
pub(crate) fn with_batch(order: &[usize]) -> Vec<usize> {
    std::iter::once(0).chain(order.iter().map(|i| i + 1)).collect()
}
