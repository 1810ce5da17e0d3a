//! Weights as plain memory: what files hold and every reading starts from.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// A dense array of `f32` in row-major (C) order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    dims: Vec<usize>,
    data: Vec<f32>,
}

impl Array {
    /// # Errors
    /// [`Error::Shape`] when `data` does not hold exactly as many values as `dims` multiply to.
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self> {
        let dims = dims.into();
        match dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
            Some(n) if n == data.len() => Ok(Self { dims, data }),
            _ => Err(Error::shape("array", format!("the values of shape {dims:?}"), data.len())),
        }
    }

    /// The sizes of its axes; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The values in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values in row-major order, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values, leaving the shape behind.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}

/// Parameters by name; the name is the parameter's path in the model and its key in every file.
pub type Weights = BTreeMap<String, Array>;

/// The number of values in all of `weights`.
pub fn num_parameters(weights: &Weights) -> usize {
    weights.values().map(|a| a.data.len()).sum()
}
