use crate::{Array, BatchNorm, Conv1dOptions, Conv2dOptions, Error, Init, Result, Scope, Tensor, Weights};

/// Options of a [`Conv2d`] or [`Conv1d`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvOptions {
    /// Distance between neighboring windows, in pixels.
    pub stride: usize,
    /// Number of zeros on each side.
    pub padding: usize,
    /// Distance between neighboring pixels of a window.
    pub dilation: usize,
    /// Number of groups of channels. Each output depends on the input channels of its group only.
    pub groups: usize,
    /// True if a bias is added.
    pub bias: bool,
    /// Initial values of the weight. A bias starts at zero.
    pub init: Init,
}

impl Default for ConvOptions {
    /// Stride 1, no padding, no dilation, one group, a bias, Kaiming initialization.
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1, bias: true, init: Init::KaimingOut }
    }
}

/// Returns the number of input channels of a group.
fn group_channels(input: usize, output: usize, groups: usize) -> Result<usize> {
    if groups == 0 || !input.is_multiple_of(groups) || !output.is_multiple_of(groups) {
        let message = format!("expected a divisor of {input} and {output} channels, found {groups}");
        return Err(Error::Config { field: "groups", message });
    }
    Ok(input / groups)
}

/// A 2-D convolution with the parameters `weight` `[output, input / groups, kernel height, kernel width]` and `bias` `[output]`.
#[derive(Clone)]
pub struct Conv2d<T: Tensor> {
    weight: T::Param,
    bias: Option<T::Param>,
    options: Conv2dOptions,
    path: String,
}

impl<T: Tensor> Conv2d<T> {
    /// Builds a convolution with the default options.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(scope: Scope<T>, input: usize, output: usize, kernel: usize) -> Result<Self> {
        Self::with_options(scope, input, output, kernel, ConvOptions::default())
    }

    /// Builds a convolution from `input` to `output` channels with a square kernel.
    ///
    /// # Errors
    /// [`Error::Config`] if the groups do not divide the channels, and the errors of the parameters' source.
    pub fn with_options(
        scope: Scope<T>,
        input: usize,
        output: usize,
        kernel: usize,
        options: ConvOptions,
    ) -> Result<Self> {
        let ConvOptions { stride, padding, dilation, groups, bias, init } = options;
        let options =
            Conv2dOptions { dilation: [dilation; 2], groups, ..Conv2dOptions::square(stride, padding) };
        Self::with_kernel(scope, [input, output], [kernel; 2], options, bias, init)
    }

    /// Builds a convolution from `input` to `output` channels with a kernel `[height, width]` and options for each axis. It adds a bias if
    /// `bias` is true; `init` initializes the weight.
    ///
    /// # Errors
    /// [`Error::Config`] if the groups do not divide the channels, and the errors of the parameters' source.
    pub fn with_kernel(
        mut scope: Scope<T>,
        [input, output]: [usize; 2],
        [height, width]: [usize; 2],
        options: Conv2dOptions,
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let channels = group_channels(input, output, options.groups)?;
        let weight = scope.matrix("weight", [output, channels, height, width], init)?;
        let bias = bias.then(|| scope.param("bias", [output], Init::Zeros)).transpose()?;
        Ok(Self { weight, bias, options, path: scope.path().to_owned() })
    }

    /// Computes `[input, height, width]` → `[output, rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other channels, or an image smaller than the kernel.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.scoped(&self.path).conv2d_with_options(&self.weight, self.bias.as_ref(), self.options)
    }
}

/// A 1-D convolution with the parameters `weight` `[output, input / groups, kernel]` and `bias` `[output]`.
#[derive(Clone)]
pub struct Conv1d<T: Tensor> {
    weight: T::Param,
    bias: Option<T::Param>,
    options: Conv1dOptions,
    path: String,
}

impl<T: Tensor> Conv1d<T> {
    /// Builds a convolution with the default options.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(scope: Scope<T>, input: usize, output: usize, kernel: usize) -> Result<Self> {
        Self::with_options(scope, input, output, kernel, ConvOptions::default())
    }

    /// Builds a convolution from `input` to `output` channels.
    ///
    /// # Errors
    /// [`Error::Config`] if the groups do not divide the channels, and the errors of the parameters' source.
    pub fn with_options(
        mut scope: Scope<T>,
        input: usize,
        output: usize,
        kernel: usize,
        options: ConvOptions,
    ) -> Result<Self> {
        let ConvOptions { stride, padding, dilation, groups, bias, init } = options;
        let channels = group_channels(input, output, groups)?;
        let weight = scope.matrix("weight", [output, channels, kernel], init)?;
        let bias = bias.then(|| scope.param("bias", [output], Init::Zeros)).transpose()?;
        let options = Conv1dOptions { stride, padding, dilation, groups };
        Ok(Self { weight, bias, options, path: scope.path().to_owned() })
    }

    /// Computes `[input, length]` → `[output, windows]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other channels, or a sequence shorter than the kernel.
    pub fn forward(&self, x: &T) -> Result<T> {
        x.scoped(&self.path).conv1d(&self.weight, self.bias.as_ref(), self.options)
    }
}

/// Number added to the variance of a batch normalization under the root, as in PyTorch.
pub const BATCH_NORM_EPS: f64 = 1e-5;

/// A convolution and the batch normalization after it. Once the normalization is [folded](fold_batch_norms), it is a convolution with a
/// bias.
#[derive(Clone)]
pub struct ConvBn<T: Tensor> {
    conv: Conv2d<T>,
    norm: Option<BatchNorm<T::Param>>,
}

impl<T: Tensor> ConvBn<T> {
    /// Builds the two layers, called `conv` and `norm` in `scope`. `gamma` initializes the normalization's scale: zero for the last one of
    /// a residual block (Goyal et al., arXiv 1706.02677). If `folded`, there is no normalization, and the convolution has a bias.
    /// `options.bias` is ignored.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(
        scope: &mut Scope<T>,
        [conv, norm]: [&str; 2],
        [input, output, kernel]: [usize; 3],
        options: ConvOptions,
        gamma: Init,
        folded: bool,
    ) -> Result<Self> {
        let options = ConvOptions { bias: folded, ..options };
        let conv = Conv2d::with_options(scope.sub(conv), input, output, kernel, options)?;
        let mut norm = scope.sub(norm);
        let norm = (!folded)
            .then(|| -> Result<_> {
                Ok(BatchNorm {
                    path: norm.path().to_owned(),
                    weight: norm.param("weight", [output], gamma)?,
                    bias: norm.param("bias", [output], Init::Zeros)?,
                    running_mean: norm.statistic("running_mean", [output], Init::Zeros)?,
                    running_var: norm.statistic("running_var", [output], Init::Ones)?,
                    eps: BATCH_NORM_EPS,
                })
            })
            .transpose()?;
        Ok(Self { conv, norm })
    }

    /// Computes `[input, height, width]` → `[output, rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other channels, or an image smaller than the kernel.
    pub fn forward(&self, x: &T) -> Result<T> {
        let y = self.conv.forward(x)?;
        match &self.norm {
            Some(norm) => y.scoped(&norm.path).batch_norm(norm),
            None => Ok(y),
        }
    }
}

/// Folds batch normalizations into the convolutions before them, by their running statistics. `layers` holds the paths of each convolution
/// and its normalization. The weights become `γ/√(σ²+ε)·w`, and the bias is `β − γμ/√(σ²+ε)`, computed in f64 and rounded once. Other
/// weights stay as they are.
///
/// # Errors
/// [`Error::MissingParameter`] and [`Error::ParameterShape`] if the weights of a convolution or normalization are missing or have another
/// shape.
pub fn fold_batch_norms(mut weights: Weights, layers: &[(String, String)], eps: f64) -> Result<Weights> {
    for (conv, norm) in layers {
        let name = format!("{conv}.weight");
        let mut weight =
            weights.remove(&name).ok_or_else(|| Error::MissingParameter { name: name.clone() })?;
        let output = weight.dims().first().copied().unwrap_or(0);
        let mut take = |part: &str| {
            let name = format!("{norm}.{part}");
            match weights.remove(&name) {
                None => Err(Error::MissingParameter { name }),
                Some(array) if array.dims() != [output] => {
                    Err(Error::ParameterShape { name, expected: vec![output], found: array.dims().to_vec() })
                }
                Some(array) => Ok(array.into_data()),
            }
        };
        let [gamma, beta, mean, var] =
            [take("weight")?, take("bias")?, take("running_mean")?, take("running_var")?];
        let scale: Vec<f64> =
            gamma.iter().zip(&var).map(|(&g, &v)| f64::from(g) / (f64::from(v) + eps).sqrt()).collect();
        let channel = weight.dims().iter().skip(1).product::<usize>().max(1);
        for (values, scale) in weight.data_mut().chunks_mut(channel).zip(&scale) {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        }
        let shift = |((&b, &m), s): ((&f32, &f32), &f64)| (f64::from(b) - f64::from(m) * s) as f32;
        let bias = beta.iter().zip(&mean).zip(&scale).map(shift).collect();
        weights.insert(format!("{conv}.bias"), Array::new([output], bias)?);
        weights.insert(name, weight);
    }
    Ok(weights)
}
