//! The losses that training minimizes.

use candle_core::{D, Tensor as CandleTensor};

use super::Var;
use crate::{
    Error, Result,
    candle::{
        elementwise::{UnaryFunction, unary, unary_backward},
        precision::wide,
    },
};

/// Options of [`Var::cross_entropy_with_options`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropyOptions<'a> {
    /// Factor of the loss of each class, `[classes]`; by default 1.
    pub class_weights: Option<&'a CandleTensor>,
    /// The part ε of the target, from 0 to 1, that is spread evenly over all classes: `(1 − ε)·target + ε/classes` (Szegedy et al., arXiv
    /// 1512.00567).
    pub label_smoothing: f64,
}

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

    /// Computes [`cross_entropy`](Self::cross_entropy) with class weights and label smoothing, as PyTorch does for class probabilities:
    /// the smoothed target is multiplied by the weights, and the mean is over the batch, not over the weights.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit, or label smoothing is not from 0 to 1.
    pub fn cross_entropy_with_options(
        &self,
        target: &CandleTensor,
        options: CrossEntropyOptions,
    ) -> Result<Var> {
        let CrossEntropyOptions { class_weights, label_smoothing } = options;
        let classes = self.value.dims().last().copied().unwrap_or(1);
        if !(0.0..=1.0).contains(&label_smoothing) {
            return Err(Error::shape("cross_entropy", "label smoothing from 0 to 1", label_smoothing));
        }
        let mut target = target.clone();
        if label_smoothing > 0.0 {
            target = target.affine(1.0 - label_smoothing, label_smoothing / classes as f64)?;
        }
        if let Some(weights) = class_weights {
            if weights.dims() != [classes] {
                return Err(Error::shape("cross_entropy", "a weight for each class", weights.dims()));
            }
            target = target.broadcast_mul(weights)?;
        }
        self.cross_entropy(&target)
    }

    /// Computes the binary cross entropy of logits with the probabilities `target` of the same shape: the mean over all values of
    /// `−w·target·ln σ(self) − (1 − target)·ln(1 − σ(self))`, as a scalar. `w` is `positive_weight`, or 1. No exponential overflows.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit.
    pub fn binary_cross_entropy_with_logits(
        &self,
        target: &CandleTensor,
        positive_weight: Option<f64>,
    ) -> Result<Var> {
        let n = self.same_shape("binary_cross_entropy_with_logits", target)?;
        // With l = 1 + (w − 1)·target, the loss of a value is (1 − target)·x + l·softplus(−x), and its slope is (1 − target) − l·σ(−x).
        let negative = wide(&self.value)?.neg()?;
        let weight = target.affine(positive_weight.unwrap_or(1.0) - 1.0, 1.0)?;
        let rest = target.affine(-1.0, 1.0)?;
        let loss = ((&weight * unary(UnaryFunction::Softplus, &negative)?)? - (&rest * &negative)?)?;
        let loss = (loss.sum_all()? / n)?;
        let slot = self.slot;
        Ok(self.tape.record(loss, slot.is_some(), move |grad, slots| {
            let slope = (rest - unary_backward(UnaryFunction::Softplus, &negative, &weight)?)?;
            slots.add(slot, (slope.broadcast_mul(&grad)? / n)?)
        }))
    }

    /// Computes the Huber loss with `target` of the same shape: the mean over all values of `d²/2` where `|d| ≤ delta`, and of
    /// `delta·(|d| − delta/2)` elsewhere, as a scalar. `d` is `self − target`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit, or `delta` is not positive.
    pub fn huber(&self, target: &CandleTensor, delta: f64) -> Result<Var> {
        let n = self.same_shape("huber", target)?;
        if delta.is_nan() || delta <= 0.0 {
            return Err(Error::shape("huber", "a positive delta", delta));
        }
        let difference = (wide(&self.value)? - target)?;
        let slope = unary(UnaryFunction::Clamp { min: -delta, max: delta }, &difference)?;
        // Both cases are slope·(d − slope/2).
        let loss = ((&slope * (difference - (&slope * 0.5)?)?)?.sum_all()? / n)?;
        let slot = self.slot;
        Ok(self.tape.record(loss, slot.is_some(), move |grad, slots| {
            slots.add(slot, (slope.broadcast_mul(&grad)? / n)?)
        }))
    }

    /// Checks that `target` has this value's shape, and returns the number of values.
    fn same_shape(&self, op: &'static str, target: &CandleTensor) -> Result<f64> {
        if target.dims() != self.value.dims() {
            return Err(Error::shape(op, format!("a target {:?}", self.value.dims()), target.dims()));
        }
        Ok(target.elem_count() as f64)
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

    /// Returns half of a loss of `logits` `[2, 3]`, and its gradient.
    fn half_loss(logits: &[f64], loss: &dyn Fn(&Var) -> Result<Var>) -> (f64, Vec<f64>) {
        let logits = Tape::new().leaf("logits", tensor(logits, &[2, 3]));
        let loss = loss(&logits).unwrap().affine(0.5, 0.0).unwrap();
        let value = loss.value().to_scalar().unwrap();
        let gradients = loss.backward(1.0).unwrap();
        (value, gradients["logits"].flatten_all().unwrap().to_vec1().unwrap())
    }

    fn check_gradient(name: &str, values: [f64; 6], loss: &dyn Fn(&Var) -> Result<Var>) {
        for (i, gradient) in half_loss(&values, loss).1.into_iter().enumerate() {
            let at = |step: f64| {
                let mut values = values;
                values[i] += step;
                half_loss(&values, loss).0
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient - slope).abs() < 1e-7, "{name}, value {i}: gradient {gradient}, slope {slope}");
        }
    }

    #[test]
    fn weighted_and_smoothed_cross_entropy_match_their_definition() {
        let (target, weights) = (tensor(&TARGET, &[2, 3]), tensor(&[0.5, 2.0, 3.0], &[3]));
        let logits: [f64; 6] = [0.3, -1.2, 2.0, 0.4, 0.1, -0.7];
        let options = CrossEntropyOptions { class_weights: Some(&weights), label_smoothing: 0.1 };
        let loss = |logits: &Var| logits.cross_entropy_with_options(&target, options);
        // −Σ weight·((1 − ε)·target + ε/3)·ln softmax, over both items, divided by the number of items.
        let mut expected = 0.0;
        for (logits, target) in logits.chunks(3).zip(TARGET.chunks(3)) {
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            for ((x, t), w) in logits.iter().zip(target).zip([0.5, 2.0, 3.0]) {
                expected -= w * (0.9 * t + 0.1 / 3.0) * (x.exp() / sum).ln() / 2.0;
            }
        }
        let found = half_loss(&logits, &loss).0;
        assert!((2.0 * found - expected).abs() < 1e-12, "{found}, {expected}");
        check_gradient("cross entropy", logits, &loss);
        let plain = |logits: &Var| logits.cross_entropy_with_options(&target, CrossEntropyOptions::default());
        assert_eq!(half_loss(&LOGITS, &plain), half_cross_entropy(&LOGITS));
    }

    #[test]
    fn binary_cross_entropy_matches_its_definition() {
        let target = tensor(&TARGET, &[2, 3]);
        let logits = [0.3, -1.2, 2.0, 0.4, 0.1, -0.7];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (weight, positive_weight) in [(1.0, None), (3.0, Some(3.0))] {
            let loss = |logits: &Var| logits.binary_cross_entropy_with_logits(&target, positive_weight);
            let value =
                |(x, t): (&f64, &f64)| -weight * t * sigmoid(*x).ln() - (1.0 - t) * (1.0 - sigmoid(*x)).ln();
            let expected = logits.iter().zip(&TARGET).map(value).sum::<f64>() / 6.0;
            let found = half_loss(&logits, &loss).0;
            assert!((2.0 * found - expected).abs() < 1e-12, "{found}, {expected}");
            check_gradient("binary cross entropy", logits, &loss);
        }
        // Large logits: the loss is |x| where the sign is wrong, and the gradient is ±1/6.
        let loss = |logits: &Var| logits.binary_cross_entropy_with_logits(&target, None);
        let (value, gradient) = half_loss(&[1e4, -1e4, -1e4, -1e4, -1e4, -1e4], &loss);
        assert!((2.0 * value - 1e4 * (1.0 + 1.0 + 0.2 + 0.1 + 0.7) / 6.0).abs() < 1e-9, "{value}");
        assert!((gradient[0] - 0.5 / 6.0).abs() < 1e-12 && (gradient[1] + 0.5 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn huber_matches_its_definition() {
        let target = tensor(&TARGET, &[2, 3]);
        let values = [0.3, -1.2, 2.0, 0.4, 0.1, -3.7];
        let loss = |x: &Var| x.huber(&target, 1.5);
        let value = |(x, t): (&f64, &f64)| match (x - t).abs() {
            d if d <= 1.5 => 0.5 * d * d,
            d => 1.5 * (d - 0.75),
        };
        let expected = values.iter().zip(&TARGET).map(value).sum::<f64>() / 6.0;
        let found = half_loss(&values, &loss).0;
        assert!((2.0 * found - expected).abs() < 1e-12, "{found}, {expected}");
        check_gradient("huber", values, &loss);
    }

    #[test]
    fn losses_reject_invalid_arguments() {
        let logits = Tape::new().leaf("logits", tensor(&LOGITS, &[2, 3]));
        let (target, other) = (tensor(&TARGET, &[2, 3]), tensor(&TARGET, &[3, 2]));
        assert!(logits.binary_cross_entropy_with_logits(&other, None).is_err());
        assert!(logits.huber(&other, 1.0).is_err() && logits.huber(&target, 0.0).is_err());
        let options = CrossEntropyOptions { class_weights: Some(&other), label_smoothing: 0.0 };
        assert!(logits.cross_entropy_with_options(&target, options).is_err());
        let options = CrossEntropyOptions { class_weights: None, label_smoothing: 1.5 };
        assert!(logits.cross_entropy_with_options(&target, options).is_err());
    }
}
