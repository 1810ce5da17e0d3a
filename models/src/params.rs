//! The parameters of a model: their descriptions, their sources, and their initial values.

use crate::{
    Array, Error, Result, Tensor, Weights,
    random::{Purpose, Stream},
};

/// The distribution of a parameter's initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in ±√(6/(fan in + fan out)) (Glorot and Bengio 2010); the first axis is the output.
    Xavier,
    /// Normal with standard deviation √(2/fan out), for convolutions before ReLU (He et al., arXiv 1502.01852).
    KaimingOut,
}

/// The description of a parameter that a model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Path in the model, and key in every file.
    pub name: String,
    /// Sizes of all axes.
    pub dims: Vec<usize>,
    /// Distribution of the initial values.
    pub init: Init,
    /// False for running statistics, which have no gradient.
    pub trainable: bool,
    /// True if weight decay acts on it. Weight decay acts on the matrices of linear layers and the kernels of convolutions. It does
    /// not act on biases, normalizations, embeddings, and the layers that compute gates, scales and shifts.
    pub has_weight_decay: bool,
}

impl ParamSpec {
    /// Checks that a parameter was found, and that its sizes are the expected ones.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] if `found` is `None`, [`Error::ParameterShape`] if the sizes differ.
    pub fn check_dims(&self, found: Option<&[usize]>) -> Result<()> {
        let found = found.ok_or_else(|| Error::MissingParameter { name: self.name.clone() })?;
        if found != self.dims {
            return Err(Error::ParameterShape {
                name: self.name.clone(),
                expected: self.dims.clone(),
                found: found.to_vec(),
            });
        }
        Ok(())
    }
}

/// A source of parameters for a model that is being built for the backend `T`.
pub trait Source<T: Tensor> {
    /// Returns the parameter that `spec` describes.
    ///
    /// # Errors
    /// If there is no parameter of that name, or it has another shape.
    fn param(&mut self, spec: ParamSpec) -> Result<T::Param>;

    /// Returns a constant that the definition computes and no file holds, such as fixed positions.
    fn constant(&mut self, name: &str, value: Array) -> Result<T::Param>;
}

/// A [`Source`] at a path of the model.
pub struct Scope<'a, T: Tensor> {
    source: &'a mut dyn Source<T>,
    path: String,
}

impl<'a, T: Tensor> Scope<'a, T> {
    /// Returns the scope of the model's root.
    pub fn root(source: &'a mut dyn Source<T>) -> Self {
        Self { source, path: String::new() }
    }

    /// Returns the scope of the module called `name`.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Scope<'_, T> {
        let path = self.name(&name.to_string());
        Scope { source: self.source, path }
    }

    /// Returns the path of this module, such as `blocks.0.attn`; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Returns a trained parameter without weight decay: a bias, a normalization's scale, an embedding.
    pub fn param(&mut self, name: &str, dims: impl Into<Vec<usize>>, init: Init) -> Result<T::Param> {
        let spec = ParamSpec {
            name: self.name(name),
            dims: dims.into(),
            init,
            trainable: true,
            has_weight_decay: false,
        };
        self.source.param(spec)
    }

    /// Returns a trained parameter with weight decay: the matrix of a linear layer or the kernels of a convolution.
    pub fn matrix(&mut self, name: &str, dims: impl Into<Vec<usize>>, init: Init) -> Result<T::Param> {
        let spec = ParamSpec {
            name: self.name(name),
            dims: dims.into(),
            init,
            trainable: true,
            has_weight_decay: true,
        };
        self.source.param(spec)
    }

    /// Returns a running statistic, which is stored in files and has no gradient.
    pub fn statistic(&mut self, name: &str, dims: impl Into<Vec<usize>>, init: Init) -> Result<T::Param> {
        let spec = ParamSpec {
            name: self.name(name),
            dims: dims.into(),
            init,
            trainable: false,
            has_weight_decay: false,
        };
        self.source.param(spec)
    }

    /// Returns a constant that the definition computes and no file holds.
    pub fn constant(&mut self, name: &str, value: Array) -> Result<T::Param> {
        let name = self.name(name);
        self.source.constant(&name, value)
    }
}

/// Returns initial weights for `specs`. Each parameter has its own random stream, so equal seeds give equal weights, regardless of the
/// other random numbers that the program uses.
pub fn init(specs: &[ParamSpec], seed: u64) -> Weights {
    let array = |(i, spec): (usize, &ParamSpec)| {
        let mut stream = Stream::new(seed, Purpose::Init, i as u64);
        let n: usize = spec.dims.iter().product();
        let out = spec.dims.first().copied().unwrap_or(1);
        let receptive: usize = spec.dims.iter().skip(2).product();
        let fan_in: usize = spec.dims.iter().skip(1).product();
        let data = match spec.init {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::Normal(std) => (0..n).map(|_| (std * stream.normal()) as f32).collect(),
            Init::KaimingOut => {
                let std = (2.0 / (out * receptive) as f64).sqrt();
                (0..n).map(|_| (std * stream.normal()) as f32).collect()
            }
            Init::Xavier => {
                let bound = (6.0 / (fan_in + out * receptive) as f64).sqrt();
                (0..n).map(|_| (bound * (2.0 * stream.uniform() - 1.0)) as f32).collect()
            }
        };
        (spec.name.clone(), Array::new(spec.dims.clone(), data).expect("as many values as the shape has"))
    };
    specs.iter().enumerate().map(array).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_do_not_depend_on_other_parameters() {
        let spec = |n| ParamSpec {
            name: format!("p{n}"),
            dims: vec![n, 4],
            init: Init::Normal(1.0),
            trainable: true,
            has_weight_decay: true,
        };
        let a = init(&[spec(3), spec(5)], 7);
        let b = init(&[spec(9), spec(5)], 7);
        assert_eq!(a["p5"], b["p5"]);
        assert_ne!(a["p5"], init(&[spec(3), spec(5)], 8)["p5"]);
    }
}
