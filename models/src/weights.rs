//! Weights in plain memory, as read from files and passed to every backend.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// A dense array of `f32` in row-major (C) order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    dims: Vec<usize>,
    data: Vec<f32>,
}

impl Array {
    /// Creates an array from its sizes and values.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values is not the product of `dims`.
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self> {
        let dims = dims.into();
        match dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
            Some(n) if n == data.len() => Ok(Self { dims, data }),
            _ => Err(Error::shape("array", format!("as many values as shape {dims:?} has"), data.len())),
        }
    }

    /// Returns the sizes of all axes; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns the values in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Returns the values in row-major order, mutably.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Returns the values without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}

/// Parameters by name. The name is the parameter's path in the model and its key in every file.
pub type Weights = BTreeMap<String, Array>;

/// Returns the number of values in all of `weights`.
pub fn num_parameters(weights: &Weights) -> usize {
    weights.values().map(|a| a.data.len()).sum()
}
