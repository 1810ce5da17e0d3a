//! Arguments that several commands take.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::Value;
use tiny_cats_export::{Model, escaped, excerpt, runtime::RuntimeKind, write_atomically};

use super::logging;
use crate::{
    checkpoint::{self, Assumption, ModelOverrides, WeightsSelection},
    data::{Dataset, printable},
    doctor::GET_CUDA,
};

/// The device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// The first NVIDIA GPU if this program was built with CUDA and finds one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// Opens the device.
    ///
    /// # Errors
    /// If the device is not available.
    pub fn device(self) -> anyhow::Result<Device> {
        match self {
            DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
            DeviceKind::Auto => Ok(gpu(0).unwrap_or_else(|reason| {
                eprintln!("no GPU can be used ({reason}); computing on the processor");
                Device::Cpu
            })),
            DeviceKind::Cuda if !cfg!(feature = "cuda") => {
                bail!(
                    "--device cuda: this program was built without CUDA; with NVIDIA's CUDA toolkit installed, \
                     {GET_CUDA} brings it (tiny-cats doctor says what is there)"
                )
            }
            DeviceKind::Cuda => match gpu(0) {
                Ok(device) => Ok(device),
                Err(reason) => bail!("--device cuda: no GPU can be used: {reason}"),
            },
        }
    }

    /// Opens the device of process `rank` of `count`, two or more: a GPU of its own, or the CPU if that is requested.
    ///
    /// # Errors
    /// If there are fewer GPUs than processes.
    pub fn device_for_rank(self, rank: usize, count: usize) -> anyhow::Result<Device> {
        if self == DeviceKind::Cpu || (self == DeviceKind::Cuda && !cfg!(feature = "cuda")) {
            return self.device();
        }
        let there = gpus();
        if there < count {
            bail!(
                "--gpus {count}: GPUs that can be used: {there}; with --device cpu the processor tries it out"
            );
        }
        gpu(rank).map_err(|reason| anyhow::anyhow!("--gpus {count}: GPU {rank} cannot be used: {reason}"))
    }
}

/// The number of NVIDIA GPUs.
#[cfg(feature = "cuda")]
fn gpus() -> usize {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

/// Always 0, since this program was built without CUDA.
#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

/// Opens an NVIDIA GPU by its number; the error is one line.
fn gpu(number: usize) -> Result<Device, String> {
    // With RUST_BACKTRACE, candle's errors carry a backtrace after their first line.
    Device::new_cuda(number).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

/// Parses two times, `FROM,TO`.
///
/// # Errors
/// If they are not times from 0 to 1, or the second is before the first.
pub fn interval(text: &str) -> Result<[f32; 2], String> {
    let times = text.split_once(',').and_then(|(from, to)| Some([from.parse().ok()?, to.parse().ok()?]));
    times
        .filter(|&[from, to]: &[f32; 2]| 0.0 <= from && from <= to && to <= 1.0)
        .ok_or_else(|| "expected two times from 0 to 1, the earlier first, such as 0.1,0.9".into())
}

/// The weights of a checkpoint to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightsKind {
    /// The weights that the optimizer updated.
    Raw,
    /// Their exponential moving average.
    Ema,
}

/// The selection for the value of `--weights`.
pub fn weights_selection(weights: Option<WeightsKind>) -> WeightsSelection {
    match weights {
        None => WeightsSelection::Default,
        Some(WeightsKind::Raw) => WeightsSelection::Raw,
        Some(WeightsKind::Ema) => WeightsSelection::Ema,
    }
}

/// Facts about a model that a checkpoint may not state.
#[derive(clap::Args, Clone, Debug)]
pub struct OverrideArgs {
    /// Height and width of the model's images in pixels, if the file does not state it
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Attention heads of the network, if the file does not state it
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Names of the classes in the order of their labels, if the file does not state them
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    classes: Option<Vec<String>>,
}

impl From<OverrideArgs> for ModelOverrides {
    fn from(args: OverrideArgs) -> Self {
        Self { image_size: args.image_size, heads: args.heads, classes: args.classes }
    }
}

/// The exit code if a file does not state everything that its model needs, and the rest was assumed.
pub const EXIT_ASSUMED: u8 = 3;

/// Prints to standard error the values that were assumed for the model in `path`.
pub fn warn_assumed(path: &Path, assumed: &[Assumption]) {
    for assumed in assumed {
        let flag = assumed.field.replace('_', "-");
        let path = path.display();
        logging::eprint_and_log(&format!(
            "{path}: assumed {assumed}: the file does not say; `tiny-cats export --{flag}` sets it"
        ));
    }
}

/// Opens a file as a model: a graph, or a checkpoint of any supported format. Prints the values that were assumed.
///
/// # Errors
/// Those of [`checkpoint::open_model`].
pub fn open_model(path: &Path) -> anyhow::Result<Model> {
    let (model, assumed) = checkpoint::open_model(path)?;
    warn_assumed(path, &assumed);
    Ok(model)
}

/// Adds the name of a model's file to the errors of computing with it.
pub trait ModelContext<T> {
    /// Adds the model's file to an error that does not name it. Without a file, the model is the one that comes with this program.
    ///
    /// # Errors
    /// Those of the result.
    fn model_context(self, file: Option<&Path>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> ModelContext<T> for Result<T, E> {
    fn model_context(self, file: Option<&Path>) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error: anyhow::Error = error.into();
            let unnamed = error.downcast_ref::<tiny_cats_export::Error>().is_some_and(|e| !e.names_file());
            match file.filter(|_| unnamed) {
                Some(file) => error.context(printable(file).display().to_string()),
                None => error,
            }
        })
    }
}

/// Prints the images that were skipped. Their names may come from an untrusted index, hence they are escaped.
pub fn warn_skipped(skipped: &[(PathBuf, String)]) {
    for (path, why) in skipped {
        logging::eprint_and_log(&format!(
            "skipped {}: {}",
            excerpt(&path.display().to_string()),
            excerpt(why)
        ));
    }
}

/// Prints the images that occur more than once, in several classes for example.
pub fn warn_duplicates(data: &Dataset) {
    data.duplicate_lines().iter().for_each(|line| logging::eprint_and_log(&escaped(line, usize::MAX)));
}

/// Writes formatted JSON to a file.
///
/// # Errors
/// If the file cannot be written; the error names it.
pub fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    let text = pretty_json(value)?;
    write_atomically(path, |w| w.write_all(text.as_bytes())).with_context(|| path.display().to_string())
}

/// Formats JSON for people to read.
///
/// # Errors
/// Never for a [`Value`].
pub fn pretty_json(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Prints `text` to standard output. Unlike `print!`, it does not panic when a reader such as `head` closes the pipe.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The runtimes that `--runtime` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Embedded: our own kernels, for models of tiny-cats.
    Native,
    /// Embedded: pure Rust, for any ONNX file.
    Tract,
    /// ONNX Runtime; its library is located when it is used.
    Ort,
    /// The definition itself, with the file's weights.
    Candle,
}

impl From<Runtime> for RuntimeKind {
    fn from(runtime: Runtime) -> Self {
        match runtime {
            Runtime::Native => Self::Native,
            Runtime::Tract => Self::Tract,
            Runtime::Ort => Self::Ort,
            Runtime::Candle => Self::Candle,
        }
    }
}

#[cfg(test)]
mod tests {
    use tiny_cats_export::Error;

    use super::*;

    #[test]
    fn an_error_of_a_model_names_its_file_once() {
        let said = |error: Error, file: Option<&str>| {
            format!("{:#}", Err::<(), _>(error).model_context(file.map(Path::new)).unwrap_err())
        };
        let runtime = || Error::Runtime { runtime: "tract", message: "no".into() };
        assert_eq!(said(runtime(), Some("a\u{1b}.onnx")), "a\\u{1b}.onnx: tract: no");
        assert_eq!(said(runtime(), None), "tract: no");
        let weights = Error::File { file: "weights".into(), field: "a".into(), message: "b".into() };
        assert_eq!(said(weights, Some("a.onnx")), "a.onnx: weights: a: b");
        let named = Error::File { file: "a.onnx".into(), field: "a".into(), message: "b".into() };
        assert_eq!(said(named, Some("a.onnx")), "a.onnx: a: b");
    }
}
