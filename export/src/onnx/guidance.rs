//! Analysis of generator graphs from other programs: detection of built-in classifier-free guidance, and the number of classes.

use std::collections::{HashMap, HashSet};

use super::proto::{GraphProto, NodeProto};

/// Operators that combine two predictions, `u + w·(c − u)` in any notation.
const ARITHMETIC: [&str; 7] = ["Add", "Sub", "Mul", "Div", "Neg", "Sum", "Cast"];

/// Operators that pass a label unchanged to a table lookup.
const PASS_THROUGH: [&str; 9] =
    ["Identity", "Cast", "Concat", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Clip", "Where"];

/// Operators that split a tensor into parts.
const SPLITTING: [&str; 3] = ["Slice", "Split", "Gather"];

/// Operators with weights.
const WEIGHTED: [&str; 4] = ["Conv", "MatMul", "Gemm", "Gather"];

/// The values of a graph, by name.
struct GraphIndex<'a> {
    graph: &'a GraphProto,
    /// The node that computes each value.
    producers: HashMap<&'a str, &'a NodeProto>,
    initializers: HashMap<&'a str, &'a [i64]>,
}

impl<'a> GraphIndex<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let outputs = |node: &'a NodeProto| node.output.iter().map(move |name| (name.as_str(), node));
        let initializer = |t: &'a super::proto::TensorProto| (t.name.as_str(), &t.dims[..]);
        Self {
            graph,
            producers: graph.node.iter().flat_map(outputs).collect(),
            initializers: graph.initializer.iter().map(initializer).collect(),
        }
    }

    /// Follows `Identity` nodes from `name` back to the original value.
    fn origin(&self, mut name: &'a str) -> &'a str {
        let mut seen = HashSet::new();
        while let Some(producer) = self.producers.get(name)
            && producer.op_type == "Identity"
            && seen.insert(name)
            && let Some(input) = producer.input.first()
        {
            name = input;
        }
        name
    }

    /// Returns the values that `name` combines by arithmetic operators alone, without constants.
    fn terms(&self, name: &'a str) -> HashSet<&'a str> {
        let (mut terms, mut seen, mut pending) = (HashSet::new(), HashSet::new(), vec![name]);
        while let Some(name) = pending.pop() {
            let name = self.origin(name);
            if !seen.insert(name) || self.initializers.contains_key(name) {
                continue;
            }
            match self.producers.get(name) {
                Some(producer) if ARITHMETIC.contains(&producer.op_type.as_str()) => {
                    pending.extend(producer.input.iter().map(String::as_str));
                }
                Some(producer) if producer.op_type == "Constant" => {}
                _ => {
                    terms.insert(name);
                }
            }
        }
        terms
    }

    /// Returns all values on which `name` depends, including itself. Use of a value's shape is not a dependency.
    fn ancestors(&self, name: &'a str) -> HashSet<&'a str> {
        let (mut seen, mut pending) = (HashSet::new(), vec![name]);
        while let Some(name) = pending.pop() {
            if seen.insert(name)
                && let Some(producer) = self.producers.get(name)
                && producer.op_type != "Shape"
            {
                pending.extend(producer.input.iter().map(String::as_str));
            }
        }
        seen
    }

    /// Returns the weight matrices and kernels that compute `values`, without embedding tables.
    fn weights(&self, values: &HashSet<&'a str>) -> HashSet<&'a str> {
        let is_weighted = |node: &&NodeProto| {
            WEIGHTED.contains(&node.op_type.as_str())
                && node.output.iter().any(|o| values.contains(o.as_str()))
        };
        let weight = |node: &'a NodeProto| {
            let index = if node.op_type == "Gather" { None } else { Some(1) };
            let name = self.origin(node.input.get(index?)?);
            self.initializers.get(name).filter(|dims| dims.len() >= 2).map(|_| name)
        };
        self.graph.node.iter().filter(is_weighted).filter_map(weight).collect()
    }

    /// True if a node concatenates `name` with another value along the batch, or with itself if `twice`.
    fn is_concatenated(&self, name: &str, twice: bool) -> bool {
        self.graph.node.iter().filter(|node| node.op_type == "Concat" && axis(node) == 0).any(|node| {
            let count = node.input.iter().filter(|input| self.origin(input) == name).count();
            count >= if twice { 2 } else { 1 } && node.input.len() >= 2
        })
    }
}

fn axis(node: &NodeProto) -> i64 {
    node.attribute.iter().find(|a| a.name == "axis").map_or(0, |a| a.i)
}

/// True if the graph's first output combines two predictions for its inputs `image` and `label`. They are the two parts of
/// a doubled batch, or two passes through the same weights, one of which does not depend on the label.
pub fn is_guided(graph: &GraphProto, image: &str, label: &str) -> bool {
    let index = GraphIndex::new(graph);
    let Some(output) = graph.output.first() else { return false };
    let terms: Vec<&str> = index.terms(&output.name).into_iter().collect();
    let split_input = |term: &&str| {
        let producer =
            index.producers.get(*term).filter(|producer| SPLITTING.contains(&producer.op_type.as_str()));
        producer.and_then(|producer| producer.input.first()).map(|input| index.origin(input))
    };
    let is_split = terms.len() >= 2
        && split_input(&terms[0])
            .is_some_and(|input| terms.iter().all(|term| split_input(term) == Some(input)));
    if is_split && (index.is_concatenated(image, true) || index.is_concatenated(label, false)) {
        return true;
    }
    let [a, b] = terms[..] else { return false };
    let (a, b) = (index.ancestors(a), index.ancestors(b));
    let (with, without) = match (a.contains(label), b.contains(label)) {
        (true, false) => (a, b),
        (false, true) => (b, a),
        _ => return false,
    };
    let (with_label, without_label) = (index.weights(&with), index.weights(&without));
    without.contains(image)
        && with.contains(image)
        && !with_label.is_empty()
        && with_label.is_subset(&without_label)
}

/// Returns the number of rows of the table that the input `label` indexes, if there is one.
pub fn embedding_rows(graph: &GraphProto, label: &str) -> Option<usize> {
    let index = GraphIndex::new(graph);
    let mut labels = HashSet::from([label]);
    // Nodes are in topological order.
    for node in &graph.node {
        let is_label = |input: &String| labels.contains(input.as_str());
        if node.op_type == "Gather" && node.input.get(1).is_some_and(is_label) && axis(node) == 0 {
            let table = node.input.first().map(|input| index.origin(input));
            if let Some([rows, _]) = table.and_then(|table| index.initializers.get(table)) {
                return usize::try_from(*rows).ok();
            }
        }
        if PASS_THROUGH.contains(&node.op_type.as_str()) && node.input.iter().any(is_label) {
            labels.extend(node.output.iter().map(String::as_str));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        Generator, LoadOptions, Model, PREDECESSOR_CLASSES, Request, Sampler,
        onnx::proto::{
            AttributeProto, DataType, ModelProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
        },
        runtime::RuntimeKind,
    };

    const SIZE: usize = 32;
    const WEIGHT: f32 = 1.5;

    fn node(op: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            input: input.iter().map(|&s| s.to_owned()).collect(),
            output: output.iter().map(|&s| s.to_owned()).collect(),
            name: output[0].to_owned(),
            op_type: op.into(),
            attribute,
            domain: String::new(),
        }
    }

    /// Returns a network of `x` and `label`: a convolution, multiplied by the label's row of the table.
    fn network(x: &str, label: &str, y: &str) -> Vec<NodeProto> {
        let [conv, row, shaped] = ["conv", "row", "shaped"].map(|name| format!("{y}/{name}"));
        let kernel = vec![AttributeProto::ints("kernel_shape", [1, 1])];
        vec![
            node("Conv", &[x, "kernel"], &[&conv], kernel),
            node("Gather", &["table", label], &[&row], vec![AttributeProto::int("axis", 0)]),
            node("Reshape", &[&row, "shape"], &[&shaped], Vec::new()),
            node("Mul", &[&conv, &shaped], &[&format!("{y}/scaled")], Vec::new()),
            node("Reshape", &[&format!("{y}/scaled"), "full_shape"], &[y], Vec::new()),
        ]
    }

    /// Returns the nodes of `u + w·(c − u)`.
    fn guidance_nodes(c: &str, u: &str) -> Vec<NodeProto> {
        vec![
            node("Sub", &[c, u], &["difference"], Vec::new()),
            node("Mul", &["difference", "weight"], &["weighted"], Vec::new()),
            node("Add", &[u, "weighted"], &["velocity"], Vec::new()),
        ]
    }

    /// Returns nodes that compute the label of the unconditional pass for each item.
    fn null_label_nodes() -> Vec<NodeProto> {
        vec![
            node("Shape", &["breed"], &["batch"], Vec::new()),
            node("ConstantOfShape", &["batch"], &["zeros"], Vec::new()),
            node("Cast", &["zeros"], &["labels"], vec![AttributeProto::int("to", DataType::Int64 as i64)]),
            node("Add", &["labels", "last"], &["null"], Vec::new()),
        ]
    }

    fn unguided_nodes() -> Vec<NodeProto> {
        network("noise", "breed", "velocity")
    }

    fn doubled_batch_nodes() -> Vec<NodeProto> {
        let first = || vec![AttributeProto::int("axis", 0)];
        let mut nodes = null_label_nodes();
        nodes.push(node("Identity", &["noise"], &["noise_copy"], Vec::new()));
        nodes.push(node("Concat", &["noise", "noise_copy"], &["x"], first()));
        nodes.push(node("Concat", &["breed", "null"], &["label"], first()));
        nodes.extend(network("x", "label", "both"));
        nodes.push(node("Split", &["both"], &["c", "u"], first()));
        nodes.extend(guidance_nodes("c", "u"));
        nodes
    }

    fn two_pass_nodes() -> Vec<NodeProto> {
        let passes = network("noise", "breed", "c").into_iter().chain(network("noise", "null", "u"));
        null_label_nodes().into_iter().chain(passes).chain(guidance_nodes("c", "u")).collect()
    }

    fn graph(node: Vec<NodeProto>, classes: usize) -> GraphProto {
        let last = classes as i64 - 1;
        let table: Vec<f32> = (0..classes * 3).map(|i| (i as f32 * 0.7).sin()).collect();
        let kernel: Vec<f32> = (0..9).map(|i| 0.3 - 0.1 * i as f32).collect();
        GraphProto {
            name: "test".into(),
            node,
            initializer: vec![
                TensorProto::floats("table", &[classes, 3], &table),
                TensorProto::floats("kernel", &[3, 3, 1, 1], &kernel),
                TensorProto::floats("weight", &[], &[WEIGHT]),
                TensorProto::ints("shape", &[-1, 3, 1, 1]),
                TensorProto::ints("full_shape", &[-1, 3, SIZE as i64, SIZE as i64]),
                TensorProto::ints("last", &[last]),
            ],
            input: vec![
                ValueInfoProto::batched("noise", DataType::Float, &[3, SIZE, SIZE]),
                ValueInfoProto::batched("timestep", DataType::Float, &[]),
                ValueInfoProto::batched("breed", DataType::Int64, &[]),
            ],
            output: vec![ValueInfoProto::batched("velocity", DataType::Float, &[3, SIZE, SIZE])],
        }
    }

    fn model(node: Vec<NodeProto>, classes: usize) -> crate::Result<Model> {
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(graph(node, classes)),
            ..Default::default()
        };
        Model::from_bytes(model.encode_to_vec(), "old.onnx")
    }

    #[test]
    fn guidance_in_the_graph_is_applied_once_and_equals_that_of_the_sampler() {
        let load = |model: &Model, runtime| {
            let options = LoadOptions { runtime: Some(runtime), batch: 4 };
            let generator = Generator::from_model(model, &options).unwrap();
            let request = Request {
                count: 5,
                steps: Some(3),
                sampler: Some(Sampler::Heun),
                seed: 4,
                ..Request::default()
            };
            (generator, request)
        };
        let is_available = |kind: &RuntimeKind| kind.can_run_graphs() && kind.version().is_ok();
        for runtime in RuntimeKind::ALL.into_iter().filter(is_available) {
            let unguided = model(unguided_nodes(), 13).unwrap();
            let (mut generator, request) = load(&unguided, runtime);
            assert!(!unguided.is_guided() && !generator.is_guided());
            assert_eq!(generator.settings(&request).guidance, 2.0);
            let request = Request { guidance: Some(WEIGHT), ..request };
            let expected = generator.generate(&request).unwrap();
            for nodes in [doubled_batch_nodes(), two_pass_nodes()] {
                let guided = model(nodes, 13).unwrap();
                let (mut generator, request) = load(&guided, runtime);
                assert!(guided.is_guided() && generator.is_guided());
                assert_eq!(generator.settings(&request).guidance, 1.0);
                // Other guidance weights in the request have no effect.
                for guidance in [1.0, 3.0] {
                    let images =
                        generator.generate(&Request { guidance: Some(guidance), ..request.clone() }).unwrap();
                    for (a, b) in images.iter().zip(&expected) {
                        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * b.abs().max(1.0);
                        assert!(!a.values.data().iter().zip(b.values.data()).any(differs), "{runtime}");
                    }
                    let trajectory = generator
                        .start_trajectory(1, 0, &Request { guidance: Some(guidance), ..request.clone() })
                        .unwrap();
                    assert_eq!(trajectory.settings().guidance, 1.0);
                }
            }
        }
    }

    #[test]
    fn runtimes_of_definitions_reject_guided_graphs() {
        for kind in [RuntimeKind::Native, RuntimeKind::Candle] {
            let error =
                model(doubled_batch_nodes(), 13).unwrap().load_generator(kind).err().unwrap().to_string();
            assert!(error.starts_with(kind.name()), "{error}");
            assert!(kind.version().is_err() || error.contains("applies guidance itself"), "{error}");
        }
    }

    #[test]
    fn unguided_graphs_are_not_classified_as_guided() {
        // A sum of a part that does not depend on the label and one that does, with weights of its own.
        let residual = || {
            let mut nodes = network("noise", "breed", "c");
            nodes.push(node(
                "Conv",
                &["c", "other"],
                &["branch"],
                vec![AttributeProto::ints("kernel_shape", [1, 1])],
            ));
            nodes.push(node(
                "Conv",
                &["noise", "kernel"],
                &["stem"],
                vec![AttributeProto::ints("kernel_shape", [1, 1])],
            ));
            nodes.push(node("Add", &["stem", "branch"], &["velocity"], Vec::new()));
            nodes
        };
        // A combination of the channels of one tensor.
        let gated = || {
            let mut nodes = network("noise", "breed", "c");
            nodes.push(node("Split", &["c"], &["a", "b", "d"], vec![AttributeProto::int("axis", 1)]));
            nodes.push(node("Mul", &["a", "b"], &["ab"], Vec::new()));
            nodes.push(node("Add", &["ab", "d"], &["velocity"], Vec::new()));
            nodes
        };
        for nodes in [unguided_nodes(), residual(), gated(), Vec::new()] {
            let mut graph = graph(nodes, 13);
            graph.initializer.push(TensorProto::floats("other", &[3, 3, 1, 1], &[0.0; 9]));
            assert!(!is_guided(&graph, "noise", "breed"));
        }
        for nodes in [doubled_batch_nodes(), two_pass_nodes()] {
            assert!(is_guided(&graph(nodes, 13), "noise", "breed"));
        }
        // The search ends even if nodes form a cycle.
        let mut cyclic = graph(doubled_batch_nodes(), 13);
        cyclic.node.extend([
            node("Identity", &["q"], &["p"], Vec::new()),
            node("Identity", &["p"], &["q"], Vec::new()),
            node("Add", &["p", "velocity"], &["velocity"], Vec::new()),
        ]);
        is_guided(&cyclic, "noise", "breed");
        cyclic.output[0].name = "p".into();
        assert!(!is_guided(&cyclic, "noise", "breed"));
    }

    #[test]
    fn the_table_gives_the_number_of_classes_and_thirteen_have_names() {
        for nodes in [unguided_nodes(), doubled_batch_nodes()] {
            for classes in [1, 12, 13, 38] {
                let model = model(nodes.clone(), classes).unwrap();
                let meta = model.meta();
                let numbers: Vec<String> = (0..classes).map(|i| i.to_string()).collect();
                let names = PREDECESSOR_CLASSES.map(String::from).to_vec();
                assert_eq!(meta.classes, if classes == 13 { names } else { numbers });
                assert_eq!(meta.config.role().classes(), Some(classes));
                assert_eq!(model.generator().unwrap().null_label, classes - 1);
            }
        }
        let runtime =
            RuntimeKind::ALL.into_iter().find(|kind| kind.can_run_graphs() && kind.version().is_ok());
        let options = LoadOptions { runtime, batch: 8 };
        for classes in [12, 38] {
            let mut generator =
                Generator::from_model(&model(unguided_nodes(), classes).unwrap(), &options).unwrap();
            let request = Request { count: classes, steps: Some(1), ..Request::default() };
            let images = generator.generate(&request).unwrap();
            assert_eq!(images.last().unwrap().class, (classes - 1).to_string());
        }
        for (nodes, classes, message) in [
            (network("noise", "other", "velocity"), 13, "expected a table indexed by breed, found none"),
            (unguided_nodes(), 0, "expected 1 to 4096 classes, found a table of 0 rows"),
            (unguided_nodes(), 5000, "expected 1 to 4096 classes, found a table of 5000 rows"),
        ] {
            let error = model(nodes, classes).unwrap_err().to_string();
            assert!(error.starts_with("old.onnx: graph: ") && error.contains(message), "{error}");
        }
    }
}
