//! What training minimises.

use candle_core::Tensor as CandleTensor;

use super::Var;
use crate::{Error, Result};

impl Var {
    /// Weighted mean squared error: the mean over all values of `weight·(self − target)²`, as a scalar.
    ///
    /// `target` has this value's shape; `weight` is `[batch]`, one number for each item.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes do not fit.
    pub fn squared_error(&self, target: &CandleTensor, weight: &CandleTensor) -> Result<Var> {
        if target.dims() != self.value.dims() || weight.dims() != [target.dims()[0]] {
            let expected = format!("a target {:?} and a weight for each item", self.value.dims());
            return Err(Error::shape("squared_error", expected, (target.dims(), weight.dims())));
        }
        let n = target.elem_count() as f64;
        let column: Vec<usize> =
            std::iter::once(weight.dims()[0]).chain(target.dims()[1..].iter().map(|_| 1)).collect();
        let difference = (&self.value - target)?;
        let weighted = difference.broadcast_mul(&weight.reshape(column)?)?;
        let loss = ((&weighted * &difference)?.sum_all()? / n)?;
        let slot = self.slot;
        Ok(self.tape.record(loss, slot.is_some(), move |grad, slots| {
            slots.add(slot, (weighted.broadcast_mul(&grad)? * (2.0 / n))?)
        }))
    }
}
