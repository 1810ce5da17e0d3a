//! ResNet (He et al., arXiv 1512.03385) as in torchvision, with its parameter names. This is version 1.5, whose bottlenecks have
//! their stride on the 3×3 convolution.
//!
//! The input is an image `[3, height, width]`, normalized as the model's metadata describes. The output is one logit for each
//! class. For inference, [`fold_batch_norm`] folds every batch normalization into the convolution before it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Array, Axis, Error, Init, Input, Network, Result, Role, Scope, Tensor, Weights,
    layers::{BATCH_NORM_EPS, ConvBn, ConvOptions, fold_batch_norms},
};

/// Color channels of every image.
pub const CHANNELS: usize = 3;
/// The free axis of the input: side of the square image, in pixels.
pub const IMAGE_SIZE: &str = "image_size";
/// The output that enters the classification layer, `[features]`.
pub const FEATURES: &str = "features";
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
}

impl Network for ResNetConfig {
    const KIND: &'static str = "resnet";
    type Built<T: Tensor> = ResNet<T>;

    fn validate(&self) -> Result<()> {
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

    fn inputs(&self) -> Vec<Input> {
        let side = || Axis::free(IMAGE_SIZE);
        vec![Input::floats("input", [Axis::Fixed(CHANNELS), side(), side()])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["output".into(), FEATURES.into()]
    }

    fn role(&self) -> Role {
        Role::Classifier { classes: self.classes }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<ResNet<T>> {
        ResNet::new(self, scope)
    }

    fn forward<T: Tensor>(network: &ResNet<T>, inputs: &[T]) -> Result<Vec<T>> {
        let [x] = inputs else {
            return Err(Error::shape("ResNet", "the input x", inputs.len()));
        };
        let features = network.features(x)?;
        Ok(vec![network.logits(&features)?, features])
    }

    fn for_inference(&self, weights: &Weights) -> Result<(Self, Weights)> {
        fold_batch_norm(self, weights)
    }

    fn describe(&self) -> String {
        self.to_string()
    }

    fn details(&self) -> Vec<String> {
        let head = match self.head {
            Head::Plain => "",
            Head::Dropout => ", a dropout before the head",
        };
        let norms = if self.batch_norm { "" } else { ", batch norms folded" };
        let Self { depth, width, classes, .. } = self;
        vec![format!("ResNet-{depth}, width {width}{norms}{head}, {classes} classes")]
    }

    fn is_untrained(&self, weights: &Weights) -> bool {
        // Weights may come from another model; running statistics change with the first step.
        let all = |suffix: &str, value: f32| {
            let mut found = weights.iter().filter(|(name, _)| name.ends_with(suffix)).peekable();
            found.peek().is_some() && found.all(|(_, array)| array.data().iter().all(|&v| v == value))
        };
        all(".running_mean", 0.0) && all(".running_var", 1.0)
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

/// Builds a convolution with `dims` `[out, in, kernel]` and its normalization. The convolution keeps the image's size, except for its
/// stride. `gamma` initializes the scale of the normalization.
fn conv<T: Tensor>(
    scope: &mut Scope<T>,
    name: &str,
    [output, input, kernel]: [usize; 3],
    stride: usize,
    batch_norm: bool,
    gamma: Init,
) -> Result<ConvBn<T>> {
    let options = ConvOptions { stride, padding: kernel / 2, ..ConvOptions::default() };
    ConvBn::new(scope, [name, &norm_after(name)], [input, output, kernel], options, gamma, !batch_norm)
}

/// A basic block of two convolutions, or a bottleneck of three.
struct Block<T: Tensor> {
    convs: Vec<ConvBn<T>>,
    downsample: Option<ConvBn<T>>,
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
            convs.push(conv(&mut scope, &name, shape, stride, config.batch_norm, gamma)?);
        }
        let downsample = (stride != 1 || input != out)
            .then(|| {
                let shape = [out, input, 1];
                conv(&mut scope, "downsample.0", shape, stride, config.batch_norm, Init::Ones)
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
    stem: ConvBn<T>,
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
        let stem = conv(scope, "conv1", [width, CHANNELS, 7], 2, config.batch_norm, Init::Ones)?;
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

/// Folds every batch normalization into the convolution before it: see [`fold_batch_norms`]. Folded weights stay as they are.
///
/// # Errors
/// [`Error::Config`] if the configuration is invalid. [`Error::MissingParameter`] and [`Error::ParameterShape`] if the weights of a
/// convolution or normalization are missing or have another shape.
pub fn fold_batch_norm(config: &ResNetConfig, weights: &Weights) -> Result<(ResNetConfig, Weights)> {
    let specs = config.specs()?;
    let convs = specs.iter().filter(|spec| config.batch_norm && spec.dims.len() == 4);
    let mut layers = Vec::new();
    for spec in convs {
        spec.check_dims(weights.get(&spec.name).map(Array::dims))?;
        let path = spec.name.trim_end_matches(".weight");
        layers.push((path.to_owned(), norm_after(path)));
    }
    let folded = fold_batch_norms(weights.clone(), &layers, BATCH_NORM_EPS)?;
    Ok((ResNetConfig { batch_norm: false, ..config.clone() }, folded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sizes, init};

    fn sizes(side: usize) -> Sizes {
        Sizes::from([(IMAGE_SIZE.to_owned(), side)])
    }

    #[test]
    fn named_networks_match_torchvision() {
        // From torchvision.models.resnetNN(): parameters, and multiply-adds of the convolutions and the linear layer at 224 px.
        for (name, parameters, multiply_adds) in [
            ("resnet18", 11_689_512u64, 1_814_073_344u64),
            ("resnet34", 21_797_672, 3_663_761_408),
            ("resnet50", 25_557_032, 4_089_184_256),
        ] {
            let summary = ResNetConfig::named(name, 1000).unwrap().cost(&sizes(224)).unwrap();
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
        assert!(valid.cost(&sizes(31)).is_err() && valid.cost(&sizes(1025)).is_err());
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
