//! The losses that training minimizes.

use candle_core::{D, Tensor as CandleTensor};

use super::Var;
use crate::{Error, Result, candle::precision::wide};

impl Var {
    /// Computes the weighted mean squared error: the mean over all values of `weight·(self − target)²`, as a scalar.
    ///
    /// `target` has this value's shape; `weight` is `[batch]`, one number for each item.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit.
    pub fn weighted_mse(&self, target: &CandleTensor, weight: &CandleTensor) -> Result<Var> {
        if target.dims() != self.value.dims() || weight.dims() != [target.dims()[0]] {
            let expected = format!("a target {:?} and a weight for each item", self.value.dims());
            return Err(Error::shape("weighted_mse", expected, (target.dims(), weight.dims())));
        }
        let n = target.elem_count() as f64;
        let column: Vec<usize> =
            std::iter::once(weight.dims()[0]).chain(target.dims()[1..].iter().map(|_| 1)).collect();
        let difference = (wide(&self.value)? - target)?;
        let weighted = difference.broadcast_mul(&weight.reshape(column)?)?;
        let loss = ((&weighted * &difference)?.sum_all()? / n)?;
        let slot = self.slot;
        Ok(self.tape.record(loss, slot.is_some(), move |grad, slots| {
            slots.add(slot, (weighted.broadcast_mul(&grad)? * (2.0 / n))?)
        }))
    }

    /// Computes the cross entropy of the logits `[batch, classes]` with the probabilities `target` of the same shape (one-hot,
    /// smoothed or mixed): the mean over the batch of `−Σ target·log softmax(self)`, as a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit.
    pub fn cross_entropy(&self, target: &CandleTensor) -> Result<Var> {
        let dims = self.value.dims();
        if dims.len() != 2 || target.dims() != dims {
            let expected = "logits and probabilities [batch, classes]";
            return Err(Error::shape("cross_entropy", expected, (dims, target.dims())));
        }
        let batch = dims[0] as f64;
        // The maximum is subtracted so that no exponential overflows.
        let logits = wide(&self.value)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let sum = logits.exp()?.sum_keepdim(D::Minus1)?;
        let log_probabilities = logits.broadcast_sub(&sum.log()?)?;
        let loss = ((target * &log_probabilities)?.sum_all()? * (-1.0 / batch))?;
        let (target, slot) = (target.clone(), self.slot);
        Ok(self.tape.record(loss, slot.is_some(), move |grad, slots| {
            let weight = target.sum_keepdim(D::Minus1)?;
            let slope = (log_probabilities.exp()?.broadcast_mul(&weight)? - target)?;
            slots.add(slot, (slope.broadcast_mul(&grad)? * (1.0 / batch))?)
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Tensor, tape::Tape};

    const LOGITS: [f64; 6] = [0.3, -1.2, 2.0, 700.0, 0.1, 699.0];
    const TARGET: [f64; 6] = [0.0, 1.0, 0.0, 0.2, 0.1, 0.7];

    fn tensor(values: &[f64], dims: &[usize]) -> CandleTensor {
        CandleTensor::from_slice(values, dims, &Device::Cpu).unwrap()
    }

    /// Returns half of the loss, and its gradient.
    fn half_cross_entropy(logits: &[f64]) -> (f64, Vec<f64>) {
        let logits = Tape::new().leaf("logits", tensor(logits, &[2, 3]));
        let loss = logits.cross_entropy(&tensor(&TARGET, &[2, 3])).unwrap().affine(0.5, 0.0).unwrap();
        let value = loss.value().to_scalar().unwrap();
        let gradients = loss.backward(1.0).unwrap();
        (value, gradients["logits"].flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn cross_entropy_matches_its_definition() {
        let first = 1.2 + (0.3f64.exp() + (-1.2f64).exp() + 2f64.exp()).ln();
        // The middle exponential of the second item underflows to zero.
        let all = 700.0 + (1.0 + (-1f64).exp()).ln();
        let second = 0.2 * (all - 700.0) + 0.1 * (all - 0.1) + 0.7 * (all - 699.0);
        let found = half_cross_entropy(&LOGITS).0;
        assert!((found - 0.25 * (first + second)).abs() < 1e-12, "{found}");
    }

    #[test]
    fn cross_entropy_gradient_matches_finite_differences() {
        let gradient = half_cross_entropy(&LOGITS).1;
        for (i, gradient) in gradient.into_iter().enumerate() {
            let at = |step: f64| {
                let mut logits = LOGITS;
                logits[i] += step;
                half_cross_entropy(&logits).0
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient - slope).abs() < 1e-7, "logit {i}: gradient {gradient}, slope {slope}");
        }
    }

    #[test]
    fn cross_entropy_rejects_other_shapes() {
        let logits = Tape::new().leaf("logits", tensor(&LOGITS, &[2, 3]));
        assert!(logits.cross_entropy(&tensor(&TARGET, &[3, 2])).is_err());
        assert!(logits.reshape(&[3, 1]).unwrap().cross_entropy(&tensor(&TARGET, &[2, 3])).is_err());
    }
}
