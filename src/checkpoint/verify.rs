//! Verification of checkpoints: the file is undamaged, has the tensors of its network, and computes.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use candle_core::Device;
use serde::Serialize;
use tiny_cats_export::{
    InputArray, Integrity, META_KEY, ModelMeta, NetworkConfig, RoundingReport, TOLERANCE, escape, excerpt,
    export_form, graph_input_names, measure_rounding,
    onnx::OnnxFile,
    runtime::{InputTensor, RuntimeKind, run_on},
    scale,
};
use tiny_cats_models::{Array, Axis, Input, InputValues, Weights, num_parameters, random};

use super::{
    Assumption, Format, ModelOverrides, WeightsComparison, WeightsSelection, compare,
    network::{mismatches, not_finite},
    open,
    torch::TorchFile,
};

const BATCH: usize = 2;
/// The longest line of the report in bytes; it may hold a path.
const MAX_LINE: usize = 4200;
/// The message for a file without checksums.
const UNCHECKED: &str = "unchecked: the file has no checksums, so damage may be undetected";

/// The ONNX file to compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Onnx {
    /// `NAME.onnx` in the folder of the checkpoint, if it exists.
    #[default]
    Sibling,
    /// This file.
    File(PathBuf),
    /// No file.
    Skip,
}

/// The options of [`verify`].
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The weights to verify.
    pub selection: WeightsSelection,
    /// The ONNX file to compare with.
    pub onnx: Onnx,
    /// The device that candle computes on.
    pub device: Device,
    /// Values that the file may lack.
    pub overrides: ModelOverrides,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            selection: WeightsSelection::Default,
            onnx: Onnx::Sibling,
            device: Device::Cpu,
            overrides: ModelOverrides::default(),
        }
    }
}

/// The result of a verification. It succeeded if there are no `problems`; after a failure, later fields may be empty.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckpointReport {
    /// The checkpoint.
    pub path: PathBuf,
    /// The problems, one line each.
    pub problems: Vec<String>,
    /// The file's format, in words.
    pub format: Option<String>,
    /// The result of comparing the checksums of the weights.
    pub integrity: Option<Integrity>,
    /// A description of the location of the weights in the file and of the other contents; `None` if the file has only weights.
    pub source: Option<String>,
    /// The classes that a PyTorch file mentions and that were not read.
    pub not_read: Vec<String>,
    /// True if the weights are averages.
    pub averaged: bool,
    /// The number of training steps, if the file has it.
    pub step: Option<u64>,
    /// The network.
    pub network: Option<NetworkConfig>,
    /// Side of the network's images, in pixels.
    pub image_size: Option<usize>,
    /// The values that neither the file nor its weights contain, and that may be incorrect.
    pub assumed: Vec<Assumption>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values in all tensors.
    pub parameters: usize,
    /// The kind of the network, if it is not registered. Then the network is not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_kind: Option<String>,
    /// True if the network is as initialized.
    pub untrained: bool,
    /// Least and greatest output value of one forward pass.
    pub output_range: Option<[f32; 2]>,
    /// The ONNX file that was compared.
    pub onnx: Option<PathBuf>,
    /// The result of that file's checksums.
    pub onnx_integrity: Option<Integrity>,
    /// The comparison of the weights with those in that file.
    pub weights_compared: Option<WeightsComparison>,
    /// The effect of that file's rounded weights, if it stores them in half precision.
    pub rounding: Option<RoundingReport>,
    /// The comparison with each runtime.
    pub runtimes: Vec<RuntimeComparison>,
}

/// A comparison of a runtime's output with candle's.
#[derive(Clone, Debug, Serialize)]
pub struct RuntimeComparison {
    /// The runtime's name.
    pub runtime: String,
    /// The largest absolute difference of an output value.
    pub largest_difference: f32,
}

/// Verifies the checkpoint at `path`.
///
/// Checks its format, that its tensors are exactly the network's, and that all values are finite. Then runs one forward pass with candle,
/// and the same pass of the ONNX file with every available runtime. An ONNX file in half precision must hold these weights rounded, compute
/// their output, and lose no accuracy.
///
/// If the network's kind is not registered, only the format, the checksums and the values are verified.
pub fn verify(path: &Path, options: &VerifyOptions) -> CheckpointReport {
    let mut report = CheckpointReport { path: path.to_owned(), ..CheckpointReport::default() };
    if let Err(problem) = report.check(options) {
        report.problems.push(problem);
    }
    report
}

/// The inputs of a forward pass, in the order of the definition, and its output.
struct ForwardPass {
    inputs: Vec<InputArray>,
    output: Array,
}

impl CheckpointReport {
    /// True if there are no problems.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    /// True if everything was verified, and nothing had to be assumed.
    pub fn is_complete(&self) -> bool {
        self.assumed.is_empty() && self.unknown_kind.is_none()
    }

    fn check(&mut self, options: &VerifyOptions) -> Result<(), String> {
        let loaded = open(&self.path, options.selection).map_err(|e| e.kind.to_string())?;
        self.format = Some(loaded.format.to_string());
        self.integrity = Some(loaded.integrity);
        self.source = Some(loaded.source.to_string()).filter(|text| !text.is_empty());
        self.not_read.clone_from(&loaded.opaque);
        self.averaged = loaded.averaged;
        self.step = loaded.step;
        self.tensors = loaded.weights.len();
        self.parameters = num_parameters(&loaded.weights);
        if loaded.format.is_torch() {
            // Unused parts are checked too, because a damaged optimizer state means a damaged file.
            TorchFile::open(&self.path)
                .and_then(|mut f| f.check(&self.path))
                .map_err(|e| e.kind.to_string())?;
        }
        self.problems.extend(loaded.weights.iter().filter_map(|(name, array)| not_finite(name, array)));

        let description = loaded.describe(&options.overrides).map_err(|p| p.to_string())?;
        let meta = description.meta;
        self.assumed = description.assumed;
        self.network = Some(meta.config.clone());
        self.image_size = Some(meta.image_size).filter(|&size| size > 0);
        let Ok(network) = meta.config.network() else {
            self.unknown_kind = Some(meta.config.kind().to_owned());
            return Ok(());
        };
        let mismatches = mismatches(&loaded, &meta.config).map_err(|p| p.to_string())?;
        self.problems.extend(mismatches);
        self.untrained = network.is_untrained(&loaded.weights);
        if !self.is_ok() {
            return Ok(());
        }

        let pass =
            forward(&meta, &loaded.weights, &options.device).map_err(|e| format!("forward pass: {e}"))?;
        let (low, high) =
            (pass.output.data().iter()).fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        self.output_range = Some([low, high]);
        if pass.output.data().iter().any(|x| !x.is_finite()) {
            return Err("forward pass: the output is not finite".into());
        }
        let sibling = self.path.with_extension("onnx");
        let onnx = match &options.onnx {
            Onnx::File(path) => path.clone(),
            Onnx::Sibling if sibling.is_file() => sibling,
            _ => return Ok(()),
        };
        self.onnx = Some(onnx.clone());
        self.compare(&onnx, &meta, &loaded.weights, pass, &options.device).map_err(|e| e.to_string())
    }

    fn compare(
        &mut self,
        path: &Path,
        meta: &ModelMeta,
        weights: &Weights,
        mut pass: ForwardPass,
        device: &Device,
    ) -> Result<(), tiny_cats_export::Error> {
        let file = OnnxFile::open(path)?;
        self.onnx_integrity = Some(file.integrity());
        let is_own = file.metadata().contains_key(META_KEY);
        let (exported_meta, exported) = export_form(meta, weights)?;
        if is_own && file.meta()?.config != exported_meta.config {
            self.problems
                .push(format!("{}: expected the checkpoint's network, found another", path.display()));
            return Ok(());
        }
        if is_own
            && !file.f16_names().is_empty()
            && let Some((model, rounding)) = measure_rounding(meta, weights, &file)?
        {
            if !rounding.passed {
                self.problems.push(format!("{}: {rounding}", path.display()));
            }
            self.rounding = Some(rounding);
            pass = forward(model.meta(), &model.weights()?, device)?;
        } else {
            let found = file.weights()?;
            let comparison = if is_own {
                compare::compare_by_name(&exported, &found)
            } else {
                // PyTorch may or may not have folded batch normalizations.
                let [plain, folded] =
                    [weights, &exported].map(|expected| compare::compare_by_value(expected, &found));
                if folded.found > plain.found { folded } else { plain }
            };
            let named = |line: &String| format!("{}: {line}", path.display());
            self.problems.extend(comparison.differences.iter().map(named));
            self.weights_compared = Some(comparison);
        }
        let names = graph_input_names(meta.config.network()?, &file);
        if let Some(port) = file.inputs().iter().find(|port| !names.contains(&port.name)) {
            let (path, names) = (path.display(), names.join(", "));
            self.problems.push(format!("{path}: expected the inputs {names}, found {:?}", port.name));
            return Ok(());
        }
        let tensors = pass.inputs.iter().map(InputArray::tensor);
        let inputs: Vec<(&str, InputTensor)> = names.iter().map(String::as_str).zip(tensors).collect();
        // candle-onnx does not bound what a damaged file makes it compute. Other runtimes do.
        let is_damaged = self.weights_compared.as_ref().is_some_and(|found| !found.differences.is_empty());
        let kinds =
            RuntimeKind::ALL.into_iter().filter(|kind| !is_damaged || *kind != RuntimeKind::CandleOnnx);
        let results = run_on(&kinds.collect::<Vec<_>>(), &file, &inputs);
        if results.is_empty() {
            self.problems.push(format!("{}: no available runtime can run the file", path.display()));
        }
        for (kind, result) in results {
            let found = match result {
                Ok(array) if array.dims() == pass.output.dims() => array,
                Ok(array) => {
                    let (expected, found) = (pass.output.dims(), array.dims());
                    self.problems.push(format!("{kind}: output of shape {found:?}, expected {expected:?}"));
                    continue;
                }
                // candle-onnx lacks operators that PyTorch writes and our exporter does not.
                Err(_) if kind == RuntimeKind::CandleOnnx && !is_own => continue,
                Err(e) => {
                    self.problems.push(e.to_string());
                    continue;
                }
            };
            let pairs = || pass.output.data().iter().zip(found.data());
            // Counts the values within the tolerance, so that NaN counts as outside.
            let scale = scale(pass.output.data());
            let within_tolerance =
                pairs().filter(|(a, b)| (*a - *b).abs() <= TOLERANCE.allowed(**a, scale)).count();
            let out_of_tolerance = found.data().len() - within_tolerance;
            let largest_difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if out_of_tolerance > 0 {
                let of = found.data().len();
                let message = format!(
                    "{kind}: {out_of_tolerance} of {of} output values differ, by up to {largest_difference:.2e}"
                );
                self.problems.push(message);
            }
            self.runtimes.push(RuntimeComparison { runtime: kind.to_string(), largest_difference });
        }
        Ok(())
    }
}

/// Runs one forward pass with candle. Inputs are fixed noise, the times 0.25 and 0.75, and the first and the last class.
fn forward(meta: &ModelMeta, weights: &Weights, device: &Device) -> tiny_cats_export::Result<ForwardPass> {
    let network = meta.config.network()?;
    let (inputs, sizes) = (network.inputs(), meta.sizes());
    let values = |(number, input): (usize, &Input)| -> tiny_cats_export::Result<InputArray> {
        let dims = input.dims(&sizes)?;
        Ok(match input.values {
            InputValues::Labels(count) => {
                // The class after the last may be the null class.
                let classes = network.role().classes().map_or(count, |classes| classes.min(count));
                InputArray::Labels(vec![0, classes.saturating_sub(1) as i64])
            }
            InputValues::Floats if dims.is_empty() => {
                InputArray::Floats(Array::new([BATCH], vec![0.25, 0.75])?)
            }
            InputValues::Floats => {
                let len = dims.iter().product();
                let noise = (0..BATCH as u64).flat_map(|item| random::noise(number as u64, item, len));
                InputArray::Floats(Array::new([&[BATCH], &dims[..]].concat(), noise.collect())?)
            }
        })
    };
    let values = inputs.iter().enumerate().map(values).collect::<tiny_cats_export::Result<Vec<_>>>()?;
    let tensors: Vec<(&str, InputTensor)> =
        inputs.iter().zip(&values).map(|(input, values)| (input.name.as_str(), values.tensor())).collect();
    let output = network.load_candle_on(weights, device)?.run(&tensors)?;
    Ok(ForwardPass { inputs: values, output })
}

impl Format {
    fn is_torch(self) -> bool {
        use Format::*;
        matches!(
            self,
            ReleasedTorch
                | TorchTraining
                | TorchModel
                | TorchStateDict
                | TorchAverages
                | TorchNested
                | TorchBare
        )
    }
}

impl fmt::Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", escape(&self.path.display().to_string(), usize::MAX))?;
        // The text may contain names from an untrusted file.
        let mut line = |name: &str, text: String| writeln!(f, "  {name:<10} {}", escape(&text, MAX_LINE));
        if let Some(format) = &self.format {
            line("format", format.clone())?;
        }
        match self.integrity {
            Some(Integrity::Verified) => line("integrity", "verified by the file's checksums".into())?,
            Some(Integrity::Unchecked) => line("integrity", UNCHECKED.into())?,
            None => {}
        }
        if let Some(source) = &self.source {
            line("source", excerpt(source).into_owned())?;
        }
        if !self.not_read.is_empty() {
            line("not read", format!("objects of {}", excerpt(&self.not_read.join(", "))))?;
        }
        if let Some(kind) = &self.unknown_kind {
            line(
                "network",
                format!("not verified: the kind {} is not registered in this program", excerpt(kind)),
            )?;
        }
        if let Some(network) = self.network.as_ref().and_then(|config| config.network().ok()) {
            for (i, text) in network.details().into_iter().enumerate() {
                line(if i == 0 { "network" } else { "" }, text)?;
            }
            let inputs = network.inputs();
            let mut axes = inputs.iter().flat_map(|input| &input.axes);
            let has_free_axis = axes.any(|axis| matches!(axis, Axis::Free(_)));
            if let Some(size) = self.image_size.filter(|_| has_free_axis) {
                line("", format!("for images of {size} px"))?;
            }
        }
        for assumed in &self.assumed {
            let flag = assumed.field.replace('_', "-");
            line("assumed", format!("{assumed}: not in the file; set it with --{flag}"))?;
        }
        if self.tensors > 0 {
            let kind = if self.averaged { "EMA" } else { "raw" };
            let step = self.step.map(|s| format!(", step {s}")).unwrap_or_default();
            line(
                "weights",
                format!("{kind}{step}, {} tensors, {} parameters", self.tensors, self.parameters),
            )?;
        }
        if self.untrained {
            line("", "untrained: the weights are as initialized".into())?;
        }
        if let Some([low, high]) = self.output_range {
            line("forward", format!("candle, outputs from {low:.3} to {high:.3}"))?;
        }
        if let Some(onnx) = &self.onnx {
            line("onnx", onnx.display().to_string())?;
            match self.onnx_integrity {
                Some(Integrity::Verified) => line("", "verified by the file's digest".into())?,
                Some(Integrity::Unchecked) => line("", UNCHECKED.into())?,
                None => {}
            }
            if let Some(rounding) = &self.rounding {
                line("", rounding.to_string())?;
            }
            if let Some(WeightsComparison { found, total, .. }) = self.weights_compared {
                line("", format!("{found} of {total} weight tensors compared"))?;
            }
            for c in &self.runtimes {
                line("", format!("{}: largest difference {:.1e}", c.runtime, c.largest_difference))?;
            }
            line("", format!("tolerance {TOLERANCE}"))?;
        }
        for problem in &self.problems {
            line("problem", problem.clone())?;
        }
        f.write_str(match (self.is_ok(), self.unknown_kind.is_some(), self.assumed.is_empty()) {
            (false, _, _) => "FAILED",
            (true, true, _) => "ok, except for the network",
            (true, false, true) => "ok",
            (true, false, false) => "ok, if the assumed values are correct",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_escape_control_characters_and_cut_long_names() {
        let hostile = format!("\u{3}\u{1b}[2J\n{}", "x".repeat(5000));
        let report = CheckpointReport {
            path: PathBuf::from(&hostile[..20]),
            problems: vec![hostile.clone()],
            source: Some(hostile.clone()),
            not_read: vec![hostile; 30],
            ..CheckpointReport::default()
        };
        let text = report.to_string();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.len() < 6000, "{} bytes", text.len());
    }
}
