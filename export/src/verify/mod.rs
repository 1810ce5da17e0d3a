//! Proof that an exported file computes what its definition computes.

mod cases;
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
use cases::{Case, LoadedModel};
use rounding::rounded_model;
pub use rounding::{MIN_ROUNDING_PSNR, RoundingReport, measure_rounding};

/// How far a runtime may be from the definition, element by element: `|a − b| ≤ absolute·max(1, s) + relative·|b|`, where `s` is the
/// root mean square of the definition's output. Rounding errors grow with the values that are summed, so an output of large values may
/// differ by as much more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tolerance {
    /// What any element may differ by, in an output whose root mean square is at most 1.
    pub absolute: f32,
    /// What it may differ by more, as a part of its value.
    pub relative: f32,
}

impl Tolerance {
    /// By how much an element may differ from `value`, in an output of this [`scale`].
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

/// The scale of an output, for [`Tolerance::allowed`]: the root mean square of its values; 0 of none.
pub fn scale(values: &[f32]) -> f32 {
    let square: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    (square / values.len().max(1) as f64).sqrt() as f32
}

/// Some ten times what runtimes are seen to differ by, and a fraction of a level of an 8-bit picture (1/127.5).
pub const TOLERANCE: Tolerance = Tolerance { absolute: 1e-4, relative: 1e-3 };
/// The least peak signal-to-noise ratio between the final pictures of two runtimes, in dB.
pub const MIN_PSNR: f64 = 50.0;
/// Equal pictures have no finite ratio, and JSON no infinity.
const MAX_PSNR: f64 = 200.0;
const SEED: u64 = 0;

/// How to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The version of ONNX's operator set.
    pub opset: u32,
    /// Whether the whole sampling trajectory is compared too.
    pub trajectory: bool,
    /// How the file stores weights.
    pub storage: WeightStorage,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { opset: DEFAULT_OPSET, trajectory: false, storage: WeightStorage::F32 }
    }
}

/// What verification found, stored as JSON beside the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationReport {
    /// The version of this crate.
    pub tiny_cats: String,
    /// The file's size.
    pub bytes: usize,
    /// The version of ONNX's operator set.
    pub opset: u32,
    /// Parameters of the network.
    pub parameters: usize,
    /// What the runtimes are compared with.
    pub reference: String,
    /// How far they may be from it.
    pub tolerance: Tolerance,
    /// Inputs compared: pictures, for a generator each with a time and a label.
    pub inputs: usize,
    /// Batch sizes that they were given in.
    pub batches: Vec<usize>,
    /// What the file's rounded weights change; absent where it holds the weights as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RoundingReport>,
    /// The runtimes that the file was compared on.
    pub runtimes: Vec<RuntimeReport>,
    /// The runtimes that it was not compared on, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Whether all is well.
    pub passed: bool,
}

/// What one runtime did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeReport {
    /// Its name.
    pub runtime: String,
    /// Its version.
    pub version: String,
    /// The largest difference from the reference.
    pub max_absolute_error: f32,
    /// That difference as a part of the reference's largest value.
    pub max_relative_error: f32,
    /// The largest difference as a part of what the tolerance allows that element; at most 1 passes.
    pub tolerance_used: f32,
    /// Peak signal-to-noise ratio between the final pictures of a whole trajectory, in dB, at most 200; absent where not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_psnr: Option<f64>,
    /// Of a classifier, how many of the inputs are given the reference's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_class: Option<usize>,
    /// What it said where it failed altogether.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it agrees.
    pub passed: bool,
}

impl VerificationReport {
    /// What is wrong, in one line.
    pub fn failures(&self) -> String {
        let failed = |r: &RuntimeReport| match &r.error {
            Some(error) => error.clone(),
            None => format!(
                "{} {} differs from {} by up to {:.2e}, {:.1} times the tolerance{}",
                r.runtime,
                r.version,
                self.reference,
                r.max_absolute_error,
                r.tolerance_used,
                r.trajectory_psnr.map_or(String::new(), |db| format!(", trajectory {db:.1} dB")),
            ),
        };
        let rounding = self.rounding.iter().filter(|r| !r.passed).map(RoundingReport::to_string);
        let runtimes = self.runtimes.iter().filter(|r| !r.passed).map(failed);
        rounding.chain(runtimes).collect::<Vec<_>>().join("; ")
    }
}

/// Writes `weights` as an ONNX file, verifies it in memory, and only then stores it at `path`, with the report beside it, at
/// [`report_path`].
///
/// # Errors
/// [`Error::Verification`] when a runtime disagrees with the definition, none is there to ask, or rounding the weights to halves does harm;
/// those of writing. Nothing is stored then, and an older file and its report are left as they were; should only the report's last
/// renaming fail, it is missing.
pub fn export(
    meta: &ModelMeta,
    weights: &Weights,
    path: &Path,
    options: &ExportOptions,
) -> Result<VerificationReport> {
    let bytes = to_onnx_with_storage(meta, weights, options.opset, options.storage)?;
    let file = OnnxFile::from_bytes(bytes, &path.display().to_string())?;
    let report = verify(meta, weights, &file, options.trajectory)?;
    if !report.passed {
        return Err(Error::Verification(report.failures()));
    }
    let beside = report_path(path);
    let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Verification(e.to_string()))?;
    // Both are on the disk before either is in its place: together they replace an older pair, or not at all.
    let model = stage(path, |w| w.write_all(file.bytes())).map_err(Error::io(path))?;
    let about = stage(&beside, |w| w.write_all(&json)).map_err(Error::io(&beside))?;
    model.commit().map_err(Error::io(path))?;
    about.commit().map_err(|e| {
        // The older report speaks of another file.
        let _ = std::fs::remove_file(&beside);
        Error::io(&beside)(e)
    })?;
    Ok(report)
}

/// Where the report on `NAME.onnx` lies: `NAME.report.json`.
pub fn report_path(path: &Path) -> PathBuf {
    path.with_extension("report.json")
}

/// Compares `file` with the definition that `meta` and `weights` make: that it holds the same weights and metadata, and that it
/// computes the same on every runtime that is present, alone and in batches: a generator for every label, at several times, and with
/// `trajectory` in whole pictures too; a classifier, whose definition is not folded, on noise and drawn pictures.
///
/// Of a file that stores weights as halves, the definition is that of the weights rounded, folded ones of a classifier; what rounding
/// changes is compared with the weights as they are, besides, for a generator always in whole pictures.
///
/// # Errors
/// [`Error::Verification`] when weights are not finite, when the file holds something else, when there is nothing to compare on, or when
/// the definition itself returns no finite numbers. A runtime that disagrees is in the report.
pub fn verify(
    meta: &ModelMeta,
    weights: &Weights,
    file: &OnnxFile,
    trajectory: bool,
) -> Result<VerificationReport> {
    verify_on(&RuntimeKind::ALL, meta, weights, file, trajectory)
}

/// As [`verify`], on those of `kinds` that are present, other than candle, which is the reference.
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
    // A NaN is not equal to itself, so this comes before any comparison.
    let (exported_meta, exported) = export_form(meta, weights)?;
    for (name, array) in weights.iter().chain(&*exported) {
        let bad = array.data().iter().filter(|v| !v.is_finite()).count();
        if bad > 0 {
            let message = format!("{name}: {bad} of {} numbers are not finite", array.data().len());
            return Err(Error::Verification(message));
        }
    }
    let model = Model::from_bytes(file.bytes().to_vec(), file.name())?;
    let rounded = rounded_model(meta, weights, file)?;
    if *model.meta() != *exported_meta {
        return Err(Error::Verification(format!("{} describes another model in its metadata", file.name())));
    }
    let full = Model::from_weights(meta.clone(), weights.clone());
    let cases = Case::all(meta)?;
    let reference = rounded.as_ref().unwrap_or(&full);
    // By candle's own operations: what shares kernels with a runtime would share their faults.
    let plain = |model, pictures| with_candle_ops(|| Outputs::of(model, &cases, pictures));
    let expected = plain(reference, trajectory || rounded.is_some())?;
    if expected.outputs.iter().flat_map(Array::data).any(|v| !v.is_finite()) {
        let message = "the network returns something that is no finite number; its weights are damaged";
        return Err(Error::Verification(message.into()));
    }
    let rounding = match rounded {
        Some(_) => Some(RoundingReport::compare(meta, &plain(&full, true)?, &expected)),
        None => None,
    };
    let (mut runtimes, mut skipped) = (Vec::new(), Vec::new());
    for kind in kinds.iter().copied().filter(|&kind| kind != RuntimeKind::Candle) {
        match kind.version() {
            Err(e) => skipped.push((kind.to_string(), e.to_string())),
            Ok(_) if kind.runs_graphs() && file.opset() > kind.max_opset() => {
                let newest = kind.max_opset();
                skipped.push((kind.to_string(), format!("it computes operator sets up to {newest}")));
            }
            Ok(version) => {
                let found = compare(&model, kind, &cases, &expected, trajectory);
                runtimes.push(RuntimeReport { version, ..found });
            }
        }
    }
    // What computes definitions says nothing about the graph.
    let by_graph = |name: &str| RuntimeKind::ALL.iter().any(|kind| kind.name() == name && kind.runs_graphs());
    let graphs = kinds.iter().any(|kind| kind.runs_graphs());
    if runtimes.is_empty() || graphs && !runtimes.iter().any(|r| by_graph(&r.runtime)) {
        let reasons: Vec<String> = skipped.into_iter().map(|(_, reason)| reason).collect();
        return Err(Error::Verification(format!("there is no runtime to verify on: {}", reasons.join("; "))));
    }
    let mut batches: Vec<usize> = cases.iter().map(Case::len).collect();
    batches.sort_unstable();
    batches.dedup();
    Ok(VerificationReport {
        tiny_cats: env!("CARGO_PKG_VERSION").into(),
        bytes: file.bytes().len(),
        opset: file.opset(),
        parameters: num_parameters(weights),
        reference: format!("candle {}", RuntimeKind::Candle.version()?),
        tolerance: TOLERANCE,
        inputs: cases.iter().map(Case::len).sum(),
        batches,
        passed: runtimes.iter().all(|r| r.passed) && rounding.as_ref().is_none_or(|r| r.passed),
        rounding,
        runtimes,
        skipped,
    })
}

/// What a network makes of the cases, and draws.
struct Outputs {
    outputs: Vec<Array>,
    /// Of a generator, if they were asked for.
    images: Option<Vec<Array>>,
}

impl Outputs {
    /// Those of the definition, by candle.
    fn of(model: &Model, cases: &[Case], pictures: bool) -> Result<Self> {
        let mut network = LoadedModel::new(model, RuntimeKind::Candle)?;
        let outputs = cases.iter().map(|case| network.run(case)).collect::<Result<_>>()?;
        Ok(Self { outputs, images: if pictures { sample_images(&mut network, model.meta())? } else { None } })
    }
}

/// Two pictures, drawn as the file of a generator advises.
fn sample_images(network: &mut LoadedModel, meta: &ModelMeta) -> Result<Option<Vec<Array>>> {
    let (LoadedModel::Generator(network), TaskMeta::Generator(task)) = (network, &meta.task) else {
        return Ok(None);
    };
    let settings = SamplingSettings::new(task, &Request { seed: SEED, ..Request::default() });
    let last = meta.classes.len().saturating_sub(1) as i64;
    let draws = [SampleSpec { index: 0, label: 0 }, SampleSpec { index: 1, label: last }];
    let dims = [3, meta.image_size, meta.image_size];
    sample(&mut **network, &settings, dims, &draws, &mut |_| ControlFlow::Continue(())).map(Some)
}

/// Rows of logits whose largest stands in the same place.
fn same_class(a: &Array, b: &Array) -> usize {
    rows(a).zip(rows(b)).filter(|(a, b)| argmax(a) == argmax(b)).count()
}

fn rows(array: &Array) -> impl Iterator<Item = &[f32]> {
    array.data().chunks(array.dims().last().copied().unwrap_or(1).max(1))
}

/// The place of the largest.
fn argmax(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j]))
}

fn compare(
    model: &Model,
    kind: RuntimeKind,
    cases: &[Case],
    expected: &Outputs,
    trajectory: bool,
) -> RuntimeReport {
    let mut report = RuntimeReport {
        runtime: kind.to_string(),
        version: String::new(),
        max_absolute_error: 0.0,
        max_relative_error: 0.0,
        tolerance_used: 0.0,
        trajectory_psnr: None,
        same_class: None,
        error: None,
        passed: false,
    };
    let mut run = || -> Result<()> {
        let mut network = LoadedModel::new(model, kind)?;
        let largest = expected.outputs.iter().flat_map(Array::data).fold(0f32, |most, v| most.max(v.abs()));
        for (case, expected) in cases.iter().zip(&expected.outputs) {
            let found = network.run(case)?;
            if found.dims() != expected.dims() {
                let (expected, found) = (expected.dims(), found.dims());
                return Err(kind.error(format!("expected an output of shape {expected:?}, found {found:?}")));
            }
            if let LoadedModel::Classifier(_) = network {
                *report.same_class.get_or_insert(0) += same_class(&found, expected);
            }
            let scale = scale(expected.data());
            for (found, expected) in found.data().iter().zip(expected.data()) {
                // `max` would drop a NaN.
                let error = if found.is_finite() { (found - expected).abs() } else { f32::MAX };
                let allowed = TOLERANCE.allowed(*expected, scale);
                report.max_absolute_error = report.max_absolute_error.max(error);
                report.tolerance_used = report.tolerance_used.max((error / allowed).min(f32::MAX));
            }
        }
        report.max_relative_error =
            (report.max_absolute_error / largest.max(f32::MIN_POSITIVE)).min(f32::MAX);
        if let (true, Some(pictures), Some(task)) = (trajectory, &expected.images, model.meta().generator()) {
            let drawn = sample_images(&mut network, model.meta())?.unwrap_or_default();
            report.trajectory_psnr = Some(min_psnr(&drawn, pictures, task.value_range));
        }
        Ok(())
    };
    report.error = run().err().map(|e| e.to_string());
    report.passed = report.error.is_none()
        && report.tolerance_used <= 1.0
        && report.trajectory_psnr.is_none_or(|ratio| ratio >= MIN_PSNR);
    report
}

/// The least [`psnr`] of a pair of pictures.
fn min_psnr(a: &[Array], b: &[Array], range: [f32; 2]) -> f64 {
    a.iter().zip(b).map(|(a, b)| psnr(a, b, range)).fold(MAX_PSNR, f64::min)
}

/// Peak signal-to-noise ratio between two pictures whose black and white are `range`, in dB, at most 200; 0 where a value is NaN.
pub fn psnr(a: &Array, b: &Array, [black, white]: [f32; 2]) -> f64 {
    let shown = |v: &f32| f64::from(v.clamp(black, white));
    let square: f64 = a.data().iter().zip(b.data()).map(|(a, b)| (shown(a) - shown(b)).powi(2)).sum();
    let mean = square / a.data().len().max(1) as f64;
    if mean.is_nan() {
        return 0.0;
    }
    (20.0 * f64::from(white - black).log10() - 10.0 * mean.log10()).min(MAX_PSNR)
}
