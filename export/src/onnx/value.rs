//! The ONNX reading of each operation.
//!
//! Only operators that tract, ONNX Runtime and candle-onnx all compute are used, in the forms that ONNX Runtime's optimiser fuses:
//! normalisations out of `ReduceMean`, GELU out of `Erf`, attention out of `MatMul` and `Softmax`.

use std::{cell::RefCell, rc::Rc};

use tiny_cats_models::{BatchNorm, Error, Result, Tensor};

use super::{
    graph::Builder,
    proto::{AttributeProto as Attribute, DataType},
};

/// A parameter in the ONNX reading: an initializer.
#[derive(Clone, Debug)]
pub struct Param {
    pub(super) name: Rc<str>,
    pub(super) dims: Vec<usize>,
}

/// A value in the ONNX reading: the output of a node, with its shape.
#[derive(Clone, Debug)]
pub struct Value {
    graph: Rc<RefCell<Builder>>,
    pub(super) name: Rc<str>,
    pub(super) dims: Vec<usize>,
    pub(super) dtype: DataType,
    /// The module that the next operation belongs to.
    module: Rc<str>,
}

fn wrong(op: &'static str, expected: impl Into<String>, found: impl std::fmt::Debug) -> Error {
    Error::Shape { op, expected: expected.into(), found: format!("{found:?}") }
}

fn expect(holds: bool, op: &'static str, expected: &str, found: impl std::fmt::Debug) -> Result<()> {
    if holds { Ok(()) } else { Err(wrong(op, expected, found)) }
}

/// The module that a parameter belongs to: its name without the last part.
fn module(param: &Param) -> &str {
    param.name.rsplit_once('.').map_or("", |(module, _)| module)
}

impl Value {
    pub(super) fn new(
        graph: Rc<RefCell<Builder>>,
        name: Rc<str>,
        dims: Vec<usize>,
        dtype: DataType,
        module: Rc<str>,
    ) -> Self {
        Self { graph, name, dims, dtype, module }
    }

    /// A node of `self` and `others`, with the shape `dims` after the batch.
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

    /// A node of one input that keeps the shape.
    fn unary(&self, op: &str) -> Self {
        self.node(op, &[], Vec::new(), self.dims.clone())
    }

    /// A node of two inputs, the second of which is broadcast to the first's shape.
    fn binary(&self, op: &str, other: &str) -> Self {
        self.node(op, &[other], Vec::new(), self.dims.clone())
    }

    fn binary_scalar(&self, op: &str, value: f64) -> Self {
        let scalar = self.graph.borrow_mut().scalar(value);
        self.binary(op, &scalar)
    }

    /// Mean over the last axis, which is kept with size 1.
    fn mean_last(&self) -> Self {
        let mut dims = self.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = 1;
        }
        self.reduce_mean(self.dims.len(), true, dims)
    }

    /// `axis` counts the batch.
    fn reduce_mean(&self, axis: usize, keep: bool, dims: Vec<usize>) -> Self {
        let keep = Attribute::int("keepdims", keep.into());
        if self.graph.borrow().opset < 18 {
            self.node("ReduceMean", &[], vec![Attribute::ints("axes", [axis]), keep], dims)
        } else {
            let axes = self.graph.borrow_mut().ints(&[axis as i64]);
            self.node("ReduceMean", &[&axes], vec![keep], dims)
        }
    }

    /// `x / √(mean(x²) + eps)` over the last axis.
    fn over_root_mean_square(&self, centered: &Self, eps: f64) -> Self {
        let root = centered.binary_scalar("Pow", 2.0).mean_last().binary_scalar("Add", eps).unary("Sqrt");
        self.binary("Div", &root.name)
    }

    fn last(&self, op: &'static str) -> Result<usize> {
        self.floats(op)?;
        self.dims.last().copied().ok_or_else(|| wrong(op, "an axis after the batch", &self.dims))
    }

    fn floats(&self, op: &'static str) -> Result<()> {
        expect(self.dtype == DataType::Float, op, "floating-point numbers", self.dtype)
    }

    fn image(&self, op: &'static str) -> Result<[usize; 3]> {
        self.floats(op)?;
        <[usize; 3]>::try_from(&self.dims[..]).map_err(|_| wrong(op, "[channels, height, width]", &self.dims))
    }

    fn same(&self, op: &'static str, other: &Self) -> Result<()> {
        self.floats(op)?;
        other.floats(op)?;
        self.together(op, other)?;
        expect(self.dims == other.dims, op, "two values of one shape", (&self.dims, &other.dims))
    }

    fn together(&self, op: &'static str, other: &Self) -> Result<()> {
        expect(Rc::ptr_eq(&self.graph, &other.graph), op, "values of one graph", (&self.name, &other.name))
    }

    /// `[width]` for each item as `[1, width]`, to be broadcast over `self`'s tokens.
    fn over_tokens(&self, op: &'static str, item: &Self) -> Result<Self> {
        self.floats(op)?;
        item.floats(op)?;
        self.together(op, item)?;
        let fits = self.dims.len() == 2 && item.dims.len() == 1 && self.dims.last() == item.dims.last();
        expect(fits, op, "[tokens, width] and [width]", (&self.dims, &item.dims))?;
        self.in_module(item).reshape(&[1, item.dims[0]])
    }

    /// `value` continued in `self`'s module.
    fn in_module(&self, value: &Self) -> Self {
        Self { module: self.module.clone(), ..value.clone() }
    }

    fn sized(&self, op: &'static str, param: &Param, dims: &[usize]) -> Result<()> {
        expect(param.dims == dims, op, &format!("{} of shape {dims:?}", param.name), &param.dims)
    }

    /// Checks a pooling window and returns the output's sizes.
    fn pooled(&self, op: &'static str, kernel: usize, stride: usize, padding: usize) -> Result<Vec<usize>> {
        let [channels, height, width] = self.image(op)?;
        expect(
            kernel > 0 && stride > 0 && padding < kernel,
            op,
            "0 ≤ padding < kernel and stride > 0",
            kernel,
        )?;
        let fits = height + 2 * padding >= kernel && width + 2 * padding >= kernel;
        expect(fits, op, "an image no smaller than the window", &self.dims)?;
        let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        Ok(vec![channels, out(height), out(width)])
    }
}

impl Tensor for Value {
    type Param = Param;

    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn at(&self, module: &str) -> Self {
        Self { module: module.into(), ..self.clone() }
    }

    fn linear(&self, weight: &Param, bias: Option<&Param>) -> Result<Self> {
        let width = self.last("linear")?;
        let fits = weight.dims.len() == 2 && weight.dims[1] == width;
        expect(fits, "linear", &format!("{} of shape [out, {width}]", weight.name), &weight.dims)?;
        let out = weight.dims[0];
        let mut dims = self.dims.clone();
        dims[self.dims.len() - 1] = out;
        let path = module(weight);
        // The file holds the parameter as it is; every runtime folds the transposition of a constant when it loads the file.
        let perm = vec![Attribute::ints("perm", [1, 0])];
        let transposed = self.graph.borrow_mut().node(path, "Transpose", &[&weight.name], perm);
        let y = self.node_in(path, "MatMul", &[&transposed], Vec::new(), dims.clone());
        let Some(bias) = bias else { return Ok(y) };
        self.sized("linear", bias, &[out])?;
        Ok(y.node_in(path, "Add", &[&bias.name], Vec::new(), dims))
    }

    fn conv2d(&self, weight: &Param, bias: Option<&Param>, stride: usize, padding: usize) -> Result<Self> {
        let [channels, height, width] = self.image("conv2d")?;
        let &[out, _, kernel, _] = &weight.dims[..] else {
            return Err(wrong("conv2d", format!("{} of four axes", weight.name), &weight.dims));
        };
        self.sized("conv2d", weight, &[out, channels, kernel, kernel])?;
        let fits =
            height + 2 * padding >= kernel && width + 2 * padding >= kernel && stride > 0 && kernel > 0;
        expect(fits, "conv2d", "a stride, and an image no smaller than the kernel", &self.dims)?;
        let mut others = vec![&*weight.name];
        if let Some(bias) = bias {
            self.sized("conv2d", bias, &[out])?;
            others.push(&bias.name);
        }
        let size = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let attributes = vec![
            Attribute::ints("kernel_shape", [kernel; 2]),
            Attribute::ints("pads", [padding; 4]),
            Attribute::ints("strides", [stride; 2]),
        ];
        Ok(self.node_in(module(weight), "Conv", &others, attributes, vec![out, size(height), size(width)]))
    }

    fn batch_norm(&self, norm: &BatchNorm<Param>) -> Result<Self> {
        let [channels, ..] = self.image("batch_norm")?;
        let params = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
        for param in params {
            self.sized("batch_norm", param, &[channels])?;
        }
        let epsilon = vec![Attribute::float("epsilon", norm.eps as f32)];
        let names = params.map(|p| &*p.name);
        Ok(self.node_in(&norm.path, "BatchNormalization", &names, epsilon, self.dims.clone()))
    }

    fn layer_norm(&self, affine: Option<(&Param, &Param)>, eps: f64) -> Result<Self> {
        let width = self.last("layer_norm")?;
        let x = match affine {
            Some((weight, _)) => self.at(module(weight)),
            None => self.clone(),
        };
        let centered = x.binary("Sub", &x.mean_last().name);
        let mut y = centered.over_root_mean_square(&centered, eps);
        if let Some((weight, bias)) = affine {
            self.sized("layer_norm", weight, &[width])?;
            self.sized("layer_norm", bias, &[width])?;
            y = y.binary("Mul", &weight.name).binary("Add", &bias.name);
        }
        Ok(self.in_module(&y))
    }

    fn rms_norm(&self, weight: Option<&Param>, eps: f64) -> Result<Self> {
        let width = self.last("rms_norm")?;
        let x = match weight {
            Some(weight) => self.at(module(weight)),
            None => self.clone(),
        };
        let mut y = x.over_root_mean_square(&x, eps);
        if let Some(weight) = weight {
            self.sized("rms_norm", weight, &[width])?;
            y = y.binary("Mul", &weight.name);
        }
        Ok(self.in_module(&y))
    }

    fn scale_shift(&self, scale: &Self, shift: &Self) -> Result<Self> {
        let scale = self.over_tokens("scale_shift", scale)?.binary_scalar("Add", 1.0);
        let shift = self.over_tokens("scale_shift", shift)?;
        Ok(self.binary("Mul", &scale.name).binary("Add", &shift.name))
    }

    fn gated_residual(&self, branch: &Self, gate: &Self) -> Result<Self> {
        self.same("gated_residual", branch)?;
        let gate = self.over_tokens("gated_residual", gate)?;
        let gated = self.in_module(branch).binary("Mul", &gate.name);
        Ok(self.binary("Add", &gated.name))
    }

    fn attention(&self, key: &Self, value: &Self) -> Result<Self> {
        let op = "attention";
        self.floats(op)?;
        key.same(op, value)?;
        self.together(op, key)?;
        let (&[tokens, heads, d], &[keys, key_heads, key_d]) = (&self.dims[..], &key.dims[..]) else {
            return Err(wrong(op, "three times [tokens, heads, d]", (&self.dims, &key.dims)));
        };
        expect(heads == key_heads && d == key_d, op, "as many heads of one size", (&self.dims, &key.dims))?;
        let (key, value) = (self.in_module(key), self.in_module(value));
        // The root of the scale on both sides would cost one more node; on the queries alone it is the smaller tensor.
        let query = self.permute(&[1, 0, 2])?.binary_scalar("Mul", 1.0 / (d as f64).sqrt());
        let key = key.permute(&[1, 2, 0])?;
        let value = value.permute(&[1, 0, 2])?;
        let weights = query.node("MatMul", &[&key.name], Vec::new(), vec![heads, tokens, keys]).softmax()?;
        weights.node("MatMul", &[&value.name], Vec::new(), vec![heads, tokens, d]).permute(&[1, 0, 2])
    }

    fn embedding(&self, table: &Param) -> Result<Self> {
        let whole = self.dtype == DataType::Int64 && self.dims.is_empty();
        expect(whole, "embedding", "one whole number for each item", (self.dtype, &self.dims))?;
        let &[_, width] = &table.dims[..] else {
            return Err(wrong("embedding", format!("{} of shape [rows, width]", table.name), &table.dims));
        };
        let axis = vec![Attribute::int("axis", 0)];
        let name = self.graph.borrow_mut().node(module(table), "Gather", &[&table.name, &self.name], axis);
        Ok(Self { name, dims: vec![width], dtype: DataType::Float, ..self.clone() })
    }

    fn sinusoids(&self, width: usize, period: f64, scale: f64) -> Result<Self> {
        self.floats("sinusoids")?;
        expect(self.dims.is_empty(), "sinusoids", "one number for each item", &self.dims)?;
        expect(width > 0 && width.is_multiple_of(2), "sinusoids", "an even width", width)?;
        let half = width / 2;
        let frequency = |i| period.powf(-((2 * i) as f64) / width as f64) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let frequencies = self.graph.borrow_mut().floats(&[1, half], &frequencies);
        let t = self.reshape(&[1])?.affine(scale, 0.0)?;
        let angle = t.node("Mul", &[&frequencies], Vec::new(), vec![half]);
        Self::concat(&[angle.unary("Cos"), angle.unary("Sin")], 0)
    }

    fn add_param(&self, param: &Param) -> Result<Self> {
        self.floats("add_param")?;
        self.sized("add_param", param, &self.dims)?;
        Ok(self.binary("Add", &param.name))
    }

    fn add(&self, other: &Self) -> Result<Self> {
        self.same("add", other)?;
        Ok(self.binary("Add", &other.name))
    }

    fn mul(&self, other: &Self) -> Result<Self> {
        self.same("mul", other)?;
        Ok(self.binary("Mul", &other.name))
    }

    fn affine(&self, factor: f64, offset: f64) -> Result<Self> {
        self.floats("affine")?;
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
        self.floats("gelu")?;
        let erf = self.binary_scalar("Div", std::f64::consts::SQRT_2).unary("Erf").binary_scalar("Add", 1.0);
        Ok(self.binary("Mul", &erf.name).binary_scalar("Mul", 0.5))
    }

    fn silu(&self) -> Result<Self> {
        self.floats("silu")?;
        Ok(self.binary("Mul", &self.unary("Sigmoid").name))
    }

    fn relu(&self) -> Result<Self> {
        self.floats("relu")?;
        Ok(self.unary("Relu"))
    }

    fn swiglu(&self) -> Result<Self> {
        let width = self.last("swiglu")?;
        expect(width.is_multiple_of(2), "swiglu", "an even last axis", &self.dims)?;
        let axis = self.dims.len() - 1;
        let gate = self.slice(axis, 0, width / 2)?.silu()?;
        gate.mul(&self.slice(axis, width / 2, width / 2)?)
    }

    fn softmax(&self) -> Result<Self> {
        self.last("softmax")?;
        Ok(self.node("Softmax", &[], vec![Attribute::int("axis", -1)], self.dims.clone()))
    }

    fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let size = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let fits = size(dims).is_some_and(|n| n > 0 && Some(n) == size(&self.dims));
        expect(fits, "reshape", &format!("as many values as {dims:?}"), &self.dims)?;
        // 0 stands for the input's own size of that axis: the batch.
        let shape: Vec<i64> = std::iter::once(0).chain(dims.iter().map(|&d| d as i64)).collect();
        let shape = self.graph.borrow_mut().ints(&shape);
        Ok(Self { dtype: self.dtype, ..self.node("Reshape", &[&shape], Vec::new(), dims.to_vec()) })
    }

    fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        let all = sorted.iter().copied().eq(0..self.dims.len());
        expect(all, "permute", "each axis once", (order, &self.dims))?;
        let perm = Attribute::ints("perm", std::iter::once(0).chain(order.iter().map(|o| o + 1)));
        let dims = order.iter().map(|&o| self.dims[o]).collect();
        Ok(Self { dtype: self.dtype, ..self.node("Transpose", &[], vec![perm], dims) })
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let op = "concat";
        let Some((first, rest)) = parts.split_first() else { return Err(wrong(op, "at least one part", 0)) };
        expect(axis < first.dims.len(), op, "an axis of the parts", (axis, &first.dims))?;
        let mut dims = first.dims.clone();
        for part in rest {
            first.together(op, part)?;
            let fits = part.dtype == first.dtype
                && part.dims.len() == dims.len()
                && (0..dims.len()).all(|i| i == axis || part.dims[i] == dims[i]);
            expect(fits, op, "parts that differ in that axis alone", (&first.dims, &part.dims))?;
            dims[axis] += part.dims[axis];
        }
        let others: Vec<&str> = rest.iter().map(|p| &*p.name).collect();
        let joined = first.node("Concat", &others, vec![Attribute::int("axis", axis as i64 + 1)], dims);
        Ok(Self { dtype: first.dtype, ..joined })
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        let divides = n > 0 && self.dims.get(axis).is_some_and(|d| d.is_multiple_of(n));
        expect(divides, "chunk", &format!("an axis {axis} of {n} equal parts"), &self.dims)?;
        let len = self.dims[axis] / n;
        (0..n).map(|i| self.slice(axis, i * len, len)).collect()
    }

    fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        let end = start.checked_add(len).filter(|_| len > 0);
        let fits = self.dims.get(axis).is_some_and(|&d| end.is_some_and(|end| end <= d));
        expect(fits, "slice", &format!("{len} places from {start} on in axis {axis}"), &self.dims)?;
        let mut dims = self.dims.clone();
        dims[axis] = len;
        let [starts, ends, axes] =
            [start, start + len, axis + 1].map(|v| self.graph.borrow_mut().ints(&[v as i64]));
        let cut = self.node("Slice", &[&starts, &ends, &axes], Vec::new(), dims);
        Ok(Self { dtype: self.dtype, ..cut })
    }

    fn mean(&self, axis: usize) -> Result<Self> {
        self.floats("mean")?;
        expect(axis < self.dims.len(), "mean", &format!("an axis {axis}"), &self.dims)?;
        let mut dims = self.dims.clone();
        dims.remove(axis);
        Ok(self.reduce_mean(axis + 1, false, dims))
    }

    fn max_pool2d(&self, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let dims = self.pooled("max_pool2d", kernel, stride, padding)?;
        // candle-onnx pads by reflection only. Where a window that reaches over the edge holds the mirrored places too, a
        // reflection changes no maximum.
        let mirrored = 2 * padding < kernel && self.dims[1..].iter().all(|&size| size > padding);
        let (mut x, mut pads) = (self.clone(), padding);
        if padding > 0 && mirrored {
            let p = padding as i64;
            let amounts = self.graph.borrow_mut().ints(&[0, 0, p, p, 0, 0, p, p]);
            let dims = vec![self.dims[0], self.dims[1] + 2 * padding, self.dims[2] + 2 * padding];
            x = self.node("Pad", &[&amounts], vec![Attribute::string("mode", "reflect")], dims);
            pads = 0;
        }
        let mut attributes =
            vec![Attribute::ints("kernel_shape", [kernel; 2]), Attribute::ints("strides", [stride; 2])];
        if pads > 0 {
            attributes.push(Attribute::ints("pads", [pads; 4]));
        }
        Ok(x.node("MaxPool", &[], attributes, dims))
    }

    fn avg_pool2d(&self, kernel: usize, stride: usize) -> Result<Self> {
        let dims = self.pooled("avg_pool2d", kernel, stride, 0)?;
        let attributes =
            vec![Attribute::ints("kernel_shape", [kernel; 2]), Attribute::ints("strides", [stride; 2])];
        Ok(self.node("AveragePool", &[], attributes, dims))
    }
}
