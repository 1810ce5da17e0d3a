//! The runtimes of model files. A runtime runs the graph, or evaluates the definition with the file's weights.
// Without any of these features, the shared code is unused.
#![cfg_attr(
    not(any(feature = "tract", feature = "ort", feature = "candle-onnx")),
    allow(dead_code, unused_variables)
)]

#[cfg(any(feature = "native", feature = "tract", feature = "ort"))]
mod batch_split;
#[cfg(feature = "candle")]
pub(crate) mod candle;
#[cfg(feature = "candle-onnx")]
mod candle_onnx;
#[cfg(feature = "native")]
mod definition;
#[cfg(feature = "native")]
pub(crate) mod native;
#[cfg(feature = "ort")]
mod ort;
#[cfg(feature = "tract")]
mod tract;

use std::{fmt, path::Path, str::FromStr, thread::available_parallelism};

use tiny_cats_models::Array;

use crate::{Error, Result, excerpt, guard::catch, onnx::OnnxFile};

/// A runtime of model files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RuntimeKind {
    /// Evaluates the definition with our own kernels; built in.
    Native,
    /// tract; built in, pure Rust.
    Tract,
    /// ONNX Runtime, a shared library that is found at first use.
    Ort,
    /// Evaluates the definition with candle.
    Candle,
    /// candle's interpreter of ONNX graphs, for verification.
    CandleOnnx,
}

impl RuntimeKind {
    /// All runtimes, built in or not.
    pub const ALL: [Self; 5] = [Self::Native, Self::Tract, Self::Ort, Self::Candle, Self::CandleOnnx];

    /// Returns the name of the runtime on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tract => "tract",
            Self::Ort => "ort",
            Self::Candle => "candle",
            Self::CandleOnnx => "candle-onnx",
        }
    }

    /// Returns the version of the runtime.
    ///
    /// # Errors
    /// [`Error::Runtime`] with the reason why it is not available, and how to install it.
    pub fn version(self) -> Result<String> {
        match self {
            #[cfg(feature = "native")]
            Self::Native => Ok(native::VERSION.into()),
            #[cfg(feature = "tract")]
            Self::Tract => Ok(tract::VERSION.into()),
            #[cfg(feature = "ort")]
            Self::Ort => ort::version(),
            #[cfg(feature = "candle")]
            Self::Candle => Ok(candle::VERSION.into()),
            #[cfg(feature = "candle-onnx")]
            Self::CandleOnnx => Ok(candle::VERSION.into()),
            #[allow(unreachable_patterns)]
            _ => Err(self.unavailable_error()),
        }
    }

    /// Returns the path of the shared library; `None` if the runtime is part of the program, or not available.
    pub fn library(self) -> Option<&'static Path> {
        match self {
            #[cfg(feature = "ort")]
            Self::Ort => ort::path(),
            _ => None,
        }
    }

    /// Loads a graph into this runtime.
    ///
    /// # Errors
    /// [`Error::Runtime`] if it is not available, or rejects the graph. [`Native`](Self::Native) and [`Candle`](Self::Candle)
    /// evaluate definitions, not graphs.
    pub fn load(self, file: &OnnxFile) -> Result<Box<dyn Session>> {
        self.load_with(file, true)
    }

    /// Loads a graph as [`load`](Self::load) does, with the runtime's optimizer on or off. candle-onnx has no optimizer.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(self, file: &OnnxFile, optimize: bool) -> Result<Box<dyn Session>> {
        catch_panics(self, || match self {
            #[cfg(feature = "tract")]
            Self::Tract => Ok(Box::new(tract::TractSession::load(file, optimize)?) as Box<dyn Session>),
            #[cfg(feature = "ort")]
            Self::Ort => Ok(Box::new(ort::OrtSession::load(file, optimize)?) as Box<dyn Session>),
            #[cfg(feature = "candle-onnx")]
            Self::CandleOnnx => Ok(Box::new(candle_onnx::CandleOnnxSession::load(file)?) as Box<dyn Session>),
            Self::Native | Self::Candle if self.version().is_ok() => {
                Err(self.error("expected a runtime of graphs, found one that evaluates definitions"))
            }
            #[allow(unreachable_patterns)]
            _ => Err(self.unavailable_error()),
        })
    }

    /// True if the runtime runs ONNX graphs; false if it evaluates definitions.
    pub fn can_run_graphs(self) -> bool {
        !matches!(self, Self::Native | Self::Candle)
    }

    /// Returns the newest operator set of which the runtime supports all operators that we write. From operator set 18 on, candle-onnx
    /// silently ignores the axes of a reduction.
    pub fn max_opset(self) -> u32 {
        if self == Self::CandleOnnx { 17 } else { *crate::onnx::OPSETS.end() }
    }

    pub(crate) fn unavailable_error(self) -> Error {
        self.error(format!("not built in; build with the feature {}", self.name()))
    }

    pub(crate) fn error(self, message: impl fmt::Display) -> Error {
        // Errors of runtimes have many lines; ours have one.
        let line = message.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Error::Runtime { runtime: self.name(), message: excerpt(&line).into_owned() }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RuntimeKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|k| k.name() == s);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::request("runtime", format!("expected one of {names}, found {s:?}"))
        })
    }
}

/// Returns every runtime with its version, or the reason why it is not available.
pub fn available() -> Vec<(RuntimeKind, Result<String>)> {
    RuntimeKind::ALL.into_iter().map(|kind| (kind, kind.version())).collect()
}

/// An input of a graph; the first axis is the batch.
#[derive(Clone, Copy, Debug)]
pub enum InputTensor<'a> {
    /// Floating-point numbers, `[batch, ..]`.
    Floats(&'a Array),
    /// One integer for each item.
    Labels(&'a [i64]),
}

impl InputTensor<'_> {
    fn batch(&self) -> Option<usize> {
        match self {
            Self::Floats(array) => array.dims().first().copied(),
            Self::Labels(labels) => Some(labels.len()),
        }
    }
}

/// A network that a runtime has loaded, from a graph or from a definition.
pub trait Session: Send {
    /// Returns the runtime.
    fn kind(&self) -> RuntimeKind;

    /// Returns the names of the outputs; the first is the main output.
    fn outputs(&self) -> &[String];

    /// Computes the output of this name. Inputs are matched by name and have one batch size, which may differ from call to call.
    ///
    /// # Errors
    /// [`Error::Runtime`] if inputs are missing, unknown or of other sizes, there is no such output, or the runtime fails.
    fn run_output(&mut self, inputs: &[(&str, InputTensor)], output: &str) -> Result<Array>;

    /// Computes the main output.
    ///
    /// # Errors
    /// As [`run_output`](Self::run_output).
    fn run(&mut self, inputs: &[(&str, InputTensor)]) -> Result<Array> {
        let main = self.outputs().first().cloned().unwrap_or_default();
        self.run_output(inputs, &main)
    }
}

/// Returns the position of an output of `session`.
fn output_index(session: &dyn Session, output: &str) -> Result<usize> {
    let outputs = session.outputs();
    outputs.iter().position(|name| name == output).ok_or_else(|| {
        session.kind().error(format!("expected an output of {}, found {output}", outputs.join(", ")))
    })
}

/// Runs `file` on every available runtime that supports its operator set, and returns each runtime with its result.
pub fn run_on_all(file: &OnnxFile, inputs: &[(&str, InputTensor)]) -> Vec<(RuntimeKind, Result<Array>)> {
    run_on(&RuntimeKind::ALL, file, inputs)
}

/// Runs `file` as [`run_on_all`] does, on those of `kinds`.
pub fn run_on(
    kinds: &[RuntimeKind],
    file: &OnnxFile,
    inputs: &[(&str, InputTensor)],
) -> Vec<(RuntimeKind, Result<Array>)> {
    let is_supported = |kind: &RuntimeKind| {
        kind.can_run_graphs() && file.opset() <= kind.max_opset() && kind.version().is_ok()
    };
    let run = |kind: RuntimeKind| (kind, kind.load(file).and_then(|mut session| session.run(inputs)));
    kinds.iter().copied().filter(is_supported).map(run).collect()
}

/// Calls `f`, and converts a panic to an error. Runtimes may panic on invalid values in a file.
fn catch_panics<T>(kind: RuntimeKind, f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch(f).unwrap_or_else(|message| Err(panic_error(kind, &message)))
}

fn panic_error(kind: RuntimeKind, message: &str) -> Error {
    kind.error(format!("the runtime panicked: {message}"))
}

/// Checks that `inputs` have exactly the `names` and one batch size, and returns the batch size.
fn check_inputs<'a>(
    kind: RuntimeKind,
    names: impl ExactSizeIterator<Item = &'a str>,
    inputs: &[(&str, InputTensor)],
) -> Result<usize> {
    let expected = names.len();
    for name in names {
        if !inputs.iter().any(|(n, _)| *n == name) {
            return Err(kind.error(format!("expected an input {name}, found none")));
        }
    }
    if inputs.len() != expected {
        return Err(kind.error(format!("expected {expected} inputs, found {}", inputs.len())));
    }
    let batch = inputs.first().and_then(|(_, input)| input.batch()).unwrap_or(0);
    if batch == 0 || inputs.iter().any(|(_, input)| input.batch() != Some(batch)) {
        return Err(kind.error("expected inputs of one batch size, at least 1"));
    }
    Ok(batch)
}

/// Returns the number of threads to compute with.
fn threads() -> usize {
    available_parallelism().map_or(1, |n| n.get())
}
