//! Storage of weights in half precision (IEEE binary16), which halves the size of the file.
//!
//! In the graph, such a weight is an initializer in f16 and a `Cast` to f32, whose output has the parameter's name. Every runtime
//! folds the cast of a constant when it loads the file, and computes in f32 as usual.

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
    /// f16 for matrices and kernels, which are all weights of two axes or more. Biases and scales, which are few, stay in f32.
    F16,
}

impl WeightStorage {
    /// Returns the names of those of `weights` that are stored in half precision.
    pub(crate) fn f16_names(self, weights: &Weights) -> BTreeSet<String> {
        let halved = weights.iter().filter(|(_, array)| self == Self::F16 && array.dims().len() >= 2);
        halved.map(|(name, _)| name.clone()).collect()
    }
}

/// Rounds those of `weights` that are in `f16_names`, as reading them from a file would: to the nearest f16, in a tie to the even
/// one.
///
/// # Errors
/// [`Error::File`] with the name of a weight that has a value beyond ±65504 or not finite.
pub(crate) fn round_to_f16<'a>(
    weights: &'a Weights,
    f16_names: &BTreeSet<String>,
) -> Result<Cow<'a, Weights>> {
    let mut weights = Cow::Borrowed(weights);
    if f16_names.is_empty() {
        return Ok(weights);
    }
    for (name, array) in weights.to_mut().iter_mut().filter(|(name, _)| f16_names.contains(*name)) {
        let most = f16::MAX.to_f32();
        if let Some(value) = array.data().iter().find(|v| !(-most..=most).contains(*v)) {
            let message =
                format!("expected values from -{most} to {most}, which is what halves hold, found {value}");
            return Err(Error::file(WEIGHTS, name, message));
        }
        let nearest = to_f16(array.data());
        nearest.convert_to_f32_slice(array.data_mut());
    }
    Ok(weights)
}

/// Rounds to the nearest f16.
pub(super) fn to_f16(values: &[f32]) -> Vec<f16> {
    let mut f16_names = vec![f16::ZERO; values.len()];
    f16_names.convert_from_f32_slice(values);
    f16_names
}

/// Converts f16 values, as a file stores them in little-endian order, to f32.
pub(super) fn from_f16(raw: &[u8]) -> Vec<f32> {
    let f16_names: Vec<f16> = raw.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    let mut values = vec![0.0; f16_names.len()];
    f16_names.convert_to_f32_slice(&mut values);
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
    fn every_half_is_read_as_it_was_written() {
        let all = (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite());
        let raw: Vec<u8> = all.clone().flat_map(|half| half.to_le_bytes()).collect();
        let values = from_f16(&raw);
        assert!(values.iter().copied().eq(all.clone().map(f32::from)));
        assert!(to_f16(&values).into_iter().map(f16::to_bits).eq(all.map(f16::to_bits)));
    }

    #[test]
    fn matrices_become_the_nearest_halves_and_vectors_stay() {
        // Ties go to the even number. An f16 has eleven binary digits, and fewer below 2^-14.
        let step = f32::powi(2.0, -11);
        let least = f32::powi(2.0, -24);
        let values =
            vec![1.0 + step, 1.0 + 3.0 * step, -1.0 - 1.01 * step, 65504.0, 0.4 * least, -0.6 * least];
        let nearest = [1.0, 1.0 + 4.0 * step, -1.0 - 2.0 * step, 65504.0, 0.0, -least];
        let full = weights(values.clone());
        let f16_names = WeightStorage::F16.f16_names(&full);
        assert!(f16_names.iter().eq(["w"]));
        let found = round_to_f16(&full, &f16_names).unwrap();
        assert_eq!((found["b"].data(), found["w"].data()), (&values[..], &nearest[..]));
        assert_eq!(*round_to_f16(&found, &f16_names).unwrap(), *found);
        assert_eq!(*round_to_f16(&full, &WeightStorage::F32.f16_names(&full)).unwrap(), full);
    }

    #[test]
    fn what_no_half_is_near_is_refused_by_name() {
        for (value, said) in
            [(65505.0, "65505"), (-1e9, "-1000000000"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
        {
            let full = weights(vec![0.5, value]);
            let error = round_to_f16(&full, &WeightStorage::F16.f16_names(&full)).unwrap_err().to_string();
            let expected =
                "weights: w: expected values from -65504 to 65504, which is what halves hold, found";
            assert_eq!(error, format!("{expected} {said}"));
        }
    }
}
