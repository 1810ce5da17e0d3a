//! Telling classes apart.

use tiny_cats_models::Array;

use crate::Result;

/// A network that tells classes apart.
pub trait Classify {
    /// Logits `[n, classes]` of normalised pictures `x` `[n, 3, size, size]`.
    ///
    /// # Errors
    /// Those of the runtime.
    fn logits(&mut self, x: &Array) -> Result<Array>;
}
