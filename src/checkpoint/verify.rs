//! Verification of checkpoints: the file is undamaged, has the tensors of its network, and computes.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use tiny_cats_export::{
    CLASSIFIER_INPUT, Integrity, META_KEY, ModelMeta, NetworkConfig, RoundingReport, TOLERANCE, escape,
    excerpt, export_form, measure_rounding,
    onnx::OnnxFile,
    runtime::{InputTensor, RuntimeKind, run_on_all},
    scale,
};
use tiny_cats_models::{
    Array, Head, ResNet, Scope, TinyDit, Weights,
    candle::{CandleValue, Params, to_device, to_host},
    num_parameters, random,
};

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
    /// True if the network is as initialized: a TinyDiT's output layer is zero, or a ResNet has the running statistics of no batch.
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
pub fn verify(path: &Path, options: &VerifyOptions) -> CheckpointReport {
    let mut report = CheckpointReport { path: path.to_owned(), ..CheckpointReport::default() };
    if let Err(problem) = report.check(options) {
        report.problems.push(problem);
    }
    report
}

/// The inputs and output of a forward pass: `x` `[batch, 3, size, size]`, `t` and `label` `[batch]`.
struct ForwardPass {
    x: Array,
    t: Array,
    labels: Vec<i64>,
    output: Array,
}

impl CheckpointReport {
    /// True if there are no problems.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
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
        self.image_size = Some(meta.image_size);
        let mismatches = mismatches(&loaded, &meta.config).map_err(|p| p.to_string())?;
        self.problems.extend(mismatches);
        self.untrained = is_untrained(&meta.config, &loaded.weights);
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
                    [weights, &*exported].map(|expected| compare::compare_by_value(expected, &found));
                if folded.found > plain.found { folded } else { plain }
            };
            let named = |line: &String| format!("{}: {line}", path.display());
            self.problems.extend(comparison.differences.iter().map(named));
            self.weights_compared = Some(comparison);
        }
        let mut inputs = Vec::new();
        for port in file.inputs() {
            inputs.push(match port.name.as_str() {
                // The input of our generators, of the Python project's, and of the classifiers of both.
                "x" | "noise" | CLASSIFIER_INPUT => (port.name.as_str(), InputTensor::Floats(&pass.x)),
                "t" | "timestep" => (port.name.as_str(), InputTensor::Floats(&pass.t)),
                "label" | "breed" => (port.name.as_str(), InputTensor::Labels(&pass.labels)),
                other => {
                    let message = format!(
                        "{}: input {other:?}, expected x, t and label, or {CLASSIFIER_INPUT}",
                        path.display()
                    );
                    self.problems.push(message);
                    return Ok(());
                }
            });
        }
        let results = run_on_all(&file, &inputs);
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

/// True if the weights are as initialized.
fn is_untrained(network: &NetworkConfig, weights: &Weights) -> bool {
    let all = |suffix: &str, value: f32| {
        let mut found = weights.iter().filter(|(name, _)| name.ends_with(suffix)).peekable();
        found.peek().is_some() && found.all(|(_, array)| array.data().iter().all(|&v| v == value))
    };
    match network {
        NetworkConfig::TinyDit(_) => {
            all("final_layer.linear.weight", 0.0) && all("final_layer.linear.bias", 0.0)
        }
        NetworkConfig::ResNet(_) => all(".running_mean", 0.0) && all(".running_var", 1.0),
    }
}

/// Runs one forward pass of fixed noise with candle.
fn forward(meta: &ModelMeta, weights: &Weights, device: &Device) -> tiny_cats_models::Result<ForwardPass> {
    let size = meta.image_size;
    let noise = (0..BATCH as u64).flat_map(|i| random::noise(0, i, 3 * size * size)).collect();
    let x = Array::new([BATCH, 3, size, size], noise)?;
    let t = Array::new([BATCH], vec![0.25, 0.75])?;
    let labels = vec![0, meta.classes.len().saturating_sub(1) as i64];

    let mut params = Params::new(weights, DType::F32, device)?;
    let mut scope = Scope::root(&mut params);
    let value = |array: &Array| to_device(array, DType::F32, device).map(CandleValue::new);
    let output = match &meta.config {
        NetworkConfig::TinyDit(config) => {
            let label: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
            let label = CandleValue::new(Tensor::new(label, device)?);
            TinyDit::new(config, &mut scope)?.forward(&value(&x)?, &value(&t)?, &label)?
        }
        NetworkConfig::ResNet(config) => ResNet::new(config, &mut scope)?.forward(&value(&x)?)?,
    };
    Ok(ForwardPass { x, t, labels, output: to_host(&output.into_inner())? })
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
        match &self.network {
            Some(NetworkConfig::TinyDit(c)) => {
                let (size, patch, layout) = (c.image_size, c.patch_size, c.layout);
                let text = format!("TinyDiT, {layout:?} layout, {size} px in patches of {patch}");
                line("network", text.replace("Modern", "modern").replace("Legacy", "legacy"))?;
                let (width, depth, heads, classes) = (c.width, c.depth, c.heads, c.classes);
                line("", format!("width {width}, depth {depth}, {heads} heads, {classes} classes"))?;
            }
            Some(NetworkConfig::ResNet(c)) => {
                let (depth, width, classes) = (c.depth, c.width, c.classes);
                let head = match c.head {
                    Head::Plain => "",
                    Head::Dropout => ", a dropout before the head",
                };
                let norms = if c.batch_norm { "" } else { ", batch norms folded" };
                line("network", format!("ResNet-{depth}, width {width}{norms}{head}, {classes} classes"))?;
                if let Some(size) = self.image_size {
                    line("", format!("for images of {size} px"))?;
                }
            }
            None => {}
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
        f.write_str(match (self.is_ok(), self.assumed.is_empty()) {
            (false, _) => "FAILED",
            (true, true) => "ok",
            (true, false) => "ok, if the assumed values are correct",
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
