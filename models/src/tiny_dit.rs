//! TinyDiT: a small class-conditional diffusion transformer on pixels.
//!
//! The modern layout follows DiT (Peebles and Xie, arXiv 2212.09748) with adaLN-zero. It has RMSNorm (arXiv 1910.07467), normalized
//! queries and keys (arXiv 2302.05442), SwiGLU (arXiv 2002.05202), and fixed 2-D sine-cosine positions. A null class of its own
//! serves classifier-free guidance (arXiv 2207.12598). It predicts the clean image (JiT, arXiv 2511.13720).
//!
//! The legacy layout is that of the Python project tiny-cats-model. It reproduces the project's mistakes, because its files depend on
//! them: no positions, no null class, t unscaled, and an output whose patches are not moved back to their positions. It predicts a
//! velocity.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Init, Input, Network, PredictionType, Result, Role, Scope, Tensor, Weights,
    layers::{
        Attention, AttentionOptions, LayerNorm, Linear, LinearOptions, Mlp, Norm, SwiGlu, sincos_positions_2d,
    },
};

/// Color channels of every image.
pub const CHANNELS: usize = 3;
/// Width of the sinusoidal time embedding.
const SINUSOIDS: usize = 256;
const EPS: f64 = 1e-6;
/// The default of PyTorch's LayerNorm, which tiny-cats-model uses.
const LEGACY_EPS: f64 = 1e-5;

/// The layout of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The layout for new models.
    #[default]
    Modern,
    /// The layout of the Python project tiny-cats-model.
    Legacy,
}

/// The sizes of a TinyDiT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyDitConfig {
    /// Height and width of the image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels; one patch is one token.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Number of attention heads, a divisor of the width.
    pub heads: usize,
    /// Hidden width of the feed-forward layers.
    pub mlp_width: usize,
    /// Number of classes, without the null class.
    pub classes: usize,
    /// Layout of the network.
    pub layout: Layout,
}

/// The named sizes: name, width, depth and heads.
pub const SIZES: [(&str, usize, usize, usize); 4] =
    [("nano", 128, 6, 4), ("tiny", 192, 8, 6), ("small", 256, 8, 8), ("base", 384, 12, 6)];

impl TinyDitConfig {
    /// Returns the modern network of one of the [`SIZES`]. A patch has an eighth of the image's side, which makes 64 tokens at
    /// every size.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is unknown, or the image size is not a multiple of 8.
    pub fn named(name: &str, image_size: usize, classes: usize) -> Result<Self> {
        let names: Vec<&str> = SIZES.iter().map(|s| s.0).collect();
        let &(_, width, depth, heads) = SIZES.iter().find(|s| s.0 == name).ok_or_else(|| Error::Config {
            field: "size",
            message: format!("expected one of {}, found {name}", names.join(", ")),
        })?;
        if !image_size.is_multiple_of(8) {
            return Err(Error::Config {
                field: "image_size",
                message: format!("expected a multiple of 8, found {image_size}"),
            });
        }
        // SwiGLU has three matrices where an MLP has two: 8/3 of the width holds as many parameters as 4, rounded up to 64.
        let mlp_width = (width * 8).div_ceil(3).next_multiple_of(64);
        let config = Self {
            image_size,
            patch_size: image_size / 8,
            width,
            depth,
            heads,
            mlp_width,
            classes,
            layout: Layout::Modern,
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the network of the Python project tiny-cats-model for images of 128 px.
    pub fn legacy() -> Self {
        Self {
            image_size: 128,
            patch_size: 16,
            width: 384,
            depth: 12,
            heads: 6,
            mlp_width: 1536,
            classes: 13,
            layout: Layout::Legacy,
        }
    }

    /// Returns the number of patches.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Returns the sizes of an image, `[channels, height, width]`.
    pub fn image_dims(&self) -> [usize; 3] {
        [CHANNELS, self.image_size, self.image_size]
    }

    /// Returns the quantity that the network predicts.
    pub fn prediction(&self) -> PredictionType {
        match self.layout {
            Layout::Modern => PredictionType::X,
            Layout::Legacy => PredictionType::Velocity,
        }
    }

    /// Returns the label of the null class, if the network has one.
    pub fn null_label(&self) -> Option<usize> {
        (self.layout == Layout::Modern).then_some(self.classes)
    }
}

impl Network for TinyDitConfig {
    const KIND: &'static str = "tiny-dit";
    type Built<T: Tensor> = TinyDit<T>;

    fn validate(&self) -> Result<()> {
        let fail = |field, message: String| Err(Error::Config { field, message });
        let bounds = [
            ("image_size", self.image_size, 1024),
            ("patch_size", self.patch_size, 256),
            ("width", self.width, 4096),
            ("depth", self.depth, 128),
            ("heads", self.heads, 128),
            ("mlp_width", self.mlp_width, 32768),
            ("classes", self.classes, 65536),
        ];
        for (field, value, max) in bounds {
            if value == 0 || value > max {
                return fail(field, format!("expected 1 to {max}, found {value}"));
            }
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            return fail(
                "patch_size",
                format!("expected a divisor of image_size {}, found {}", self.image_size, self.patch_size),
            );
        }
        if self.tokens() > 4096 {
            return fail("patch_size", format!("expected at most 4096 patches, found {}", self.tokens()));
        }
        if !self.width.is_multiple_of(self.heads) {
            return fail(
                "heads",
                format!("expected a divisor of width {}, found {}", self.width, self.heads),
            );
        }
        if self.layout == Layout::Modern && !self.width.is_multiple_of(4) {
            return fail(
                "width",
                format!("expected a multiple of 4 for 2-D positions, found {}", self.width),
            );
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<Input> {
        let rows = self.classes + usize::from(self.layout == Layout::Modern);
        vec![
            Input::floats("x", self.image_dims()),
            Input::floats("t", [0usize; 0]),
            Input::labels("label", rows),
        ]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["prediction".into()]
    }

    fn role(&self) -> Role {
        Role::Generator {
            classes: self.classes,
            null_label: self.null_label(),
            prediction: self.prediction(),
        }
    }

    fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> Result<TinyDit<T>> {
        TinyDit::new(self, scope)
    }

    fn forward<T: Tensor>(network: &TinyDit<T>, inputs: &[T]) -> Result<Vec<T>> {
        match inputs {
            [x, t, label] => Ok(vec![network.forward(x, t, label)?]),
            _ => Err(Error::shape("TinyDiT", "the inputs x, t and label", inputs.len())),
        }
    }

    fn describe(&self) -> String {
        self.to_string()
    }

    fn details(&self) -> Vec<String> {
        let Self { image_size, patch_size, width, depth, heads, classes, .. } = self;
        let layout = match self.layout {
            Layout::Modern => "modern",
            Layout::Legacy => "legacy",
        };
        vec![
            format!("TinyDiT, {layout} layout, {image_size} px in patches of {patch_size}"),
            format!("width {width}, depth {depth}, {heads} heads, {classes} classes"),
        ]
    }

    fn is_untrained(&self, weights: &Weights) -> bool {
        // The Python project initializes other parameters in its own way.
        let is_zero = |name| weights.get(name).is_some_and(|array| array.data().iter().all(|&v| v == 0.0));
        is_zero("final_layer.linear.weight") && is_zero("final_layer.linear.bias")
    }
}

impl std::fmt::Display for TinyDitConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { image_size, patch_size, width, depth, heads, classes, .. } = self;
        write!(f, "TinyDiT of {image_size} px in patches of {patch_size} px, ")?;
        write!(f, "width {width}, depth {depth}, {heads} heads, {classes} classes")
    }
}

/// Builds a normalization without a residual: RMSNorm without parameters, or the LayerNorm of the legacy layout.
fn norm<T: Tensor>(scope: Scope<T>, config: &TinyDitConfig) -> Result<Norm<T>> {
    Ok(match config.layout {
        Layout::Modern => Norm::PlainRms(EPS),
        Layout::Legacy => Norm::Layer(LayerNorm::new(scope, config.width, LEGACY_EPS)?),
    })
}

/// Builds the layer that computes `output` gates, scales and shifts from the condition. Its weights start as zeros, as in adaLN-zero, and
/// have no weight decay.
fn modulation<T: Tensor>(scope: Scope<T>, width: usize, output: usize) -> Result<Linear<T>> {
    let options = LinearOptions { init: Init::Zeros, weight_decay: false, ..LinearOptions::default() };
    Linear::with_options(scope, width, output, options)
}

fn linear<T: Tensor>(scope: Scope<T>, input: usize, output: usize, init: Init) -> Result<Linear<T>> {
    Linear::with_options(scope, input, output, LinearOptions { init, ..LinearOptions::default() })
}

enum FeedForward<T: Tensor> {
    SwiGlu(SwiGlu<T>),
    Gelu(Mlp<T>),
}

impl<T: Tensor> FeedForward<T> {
    fn new(scope: Scope<T>, config: &TinyDitConfig) -> Result<Self> {
        let (width, hidden) = (config.width, config.mlp_width);
        Ok(match config.layout {
            Layout::Modern => Self::SwiGlu(SwiGlu::new(scope, width, hidden)?),
            Layout::Legacy => Self::Gelu(Mlp::new(scope, width, hidden)?),
        })
    }

    fn forward(&self, x: &T) -> Result<T> {
        match self {
            Self::SwiGlu(layer) => layer.forward(x),
            Self::Gelu(layer) => layer.forward(x),
        }
    }
}

struct Block<T: Tensor> {
    norm1: Norm<T>,
    attention: Attention<T>,
    norm2: Norm<T>,
    mlp: FeedForward<T>,
    modulation: Linear<T>,
    path: String,
}

impl<T: Tensor> Block<T> {
    fn new(mut scope: Scope<T>, config: &TinyDitConfig) -> Result<Self> {
        let qk_norm = (config.layout == Layout::Modern).then_some(EPS);
        let options = AttentionOptions { qkv_bias: false, qk_norm };
        Ok(Self {
            norm1: norm(scope.sub("norm1"), config)?,
            attention: Attention::new(scope.sub("attn"), config.width, config.heads, options)?,
            norm2: norm(scope.sub("norm2"), config)?,
            mlp: FeedForward::new(scope.sub("mlp"), config)?,
            modulation: modulation(scope.sub("adaLN_modulation.1"), config.width, 6 * config.width)?,
            path: scope.path().to_owned(),
        })
    }

    /// Applies the block to `x` `[tokens, width]`; `condition` `[width]` has already passed through SiLU.
    fn forward(&self, x: &T, condition: &T) -> Result<T> {
        let m = self.modulation.forward(condition)?.chunk(6, 0)?;
        let x = x.scoped(&format!("{}.attn", self.path));
        let x = x.gated_residual(
            &self.attention.forward(&self.norm1.forward(&x)?.scale_shift(&m[1], &m[0])?)?,
            &m[2],
        )?;
        let x = x.scoped(&format!("{}.mlp", self.path));
        x.gated_residual(&self.mlp.forward(&self.norm2.forward(&x)?.scale_shift(&m[4], &m[3])?)?, &m[5])
    }
}

/// The network, in one backend.
pub struct TinyDit<T: Tensor> {
    config: TinyDitConfig,
    patch_weight: T::Param,
    patch_bias: T::Param,
    positions: Option<T::Param>,
    classes: T::Param,
    time: [Linear<T>; 2],
    blocks: Vec<Arc<Block<T>>>,
    final_norm: Norm<T>,
    final_modulation: Linear<T>,
    output: Linear<T>,
}

impl<T: Tensor> TinyDit<T> {
    /// Builds the network from the parameters of `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid, and the errors of the parameters' source.
    pub fn new(config: &TinyDitConfig, scope: &mut Scope<T>) -> Result<Self> {
        config.validate()?;
        let (width, patch) = (config.width, config.patch_size);
        let values = CHANNELS * patch * patch;
        let modern = config.layout == Layout::Modern;
        let patch_dims = if modern { vec![width, values] } else { vec![width, CHANNELS, patch, patch] };
        let mut embed = scope.sub("patch_embed.proj");
        let (patch_weight, patch_bias) =
            (embed.matrix("weight", patch_dims, Init::Xavier)?, embed.param("bias", [width], Init::Zeros)?);
        let side = config.image_size / patch;
        let positions =
            modern.then(|| scope.constant("positions", sincos_positions_2d(side, width)?)).transpose()?;
        let rows = config.classes + usize::from(modern);
        let classes =
            scope.sub("breed_embedder.embedding").param("weight", [rows, width], Init::Normal(0.02))?;
        let mut time = scope.sub("t_embedder.mlp");
        let time = [
            linear(time.sub(0), SINUSOIDS, width, Init::Normal(0.02))?,
            linear(time.sub(2), width, width, Init::Normal(0.02))?,
        ];
        let blocks = (0..config.depth)
            .map(|i| Ok(Arc::new(Block::new(scope.sub("blocks").sub(i), config)?)))
            .collect::<Result<_>>()?;
        let mut last = scope.sub("final_layer");
        Ok(Self {
            config: config.clone(),
            patch_weight,
            patch_bias,
            positions,
            classes,
            time,
            blocks,
            final_norm: norm(last.sub("norm_final"), config)?,
            final_modulation: modulation(last.sub("adaLN_modulation.1"), width, 2 * width)?,
            output: linear(last.sub("linear"), width, values, Init::Zeros)?,
        })
    }

    /// Embeds the patches of an image: `[channels, height, width]` → `[tokens, width]`.
    fn patchify(&self, x: &T) -> Result<T> {
        let x = x.scoped("patch_embed.proj");
        let (size, patch, width) = (self.config.image_size, self.config.patch_size, self.config.width);
        let (side, tokens) = (size / patch, self.config.tokens());
        match &self.positions {
            Some(positions) => x
                .reshape(&[CHANNELS, side, patch, side, patch])?
                .permute(&[1, 3, 0, 2, 4])?
                .reshape(&[tokens, CHANNELS * patch * patch])?
                .linear(&self.patch_weight, Some(&self.patch_bias))?
                .add_param(positions),
            None => x
                .conv2d(&self.patch_weight, Some(&self.patch_bias), patch, 0)?
                .reshape(&[width, tokens])?
                .permute(&[1, 0]),
        }
    }

    /// Assembles an image from its patches: `[tokens, values of a patch]` → `[channels, height, width]`.
    fn unpatchify(&self, x: &T) -> Result<T> {
        let x = x.scoped("final_layer.unpatchify");
        let (size, patch) = (self.config.image_size, self.config.patch_size);
        let side = size / patch;
        match self.config.layout {
            Layout::Modern => x
                .reshape(&[side, side, CHANNELS, patch, patch])?
                .permute(&[2, 0, 3, 1, 4])?
                .reshape(&self.config.image_dims()),
            Layout::Legacy => x.permute(&[1, 0])?.reshape(&self.config.image_dims()),
        }
    }

    /// Computes one forward pass. `x` is `[3, size, size]`, with clean images in [−1, 1]. `t` is `[]`, from 0 (noise) to 1 (image).
    /// `label` is `[]`, an integer. The result is `[3, size, size]`, the quantity that [`TinyDitConfig::prediction`] names.
    ///
    /// # Errors
    /// [`Error::Shape`] if the inputs have other sizes.
    pub fn forward(&self, x: &T, t: &T, label: &T) -> Result<T> {
        if x.dims() != self.config.image_dims() {
            return Err(Error::shape("TinyDiT", format!("x {:?}", self.config.image_dims()), x.dims()));
        }
        let scale = if self.config.layout == Layout::Modern { 1000.0 } else { 1.0 };
        let t = t.scoped("t_embedder").sinusoids(SINUSOIDS, 10_000.0, scale)?;
        let t = self.time[1].forward(&self.time[0].forward(&t)?.silu()?)?;
        let condition =
            t.add(&label.scoped("breed_embedder").embedding(&self.classes)?)?.scoped("condition").silu()?;
        let mut x = self.patchify(x)?;
        for block in &self.blocks {
            let block = block.clone();
            x = T::checkpoint([&x, &condition], move |[x, condition]| block.forward(x, condition))?;
        }
        let m = self.final_modulation.forward(&condition)?.chunk(2, 0)?;
        let x = self.final_norm.forward(&x.scoped("final_layer"))?.scale_shift(&m[1], &m[0])?;
        self.unpatchify(&self.output.forward(&x)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sizes;

    #[test]
    fn the_legacy_layout_matches_the_python_project() {
        let summary = TinyDitConfig::legacy().cost(&Sizes::new()).unwrap();
        assert_eq!(summary.params.len(), 169);
        assert_eq!(summary.parameters(), 33_063_168);
    }

    #[test]
    fn named_sizes_are_valid_at_every_image_size() {
        for (name, ..) in SIZES {
            for size in [32, 64, 128] {
                let config = TinyDitConfig::named(name, size, 13).unwrap();
                assert_eq!(config.tokens(), 64);
                config.cost(&Sizes::new()).unwrap();
            }
        }
    }

    #[test]
    fn invalid_configurations_are_rejected_with_the_field() {
        let valid = TinyDitConfig::named("tiny", 32, 13).unwrap();
        let field = |c: &TinyDitConfig| match c.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&TinyDitConfig { patch_size: 5, ..valid.clone() }), "patch_size");
        assert_eq!(field(&TinyDitConfig { heads: 7, ..valid.clone() }), "heads");
        assert_eq!(field(&TinyDitConfig { depth: 0, ..valid.clone() }), "depth");
        assert_eq!(field(&TinyDitConfig { width: usize::MAX, ..valid.clone() }), "width");
        assert_eq!(field(&TinyDitConfig { image_size: 1024, patch_size: 1, ..valid.clone() }), "patch_size");
    }

    #[test]
    fn weight_decay_acts_on_matrices_but_not_on_embeddings_and_modulation() {
        const MODERN: [&str; 8] = [
            "patch_embed.proj.weight",
            "t_embedder.mlp.0.weight",
            "t_embedder.mlp.2.weight",
            "final_layer.linear.weight",
            "attn.qkv.weight",
            "attn.proj.weight",
            "mlp.w12.weight",
            "mlp.w3.weight",
        ];
        const LEGACY: [&str; 8] = {
            let mut names = MODERN;
            names[6] = "mlp.fc1.weight";
            names[7] = "mlp.fc2.weight";
            names
        };
        let modern = TinyDitConfig::named("nano", 32, 13).unwrap();
        for (config, with_decay) in [(modern, MODERN), (TinyDitConfig::legacy(), LEGACY)] {
            let params = config.cost(&Sizes::new()).unwrap().params;
            for spec in &params {
                let name = match spec.name.strip_prefix("blocks.") {
                    Some(inside) => inside.split_once('.').unwrap().1,
                    None => &spec.name,
                };
                assert_eq!(spec.has_weight_decay, with_decay.contains(&name), "{}", spec.name);
            }
            assert_eq!(params.iter().filter(|p| p.has_weight_decay).count(), 4 + 4 * config.depth);
        }
    }
}
