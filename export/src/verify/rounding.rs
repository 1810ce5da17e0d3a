//! Proof that storing weights as halves does no harm.

use std::fmt;

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Array, Weights};

use super::{Case, Outputs, TOLERANCE, argmax, min_psnr, rows, scale};
use crate::{
    Error, Model, ModelMeta, Result,
    convert::export_form,
    onnx::{OnnxFile, round_to_f16},
};

/// The least peak signal-to-noise ratio between pictures drawn with rounded weights and with full ones, in dB: a root mean square of a
/// hundredth of the range, some 2.5 levels of an 8-bit picture.
pub const MIN_ROUNDING_PSNR: f64 = 40.0;

/// What changes because weights are rounded to halves, against the same weights in full. candle computes both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundingReport {
    /// The largest difference of an output.
    pub max_absolute_error: f32,
    /// Of a generator, the least peak signal-to-noise ratio between final pictures of whole trajectories, drawn as the file advises, in
    /// dB, at most 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_psnr: Option<f64>,
    /// Of a classifier, how many of the inputs are given another class, ties apart: where a runtime may differ by more than the two
    /// classes' logits do, either is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_class: Option<usize>,
    /// Whether that is harmless.
    pub passed: bool,
}

impl RoundingReport {
    pub(super) fn compare(meta: &ModelMeta, full: &Outputs, rounded: &Outputs) -> Self {
        let pairs = || full.outputs.iter().zip(&rounded.outputs);
        let values = pairs().flat_map(|(a, b)| a.data().iter().zip(b.data()));
        // `max` would drop a NaN.
        let error = |(a, b): (&f32, &f32)| if (a - b).is_finite() { (a - b).abs() } else { f32::MAX };
        let max_absolute_error = values.map(error).fold(0.0, f32::max);
        let pictures = full.images.as_ref().zip(rounded.images.as_ref());
        let trajectory_psnr =
            meta.generator().zip(pictures).map(|(task, (a, b))| min_psnr(a, b, task.value_range));
        let other_class = meta.classifier().map(|_| pairs().map(|(a, b)| other_classes(a, b)).sum());
        let passed = trajectory_psnr.is_none_or(|ratio| ratio >= MIN_ROUNDING_PSNR)
            && other_class.is_none_or(|inputs| inputs == 0);
        Self { max_absolute_error, trajectory_psnr, other_class, passed }
    }
}

/// In one line.
impl fmt::Display for RoundingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rounding weights to halves changes outputs by up to {:.1e}", self.max_absolute_error)?;
        if let Some(ratio) = self.trajectory_psnr {
            write!(f, ", trajectory {ratio:.1} dB of at least {MIN_ROUNDING_PSNR} dB")?;
        }
        match self.other_class {
            Some(inputs) => write!(f, ", the class of {inputs} inputs"),
            None => Ok(()),
        }
    }
}

/// Rows of logits that give another class than those of `full`, ties apart.
fn other_classes(full: &Array, rounded: &Array) -> usize {
    let scale = scale(full.data());
    let is_other = |(full, rounded): (&[f32], &[f32])| {
        let (Some(class), Some(other)) = (argmax(full), argmax(rounded)) else { return false };
        let (best, second) = (full[class], full[other]);
        let allowed = |value| TOLERANCE.allowed(value, scale);
        class != other && best - second > allowed(best) + allowed(second)
    };
    rows(full).zip(rows(rounded)).filter(|&pair| is_other(pair)).count()
}

/// The model that `file` holds instead of that of `meta` and `weights`: some weights are rounded to halves. None where rounding changes
/// none.
///
/// # Errors
/// [`Error::Verification`] when the file holds other weights.
pub(super) fn rounded_model(meta: &ModelMeta, weights: &Weights, file: &OnnxFile) -> Result<Option<Model>> {
    let (meta, weights) = export_form(meta, weights)?;
    let expected = round_to_f16(&weights, file.halves())?;
    let held = file.weights()?;
    if let Some((name, _)) = expected.iter().find(|(name, array)| held.get(*name) != Some(*array)) {
        return Err(Error::Verification(format!("{} holds another {name}", file.name())));
    }
    let changed = *expected != *weights;
    Ok(changed.then(|| Model::from_weights(meta.into_owned(), expected.into_owned())))
}

/// What rounding to halves changes in `file`, an export of `weights`, and the model that it makes of them; None where it changes none.
///
/// # Errors
/// [`Error::Verification`] when the file holds other weights; those of computing.
pub fn measure_rounding(
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
) -> Result<Option<(Model, RoundingReport)>> {
    let Some(model) = rounded_model(meta, weights, file)? else { return Ok(None) };
    let cases = Case::all(meta)?;
    let full = Outputs::of(&Model::from_weights(meta.clone(), weights.clone()), &cases, true)?;
    let found = RoundingReport::compare(meta, &full, &Outputs::of(&model, &cases, true)?);
    Ok(Some((model, found)))
}
