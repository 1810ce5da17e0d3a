//! The digest of an ONNX file, which covers its content rather than its bytes.
//!
//! It covers the weights, the nodes, the inputs and outputs, the operator sets and the metadata of the model. If another program
//! rewrites the file or adds metadata, the digest still matches.

use prost::Message;
use sha2::{Digest, Sha256};

use super::proto::{ModelProto, TensorProto};
use crate::{CHECKSUM_MISMATCH, DIGEST_KEY, Error, Integrity, META_KEY, Result, hex};

/// Returns the digest of `model`, in hexadecimal.
pub fn digest(model: &ModelProto) -> String {
    let mut hash = PartHasher(Sha256::new());
    if let Some(meta) = value(model, META_KEY) {
        hash.part("meta", meta.as_bytes());
    }
    for set in &model.opset_import {
        hash.part("opset", &set.encode_to_vec());
    }
    let Some(graph) = &model.graph else { return hex(&hash.0.finalize()) };
    for node in &graph.node {
        hash.part("node", &node.encode_to_vec());
    }
    for input in &graph.input {
        hash.part("input", &input.encode_to_vec());
    }
    for output in &graph.output {
        hash.part("output", &output.encode_to_vec());
    }
    for tensor in &graph.initializer {
        let TensorProto { name, dims, data_type, float_data, raw_data, .. } = tensor;
        let header = TensorProto {
            name: name.clone(),
            dims: dims.clone(),
            data_type: *data_type,
            ..Default::default()
        };
        hash.part("tensor", &header.encode_to_vec());
        // Equal values give equal bytes, independently of their storage in the file.
        if raw_data.is_empty() {
            hash.begin("values", 4 * float_data.len());
            for chunk in float_data.chunks(1 << 12) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                hash.0.update(bytes);
            }
        } else {
            hash.part("values", raw_data);
        }
    }
    hex(&hash.0.finalize())
}

/// Compares `model` with the digest that it carries.
///
/// # Errors
/// [`Error::File`] for `file` if they differ.
pub fn check_digest(model: &ModelProto, file: &str) -> Result<Integrity> {
    match value(model, DIGEST_KEY) {
        None => Ok(Integrity::Unchecked),
        Some(expected) if expected == digest(model) => Ok(Integrity::Verified),
        Some(_) => Err(Error::file(file, DIGEST_KEY, CHECKSUM_MISMATCH)),
    }
}

/// Returns the metadata value under `key`: the last one if there are several.
fn value<'a>(model: &'a ModelProto, key: &str) -> Option<&'a str> {
    model.metadata_props.iter().rfind(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

/// A hash of labeled parts. The length of each part precedes it, so that no two sequences of parts have the same bytes.
struct PartHasher(Sha256);

impl PartHasher {
    fn begin(&mut self, label: &str, len: usize) {
        self.0.update(label);
        self.0.update([0]);
        self.0.update((len as u64).to_le_bytes());
    }

    fn part(&mut self, label: &str, bytes: &[u8]) {
        self.begin(label, bytes.len());
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{
        OnnxFile, OnnxGraph,
        proto::{DimensionValue, StringStringEntryProto},
    };
    use tiny_cats_models::Tensor;

    fn model() -> ModelProto {
        let graph = OnnxGraph::new(17).unwrap();
        let y = graph.floats("x", &[4]).unwrap().affine(2.0, 1.0).unwrap().softmax().unwrap();
        let bytes = graph.finish(&[("y", &y)], &[(META_KEY, "cats".into())]).unwrap();
        ModelProto::decode(&bytes[..]).unwrap()
    }

    fn load(model: &ModelProto) -> Result<Integrity> {
        OnnxFile::from_bytes(model.encode_to_vec(), "f").map(|file| file.integrity())
    }

    #[test]
    fn a_file_rewritten_by_another_program_still_matches() {
        let mut rewritten = model();
        for tensor in &mut rewritten.graph.as_mut().unwrap().initializer {
            tensor.float_data =
                tensor.raw_data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            tensor.raw_data.clear();
        }
        rewritten.producer_name = "other".into();
        rewritten
            .metadata_props
            .insert(0, StringStringEntryProto { key: "note".into(), value: "mine".into() });
        rewritten.metadata_props.reverse();
        assert_eq!(load(&rewritten).unwrap(), Integrity::Verified);
        rewritten.metadata_props.retain(|entry| entry.key != DIGEST_KEY);
        assert_eq!(load(&rewritten).unwrap(), Integrity::Unchecked);
    }

    #[test]
    fn changes_to_the_content_of_a_file_are_detected() {
        type Change = fn(&mut ModelProto);
        let changes: [Change; 10] = [
            |m| m.opset_import[0].version = 18,
            |m| m.metadata_props.iter_mut().find(|e| e.key == META_KEY).unwrap().value = "dogs".into(),
            |m| m.metadata_props.iter_mut().find(|e| e.key == DIGEST_KEY).unwrap().value.clear(),
            |m| m.graph.as_mut().unwrap().initializer[0].raw_data[0] ^= 1,
            |m| m.graph.as_mut().unwrap().initializer[0].dims.push(1),
            |m| m.graph.as_mut().unwrap().initializer.swap(0, 1),
            |m| m.graph.as_mut().unwrap().node[0].op_type = "Div".into(),
            |m| m.graph.as_mut().unwrap().node[2].attribute[0].i = 0,
            |m| m.graph.as_mut().unwrap().output[0].name = "x".into(),
            |m| {
                let input = &mut m.graph.as_mut().unwrap().input[0];
                let shape = input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut();
                shape.unwrap().dim[1].value = Some(DimensionValue::Size(5));
            },
        ];
        assert_eq!(load(&model()).unwrap(), Integrity::Verified);
        for (i, change) in changes.into_iter().enumerate() {
            let mut changed = model();
            change(&mut changed);
            let error = load(&changed).expect_err(&format!("change {i}")).to_string();
            assert_eq!(error, format!("f: {DIGEST_KEY}: {CHECKSUM_MISMATCH}"), "change {i}");
        }
    }
}
