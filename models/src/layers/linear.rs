use crate::{Init, Result, Scope, Tensor};

/// Options of a [`Linear`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearOptions {
    /// True if a bias is added.
    pub bias: bool,
    /// Initial values of the weight. A bias starts at zero.
    pub init: Init,
    /// True if weight decay acts on the weight.
    pub weight_decay: bool,
}

impl Default for LinearOptions {
    /// A bias, Xavier initialization, weight decay.
    fn default() -> Self {
        Self { bias: true, init: Init::Xavier, weight_decay: true }
    }
}

/// A linear layer, `x·Wᵀ + b` over the last axis, with the parameters `weight` `[output, input]` and `bias` `[output]`.
#[derive(Clone)]
pub struct Linear<T: Tensor> {
    weight: T::Param,
    bias: Option<T::Param>,
    path: String,
}

impl<T: Tensor> Linear<T> {
    /// Builds a layer from `input` to `output` features with the default options.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(scope: Scope<T>, input: usize, output: usize) -> Result<Self> {
        Self::with_options(scope, input, output, LinearOptions::default())
    }

    /// Builds a layer from `input` to `output` features.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn with_options(
        mut scope: Scope<T>,
        input: usize,
        output: usize,
        options: LinearOptions,
    ) -> Result<Self> {
        let LinearOptions { bias, init, weight_decay } = options;
        let dims = [output, input];
        let weight = if weight_decay {
            scope.matrix("weight", dims, init)?
        } else {
            scope.param("weight", dims, init)?
        };
        let bias = bias.then(|| scope.param("bias", [output], Init::Zeros)).transpose()?;
        Ok(Self { weight, bias, path: scope.path().to_owned() })
    }

    /// Computes `[.., input]` → `[.., output]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another last axis.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.scoped(&self.path).linear(&self.weight, self.bias.as_ref())
    }
}
