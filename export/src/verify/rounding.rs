//! Verification of files that store weights in half precision.

use std::fmt;

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Array, Weights};

use super::{Case, Outputs, TOLERANCE, argmax, min_psnr, rows, scale};
use crate::{
    Error, Model, ModelMeta, Result,
    convert::export_form,
    onnx::{OnnxFile, round_to_f16},
};

/// The minimum peak signal-to-noise ratio between images generated with rounded and with unrounded weights, in dB. It is a root
/// mean square error of a hundredth of the range, some 2.5 levels of an 8-bit image.
pub const MIN_ROUNDING_PSNR: f64 = 40.0;

/// The effect of rounding weights to half precision, compared with the unrounded weights. candle computes both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundingReport {
    /// Maximum difference of an output.
    pub max_absolute_error: f32,
    /// For a generator, the minimum peak signal-to-noise ratio between final images of whole trajectories, with the recommended
    /// settings, in dB, at most 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_psnr: Option<f64>,
    /// For a classifier, the number of inputs that get another class, without ties. In a tie the two classes' logits differ by less
    /// than a runtime may, so either class is correct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_class: Option<usize>,
    /// True if the effect is within the limits.
    pub passed: bool,
}

impl RoundingReport {
    pub(super) fn compare(meta: &ModelMeta, full: &Outputs, rounded: &Outputs) -> Self {
        let pairs = || full.outputs.iter().zip(&rounded.outputs);
        let values = pairs().flat_map(|(a, b)| a.data().iter().zip(b.data()));
        // `max` would ignore a NaN.
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

/// Formats the report in one line.
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

/// Counts the rows of logits that give another class than those of `full`, without ties.
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

/// Returns the model that `file` holds in place of that of `meta` and `weights`, with some weights rounded to half precision.
/// `None` if rounding changes none.
///
/// # Errors
/// [`Error::Verification`] if the file holds other weights.
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

/// Measures the effect of rounding to half precision in `file`, an export of `weights`. Returns the rounded model and the report;
/// `None` if rounding changes nothing.
///
/// # Errors
/// [`Error::Verification`] if the file holds other weights; errors of computing.
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
