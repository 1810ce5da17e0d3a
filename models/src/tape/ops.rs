//! The operations of [`Tensor`] on the tape.

use candle_core::{DType, Tensor as CandleTensor};

use super::{
    BatchStatistics, Param, Var,
    slots::{Grad, Slots},
};
use crate::{
    BatchNorm, Conv1dOptions, Conv2dOptions, Error, Result, Tensor,
    candle::{
        CandleValue,
        elementwise::{self, UnaryFunction},
        has_kernels,
        ops::{self, Activation, NormKind},
        precision::{FactorPrecision, convert, wide, wide_type},
        spatial,
    },
};

impl Var {
    /// Returns the value in the candle backend, in f32 if it is in half precision. That backend checks shapes, and computes operations
    /// whose backward needs no saved intermediate results.
    fn to_candle(&self) -> Result<CandleValue> {
        Ok(CandleValue::new(wide(&self.value)?))
    }

    /// Returns the value in the candle backend without conversion, for operations that only move values.
    fn as_candle(&self) -> CandleValue {
        CandleValue::new(self.value.clone())
    }

    /// Returns how the factors of products are rounded.
    fn rounding(&self) -> FactorPrecision {
        FactorPrecision::new(self.tape.0.options.precision, has_kernels(self.value.device()))
    }

    /// Returns the type of an elementwise operation on two values: half precision only if both are.
    fn promoted_type(&self, other: &Var) -> DType {
        let (a, b) = (self.value.dtype(), other.value.dtype());
        if a == b { a } else { wide_type(a) }
    }

    fn record(
        &self,
        value: CandleTensor,
        inputs: &[Option<usize>],
        backward: impl FnOnce(Grad, &mut Slots) -> Result<()> + 'static,
    ) -> Var {
        self.tape.record(value, inputs.iter().any(Option::is_some), backward)
    }

    /// Records an operation on one value; `backward` computes the input's gradient from the result's.
    pub(super) fn unary_op(
        &self,
        value: CandleValue,
        backward: impl FnOnce(&CandleTensor) -> Result<CandleTensor> + 'static,
    ) -> Result<Var> {
        let slot = self.slot;
        Ok(self.record(value.into_inner(), &[slot], move |grad, slots| slots.add(slot, backward(&grad)?)))
    }

    fn activation(&self, kind: Activation) -> Result<Var> {
        let x = self.value.clone();
        let y = CandleValue::new(convert(&ops::activation(kind, &wide(&x)?)?, x.dtype())?);
        self.unary_op(y, move |grad| ops::activation_backward(kind, &wide(&x)?, grad))
    }

    /// Convolves images, or sequences, which are images of one row.
    fn conv(&self, weight: &Param, bias: Option<&Param>, options: Conv2dOptions) -> Result<Var> {
        fn image(x: &CandleTensor) -> Result<CandleTensor> {
            Ok(if x.rank() == 3 { x.unsqueeze(2)? } else { x.clone() })
        }
        let rounding = self.rounding();
        let (x_shape, w_shape) = (self.value.shape().clone(), weight.value.shape().clone());
        let (x, w) = (image(&rounding.factor(&self.value)?)?, image(&weight.value)?);
        let b = bias.map(|b| rounding.factor(&b.value)).transpose()?;
        let mut y = spatial::conv2d(rounding, &x, &rounding.factor(&w)?, b.as_ref(), options, true)?;
        if x_shape.rank() == 3 {
            y = y.squeeze(2)?;
        }
        let (slot, weight_slot, bias_slot) = (self.slot, weight.slot, bias.and_then(|b| b.slot));
        Ok(self.record(y, &[slot, weight_slot, bias_slot], move |grad, slots| {
            let grad = image(&grad)?;
            if bias_slot.is_some() {
                slots.add(bias_slot, spatial::sum_channels(&grad)?)?;
            }
            let (w, grad) = (rounding.factor(&w)?, rounding.factor(&grad)?);
            let (grad_x, grad_weight) =
                spatial::conv2d_backward(rounding, &x, &w, &grad, options, slot.is_some())?;
            slots.add(weight_slot, wide(&grad_weight)?.reshape(w_shape)?)?;
            grad_x.map_or(Ok(()), |g| slots.add(slot, wide(&g)?.reshape(x_shape)?))
        }))
    }

    fn unary(&self, function: UnaryFunction) -> Result<Var> {
        let x = self.value.clone();
        let mut y = elementwise::unary(function, &wide(&x)?)?;
        if !function.is_wide() {
            y = convert(&y, x.dtype())?;
        }
        let saved = if function.is_slope_from_result() { y.clone() } else { x };
        self.unary_op(CandleValue::new(y), move |grad| {
            elementwise::unary_backward(function, &wide(&saved)?, grad)
        })
    }

    fn norm(
        &self,
        kind: NormKind,
        weight: Option<&Param>,
        bias: Option<&Param>,
        eps: f64,
        y: CandleValue,
    ) -> Result<Var> {
        let (x, slot) = (self.value.clone(), self.slot);
        let (weight_value, weight_slot) = (weight.map(|w| w.value.clone()), weight.and_then(|w| w.slot));
        let bias_slot = bias.and_then(|b| b.slot);
        Ok(self.record(y.into_inner(), &[slot, weight_slot, bias_slot], move |grad, slots| {
            let (grad_x, params) = ops::norm_backward(kind, &wide(&x)?, weight_value.as_ref(), &grad, eps)?;
            slots.add(slot, grad_x)?;
            if let Some((grad_weight, grad_bias)) = params {
                slots.add(weight_slot, grad_weight)?;
                slots.add(bias_slot, grad_bias)?;
            }
            Ok(())
        }))
    }

    /// Records an operation that only moves values; `backward` moves the gradient to the original positions.
    fn movement_op(
        &self,
        value: CandleValue,
        backward: impl FnOnce(&CandleTensor) -> Result<CandleTensor> + 'static,
    ) -> Result<Var> {
        let slot = self.slot;
        Ok(self.record(value.into_inner(), &[slot], move |grad, slots| {
            slots.add_shared(slot, &backward(&grad)?)
        }))
    }
}

impl Tensor for Var {
    type Param = Param;

    fn dims(&self) -> &[usize] {
        &self.value.dims()[1..]
    }

    fn checkpoint<const N: usize>(
        inputs: [&Self; N],
        block: impl Fn([&Self; N]) -> Result<Self> + 'static,
    ) -> Result<Self> {
        let Some(tape) = inputs.first().map(|x| x.tape.clone()).filter(|tape| tape.0.options.checkpoint)
        else {
            return block(inputs);
        };
        let dropouts = tape.0.record.borrow().dropouts;
        let y = tape.unrecorded(|| block(inputs))?.value;
        let inputs = inputs.map(|x| (x.value.clone(), x.slot));
        Ok(tape.record(y, true, move |grad, slots| slots.replay(inputs, block, dropouts, grad)))
    }

    fn linear(&self, weight: &Param, bias: Option<&Param>) -> Result<Self> {
        let (rounding, w) = (self.rounding(), weight.value.clone());
        crate::shape::linear(self.dims(), w.dims(), bias.map(|b| b.value.dims()))?;
        let x = rounding.factor(&self.value)?;
        let b = bias.map(|b| rounding.factor(&b.value)).transpose()?;
        let y = ops::linear(rounding, &x, &rounding.factor(&w)?, b.as_ref())?;
        let (slot, weight_slot, bias_slot) = (self.slot, weight.slot, bias.and_then(|b| b.slot));
        Ok(self.record(y, &[slot, weight_slot, bias_slot], move |grad, slots| {
            if bias_slot.is_some() {
                slots.add(bias_slot, ops::sum_rows(&grad)?)?;
            }
            let (w, grad) = (rounding.factor(&w)?, rounding.factor(&grad)?);
            let (grad_x, grad_weight) = ops::linear_backward(rounding, &x, &w, &grad, slot.is_some())?;
            slots.add(weight_slot, wide(&grad_weight)?)?;
            grad_x.map_or(Ok(()), |g| slots.add(slot, wide(&g)?))
        }))
    }

    fn conv2d_with_options(
        &self,
        weight: &Param,
        bias: Option<&Param>,
        options: Conv2dOptions,
    ) -> Result<Self> {
        crate::shape::conv2d(self.dims(), weight.value.dims(), bias.map(|b| b.value.dims()), options)?;
        self.conv(weight, bias, options)
    }

    fn conv1d(&self, weight: &Param, bias: Option<&Param>, options: Conv1dOptions) -> Result<Self> {
        crate::shape::conv1d(self.dims(), weight.value.dims(), bias.map(|b| b.value.dims()), options)?;
        self.conv(weight, bias, options.into())
    }

    fn batch_norm(&self, norm: &BatchNorm<Param>) -> Result<Self> {
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        crate::shape::batch_norm(self.dims(), params.map(|p| p.value.dims()))?;
        let &[batch, _, height, width] = self.value.dims() else { unreachable!("checked above") };
        let n = batch * height * width;
        if n < 2 {
            return Err(Error::shape("batch_norm", "at least two values a channel to train on", n));
        }
        let (x, weight, eps) = (self.value.clone(), norm.weight.value.clone(), norm.eps);
        let [y, mean, var] = spatial::batch_norm(&wide(&x)?, &weight, &norm.bias.value, eps)?;
        let y = convert(&y, x.dtype())?;
        let unbiased = (&var * (n as f64 / (n - 1) as f64))?;
        let statistics = BatchStatistics { path: norm.path.clone(), mean: mean.clone(), var: unbiased };
        self.tape.0.record.borrow_mut().statistics.push(statistics);
        let (slot, weight_slot, bias_slot) = (self.slot, norm.weight.slot, norm.bias.slot);
        Ok(self.record(y, &[slot, weight_slot, bias_slot], move |grad, slots| {
            let [grad_x, grad_weight, grad_bias] =
                spatial::batch_norm_backward(&wide(&x)?, &weight, &mean, &var, eps, &grad)?;
            slots.add(slot, grad_x)?;
            slots.add(weight_slot, grad_weight)?;
            slots.add(bias_slot, grad_bias)
        }))
    }

    fn group_norm(&self, groups: usize, affine: Option<(&Param, &Param)>, eps: f64) -> Result<Self> {
        let y = self.to_candle()?.group_norm(groups, affine.map(|(w, b)| (&w.value, &b.value)), eps)?;
        let (x, slot) = (self.value.clone(), self.slot);
        let weight = affine.map(|(weight, _)| weight.value.clone());
        let [weight_slot, bias_slot] = affine.map_or([None; 2], |(w, b)| [w.slot, b.slot]);
        Ok(self.record(y.into_inner(), &[slot, weight_slot, bias_slot], move |grad, slots| {
            let (grad_x, params) =
                elementwise::group_norm_backward(&wide(&x)?, groups, weight.as_ref(), &grad, eps)?;
            slots.add(slot, grad_x)?;
            if let Some((grad_weight, grad_bias)) = params {
                slots.add(weight_slot, grad_weight)?;
                slots.add(bias_slot, grad_bias)?;
            }
            Ok(())
        }))
    }

    fn layer_norm(&self, affine: Option<(&Param, &Param)>, eps: f64) -> Result<Self> {
        let y = self.to_candle()?.layer_norm(affine.map(|(w, b)| (&w.value, &b.value)), eps)?;
        self.norm(NormKind::Layer, affine.map(|a| a.0), affine.map(|a| a.1), eps, y)
    }

    fn rms_norm(&self, weight: Option<&Param>, eps: f64) -> Result<Self> {
        let y = self.to_candle()?.rms_norm(weight.map(|w| &w.value), eps)?;
        self.norm(NormKind::Rms, weight, None, eps, y)
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        let y = self.to_candle()?.scale_shift(&scale.to_candle()?, &shift.to_candle()?)?;
        let (x, s) = (self.value.clone(), scale.value.clone());
        let (slot, scale_slot, shift_slot) = (self.slot, scale.slot, shift.slot);
        Ok(self.record(y.into_inner(), &[slot, scale_slot, shift_slot], move |grad, slots| {
            let [grad_x, grad_scale, grad_shift] = ops::scale_shift_backward(&wide(&x)?, &wide(&s)?, &grad)?;
            slots.add(slot, grad_x)?;
            slots.add(scale_slot, grad_scale)?;
            slots.add(shift_slot, grad_shift)
        }))
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        let y = self.to_candle()?.gated_residual(&branch.to_candle()?, &gate.to_candle()?)?;
        let (b, g) = (branch.value.clone(), gate.value.clone());
        let (slot, branch_slot, gate_slot) = (self.slot, branch.slot, gate.slot);
        Ok(self.record(y.into_inner(), &[slot, branch_slot, gate_slot], move |grad, slots| {
            let [grad_branch, grad_gate] = ops::gated_residual_backward(&wide(&b)?, &wide(&g)?, &grad)?;
            slots.add(branch_slot, grad_branch)?;
            slots.add(gate_slot, grad_gate)?;
            // The gradient of `x` is the result's, unchanged.
            slots.pass(slot, grad)
        }))
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        crate::shape::attention(self.dims(), key.dims(), value.dims())?;
        let rounding = self.rounding();
        let [q, k, v] = [self, key, value].map(|x| rounding.factor(&x.value));
        let (q, k, v) = (q?, k?, v?);
        let (y, p) = ops::attention(rounding, &q, &k, &v)?;
        let slot = [self.slot, key.slot, value.slot];
        Ok(self.record(y, &slot, move |grad, slots| {
            let grads = ops::attention_backward(rounding, &q, &k, &v, &p, &rounding.factor(&grad)?)?;
            slot.into_iter().zip(grads).try_for_each(|(slot, grad)| slots.add(slot, wide(&grad)?))
        }))
    }

    fn embedding(&self, table: &Param) -> Result<Self> {
        let y = self.as_candle().embedding(&table.value)?;
        let (index, rows, slot) = (self.value.clone(), table.value.clone(), table.slot);
        Ok(self.record(y.into_inner(), &[slot], move |grad, slots| {
            slots.add(slot, rows.zeros_like()?.index_add(&index, &grad, 0)?)
        }))
    }

    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self> {
        let y = self.to_candle()?.sinusoids(width, period, scale)?;
        if self.slot.is_some() {
            return Err(Error::Unsupported {
                backend: "the tape backend".into(),
                operation: "a gradient with respect to the time of sinusoids".into(),
            });
        }
        Ok(self.tape.constant(y.into_inner()))
    }

    fn add_param(&self, param: &Param) -> Result<Self> {
        let y = self.to_candle()?.add_param(&param.value)?;
        let (slot, param_slot) = (self.slot, param.slot);
        Ok(self.record(y.into_inner(), &[slot, param_slot], move |grad, slots| {
            if param_slot.is_some() {
                slots.add(param_slot, grad.sum(0)?)?;
            }
            slots.pass(slot, grad)
        }))
    }

    fn add(&self, other: &Self) -> Result<Self> {
        let y =
            convert(&self.to_candle()?.add(&other.to_candle()?)?.into_inner(), self.promoted_type(other))?;
        let (slot, other_slot) = (self.slot, other.slot);
        Ok(self.record(y, &[slot, other_slot], move |grad, slots| {
            slots.add_shared(slot, &grad)?;
            slots.add_shared(other_slot, &grad)
        }))
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        let y =
            convert(&self.to_candle()?.mul(&other.to_candle()?)?.into_inner(), self.promoted_type(other))?;
        let (a, b) = (self.value.clone(), other.value.clone());
        let (slot, other_slot) = (self.slot, other.slot);
        Ok(self.record(y, &[slot, other_slot], move |grad, slots| {
            slots.add(slot, (&*grad * wide(&b)?)?)?;
            slots.add(other_slot, (&*grad * wide(&a)?)?)
        }))
    }

    fn sub(&self, other: &Self) -> Result<Self> {
        let y =
            convert(&self.to_candle()?.sub(&other.to_candle()?)?.into_inner(), self.promoted_type(other))?;
        let (slot, other_slot) = (self.slot, other.slot);
        Ok(self.record(y, &[slot, other_slot], move |grad, slots| {
            if other_slot.is_some() {
                slots.add(other_slot, grad.neg()?)?;
            }
            slots.pass(slot, grad)
        }))
    }

    fn div(&self, other: &Self) -> Result<Self> {
        let y =
            convert(&self.to_candle()?.div(&other.to_candle()?)?.into_inner(), self.promoted_type(other))?;
        let (divisor, quotient) = (other.value.clone(), y.clone());
        let (slot, other_slot) = (self.slot, other.slot);
        Ok(self.record(y, &[slot, other_slot], move |grad, slots| {
            let grad = (&*grad / wide(&divisor)?)?;
            if other_slot.is_some() {
                slots.add(other_slot, (&grad * wide(&quotient)?)?.neg()?)?;
            }
            slots.add(slot, grad)
        }))
    }

    fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        let y = convert(&self.to_candle()?.affine(factor, offset)?.into_inner(), self.value.dtype())?;
        self.unary_op(CandleValue::new(y), move |grad| Ok((grad * factor)?))
    }

    fn gelu(&self) -> Result<Self> {
        self.activation(Activation::Gelu)
    }

    fn silu(&self) -> Result<Self> {
        self.activation(Activation::Silu)
    }

    fn relu(&self) -> Result<Self> {
        let y = convert(&ops::activation(Activation::Relu, &wide(&self.value)?)?, self.value.dtype())?;
        // The result is positive where the value is, and the next operation keeps it anyway.
        let result = y.clone();
        self.unary_op(CandleValue::new(y), move |grad| {
            ops::activation_backward(Activation::Relu, &wide(&result)?, grad)
        })
    }

    fn exp(&self) -> Result<Self> {
        self.unary(UnaryFunction::Exp)
    }

    fn log(&self) -> Result<Self> {
        self.unary(UnaryFunction::Log)
    }

    fn sqrt(&self) -> Result<Self> {
        self.unary(UnaryFunction::Sqrt)
    }

    fn sigmoid(&self) -> Result<Self> {
        self.unary(UnaryFunction::Sigmoid)
    }

    fn tanh(&self) -> Result<Self> {
        self.unary(UnaryFunction::Tanh)
    }

    fn softplus(&self) -> Result<Self> {
        self.unary(UnaryFunction::Softplus)
    }

    fn clamp(&self, min: f64, max: f64) -> Result<Self> {
        crate::shape::check_clamp(min, max)?;
        self.unary(UnaryFunction::Clamp { min, max })
    }

    fn swiglu(&self) -> Result<Self> {
        let x = self.value.clone();
        let y = convert(&self.to_candle()?.swiglu()?.into_inner(), x.dtype())?;
        self.unary_op(CandleValue::new(y), move |grad| ops::swiglu_backward(&wide(&x)?, grad))
    }

    fn softmax(&self) -> Result<Self> {
        let y = self.to_candle()?.softmax()?;
        let result = y.clone().into_inner();
        self.unary_op(y, move |grad| ops::softmax_backward(&result, grad))
    }

    fn dropout(&self, p: f64) -> Result<Self> {
        self.apply_dropout(p)
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let shape = self.value.shape().clone();
        self.movement_op(self.as_candle().reshape(dims)?, move |grad| Ok(grad.reshape(shape)?))
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        let y = self.as_candle().permute(order)?;
        let mut inverse = vec![0; order.len() + 1];
        for (i, &axis) in order.iter().enumerate() {
            inverse[axis + 1] = i + 1;
        }
        self.movement_op(y, move |grad| Ok(grad.permute(inverse)?.contiguous()?))
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let mixed = parts.windows(2).any(|p| p[0].value.dtype() != p[1].value.dtype());
        let plain = |part: &Var| if mixed { part.to_candle() } else { Ok(part.as_candle()) };
        let plain: Vec<CandleValue> = parts.iter().map(plain).collect::<Result<_>>()?;
        let y = CandleValue::concat(&plain, axis)?;
        let pieces: Vec<(Option<usize>, usize)> = parts.iter().map(|p| (p.slot, p.dims()[axis])).collect();
        let inputs: Vec<Option<usize>> = parts.iter().map(|p| p.slot).collect();
        Ok(parts[0].record(y.into_inner(), &inputs, move |grad, slots| {
            let mut start = 0;
            for (slot, len) in pieces {
                slots.add(slot, grad.narrow(axis + 1, start, len)?.copy()?)?;
                start += len;
            }
            Ok(())
        }))
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let parts: Vec<CandleTensor> =
            self.as_candle().chunk(n, axis)?.into_iter().map(CandleValue::into_inner).collect();
        // Backward needs only the shape, type and device of the parts, so their values are not kept.
        let (slot, first) = (self.slot, &parts[0]);
        let (shape, dtype, device) =
            (first.shape().clone(), wide_type(first.dtype()), first.device().clone());
        Ok(self.tape.record_many(parts, slot.is_some(), move |grads, slots| {
            let zeros = || CandleTensor::zeros(&shape, dtype, &device);
            let value = |g: Option<Grad>| g.map_or_else(zeros, |g| Ok(g.value));
            let grads: Vec<CandleTensor> =
                grads.into_iter().map(value).collect::<candle_core::Result<_>>()?;
            // `cat` does not copy a single part, so the gradient may be shared.
            slots.add_shared(slot, &CandleTensor::cat(&grads, axis + 1)?)
        }))
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let rest = self.dims().get(axis).map_or(0, |n| n.saturating_sub(start + len));
        let y = self.as_candle().slice(axis, start, len)?;
        self.movement_op(y, move |grad| Ok(grad.pad_with_zeros(axis + 1, start, rest)?.contiguous()?))
    }

    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self> {
        let y = self.as_candle().pad(axis, before, after)?;
        let len = self.dims()[axis];
        self.unary_op(y, move |grad| Ok(grad.narrow(axis + 1, before, len)?.copy()?))
    }

    fn sum(&self, axis: usize) -> Result<Self> {
        let y = self.to_candle()?.sum(axis)?;
        let shape = self.value.shape().clone();
        let backward =
            move |grad: &CandleTensor| Ok(grad.unsqueeze(axis + 1)?.broadcast_as(shape)?.contiguous()?);
        // Over one position the gradient is the result's own memory.
        if self.dims()[axis] == 1 { self.movement_op(y, backward) } else { self.unary_op(y, backward) }
    }

    fn max(&self, axis: usize) -> Result<Self> {
        crate::shape::max(self.dims(), axis)?;
        let (y, indices) = elementwise::max(&wide(&self.value)?, axis + 1)?;
        let y = convert(&y, self.value.dtype())?;
        let len = self.dims()[axis];
        self.unary_op(CandleValue::new(y), move |grad| {
            elementwise::max_backward(&indices, grad, axis + 1, len)
        })
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        let shape = self.value.shape().clone();
        let n = self.dims().get(axis).copied().unwrap_or(1) as f64;
        self.unary_op(self.to_candle()?.mean(axis)?, move |grad| {
            Ok((grad.unsqueeze(axis + 1)?.broadcast_as(shape)?.contiguous()? / n)?)
        })
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        crate::shape::pool2d(self.dims(), kernel, stride, padding)?;
        let (y, indices) = spatial::max_pool2d(&wide(&self.value)?, kernel, stride, padding)?;
        let y = convert(&y, self.value.dtype())?;
        let (height, width) = (self.dims()[1], self.dims()[2]);
        self.unary_op(CandleValue::new(y), move |grad| {
            spatial::max_pool2d_backward(&indices, grad, height, width)
        })
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        let x = self.value.clone();
        let y = convert(&self.to_candle()?.avg_pool2d(kernel, stride)?.into_inner(), x.dtype())?;
        self.unary_op(CandleValue::new(y), move |grad| {
            spatial::avg_pool2d_backward(&wide(&x)?, grad, kernel, stride)
        })
    }

    fn upsample_nearest2d(&self, factor: usize) -> Result<Self> {
        let y = self.as_candle().upsample_nearest2d(factor)?;
        self.unary_op(y, move |grad| elementwise::upsample_nearest2d_backward(grad, factor))
    }
}
