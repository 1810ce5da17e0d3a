//! What the runtimes of definitions share.

use tiny_cats_models::{Axis, Input, InputValues, ParamSpec, Weights};

use super::{InputTensor, RuntimeKind, check_inputs};
use crate::{Error, Result, error::WEIGHTS};

/// Checks that all `weights` are parameters of the network.
///
/// # Errors
/// The name of a weight that is no parameter.
pub fn check_weights(specs: &[ParamSpec], weights: &Weights) -> Result<()> {
    match weights.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
        Some(other) => Err(Error::file(WEIGHTS, other, "the network has no parameter of this name")),
        None => Ok(()),
    }
}

/// Returns the batch size and the inputs in the order of the definition.
///
/// # Errors
/// If inputs are missing, unknown, of other types or sizes, or of several batch sizes.
pub fn order_inputs<'a>(
    kind: RuntimeKind,
    expected: &[Input],
    given: &[(&str, InputTensor<'a>)],
) -> Result<(usize, Vec<InputTensor<'a>>)> {
    let n = check_inputs(kind, expected.iter().map(|input| input.name.as_str()), given)?;
    let mut ordered = Vec::with_capacity(expected.len());
    for input in expected {
        let found = given.iter().find(|(name, _)| *name == input.name).map(|(_, tensor)| *tensor);
        let tensor = found.ok_or_else(|| kind.error(format!("input {} is missing", input.name)))?;
        match (tensor, input.values) {
            (InputTensor::Floats(array), InputValues::Floats) => {
                let dims = array.dims().get(1..).unwrap_or_default();
                let fits =
                    |(axis, size): (&Axis, &usize)| !matches!(axis, Axis::Fixed(fixed) if fixed != size);
                if dims.len() != input.axes.len() || !input.axes.iter().zip(dims).all(fits) {
                    let expected = input.describe();
                    return Err(kind.error(format!("expected {expected}, found {:?}", array.dims())));
                }
            }
            (InputTensor::Labels(labels), InputValues::Labels(count)) => {
                if let Some(label) = labels.iter().find(|&&label| !(0..count as i64).contains(&label)) {
                    let name = &input.name;
                    return Err(
                        kind.error(format!("{name}: expected 0 to {}, found {label}", count.max(1) - 1))
                    );
                }
            }
            _ => return Err(kind.error(format!("expected {}, found other values", input.describe()))),
        }
        ordered.push(tensor);
    }
    Ok((n, ordered))
}
