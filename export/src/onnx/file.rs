//! ONNX files: their inputs and outputs, weights and metadata.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use prost::Message;
use tiny_cats_models::{Array, Weights};

use super::{
    digest, external, guidance,
    half_precision::from_f16,
    proto::{
        DataType, DimensionValue, FLOAT16, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    },
    scan::scan,
};
use crate::{Error, Integrity, Result, read::read_bounded};

const FLOAT: i32 = DataType::Float as i32;

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Name of the input or output.
    pub name: String,
    /// Element type; `None` for types that we do not write.
    pub dtype: Option<DataType>,
    /// Sizes; `None` for an axis of any size, such as the batch.
    pub dims: Vec<Option<usize>>,
}

/// A validated ONNX file: complete, of bounded size, without subgraphs. It includes external data.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    name: String,
    bytes: Vec<u8>,
    opset: u32,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    f16_names: BTreeSet<String>,
    metadata: BTreeMap<String, String>,
    integrity: Integrity,
}

impl OnnxFile {
    /// Reads a file and its external data, which must be in the same folder.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`from_bytes`](Self::from_bytes).
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(read_bounded(path)?, &path.display().to_string(), path.parent())
    }

    /// Reads and validates a file in memory; errors call it `name`.
    ///
    /// # Errors
    /// [`Error::File`] if it is not an ONNX model, does not match its digest, or is not supported: with external data, with control
    /// flow, or without inputs.
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        Self::read(bytes, name, None)
    }

    /// Reads as [`from_bytes`](Self::from_bytes) does, for a file in `folder`.
    pub(crate) fn read(bytes: Vec<u8>, name: &str, folder: Option<&Path>) -> Result<Self> {
        let bytes = match (scan(&bytes, name)?, folder) {
            (false, _) => bytes,
            (true, Some(folder)) => {
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                external::inline_external_data(&bytes, name, folder)?
            }
            (true, None) => {
                let message =
                    "expected all values in one file, found external data; open the model by its path";
                return Err(Error::file(name, "external_data", message));
            }
        };
        let model = decode(&bytes, name)?;
        let integrity = digest::check_digest(&model, name)?;
        let Some(graph) = &model.graph else {
            return Err(Error::file(name, "graph", "expected a graph, found none"));
        };
        let opset = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
        let opset = opset.and_then(|o| u32::try_from(o.version).ok());
        let Some(opset) = opset else {
            return Err(Error::file(name, "opset_import", "expected an operator set, found none"));
        };
        // Old files list their initializers among the inputs.
        let inputs: Vec<ValueInfo> = graph
            .input
            .iter()
            .filter(|i| graph.initializer.iter().all(|t| t.name != i.name))
            .map(value_info)
            .collect();
        let outputs: Vec<ValueInfo> = graph.output.iter().map(value_info).collect();
        if inputs.is_empty() || outputs.is_empty() {
            return Err(Error::file(name, "graph", "expected inputs and outputs"));
        }
        for tensor in &graph.initializer {
            check_size(tensor, name)?;
        }
        let casts = casts(graph);
        let f16_tensors = graph.initializer.iter().filter(|t| t.data_type == FLOAT16);
        let f16_names = f16_tensors.filter_map(|t| casts.get(&t.name).cloned()).collect();
        let metadata = model.metadata_props.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
        Ok(Self { name: name.into(), opset, inputs, outputs, f16_names, metadata, integrity, bytes })
    }

    /// Returns the name that errors use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the result of the check of the file's digest.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// Returns the bytes of the file, with external data inside.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the version of the operator set.
    pub fn opset(&self) -> u32 {
        self.opset
    }

    /// Returns the inputs of the graph, in its order.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// Returns the outputs of the graph, in its order.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// Returns the names of the weights that are stored in half precision (f16).
    pub fn f16_names(&self) -> &BTreeSet<String> {
        &self.f16_names
    }

    /// Returns the `metadata_props` of the file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns all floating-point initializers by name, except scalars. Those in [half precision](Self::f16_names) are converted to
    /// f32, under the name of the conversion's result.
    ///
    /// # Errors
    /// [`Error::File`] if the number of values does not match the shape.
    pub fn weights(&self) -> Result<Weights> {
        let model = decode(&self.bytes, &self.name)?;
        let mut casts = model.graph.as_ref().map(casts).unwrap_or_default();
        let tensors = model.graph.into_iter().flat_map(|g| g.initializer).filter(|t| !t.dims.is_empty());
        tensors
            .filter_map(|t| {
                let (name, values) = match t.data_type {
                    FLOAT if t.raw_data.is_empty() => (t.name, t.float_data),
                    FLOAT => (t.name, floats(&t.raw_data)),
                    // A weight is read once, even if the graph converts it several times.
                    FLOAT16 => (casts.remove(&t.name)?, from_f16(&t.raw_data)),
                    _ => return None,
                };
                let dims: Vec<usize> = t.dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
                Some(match Array::new(dims, values) {
                    Ok(array) => Ok((name, array)),
                    Err(e) => Err(Error::file(&self.name, name, e.to_string())),
                })
            })
            .collect()
    }

    /// Returns the graph with more outputs: those of `outputs`, names and dims after the batch of floating-point values, that its nodes
    /// compute. Without metadata and digest.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be decoded.
    #[cfg(feature = "candle")]
    pub(crate) fn with_outputs(&self, outputs: &[(&str, &[usize])]) -> Result<Self> {
        let mut model =
            ModelProto::decode(self.bytes()).map_err(|e| Error::file(&self.name, "ONNX", e.to_string()))?;
        model.metadata_props.clear();
        if let Some(graph) = &mut model.graph {
            let computed: BTreeSet<&String> = graph.node.iter().flat_map(|node| &node.output).collect();
            let is_new = |name: &str| {
                computed.contains(&name.to_owned()) && graph.output.iter().all(|o| o.name != name)
            };
            let added = outputs.iter().filter(|(name, _)| is_new(name));
            let infos: Vec<_> =
                added.map(|(name, dims)| ValueInfoProto::batched(name, DataType::Float, dims)).collect();
            graph.output.extend(infos);
        }
        Self::from_bytes(model.encode_to_vec(), &self.name)
    }

    /// True if the graph applies classifier-free guidance itself. From its inputs `image` and `label` it computes
    /// predictions with and without the label, and returns a combination of the two.
    pub(crate) fn is_guided(&self, image: &str, label: &str) -> Result<bool> {
        let graph = decode(&self.bytes, &self.name)?.graph.unwrap_or_default();
        Ok(guidance::is_guided(&graph, image, label))
    }

    /// Returns the number of rows of the table that the input called `label` indexes, if there is one.
    pub(crate) fn embedding_rows(&self, label: &str) -> Result<Option<usize>> {
        let graph = decode(&self.bytes, &self.name)?.graph.unwrap_or_default();
        Ok(guidance::embedding_rows(&graph, label))
    }
}

/// Returns the casts to f32: the name of each result, by the name of its input.
fn casts(graph: &GraphProto) -> HashMap<String, String> {
    let to_float = |node: &&NodeProto| {
        let to = node.attribute.iter().find(|a| a.name == "to");
        node.op_type == "Cast" && node.domain.is_empty() && to.is_some_and(|to| to.i == i64::from(FLOAT))
    };
    let names = |node: &NodeProto| Some((node.input.first()?.clone(), node.output.first()?.clone()));
    graph.node.iter().filter(to_float).filter_map(names).collect()
}

/// Decodes a file that has been scanned.
fn decode(bytes: &[u8], name: &str) -> Result<ModelProto> {
    ModelProto::decode(bytes).map_err(|e| Error::file(name, "ONNX", e.to_string()))
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Checks that a tensor holds as many bytes as its shape requires. Runtimes handle other tensors differently, and some trust
/// the shape.
fn check_size(tensor: &TensorProto, file: &str) -> Result<()> {
    let expected = tensor.size().map_err(|message| Error::file(file, &tensor.name, message))?;
    let found = tensor.raw_data.len();
    let missing = match tensor.data_type {
        FLOAT => tensor.float_data.len() != expected / size_of::<f32>(),
        FLOAT16 => true,
        _ => false,
    };
    if (found > 0 || missing) && expected != found {
        let message = format!("expected the values of shape {:?}, found {found} bytes", tensor.dims);
        return Err(Error::file(file, &tensor.name, message));
    }
    Ok(())
}

fn value_info(info: &ValueInfoProto) -> ValueInfo {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let dims = tensor.and_then(|t| t.shape.as_ref()).map_or(Vec::new(), |shape| {
        let size = |value: &DimensionValue| match value {
            DimensionValue::Size(size) => usize::try_from(*size).ok(),
            DimensionValue::Symbol(_) => None,
        };
        shape.dim.iter().map(|d| d.value.as_ref().and_then(size)).collect()
    });
    let dtype = match tensor.map(|t| t.elem_type) {
        Some(1) => Some(DataType::Float),
        Some(7) => Some(DataType::Int64),
        _ => None,
    };
    ValueInfo { name: info.name.clone(), dtype, dims }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DIGEST_KEY, META_KEY,
        onnx::{DEFAULT_OPSET, OnnxGraph, WeightStorage},
    };
    use tiny_cats_models::{Init, Scope, Tensor};

    fn file() -> (Vec<u8>, Weights) {
        file_with(WeightStorage::F32)
    }

    fn file_with(storage: WeightStorage) -> (Vec<u8>, Weights) {
        let array = Array::new([2, 3], (0..6).map(|v| v as f32).collect()).unwrap();
        let weights = Weights::from([("head.weight".to_owned(), array)]);
        let graph = OnnxGraph::new(DEFAULT_OPSET).unwrap();
        let mut source = graph.source(&weights).with_f16_weights(storage.f16_names(&weights));
        let weight = Scope::root(&mut source).sub("head").param("weight", [2, 3], Init::Zeros).unwrap();
        source.finish().unwrap();
        let y = graph.floats("x", &[3]).unwrap().linear(&weight, None).unwrap();
        (graph.finish(&[("y", &y)], &[(META_KEY, "cats".into())]).unwrap(), weights)
    }

    #[test]
    fn a_file_contains_the_weights_and_ports_that_were_written() {
        let (bytes, weights) = file();
        let file = OnnxFile::from_bytes(bytes, "f").unwrap();
        assert_eq!(file.weights().unwrap(), weights);
        assert_eq!(file.metadata()[META_KEY], "cats");
        assert_eq!(file.integrity(), Integrity::Verified);
        assert_eq!(file.inputs()[0].dims, [None, Some(3)]);
        assert_eq!(file.outputs()[0].name, "y");
        assert_eq!(file.opset(), DEFAULT_OPSET);
        assert!(file.f16_names().is_empty());
    }

    #[test]
    fn f16_weights_are_read_by_parameter_name_and_only_if_complete() {
        let (bytes, weights) = file_with(WeightStorage::F16);
        let file = OnnxFile::from_bytes(bytes.clone(), "f").unwrap();
        assert!(file.f16_names().iter().eq(["head.weight"]));
        assert_eq!(file.weights().unwrap(), weights);
        assert_eq!((file.inputs().len(), &file.inputs()[0].dims), (1, &vec![None, Some(3)]));

        let changed = |change: fn(&mut GraphProto)| {
            let mut model = ModelProto::decode(&bytes[..]).unwrap();
            model.metadata_props.retain(|entry| entry.key != DIGEST_KEY);
            change(model.graph.as_mut().unwrap());
            OnnxFile::from_bytes(model.encode_to_vec(), "f")
        };
        let initializer = "head.weight/halves";
        for (len, change) in [
            (11, (|g| g.initializer[0].raw_data.truncate(11)) as fn(&mut GraphProto)),
            (6, |g| g.initializer[0].raw_data.truncate(6)),
            (0, |g| g.initializer[0].raw_data.clear()),
            (12, |g| g.initializer[0].dims = vec![1 << 40, 1]),
            (12, |g| g.initializer[0].dims = vec![i64::MAX / 2, 2]),
        ] {
            let error = changed(change).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("f: {initializer}: expected the values of shape ")),
                "{error}"
            );
            assert!(error.ends_with(&format!("found {len} bytes")), "{error}");
        }
        // A weight that is converted several times is read once.
        let file = changed(|g| {
            for name in ["a", "b", "c"] {
                let node = NodeProto { output: vec![name.into()], ..g.node[0].clone() };
                g.node.push(node);
            }
        });
        assert_eq!(file.unwrap().weights().unwrap().len(), 1);
        // A tensor that is cast to another type, or by an operator of another domain, is not a stored weight.
        for change in [(|g| g.node[0].attribute[0].i = 11) as fn(&mut GraphProto), |g| {
            g.node[0].domain = "other".into()
        }] {
            let file = changed(change).unwrap();
            assert!(file.f16_names().is_empty() && file.weights().unwrap().is_empty());
        }
    }

    #[test]
    fn truncated_or_altered_files_are_rejected_or_equivalent() {
        let load = |bytes: Vec<u8>| OnnxFile::from_bytes(bytes, "f").and_then(|f| Ok((f.weights()?, f)));
        for (bytes, _) in [file_with(WeightStorage::F32), file_with(WeightStorage::F16)] {
            let (weights, original) = load(bytes.clone()).unwrap();
            let check = |bytes: Vec<u8>| match load(bytes) {
                Err(e) => {
                    let e = e.to_string();
                    assert!(e.starts_with("f: ") && !e.contains('\n'), "{e}");
                    1
                }
                Ok((found, file)) => {
                    let meta = |file: &OnnxFile| file.metadata().get(META_KEY).cloned();
                    assert_eq!((&found, meta(&file)), (&weights, meta(&original)));
                    assert_eq!((file.inputs(), file.outputs()), (original.inputs(), original.outputs()));
                    assert_eq!((file.opset(), file.f16_names()), (original.opset(), original.f16_names()));
                    0
                }
            };
            for end in 0..bytes.len() {
                assert_eq!(check(bytes[..end].to_vec()), 1, "cut after {end} bytes");
            }
            let mut rejected = 0;
            for byte in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[byte] ^= 1 << bit;
                    rejected += check(changed);
                }
            }
            // All bits matter except those in the names of the program and the graph.
            assert!(rejected > bytes.len() * 8 * 3 / 4, "{rejected} of {}", bytes.len() * 8);
        }
    }

    #[test]
    fn many_empty_nodes_are_rejected_before_decoding() {
        let nodes = [0x0a, 0].repeat(3_000_000);
        let mut bytes = vec![0x3a];
        prost::encoding::encode_varint(nodes.len() as u64, &mut bytes);
        bytes.extend(nodes);
        let error = OnnxFile::from_bytes(bytes, "f").unwrap_err().to_string();
        assert!(error.contains("at most"), "{error}");
    }
}
