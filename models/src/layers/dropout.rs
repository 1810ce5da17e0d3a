use crate::{Error, Result, Tensor};

/// Dropout, which acts in training only: see [`Tensor::dropout`]. It has no parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Builds a layer that drops values with probability `p`.
    ///
    /// # Errors
    /// [`Error::Config`] unless `p` is from 0 to below 1.
    pub fn new(p: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&p) {
            let message = format!("expected a probability from 0 to below 1, found {p}");
            return Err(Error::Config { field: "dropout", message });
        }
        Ok(Self { p })
    }

    /// Drops values of any shape.
    ///
    /// # Errors
    /// Errors of the backend.
    pub fn forward<T: Tensor>(&self, x: &T) -> Result<T> {
        x.dropout(self.p)
    }
}
