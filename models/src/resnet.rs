//! ResNet (He et al., arXiv 1512.03385) as in torchvision, with its parameter names. This is version 1.5, whose bottlenecks have
//! their stride on the 3×3 convolution.
//!
//! The input is an image `[3, height, width]`, normalized as the model's metadata describes. The output is one logit for each
//! class. For inference, [`fold_batch_norm`] folds every batch normalization into the convolution before it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Array, BatchNorm, Error, Init, ParamSpec, Result, Scope, TapeOptions, Tensor, Weights,
    cost::{CostSummary, Counter},
};

/// Color channels of every image.
pub const CHANNELS: usize = 3;
const EPS: f64 = 1e-5;
/// Smallest side of an image, in pixels: the network halves it five times.
pub const MIN_IMAGE_SIZE: usize = 32;
/// Largest side of an image, in pixels.
pub const MAX_IMAGE_SIZE: usize = 1024;

/// The last part of the name under which PyTorch stores the number of batches that a batch normalization has seen. It is
/// ignored.
pub const NUM_BATCHES_TRACKED: &str = "num_batches_tracked";

/// The name of the classification layer in files. Dropout acts in training only, and changes nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// `fc.weight`, as in torchvision.
    #[default]
    Plain,
    /// `fc.1.weight`, after a dropout, as in the Python project tiny-cats-model.
    Dropout,
}

/// The sizes of a ResNet. No parameter depends on the size of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Number of layers: 18 or 34 with basic blocks, 50 with bottlenecks.
    pub depth: usize,
    /// Channels of the first stage, 64 in the paper; each stage has twice as many as the one before.
    pub width: usize,
    /// Number of classes.
    pub classes: usize,
    /// Name of the classification layer.
    pub head: Head,
    /// True if batch normalizations follow the convolutions; if false, they are folded into the convolutions.
    pub batch_norm: bool,
}

/// The names that [`ResNetConfig::named`] accepts, and their depths.
pub const NAMES: [(&str, usize); 3] = [("resnet18", 18), ("resnet34", 34), ("resnet50", 50)];

impl ResNetConfig {
    /// Returns torchvision's network of that name.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is unknown or the number of classes is out of bounds.
    pub fn named(name: &str, classes: usize) -> Result<Self> {
        let &(_, depth) = NAMES.iter().find(|n| n.0 == name).ok_or_else(|| Error::Config {
            field: "backbone",
            message: format!("expected one of {}, found {name}", NAMES.map(|n| n.0).join(", ")),
        })?;
        let config = Self { depth, width: 64, classes, head: Head::Plain, batch_norm: true };
        config.validate()?;
        Ok(config)
    }

    /// Checks all fields.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that is out of bounds.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, message| Err(Error::Config { field, message });
        if NAMES.iter().all(|n| n.1 != self.depth) {
            return fail("depth", format!("expected 18, 34 or 50, found {}", self.depth));
        }
        for (field, value, max) in [("width", self.width, 256), ("classes", self.classes, 4096)] {
            if !(1..=max).contains(&value) {
                return fail(field, format!("expected 1 to {max}, found {value}"));
            }
        }
        Ok(())
    }

    /// Returns the number of residual blocks of each stage.
    fn blocks(&self) -> [usize; 4] {
        if self.depth == 18 { [2, 2, 2, 2] } else { [3, 4, 6, 3] }
    }

    /// Returns the ratio of a block's output channels to its inner channels: 4 for bottlenecks, 1 for basic blocks.
    fn expansion(&self) -> usize {
        if self.depth == 50 { 4 } else { 1 }
    }

    /// Returns the number of values that enter the classification layer.
    pub fn features(&self) -> usize {
        8 * self.width * self.expansion()
    }

    /// Returns every parameter and running statistic, in the order of the definition.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        let mut counter = Counter::default();
        ResNet::new(self, &mut Scope::root(&mut counter))?;
        Ok(counter.summary().params)
    }

    /// Returns the parameters and operations of one forward pass over an image of `image_size` pixels, from the cost backend.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and [`Error::Shape`] if the size is out of bounds.
    pub fn cost(&self, image_size: usize) -> Result<CostSummary> {
        let mut counter = Counter::default();
        let model = ResNet::new(self, &mut Scope::root(&mut counter))?;
        model.forward(&counter.input(&[CHANNELS, image_size, image_size]))?;
        Ok(counter.summary())
    }

    /// Returns the peak memory of one training step of `batch` images of `image_size` pixels, in bytes, without weights and batch:
    /// see [`Counter::training_bytes`].
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    pub fn training_bytes(&self, image_size: usize, batch: usize, options: TapeOptions) -> Result<u64> {
        let mut counter = Counter::training(batch, options);
        let model = ResNet::new(self, &mut Scope::root(&mut counter))?;
        let x = counter.input(&[CHANNELS, image_size, image_size]);
        counter.training_bytes(model.forward(&x)?)
    }
}

/// Formats as `resnet18`, with the width if it is not torchvision's.
impl std::fmt::Display for ResNetConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "resnet{}", self.depth)?;
        if self.width == 64 { Ok(()) } else { write!(f, " of width {}", self.width) }
    }
}

/// Returns the name of the batch normalization after a convolution: `bn1` for `conv1`, `downsample.1` for `downsample.0`.
fn norm_after(conv: &str) -> String {
    match conv.strip_suffix("downsample.0") {
        Some(block) => format!("{block}downsample.1"),
        None => conv.replace("conv", "bn"),
    }
}

/// A convolution and its batch normalization. The convolution keeps the image's size, except for its stride.
struct Conv<T: Tensor> {
    weight: T::Param,
    bias: Option<T::Param>,
    norm: Option<BatchNorm<T::Param>>,
    stride: usize,
    padding: usize,
    path: String,
}

impl<T: Tensor> Conv<T> {
    /// Builds a convolution with `weight` `[out, in, kernel]`; `gamma` initializes the scale of its normalization.
    fn new(
        scope: &mut Scope<T>,
        name: &str,
        weight: [usize; 3],
        stride: usize,
        batch_norm: bool,
        gamma: Init,
    ) -> Result<Self> {
        let [out, input, kernel] = weight;
        let mut conv = scope.sub(name);
        let weight = conv.matrix("weight", [out, input, kernel, kernel], Init::KaimingOut)?;
        let bias = (!batch_norm).then(|| conv.param("bias", [out], Init::Zeros)).transpose()?;
        let path = conv.path().to_owned();
        let mut norm = scope.sub(norm_after(name));
        let norm = batch_norm
            .then(|| -> Result<_> {
                Ok(BatchNorm {
                    path: norm.path().to_owned(),
                    weight: norm.param("weight", [out], gamma)?,
                    bias: norm.param("bias", [out], Init::Zeros)?,
                    running_mean: norm.statistic("running_mean", [out], Init::Zeros)?,
                    running_var: norm.statistic("running_var", [out], Init::Ones)?,
                    eps: EPS,
                })
            })
            .transpose()?;
        Ok(Self { weight, bias, norm, stride, padding: kernel / 2, path })
    }

    fn forward(&self, x: &T) -> Result<T> {
        let y = x.scoped(&self.path).conv2d(&self.weight, self.bias.as_ref(), self.stride, self.padding)?;
        match &self.norm {
            Some(norm) => y.scoped(&norm.path).batch_norm(norm),
            None => Ok(y),
        }
    }
}

/// A basic block of two convolutions, or a bottleneck of three.
struct Block<T: Tensor> {
    convs: Vec<Conv<T>>,
    downsample: Option<Conv<T>>,
    path: String,
}

impl<T: Tensor> Block<T> {
    fn new(
        mut scope: Scope<T>,
        config: &ResNetConfig,
        input: usize,
        inner: usize,
        stride: usize,
    ) -> Result<Self> {
        let out = inner * config.expansion();
        let shapes = match config.depth {
            50 => vec![([inner, input, 1], 1), ([inner, inner, 3], stride), ([out, inner, 1], 1)],
            _ => vec![([inner, input, 3], stride), ([out, inner, 3], 1)],
        };
        let mut convs = Vec::new();
        for (i, &(shape, stride)) in shapes.iter().enumerate() {
            // A block is initialized to the identity (Goyal et al., arXiv 1706.02677).
            let gamma = if i + 1 == shapes.len() { Init::Zeros } else { Init::Ones };
            let name = format!("conv{}", i + 1);
            convs.push(Conv::new(&mut scope, &name, shape, stride, config.batch_norm, gamma)?);
        }
        let downsample = (stride != 1 || input != out)
            .then(|| {
                let shape = [out, input, 1];
                Conv::new(&mut scope, "downsample.0", shape, stride, config.batch_norm, Init::Ones)
            })
            .transpose()?;
        Ok(Self { convs, downsample, path: scope.path().to_owned() })
    }

    fn forward(&self, x: &T) -> Result<T> {
        let mut y = x.clone();
        for (i, conv) in self.convs.iter().enumerate() {
            if i > 0 {
                y = y.relu()?;
            }
            y = conv.forward(&y)?;
        }
        let shortcut = match &self.downsample {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        y.scoped(&self.path).add(&shortcut)?.relu()
    }
}

/// The network, in one backend.
pub struct ResNet<T: Tensor> {
    stem: Conv<T>,
    blocks: Vec<Arc<Block<T>>>,
    head_weight: T::Param,
    head_bias: T::Param,
    features: usize,
}

impl<T: Tensor> ResNet<T> {
    /// Builds the network from the parameters of `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid, and the errors of the parameters' source.
    pub fn new(config: &ResNetConfig, scope: &mut Scope<T>) -> Result<Self> {
        config.validate()?;
        let (width, features) = (config.width, config.features());
        let stem = Conv::new(scope, "conv1", [width, CHANNELS, 7], 2, config.batch_norm, Init::Ones)?;
        let mut blocks = Vec::new();
        let mut input = width;
        for (stage, count) in config.blocks().into_iter().enumerate() {
            let inner = width << stage;
            let mut layer = scope.sub(format!("layer{}", stage + 1));
            for i in 0..count {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                blocks.push(Arc::new(Block::new(layer.sub(i), config, input, inner, stride)?));
                input = inner * config.expansion();
            }
        }
        let mut head = scope.sub(match config.head {
            Head::Plain => "fc",
            Head::Dropout => "fc.1",
        });
        Ok(Self {
            stem,
            blocks,
            head_weight: head.matrix("weight", [config.classes, features], Init::Normal(0.01))?,
            head_bias: head.param("bias", [config.classes], Init::Zeros)?,
            features,
        })
    }

    /// Computes the features that enter the classification layer: the mean over all positions. `x` is `[3, height, width]`, both
    /// from 32 to 1024; the result is `[features]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the inputs have other sizes.
    pub fn features(&self, x: &T) -> Result<T> {
        if !matches!(x.dims(), &[CHANNELS, h, w] if h.min(w) >= MIN_IMAGE_SIZE && h.max(w) <= MAX_IMAGE_SIZE)
        {
            let expected = format!("x [3, height, width] of {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels");
            return Err(Error::shape("ResNet", expected, x.dims()));
        }
        let mut x = self.stem.forward(x)?.relu()?.scoped("maxpool").max_pool2d(3, 2, 1)?;
        for block in &self.blocks {
            let block = block.clone();
            x = T::checkpoint([&x], move |[x]| block.forward(x))?;
        }
        let positions = x.dims()[1..].iter().product();
        x.scoped("avgpool").reshape(&[self.features, positions])?.mean(1)
    }

    /// Computes the logits of the classes from [`features`](Self::features): `[features]` → `[classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the inputs have other sizes.
    pub fn logits(&self, features: &T) -> Result<T> {
        features.scoped("fc").linear(&self.head_weight, Some(&self.head_bias))
    }

    /// Computes one forward pass: normalized `x` `[3, height, width]`, both from 32 to 1024 → logits `[classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the inputs have other sizes.
    pub fn forward(&self, x: &T) -> Result<T> {
        self.logits(&self.features(x)?)
    }
}

/// Folds every batch normalization into the convolution before it, by the running statistics. The weights become `γ/√(σ²+ε)·w`, and
/// the bias is `β − γμ/√(σ²+ε)`. Computed in f64 and rounded once. Other weights are unchanged, and so are folded ones.
///
/// # Errors
/// [`Error::Config`] if the configuration is invalid; [`Error::MissingParameter`] and [`Error::ParameterShape`] if
/// the weights of a convolution or normalization are missing or have another shape.
pub fn fold_batch_norm(config: &ResNetConfig, weights: &Weights) -> Result<(ResNetConfig, Weights)> {
    let mut folded = weights.clone();
    let convs = config.specs()?.into_iter().filter(|spec| config.batch_norm && spec.dims.len() == 4);
    for spec in convs {
        let path = spec.name.trim_end_matches(".weight");
        let norm = norm_after(path);
        let mut take = |part: &str| {
            let name = format!("{norm}.{part}");
            let array = folded.remove(&name);
            expect(array, name, &spec.dims[..1]).map(Array::into_data)
        };
        let [gamma, beta, mean, var] =
            [take("weight")?, take("bias")?, take("running_mean")?, take("running_var")?];
        let mut weight = expect(folded.remove(&spec.name), spec.name.clone(), &spec.dims)?;
        let scale: Vec<f64> =
            gamma.iter().zip(&var).map(|(&g, &v)| f64::from(g) / (f64::from(v) + EPS).sqrt()).collect();
        let channel = spec.dims[1..].iter().product();
        for (values, scale) in weight.data_mut().chunks_mut(channel).zip(&scale) {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        }
        let shift = |((&b, &m), s): ((&f32, &f32), &f64)| (f64::from(b) - f64::from(m) * s) as f32;
        let bias = beta.iter().zip(&mean).zip(&scale).map(shift).collect();
        folded.insert(format!("{path}.bias"), Array::new([spec.dims[0]], bias)?);
        folded.insert(spec.name, weight);
    }
    Ok((ResNetConfig { batch_norm: false, ..config.clone() }, folded))
}

fn expect(array: Option<Array>, name: String, dims: &[usize]) -> Result<Array> {
    match array {
        None => Err(Error::MissingParameter { name }),
        Some(array) if array.dims() != dims => {
            Err(Error::ParameterShape { name, expected: dims.to_vec(), found: array.dims().to_vec() })
        }
        Some(array) => Ok(array),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init;

    #[test]
    fn named_networks_match_torchvision() {
        // From torchvision.models.resnetNN(): parameters, and multiply-adds of the convolutions and the linear layer at 224 px.
        for (name, parameters, multiply_adds) in [
            ("resnet18", 11_689_512u64, 1_814_073_344u64),
            ("resnet34", 21_797_672, 3_663_761_408),
            ("resnet50", 25_557_032, 4_089_184_256),
        ] {
            let summary = ResNetConfig::named(name, 1000).unwrap().cost(224).unwrap();
            let trained = summary.params.iter().filter(|p| p.trainable);
            assert_eq!(
                trained.map(|p| p.dims.iter().product::<usize>() as u64).sum::<u64>(),
                parameters,
                "{name}"
            );
            let products = summary.ops.iter().filter(|e| matches!(e.op, "conv2d" | "linear"));
            let bias = 1000;
            assert_eq!((products.map(|e| e.flops).sum::<u64>() - bias) / 2, multiply_adds, "{name}");
        }
    }

    #[test]
    fn invalid_configurations_are_rejected_with_the_field() {
        let valid = ResNetConfig::named("resnet18", 13).unwrap();
        let field = |c: ResNetConfig| match c.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(ResNetConfig { depth: 20, ..valid.clone() }), "depth");
        assert_eq!(field(ResNetConfig { width: 1 << 60, ..valid.clone() }), "width");
        assert_eq!(field(ResNetConfig { classes: 0, ..valid.clone() }), "classes");
        let unknown = ResNetConfig::named("resnet19", 13).unwrap_err().to_string();
        assert_eq!(unknown, "backbone: expected one of resnet18, resnet34, resnet50, found resnet19");
        assert!(valid.cost(31).is_err() && valid.cost(1025).is_err());
    }

    #[test]
    fn weight_decay_acts_only_on_convolutions_and_the_classification_layer() {
        for (name, head) in [("resnet18", Head::Plain), ("resnet50", Head::Dropout)] {
            let specs = ResNetConfig { head, ..ResNetConfig::named(name, 13).unwrap() }.specs().unwrap();
            for spec in &specs {
                let layer = spec.name.rsplit('.').nth(1).unwrap();
                let norm = layer.starts_with("bn") || spec.name.contains("downsample.1");
                let expected = spec.name.ends_with(".weight") && !norm;
                assert_eq!(spec.has_weight_decay, expected, "{name}: {}", spec.name);
            }
            // The stem, the convolutions and the shortcuts of the blocks, plus the classification layer.
            let convolutions = if name == "resnet18" { 1 + 16 + 3 } else { 1 + 48 + 4 };
            assert_eq!(specs.iter().filter(|s| s.has_weight_decay).count(), convolutions + 1, "{name}");
        }
    }

    #[test]
    fn folding_replaces_batch_norms_by_biases() {
        for depth in [18, 50] {
            let config = ResNetConfig { depth, width: 4, classes: 3, head: Head::Dropout, batch_norm: true };
            let mut weights = init(&config.specs().unwrap(), 0);
            let (folded, plain) = fold_batch_norm(&config, &weights).unwrap();
            let names: Vec<String> = folded.specs().unwrap().into_iter().map(|s| s.name).collect();
            assert_eq!(plain.len(), names.len());
            assert!(names.iter().all(|name| plain.contains_key(name)));
            assert_eq!(fold_batch_norm(&folded, &plain).unwrap(), (folded, plain));
            weights.remove("layer2.0.downsample.1.running_var");
            let error = fold_batch_norm(&config, &weights).unwrap_err().to_string();
            assert_eq!(error, "parameter layer2.0.downsample.1.running_var is missing");
        }
    }
}
