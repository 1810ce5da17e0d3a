//! AdamW.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rule::{ParameterSlices, ParameterTensors, Update, UpdateRule};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Constant that is added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled decay of the matrices and kernels of layers; biases, norms, embeddings and gates have none.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0 }
    }
}

impl AdamW {
    /// The name in the settings of runs.
    pub(super) const NAME: &str = "adamw";

    /// The bias corrections of the moments.
    fn corrections(&self, update: &Update) -> [f64; 2] {
        let number = update.number.min(1 << 30) as i32;
        self.betas.map(|beta| 1.0 - beta.powi(number))
    }

    /// The share of the weights that remains after their decay.
    fn remainder(&self, update: &Update) -> f64 {
        1.0 - update.rate * if update.has_weight_decay { self.weight_decay } else { 0.0 }
    }
}

impl UpdateRule for AdamW {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn moments(&self) -> usize {
        2
    }

    fn update(&self, parameter: ParameterSlices, update: &Update) {
        let ParameterSlices { values: w, moments: [m, v], gradient, .. } = parameter;
        let corrections = self.corrections(update);
        let [b1, b2] = self.betas.map(|b| b as f32);
        let (scale, eps) = (update.gradient_scale as f32, self.eps as f32);
        let step = (update.rate / corrections[0]) as f32;
        let root = (1.0 / corrections[1].sqrt()) as f32;
        let keep = self.remainder(update) as f32;
        for i in 0..gradient.len() {
            let g = gradient[i] * scale;
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            w[i] = keep * w[i] - step * m[i] / (v[i].sqrt() * root + eps);
        }
    }

    fn update_tensors(
        &self,
        parameter: ParameterTensors,
        update: &Update,
    ) -> candle_core::Result<ParameterTensors> {
        let ParameterTensors { values, moments, gradient } = parameter;
        let corrections = self.corrections(update);
        let scaled = (&gradient * update.gradient_scale)?;
        let [b1, b2] = self.betas;
        let m = ((&moments[0] * b1)? + (&scaled * (1.0 - b1))?)?;
        let v = ((&moments[1] * b2)? + (scaled.sqr()? * (1.0 - b2))?)?;
        let root = ((&v / corrections[1])?.sqrt()? + self.eps)?;
        let change = ((&m / root)? * (update.rate / corrections[0]))?;
        let values = ((values * self.remainder(update))? - change)?;
        Ok(ParameterTensors { values, moments: vec![m, v], gradient })
    }
}
