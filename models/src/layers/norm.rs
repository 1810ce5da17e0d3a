use crate::{Init, Result, Scope, Tensor};

/// Layer normalization over the last axis (arXiv 1607.06450), with the parameters `weight` and `bias` `[width]`.
pub struct LayerNorm<T: Tensor> {
    affine: (T::Param, T::Param),
    eps: f64,
}

impl<T: Tensor> LayerNorm<T> {
    /// Builds the layer; `eps` is added to the variance.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, width: usize, eps: f64) -> Result<Self> {
        let weight = scope.param("weight", [width], Init::Ones)?;
        Ok(Self { affine: (weight, scope.param("bias", [width], Init::Zeros)?), eps })
    }

    /// Normalizes `[.., width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.layer_norm(Some((&self.affine.0, &self.affine.1)), self.eps)
    }
}

/// RMS normalization over the last axis (arXiv 1910.07467), with the parameter `weight` `[width]`.
pub struct RmsNorm<T: Tensor> {
    weight: T::Param,
    eps: f64,
}

impl<T: Tensor> RmsNorm<T> {
    /// Builds the layer; `eps` is added to the mean square.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: scope.param("weight", [width], Init::Ones)?, eps })
    }

    /// Normalizes `[.., width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.rms_norm(Some(&self.weight), self.eps)
    }
}

/// One of the normalizations, for networks that let a setting choose it.
pub enum Norm<T: Tensor> {
    /// RMS normalization without a parameter; the number is `eps`.
    PlainRms(f64),
    /// RMS normalization.
    Rms(RmsNorm<T>),
    /// Layer normalization.
    Layer(LayerNorm<T>),
}

impl<T: Tensor> Norm<T> {
    /// Normalizes the last axis.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        match self {
            Self::PlainRms(eps) => x.rms_norm(None, *eps),
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}
