//! Numerical verification of exported files: comparison with the definition within a tolerance.

mod cases;
mod difference;
mod rounding;

use std::{
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tiny_cats_models::{Array, Weights, candle::with_candle_ops, num_parameters};

pub use crate::convert::export_form;
use crate::{
    Error, Model, ModelMeta, Request, Result, TaskMeta,
    convert::to_onnx_with_storage,
    onnx::{DEFAULT_OPSET, OnnxFile, WeightStorage},
    runtime::RuntimeKind,
    sample::{SampleSpec, SamplingSettings, sample},
    stage,
};
use cases::LoadedModel;
pub use cases::{InputArray, VerificationCase};
use difference::diagnose;
pub use difference::{Diagnosis, FirstDifference};
use rounding::rounded_model;
pub use rounding::{MIN_ROUNDING_PSNR, RoundingReport, measure_rounding};

/// The maximum difference of a runtime from the definition, element by element: `|a − b| ≤ absolute·max(1, s) + relative·|b|`. Here
/// `s` is the root mean square of the definition's output. Rounding errors grow with the values that are summed, so the tolerance
/// grows with the output's values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tolerance {
    /// Absolute tolerance of an element, in an output whose root mean square is at most 1.
    pub absolute: f32,
    /// Additional tolerance as a fraction of the element.
    pub relative: f32,
}

impl Tolerance {
    /// Returns the tolerance of an element `value` in an output of this [`scale`].
    pub fn allowed(self, value: f32, scale: f32) -> f32 {
        self.absolute * scale.max(1.0) + self.relative * value.abs()
    }
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { absolute, relative } = self;
        write!(f, "{absolute:.0e} of the output's scale (at least 1) + {relative:.0e} of the value")
    }
}

/// Returns the scale of an output, for [`Tolerance::allowed`]: the root mean square of its values; 0 if there are none.
pub fn scale(values: &[f32]) -> f32 {
    let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    (square / values.len().max(1) as f64).sqrt() as f32
}

/// The tolerance of verification: about ten times the observed differences between runtimes, and a fraction of a level of an 8-bit
/// image (1/127.5).
pub const TOLERANCE: Tolerance = Tolerance { absolute: 1e-4, relative: 1e-3 };
/// The minimum peak signal-to-noise ratio between the final images of two runtimes, in dB.
pub const MIN_PSNR: f64 = 50.0;
/// The upper limit of [`psnr`], in dB, because JSON cannot express the infinite ratio of equal images.
const MAX_PSNR: f64 = 200.0;
const SEED: u64 = 0;

/// Options of an export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Version of ONNX's operator set.
    pub opset: u32,
    /// True if the final images of sampling trajectories are also compared.
    pub trajectory: bool,
    /// Storage of the weights in the file.
    pub storage: WeightStorage,
    /// Inputs to verify on besides the generated ones, such as real data.
    pub cases: Vec<VerificationCase>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { opset: DEFAULT_OPSET, trajectory: false, storage: WeightStorage::F32, cases: Vec::new() }
    }
}

/// The report of a verification, stored as JSON beside the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationReport {
    /// Version of this crate.
    pub tiny_cats: String,
    /// Size of the file, in bytes.
    pub bytes: usize,
    /// Version of ONNX's operator set.
    pub opset: u32,
    /// Number of values in the parameters.
    pub parameters: usize,
    /// The reference with which runtimes are compared.
    pub reference: String,
    /// Tolerance of the comparison.
    pub tolerance: Tolerance,
    /// Number of inputs compared: images, which for a generator come with a time and a label.
    pub inputs: usize,
    /// Batch sizes of the inputs.
    pub batches: Vec<usize>,
    /// Effect of the file's rounded weights; absent if the file holds the weights unrounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RoundingReport>,
    /// Runtimes on which the file was verified.
    pub runtimes: Vec<RuntimeReport>,
    /// Runtimes on which it was not verified, with the reason.
    pub skipped: Vec<(String, String)>,
    /// True if every comparison passed.
    pub passed: bool,
}

/// The report of one runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeReport {
    /// Name of the runtime.
    pub runtime: String,
    /// Version of the runtime.
    pub version: String,
    /// Maximum difference from the reference.
    pub max_absolute_error: f32,
    /// That difference as a fraction of the reference's largest value.
    pub max_relative_error: f32,
    /// Maximum of the difference as a fraction of the element's tolerance; at most 1 passes.
    pub tolerance_used: f32,
    /// Peak signal-to-noise ratio between the final images of a trajectory, in dB, at most 200; absent if not requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_psnr: Option<f64>,
    /// For a classifier, the number of inputs with the reference's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_class: Option<usize>,
    /// The first operation that differs, if the outputs differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// The error, if the runtime failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// True if the differences are within the limits.
    pub passed: bool,
}

impl VerificationReport {
    /// Returns a description of all failures, in one line.
    pub fn failures(&self) -> String {
        let describe = |r: &RuntimeReport| match &r.error {
            Some(error) => error.clone(),
            None => {
                format!(
                    "{} {} differs from {} by up to {:.2e}, {:.1} times the tolerance{}",
                    r.runtime,
                    r.version,
                    self.reference,
                    r.max_absolute_error,
                    r.tolerance_used,
                    r.trajectory_psnr.map_or(String::new(), |db| format!(", trajectory {db:.1} dB")),
                ) + &r.diagnosis.as_ref().map_or(String::new(), |diagnosis| format!("; {diagnosis}"))
            }
        };
        let rounding = self.rounding.iter().filter(|r| !r.passed).map(RoundingReport::to_string);
        let runtimes = self.runtimes.iter().filter(|r| !r.passed).map(describe);
        rounding.chain(runtimes).collect::<Vec<_>>().join("; ")
    }
}

/// Exports `weights` to an ONNX file, verifies it in memory, and then stores it at `path`, with the report at [`report_path`].
///
/// # Errors
/// [`Error::Verification`] if a runtime differs from the definition, no runtime is available, or rounding the weights to half
/// precision changes the outputs too much. Also errors of writing. Then nothing is stored, and an older file and its report are
/// unchanged, except if the last rename, of the report, fails: the report is then missing.
pub fn export(
    meta: &ModelMeta,
    weights: &Weights,
    path: &Path,
    options: &ExportOptions,
) -> Result<VerificationReport> {
    let bytes = to_onnx_with_storage(meta, weights, options.opset, options.storage)?;
    let file = OnnxFile::from_bytes(bytes, &path.display().to_string())?;
    let report = verify_cases(&RuntimeKind::ALL, meta, weights, &file, options.trajectory, &options.cases)?;
    if !report.passed {
        return Err(Error::Verification(report.failures()));
    }
    let report_file = report_path(path);
    let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Verification(e.to_string()))?;
    // Both files are on disk before either is renamed, so that an older pair is replaced completely or not at all.
    let staged_model = stage(path, |w| w.write_all(file.bytes())).map_err(Error::io(path))?;
    let staged_report = stage(&report_file, |w| w.write_all(&json)).map_err(Error::io(&report_file))?;
    staged_model.commit().map_err(Error::io(path))?;
    staged_report.commit().map_err(|e| {
        // The older report describes another file.
        let _ = std::fs::remove_file(&report_file);
        Error::io(&report_file)(e)
    })?;
    Ok(report)
}

/// Returns the path of the report on `NAME.onnx`: `NAME.report.json`.
pub fn report_path(path: &Path) -> PathBuf {
    path.with_extension("report.json")
}

/// Verifies `file` against the definition of `meta` and `weights`. The file must contain the same weights and metadata. Its outputs on
/// every available runtime must agree with the definition, for single inputs and batches.
///
/// A generator is compared for every label, at several times, and with `trajectory` also by its final images. A classifier is compared
/// with its unfolded definition, on noise and synthetic images.
///
/// If the file stores weights in half precision, the reference uses the rounded weights; for a classifier, the rounded folded weights.
/// The effect of rounding is then measured against the unrounded weights, for a generator always with its final images.
///
/// # Errors
/// [`Error::Verification`] if weights or outputs of the definition are not finite, the file contains other weights or metadata, or no
/// runtime is available. The report contains the differences of the runtimes.
pub fn verify(
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
    trajectory: bool,
) -> Result<VerificationReport> {
    verify_on(&RuntimeKind::ALL, meta, weights, file, trajectory)
}

/// Verifies as [`verify`] does, on those of `kinds` that are available. candle is skipped, because it is the reference.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(
    kinds: &[RuntimeKind],
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
    trajectory: bool,
) -> Result<VerificationReport> {
    verify_cases(kinds, meta, weights, file, trajectory, &[])
}

/// Verifies as [`verify_on`] does, on the generated inputs and on `cases`.
///
/// # Errors
/// As [`verify`].
pub fn verify_cases(
    kinds: &[RuntimeKind],
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
    trajectory: bool,
    cases: &[VerificationCase],
) -> Result<VerificationReport> {
    // A NaN is not equal to itself, so this comes before any comparison.
    let (exported_meta, exported) = export_form(meta, weights)?;
    for (name, array) in weights.iter().chain(&exported) {
        let invalid = array.data().iter().filter(|v| !v.is_finite()).count();
        if invalid > 0 {
            let message = format!("{name}: {invalid} of {} numbers are not finite", array.data().len());
            return Err(Error::Verification(message));
        }
    }
    let model = Model::from_bytes(file.bytes().to_vec(), file.name())?;
    let rounded = rounded_model(meta, weights, file)?;
    if *model.meta() != exported_meta {
        model.meta().config.network()?;
        return Err(Error::Verification(format!(
            "{}: the metadata differ from those of the model",
            file.name()
        )));
    }
    let full = Model::from_weights(meta.clone(), weights.clone());
    let cases = [VerificationCase::all(meta)?, cases.to_vec()].concat();
    let reference = rounded.as_ref().unwrap_or(&full);
    // The reference uses candle's operations only, because shared kernels would hide their errors.
    let compute = |model, images| with_candle_ops(|| Outputs::compute(model, &cases, images));
    let expected = compute(reference, trajectory || rounded.is_some())?;
    if expected.outputs.iter().flat_map(Array::data).any(|v| !v.is_finite()) {
        let message = "the network returned a value that is not finite; its weights are damaged";
        return Err(Error::Verification(message.into()));
    }
    let rounding = match rounded {
        Some(_) => Some(RoundingReport::compare(meta, &compute(&full, true)?, &expected)),
        None => None,
    };
    let (mut runtimes, mut skipped) = (Vec::new(), Vec::new());
    for kind in kinds.iter().copied().filter(|&kind| kind != RuntimeKind::Candle) {
        match kind.version() {
            Err(e) => skipped.push((kind.to_string(), e.to_string())),
            Ok(_) if kind.can_run_graphs() && file.opset() > kind.max_opset() => {
                let newest = kind.max_opset();
                skipped.push((
                    kind.to_string(),
                    format!("expected an operator set up to {newest}, found {}", file.opset()),
                ));
            }
            Ok(version) => {
                let (mut found, worst) = compare(&model, kind, &cases, &expected, trajectory);
                if let (None, Some(case)) = (&found.error, worst) {
                    // A search that fails does not hide the difference.
                    let held = held_weights(reference)?;
                    found.diagnosis = diagnose(kind, &exported_meta, &held, file, &cases[case]).ok();
                }
                runtimes.push(RuntimeReport { version, ..found });
            }
        }
    }
    // A runtime that evaluates definitions does not verify the graph.
    let is_graph_runtime =
        |name: &str| RuntimeKind::ALL.iter().any(|kind| kind.name() == name && kind.can_run_graphs());
    let needs_graph_runtime = kinds.iter().any(|kind| kind.can_run_graphs());
    if runtimes.is_empty() || needs_graph_runtime && !runtimes.iter().any(|r| is_graph_runtime(&r.runtime)) {
        let reasons: Vec<String> = skipped.into_iter().map(|(_, reason)| reason).collect();
        return Err(Error::Verification(format!(
            "no runtime is available for verification: {}",
            reasons.join("; ")
        )));
    }
    let mut batches: Vec<usize> = cases.iter().map(VerificationCase::len).collect();
    batches.sort_unstable();
    batches.dedup();
    Ok(VerificationReport {
        tiny_cats: env!("CARGO_PKG_VERSION").into(),
        bytes: file.bytes().len(),
        opset: file.opset(),
        parameters: num_parameters(weights),
        reference: format!("candle {}", RuntimeKind::Candle.version()?),
        tolerance: TOLERANCE,
        inputs: cases.iter().map(VerificationCase::len).sum(),
        batches,
        passed: runtimes.iter().all(|r| r.passed) && rounding.as_ref().is_none_or(|r| r.passed),
        rounding,
        runtimes,
        skipped,
    })
}

/// Returns the weights that an export of `reference` holds.
fn held_weights(reference: &Model) -> Result<Weights> {
    Ok(export_form(reference.meta(), &reference.weights()?)?.1)
}

/// The outputs of a network for all cases, and its sampled images.
struct Outputs {
    outputs: Vec<Array>,
    /// Images of a generator, if requested.
    images: Option<Vec<Array>>,
}

impl Outputs {
    /// Computes the outputs of the definition, with candle.
    fn compute(model: &Model, cases: &[VerificationCase], images: bool) -> Result<Self> {
        let mut network = LoadedModel::new(model, RuntimeKind::Candle)?;
        let outputs = cases.iter().map(|case| network.run(case)).collect::<Result<_>>()?;
        Ok(Self { outputs, images: if images { sample_images(&mut network, model.meta())? } else { None } })
    }
}

/// Samples two images with the recommended settings of a generator.
fn sample_images(network: &mut LoadedModel, meta: &ModelMeta) -> Result<Option<Vec<Array>>> {
    let TaskMeta::Generator(task) = &meta.task else { return Ok(None) };
    let settings = SamplingSettings::new(task, &Request { seed: SEED, ..Request::default() });
    let last = meta.classes.len().saturating_sub(1) as i64;
    let specs = [SampleSpec { index: 0, label: 0 }, SampleSpec { index: 1, label: last }];
    let dims = [3, meta.image_size, meta.image_size];
    sample(network, &settings, dims, &specs, &mut |_| ControlFlow::Continue(())).map(Some)
}

/// Counts the rows of logits with the same predicted class.
fn count_same_class(a: &Array, b: &Array) -> usize {
    rows(a).zip(rows(b)).filter(|(a, b)| argmax(a) == argmax(b)).count()
}

fn rows(array: &Array) -> impl Iterator<Item = &[f32]> {
    array.data().chunks(array.dims().last().copied().unwrap_or(1).max(1))
}

/// Returns the index of the maximum.
fn argmax(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j]))
}

/// Compares a runtime with the definition. Returns the report, and the number of the case that differs most, if one exceeds the tolerance.
fn compare(
    model: &Model,
    kind: RuntimeKind,
    cases: &[VerificationCase],
    expected: &Outputs,
    trajectory: bool,
) -> (RuntimeReport, Option<usize>) {
    let mut worst = (1.0, None);
    let mut report = RuntimeReport {
        runtime: kind.to_string(),
        version: String::new(),
        max_absolute_error: 0.0,
        max_relative_error: 0.0,
        tolerance_used: 0.0,
        trajectory_psnr: None,
        same_class: None,
        diagnosis: None,
        error: None,
        passed: false,
    };
    let mut run = || -> Result<()> {
        let mut network = LoadedModel::new(model, kind)?;
        let largest = expected.outputs.iter().flat_map(Array::data).fold(0f32, |max, v| max.max(v.abs()));
        for (number, (case, expected)) in cases.iter().zip(&expected.outputs).enumerate() {
            let found = network.run(case)?;
            if found.dims() != expected.dims() {
                let (expected, found) = (expected.dims(), found.dims());
                return Err(kind.error(format!("expected an output of shape {expected:?}, found {found:?}")));
            }
            if let TaskMeta::Classifier(_) = model.meta().task {
                *report.same_class.get_or_insert(0) += count_same_class(&found, expected);
            }
            let (error, used) = deviation(&found, expected);
            report.max_absolute_error = report.max_absolute_error.max(error);
            report.tolerance_used = report.tolerance_used.max(used);
            if used > worst.0 {
                worst = (used, Some(number));
            }
        }
        report.max_relative_error =
            (report.max_absolute_error / largest.max(f32::MIN_POSITIVE)).min(f32::MAX);
        if let (true, Some(images), Some(task)) = (trajectory, &expected.images, model.meta().generator()) {
            let found = sample_images(&mut network, model.meta())?.unwrap_or_default();
            report.trajectory_psnr = Some(min_psnr(&found, images, task.value_range));
        }
        Ok(())
    };
    report.error = run().err().map(|e| e.to_string());
    report.passed = report.error.is_none()
        && report.tolerance_used <= 1.0
        && report.trajectory_psnr.is_none_or(|ratio| ratio >= MIN_PSNR);
    (report, worst.1)
}

/// Returns the maximum difference of `found` from `expected`, and its maximum as a fraction of the element's tolerance. Results of other
/// shapes differ by the largest number.
fn deviation(found: &Array, expected: &Array) -> (f32, f32) {
    if found.dims() != expected.dims() {
        return (f32::MAX, f32::MAX);
    }
    let scale = scale(expected.data());
    let mut max = (0f32, 0f32);
    for (found, expected) in found.data().iter().zip(expected.data()) {
        // `max` would ignore a NaN.
        let error = if found.is_finite() { (found - expected).abs() } else { f32::MAX };
        let used = (error / TOLERANCE.allowed(*expected, scale)).min(f32::MAX);
        max = (max.0.max(error), max.1.max(used));
    }
    max
}

/// Returns the minimum [`psnr`] of all pairs of images.
fn min_psnr(a: &[Array], b: &[Array], range: [f32; 2]) -> f64 {
    a.iter().zip(b).map(|(a, b)| psnr(a, b, range)).fold(MAX_PSNR, f64::min)
}

/// Returns the peak signal-to-noise ratio between two images with `range` as black and white, in dB, at most 200; 0 if a value is
/// NaN.
pub fn psnr(a: &Array, b: &Array, [black, white]: [f32; 2]) -> f64 {
    let clamped = |v: &f32| f64::from(v.clamp(black, white));
    let square: f64 = a.data().iter().zip(b.data()).map(|(a, b)| (clamped(a) - clamped(b)).powi(2)).sum();
    let mean = square / a.data().len().max(1) as f64;
    if mean.is_nan() {
        return 0.0;
    }
    (20.0 * f64::from(white - black).log10() - 10.0 * mean.log10()).min(MAX_PSNR)
}
