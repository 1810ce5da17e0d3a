//! Verification of files that store weights in half precision.

use std::fmt;

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Array, Weights};

use super::{Outputs, TOLERANCE, VerificationCase, argmax, min_psnr, rows, scale};
use crate::{
    Error, Model, ModelMeta, Result,
    convert::export_form,
    onnx::{OnnxFile, round_to_f16},
};

/// The minimum peak signal-to-noise ratio between images generated with rounded and with unrounded weights, in dB. It corresponds
/// to a root mean square error of 1 % of the range, about 2.5 levels of an 8-bit image.
pub const MIN_ROUNDING_PSNR: f64 = 40.0;

/// The effect of rounding weights to half precision, compared with the unrounded weights, both evaluated by candle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundingReport {
    /// Maximum difference of an output.
    pub max_absolute_error: f32,
    /// For a generator, the minimum peak signal-to-noise ratio between final images of trajectories with the recommended
    /// settings, in dB, at most 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_psnr: Option<f64>,
    /// For a classifier, the number of inputs whose predicted class changes, without ties. In a tie, the logits of the two classes
    /// differ by less than the tolerance of runtimes, so either class is correct.
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
        let images = full.images.as_ref().zip(rounded.images.as_ref());
        let trajectory_psnr =
            meta.generator().zip(images).map(|(task, (a, b))| min_psnr(a, b, task.value_range));
        let other_class = meta.classifier().map(|_| pairs().map(|(a, b)| count_other_class(a, b)).sum());
        let passed = trajectory_psnr.is_none_or(|ratio| ratio >= MIN_ROUNDING_PSNR)
            && other_class.is_none_or(|inputs| inputs == 0);
        Self { max_absolute_error, trajectory_psnr, other_class, passed }
    }
}

/// Formats the report in one line.
impl fmt::Display for RoundingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rounding weights to half precision changes outputs by up to {:.1e}",
            self.max_absolute_error
        )?;
        if let Some(ratio) = self.trajectory_psnr {
            write!(f, ", trajectory {ratio:.1} dB of at least {MIN_ROUNDING_PSNR} dB")?;
        }
        match self.other_class {
            Some(inputs) => write!(f, ", the class of {inputs} inputs"),
            None => Ok(()),
        }
    }
}

/// Counts the rows of logits whose predicted class differs from that of `full`, without ties.
fn count_other_class(full: &Array, rounded: &Array) -> usize {
    let scale = scale(full.data());
    let is_other = |(full, rounded): (&[f32], &[f32])| {
        let (Some(class), Some(other)) = (argmax(full), argmax(rounded)) else { return false };
        let (best, second) = (full[class], full[other]);
        let allowed = |value| TOLERANCE.allowed(value, scale);
        class != other && best - second > allowed(best) + allowed(second)
    };
    rows(full).zip(rows(rounded)).filter(|&pair| is_other(pair)).count()
}

/// Returns the model of `meta` and `weights` with the weights rounded as in `file`. `None` if rounding changes no weight.
///
/// # Errors
/// [`Error::Verification`] if the file contains other weights.
pub(super) fn rounded_model(meta: &ModelMeta, weights: &Weights, file: &OnnxFile) -> Result<Option<Model>> {
    let (meta, weights) = export_form(meta, weights)?;
    let expected = round_to_f16(&weights, file.f16_names())?;
    let stored = file.weights()?;
    if let Some((name, _)) = expected.iter().find(|(name, array)| stored.get(*name) != Some(*array)) {
        return Err(Error::Verification(format!(
            "{}: {name}: the values differ from the weights",
            file.name()
        )));
    }
    let changed = *expected != weights;
    Ok(changed.then(|| Model::from_weights(meta, expected.into_owned())))
}

/// Measures the effect of rounding to half precision in `file`, an export of `weights`. Returns the rounded model and the report;
/// `None` if rounding changes nothing.
///
/// # Errors
/// [`Error::Verification`] if the file contains other weights; errors of candle.
pub fn measure_rounding(
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
) -> Result<Option<(Model, RoundingReport)>> {
    let Some(model) = rounded_model(meta, weights, file)? else { return Ok(None) };
    let cases = VerificationCase::all(meta)?;
    let full = Outputs::compute(&Model::from_weights(meta.clone(), weights.clone()), &cases, true)?;
    let found = RoundingReport::compare(meta, &full, &Outputs::compute(&model, &cases, true)?);
    Ok(Some((model, found)))
}
