//! The native backend: inference with the kernels alone, on plain memory, without a tape or another library's tensors.
//!
//! The result of an item depends neither on the batch that it is in nor on the number of threads, to the last bit. In a pool of one
//! thread the kernels start no others, so each thread may compute a whole network for an item of its own.

use std::sync::{Arc, OnceLock};

use crate::{
    Array, BatchNorm, Conv1dOptions, Conv2dOptions, Error, ParamSpec, Result, Source, Tensor, Weights,
    kernels::{
        attention, batch_norm,
        conv::{self, Conv},
        elementwise::{self, UnaryFunction},
        linear,
        norm::{self, NormKind},
        pointwise::{self, Activation},
        pool,
        product::PackedMatrix,
        reduce::{self, Axis},
        upsample,
        window::Window,
    },
    shape,
};

/// A value of the native backend.
#[derive(Clone, Debug)]
pub struct Value {
    batch: usize,
    /// The axes after the batch.
    dims: Vec<usize>,
    data: Arc<Vec<f32>>,
}

impl Value {
    /// Creates a value from an array whose first axis is the batch. Integers (labels) are f32, too.
    ///
    /// # Errors
    /// [`Error::Shape`] for a scalar.
    pub fn new(array: Array) -> Result<Self> {
        let &[batch, ref dims @ ..] = array.dims() else {
            return Err(Error::shape("value", "an axis for the batch", array.dims()));
        };
        Ok(Self { batch, dims: dims.to_vec(), data: Arc::new(array.into_data()) })
    }

    /// Returns the values; the first axis is the batch.
    pub fn into_array(self) -> Array {
        let dims: Vec<usize> = std::iter::once(self.batch).chain(self.dims).collect();
        let data = Arc::try_unwrap(self.data).unwrap_or_else(|shared| shared.to_vec());
        Array::new(dims, data).expect("operations return as many values as their shape has")
    }

    fn with_data(&self, dims: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self { batch: self.batch, dims: dims.into(), data: Arc::new(data) }
    }

    /// Returns the size of the last axis, or 1 if there is none.
    fn last(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Returns the number of repetitions of `axis`, its number of positions, and the number of values at each position.
    fn axis_strides(&self, axis: usize) -> [usize; 3] {
        let product = |dims: &[usize]| dims.iter().product::<usize>();
        [self.batch * product(&self.dims[..axis]), self.dims[axis], product(&self.dims[axis + 1..])]
    }

    fn modulated(
        &self,
        [a, b]: [&Self; 2],
        f: impl Fn(&[f32], &[f32], &[f32], usize, usize) -> Vec<f32>,
    ) -> Result<Self> {
        let &[tokens, width] = self.dims.as_slice() else { unreachable!("checked by the operation") };
        Ok(self.with_data(self.dims.clone(), f(&self.data, &a.data, &b.data, tokens, width)))
    }

    fn activation(&self, kind: Activation) -> Result<Self> {
        Ok(self.with_data(self.dims.clone(), pointwise::activation(kind, &self.data)))
    }

    fn unary(&self, function: UnaryFunction) -> Result<Self> {
        Ok(self.with_data(self.dims.clone(), elementwise::unary(function, &self.data)))
    }

    /// Returns the sizes of a reduction over `axis`.
    fn reduced_axis(&self, axis: usize) -> Axis {
        let [_, len, inner] = self.axis_strides(axis);
        Axis { len, inner }
    }

    fn window(&self, kernel: usize, stride: usize, padding: usize) -> Window {
        let &[_, height, width] = self.dims.as_slice() else { unreachable!("checked by the operation") };
        let options = Conv2dOptions::square(stride, padding);
        Window::new([height, width], [kernel; 2], options).expect("checked by the operation")
    }

    /// Convolves images of this size with a weight of these sizes; the result has the shape `dims`.
    fn conv(
        &self,
        dims: Vec<usize>,
        size: [usize; 2],
        weight: &Arc<Param>,
        bias: Option<&Arc<Param>>,
        kernel: [usize; 2],
        options: Conv2dOptions,
    ) -> Self {
        let window = Window::new(size, kernel, options).expect("checked by the operation");
        let conv = Conv { channels: self.dims[0], out: dims[0], groups: options.groups, window };
        let y = conv::forward::<f32>(conv, &self.data, data(weight), bias.map(data), false);
        self.with_data(dims, y)
    }
}

/// A parameter, which is packed for products when it is first used in one.
#[derive(Debug)]
pub struct Param {
    array: Array,
    packed: OnceLock<PackedMatrix<f32>>,
}

impl Param {
    fn dims(&self) -> &[usize] {
        self.array.dims()
    }

    fn packed(&self) -> &PackedMatrix<f32> {
        self.packed.get_or_init(|| {
            let &[out, input] = self.dims() else { unreachable!("checked by the operation") };
            linear::pack_weight(self.array.data(), input, out)
        })
    }
}

fn data(param: &Arc<Param>) -> &[f32] {
    param.array.data()
}

/// Weights, which models take by name, once each.
pub struct Params(Weights);

impl Params {
    /// Creates a source of `weights`.
    pub fn new(weights: Weights) -> Self {
        Self(weights)
    }
}

impl Source<Value> for Params {
    fn param(&mut self, spec: ParamSpec) -> Result<Arc<Param>> {
        spec.check_dims(self.0.get(&spec.name).map(Array::dims))?;
        let array = self.0.remove(&spec.name).expect("found above");
        self.constant(&spec.name, array)
    }

    fn constant(&mut self, _name: &str, array: Array) -> Result<Arc<Param>> {
        Ok(Arc::new(Param { array, packed: OnceLock::new() }))
    }
}

impl Tensor for Value {
    type Param = Arc<Param>;

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn linear(&self, weight: &Arc<Param>, bias: Option<&Arc<Param>>) -> Result<Self> {
        let dims = shape::linear(&self.dims, weight.dims(), bias.map(|b| b.dims()))?;
        Ok(self.with_data(dims, linear::linear_packed(&self.data, weight.packed(), bias.map(data))))
    }

    fn conv2d_with_options(
        &self,
        weight: &Arc<Param>,
        bias: Option<&Arc<Param>>,
        options: Conv2dOptions,
    ) -> Result<Self> {
        let dims = shape::conv2d(&self.dims, weight.dims(), bias.map(|b| b.dims()), options)?;
        let (size, kernel) = ([self.dims[1], self.dims[2]], [weight.dims()[2], weight.dims()[3]]);
        Ok(self.conv(dims, size, weight, bias, kernel, options))
    }

    fn conv1d(&self, weight: &Arc<Param>, bias: Option<&Arc<Param>>, options: Conv1dOptions) -> Result<Self> {
        let dims = shape::conv1d(&self.dims, weight.dims(), bias.map(|b| b.dims()), options)?;
        Ok(self.conv(dims, [1, self.dims[1]], weight, bias, [1, weight.dims()[2]], options.into()))
    }

    fn batch_norm(&self, norm: &BatchNorm<Arc<Param>>) -> Result<Self> {
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        let dims = shape::batch_norm(&self.dims, params.map(|p| p.dims()))?;
        let [weight, bias, mean, var] = params.map(data);
        let inverse = |var: f32| 1.0 / (var + norm.eps as f32).sqrt();
        let scale: Vec<f32> = weight.iter().zip(var).map(|(w, &var)| w * inverse(var)).collect();
        let shift: Vec<f32> = bias.iter().zip(mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        let plane = self.axis_strides(0)[2];
        Ok(self.with_data(dims, batch_norm::scale_shift(&self.data, plane, &scale, &shift)))
    }

    fn group_norm(
        &self,
        groups: usize,
        affine: Option<(&Arc<Param>, &Arc<Param>)>,
        eps: f64,
    ) -> Result<Self> {
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [w.dims(), b.dims()]).collect();
        let dims = shape::group_norm(&self.dims, groups, &params)?;
        let width = dims.iter().product::<usize>() / groups;
        let y = norm::forward(NormKind::Layer, &self.data, width, None, None, eps);
        let Some((weight, bias)) = affine else { return Ok(self.with_data(dims, y)) };
        let plane = self.axis_strides(0)[2];
        Ok(self.with_data(dims, batch_norm::scale_shift(&y, plane, data(weight), data(bias))))
    }

    fn layer_norm(&self, affine: Option<(&Arc<Param>, &Arc<Param>)>, eps: f64) -> Result<Self> {
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [w.dims(), b.dims()]).collect();
        let dims = shape::norm("layer_norm", &self.dims, &params)?;
        let (weight, bias) = (affine.map(|a| data(a.0)), affine.map(|a| data(a.1)));
        Ok(self.with_data(dims, norm::forward(NormKind::Layer, &self.data, self.last(), weight, bias, eps)))
    }

    fn rms_norm(&self, weight: Option<&Arc<Param>>, eps: f64) -> Result<Self> {
        let params: Vec<&[usize]> = weight.iter().map(|w| w.dims()).collect();
        let dims = shape::norm("rms_norm", &self.dims, &params)?;
        Ok(self.with_data(
            dims,
            norm::forward(NormKind::Rms, &self.data, self.last(), weight.map(data), None, eps),
        ))
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        shape::modulation("scale_shift", &self.dims, [&scale.dims, &shift.dims])?;
        self.modulated([scale, shift], pointwise::scale_shift)
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        shape::same("gated_residual", &self.dims, &branch.dims)?;
        shape::modulation("gated_residual", &self.dims, [&gate.dims, &gate.dims])?;
        self.modulated([branch, gate], pointwise::gated_residual)
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        let dims = shape::attention(&self.dims, &key.dims, &value.dims)?;
        let &[tokens, heads, d] = dims.as_slice() else { unreachable!("checked above") };
        let sizes = attention::Sizes { tokens, heads, d };
        Ok(self.with_data(dims, attention::forward::<f32>(&self.data, &key.data, &value.data, sizes).0))
    }

    fn embedding(&self, table: &Arc<Param>) -> Result<Self> {
        let dims = shape::embedding(&self.dims, table.dims())?;
        let width = dims.last().copied().unwrap_or(1);
        let mut y = Vec::with_capacity(self.data.len() * width);
        for &label in self.data.iter() {
            let row = Some(label as usize).filter(|&row| row as f32 == label);
            let row =
                row.and_then(|row| data(table).get(row * width..(row + 1) * width)).ok_or_else(|| {
                    Error::shape("embedding", format!("integers below {}", table.dims()[0]), label)
                })?;
            y.extend_from_slice(row);
        }
        Ok(self.with_data(dims, y))
    }

    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self> {
        let dims = shape::sinusoids(&self.dims, width)?;
        let half = width / 2;
        let frequency = |i: usize| (scale * period.powf(-(i as f64) / half as f64)) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let row = |&t: &f32| {
            let angles = frequencies.iter().map(move |f| t * f);
            angles.clone().map(f32::cos).chain(angles.map(f32::sin)).collect::<Vec<_>>()
        };
        Ok(self.with_data(dims, self.data.iter().flat_map(row).collect()))
    }

    fn add_param(&self, param: &Arc<Param>) -> Result<Self> {
        shape::same("add_param", &self.dims, param.dims())?;
        let items = self.data.chunks(data(param).len().max(1));
        let y = items.flat_map(|item| item.iter().zip(data(param)).map(|(x, p)| x + p)).collect();
        Ok(self.with_data(self.dims.clone(), y))
    }

    fn add(&self, other: &Self) -> Result<Self> {
        shape::same("add", &self.dims, &other.dims)?;
        Ok(self.with_data(self.dims.clone(), pointwise::add(&self.data, &other.data)))
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        shape::same("mul", &self.dims, &other.dims)?;
        Ok(self.with_data(self.dims.clone(), pointwise::mul(&self.data, &other.data)))
    }

    fn sub(&self, other: &Self) -> Result<Self> {
        shape::same("sub", &self.dims, &other.dims)?;
        Ok(self.with_data(self.dims.clone(), elementwise::sub(&self.data, &other.data)))
    }

    fn div(&self, other: &Self) -> Result<Self> {
        shape::same("div", &self.dims, &other.dims)?;
        Ok(self.with_data(self.dims.clone(), elementwise::div(&self.data, &other.data)))
    }

    fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        let (factor, offset) = (factor as f32, offset as f32);
        Ok(self.with_data(self.dims.clone(), self.data.iter().map(|x| x * factor + offset).collect()))
    }

    fn gelu(&self) -> Result<Self> {
        self.activation(Activation::Gelu)
    }

    fn silu(&self) -> Result<Self> {
        self.activation(Activation::Silu)
    }

    fn relu(&self) -> Result<Self> {
        self.activation(Activation::Relu)
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
        shape::check_clamp(min, max)?;
        self.unary(UnaryFunction::Clamp { min, max })
    }

    fn swiglu(&self) -> Result<Self> {
        let dims = shape::swiglu(&self.dims)?;
        Ok(self.with_data(dims, pointwise::swiglu(&self.data, self.last() / 2)))
    }

    fn softmax(&self) -> Result<Self> {
        let dims = shape::softmax(&self.dims)?;
        Ok(self.with_data(dims, pointwise::softmax(&self.data, self.last())))
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let dims = shape::reshape(&self.dims, dims)?;
        Ok(Self { dims, ..self.clone() })
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        let dims = shape::permute(&self.dims, order)?;
        let mut strides = vec![1; self.dims.len()];
        for axis in (1..self.dims.len()).rev() {
            strides[axis - 1] = strides[axis] * self.dims[axis];
        }
        let axes: Vec<(usize, usize)> =
            dims.iter().zip(order).map(|(&n, &axis)| (n, strides[axis])).collect();
        let mut y = Vec::with_capacity(self.data.len());
        for item in self.data.chunks(dims.iter().product::<usize>().max(1)) {
            gather(item, &axes, &mut y);
        }
        Ok(self.with_data(dims, y))
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let all: Vec<&[usize]> = parts.iter().map(|part| part.dims.as_slice()).collect();
        let dims = shape::concat(&all, axis)?;
        let first = &parts[0];
        let [repetitions, ..] = first.axis_strides(axis);
        let mut y = Vec::with_capacity(parts.iter().map(|part| part.data.len()).sum());
        for i in 0..repetitions {
            for part in parts {
                let n = part.data.len() / repetitions;
                y.extend_from_slice(&part.data[i * n..(i + 1) * n]);
            }
        }
        Ok(first.with_data(dims, y))
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let len = shape::chunk(&self.dims, n, axis)?[axis];
        (0..n).map(|i| self.slice(axis, i * len, len)).collect()
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let dims = shape::slice(&self.dims, axis, start, len)?;
        let [repetitions, positions, values] = self.axis_strides(axis);
        let mut y = Vec::with_capacity(repetitions * len * values);
        for i in 0..repetitions {
            let at = (i * positions + start) * values;
            y.extend_from_slice(&self.data[at..at + len * values]);
        }
        Ok(self.with_data(dims, y))
    }

    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self> {
        let dims = shape::pad(&self.dims, axis, before, after)?;
        let [repetitions, positions, values] = self.axis_strides(axis);
        let mut y = vec![0.0; repetitions * dims[axis] * values];
        for i in 0..repetitions {
            let (from, to) = (i * positions * values, (i * dims[axis] + before) * values);
            y[to..to + positions * values].copy_from_slice(&self.data[from..from + positions * values]);
        }
        Ok(self.with_data(dims, y))
    }

    fn sum(&self, axis: usize) -> Result<Self> {
        let dims = shape::sum(&self.dims, axis)?;
        Ok(self.with_data(dims, reduce::sum(self.reduced_axis(axis), &self.data)))
    }

    fn max(&self, axis: usize) -> Result<Self> {
        let dims = shape::max(&self.dims, axis)?;
        Ok(self.with_data(dims, reduce::max(self.reduced_axis(axis), &self.data).0))
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        let dims = shape::mean(&self.dims, axis)?;
        let [repetitions, positions, values] = self.axis_strides(axis);
        let mut y = vec![0.0; repetitions * values];
        for (y, x) in
            y.chunks_exact_mut(values.max(1)).zip(self.data.chunks_exact((positions * values).max(1)))
        {
            for x in x.chunks_exact(values) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= positions as f32);
        }
        Ok(self.with_data(dims, y))
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let dims = shape::pool2d(&self.dims, kernel, stride, padding)?;
        let window = self.window(kernel, stride, padding);
        Ok(self.with_data(dims, pool::max(window, &self.data).0))
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        let dims = shape::pool2d(&self.dims, kernel, stride, 0)?;
        let window = self.window(kernel, stride, 0);
        Ok(self.with_data(dims, pool::mean(window, &self.data)))
    }

    fn upsample_nearest2d(&self, factor: usize) -> Result<Self> {
        let dims = shape::upsample_nearest2d(&self.dims, factor)?;
        Ok(self.with_data(dims, upsample::nearest(&self.data, self.last(), factor)))
    }
}

/// Appends to `y` the values of `x` along `axes`, the last innermost. Each axis is its size and its stride in `x`.
fn gather(x: &[f32], axes: &[(usize, usize)], y: &mut Vec<f32>) {
    match axes {
        [] => y.extend(x.first()),
        &[(n, stride)] => y.extend(x.iter().step_by(stride).take(n)),
        &[(n, stride), ref inner @ ..] => (0..n).for_each(|i| gather(&x[i * stride..], inner, y)),
    }
}
