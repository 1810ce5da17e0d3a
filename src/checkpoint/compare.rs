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

/// Compares `expected` with the tensors of the same names in `stored`. A missing tensor is a difference.
pub(super) fn compare_by_name(expected: &Weights, stored: &Weights) -> WeightsComparison {
    let mut comparison = WeightsComparison { total: expected.len(), ..WeightsComparison::default() };
    for (name, array) in expected {
        match stored.get(name) {
            None => comparison.differences.push(format!("{name}: missing")),
            Some(found) if found.dims() != array.dims() => {
                comparison.differences.push(format!(
                    "{name}: shape {:?}, expected {:?}",
                    found.dims(),
                    array.dims()
                ));
            }
            Some(found) => {
                comparison.found += 1;
                comparison.differences.extend(difference(name, &tensor_difference(array, found, false)));
            }
        }
    }
    comparison
}

/// Compares `expected` with another program's file, whose tensors may have other names or be transposed.
///
/// A matrix or kernel that is not found by name is matched by its values. If more than half of its values are found, the tensor differs. If
/// none is found, it counts as folded into another tensor, and is not compared.
pub(super) fn compare_by_value(expected: &Weights, stored: &Weights) -> WeightsComparison {
    let mut comparison = WeightsComparison { total: expected.len(), ..WeightsComparison::default() };
    for (name, array) in expected {
        if let Some(found) = stored.get(name)
            && let Some(transposed) = is_transposed(array, found)
        {
            comparison.found += 1;
            comparison.differences.extend(difference(name, &tensor_difference(array, found, transposed)));
            continue;
        }
        let candidates = stored.iter().filter(|(other, _)| !expected.contains_key(*other));
        let closest = candidates
            .filter_map(|(other, found)| {
                Some((other, tensor_difference(array, found, is_transposed(array, found)?)))
            })
            .min_by_key(|(_, differing)| differing.count);
        let Some((other, closest)) = closest else { continue };
        let is_equal = closest.count == 0;
        let is_similar = array.dims().len() > 1 && 2 * closest.count < closest.total;
        if is_equal || is_similar {
            comparison.found += 1;
            comparison.differences.extend(difference(&format!("{name} ({other} in the file)"), &closest));
        }
    }
    comparison
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

/// True if `found` must be transposed to have the shape of `expected`; `None` if neither shape matches.
fn is_transposed(expected: &Array, found: &Array) -> Option<bool> {
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

fn tensor_difference(expected: &Array, found: &Array, transposed: bool) -> TensorDifference {
    let scale = SCALE * tiny_cats_export::scale(expected.data());
    let columns = expected.dims().last().copied().unwrap_or(1).max(1);
    let rows = expected.data().len() / columns;
    let mut differing = TensorDifference { count: 0, total: expected.data().len(), largest: 0.0 };
    for (i, a) in expected.data().iter().enumerate() {
        let b = found.data()[if transposed { i % columns * rows + i / columns } else { i }];
        let error = (a - b).abs();
        // The error is NaN if either value is.
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
    fn a_differing_value_is_found_under_any_tensor_name() {
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
        assert!(compare_by_name(&expected, &named(&a)).differences.is_empty());
        let found = compare_by_name(&expected, &named(&changed(&a)));
        assert_eq!(found.differences, ["a.weight: 1 of 24 values differ, by up to 1.40e-1"]);
        assert_eq!(
            compare_by_name(&expected, &weights(&[("a.weight", &a), ("a.bias", &a)])).differences.len(),
            2
        );

        let renamed =
            |a: &Array| weights(&[("MatMul_1", a), ("MatMul_2", &transposed(&b)), ("a.bias", &bias)]);
        let found = compare_by_value(&expected, &renamed(&transposed(&a)));
        assert_eq!((found.found, found.total, found.differences.len()), (3, 3, 0));
        let found = compare_by_value(&expected, &renamed(&transposed(&changed(&a))));
        assert_eq!(
            found.differences,
            ["a.weight (MatMul_1 in the file): 1 of 24 values differ, by up to 1.40e-1"]
        );
        // A tensor that the exporter folded into another one.
        let found = compare_by_value(&expected, &weights(&[("x", &array(&[6, 4], 9)), ("b.weight", &b)]));
        assert_eq!((found.found, found.differences.len()), (1, 0));
        let mut broken = a.clone();
        broken.data_mut()[0] = f32::NAN;
        assert_eq!(compare_by_name(&expected, &named(&broken)).differences.len(), 1);
    }
}
