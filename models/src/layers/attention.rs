use super::{Linear, LinearOptions};
use crate::{Error, Init, Result, Scope, Tensor};

/// Options of an [`Attention`] layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// True if the projection to queries, keys and values adds a bias. The output projection always does.
    pub qkv_bias: bool,
    /// If given, queries and keys of each head pass an RMS normalization with this `eps` (QK-norm, arXiv 2302.05442).
    pub qk_norm: Option<f64>,
}

impl Default for AttentionOptions {
    /// A bias, no QK-norm.
    fn default() -> Self {
        Self { qkv_bias: true, qk_norm: None }
    }
}

/// Multi-head self-attention: `qkv` `[3·width, width]` projects to queries, keys and values, `proj` `[width, width]` projects the heads'
/// results back. QK-norm has the parameters `q_norm.weight` and `k_norm.weight` `[width / heads]`.
#[derive(Clone)]
pub struct Attention<T: Tensor> {
    qkv: Linear<T>,
    qk_norm: Option<(T::Param, T::Param, f64)>,
    proj: Linear<T>,
    heads: usize,
}

impl<T: Tensor> Attention<T> {
    /// Builds the layer.
    ///
    /// # Errors
    /// [`Error::Config`] if `width` is not a multiple of `heads`, and the errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, width: usize, heads: usize, options: AttentionOptions) -> Result<Self> {
        if heads == 0 || !width.is_multiple_of(heads) {
            let message = format!("expected a divisor of width {width}, found {heads}");
            return Err(Error::Config { field: "heads", message });
        }
        let head = width / heads;
        let linear = LinearOptions { bias: options.qkv_bias, ..LinearOptions::default() };
        let qkv = Linear::with_options(scope.sub("qkv"), width, 3 * width, linear)?;
        let qk_norm = match options.qk_norm {
            Some(eps) => {
                let q = scope.param("q_norm.weight", [head], Init::Ones)?;
                Some((q, scope.param("k_norm.weight", [head], Init::Ones)?, eps))
            }
            None => None,
        };
        Ok(Self { qkv, qk_norm, proj: Linear::new(scope.sub("proj"), width, width)?, heads })
    }

    /// Computes `[tokens, width]` → `[tokens, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn forward(&self, x: &T) -> Result<T> {
        let &[tokens, width] = x.dims() else {
            return Err(Error::shape("attention", "[tokens, width]", x.dims()));
        };
        let parts = self.qkv.forward(x)?.chunk(3, 1)?;
        let heads = [tokens, self.heads, width / self.heads];
        let [mut q, mut k, v] = [0, 1, 2].map(|i: usize| parts[i].reshape(&heads));
        if let Some((q_weight, k_weight, eps)) = &self.qk_norm {
            q = q?.rms_norm(Some(q_weight), *eps);
            k = k?.rms_norm(Some(k_weight), *eps);
        }
        self.proj.forward(&q?.attention(&k?, &v?)?.reshape(&[tokens, width])?)
    }
}
