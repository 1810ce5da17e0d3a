//! Arguments and helpers that several commands share.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use candle_core::Device;
use serde_json::Value;
use tiny_cats_export::{Model, escape, runtime::RuntimeKind, write_atomically};

use super::logging;
use crate::{
    checkpoint::{self, Assumption, ModelOverrides, WeightsSelection},
    data::{Dataset, printable, skipped_lines},
    device::DeviceKind,
};

/// Opens the device of `--device`. Prints why a GPU cannot be used.
///
/// # Errors
/// If the device is not available.
pub fn open_device(device: DeviceKind) -> anyhow::Result<Device> {
    device
        .open(&mut |note| logging::eprint_and_log(note))
        .map_err(|message| anyhow::anyhow!("--device: {message}"))
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

/// Prints the skipped images.
pub fn warn_skipped(skipped: &[(PathBuf, String)]) {
    skipped_lines(skipped).for_each(|line| logging::eprint_and_log(&line));
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
