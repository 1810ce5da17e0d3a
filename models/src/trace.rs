//! A backend that wraps another one and records the result of every operation, to find the first one that differs.

use std::{cell::RefCell, rc::Rc};

use crate::{Array, BatchNorm, Conv1dOptions, Conv2dOptions, ParamSpec, Result, Source, Tensor};

/// The result of one operation.
#[derive(Clone, Debug)]
pub struct TracedOp<T> {
    /// Name of the operation in the [`Tensor`] trait.
    pub op: &'static str,
    /// Path of the module that it belongs to.
    pub module: String,
    /// The result; an operation with several results has several entries.
    pub value: T,
}

impl<T> TracedOp<T> {
    /// Converts the result.
    ///
    /// # Errors
    /// The error of `f`.
    pub fn try_map<U, E>(self, f: impl FnOnce(T) -> Result<U, E>) -> Result<TracedOp<U>, E> {
        Ok(TracedOp { op: self.op, module: self.module, value: f(self.value)? })
    }
}

/// The operations recorded so far, in the order of the forward pass.
#[derive(Debug)]
pub struct Trace<T>(Rc<RefCell<Vec<TracedOp<T>>>>);

impl<T> Clone for Trace<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Trace<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T: Tensor> Trace<T> {
    /// Returns a value whose operations are recorded.
    pub fn value(&self, inner: T) -> TraceValue<T> {
        TraceValue { inner, module: "".into(), trace: self.clone() }
    }

    /// Takes the recorded operations.
    pub fn take(&self) -> Vec<TracedOp<T>> {
        self.0.take()
    }
}

/// A value of a backend, with the record of the operations on it.
#[derive(Clone, Debug)]
pub struct TraceValue<T: Tensor> {
    inner: T,
    module: Rc<str>,
    trace: Trace<T>,
}

impl<T: Tensor> TraceValue<T> {
    /// Returns the value in the wrapped backend.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn record(&self, op: &'static str, result: Result<T>) -> Result<Self> {
        let inner = result?;
        let module = self.module.to_string();
        self.trace.0.borrow_mut().push(TracedOp { op, module, value: inner.clone() });
        Ok(Self { inner, ..self.clone() })
    }
}

/// The [`Source`] of parameters for a traced network: that of the wrapped backend.
pub struct TraceSource<'a, T: Tensor>(&'a mut dyn Source<T>);

impl<'a, T: Tensor> TraceSource<'a, T> {
    /// Wraps a source of the backend.
    pub fn new(source: &'a mut dyn Source<T>) -> Self {
        Self(source)
    }
}

impl<T: Tensor> Source<TraceValue<T>> for TraceSource<'_, T> {
    fn param(&mut self, spec: ParamSpec) -> Result<T::Param> {
        self.0.param(spec)
    }

    fn constant(&mut self, name: &str, value: Array) -> Result<T::Param> {
        self.0.constant(name, value)
    }
}

/// Implements operations by those of the wrapped backend. Arguments after the semicolon are values.
macro_rules! traced {
    ($($name:ident($($arg:ident: $type:ty),* $(; $($other:ident),*)?);)*) => {
        $(
            fn $name(&self, $($($other: &Self,)*)? $($arg: $type),*) -> Result<Self> {
                self.record(stringify!($name), self.inner.$name($($(&$other.inner,)*)? $($arg),*))
            }
        )*
    };
}

impl<T: Tensor> Tensor for TraceValue<T> {
    type Param = T::Param;

    fn dims(&self) -> &[usize] {
        self.inner.dims()
    }

    fn scoped(&self, module: &str) -> Self {
        Self { inner: self.inner.scoped(module), module: module.into(), trace: self.trace.clone() }
    }

    traced! {
        linear(weight: &Self::Param, bias: Option<&Self::Param>);
        conv2d(weight: &Self::Param, bias: Option<&Self::Param>, stride: usize, padding: usize);
        conv2d_with_options(weight: &Self::Param, bias: Option<&Self::Param>, options: Conv2dOptions);
        conv1d(weight: &Self::Param, bias: Option<&Self::Param>, options: Conv1dOptions);
        batch_norm(norm: &BatchNorm<Self::Param>);
        group_norm(groups: usize, affine: Option<(&Self::Param, &Self::Param)>, eps: f64);
        layer_norm(affine: Option<(&Self::Param, &Self::Param)>, eps: f64);
        rms_norm(weight: Option<&Self::Param>, eps: f64);
        scale_shift(; scale, shift);
        gated_residual(; branch, gate);
        attention(; key, value);
        embedding(table: &Self::Param);
        sinusoids(width: usize, period: f64, scale: f64);
        add_param(param: &Self::Param);
        add(; other);
        mul(; other);
        sub(; other);
        div(; other);
        affine(factor: f64, offset: f64);
        gelu();
        silu();
        relu();
        exp();
        log();
        sqrt();
        sigmoid();
        tanh();
        softplus();
        clamp(min: f64, max: f64);
        swiglu();
        softmax();
        dropout(p: f64);
        reshape(dims: &[usize]);
        permute(order: &[usize]);
        slice(axis: usize, start: usize, len: usize);
        pad(axis: usize, before: usize, after: usize);
        mean(axis: usize);
        sum(axis: usize);
        max(axis: usize);
        max_pool2d(kernel: usize, stride: usize, padding: usize);
        avg_pool2d(kernel: usize, stride: usize);
        upsample_nearest2d(factor: usize);
    }

    fn concat(parts: &[Self], axis: usize) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(crate::Error::shape("concat", "at least one part", 0));
        };
        let inner: Vec<T> = parts.iter().map(|part| part.inner.clone()).collect();
        first.record("concat", T::concat(&inner, axis))
    }

    fn chunk(&self, n: usize, axis: usize) -> Result<Vec<Self>> {
        self.inner.chunk(n, axis)?.into_iter().map(|part| self.record("chunk", Ok(part))).collect()
    }
}
