//! The weights at step 0.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tiny_cats_models::{ParamSpec, Weights, init};

use super::Result;
use crate::checkpoint::{self, InitialWeights};

type LoadFn = dyn Fn() -> checkpoint::Result<InitialWeights> + Send + Sync;

/// A file with initial weights. It is read at step 0 only: a resumed run does not need it.
#[derive(Clone)]
pub struct InitialWeightsSource {
    path: PathBuf,
    load: Arc<LoadFn>,
}

impl InitialWeightsSource {
    /// Returns the source of the weights that `load` reads from the file at `path`.
    pub fn new(
        path: impl Into<PathBuf>,
        load: impl Fn() -> checkpoint::Result<InitialWeights> + Send + Sync + 'static,
    ) -> Self {
        Self { path: path.into(), load: Arc::new(load) }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the file, which the settings of a run contain; `None` if it is not valid Unicode.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }
}

impl fmt::Debug for InitialWeightsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InitialWeightsSource").field(&self.path).finish()
    }
}

/// Sources are equal if their files are.
impl PartialEq for InitialWeightsSource {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// Returns the weights at step 0: those of `source`, and randomly initialized ones for all other parameters.
///
/// # Errors
/// If the file cannot be read, or its weights do not fit.
pub(super) fn initial_weights(
    specs: &[ParamSpec],
    seed: u64,
    source: Option<&InitialWeightsSource>,
) -> Result<Weights> {
    let mut weights = init(specs, seed);
    if let Some(source) = source {
        let initial = (source.load)()?;
        let path = source.path.display();
        initial.notes.iter().for_each(|note| tracing::info!(target: "tiny_cats::init", "{path}: {note}"));
        weights.extend(initial.weights);
    }
    Ok(weights)
}
