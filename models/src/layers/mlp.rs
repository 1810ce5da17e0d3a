use super::{Linear, LinearOptions};
use crate::{Result, Scope, Tensor};

/// Two linear layers, `fc1` and `fc2`, with GELU between them.
#[derive(Clone)]
pub struct Mlp<T: Tensor> {
    fc1: Linear<T>,
    fc2: Linear<T>,
}

impl<T: Tensor> Mlp<T> {
    /// Builds the layers `width` → `hidden` → `width`.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, width: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(scope.sub("fc1"), width, hidden)?,
            fc2: Linear::new(scope.sub("fc2"), hidden, width)?,
        })
    }

    /// Computes `[.., width]` → `[.., width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        self.fc2.forward(&self.fc1.forward(x)?.gelu()?)
    }
}

/// The gated feed-forward layer of Llama (SwiGLU, arXiv 2002.05202): `w3(silu(a)·b)`, where `w12` computes `a` and `b` together. Without
/// biases.
#[derive(Clone)]
pub struct SwiGlu<T: Tensor> {
    w12: Linear<T>,
    w3: Linear<T>,
}

impl<T: Tensor> SwiGlu<T> {
    /// Builds the layers `width` → 2 × `hidden`, and `hidden` → `width`.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, width: usize, hidden: usize) -> Result<Self> {
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        Ok(Self {
            w12: Linear::with_options(scope.sub("w12"), width, 2 * hidden, options)?,
            w3: Linear::with_options(scope.sub("w3"), hidden, width, options)?,
        })
    }

    /// Computes `[.., width]` → `[.., width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        self.w3.forward(&self.w12.forward(x)?.swiglu()?)
    }
}
