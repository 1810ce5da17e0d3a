//! Compares the weights in an ONNX file with those of a checkpoint.

use serde::Serialize;
use tiny_cats_models::{Array, Weights};

/// The largest relative error of a value. Folding a batch normalization rounds by this much.
const RELATIVE: f32 = 1e-4;
/// The largest error of a value, relative to the root mean square of its tensor.
const SCALE: f32 = 1e-6;

/// The result of comparing a checkpoint's weights with those in an ONNX file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WeightsComparison {
    /// Number of tensors that were found.
    pub found: usize,
    /// Number of tensors in the checkpoint.
    pub total: usize,
    /// The tensors that differ, one line each.
    #[serde(skip)]
    pub differences: Vec<String>,
}

/// Compares `expected` with the tensors that `held` has under the same names. A missing tensor is a difference.
pub(super) fn by_name(expected: &Weights, held: &Weights) -> WeightsComparison {
    let mut compared = WeightsComparison { total: expected.len(), ..WeightsComparison::default() };
    for (name, array) in expected {
        match held.get(name) {
            None => compared.differences.push(format!("{name}: missing")),
            Some(found) if found.dims() != array.dims() => {
                compared.differences.push(format!(
                    "{name}: shape {:?}, expected {:?}",
                    found.dims(),
                    array.dims()
                ));
            }
            Some(found) => {
                compared.found += 1;
                compared.differences.extend(difference(name, &differing(array, found, false)));
            }
        }
    }
    compared
}

/// Compares `expected` with another program's file, whose tensors may have other names or be transposed.
///
/// A matrix or kernel that is not found by name is searched by its values. If more than half of its values are found, the tensor differs.
/// If none is found, it counts as folded into another tensor, and is not compared.
pub(super) fn by_value(expected: &Weights, held: &Weights) -> WeightsComparison {
    let mut compared = WeightsComparison { total: expected.len(), ..WeightsComparison::default() };
    for (name, array) in expected {
        if let Some(found) = held.get(name)
            && let Some(transposed) = fits(array, found)
        {
            compared.found += 1;
            compared.differences.extend(difference(name, &differing(array, found, transposed)));
            continue;
        }
        let candidates = held.iter().filter(|(other, _)| !expected.contains_key(*other));
        let nearest = candidates
            .filter_map(|(other, found)| Some((other, differing(array, found, fits(array, found)?))))
            .min_by_key(|(_, differing)| differing.count);
        let Some((other, nearest)) = nearest else { continue };
        let same = nearest.count == 0;
        let almost = array.dims().len() > 1 && 2 * nearest.count < nearest.total;
        if same || almost {
            compared.found += 1;
            compared.differences.extend(difference(&format!("{name} ({other} in the file)"), &nearest));
        }
    }
    compared
}

/// The difference between two tensors.
struct TensorDifference {
    count: usize,
    total: usize,
    largest: f32,
}

fn difference(name: &str, differing: &TensorDifference) -> Option<String> {
    let TensorDifference { count, total, largest } = differing;
    (*count > 0).then(|| format!("{name}: {count} of {total} values differ, by up to {largest:.2e}"))
}

/// Returns whether `found` must be transposed to have the shape of `expected`; `None` if neither shape fits.
fn fits(expected: &Array, found: &Array) -> Option<bool> {
    match (expected.dims(), found.dims()) {
        (a, b) if a == b => Some(false),
        (&[rows, columns], &[other_rows, other_columns])
            if (rows, columns) == (other_columns, other_rows) =>
        {
            Some(true)
        }
        _ => None,
    }
}

fn differing(expected: &Array, found: &Array, transposed: bool) -> TensorDifference {
    let scale = SCALE * tiny_cats_export::scale(expected.data());
    let columns = expected.dims().last().copied().unwrap_or(1).max(1);
    let rows = expected.data().len() / columns;
    let mut differing = TensorDifference { count: 0, total: expected.data().len(), largest: 0.0 };
    for (i, a) in expected.data().iter().enumerate() {
        let b = found.data()[if transposed { i % columns * rows + i / columns } else { i }];
        let error = (a - b).abs();
        // The error is NaN where either value is.
        if error.is_nan() || error > scale + RELATIVE * a.abs() {
            differing.count += 1;
            differing.largest = differing.largest.max(if error.is_nan() { f32::INFINITY } else { error });
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use tiny_cats_models::random::noise;

    use super::*;

    fn array(dims: &[usize], seed: u64) -> Array {
        Array::new(dims, noise(seed, 0, dims.iter().product())).unwrap()
    }

    fn weights(names: &[(&str, &Array)]) -> Weights {
        names.iter().map(|(name, array)| (name.to_string(), (*array).clone())).collect()
    }

    #[test]
    fn one_value_that_differs_is_found_whatever_the_tensor_is_called() {
        let [a, b, bias] = [array(&[6, 4], 1), array(&[6, 4], 2), array(&[6], 3)];
        let expected = weights(&[("a.weight", &a), ("b.weight", &b), ("a.bias", &bias)]);
        let transposed = |array: &Array| {
            let data = (0..24).map(|i| array.data()[i % 6 * 4 + i / 6]).collect();
            Array::new([4, 6], data).unwrap()
        };
        let changed = |array: &Array| {
            let mut array = array.clone();
            array.data_mut()[5] += 0.14;
            array
        };
        let named = |a: &Array| weights(&[("a.weight", a), ("b.weight", &b), ("a.bias", &bias)]);
        assert!(by_name(&expected, &named(&a)).differences.is_empty());
        let found = by_name(&expected, &named(&changed(&a)));
        assert_eq!(found.differences, ["a.weight: 1 of 24 values differ, by up to 1.40e-1"]);
        assert_eq!(by_name(&expected, &weights(&[("a.weight", &a), ("a.bias", &a)])).differences.len(), 2);

        let renamed =
            |a: &Array| weights(&[("MatMul_1", a), ("MatMul_2", &transposed(&b)), ("a.bias", &bias)]);
        let found = by_value(&expected, &renamed(&transposed(&a)));
        assert_eq!((found.found, found.total, found.differences.len()), (3, 3, 0));
        let found = by_value(&expected, &renamed(&transposed(&changed(&a))));
        assert_eq!(
            found.differences,
            ["a.weight (MatMul_1 in the file): 1 of 24 values differ, by up to 1.40e-1"]
        );
        // A tensor that the exporter folded into another one.
        let found = by_value(&expected, &weights(&[("x", &array(&[6, 4], 9)), ("b.weight", &b)]));
        assert_eq!((found.found, found.differences.len()), (1, 0));
        let mut broken = a.clone();
        broken.data_mut()[0] = f32::NAN;
        assert_eq!(by_name(&expected, &named(&broken)).differences.len(), 1);
    }
}
