//! Opening a graph or a checkpoint as a model that can be computed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use tiny_cats_export::Model;

use super::{Assumption, ModelOverrides, WeightsSelection, open};

/// A file that could not be opened as a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An error of reading a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] super::Error),
    /// An error of reading a graph.
    #[error(transparent)]
    Graph(#[from] tiny_cats_export::Error),
}

/// Opens a file as a model: an ONNX graph, or a checkpoint of any format that [`open`] reads. The format is recognized by the content, not
/// by the name. Also returns the assumptions about the model.
///
/// # Errors
/// If the file cannot be read or is damaged, or its network is unknown.
pub fn open_model(path: &Path) -> Result<(Model, Vec<Assumption>), OpenError> {
    if !is_checkpoint(path).map_err(|e| super::ErrorKind::Io(e).with_path(path))? {
        return Ok((Model::open(path)?, Vec::new()));
    }
    let loaded = open(path, WeightsSelection::Default)?;
    let described = loaded.describe(&ModelOverrides::default()).map_err(|problem| problem.with_path(path))?;
    let model = Model::from_weights(described.meta, loaded.weights).with_name(&path.display().to_string());
    Ok((model, described.assumed))
}

/// True if a file holds weights, as PyTorch and safetensors files do, rather than a graph.
///
/// # Errors
/// If it cannot be read.
pub fn is_checkpoint(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(9).read_to_end(&mut start)?;
    Ok(start.starts_with(b"PK\x03\x04") || start.get(8) == Some(&b'{'))
}
