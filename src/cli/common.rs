//! Arguments and helpers that several commands share.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use candle_core::Device;
use serde_json::Value;
use tiny_cats_export::{Model, escape, excerpt, runtime::RuntimeKind, write_atomically};

use super::logging;
use crate::{
    checkpoint::{self, Assumption, ModelOverrides, WeightsSelection},
    data::{Dataset, printable},
    doctor::CUDA_INSTALL_COMMAND,
};

/// The device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// The first NVIDIA GPU if this program was built with CUDA and finds one, or the CPU.
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
                eprintln!("no usable GPU ({reason}); computing on the CPU");
                Device::Cpu
            })),
            DeviceKind::Cuda if !cfg!(feature = "cuda") => {
                bail!(
                    "--device cuda: this program was built without CUDA; install NVIDIA's CUDA toolkit, \
                     then run {CUDA_INSTALL_COMMAND} (tiny-cats doctor lists what is missing)"
                )
            }
            DeviceKind::Cuda => match gpu(0) {
                Ok(device) => Ok(device),
                Err(reason) => bail!("--device cuda: no usable GPU: {reason}"),
            },
        }
    }

    /// Opens the device of process `rank` of `count`, two or more: a separate GPU, or the CPU if that is requested.
    ///
    /// # Errors
    /// If there are fewer GPUs than processes.
    pub fn device_for_rank(self, rank: usize, count: usize) -> anyhow::Result<Device> {
        if self == DeviceKind::Cpu || (self == DeviceKind::Cuda && !cfg!(feature = "cuda")) {
            return self.device();
        }
        let available = gpus();
        if available < count {
            bail!(
                "--gpus {count}: expected {count} usable GPUs, found {available}; pass --device cpu to test on the CPU"
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

/// Opens an NVIDIA GPU; the error is one line.
fn gpu(index: usize) -> Result<Device, String> {
    // With RUST_BACKTRACE, candle's errors have a backtrace after the first line.
    Device::new_cuda(index).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

/// Parses an interval of times, `FROM,TO`.
///
/// # Errors
/// If they are not times from 0 to 1, or the second is before the first.
pub fn interval(text: &str) -> Result<[f32; 2], String> {
    let times = text.split_once(',').and_then(|(from, to)| Some([from.parse().ok()?, to.parse().ok()?]));
    times
        .filter(|&[from, to]: &[f32; 2]| 0.0 <= from && from <= to && to <= 1.0)
        .ok_or_else(|| "expected two times from 0 to 1 in ascending order, such as 0.1,0.9".into())
}

/// The weights of a checkpoint to select.
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

/// Properties of a model that a checkpoint may lack.
#[derive(clap::Args, Clone, Debug)]
pub struct OverrideArgs {
    /// Height and width of the model's images in pixels, if the file lacks it
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Number of attention heads, if the file lacks it
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Names of the classes in the order of their labels, if the file lacks them
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    classes: Option<Vec<String>>,
}

impl From<OverrideArgs> for ModelOverrides {
    fn from(args: OverrideArgs) -> Self {
        Self { image_size: args.image_size, heads: args.heads, classes: args.classes }
    }
}

/// The exit code if values that a file lacks were assumed.
pub const EXIT_ASSUMED: u8 = 3;

/// Prints to standard error the values that were assumed for the model in `path`.
pub fn warn_assumed(path: &Path, assumed: &[Assumption]) {
    for assumed in assumed {
        let flag = assumed.field.replace('_', "-");
        let path = path.display();
        logging::eprint_and_log(&format!(
            "{path}: assumed {assumed}, which the file lacks; set it with `tiny-cats export --{flag}`"
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

/// Adds the path of a model to errors.
pub trait ModelContext<T> {
    /// Adds `file` to an error that names no file. `None` stands for the bundled model.
    ///
    /// # Errors
    /// Those of the result.
    fn model_context(self, file: Option<&Path>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> ModelContext<T> for Result<T, E> {
    fn model_context(self, file: Option<&Path>) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error: anyhow::Error = error.into();
            let lacks_file =
                error.downcast_ref::<tiny_cats_export::Error>().is_some_and(|e| !e.has_file_name());
            match file.filter(|_| lacks_file) {
                Some(file) => error.context(printable(file).display().to_string()),
                None => error,
            }
        })
    }
}

/// Prints the skipped images. Their names are escaped, since they may come from an untrusted index.
pub fn warn_skipped(skipped: &[(PathBuf, String)]) {
    for (path, reason) in skipped {
        logging::eprint_and_log(&format!(
            "skipped {}: {}",
            excerpt(&path.display().to_string()),
            excerpt(reason)
        ));
    }
}

/// Prints the images that occur more than once, such as in several classes.
pub fn warn_duplicates(data: &Dataset) {
    data.duplicate_lines().iter().for_each(|line| logging::eprint_and_log(&escape(line, usize::MAX)));
}

/// Writes indented JSON to a file.
///
/// # Errors
/// If the file cannot be written; the error names it.
pub fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    let text = pretty_json(value)?;
    write_atomically(path, |w| w.write_all(text.as_bytes())).with_context(|| path.display().to_string())
}

/// Formats JSON with indentation.
///
/// # Errors
/// Never for a [`Value`].
pub fn pretty_json(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Prints `text` to standard output. Unlike `print!`, does not panic if the pipe is closed, as by `head`.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The values of `--runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Built in: kernels of this program, for models of tiny-cats.
    Native,
    /// Built in: pure Rust, for any ONNX file.
    Tract,
    /// ONNX Runtime, whose library is located when it is used.
    Ort,
    /// The definition of the network in candle, with the weights of the file.
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
    fn errors_of_a_model_name_its_file_once() {
        let message = |error: Error, file: Option<&str>| {
            format!("{:#}", Err::<(), _>(error).model_context(file.map(Path::new)).unwrap_err())
        };
        let runtime = || Error::Runtime { runtime: "tract", message: "no".into() };
        assert_eq!(message(runtime(), Some("a\u{1b}.onnx")), "a\\u{1b}.onnx: tract: no");
        assert_eq!(message(runtime(), None), "tract: no");
        let weights = Error::File { file: "weights".into(), field: "a".into(), message: "b".into() };
        assert_eq!(message(weights, Some("a.onnx")), "a.onnx: weights: a: b");
        let file_error = Error::File { file: "a.onnx".into(), field: "a".into(), message: "b".into() };
        assert_eq!(message(file_error, Some("a.onnx")), "a.onnx: a: b");
    }
}
