//! Compares a file's weights with the parameters of a network.

use std::collections::BTreeSet;

use tiny_cats_export::NetworkConfig;
use tiny_cats_models::{Array, resnet::NUM_BATCHES_TRACKED};

use super::{Checkpoint, ErrorKind};

/// Lists the differences between the tensors and the network's parameters, one line each.
pub(super) fn mismatches(checkpoint: &Checkpoint, network: &NetworkConfig) -> Result<Vec<String>, ErrorKind> {
    let specs = network.specs().map_err(|e| ErrorKind::malformed("network", e.to_string()))?;
    let mut lines = Vec::new();
    for spec in &specs {
        match checkpoint.weights.get(&spec.name) {
            None => lines.push(format!("{}: missing", spec.name)),
            Some(array) if array.dims() != spec.dims => {
                lines.push(format!("{}: shape {:?}, expected {:?}", spec.name, array.dims(), spec.dims));
            }
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let integers = checkpoint.integers.keys().filter(|name| !name.ends_with(NUM_BATCHES_TRACKED));
    let unexpected = checkpoint.weights.keys().chain(integers).filter(|name| !names.contains(name.as_str()));
    lines.extend(unexpected.map(|name| format!("{name}: unexpected")));
    Ok(lines)
}

/// A message with the number of a tensor's values that are not finite, if there are any.
pub(super) fn not_finite(name: &str, array: &Array) -> Option<String> {
    let non_finite = array.data().iter().filter(|x| !x.is_finite()).count();
    (non_finite > 0).then(|| format!("{name}: {non_finite} of {} numbers are not finite", array.data().len()))
}
