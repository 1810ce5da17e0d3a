//! Opening any file as a model that can be computed.

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
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] super::Error),
    /// A graph.
    #[error(transparent)]
    Graph(#[from] tiny_cats_export::Error),
}

/// Opens a file as a model: an ONNX graph, or a checkpoint of any format that [`open`] reads. The content decides, not the name. Returns what
/// had to be assumed about the model, too.
///
/// # Errors
/// When the file can't be read or is damaged, or its network is not known.
pub fn open_model(path: &Path) -> Result<(Model, Vec<Assumption>), OpenError> {
    if !is_checkpoint(path).map_err(|e| super::ErrorKind::Io(e).at(path))? {
        return Ok((Model::open(path)?, Vec::new()));
    }
    let loaded = open(path, WeightsSelection::Default)?;
    let described = loaded.describe(&ModelOverrides::default()).map_err(|problem| problem.at(path))?;
    let model = Model::from_weights(described.meta, loaded.weights).with_name(&path.display().to_string());
    Ok((model, described.assumed))
}

/// Whether a file holds weights, as PyTorch's and safetensors' do, rather than a graph.
///
/// # Errors
/// When it can't be read.
pub fn is_checkpoint(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(9).read_to_end(&mut start)?;
    Ok(start.starts_with(b"PK\x03\x04") || start.get(8) == Some(&b'{'))
}
