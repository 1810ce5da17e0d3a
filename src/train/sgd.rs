//! Stochastic gradient descent with momentum.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rule::{ParameterSlices, ParameterTensors, Update, UpdateRule};

/// Stochastic gradient descent with momentum, as in PyTorch's `torch.optim.SGD` with a dampening of 0.
///
/// With weight decay λ, momentum μ and learning rate γ, an update computes
///
/// ```text
/// g ← g + λw        b ← μb + g        w ← w − γb,   or w − γ(g + μb) with Nesterov's momentum
/// ```
///
/// The learning rate is outside the buffer b, so a change of the rate takes effect at once. The decay λ is an L2 penalty, added after
/// clipping, and not AdamW's decoupled decay. Source: <https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html>; Nesterov's
/// momentum in this form: Sutskever et al., ICML 2013.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// Share of the buffer that remains in an update; 0 needs no buffer.
    pub momentum: f64,
    /// True for Nesterov's momentum; without momentum it changes nothing.
    pub nesterov: bool,
    /// L2 penalty of the matrices and kernels of layers; biases, norms, embeddings and gates have none.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

impl Sgd {
    fn decay(&self, update: &Update) -> f64 {
        if update.has_weight_decay { self.weight_decay } else { 0.0 }
    }
}

impl UpdateRule for Sgd {
    fn name(&self) -> &str {
        "sgd"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn moments(&self) -> usize {
        usize::from(self.momentum != 0.0)
    }

    fn update(&self, parameter: ParameterSlices, update: &Update) {
        let ParameterSlices { values, moments: [buffer, _], gradient, .. } = parameter;
        let [rate, scale, decay, momentum] =
            [update.rate, update.gradient_scale, self.decay(update), self.momentum].map(|x| x as f32);
        if buffer.is_empty() {
            for (w, g) in values.iter_mut().zip(gradient) {
                *w -= rate * (scale * g + decay * *w);
            }
            return;
        }
        for ((w, b), g) in values.iter_mut().zip(buffer).zip(gradient) {
            let g = scale * g + decay * *w;
            *b = momentum * *b + g;
            *w -= rate * if self.nesterov { g + momentum * *b } else { *b };
        }
    }

    fn update_tensors(
        &self,
        parameter: ParameterTensors,
        update: &Update,
    ) -> candle_core::Result<ParameterTensors> {
        let ParameterTensors { values, mut moments, gradient } = parameter;
        let g = ((&gradient * update.gradient_scale)? + (&values * self.decay(update))?)?;
        let mut direction = g.clone();
        if let Some(buffer) = moments.first_mut() {
            *buffer = ((&*buffer * self.momentum)? + &g)?;
            direction = if self.nesterov { (g + (&*buffer * self.momentum)?)? } else { buffer.clone() };
        }
        Ok(ParameterTensors { values: (values - (direction * update.rate)?)?, moments, gradient })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the updates of one value with the algorithm in PyTorch's documentation, in f64 and with its names.
    fn pytorch(settings: &Sgd, mut theta: f64, gradients: &[f64], lr: f64) -> Vec<f64> {
        let Sgd { momentum: mu, nesterov, weight_decay: lambda } = *settings;
        let mut b: Option<f64> = None;
        let mut step = |gradient: &f64| {
            let mut g = *gradient;
            if lambda != 0.0 {
                g += lambda * theta;
            }
            if mu != 0.0 {
                let next = b.map_or(g, |b| mu * b + g);
                b = Some(next);
                g = if nesterov { g + mu * next } else { next };
            }
            theta -= lr * g;
            theta
        };
        gradients.iter().map(&mut step).collect()
    }

    #[test]
    fn updates_follow_the_formula_of_pytorch() {
        const GRADIENTS: [f64; 5] = [0.5, -1.25, 2.0, 0.0, 3.5];
        for (momentum, nesterov, weight_decay) in [
            (0.0, false, 0.0),
            (0.0, false, 0.1),
            (0.9, false, 0.0),
            (0.9, true, 0.0),
            (0.8, false, 0.1),
            (0.8, true, 0.1),
        ] {
            let sgd = Sgd { momentum, nesterov, weight_decay };
            let expected = pytorch(&sgd, 2.0, &GRADIENTS, 0.1);
            let (mut value, mut buffer) = ([2.0f32], vec![0.0f32; sgd.moments()]);
            for (i, (gradient, expected)) in GRADIENTS.iter().zip(expected).enumerate() {
                let parameter = ParameterSlices {
                    dims: &[],
                    values: &mut value,
                    moments: [&mut buffer, &mut []],
                    // Scaled by 4, as by a loss scale.
                    gradient: &[4.0 * *gradient as f32],
                };
                let number = i as u64 + 1;
                let update = Update { rate: 0.1, number, gradient_scale: 0.25, has_weight_decay: true };
                sgd.update(parameter, &update);
                let error = (f64::from(value[0]) - expected).abs();
                assert!(error < 1e-6, "{sgd:?}: step {i}: expected {expected}, found {}", value[0]);
            }
        }
    }

    #[test]
    fn three_steps_computed_by_hand() {
        // lr 0.1, momentum 0.5, decay 0.1, gradients 1, 1, 1 from w = 1:
        //   g 1.1      b 1.1        w 1 − 0.11 = 0.89              nesterov: w 1 − 0.1·(1.1 + 0.55) = 0.835
        //   g 1.089    b 1.639      w 0.89 − 0.1639 = 0.7261       g 1.0835   b 1.6335    w 0.835 − 0.1·1.90025 = 0.644975
        //   g 1.07261  b 1.89211    w 0.7261 − 0.189211 = 0.536889 g 1.0644975 b 1.8812475 w 0.644975 − 0.1·2.00512125 = 0.444462875
        for (nesterov, expected) in
            [(false, [0.89, 0.7261, 0.536889]), (true, [0.835, 0.644975, 0.444462875])]
        {
            let sgd = Sgd { momentum: 0.5, nesterov, weight_decay: 0.1 };
            let (mut value, mut buffer) = ([1.0f32], [0.0f32]);
            for expected in expected {
                let parameter = ParameterSlices {
                    dims: &[],
                    values: &mut value,
                    moments: [&mut buffer, &mut []],
                    gradient: &[1.0],
                };
                let update = Update { rate: 0.1, number: 1, gradient_scale: 1.0, has_weight_decay: true };
                sgd.update(parameter, &update);
                assert!(
                    (f64::from(value[0]) - expected).abs() < 1e-6,
                    "expected {expected}, found {}",
                    value[0]
                );
            }
        }
    }

    #[test]
    fn parameters_without_weight_decay_have_none() {
        let sgd = Sgd { momentum: 0.0, weight_decay: 0.5, ..Sgd::default() };
        let mut value = [2.0f32];
        let parameter =
            ParameterSlices { dims: &[], values: &mut value, moments: [&mut [], &mut []], gradient: &[1.0] };
        sgd.update(parameter, &Update { rate: 0.5, number: 1, gradient_scale: 1.0, has_weight_decay: false });
        assert_eq!(value, [1.5]);
    }
}
