//! Functions that the tasks on labelled examples share.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Error, Result};
use crate::data::{Examples, Order};

/// Returns the order of `train`, and checks that `validation` matches it.
pub(super) fn order(seed: u64, train: &dyn Examples, validation: Option<&dyn Examples>) -> Result<Order> {
    if let Some(validation) = validation {
        let [expected, found] = [train, validation].map(|e| (e.dims(), e.classes().to_vec()));
        if expected != found {
            return Err(Error::setting(
                "validation",
                "expected examples of the same sizes and classes as for training",
            ));
        }
    }
    let count = train.count();
    match u32::try_from(count) {
        Ok(count) if count > 0 => Ok(Order::new(seed, count)),
        _ => Err(Error::setting("data", format!("expected 1 to {} examples, found {count}", u32::MAX))),
    }
}

/// Returns the files of the `len` examples from `position` on.
pub(super) fn paths(examples: &dyn Examples, order: &Order, position: u64, len: usize) -> Vec<PathBuf> {
    let indices = order.range(position, len).into_iter();
    indices.filter_map(|index| examples.path(index).map(Into::into)).collect()
}

/// Returns the sizes of a batch of `batch` examples of the sizes `dims`.
pub(super) fn batch_dims(batch: usize, dims: &[usize]) -> Vec<usize> {
    [&[batch], dims].concat()
}

/// Returns the settings of a task: its options with those of the data, and the data's fingerprint.
pub(super) fn task_settings(
    options: &impl Serialize,
    train: &dyn Examples,
    validation: Option<&dyn Examples>,
) -> Value {
    let mut options = json!(options);
    if let Some(options) = options.as_object_mut() {
        options.extend(train.settings());
    }
    json!({
        "options": options,
        "data": train.fingerprint(),
        "items": train.count(),
        "validation": validation.map_or(0, Examples::count),
    })
}
