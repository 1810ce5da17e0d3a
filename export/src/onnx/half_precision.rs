//! Storage of weights in half precision (IEEE binary16), which halves the size of the file.
//!
//! In the graph, such a weight is an initializer in f16 and a `Cast` to f32, whose output has the parameter's name. Runtimes
//! fold the cast of a constant when they load the file, and compute in f32 as usual.

use std::{borrow::Cow, collections::BTreeSet};

use half::{f16, slice::HalfFloatSliceExt};
use tiny_cats_models::Weights;

use crate::{Error, Result, error::WEIGHTS};

/// The format in which a file stores weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// f32, unrounded.
    #[default]
    F32,
    /// f16 for matrices and kernels: all weights with two or more axes. Biases and scales, which are few, stay in f32.
    F16,
}

impl WeightStorage {
    /// Returns the names of the `weights` to store in half precision.
    pub(crate) fn f16_names(self, weights: &Weights) -> BTreeSet<String> {
        let rounded = weights.iter().filter(|(_, array)| self == Self::F16 && array.dims().len() >= 2);
        rounded.map(|(name, _)| name.clone()).collect()
    }
}

/// Rounds the weights called `f16_names` to the nearest f16, ties to even, as storing them in a file does.
///
/// # Errors
/// [`Error::File`] with the name of a weight with a value that is beyond ±65504 or not finite.
pub(crate) fn round_to_f16<'a>(
    weights: &'a Weights,
    f16_names: &BTreeSet<String>,
) -> Result<Cow<'a, Weights>> {
    let mut weights = Cow::Borrowed(weights);
    if f16_names.is_empty() {
        return Ok(weights);
    }
    for (name, array) in weights.to_mut().iter_mut().filter(|(name, _)| f16_names.contains(*name)) {
        let max = f16::MAX.to_f32();
        if let Some(value) = array.data().iter().find(|v| !(-max..=max).contains(*v)) {
            let message = format!("expected values from -{max} to {max}, the range of f16, found {value}");
            return Err(Error::file(WEIGHTS, name, message));
        }
        let nearest = to_f16(array.data());
        nearest.convert_to_f32_slice(array.data_mut());
    }
    Ok(weights)
}

/// Rounds to the nearest f16, ties to even.
pub(super) fn to_f16(values: &[f32]) -> Vec<f16> {
    let mut rounded = vec![f16::ZERO; values.len()];
    rounded.convert_from_f32_slice(values);
    rounded
}

/// Converts f16 values, as a file stores them in little-endian order, to f32.
pub(super) fn from_f16(raw: &[u8]) -> Vec<f32> {
    let stored: Vec<f16> = raw.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    let mut values = vec![0.0; stored.len()];
    stored.convert_to_f32_slice(&mut values);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiny_cats_models::Array;

    fn weights(values: Vec<f32>) -> Weights {
        let vector = Array::new([values.len()], values.clone()).unwrap();
        let matrix = Array::new([1, values.len()], values).unwrap();
        Weights::from([("b".into(), vector), ("w".into(), matrix)])
    }

    #[test]
    fn f16_values_survive_a_round_trip() {
        let all = (0..=u16::MAX).map(f16::from_bits).filter(|value| value.is_finite());
        let raw: Vec<u8> = all.clone().flat_map(|value| value.to_le_bytes()).collect();
        let values = from_f16(&raw);
        assert!(values.iter().copied().eq(all.clone().map(f32::from)));
        assert!(to_f16(&values).into_iter().map(f16::to_bits).eq(all.map(f16::to_bits)));
    }

    #[test]
    fn matrices_are_rounded_to_f16_and_vectors_are_unchanged() {
        // Ties go to the even number. An f16 has eleven binary digits, and fewer below 2^-14.
        let step = f32::powi(2.0, -11);
        let min = f32::powi(2.0, -24);
        let values = vec![1.0 + step, 1.0 + 3.0 * step, -1.0 - 1.01 * step, 65504.0, 0.4 * min, -0.6 * min];
        let nearest = [1.0, 1.0 + 4.0 * step, -1.0 - 2.0 * step, 65504.0, 0.0, -min];
        let full = weights(values.clone());
        let f16_names = WeightStorage::F16.f16_names(&full);
        assert!(f16_names.iter().eq(["w"]));
        let found = round_to_f16(&full, &f16_names).unwrap();
        assert_eq!((found["b"].data(), found["w"].data()), (&values[..], &nearest[..]));
        assert_eq!(*round_to_f16(&found, &f16_names).unwrap(), *found);
        assert_eq!(*round_to_f16(&full, &WeightStorage::F32.f16_names(&full)).unwrap(), full);
    }

    #[test]
    fn weights_outside_the_range_of_f16_are_rejected_by_name() {
        for (value, found) in
            [(65505.0, "65505"), (-1e9, "-1000000000"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
        {
            let full = weights(vec![0.5, value]);
            let error = round_to_f16(&full, &WeightStorage::F16.f16_names(&full)).unwrap_err().to_string();
            let expected = "weights: w: expected values from -65504 to 65504, the range of f16, found";
            assert_eq!(error, format!("{expected} {found}"));
        }
    }
}
