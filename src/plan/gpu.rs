//! GPU models by Modal's names, with their speed and memory.

use std::{fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Serialize};
use tiny_cats_models::Precision;

use super::{Error, Result};
use tiny_cats_export::closest;

/// Maximum number of GPUs in a container.
const MAX_GPUS: usize = 8;

/// A value for f32, and one for f16 and bf16.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PerPrecision {
    f32: f64,
    half: f64,
}

impl PerPrecision {
    /// Returns the value for matrix products in `precision`.
    pub fn value(self, precision: Precision) -> f64 {
        if precision == Precision::F32 { self.f32 } else { self.half }
    }
}

/// A model of GPU.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GpuModel {
    /// Modal's name.
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// A part of the name that the device reports.
    pub device: String,
    /// Memory that programs can use, in GiB.
    pub memory_gib: f64,
    /// True if the GPU supports bf16.
    pub bf16: bool,
    /// Peak speed in 10¹² floating-point operations per second.
    pub tflops: PerPrecision,
    /// The share of the peak that training reaches. Assumed.
    pub efficiency: PerPrecision,
}

/// A measured speed.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Measurement {
    /// The GPU, as [`GpuModel::name`].
    gpu: String,
    /// The kind of the network.
    network: String,
    precision: Precision,
    /// Speed in 10⁹ floating-point operations per second.
    gflops: f64,
    date: String,
    /// The method of the measurement.
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuCatalog {
    launch_us: f64,
    context_gib: f64,
    gaps: f64,
    gpu: Vec<GpuModel>,
    #[serde(default)]
    measured: Vec<Measurement>,
}

static CATALOG: LazyLock<GpuCatalog> =
    LazyLock::new(|| toml::from_str(include_str!("gpus.toml")).expect("the embedded list of GPUs is valid"));

/// Returns all GPU models in the order of the list, the slowest first.
pub fn gpu_models() -> &'static [GpuModel] {
    &CATALOG.gpu
}

/// The source of a speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeedSource {
    /// Not measured: the product of the peak and an assumed share.
    Assumed,
    /// Measured, with the method and the date.
    Measured(String),
}

impl GpuModel {
    /// True if `name` is the name or an alias of the model, in any case.
    pub fn has_name(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
    }

    /// Returns the floating-point operations per second of training a network of this kind, and its source.
    pub(super) fn speed(&self, network: &str, precision: Precision) -> (f64, SpeedSource) {
        let is_match =
            |row: &&Measurement| row.gpu == self.name && row.network == network && row.precision == precision;
        match CATALOG.measured.iter().find(is_match) {
            Some(row) => (row.gflops * 1e9, SpeedSource::Measured(format!("{}, {}", row.source, row.date))),
            None => {
                (self.tflops.value(precision) * 1e12 * self.efficiency.value(precision), SpeedSource::Assumed)
            }
        }
    }

    /// Returns the bytes of memory for tensors.
    pub(super) fn bytes(&self) -> u64 {
        let gib = (self.memory_gib - CATALOG.context_gib) * (1.0 - CATALOG.gaps);
        (gib * f64::from(1 << 30)) as u64
    }
}

/// Returns the seconds from one kernel launch to the next.
pub(super) fn launch_s() -> f64 {
    CATALOG.launch_us * 1e-6
}

/// One or several GPUs of a model, in Modal's notation: `A10`, `H100!`, `A100-80GB:4`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// The model.
    pub model: &'static GpuModel,
    /// The number of GPUs.
    pub count: usize,
    /// The text that is passed to Modal.
    text: String,
}

impl Gpu {
    /// Creates a single GPU of `model`.
    pub fn single(model: &'static GpuModel) -> Self {
        Self { model, count: 1, text: model.name.clone() }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for Gpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let printable: String = text.escape_debug().take(40).collect();
        let error = |message: String| Error::Gpu { name: printable.clone(), message };
        let (name, count) = match text.split_once(':') {
            None => (text, 1),
            Some((name, count)) => {
                let count = count.parse().ok().filter(|count| (1..=MAX_GPUS).contains(count));
                (name, count.ok_or_else(|| error(format!("expected 1 to {MAX_GPUS} GPUs after the colon")))?)
            }
        };
        let Some(model) = gpu_models().iter().find(|model| model.has_name(name)) else {
            let names = || gpu_models().iter().map(|model| model.name.as_str());
            let suggestion = closest(name, names()).map(|suggestion| format!("; did you mean {suggestion}?"));
            let names = names().collect::<Vec<_>>().join(", ");
            return Err(error(format!(
                "unknown GPU{}",
                suggestion.unwrap_or_else(|| format!("; expected one of {names}"))
            )));
        };
        let name = model.aliases.iter().find(|alias| alias.eq_ignore_ascii_case(name)).unwrap_or(&model.name);
        let text = if count == 1 { name.clone() } else { format!("{name}:{count}") };
        Ok(Self { model, count, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_parsed_in_the_notation_of_modal() {
        for (text, model, count, printable) in [
            ("A10", "A10", 1, "A10"),
            ("a100:4", "A100-40GB", 4, "A100:4"),
            ("H100!", "H100", 1, "H100!"),
            ("A100-80GB:2", "A100-80GB", 2, "A100-80GB:2"),
            ("L4:1", "L4", 1, "L4"),
        ] {
            let gpu: Gpu = text.parse().unwrap();
            assert_eq!((&*gpu.model.name, gpu.count, &*gpu.to_string()), (model, count, printable));
        }
        for (text, message) in [
            ("A11", "--gpu A11: unknown GPU; did you mean A10?"),
            ("h10", "did you mean H100?"),
            ("A10:0", "expected 1 to 8 GPUs"),
            ("A10:x", "expected 1 to 8 GPUs"),
            ("", "unknown GPU; expected one of T4, "),
            ("\u{1b}[31m", "--gpu \\u{1b}[31m: unknown GPU"),
        ] {
            let error = text.parse::<Gpu>().unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_catalog_is_valid() {
        for model in gpu_models() {
            for share in [model.efficiency.f32, model.efficiency.half] {
                assert!(share > 0.0 && share <= 1.0, "{}", model.name);
            }
            assert!(model.bytes() > 8 << 30 && model.tflops.half > model.tflops.f32, "{}", model.name);
            assert_eq!(model.name.parse::<Gpu>().unwrap().model, model);
        }
    }
}
