//! The operations of the ONNX backend.
//!
//! It uses only operators that tract, ONNX Runtime and candle-onnx all compute, in the forms that ONNX Runtime's optimizer fuses:
//! normalizations from `ReduceMean`, GELU from `Erf`, attention from `MatMul` and `Softmax`.

use std::{cell::RefCell, rc::Rc};

use tiny_cats_models::{BatchNorm, Error, Result, Tensor, shape};

use super::{
    graph::GraphBuilder,
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

/// Returns the module of a parameter: its name without the last part.
fn module(param: &Param) -> &str {
    param.name.rsplit_once('.').map_or("", |(module, _)| module)
}

impl Value {
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
        let keep = Attribute::int("keepdims", keep.into());
        if self.graph.borrow().opset < 18 {
            self.node("ReduceMean", &[], vec![Attribute::ints("axes", [axis]), keep], dims)
        } else {
            let axes = self.graph.borrow_mut().ints(&[axis as i64]);
            self.node("ReduceMean", &[&axes], vec![keep], dims)
        }
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

    fn conv2d(&self, weight: &Param, bias: Option<&Param>, stride: usize, padding: usize) -> Result<Self> {
        self.check_floats("conv2d")?;
        let dims = shape::conv2d(&self.dims, &weight.dims, bias.map(|b| &*b.dims), stride, padding)?;
        let attributes = vec![
            Attribute::ints("kernel_shape", weight.dims[2..].iter().copied()),
            Attribute::ints("pads", [padding; 4]),
            Attribute::ints("strides", [stride; 2]),
        ];
        let params: Vec<&str> = std::iter::once(weight).chain(bias).map(|p| &*p.name).collect();
        Ok(self.node_in(module(weight), "Conv", &params, attributes, dims))
    }

    fn batch_norm(&self, norm: &BatchNorm<Param>) -> Result<Self> {
        self.check_floats("batch_norm")?;
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        let dims = shape::batch_norm(&self.dims, params.map(|p| &*p.dims))?;
        let epsilon = vec![Attribute::float("epsilon", norm.eps as f32)];
        Ok(self.node_in(&norm.path, "BatchNormalization", &params.map(|p| &*p.name), epsilon, dims))
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
}
