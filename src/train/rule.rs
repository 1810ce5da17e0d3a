//! The trait of optimizers.

use std::fmt::Debug;

use candle_core::Tensor;
use serde_json::Value;

/// Maximum number of tensors that a rule keeps for each parameter.
pub const MAX_MOMENTS: usize = 2;

/// The rule by which an optimizer updates a parameter with its gradient.
///
/// [`Optimizer`](super::Optimizer) does what all optimizers share: the norm of the gradients and clipping, the loss scale, skipped steps,
/// moving averages of the weights, running statistics, and training states. A rule only has the arithmetic.
///
/// Results must depend on the arguments only, so that a resumed run ends in the same bytes.
///
/// # Examples
/// Descent by the sign of the gradient, with momentum (signSGD, Bernstein et al., arXiv 1802.04434, Algorithm 2):
/// ```
/// use serde_json::{Value, json};
/// use tiny_cats::train::{OptimizerOptions, ParameterSlices, Update, UpdateRule};
///
/// #[derive(Debug)]
/// struct SignSgd {
///     momentum: f64,
/// }
///
/// impl UpdateRule for SignSgd {
///     fn name(&self) -> &str {
///         "signsgd"
///     }
///
///     fn settings(&self) -> Value {
///         json!({"momentum": self.momentum})
///     }
///
///     fn moments(&self) -> usize {
///         1
///     }
///
///     fn update(&self, parameter: ParameterSlices, update: &Update) {
///         let ParameterSlices { values, moments: [mean, _], gradient, .. } = parameter;
///         let [scale, momentum, rate] =
///             [update.gradient_scale, self.momentum, update.rate].map(|x| x as f32);
///         for ((w, m), g) in values.iter_mut().zip(mean).zip(gradient) {
///             *m = momentum * *m + (1.0 - momentum) * scale * g;
///             *w -= rate * m.signum();
///         }
///     }
/// }
///
/// let options = OptimizerOptions::new(SignSgd { momentum: 0.9 });
/// assert_eq!(options.settings()?["name"], "signsgd");
/// # Ok::<(), tiny_cats::train::Error>(())
/// ```
pub trait UpdateRule: Debug + Send + Sync {
    /// The name in the settings of a run; keep it unique, and never change it.
    fn name(&self) -> &str;

    /// The settings, an object. A run is resumed only with the same name and settings.
    ///
    /// The keys `name`, `clip` and `ema` are reserved.
    fn settings(&self) -> Value;

    /// The number of tensors, at most [`MAX_MOMENTS`], that the rule keeps for each parameter. They have the shape of the parameter, start
    /// as zeros, and are stored in training states.
    fn moments(&self) -> usize;

    /// True if the update of each value depends on this value, its gradient and its moments only.
    ///
    /// Parameters are then updated in pieces by several threads on a CPU, and concatenated on a GPU. The other rules, for example one
    /// that orthogonalizes matrices, get whole parameters with their shapes.
    fn is_elementwise(&self) -> bool {
        true
    }

    /// Updates `parameter` in memory.
    fn update(&self, parameter: ParameterSlices, update: &Update);

    /// Returns the new values and moments of `parameter`, on a GPU; the gradient of the result is ignored.
    ///
    /// The default copies everything to main memory, calls [`update`](Self::update), and copies the result back. A rule that trains on GPUs
    /// should compute the same with tensor operations, which is faster.
    ///
    /// # Errors
    /// Returns errors of candle.
    fn update_tensors(
        &self,
        parameter: ParameterTensors,
        update: &Update,
    ) -> candle_core::Result<ParameterTensors> {
        let ParameterTensors { values, moments, gradient } = parameter;
        // Candle copies the whole storage of a view from a GPU.
        let to_host = |tensor: &Tensor| tensor.force_contiguous()?.flatten_all()?.to_vec1::<f32>();
        let (mut host_values, host_gradient) = (to_host(&values)?, to_host(&gradient)?);
        let mut host_moments: [Vec<f32>; MAX_MOMENTS] = Default::default();
        for (host, moment) in host_moments.iter_mut().zip(&moments) {
            *host = to_host(moment)?;
        }
        let slices = ParameterSlices {
            dims: if self.is_elementwise() { &[] } else { values.dims() },
            values: &mut host_values,
            moments: host_moments.each_mut().map(|moment| moment.as_mut_slice()),
            gradient: &host_gradient,
        };
        self.update(slices, update);
        let to_device = |data: Vec<f32>| Tensor::from_vec(data, values.shape(), values.device());
        let moments = host_moments.into_iter().take(moments.len()).map(to_device);
        Ok(ParameterTensors {
            moments: moments.collect::<Result<_, _>>()?,
            values: to_device(host_values)?,
            gradient,
        })
    }
}

/// A parameter in memory; if the rule is [elementwise](UpdateRule::is_elementwise), a piece of one.
#[derive(Debug)]
pub struct ParameterSlices<'a> {
    /// The shape of the parameter; empty for a piece.
    pub dims: &'a [usize],
    /// The values, row-major.
    pub values: &'a mut [f32],
    /// The moments; those that the rule does not have are empty.
    pub moments: [&'a mut [f32]; MAX_MOMENTS],
    /// The gradient, which the rule multiplies by [`Update::gradient_scale`].
    pub gradient: &'a [f32],
}

/// A parameter on a device; if the rule is [elementwise](UpdateRule::is_elementwise), several ones, concatenated.
#[derive(Clone, Debug)]
pub struct ParameterTensors {
    /// The values, f32.
    pub values: Tensor,
    /// The moments of the rule, of the same shape.
    pub moments: Vec<Tensor>,
    /// The gradient, which the rule multiplies by [`Update::gradient_scale`].
    pub gradient: Tensor,
}

/// The constants of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub rate: f64,
    /// Number of this update, from 1; skipped steps do not count.
    pub number: u64,
    /// Factor of the gradient, which clips it and removes the loss scale.
    pub gradient_scale: f64,
    /// True if weight decay applies: to matrices and kernels of layers, not to biases, norms, embeddings and gates.
    pub has_weight_decay: bool,
}
