//! The first operation of a definition whose result differs in a runtime.

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Array, Weights, candle::with_candle_ops, trace::TracedOp};

use super::{VerificationCase, deviation};
use crate::{
    ModelMeta, Result,
    onnx::{DataType, OnnxFile},
    runtime::RuntimeKind,
};

/// The first operation whose result differs from the definition's by more than the tolerance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstDifference {
    /// Name of the operation in [`Tensor`](tiny_cats_models::Tensor), such as `layer_norm`.
    pub operation: String,
    /// Path of its module, such as `blocks.0.mlp`; empty at the root.
    pub module: String,
    /// Name of the graph's value that holds the result.
    pub value: String,
    /// Maximum difference from the definition.
    pub max_absolute_error: f32,
    /// Maximum of the difference as a fraction of the element's tolerance.
    pub tolerance_used: f32,
    /// True if the runtime's optimizer was on. If it is false, every operation agreed with the optimizer on, while intermediate results
    /// were outputs.
    pub optimized: bool,
}

impl std::fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, module, value, max_absolute_error, tolerance_used, .. } = self;
        write!(f, "the first operation that differs is {operation}")?;
        if !module.is_empty() {
            write!(f, " of {module}")?;
        }
        write!(
            f,
            " (value {value}), by up to {max_absolute_error:.2e}, {tolerance_used:.1} times the tolerance"
        )?;
        if self.optimized { Ok(()) } else { f.write_str(", with the runtime's optimizer off") }
    }
}

/// The result of a search for the first difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diagnosis {
    /// An operation differs.
    Operation(FirstDifference),
    /// No operation differs once its result is an output, with the runtime's optimizer on or off: the optimizer combines operations of the
    /// original graph wrongly, or the difference is below the tolerance at each operation.
    VanishesWhenExposed,
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation(difference) => difference.fmt(f),
            Self::VanishesWhenExposed => f.write_str(
                "the difference vanishes when the results of all operations are outputs, which limits the runtime's optimizer",
            ),
        }
    }
}

/// Searches the first operation of `file` that differs from the definition of `meta` and `weights` in the runtime `kind`, for the inputs of
/// `case`. `meta` and `weights` are those [that the file holds](super::export_form).
pub(super) fn diagnose(
    kind: RuntimeKind,
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
    case: &VerificationCase,
) -> Result<Diagnosis> {
    let network = meta.config.network()?;
    let expected = with_candle_ops(|| network.trace_candle(weights, &case.tensors()))?;
    let values = network.trace_graph(weights, &meta.sizes(), file.opset())?;
    let floats = values.iter().map(|op| op.value.dtype() == DataType::Float);
    let pairs: Vec<(&TracedOp<Array>, &TracedOp<_>)> = expected
        .iter()
        .zip(&values)
        .zip(floats)
        .filter_map(|(pair, is_float)| is_float.then_some(pair))
        .collect();
    let outputs: Vec<(&str, &[usize])> =
        pairs.iter().map(|(_, op)| (op.value.name(), tiny_cats_models::Tensor::dims(&op.value))).collect();
    if !kind.can_run_graphs() {
        let found = network.trace_native(weights, &case.tensors())?;
        return Ok(first(
            expected.iter().zip(&found).map(|(a, b)| (a, b.op.to_owned(), Ok(b.value.clone()))),
            true,
        )?
        .map_or(Diagnosis::VanishesWhenExposed, Diagnosis::Operation));
    }
    let exposed = file.with_outputs(&outputs)?;
    let names: Vec<String> = network.inputs().into_iter().map(|input| input.name).collect();
    let inputs: Vec<_> = names.iter().map(String::as_str).zip(case.tensors()).collect();
    for optimized in [true, false] {
        let mut session = kind.load_with(&exposed, optimized)?;
        let present: Vec<String> = session.outputs().to_vec();
        let results = pairs.iter().filter(|(_, op)| present.iter().any(|name| name == op.value.name())).map(
            |(expected, op)| {
                (*expected, op.value.name().to_owned(), session.run_output(&inputs, op.value.name()))
            },
        );
        if let Some(difference) = first(results, optimized)? {
            return Ok(Diagnosis::Operation(difference));
        }
    }
    Ok(Diagnosis::VanishesWhenExposed)
}

/// Returns the first of `results` that exceeds the tolerance: expected operation, name of the value, found value.
fn first<'a>(
    results: impl Iterator<Item = (&'a TracedOp<Array>, String, Result<Array>)>,
    optimized: bool,
) -> Result<Option<FirstDifference>> {
    for (expected, value, found) in results {
        let (max_absolute_error, tolerance_used) = deviation(&found?, &expected.value);
        if tolerance_used > 1.0 {
            let (operation, module) = (expected.op.into(), expected.module.clone());
            return Ok(Some(FirstDifference {
                operation,
                module,
                value,
                max_absolute_error,
                tolerance_used,
                optimized,
            }));
        }
    }
    Ok(None)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use prost::Message;
    use tiny_cats_models::{
        Input, Network, Scope, Sizes, Tensor, init,
        layers::{LayerNorm, Linear},
    };

    use super::*;
    use crate::{
        DIGEST_KEY,
        onnx::proto::{ModelProto, TensorProto},
        to_onnx, verify_on,
    };

    /// Two linear layers with a normalization and an activation between them.
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct TwoLayers {}

    impl Network for TwoLayers {
        const KIND: &'static str = "diagnosed-two-layers";
        type Built<T: Tensor> = (Linear<T>, LayerNorm<T>, Linear<T>);

        fn inputs(&self) -> Vec<Input> {
            vec![Input::floats("x", [6])]
        }

        fn outputs(&self) -> Vec<String> {
            vec!["y".into()]
        }

        fn build<T: Tensor>(&self, scope: &mut Scope<T>) -> tiny_cats_models::Result<Self::Built<T>> {
            let first = Linear::new(scope.sub("first"), 6, 8)?;
            Ok((first, LayerNorm::new(scope.sub("norm"), 8, 1e-5)?, Linear::new(scope.sub("last"), 8, 3)?))
        }

        fn forward<T: Tensor>(
            (first, norm, last): &Self::Built<T>,
            inputs: &[T],
        ) -> tiny_cats_models::Result<Vec<T>> {
            let x = norm.forward(&first.forward(&inputs[0])?)?.scoped("activation").relu()?;
            Ok(vec![last.forward(&x)?])
        }
    }

    /// Verifies a file that `change` has altered, and returns the diagnosis of each runtime.
    fn diagnoses(change: impl Fn(&mut ModelProto)) -> Vec<(String, Option<Diagnosis>)> {
        crate::register::<TwoLayers>().unwrap();
        let weights = init(&TwoLayers {}.specs().unwrap(), 0);
        let meta = ModelMeta::for_network(TwoLayers {}, Sizes::new(), Vec::new()).unwrap();
        let mut model = ModelProto::decode(&to_onnx(&meta, &weights, 17).unwrap()[..]).unwrap();
        model.metadata_props.retain(|entry| entry.key != DIGEST_KEY);
        change(&mut model);
        let file = OnnxFile::from_bytes(model.encode_to_vec(), "changed.onnx").unwrap();
        let report = verify_on(&RuntimeKind::ALL, &meta, &weights, &file, false).unwrap();
        let graphs = report.runtimes.into_iter().filter(|runtime| runtime.runtime != "native");
        graphs.map(|runtime| (runtime.runtime, runtime.diagnosis)).collect()
    }

    #[track_caller]
    fn assert_first(expected: [&str; 2], change: impl Fn(&mut ModelProto)) {
        let found = diagnoses(change);
        assert!(!found.is_empty());
        for (runtime, diagnosis) in found {
            let Some(Diagnosis::Operation(first)) = diagnosis else { panic!("{runtime}: {diagnosis:?}") };
            assert_eq!([&first.operation[..], &first.module], expected, "{runtime}: {first}");
            assert!(first.optimized && first.tolerance_used > 1.0, "{first}");
        }
    }

    #[test]
    fn an_unchanged_file_has_no_diagnosis() {
        assert!(diagnoses(|_| ()).iter().all(|(_, diagnosis)| diagnosis.is_none()));
    }

    #[test]
    fn a_changed_operator_is_the_first_difference() {
        assert_first(["relu", "activation"], |model| {
            let node = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type == "Relu").unwrap();
            node.op_type = "Tanh".into();
        });
    }

    #[test]
    fn a_changed_constant_is_found_in_its_operation() {
        assert_first(["layer_norm", "first"], |model| {
            let epsilon = TensorProto::floats("", &[], &[1e-5]).raw_data;
            let constants = &mut model.graph.as_mut().unwrap().initializer;
            let constant = constants.iter_mut().find(|tensor| tensor.raw_data == epsilon).unwrap();
            constant.raw_data = TensorProto::floats("", &[], &[0.5]).raw_data;
        });
    }
}
