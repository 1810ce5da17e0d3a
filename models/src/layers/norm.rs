use crate::{Error, Init, Result, Scope, Tensor};

/// Layer normalization over the last axis (arXiv 1607.06450), with the parameters `weight` and `bias` `[width]`.
#[derive(Clone)]
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
    /// [`Error::Shape`] for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.layer_norm(Some((&self.affine.0, &self.affine.1)), self.eps)
    }
}

/// Group normalization (arXiv 1803.08494), with the parameters `weight` and `bias` `[channels]`.
#[derive(Clone)]
pub struct GroupNorm<T: Tensor> {
    groups: usize,
    affine: (T::Param, T::Param),
    eps: f64,
}

impl<T: Tensor> GroupNorm<T> {
    /// Builds the layer for `groups` groups of consecutive channels; `eps` is added to the variance.
    ///
    /// # Errors
    /// [`Error::Config`] if `groups` does not divide `channels`, and the errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let message = format!("expected a divisor of {channels} channels, found {groups}");
            return Err(Error::Config { field: "groups", message });
        }
        let weight = scope.param("weight", [channels], Init::Ones)?;
        Ok(Self { groups, affine: (weight, scope.param("bias", [channels], Init::Zeros)?), eps })
    }

    /// Normalizes `[channels, ..]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other channels.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.group_norm(self.groups, Some((&self.affine.0, &self.affine.1)), self.eps)
    }
}

/// RMS normalization over the last axis (arXiv 1910.07467), with the parameter `weight` `[width]`.
#[derive(Clone)]
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
    /// [`Error::Shape`] for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.rms_norm(Some(&self.weight), self.eps)
    }
}

/// One of the normalizations, for networks that let a setting choose it.
#[derive(Clone)]
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
    /// [`Error::Shape`] for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        match self {
            Self::PlainRms(eps) => x.rms_norm(None, *eps),
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}
