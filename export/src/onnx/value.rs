//! The operations of the ONNX backend.
//!
//! It uses only operators that tract, ONNX Runtime and candle-onnx all compute, in the forms that ONNX Runtime's optimizer fuses:
//! normalizations from `ReduceMean`, GELU from `Erf`, attention from `MatMul` and `Softmax`.

use std::{cell::RefCell, rc::Rc};

use tiny_cats_models::{BatchNorm, Conv1dOptions, Conv2dOptions, Error, Result, Tensor, shape};

use super::{
    builder::GraphBuilder,
    proto::{AttributeProto as Attribute, DataType},
};

/// A parameter in the ONNX backend: an initializer.
#[derive(Clone, Debug)]
pub struct Param {
    pub(super) name: Rc<str>,
    pub(super) dims: Vec<usize>,
}

/// A value in the ONNX backend: the output of a node, with its shape.
#[derive(Clone, Debug)]
pub struct Value {
    graph: Rc<RefCell<GraphBuilder>>,
    pub(super) name: Rc<str>,
    pub(super) dims: Vec<usize>,
    pub(super) dtype: DataType,
    /// Module of the next operation.
    module: Rc<str>,
}

fn shape_error(op: &'static str, expected: impl Into<String>, found: impl std::fmt::Debug) -> Error {
    Error::Shape { op, expected: expected.into(), found: format!("{found:?}") }
}

fn ensure(condition: bool, op: &'static str, expected: &str, found: impl std::fmt::Debug) -> Result<()> {
    if condition { Ok(()) } else { Err(shape_error(op, expected, found)) }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Returns the module of a parameter: its name without the last part.
fn module(param: &Param) -> &str {
    param.name.rsplit_once('.').map_or("", |(module, _)| module)
}

impl Value {
    /// Returns the name of the value in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the type of its elements.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    pub(super) fn new(
        graph: Rc<RefCell<GraphBuilder>>,
        name: Rc<str>,
        dims: Vec<usize>,
        dtype: DataType,
        module: Rc<str>,
    ) -> Self {
        Self { graph, name, dims, dtype, module }
    }

    /// Adds a node of `self` and `others`, with the shape `dims` after the batch.
    fn node(&self, op: &str, others: &[&str], attributes: Vec<Attribute>, dims: Vec<usize>) -> Self {
        self.node_in(&self.module, op, others, attributes, dims)
    }

    fn node_in(
        &self,
        module: &str,
        op: &str,
        others: &[&str],
        attributes: Vec<Attribute>,
        dims: Vec<usize>,
    ) -> Self {
        let mut inputs = vec![&*self.name];
        inputs.extend(others);
        let name = self.graph.borrow_mut().node(module, op, &inputs, attributes);
        Self { name, dims, dtype: DataType::Float, ..self.clone() }
    }

    /// Adds a node of one input that keeps the shape.
    fn unary(&self, op: &str) -> Self {
        self.node(op, &[], Vec::new(), self.dims.clone())
    }

    /// Adds a node of two inputs, the second of which is broadcast to the first's shape.
    fn binary(&self, op: &str, other: &str) -> Self {
        self.node(op, &[other], Vec::new(), self.dims.clone())
    }

    fn binary_scalar(&self, op: &str, value: f64) -> Self {
        let scalar = self.graph.borrow_mut().scalar(value);
        self.binary(op, &scalar)
    }

    /// Computes the mean over the last axis, which remains with size 1.
    fn mean_last(&self) -> Self {
        let mut dims = self.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = 1;
        }
        self.reduce_mean(self.dims.len(), true, dims)
    }

    /// Computes the mean over `axis`, where axis 0 is the batch.
    fn reduce_mean(&self, axis: usize, keep: bool, dims: Vec<usize>) -> Self {
        self.reduce("ReduceMean", 18, axis, keep, dims)
    }

    /// Reduces `axis`, where axis 0 is the batch. From operator set `opset` on, `op` takes the axis as an input, not as an attribute.
    fn reduce(&self, op: &str, opset: u32, axis: usize, keep: bool, dims: Vec<usize>) -> Self {
        let keep = Attribute::int("keepdims", keep.into());
        if self.graph.borrow().opset < opset {
            self.node(op, &[], vec![Attribute::ints("axes", [axis]), keep], dims)
        } else {
            let axes = self.graph.borrow_mut().ints(&[axis as i64]);
            self.node(op, &[&axes], vec![keep], dims)
        }
    }

    /// Returns zeros with the batch of `self` and the shape `dims` after it.
    fn zeros(&self, dims: Vec<usize>) -> Self {
        let [first, end] = [0, 1].map(|v| self.graph.borrow_mut().ints(&[v]));
        let sizes: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let sizes = self.graph.borrow_mut().ints(&sizes);
        let batch = self.unary("Shape").node("Slice", &[&first, &end, &first], Vec::new(), Vec::new());
        let shape = batch.node("Concat", &[&sizes], vec![Attribute::int("axis", 0)], Vec::new());
        // Not by ConstantOfShape, whose default value tract takes for a 64-bit float.
        let zero = self.graph.borrow_mut().scalar(0.0);
        let name = self.graph.borrow_mut().node(&self.module, "Expand", &[&zero, &shape.name], Vec::new());
        Self { name, dims, ..self.clone() }
    }

    fn checked_unary(&self, name: &'static str, op: &str) -> Result<Self> {
        self.check_floats(name)?;
        Ok(self.unary(op))
    }

    /// Computes `x / √(mean(x²) + eps)` over the last axis.
    fn divide_by_root_mean_square(&self, eps: f64) -> Self {
        let root = self.binary_scalar("Pow", 2.0).mean_last().binary_scalar("Add", eps).unary("Sqrt");
        self.binary("Div", &root.name)
    }

    fn check_floats(&self, op: &'static str) -> Result<()> {
        ensure(self.dtype == DataType::Float, op, "floating-point numbers", self.dtype)
    }

    /// Checks that `self` and `others` are floating-point values of this graph.
    fn check_operands(&self, op: &'static str, others: &[&Self]) -> Result<()> {
        self.check_floats(op)?;
        for other in others {
            other.check_floats(op)?;
            ensure(
                Rc::ptr_eq(&self.graph, &other.graph),
                op,
                "values of one graph",
                (&self.name, &other.name),
            )?;
        }
        Ok(())
    }

    fn check_same_shape(&self, op: &'static str, other: &Self) -> Result<()> {
        self.check_operands(op, &[other])?;
        ensure(self.dims == other.dims, op, "two values of one shape", (&self.dims, &other.dims))
    }

    /// Reshapes `item` from `[batch, width]` to `[batch, 1, width]`, to be broadcast over the tokens of `self`.
    fn broadcast_over_tokens(&self, item: &Self) -> Result<Self> {
        let width = item.dims.iter().product();
        self.in_module(item).reshape(&[1, width])
    }

    /// Replaces the strides and dilations that change nothing, so that they are equal on both axes if possible. candle-onnx has one
    /// dilation for both.
    fn equal_strides(
        &self,
        kernel: &[usize],
        output: &[usize],
        mut options: Conv2dOptions,
    ) -> Result<Conv2dOptions> {
        for axis in 0..2 {
            if output[axis] == 1 {
                options.stride[axis] = options.stride[1 - axis];
            }
            if kernel[axis] == 1 {
                options.dilation[axis] = options.dilation[1 - axis];
            }
        }
        let [vertical, horizontal] = options.dilation;
        if vertical == horizontal {
            return Ok(options);
        }
        Err(Error::Unsupported {
            backend: "ONNX".into(),
            operation: format!("conv2d with dilation {vertical} of the height and {horizontal} of the width"),
        })
    }

    /// Adds a convolution along one axis or two, those of the weight.
    fn conv(&self, weight: &Param, bias: Option<&Param>, options: Conv2dOptions, dims: Vec<usize>) -> Self {
        let Conv2dOptions { stride, padding, dilation, groups } = options;
        let first = 4 - weight.dims.len();
        let mut attributes = vec![
            Attribute::ints("kernel_shape", weight.dims[2..].iter().copied()),
            Attribute::ints("pads", [&padding[first..], &padding[first..]].concat()),
            Attribute::ints("strides", stride[first..].iter().copied()),
        ];
        if dilation != [1, 1] {
            attributes.push(Attribute::ints("dilations", dilation[first..].iter().copied()));
        }
        if groups != 1 {
            attributes.push(Attribute::int("group", groups as i64));
        }
        let params: Vec<&str> = std::iter::once(weight).chain(bias).map(|p| &*p.name).collect();
        self.node_in(module(weight), "Conv", &params, attributes, dims)
    }

    fn pool(&self, op: &str, kernel: usize, stride: usize, padding: usize, dims: Vec<usize>) -> Self {
        let mut attributes =
            vec![Attribute::ints("kernel_shape", [kernel; 2]), Attribute::ints("strides", [stride; 2])];
        if padding > 0 {
            attributes.push(Attribute::ints("pads", [padding; 4]));
        }
        self.node(op, &[], attributes, dims)
    }

    /// Returns `value` in the module of `self`.
    fn in_module(&self, value: &Self) -> Self {
        Self { module: self.module.clone(), ..value.clone() }
    }
}

impl Tensor for Value {
    type Param = Param;

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn scoped(&self, module: &str) -> Self {
        Self { module: module.into(), ..self.clone() }
    }

    fn linear(&self, weight: &Param, bias: Option<&Param>) -> Result<Self> {
        self.check_floats("linear")?;
        let dims = shape::linear(&self.dims, &weight.dims, bias.map(|b| &*b.dims))?;
        let path = module(weight);
        // The file stores the parameter unchanged; runtimes fold the transposition of a constant when they load the file.
        let perm = vec![Attribute::ints("perm", [1, 0])];
        let transposed = self.graph.borrow_mut().node(path, "Transpose", &[&weight.name], perm);
        let y = self.node_in(path, "MatMul", &[&transposed], Vec::new(), dims.clone());
        Ok(match bias {
            Some(bias) => y.node_in(path, "Add", &[&bias.name], Vec::new(), dims),
            None => y,
        })
    }

    fn conv2d_with_options(
        &self,
        weight: &Param,
        bias: Option<&Param>,
        options: Conv2dOptions,
    ) -> Result<Self> {
        self.check_floats("conv2d")?;
        let dims = shape::conv2d(&self.dims, &weight.dims, bias.map(|b| &*b.dims), options)?;
        let options = self.equal_strides(&weight.dims[2..], &dims[1..], options)?;
        if options.stride[0] == options.stride[1] {
            return Ok(self.conv(weight, bias, options, dims));
        }
        // candle-onnx has one stride for both axes: their common divisor. The rest of the results is dropped.
        let common = common_divisor(options.stride[0], options.stride[1]);
        let steps = options.stride.map(|stride| stride / common);
        let options = Conv2dOptions { stride: [common; 2], ..options };
        let all = shape::conv2d(&self.dims, &weight.dims, None, options)?;
        let sizes = |v: [usize; 2]| self.graph.borrow_mut().ints(&v.map(|v| v as i64));
        let slices = [[0, 0], [all[1], all[2]], [2, 3], steps].map(sizes);
        let inputs = slices.each_ref().map(|name| &**name);
        Ok(self.in_module(&self.conv(weight, bias, options, all).node("Slice", &inputs, Vec::new(), dims)))
    }

    fn conv1d(&self, weight: &Param, bias: Option<&Param>, options: Conv1dOptions) -> Result<Self> {
        self.check_floats("conv1d")?;
        let dims = shape::conv1d(&self.dims, &weight.dims, bias.map(|b| &*b.dims), options)?;
        Ok(self.conv(weight, bias, options.into(), dims))
    }

    fn batch_norm(&self, norm: &BatchNorm<Param>) -> Result<Self> {
        self.check_floats("batch_norm")?;
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        let dims = shape::batch_norm(&self.dims, params.map(|p| &*p.dims))?;
        let epsilon = vec![Attribute::float("epsilon", norm.eps as f32)];
        Ok(self.node_in(&norm.path, "BatchNormalization", &params.map(|p| &*p.name), epsilon, dims))
    }

    fn group_norm(&self, groups: usize, affine: Option<(&Param, &Param)>, eps: f64) -> Result<Self> {
        self.check_floats("group_norm")?;
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [&*w.dims, &*b.dims]).collect();
        let dims = shape::group_norm(&self.dims, groups, &params)?;
        let values: usize = dims.iter().product();
        let x = affine.map_or_else(|| self.clone(), |(weight, _)| self.scoped(module(weight)));
        let mut y = x.reshape(&[groups, values / groups])?.layer_norm(None, eps)?;
        if let Some((weight, bias)) = affine {
            y = y.reshape(&[dims[0], values / dims[0]])?;
            for (op, param) in [("Mul", weight), ("Add", bias)] {
                let sizes = self.graph.borrow_mut().ints(&[dims[0] as i64, 1]);
                let inputs = [&*param.name, &*sizes];
                let column = self.graph.borrow_mut().node(module(param), "Reshape", &inputs, Vec::new());
                y = y.binary(op, &column);
            }
        }
        Ok(self.in_module(&y.reshape(&dims)?))
    }

    fn layer_norm(&self, affine: Option<(&Param, &Param)>, eps: f64) -> Result<Self> {
        self.check_floats("layer_norm")?;
        let params: Vec<&[usize]> = affine.iter().flat_map(|(w, b)| [&*w.dims, &*b.dims]).collect();
        shape::norm("layer_norm", &self.dims, &params)?;
        let x = affine.map_or_else(|| self.clone(), |(weight, _)| self.scoped(module(weight)));
        let centered = x.binary("Sub", &x.mean_last().name);
        let mut y = centered.divide_by_root_mean_square(eps);
        if let Some((weight, bias)) = affine {
            y = y.binary("Mul", &weight.name).binary("Add", &bias.name);
        }
        Ok(self.in_module(&y))
    }

    fn rms_norm(&self, weight: Option<&Param>, eps: f64) -> Result<Self> {
        self.check_floats("rms_norm")?;
        let params: Vec<&[usize]> = weight.iter().map(|w| &*w.dims).collect();
        shape::norm("rms_norm", &self.dims, &params)?;
        let x = weight.map_or_else(|| self.clone(), |weight| self.scoped(module(weight)));
        let mut y = x.divide_by_root_mean_square(eps);
        if let Some(weight) = weight {
            y = y.binary("Mul", &weight.name);
        }
        Ok(self.in_module(&y))
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        self.check_operands("scale_shift", &[scale, shift])?;
        shape::modulation("scale_shift", &self.dims, [&scale.dims, &shift.dims])?;
        let scale = self.broadcast_over_tokens(scale)?.binary_scalar("Add", 1.0);
        let shift = self.broadcast_over_tokens(shift)?;
        Ok(self.binary("Mul", &scale.name).binary("Add", &shift.name))
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        self.check_same_shape("gated_residual", branch)?;
        self.check_operands("gated_residual", &[gate])?;
        shape::modulation("gated_residual", &self.dims, [&gate.dims, &gate.dims])?;
        let gate = self.broadcast_over_tokens(gate)?;
        let gated = self.in_module(branch).binary("Mul", &gate.name);
        Ok(self.binary("Add", &gated.name))
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        self.check_operands("attention", &[key, value])?;
        shape::attention(&self.dims, &key.dims, &value.dims)?;
        let (tokens, heads, d) = (self.dims[0], self.dims[1], self.dims[2]);
        let (key, value) = (self.in_module(key), self.in_module(value));
        let query = self.permute(&[1, 0, 2])?.binary_scalar("Mul", 1.0 / (d as f64).sqrt());
        let key = key.permute(&[1, 2, 0])?;
        let value = value.permute(&[1, 0, 2])?;
        let scores = query.node("MatMul", &[&key.name], Vec::new(), vec![heads, tokens, tokens]);
        scores
            .softmax()?
            .node("MatMul", &[&value.name], Vec::new(), vec![heads, tokens, d])
            .permute(&[1, 0, 2])
    }

    fn embedding(&self, table: &Param) -> Result<Self> {
        ensure(self.dtype == DataType::Int64, "embedding", "integers", self.dtype)?;
        let dims = shape::embedding(&self.dims, &table.dims)?;
        let axis = vec![Attribute::int("axis", 0)];
        let name = self.graph.borrow_mut().node(module(table), "Gather", &[&table.name, &self.name], axis);
        Ok(Self { name, dims, dtype: DataType::Float, ..self.clone() })
    }

    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self> {
        self.check_floats("sinusoids")?;
        shape::sinusoids(&self.dims, width)?;
        let half = width / 2;
        let frequency = |i| (scale * period.powf(-(i as f64) / half as f64)) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let frequencies = self.graph.borrow_mut().floats(&[1, half], &frequencies);
        let angle = self.reshape(&[1])?.node("Mul", &[&frequencies], Vec::new(), vec![half]);
        Self::concat(&[angle.unary("Cos"), angle.unary("Sin")], 0)
    }

    fn add_param(&self, param: &Param) -> Result<Self> {
        self.check_floats("add_param")?;
        ensure(
            param.dims == self.dims,
            "add_param",
            &format!("a parameter of shape {:?}", self.dims),
            &param.dims,
        )?;
        Ok(self.binary("Add", &param.name))
    }

    fn add(&self, other: &Self) -> Result<Self> {
        self.check_same_shape("add", other)?;
        Ok(self.binary("Add", &other.name))
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        self.check_same_shape("mul", other)?;
        Ok(self.binary("Mul", &other.name))
    }

    fn sub(&self, other: &Self) -> Result<Self> {
        self.check_same_shape("sub", other)?;
        Ok(self.binary("Sub", &other.name))
    }

    fn div(&self, other: &Self) -> Result<Self> {
        self.check_same_shape("div", other)?;
        Ok(self.binary("Div", &other.name))
    }

    fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        self.check_floats("affine")?;
        let mut y = self.clone();
        if factor != 1.0 {
            y = y.binary_scalar("Mul", factor);
        }
        if offset != 0.0 {
            y = y.binary_scalar("Add", offset);
        }
        Ok(y)
    }

    fn gelu(&self) -> Result<Self> {
        self.check_floats("gelu")?;
        let erf = self.binary_scalar("Div", std::f64::consts::SQRT_2).unary("Erf").binary_scalar("Add", 1.0);
        Ok(self.binary("Mul", &erf.name).binary_scalar("Mul", 0.5))
    }

    fn silu(&self) -> Result<Self> {
        self.check_floats("silu")?;
        Ok(self.binary("Mul", &self.unary("Sigmoid").name))
    }

    fn relu(&self) -> Result<Self> {
        self.check_floats("relu")?;
        Ok(self.unary("Relu"))
    }

    fn exp(&self) -> Result<Self> {
        self.checked_unary("exp", "Exp")
    }

    fn log(&self) -> Result<Self> {
        self.checked_unary("log", "Log")
    }

    fn sqrt(&self) -> Result<Self> {
        self.checked_unary("sqrt", "Sqrt")
    }

    fn sigmoid(&self) -> Result<Self> {
        self.checked_unary("sigmoid", "Sigmoid")
    }

    fn tanh(&self) -> Result<Self> {
        self.checked_unary("tanh", "Tanh")
    }

    fn softplus(&self) -> Result<Self> {
        self.check_floats("softplus")?;
        // candle-onnx has no Softplus.
        let small = self.unary("Abs").unary("Neg").unary("Exp").binary_scalar("Add", 1.0).unary("Log");
        Ok(self.unary("Relu").binary("Add", &small.name))
    }

    fn clamp(&self, min: f64, max: f64) -> Result<Self> {
        self.check_floats("clamp")?;
        shape::check_clamp(min, max)?;
        let [min, max] = [min, max].map(|limit| self.graph.borrow_mut().scalar(limit));
        Ok(self.node("Clip", &[&min, &max], Vec::new(), self.dims.clone()))
    }

    fn swiglu(&self) -> Result<Self> {
        self.check_floats("swiglu")?;
        shape::swiglu(&self.dims)?;
        let parts = self.chunk(2, self.dims.len() - 1)?;
        parts[0].silu()?.mul(&parts[1])
    }

    fn softmax(&self) -> Result<Self> {
        self.check_floats("softmax")?;
        let dims = shape::softmax(&self.dims)?;
        Ok(self.node("Softmax", &[], vec![Attribute::int("axis", -1)], dims))
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let dims = shape::reshape(&self.dims, dims)?;
        ensure(!dims.contains(&0), "reshape", "a shape without 0", &dims)?;
        // 0 means the input's size of that axis: the batch.
        let sizes: Vec<i64> = std::iter::once(0).chain(dims.iter().map(|&d| d as i64)).collect();
        let sizes = self.graph.borrow_mut().ints(&sizes);
        Ok(Self { dtype: self.dtype, ..self.node("Reshape", &[&sizes], Vec::new(), dims) })
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        let dims = shape::permute(&self.dims, order)?;
        let perm = Attribute::ints("perm", std::iter::once(0).chain(order.iter().map(|o| o + 1)));
        Ok(Self { dtype: self.dtype, ..self.node("Transpose", &[], vec![perm], dims) })
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let dims = shape::concat(&parts.iter().map(|p| &*p.dims).collect::<Vec<_>>(), axis)?;
        let (first, rest) =
            parts.split_first().ok_or_else(|| shape_error("concat", "at least one part", 0))?;
        first.check_operands("concat", &rest.iter().collect::<Vec<_>>())?;
        let names: Vec<&str> = rest.iter().map(|p| &*p.name).collect();
        Ok(first.node("Concat", &names, vec![Attribute::int("axis", axis as i64 + 1)], dims))
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let len = shape::chunk(&self.dims, n, axis)?[axis];
        (0..n).map(|i| self.slice(axis, i * len, len)).collect()
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let dims = shape::slice(&self.dims, axis, start, len)?;
        let [starts, ends, axes] =
            [start, start + len, axis + 1].map(|v| self.graph.borrow_mut().ints(&[v as i64]));
        let sliced = self.node("Slice", &[&starts, &ends, &axes], Vec::new(), dims);
        Ok(Self { dtype: self.dtype, ..sliced })
    }

    fn pad(&self, axis: usize, before: usize, after: usize) -> Result<Self> {
        self.check_floats("pad")?;
        shape::pad(&self.dims, axis, before, after)?;
        // candle-onnx supports only padding by reflection.
        let zeros = |len: usize| {
            let mut dims = self.dims.clone();
            dims[axis] = len;
            (len > 0).then(|| self.zeros(dims))
        };
        let parts: Vec<Self> = zeros(before).into_iter().chain([self.clone()]).chain(zeros(after)).collect();
        if parts.len() == 1 { Ok(self.clone()) } else { Self::concat(&parts, axis) }
    }

    fn sum(&self, axis: usize) -> Result<Self> {
        self.check_floats("sum")?;
        let dims = shape::sum(&self.dims, axis)?;
        Ok(self.reduce("ReduceSum", 13, axis + 1, false, dims))
    }

    fn max(&self, axis: usize) -> Result<Self> {
        self.check_floats("max")?;
        let dims = shape::max(&self.dims, axis)?;
        Ok(self.reduce("ReduceMax", 18, axis + 1, false, dims))
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        self.check_floats("mean")?;
        let dims = shape::mean(&self.dims, axis)?;
        Ok(self.reduce_mean(axis + 1, false, dims))
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        self.check_floats("max_pool2d")?;
        let dims = shape::pool2d(&self.dims, kernel, stride, padding)?;
        // candle-onnx supports only padding by reflection. If every window beyond the edge also contains the reflected pixels,
        // reflection does not change the maximum.
        let can_reflect = 2 * padding < kernel && self.dims[1..].iter().all(|&size| size > padding);
        let (mut x, mut pads) = (self.clone(), padding);
        if padding > 0 && can_reflect {
            let p = padding as i64;
            let amounts = self.graph.borrow_mut().ints(&[0, 0, p, p, 0, 0, p, p]);
            let padded = vec![self.dims[0], self.dims[1] + 2 * padding, self.dims[2] + 2 * padding];
            x = self.node("Pad", &[&amounts], vec![Attribute::string("mode", "reflect")], padded);
            pads = 0;
        }
        Ok(x.pool("MaxPool", kernel, stride, pads, dims))
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        self.check_floats("avg_pool2d")?;
        let dims = shape::pool2d(&self.dims, kernel, stride, 0)?;
        Ok(self.pool("AveragePool", kernel, stride, 0, dims))
    }

    fn upsample_nearest2d(&self, factor: usize) -> Result<Self> {
        self.check_floats("upsample_nearest2d")?;
        let dims = shape::upsample_nearest2d(&self.dims, factor)?;
        let (channels, height, width) = (self.dims[0], self.dims[1], self.dims[2]);
        // Not by Resize, whose coordinates candle-onnx rounds down to the neighbor for some factors, such as 49.
        let repeated = vec![channels, height, factor, width, factor];
        let sizes: Vec<i64> = std::iter::once(1).chain(repeated.iter().map(|&d| d as i64)).collect();
        let sizes = self.graph.borrow_mut().ints(&sizes);
        let pixels = self.reshape(&[channels, height, 1, width, 1])?;
        pixels.node("Expand", &[&sizes], Vec::new(), repeated).reshape(&dims)
    }
}
